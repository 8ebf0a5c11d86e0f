import functools

import jax
import numpy as np
import pytest

from jdiv.policy.clipped import ppo_clip
from jdiv.policy.recipes.entropy_mechanism import clip_cov, kl_cov, predicted_entropy_change
from tests.policy.batches import ROWS, TOKENS, batch, summed


def covariance_by_hand(log_probs, advantages, mask):
    every = [(i, t) for i in range(ROWS) for t in range(TOKENS) if mask[i, t]]
    mean_a = sum(advantages[i] for i, _ in every) / len(every)
    mean_l = sum(log_probs[i, t] for i, t in every) / len(every)
    covariance = np.zeros_like(log_probs)
    for i, t in every:
        covariance[i, t] = (advantages[i] - mean_a) * (log_probs[i, t] - mean_l)
    return covariance, len(every)


def test_entropy_falls_by_the_covariance_to_first_order():
    logits = np.random.default_rng(1).normal(size=50)
    policy = np.exp(logits) / np.exp(logits).sum()
    advantage = (np.arange(50) < 5) - policy[:5].sum()

    def entropy(logits):
        p = np.exp(logits - logits.max())
        p /= p.sum()
        return -(p * np.log(p)).sum()

    for direction in (policy * advantage, advantage):
        predicted = float(predicted_entropy_change(np.log(policy), direction))
        errors = [
            abs((entropy(logits + rate * direction) - entropy(logits)) / (rate * predicted) - 1)
            for rate in (1e-1, 1e-2, 1e-3)
        ]
        assert errors[0] > 5 * errors[1] > 25 * errors[2]  # O(rate)
        assert errors[2] < 0.01
    # Cov(log pi, pi A) by its definition, and its sign for a policy that prefers the right ones.
    peaked = np.array([0.7, 0.1, 0.1, 0.1])
    change = peaked * (np.array([1.0, 0, 0, 0]) - 0.7)
    mean = peaked @ np.log(peaked), peaked @ change
    expected = -(peaked * (np.log(peaked) - mean[0]) * (change - mean[1])).sum()
    found = predicted_entropy_change(np.log(peaked), change)
    assert float(found) == pytest.approx(expected, rel=1e-12)
    assert expected < 0


@pytest.mark.parametrize("share", [0.001, 0.2])
def test_kl_cov(share):
    log_probs, old, advantages, mask = batch()
    out, gradient = summed(kl_cov, log_probs, old, advantages, mask, share=share, coefficient=3.0)
    covariance, count = covariance_by_hand(log_probs, advantages, mask)
    order = sorted(zip(*np.nonzero(mask), strict=True), key=lambda at: -covariance[at])
    chosen = order[: max(1, int(share * count))]
    for i, t in zip(*np.nonzero(mask), strict=True):
        ratio = np.exp(log_probs[i, t] - old[i, t])
        is_chosen = (i, t) in chosen
        penalty = 3.0 * abs(log_probs[i, t] - old[i, t]) * is_chosen
        assert out.aux.chosen[i, t] == is_chosen
        assert out.aux.covariance[i, t] == pytest.approx(covariance[i, t], rel=1e-12)
        assert out.loss[i, t] == pytest.approx(-advantages[i] * ratio + penalty, rel=1e-12)
        slope = 3.0 * np.sign(log_probs[i, t] - old[i, t]) * is_chosen
        assert gradient[i, t] == pytest.approx(-advantages[i] * ratio + slope, rel=1e-12)
    assert not np.asarray(out.loss)[~mask].any()
    assert not gradient[~mask].any()


def test_kl_cov_at_ratio_one_is_the_policy_gradient():
    log_probs, _, advantages, mask = batch()
    out, gradient = summed(kl_cov, log_probs, log_probs, advantages, mask, share=0.5)
    assert np.allclose(gradient, np.where(mask, -advantages[:, None], 0), rtol=1e-14)
    assert np.asarray(out.aux.chosen).sum() >= mask.sum() // 2
    # Off by one digit the penalty has its whole slope.
    off = np.nextafter(log_probs, 0)
    out, gradient = summed(kl_cov, log_probs, off, advantages, mask, share=0.5)
    pushed = np.where(mask, -advantages[:, None] - np.asarray(out.aux.chosen), 0)
    assert np.allclose(gradient, pushed, rtol=1e-14)


def test_clip_cov():
    log_probs, old, advantages, mask = batch()
    advantages = 3 * advantages
    lose = functools.partial(clip_cov, share=0.15, lowest=0.5, highest=5.0, low=0.2, high=0.2)
    keys = jax.random.split(jax.random.key(0), 2000)
    everyone = jax.jit(jax.vmap(lambda key: lose(log_probs, old, advantages, mask, key)))
    out = everyone(keys)
    parent = ppo_clip(log_probs, old, np.broadcast_to(advantages[:, None], mask.shape), mask)
    covariance, count = covariance_by_hand(log_probs, advantages, mask)
    ratio = np.exp(log_probs - old)
    clipped = np.where(advantages[:, None] > 0, ratio > 1.2, ratio < 0.8)
    eligible = mask & (covariance > 0.5) & (covariance < 5) & ~clipped
    number = int(0.15 * count)
    assert number < eligible.sum()
    chosen = np.asarray(out.aux.chosen)
    assert (chosen.sum(axis=(1, 2)) == number).all()
    assert not chosen[:, ~eligible].any()
    expected = number / eligible.sum()
    error = np.sqrt(expected * (1 - expected) / len(keys))
    assert np.abs(chosen[:, eligible].mean(axis=0) - expected).max() < 4.5 * error
    loss = np.asarray(out.loss)
    assert not loss[chosen].any()
    assert np.allclose(loss[~chosen], np.broadcast_to(parent.loss, loss.shape)[~chosen])
    # An empty band leaves PPO.
    one = clip_cov(
        log_probs, old, advantages, mask, keys[0], lowest=90.0, highest=99.0, low=0.2, high=0.2
    )
    assert np.array_equal(one.loss, parent.loss)
