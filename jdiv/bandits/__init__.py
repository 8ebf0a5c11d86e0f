"""Bandits: stochastic, adversarial and contextual ones, and single-pass streams of arms."""

from __future__ import annotations

from jdiv.bandits import adversarial, contextual, stochastic, streaming

__all__ = ["adversarial", "contextual", "stochastic", "streaming"]
