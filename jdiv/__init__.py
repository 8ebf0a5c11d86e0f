"""Divergences in JAX, as pure functions: exact, estimated, regularised with."""

from jdiv import divergences, estimators, regularized
from jdiv.divergences import generators

__all__ = ["divergences", "estimators", "generators", "regularized"]
