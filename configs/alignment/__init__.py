"""Configs of the area `alignment`."""
