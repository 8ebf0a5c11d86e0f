"""Distillation: losses between a teacher and a student, on any samples."""

from __future__ import annotations

from jdiv.distillation import (
    adaptive,
    augment,
    features,
    metrics,
    on_policy,
    ranking,
    selection,
    self,
    sparse,
    teacher,
    token,
    transfer,
    transport,
)

__all__ = [
    "adaptive",
    "augment",
    "features",
    "metrics",
    "on_policy",
    "ranking",
    "selection",
    "self",
    "sparse",
    "teacher",
    "token",
    "transfer",
    "transport",
]
