"""Distillation: losses between a teacher and a student, on any samples."""

from __future__ import annotations

from jdiv.distillation import (
    augment,
    features,
    metrics,
    selection,
    self,
    teacher,
    token,
    transport,
)

__all__ = [
    "augment",
    "features",
    "metrics",
    "selection",
    "self",
    "teacher",
    "token",
    "transport",
]
