import jax
import jax.numpy as jnp
import numpy as np

from jdiv import divergences
from jdiv.policy.clipped import ppo_clip
from jdiv.policy.ppo import adapt_coefficient, ppo_kl
from tests.checks import refused

RNG = np.random.default_rng(0)
OLD = np.log(RNG.dirichlet(np.ones(6)))
ADVANTAGE = RNG.normal(size=6)


def test_penalized_loss_in_expectation():
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


def test_refusals():
    every = np.ones(6, bool)
    refused(
        ValueError, ["mask", "shape"],
        lambda: ppo_kl(OLD, OLD, OLD, np.ones(2, bool), coefficient=1.0),
    )  # fmt: skip
    refused(ValueError, ["advantages"], lambda: ppo_kl(OLD, OLD, OLD[:2], every, coefficient=1.0))
    refused(
        TypeError, ["mask", "boolean"],
        lambda: ppo_kl(OLD, OLD, OLD, np.ones(6), coefficient=1.0),
    )  # fmt: skip
