"""Configs of the area `mdp`."""
