import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdiv.mdp import environments, model, operators, value_iteration
from tests.checks import refused


def test_suboptimality_is_measured_of_the_policy_that_was_made():
    mdp = environments.garnet(jax.random.key(0), states=8, actions=3, branches=3)
    errors = jax.random.normal(jax.random.key(1), (5, 8, 3))
    found = jax.jit(
        lambda: value_iteration.run(
            mdp,
            operators.value_iteration(),
            5,
            errors=errors,
            measure=value_iteration.suboptimality(mdp),
        )
    )()
    q, gaps = np.zeros((8, 3)), []
    transition = np.asarray(model.dense(mdp).transition)
    reward = np.asarray(mdp.reward)
    best = np.zeros(8)
    for _ in range(600):
        best = (reward + 0.9 * transition @ best).max(axis=1)
    for error in np.asarray(errors):
        policy = q.argmax(axis=1)
        chain = transition[np.arange(8), policy]
        value = np.linalg.solve(np.eye(8) - 0.9 * chain, reward[np.arange(8), policy])
        gaps.append(np.abs(0.9 * transition @ (best - value)).max())
        q = reward + 0.9 * transition @ q.max(axis=1) + error
    np.testing.assert_allclose(found.measured, gaps, atol=1e-10)
    np.testing.assert_allclose(found.last.q, q, atol=1e-10)


def test_a_sampled_model_has_the_right_mean_and_no_more_samples_than_asked_for():
    mdp = environments.garnet(jax.random.key(0), states=6, actions=2, branches=3)
    value = jnp.asarray(np.random.default_rng(0).normal(size=6))

    @jax.jit
    @jax.vmap
    def expectations(key):
        drawn = value_iteration.sampled(mdp, 5, key)
        full = value_iteration.sampled(model.dense(mdp), 5, key)
        return drawn.expectation(value), full.expectation(value)

    found = expectations(jax.random.split(jax.random.key(3), 4000))
    for draws in found:
        error = draws.std(axis=0) / np.sqrt(4000)
        assert (np.abs(draws.mean(axis=0) - mdp.expectation(value)) < 5 * error + 1e-9).all()
    assert value_iteration.sampled(mdp, 5, jax.random.key(0)).successor.shape == (6, 2, 5)


def test_ten_thousand_states_in_sparse_form():
    @jax.jit
    def run(key):
        # Successors with repetition: a draw without would sort 10,000 numbers for each pair.
        of_states, of_rewards = jax.random.split(key)
        mdp = model.SparseMdp(
            jax.random.randint(of_states, (10_000, 10, 5), 0, 10_000),
            jnp.full((10_000, 10, 5), 0.2),
            jax.random.uniform(of_rewards, (10_000, 10)),
            0.9,
            jnp.full(10_000, 1e-4),
        )
        residual = lambda at: jnp.max(
            jnp.abs(model.action_values(mdp, jnp.max(at.q, axis=1)) - at.q)
        )
        return value_iteration.run(mdp, operators.value_iteration(), 200, measure=residual).measured

    start = time.monotonic()
    residual = np.asarray(run(jax.random.key(0)))
    assert time.monotonic() - start < 60
    assert residual[-1] < 1e-7
    assert (residual[1:] <= 0.9 * residual[:-1] + 1e-12).all()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"errors": np.zeros((3, 6, 2))}, ["errors", "(4, 6, 2)", "(3, 6, 2)"]),
        ({"samples": 3}, ["samples", "key"]),
    ],
)
def test_refuses(options, words):
    mdp = environments.chain(length=6)
    refused(
        ValueError,
        words,
        lambda: value_iteration.run(mdp, operators.value_iteration(), 4, **options),
    )
