"""Divergences between distributions: by name between categoricals, and the table behind them.

`kl(p_logits, q_logits)` and every other row of the table, `f_divergence` of any row, and what is no
f-divergence are here. `generator` is the contract of a row, `generators` the table, `categorical`
the exact values on logits, `vocabulary` those of language models from hidden states, `sequence`
those of whole sequences from sampled ones, `sparse` those of which k categories are known,
`gaussian` the closed forms between Gaussians, `transport` the distances that know a geometry.
"""

from __future__ import annotations

from collections.abc import Callable

from jax import Array

from jdiv.divergences import (
    categorical,
    gaussian,
    generator,
    generators,
    sequence,
    sparse,
    transport,
    vocabulary,
)
from jdiv.divergences.categorical import (
    bhattacharyya,
    bregman,
    cauchy_schwarz,
    f_divergence,
    renyi,
)
from jdiv.divergences.generator import Generator

globals().update(categorical.TABLE)

__all__ = [
    "Generator",
    "bhattacharyya",
    "bregman",
    "categorical",
    "cauchy_schwarz",
    "f_divergence",
    "gaussian",
    "generator",
    "generators",
    "renyi",
    "sequence",
    "sparse",
    "transport",
    "vocabulary",
    *categorical.TABLE,
]


def __getattr__(name: str) -> Callable[..., Array]:
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
