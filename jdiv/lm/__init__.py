"""Language models: exact ones whose sequences are enumerated."""

from __future__ import annotations

from jdiv.lm import tabular

__all__ = ["tabular"]
