"""Experiments of the area `decoding`."""
