"""Preference games: matrices, equilibria, self-play."""

from __future__ import annotations

from jdiv.games import preferences, self_play
from jdiv.games.preferences import Equilibrium

__all__ = ["Equilibrium", "preferences", "self_play"]
