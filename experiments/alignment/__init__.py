"""Experiments of the area `alignment`."""
