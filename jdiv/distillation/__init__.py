"""Distillation: losses between a teacher and a student, on any samples."""

from __future__ import annotations

from jdiv.distillation import token

__all__ = ["token"]
