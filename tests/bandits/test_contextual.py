"""Contextual bandits: probabilities against a plain loop, policies and fits against SciPy."""

import jax
import jax.numpy as jnp
import numpy as np

from jdiv.bandits import contextual
from tests.checks import refused

RNG = np.random.default_rng(1)


# --------------------------------------------------------------------------- inverse gap weighting


def by_hand(name, losses, rate):
    """One row, with the formulas of the papers."""
    arms, best = len(losses), int(np.argmin(losses))
    p = np.zeros(arms)
    for a in range(arms):
        gap = losses[a] - losses[best]
        if a == best or name == "greedy":
            continue
        if name == "square":
            p[a] = 1 / (arms + rate * gap)
        elif gap == 0:
            p[a] = 1 / arms
        else:
            p[a] = losses[best] / (arms * losses[best] + rate * gap)
    p[best] = 1 - p.sum()
    return p


POLICIES = {
    "square": contextual.square_cb,
    "fast": contextual.fast_cb,
    "greedy": lambda losses, rate: contextual.greedy(losses),
}


def test_probabilities():
    losses = RNG.uniform(0, 1, (40, 5))
    losses[0] = 0  # all equal, and 0
    losses[1] = 0.3  # all equal
    losses[2, :2] = 0  # two best arms of loss 0
    losses[3] = [0, 0.5, 1, 0.2, 0.2]
    for rate in (0.5, 50.0):
        found = jax.jit(lambda x, r=rate: [policy(x, r) for policy in POLICIES.values()])(losses)
        for name, p in zip(POLICIES, found, strict=True):
            exact = [by_hand(name, row, rate) for row in losses]
            np.testing.assert_allclose(p, exact, rtol=1e-13, atol=1e-15)
            assert np.all(np.asarray(p) >= 0)
    for dtype in (jnp.float32, jnp.float64):
        assert contextual.fast_cb(jnp.ones(2, dtype), 3.0).dtype == dtype


def test_square_cb_inequality():
    """`sum_a p_a (mu_a - mu* - rate/4 (y_a - mu_a)^2) <= 2 K / rate`, every mu and y."""
    y, means = RNG.uniform(0, 1, (2, 500, 4))
    y[250:] = means[250:] + 0.1 * RNG.normal(size=(250, 4))
    for rate in (1.0, 10.0, 100.0):
        p = np.asarray(contextual.square_cb(y, rate))
        excess = means - means.min(1, keepdims=True) - rate / 4 * (y - means) ** 2
        assert np.all(np.sum(p * excess, axis=1) <= 2 * 4 / rate)


def test_rates():
    assert contextual.square_cb_step_size(5, 2000, 4.0) == 50
    assert contextual.fast_cb_step_size(5, 2000, 4.0) == 50
    assert contextual.fast_cb_step_size(3, 10**6, 1.0, 0.01) == 100
    assert contextual.fast_cb_step_size(3, 10**6, jnp.float32(1.0), 0.01).dtype == jnp.float32


def test_play_is_the_plain_replay():
    """The policy sees Laplace's predictions and records them by its choice."""
    means = np.array([[0.0, 0.5, 1.0], [0.7, 0.2, 0.6]])
    horizon, key = 60, jax.random.key(2)
    uniforms = np.asarray(jax.random.uniform(key, (horizon, 3)))
    for name in POLICIES:
        policy = POLICIES[name]
        play = jax.jit(
            lambda key, p=policy: contextual.play(lambda y: p(y, 4.0), means, horizon, key)
        )
        pulls, losses, total = np.zeros((2, 3)), np.zeros((2, 3)), 0
        for t, regret in enumerate(play(key)):
            x = int(2 * uniforms[t, 0])
            p = by_hand(name, (1 + losses[x]) / (2 + pulls[x]), 4.0)
            arm = next(a for a in range(3) if uniforms[t, 1] < p[: a + 1].sum())
            pulls[x, arm] += 1
            losses[x, arm] += uniforms[t, 2] < means[x, arm]
            total += means[x, arm] - means[x].min()
            np.testing.assert_allclose(regret, total, rtol=1e-12, atol=1e-14)


def test_same_under_vmap(same_everywhere):
    def run(losses):
        return contextual.fast_cb(losses, 3.0), contextual.square_cb(losses, 3.0)

    same_everywhere(run, jnp.asarray(RNG.uniform(0, 1, (8, 4))))


def test_refusals():
    key = jax.random.key(0)
    for error, words, call in (
        (TypeError, ["losses", "int"], lambda: contextual.square_cb(jnp.ones(2, int), 1.0)),
        (TypeError, ["losses", "int"], lambda: contextual.fast_cb(jnp.ones(2, int), 1.0)),
        (ValueError, ["losses", "arm", "()"], lambda: contextual.greedy(jnp.ones(()))),
        (ValueError, ["step_size", "positive", "-1.0"],
         lambda: contextual.square_cb(jnp.ones(2), -1.0)),
        (ValueError, ["step_size", "0.0"], lambda: contextual.fast_cb(jnp.ones(2), 0.0)),
        (ValueError, ["means", "(3,)"],
         lambda: contextual.play(contextual.greedy, jnp.ones(3), 5, key)),
        (ValueError, ["horizon", "0"],
         lambda: contextual.play(contextual.greedy, jnp.ones((3, 2)), 0, key)),
    ):  # fmt: skip
        refused(error, words, call)
