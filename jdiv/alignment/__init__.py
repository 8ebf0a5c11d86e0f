"""Alignment on finite answer sets, exactly: targets, losses, rewards, averaging."""
