"""One config per experiment, under the same stem."""
