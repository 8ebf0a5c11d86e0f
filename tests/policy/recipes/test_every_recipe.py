import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdiv import parallel
from jdiv.policy.recipes.entropy_mechanism import clip_cov, kl_cov
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
        "clip_cov": functools.partial(clip_cov, key),
        "lp_reg": lambda x, old, a, m, **k: lp_reg(x, old, old, a, m, **k),
        "gtpo": lambda x, old, a, m: gtpo(x, old, ones(x), a, ones(x), m, initial_entropy=1.0),
    }


@pytest.mark.parametrize("name", ["kl_cov", "clip_cov", "lp_reg", "gtpo"])
def test_finite_at_the_extremes(name):
    """Log-ratios of 80, empty rows with NaN, equal advantages, one token, half precision."""
    lose = losses()[name]
    log_probs, old, advantages, mask = (np.array(x) for x in batch(10))
    old[0], old[1] = log_probs[0] + 80, log_probs[1] - 80
    mask[2] = False
    log_probs[~mask], old[~mask] = np.nan, np.nan
    compute = jax.jit(
        lambda *given: jax.value_and_grad(lambda x: jnp.sum(lose(x, *given[1:]).loss))(given[0])
    )
    for given in (
        (log_probs, old, advantages, mask),
        (log_probs, old, 0 * advantages, mask),
        (log_probs, old, advantages, mask & False),
        (log_probs, old, advantages, mask & (np.arange(ROWS * TOKENS).reshape(mask.shape) < 1)),
    ):
        value, gradient = compute(*given)
        assert np.isfinite(value)
        assert np.isfinite(gradient).all()
        assert not gradient[~given[3]].any()
    half = [jnp.asarray(x, jnp.bfloat16) for x in (log_probs, old, advantages)]
    out = lose(*half, jnp.asarray(mask))
    assert out.loss.dtype == jnp.float32
    assert np.isfinite(out.loss).all()


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
            log_probs[:, 0], old[:, 0], advantages, entropy=0.1, kl=0.1, axis_name=axis_name
        )
        grad = jax.grad(
            lambda x: jnp.sum(
                haepo(x, old[:, 0], advantages, entropy=0.1, axis_name=axis_name).loss
            )
        )(log_probs[:, 0])
        return covered.loss, covered.aux.chosen, rare.loss, trajectories.loss, grad

    expected = jax.jit(functools.partial(whole, None))(*rows)
    mapped = jax.pmap(functools.partial(whole, parallel.BATCH), axis_name=parallel.BATCH)
    for one, many in zip(expected, mapped(*of_device), strict=True):
        assert np.allclose(np.squeeze(many, 1), one, rtol=1e-12)
    # One draw for each device: as many tokens in all.
    keys = jax.random.split(jax.random.key(0), ROWS)
    clip = functools.partial(clip_cov, share=0.1, lowest=0.0, axis_name=parallel.BATCH)
    chosen = jax.pmap(clip, axis_name=parallel.BATCH)(keys, *of_device).aux.chosen
    assert chosen.sum() == int(0.1 * mask.sum())


def test_refusals():
    log_probs, old, advantages, mask = batch()
    refused(TypeError, ["mask", "boolean"], lambda: kl_cov(
        log_probs, old, advantages, mask.astype(float)))  # fmt: skip
    refused(ValueError, ["old_log_probs", "(8, 5)"], lambda: kl_cov(
        log_probs, old[:, 1:], advantages, mask))  # fmt: skip
    refused(TypeError, ["rewards"], lambda: haepo(
        log_probs[0], old[0], np.ones(TOKENS, int)))  # fmt: skip
