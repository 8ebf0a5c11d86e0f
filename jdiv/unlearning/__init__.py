"""Unlearning: models that forget some of their data and stay close to what retraining gives."""

from __future__ import annotations

from jdiv.unlearning import demotion, gauss_newton, matching
from jdiv.unlearning.gauss_newton import Factors

__all__ = ["Factors", "demotion", "gauss_newton", "matching"]
