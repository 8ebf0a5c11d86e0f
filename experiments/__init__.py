"""Experiments: each reproduces a claim of a paper as a number that can fail and a figure."""
