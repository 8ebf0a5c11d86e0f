"""Experiments of the area `lm`."""
