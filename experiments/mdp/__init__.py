"""Experiments of the area `mdp`."""
