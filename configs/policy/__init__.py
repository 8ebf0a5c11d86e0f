"""Configs of the area `policy`."""
