import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdiv import divergences
from jdiv.mdp import environments, model
from jdiv.policy.awr import awr, awr_weights
from jdiv.policy.clipped import ppo_clip
from jdiv.policy.mpo import e_step, m_step
from jdiv.policy.ppo import adapt_coefficient, ppo_kl
from jdiv.policy.reps import reps
from jdiv.policy.trpo import trpo_step
from tests.checks import refused

ROWS, ACTIONS = 5, 4


RNG = np.random.default_rng(0)


VALUES = RNG.normal(size=(ROWS, ACTIONS))


PRIOR = np.log(RNG.dirichlet(np.ones(ACTIONS), ROWS))


@functools.cache
def process():
    mdp = environments.garnet(jax.random.key(3), states=5, actions=3, branches=3, discount=0.85)
    base = np.random.default_rng(1).dirichlet(np.ones(3), 5)
    return model.dense(mdp), np.asarray(model.occupancy(mdp, jnp.asarray(base)))


OLD = np.log(RNG.dirichlet(np.ones(6)))


ADVANTAGE = RNG.normal(size=6)


def test_penalised_loss_in_expectation():
    """Over tokens of the old policy: `-E_new[A] + c KL(old‖new)`, and its gradient."""
    every = np.ones(6, bool)

    def expected(logits):
        loss, _ = ppo_kl(jax.nn.log_softmax(logits), OLD, ADVANTAGE, every, coefficient=0.7)
        return jnp.sum(np.exp(OLD) * loss)

    def exact(logits):
        return 0.7 * divergences.kl(OLD, logits) - jnp.sum(jax.nn.softmax(logits) * ADVANTAGE)

    logits = jnp.asarray(RNG.normal(size=6))
    found, right = jax.jit(lambda x: [jax.value_and_grad(f)(x) for f in (expected, exact)])(logits)
    np.testing.assert_allclose(found[0], right[0], atol=1e-14)
    np.testing.assert_allclose(found[1], right[1], atol=1e-14)


@pytest.mark.parametrize("loss", ["ppo_kl", "awr"])
def test_extremes_and_masks(loss):
    call = {
        "ppo_kl": lambda x, old, a, m: ppo_kl(x, old, a, m, coefficient=0.5),
        "awr": lambda x, old, a, m: awr(x, a, m, temperature=0.01),
    }[loss]
    log_probs = np.array([[-0.1, -80.1, np.nan, -1.0], [np.nan] * 4, [-90.0, -1e-9, -5.0, -3.0]])
    old = np.array([[-80.1, -0.1, -1.0, np.nan], [-1.0] * 4, [-1.0, -81.0, -5.0, -3.0]])
    mask = np.array([[True, True, False, False], [False] * 4, [True] * 4])
    advantages = np.array([300.0, np.nan, -1.0])

    @jax.jit
    def both(x, a):
        value = lambda x: jnp.sum(call(x, jnp.asarray(old, x.dtype), a, mask).loss)
        return call(x, jnp.asarray(old, x.dtype), a, mask), jax.grad(value)(x)

    for dtype in (np.float64, jnp.bfloat16):
        (values, aux), gradient = both(
            jnp.asarray(log_probs, dtype), jnp.asarray(advantages, dtype)
        )
        assert values.dtype == (np.float64 if dtype == np.float64 else np.float32)
        for x in (values, gradient.astype(values.dtype), *aux):
            assert np.isfinite(x).all()
            assert (np.asarray(x)[~mask] == 0).all()
        assert np.abs(gradient).max() > 0


def test_penalty_coefficient_zero_at_the_old_policy_is_the_policy_gradient():
    at_old = jax.grad(
        lambda x: jnp.sum(ppo_kl(x, OLD, ADVANTAGE, np.ones(6, bool), coefficient=3.0).loss)
    )(jnp.asarray(OLD))
    np.testing.assert_allclose(at_old, -ADVANTAGE, atol=1e-15)
    clipped = jax.grad(
        lambda x: jnp.sum(ppo_clip(x, jnp.asarray(OLD), ADVANTAGE, np.ones(6, bool)).loss)
    )(jnp.asarray(OLD))
    np.testing.assert_allclose(clipped, at_old, atol=1e-15)


def test_coefficient_adapts_in_both_directions():
    kls = np.array([0.0, 0.66, 0.67, 1.0, 1.49, 1.51]) * 0.02
    found = adapt_coefficient(4.0, kls, 0.02)
    np.testing.assert_array_equal(found, [2, 2, 4, 4, 4, 8])


@pytest.mark.parametrize(
    ("words", "call"),
    [
        (["radius", "positive"], lambda: e_step(VALUES, PRIOR, 0.0)),
        (["values", "log_prior"], lambda: e_step(VALUES, PRIOR[:2], 0.1)),
        (["weights", "(5,)"], lambda: e_step(VALUES, PRIOR, 0.1, np.ones(2))),
        (["radius", "positive"], lambda: m_step(PRIOR, PRIOR, -1.0)),
        (["log_reference", "shape"], lambda: reps(process()[0], PRIOR, 0.1)),
        (["shrink", "(0, 1)"],
         lambda: trpo_step(jnp.sum, jnp.sum, jnp.ones(2), 0.1, shrink=1.0)),
        (["iterations"],
         lambda: trpo_step(jnp.sum, jnp.sum, jnp.ones(2), 0.1, iterations=0)),
        (["mask", "shape"],
         lambda: ppo_kl(OLD, OLD, OLD, np.ones(2, bool), coefficient=1.0)),
        (["advantages"],
         lambda: ppo_kl(OLD, OLD, OLD[:2], np.ones(6, bool), coefficient=1.0)),
        (["temperature"], lambda: awr_weights(OLD, 0.0)),
        (["limit"], lambda: awr_weights(OLD, 1.0, limit=0.0)),
    ],
)  # fmt: skip
def test_refusals(words, call):
    refused(ValueError, words, call)


def test_a_mask_of_numbers_is_refused():
    call = lambda: ppo_kl(OLD, OLD, OLD, np.ones(6), coefficient=1.0)
    refused(TypeError, ["mask", "boolean"], call)
