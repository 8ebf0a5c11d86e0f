"""Experiments of the area `bandits`."""
