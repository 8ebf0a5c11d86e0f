"""Language models: exact ones whose sequences are enumerated."""

from jdiv.lm import tabular

__all__ = ["tabular"]
