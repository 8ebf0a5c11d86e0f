import functools

import jax
import jax.numpy as jnp
import numpy as np

from jdiv import parallel
from jdiv.policy.recipes.arlcp import arlcp_rewards
from jdiv.policy.recipes.difficulty import pass_rate
from jdiv.policy.recipes.dler import dler_advantages
from jdiv.policy.recipes.entropy_mechanism import clip_cov, kl_cov
from jdiv.policy.recipes.fg_expo import fg_expo_coefficient, fg_expo_weights
from jdiv.policy.recipes.grpo_lambda import grpo_lambda_rewards
from jdiv.policy.recipes.gtpo import gtpo
from jdiv.policy.recipes.haepo import haepo
from jdiv.policy.recipes.lp_reg import lp_reg
from tests.checks import refused
from tests.policy.batches import ROWS, TOKENS, batch


def losses():
    key = jax.random.key(0)
    ones = jnp.ones_like
    return {
        "kl_cov": kl_cov,
        "clip_cov": functools.partial(clip_cov, key=key),
        "lp_reg": lambda x, old, a, m, **k: lp_reg(x, old, old, a, m, **k),
        "gtpo": lambda x, old, a, m: gtpo(x, old, ones(x), a, ones(x), m, initial_entropy=1.0),
    }


def test_finite_at_the_extremes():
    """Log-ratios of 80, empty rows with NaN, equal advantages, one token, half precision."""
    log_probs, old, advantages, mask = (np.array(x) for x in batch(10))
    old[0], old[1] = log_probs[0] + 80, log_probs[1] - 80
    mask[2] = False
    log_probs[~mask], old[~mask] = np.nan, np.nan

    @jax.jit
    def compute(x, *given):
        value = lambda x, lose: jnp.sum(lose(x, *given).loss)
        return {
            name: (lose(x, *given).loss, jax.grad(value)(x, lose))
            for name, lose in losses().items()
        }

    first = np.arange(ROWS * TOKENS).reshape(mask.shape) < 1
    cases = [(advantages, mask), (0 * advantages, mask), (advantages, mask & False),
             (advantages, mask & first)]  # fmt: skip
    for paid, counted in cases:
        for name, (loss, gradient) in compute(log_probs, old, paid, counted).items():
            assert np.isfinite(loss).all(), name
            assert np.isfinite(gradient).all(), name
            assert not gradient[~counted].any(), name
    half = [jnp.asarray(x, jnp.bfloat16) for x in (log_probs, old, advantages)]
    for name, (loss, _) in compute(*half, jnp.asarray(mask)).items():
        assert loss.dtype == jnp.float32, name
        assert np.isfinite(loss).all(), name


def test_the_same_batch_on_many_devices():
    log_probs, old, advantages, mask = batch(11)
    rows = (log_probs, old, advantages, mask)
    of_device = [x[:, None] for x in rows]

    def whole(axis_name, log_probs, old, advantages, mask):
        covered = kl_cov(log_probs, old, advantages, mask, share=0.2, axis_name=axis_name)
        rare = lp_reg(
            log_probs, old, log_probs + 0.5, advantages, mask, share=0.2, axis_name=axis_name
        )
        trajectories = haepo(
            log_probs[:, 0],
            old[:, 0],
            advantages,
            entropy_weight=0.1,
            kl_weight=0.1,
            axis_name=axis_name,
        )
        grad = jax.grad(
            lambda x: jnp.sum(
                haepo(x, old[:, 0], advantages, entropy_weight=0.1, axis_name=axis_name).terms
            )
        )(log_probs[:, 0])
        return covered.loss, covered.aux.chosen, rare.loss, trajectories.terms, grad

    expected = jax.jit(functools.partial(whole, None))(*rows)
    mapped = jax.pmap(functools.partial(whole, parallel.BATCH), axis_name=parallel.BATCH)
    for one, many in zip(expected, mapped(*of_device), strict=True):
        assert np.allclose(np.squeeze(many, 1), one, rtol=1e-12)
    # One draw for each device: as many tokens in all.
    keys = jax.random.split(jax.random.key(0), ROWS)
    clip = functools.partial(clip_cov, share=0.1, lowest=0.0, axis_name=parallel.BATCH)
    chosen = jax.pmap(clip, axis_name=parallel.BATCH)(*of_device, keys).aux.chosen
    assert chosen.sum() == int(0.1 * mask.sum())


def test_refusals():
    log_probs, old, advantages, mask = batch()
    refused(TypeError, ["mask", "boolean"], lambda: kl_cov(
        log_probs, old, advantages, mask.astype(float)))  # fmt: skip
    refused(ValueError, ["old_log_probs", "(8, 5)"], lambda: kl_cov(
        log_probs, old[:, 1:], advantages, mask))  # fmt: skip
    refused(ValueError, ["rewards", "2"], lambda: haepo(
        log_probs[0], old[0], np.full(TOKENS, 2)))  # fmt: skip


def test_shaped_rewards_on_many_devices():
    rng = np.random.default_rng(2)
    rate = rng.uniform(size=8)
    rewards = (rng.uniform(size=(8, 4)) < rate[:, None]).astype(float)

    def whole(axis_name, rate, rewards):
        return (
            fg_expo_weights(rate, width=0.3, axis_name=axis_name),
            fg_expo_coefficient(rate, low=0.0, high=1.0, axis_name=axis_name),
            dler_advantages(rewards, axis_name=axis_name),
            grpo_lambda_rewards(rewards, rewards / 2, share=0.3, axis_name=axis_name),
        )

    mapped = jax.pmap(lambda *x: whole(parallel.BATCH, *x), axis_name=parallel.BATCH)
    expected = whole(None, rate, rewards)
    for one, many in zip(expected, mapped(rate[:, None], rewards[:, None]), strict=True):
        assert np.allclose(many.reshape(8, *one.shape[1:]) if one.ndim else many[0], one)


def test_one_answer_and_equal_rewards_are_finite():
    for rewards in (np.ones((3, 1)), np.zeros((3, 4)), jnp.ones((2, 2), jnp.bfloat16)):
        for found in (
            dler_advantages(rewards),
            arlcp_rewards(rewards, np.ones(rewards.shape), np.ones(rewards.shape)),
            fg_expo_weights(pass_rate(rewards), width=0.1),
        ):
            assert np.isfinite(found).all()
