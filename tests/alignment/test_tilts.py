import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

from jdiv import divergences, generators
from jdiv.alignment import tilts
from tests.checks import PARAMETERS, refused

KL = generators.kl()
RNG = np.random.default_rng(0)


@functools.cache
def compiled(f):
    return jax.jit(f)


# ------------------------------------------------------------------------------------------- tilts


@pytest.mark.parametrize("name", ["kl", "pearson_chi2"])
def test_the_tilt_of_a_budget_spends_it(name):
    """Against the same tilt at the beta found, and the best of SLSQP within the divergence."""
    generator = generators.get(name, **PARAMETERS[name])
    rewards = RNG.normal(size=(6, 5))
    ref = np.log(RNG.dirichlet(np.ones(5), 6))
    ref[:, 4] = -np.inf
    budget = np.array([1e-9, 1e-3, 0.01, 0.03, 0.1, 40.0])

    @jax.jit
    def run(rewards, ref, budget):
        found = tilts.tilted_to(rewards, ref, budget, generator=generator)
        beta = found.beta[:5]
        return found, tilts.tilted(rewards[:5], ref[:5], beta, generator=generator).log_policy

    found, at_beta = jax.tree.map(np.asarray, run(rewards, ref, budget))
    assert found.converged.tolist() == [True] * 5 + [False]
    np.testing.assert_allclose(found.divergence[1:5], budget[1:5], rtol=1e-11)
    np.testing.assert_allclose(found.divergence[0], budget[0], rtol=1e-8)  # of rounded log-ratios
    # Out of reach: all mass on the best answer there is.
    assert np.exp(found.log_policy[5]).max() == pytest.approx(1)
    assert np.argmax(found.log_policy[5]) == np.argmax(rewards[5, :4])
    np.testing.assert_allclose(np.exp(at_beta), np.exp(found.log_policy[:5]), atol=1e-14)
    q, r = np.exp(ref[3, :4]), rewards[3, :4]
    q = q / q.sum()
    value = jax.jit(generator.value)

    def divergence(p):
        return np.sum(q * np.asarray(value(np.log(np.abs(p) / q))))

    best = optimize.minimize(
        lambda p: -p @ r,
        q,
        method="SLSQP",
        bounds=[(1e-9, 1)] * 4,
        constraints=[
            {"type": "eq", "fun": lambda p: p.sum() - 1},
            {"type": "ineq", "fun": lambda p: budget[3] - divergence(p)},
        ],
        options={"ftol": 1e-12},
    )
    np.testing.assert_allclose(np.exp(found.log_policy[3, :4]), best.x, atol=1e-4)


def test_small_budgets_in_single_precision():
    """A log-ratio of 1e-6 is known to seven digits though log-probabilities are not."""
    budget = np.array([1e-12, 1e-10, 1e-8, 1e-3], np.float32)
    rewards, ref = (np.float32([x] * 4) for x in ([1.0, 0.2, -0.5], [-3.0, -0.1, -2.5]))
    for name in ("kl", "pearson_chi2"):
        generator = generators.get(name)
        found = compiled(lambda r, p, b, g=generator: tilts.tilted_to(r, p, b, generator=g))(
            rewards, ref, budget
        )
        q = np.exp(ref[0] - np.logaddexp.reduce(ref[0].astype(float)))
        variance = q @ rewards[0] ** 2 - (q @ rewards[0]) ** 2
        # D = f''(1) variance / (2 beta^2) to first order.
        beta = np.sqrt((2 if name == "pearson_chi2" else 1) * variance / (2 * budget))
        scale = np.where(name == "pearson_chi2", beta / 2, beta)
        assert np.all(found.converged)
        np.testing.assert_allclose(found.beta[:3], scale[:3], rtol=3e-4)


def test_the_gradient_by_the_budget_is_the_temperature():
    """d E[r] / d budget = beta, the multiplier of the constraint."""
    rewards, ref = jnp.array([1.0, 0.2, -0.5, 0.3]), jnp.log(jnp.array([0.1, 0.2, 0.3, 0.4]))

    def earned(budget):
        found = tilts.tilted_to(rewards, ref, budget, generator=KL)
        return jnp.sum(jnp.exp(found.log_policy) * rewards), found.beta

    slope, beta = compiled(jax.grad(earned, has_aux=True))(0.3)
    assert slope == pytest.approx(beta.item(), rel=1e-10)


def test_tilts_refuse():
    r, p = jnp.zeros(2), jnp.zeros(2)
    infinite = jnp.array([jnp.inf, 0.0])
    refused(ValueError, ["rewards", "finite"], lambda: tilts.tilted(infinite, p, 1.0, generator=KL))
    refused(ValueError, ["beta", "positive"], lambda: tilts.tilted(r, p, 0.0, generator=KL))
    refused(
        ValueError, ["rewards", "finite"], lambda: tilts.tilted_to(infinite, p, 1.0, generator=KL)
    )
    refused(ValueError, ["budget", "positive"], lambda: tilts.tilted_to(r, p, 0.0, generator=KL))
    tv = generators.total_variation()
    refused(
        TypeError,
        ["generator", "total_variation"],
        lambda: tilts.tilted_to(r, p, 1.0, generator=tv),
    )
    refused(
        ValueError, ["rewards", "ref_logits"], lambda: tilts.tilted_to(r, p[:1], 1.0, generator=KL)
    )


# ------------------------------------------------------------------------------ energy-based models


def test_pointwise_is_the_product_and_the_preference_target_a_tilt():
    ref = RNG.dirichlet(np.ones(5), 3)
    scores = RNG.gamma(1.0, size=(3, 5))
    scores[:, 1] = 0
    ref[:, 2] = 0
    product = ref * scores
    with np.errstate(divide="ignore"):
        log_ref, log_scores = jnp.log(ref), jnp.asarray(np.log(scores))
    law = jax.jit(tilts.pointwise)(log_ref, log_scores)
    np.testing.assert_allclose(np.exp(law), product / product.sum(1, keepdims=True), atol=1e-15)
    words = ["log_scores", "reference", "no mass"]
    refused(ValueError, words, lambda: tilts.pointwise(log_ref, log_scores))
    rewards = jnp.asarray(RNG.normal(size=(3, 5)))
    np.testing.assert_allclose(
        jnp.exp(tilts.pointwise(jnp.log(ref), jnp.where(ref > 0, rewards / 0.3, -jnp.inf))),
        jnp.exp(tilts.tilted(rewards, jnp.log(ref), 0.3, generator=KL).log_policy),
        atol=1e-15,
    )
    nothing, everything = jnp.full(2, -jnp.inf), jnp.full(2, jnp.inf)
    refused(ValueError, ["log_scores", "mass"], lambda: tilts.pointwise(jnp.zeros(2), nothing))
    refused(ValueError, ["log_scores"], lambda: tilts.pointwise(jnp.zeros(2), everything))


def test_moments_are_fitted_with_the_least_divergence():
    """Against SLSQP; a rare feature; features that depend on each other; moments out of reach."""
    ref = RNG.dirichlet(np.ones(6), 4)
    ref[1, :2] = [1e-12, 2e-12]
    ref[1] /= ref[1].sum()
    ref[0, 5] = 0
    features = RNG.integers(0, 2, size=(4, 6, 2)).astype(float)
    features[:, :2, 0], features[:, 2:, 0] = 1, 0
    features[0, :, 1] = [0.0, 1.0, 0.5, 2.0, 1.0, 3.0]
    features[2, :, 1] = 1 - features[2, :, 0]  # dependent
    moments = np.array([[0.4, 0.9], [0.5, 0.5], [0.3, 0.7], [1.2, 0.5]])
    features[1, :, 1] = [0, 1, 0, 1, 0, 1]
    fitted = compiled(jax.vmap(tilts.with_moments))(jnp.log(ref), features, moments)
    assert fitted.converged.tolist() == [True, True, True, False]
    assert fitted.iterations[:3].max() < 30
    got = np.einsum("ba,bak->bk", np.exp(fitted.log_policy), features)
    np.testing.assert_allclose(got[:3], moments[:3], atol=1e-13)
    np.testing.assert_allclose(np.exp(fitted.log_policy).sum(1), 1, atol=1e-14)
    # The form: log p/ref is the coefficients on the features, up to a constant.
    for i in range(3):
        present = ref[i] > 0
        rest = np.asarray(fitted.log_policy[i] - jnp.log(ref[i]))[present]
        rest = rest - features[i][present] @ np.asarray(fitted.coefficients[i])
        assert np.ptp(rest) < 1e-11
        np.testing.assert_allclose(
            fitted.divergence[i], divergences.kl(fitted.log_policy[i], jnp.log(ref[i])), rtol=1e-12
        )
    q, phi = ref[0, :5], features[0, :5]
    best = optimize.minimize(
        lambda p: np.sum(p * np.log(p / q)),
        q,
        jac=lambda p: np.log(p / q) + 1,
        method="SLSQP",
        bounds=[(1e-12, 1)] * 5,
        constraints=[
            {"type": "eq", "fun": lambda p: p.sum() - 1},
            {"type": "eq", "fun": lambda p: p @ phi - moments[0]},
        ],
        options={"ftol": 1e-14},
    )
    np.testing.assert_allclose(np.exp(fitted.log_policy[0, :5]), best.x, atol=1e-6)
    refused(
        ValueError,
        ["features", "[answers, moments]"],
        lambda: tilts.with_moments(jnp.zeros(3), jnp.zeros((3, 2)), jnp.zeros(1)),
    )
