"""Configs of the area `distillation`."""
