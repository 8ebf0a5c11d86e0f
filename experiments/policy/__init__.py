"""Experiments of the area `policy`."""
