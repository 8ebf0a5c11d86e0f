"""Configs of the area `games`."""
