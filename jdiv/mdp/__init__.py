"""Finite Markov decision processes: models, operators, value iteration, occupancy measures."""
