"""Configs of the area `lm`."""
