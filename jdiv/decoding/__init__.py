"""Decoding: laws of the next token that a divergence, a constraint or a bound on KL leads to."""

from __future__ import annotations

__all__ = []
