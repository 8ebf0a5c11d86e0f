"""Preference games: matrices, equilibria, self-play."""
