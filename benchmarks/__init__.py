"""How fast jdiv is and how much memory it needs, beside what its users have; `make benchmark`."""
