"""Configs of the area `estimation`."""
