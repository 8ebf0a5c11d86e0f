"""Wrong arguments of every function of the package, and NaN in what is right."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest

from jdiv import estimators, generators
from tests.checks import domains, silent

NAN = np.nan
RNG = np.random.default_rng(0)
LOG_P, LOG_Q = (np.log(RNG.uniform(0.2, 0.9, 4)) for _ in range(2))
X, Y = RNG.normal(size=(4, 2)), RNG.normal(size=(5, 2))
SCORES = RNG.normal(size=(2, 3, 3))
POSITIVE = [0.0, -1.0, np.inf, NAN, "wide", np.ones(3)]
SHARE = [-0.5, 1.5, NAN, "half", np.ones(3)]
SIDES = {"log_p": LOG_P, "log_q": LOG_Q}
SAMPLES = {"x": X, "y": Y}
CRITICS = {"p_scores": LOG_P, "q_scores": LOG_Q}
FROM = (estimators.centered_from_p, estimators.plain_from_p, estimators.centered_from_q,
        estimators.plain_from_q)  # fmt: skip


def of(row, function):
    """A function with the row for its generator."""

    @functools.wraps(function)
    def with_row(**arguments):
        return function(row, **arguments)

    return with_row


def test_domains():
    kl = generators.kl()
    domains(
        *((f, SIDES, {"log_q": [LOG_Q[:2], "q", None]})
          for f in (estimators.kl_k1, estimators.kl_k2, estimators.kl_k3)),
        *((f, {"generator": kl, **SIDES}, {"generator": ["kl", None], "log_p": [LOG_P[:2]]})
          for f in FROM),
        (estimators.self_normalized_mean, {"values": LOG_P, "log_weights": LOG_Q},
         {"axis": [1, -2], "log_weights": [LOG_Q[:2]]}),
        *((f, SAMPLES, {"bandwidth": POSITIVE, "x": [LOG_P, "x"], "y": [Y[:, :1]]})
          for f in (estimators.squared_mmd_biased, estimators.squared_mmd_unbiased,
                    estimators.cauchy_schwarz)),
        (estimators.energy_distance, SAMPLES, {"x": [X[:0]], "y": [Y[:, :1], None]}),
        (estimators.knn_kl, {**SAMPLES, "k": 2},
         {"k": [0, 4, "all"], "chunk_size": [0], "x": [X[:1]]}),
        (estimators.tuba, {"scores": SCORES, "log_baseline": 1.0},
         {"log_baseline": [np.ones(3), "one"], "scores": [SCORES[0, 0], SCORES[:, :1, :1]]}),
        (estimators.smile, {"scores": SCORES}, {"clip": POSITIVE}),
        (estimators.interpolated, {"scores": SCORES, "log_baseline": 1.0, "share": 0.5},
         {"share": SHARE}),
        *((f, {"generator": kl, **CRITICS}, {"generator": ["kl"], "q_scores": [SCORES, "q"]})
          for f in (estimators.f_divergence_bound, estimators.log_ratio_bound)),
    )  # fmt: skip


def test_nan_is_never_swallowed():
    rows = generators.kl(), generators.jensen_shannon(), generators.total_variation()
    silent(
        *((f, SIDES, ("log_p", "log_q"))
          for f in (estimators.kl_k1, estimators.kl_k2, estimators.kl_k3)),
        *((of(row, f), SIDES, ("log_p", "log_q")) for row in rows for f in FROM),
        *((of(row, f), CRITICS, ("p_scores", "q_scores")) for row in rows
          for f in (estimators.f_divergence_bound, estimators.log_ratio_bound)),
        (estimators.self_normalized_mean, {"values": LOG_P, "log_weights": LOG_Q},
         ("values", "log_weights")),
        *((f, SAMPLES, ("x", "y"))
          for f in (estimators.squared_mmd_biased, estimators.squared_mmd_unbiased,
                    estimators.cauchy_schwarz, estimators.energy_distance)),
        (functools.wraps(estimators.knn_kl)(lambda **a: estimators.knn_kl(**a, k=2)), SAMPLES,
         ("x", "y")),
        *((f, {"scores": SCORES}, ("scores",))
          for f in (estimators.donsker_varadhan, estimators.nwj, estimators.infonce,
                    estimators.smile)),
        (estimators.interpolated, {"scores": SCORES, "log_baseline": np.ones((2, 3)), "share": 0.5},
         ("scores", "log_baseline")),
    )  # fmt: skip


@pytest.mark.parametrize("far", [1e20, 1e-20])
def test_distances_of_any_size_in_single_precision(far):
    """A sample far away is nobody's neighbour, and nothing depends on the unit."""
    x, y, far = jnp.asarray(X, jnp.float32), jnp.asarray(Y, jnp.float32), np.float32(far)
    plain = float(estimators.knn_kl(x, y, 2))
    outlier = estimators.knn_kl(x, jnp.concatenate([y, jnp.full((1, 2), 1e20, jnp.float32)]), 2)
    np.testing.assert_allclose(outlier, plain + np.log(6 / 5), rtol=1e-5)
    np.testing.assert_allclose(estimators.knn_kl(x * far, y * far, 2), plain, rtol=1e-4)
    energy, scaled = (float(estimators.energy_distance(x * s, y * s)) for s in (far / far, far))
    np.testing.assert_allclose(scaled / float(far), energy, rtol=1e-4)
    assert np.isnan(estimators.knn_kl(x.at[0, 0].set(jnp.inf), y, 2))
