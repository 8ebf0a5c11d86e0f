"""Experiments of the area `distillation`."""
