"""Divergences between distributions: by name between categoricals, and the table behind them.

`generators` is the table, `sums` rows made of its rows, `categorical` the exact values on logits
(exported here), `gaussian` the closed forms between Gaussians, `transport` the distances that know
a geometry.
"""

from jdiv.divergences import categorical, gaussian, generators, sums, transport
from jdiv.divergences.categorical import (
    alpha,
    bhattacharyya,
    bregman,
    cauchy_schwarz,
    f_divergence,
    jeffreys,
    jensen_shannon,
    kl,
    le_cam,
    neyman_chi2,
    pearson_chi2,
    renyi,
    reverse_kl,
    skew_kl,
    squared_hellinger,
    total_variation,
    tsallis,
)

__all__ = [
    "alpha",
    "bhattacharyya",
    "bregman",
    "categorical",
    "cauchy_schwarz",
    "f_divergence",
    "gaussian",
    "generators",
    "jeffreys",
    "jensen_shannon",
    "kl",
    "le_cam",
    "neyman_chi2",
    "pearson_chi2",
    "renyi",
    "reverse_kl",
    "skew_kl",
    "squared_hellinger",
    "sums",
    "total_variation",
    "transport",
    "tsallis",
]
