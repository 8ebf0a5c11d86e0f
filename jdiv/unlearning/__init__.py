"""Unlearning: models that forget some of their data and stay close to what retraining gives."""

from __future__ import annotations

__all__ = []
