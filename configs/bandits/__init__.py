"""Configs of the area `bandits`."""
