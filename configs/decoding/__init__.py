"""Configs of the area `decoding`."""
