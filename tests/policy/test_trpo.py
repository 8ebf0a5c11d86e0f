import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdiv import generators
from jdiv.mdp import environments, model, occupancy
from jdiv.policy import tabular
from jdiv.policy.trpo import trpo_step
from tests.checks import refused

RNG = np.random.default_rng(0)


@functools.cache
def process():
    mdp = environments.garnet(jax.random.key(3), states=5, actions=3, branches=3, discount=0.85)
    base = np.random.default_rng(1).dirichlet(np.ones(3), 5)
    return model.dense(mdp), np.asarray(model.occupancy(mdp, jnp.asarray(base)))


def test_trpo_steps_keep_their_radius_and_improve():
    mdp = process()[0]
    logits = RNG.normal(size=(4, 5, 3))
    radii = np.array([1e-4, 1e-2, 0.1, 1.0])

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(0, None))
    @functools.partial(jax.vmap, in_axes=(None, 0))
    def compute(logits, radius):
        policy = jax.nn.softmax(logits)
        visits = jnp.sum(model.occupancy(mdp, policy), axis=-1)
        distance = lambda x: occupancy.action_divergence(
            logits, x, visits, generator=generators.kl()
        )
        step = trpo_step(
            lambda x: tabular.surrogate(mdp, policy, jax.nn.softmax(x)), distance, logits, radius,
            iterations=15,
        )  # fmt: skip
        gained = tabular.improvement(mdp, policy, jax.nn.softmax(step.parameters))
        natural = tabular.natural_gradient(mdp, logits)
        centred = natural - jnp.mean(natural, axis=-1, keepdims=True)
        moved = step.parameters - logits
        moved = moved - jnp.mean(moved, axis=-1, keepdims=True)
        cosine = jnp.sum(moved * centred) / jnp.linalg.norm(moved) / jnp.linalg.norm(centred)
        return step, distance(step.parameters), gained, cosine

    step, distance, gained, cosine = jax.tree.map(np.asarray, compute(logits, radii))
    assert (distance <= radii).all()
    assert (distance >= 0.4 * radii).all()
    np.testing.assert_allclose(step.divergence, distance, atol=1e-15)
    assert (step.gain > 0).all()
    assert (gained[:, :2] > 0).all()
    # The direction is the natural gradient's.
    np.testing.assert_allclose(cosine, 1, atol=1e-9)
    assert (step.residual < 1e-8).all()


def test_trpo_of_a_quadratic_is_its_closed_form_for_any_pytree():
    matrix = np.array([[2.0, 0.5, 0.0], [0.5, 1.0, 0.2], [0.0, 0.2, 0.7]])
    slope = np.array([1.0, -2.0, 0.5])
    flat = lambda tree: jnp.concatenate([tree["a"], tree["b"][None]])
    zero = {"a": jnp.zeros(2), "b": jnp.zeros(())}
    linear = lambda tree: flat(tree) @ slope
    quadratic = lambda tree: flat(tree) @ jnp.asarray(matrix) @ flat(tree) / 2
    step = trpo_step(linear, quadratic, zero, 0.02 * (1 + 1e-12))
    solved = np.linalg.solve(matrix, slope)
    expected = np.sqrt(2 * 0.02 / (slope @ solved)) * solved
    # A step that ends on the boundary may be shortened once, by rounding.
    assert step.length in (1.0, pytest.approx(0.8))
    np.testing.assert_allclose(flat(step.parameters), step.length * expected, rtol=1e-9)
    # With damping that of the damped matrix.
    damped = trpo_step(linear, quadratic, zero, 0.02, damping=0.3)
    solved = np.linalg.solve(matrix + 0.3 * np.eye(3), slope)
    expected = np.sqrt(2 * 0.02 / (slope @ solved)) * solved
    np.testing.assert_allclose(flat(damped.parameters), expected, rtol=1e-9)


def test_trpo_stays_where_nothing_is_accepted():
    at = jnp.ones(2)
    # Flat, and a divergence that lies about its curvature.
    flat = trpo_step(lambda x: 0.0 * x[0], lambda x: jnp.sum((x - 1) ** 2), at, 0.1)
    np.testing.assert_array_equal(flat.parameters, at)
    cliff = lambda x: jnp.sum((x - 1) ** 2) + 9.0 * jnp.any(x != 1).astype(x.dtype)
    wall = trpo_step(lambda x: x[0], cliff, at, 0.1)
    np.testing.assert_array_equal(wall.parameters, at)
    # A direction in which the divergence does not see anything.
    blind = trpo_step(lambda x: x[0] + x[1], lambda x: (x[0] - 1) ** 2, at, 0.1)
    assert np.isfinite(blind.parameters).all()
    assert blind.divergence <= 0.1
    for step in (flat, wall):
        assert step.divergence == 0
        assert step.gain == 0
    assert wall.length == 0


def test_refusals():
    for words, options in (
        (["shrink", "(0, 1)"], {"shrink": 1.0}),
        (["iterations"], {"iterations": 0}),
    ):
        call = functools.partial(trpo_step, jnp.sum, jnp.sum, jnp.ones(2), 0.1, **options)
        refused(ValueError, words, call)
