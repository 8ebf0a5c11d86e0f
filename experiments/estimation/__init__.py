"""Area `estimation`."""
