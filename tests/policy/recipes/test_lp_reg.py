import functools

import numpy as np

from jdiv.policy.clipped import ppo_clip
from jdiv.policy.recipes.lp_reg import lp_reg, min_p_proxy
from tests.policy.batches import batch, summed


def test_the_proxy_raises_what_it_keeps():
    logits = 3 * np.random.default_rng(2).normal(size=(5, 40))
    p = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    proxy = np.exp(min_p_proxy(logits, kappa=0.05))
    kept = p >= 0.05 * p.max(axis=-1, keepdims=True)
    assert ((proxy > 0) == kept).all()
    assert np.allclose(proxy.sum(axis=-1), 1)
    assert (proxy[kept] >= p[kept]).all()
    assert 0 < kept.mean() < 1
    assert np.allclose(np.exp(min_p_proxy(logits, kappa=0.0)), p)


def test_lp_reg():
    log_probs, old, advantages, mask = batch(3)
    rng = np.random.default_rng(4)
    proxy = log_probs + rng.normal(size=log_probs.shape)
    proxy[rng.uniform(size=proxy.shape) < 0.2] = -np.inf
    share, coefficient = 0.4, 50.0
    lose = functools.partial(lp_reg, share=share)
    out, gradient = summed(lose, log_probs, old, proxy, advantages, mask, coefficient=coefficient)
    negative = [at for at in zip(*np.nonzero(mask), strict=True) if advantages[at[0]] < 0]
    rare = sorted(negative, key=lambda at: log_probs[at])[: int(share * len(negative))]
    chosen = np.zeros_like(mask)
    for at in rare:
        chosen[at] = log_probs[at] < proxy[at]
    assert np.array_equal(out.aux.chosen, chosen)
    assert 1 < chosen.sum() < len(rare)
    ratio = np.exp(log_probs - old)
    d = np.where(chosen, proxy - log_probs, 0)
    k3 = np.exp(d) - 1 - d
    parent = ppo_clip(
        log_probs, old, np.broadcast_to(advantages[:, None], mask.shape), mask, low=1.0, high=9.0
    ).loss
    expected = np.where(chosen, -advantages[:, None] * ratio + coefficient * k3, parent)
    assert np.allclose(out.loss, np.where(mask, expected, 0), rtol=1e-12)
    # k3 alone raises every token it is about, and touches no other.
    _, without = summed(lose, log_probs, old, proxy, advantages, mask, coefficient=0.0)
    by_k3 = (gradient - without) / coefficient
    assert (by_k3[chosen] < 0).all()
    assert np.allclose(by_k3[chosen], 1 - np.exp(d[chosen]))
    assert not by_k3[~chosen].any()
    # Ratios are inside the clip here: coefficient 0 is PPO.
    plain = lose(log_probs, old, proxy, advantages, mask, coefficient=0.0).loss
    assert np.allclose(plain, parent, rtol=1e-13)
