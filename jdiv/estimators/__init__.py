"""Divergences from samples, and what each estimate does to a gradient.

`monte_carlo` needs the log-probabilities of both sides at the samples, `variational` a critic's
scores, `neighbours` and `kernels` nothing but the samples.
"""

from __future__ import annotations

from jdiv.estimators import kernels, monte_carlo, neighbours, variational
from jdiv.estimators.kernels import (
    cauchy_schwarz,
    energy_distance,
    squared_mmd_biased,
    squared_mmd_unbiased,
)
from jdiv.estimators.monte_carlo import (
    centered_from_p,
    centered_from_q,
    kl_k1,
    kl_k2,
    kl_k3,
    plain_from_p,
    plain_from_q,
    self_normalized_mean,
)
from jdiv.estimators.neighbours import knn_kl
from jdiv.estimators.variational import (
    donsker_varadhan,
    f_divergence_bound,
    infonce,
    interpolated,
    kl_donsker_varadhan,
    log_ratio_bound,
    nwj,
    smile,
    tuba,
)

__all__ = [
    "cauchy_schwarz",
    "centered_from_p",
    "centered_from_q",
    "donsker_varadhan",
    "energy_distance",
    "f_divergence_bound",
    "infonce",
    "interpolated",
    "kernels",
    "kl_donsker_varadhan",
    "kl_k1",
    "kl_k2",
    "kl_k3",
    "knn_kl",
    "log_ratio_bound",
    "monte_carlo",
    "neighbours",
    "nwj",
    "plain_from_p",
    "plain_from_q",
    "self_normalized_mean",
    "smile",
    "squared_mmd_biased",
    "squared_mmd_unbiased",
    "tuba",
    "variational",
]
