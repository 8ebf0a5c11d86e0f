"""Decoding: laws of the next token that a divergence, a constraint or a bound on KL leads to."""

from __future__ import annotations

from jdiv.decoding import bregman, steering, tracing

__all__ = ["bregman", "steering", "tracing"]
