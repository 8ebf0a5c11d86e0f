"""Experiments of the area `games`."""
