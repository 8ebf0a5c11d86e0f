"""Bandits: index policies, single-pass streams."""

from jdiv.bandits import index, streaming

__all__ = ["index", "streaming"]
