import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jdiv import divergences, generators, parallel
from jdiv.policy import anchors
from jdiv.policy.group import ppo_clip
from tests.checks import refused

# ----------------------------------------------------------------------------- support of reference


def batch(seed=0):
    rng = np.random.default_rng(seed)
    log_probs, coverage = np.log(rng.uniform(0.05, 0.95, (2, 6, 4)))
    old, old_coverage = (x + 0.3 * rng.normal(size=x.shape) for x in (log_probs, coverage))
    mask = np.arange(4) < rng.integers(1, 5, (6, 1))
    return log_probs, old, coverage, old_coverage, rng.normal(size=6), mask


def test_apo_pushes_and_pulls_on_errors_only():
    log_probs, old, coverage, old_coverage, advantages, mask = batch()
    wide = np.broadcast_to(advantages[:, None], mask.shape)
    parent = ppo_clip(log_probs, old, wide, mask).loss
    plain = anchors.apo(log_probs, old, coverage, old_coverage, advantages, mask, pull=0.0)
    assert np.allclose(plain.loss, parent, rtol=1e-14)

    def total(log_probs, coverage):
        out = anchors.apo(
            log_probs, old, coverage, old_coverage, advantages, mask, push=2.0, pull=0.5
        )
        return jnp.sum(out.loss), out.loss

    (by_token, by_coverage), loss = jax.grad(total, (0, 1), has_aux=True)(log_probs, coverage)
    wrong = mask & (advantages < 0)[:, None]
    relative = np.exp(coverage - old_coverage)
    pulled = 2 * parent + 0.5 * wide * relative
    assert np.allclose(loss, np.where(wrong, pulled, parent), rtol=1e-13)
    assert (by_token[wrong] >= 0).all()  # down
    assert (by_coverage[wrong] < 0).all()  # up
    assert not by_coverage[~wrong].any()


def test_support():
    logits = jnp.array([[0.0, 3.0, 1.0, 2.0], [1.0, 1.0, 0.0, 1.0]])
    assert np.array_equal(anchors.support(logits, size=2), [[0, 1, 0, 1], [1, 1, 0, 1]])
    refused(ValueError, ["size", "4"], lambda: anchors.support(logits, size=5))


# ------------------------------------------------------------------------------ targets over groups


def test_group_forward_kl():
    rng = np.random.default_rng(1)
    log_probs = 30 * rng.normal(size=(3, 5))
    rewards = rng.uniform(size=(3, 5)) * (rng.uniform(size=(3, 5)) < 0.7)
    rewards[2] = 0
    target = anchors.dmpo_target(rewards)
    total = lambda x, target: jnp.sum(anchors.group_forward_kl(x, target).loss)
    loss = np.asarray(anchors.group_forward_kl(log_probs, target).loss)
    gradient = np.asarray(jax.grad(total)(log_probs, target))
    p = np.exp(log_probs - log_probs.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    for k in range(2):
        q = rewards[k] / rewards[k].sum()
        assert loss[k].sum() == pytest.approx(stats.entropy(q, p[k]), rel=1e-9)
        assert np.allclose(gradient[k], p[k] - q, rtol=1e-9, atol=1e-12)
    assert not loss[2].any()  # no reward, no target
    assert not gradient[2].any()
    # The fixed point: the target itself, whatever the normalisation.
    at_target = np.log(rewards[:2] + 1e-3)
    there = anchors.dmpo_target(rewards[:2] + 1e-3)
    assert np.allclose(jax.grad(total)(at_target + 4.0, there), 0, atol=1e-14)
    assert abs(total(at_target + 4.0, there)) < 1e-13


def test_tpo_target_is_the_old_policy_tilted():
    old, utilities = np.random.default_rng(2).normal(size=(2, 4, 3))
    q = np.exp(old) * np.exp(utilities)
    expected = q / q.sum(axis=1, keepdims=True)
    assert np.allclose(np.exp(anchors.tpo_target(old, utilities)), expected)
    equal = np.exp(anchors.tpo_target(old, np.ones_like(old)))
    assert np.allclose(equal, np.exp(old) / np.exp(old).sum(axis=1, keepdims=True))


# ------------------------------------------------------------------------ samples of the reference


def test_dph_rl_is_the_released_generators():
    rng = np.random.default_rng(3)
    log_p, log_ref = np.log(rng.uniform(0.05, 0.95, (2, 40)))
    u, a = np.exp(log_p - log_ref), 0.2
    solved = np.full(40, True)
    alpha = anchors.dph_rl_penalty(generators.alpha(1 - a), log_p, log_ref, solved)
    assert np.allclose(alpha, (u ** (1 - a) - (1 - a) * u - a) / (a * (a - 1)), rtol=1e-9)
    js = anchors.dph_rl_penalty(generators.jensen_shannon(), log_p, log_ref, solved)
    assert np.allclose(2 * js, u * np.log(u) - (u + 1) * np.log((u + 1) / 2), rtol=1e-8, atol=1e-14)
    half = anchors.dph_rl_penalty(generators.reverse_kl(), log_p, log_ref, solved & (u < 1))
    assert np.allclose(half, np.where(u < 1, u - 1 - np.log(u), 0))
    # By enumeration its gradient is the divergence's; of questions left out there is none.
    logits, ref_logits = rng.normal(size=(2, 6))
    log_ref = jax.nn.log_softmax(ref_logits)
    row = generators.jensen_shannon()

    def penalty(logits):
        each = anchors.dph_rl_penalty(row, jax.nn.log_softmax(logits), log_ref, jnp.full(6, True))
        return jnp.exp(log_ref) @ each

    exact = jax.grad(lambda z: divergences.f_divergence(row, z, log_ref))(jnp.asarray(logits))
    assert np.allclose(jax.grad(penalty)(jnp.asarray(logits)), exact, atol=1e-14)
    far = jax.grad(lambda x: jnp.sum(
        anchors.dph_rl_penalty(row, x, jnp.zeros(2), jnp.array([False, True]))
    ))(jnp.array([900.0, -900.0]))  # fmt: skip
    assert np.isfinite(far).all()
    assert far[0] == 0


def test_rapo_is_the_forward_kl_to_the_reweighted_reference():
    """Each answer as often as a reference of twentieths has it."""
    counts = np.array([10, 6, 3, 1])
    answers = np.repeat(np.arange(4), counts)
    ref = counts / 20
    policy = np.array([0.1, 0.2, 0.3, 0.4])
    weights = np.array([1.0, 0.0, 2.0, 5.0])
    args = np.log(policy)[answers], np.log(ref)[answers]
    found = anchors.rapo_penalty(*args, weights[answers])
    tilted = ref * weights / (ref @ weights)
    assert float(found.mean()) == pytest.approx(stats.entropy(tilted, policy))
    plain = anchors.rapo_penalty(*args, np.ones(20))
    assert float(plain.mean()) == pytest.approx(stats.entropy(ref, policy))
    mapped = jax.pmap(
        functools.partial(anchors.rapo_penalty, axis_name=parallel.BATCH), axis_name=parallel.BATCH
    )
    parts = [x[:16].reshape(8, 2) for x in (*args, weights[answers])]
    whole = anchors.rapo_penalty(*(x[:16] for x in (*args, weights[answers])))
    assert np.allclose(mapped(*parts).ravel(), whole)


# ------------------------------------------------------------------------ penalty of a threshold


def test_softmin():
    values = np.array([1.0, 2.0])
    found = [float(anchors.softmin(values, temperature=t)) for t in (1e-4, 0.3, 100.0)]
    assert found == pytest.approx([1.0, 1.1974, 1.4988], abs=1e-4)


def test_safe_as_described_and_as_released():
    kl, entropy = jnp.array([0.2, 0.5, 0.9]), jnp.array([0.1, 1.0, 9.0])
    expected = 0.1 * np.array([0, 0.2, 0.6]) ** 2 * np.array([10, 2 / 1.1, 0.5])
    slopes = 0.2 * np.array([0, 0.2, 0.6]) * np.array([10, 2 / 1.1, 0.5])
    for as_released in (False, True):
        total = lambda kl, r=as_released: jnp.sum(
            anchors.safe_penalty(kl, entropy, 0.3, as_released=r)
        )
        assert float(total(kl)) == pytest.approx(expected.sum())
        slope = jax.grad(total)(kl)
        assert np.allclose(slope, 0 if as_released else slopes)
    rising = anchors.safe_penalty_asymmetric(jnp.array([0.4, 0.4, 0.2]), jnp.array([0.0, 0.9, 0.2]))
    assert np.allclose(rising, [0.001 + 5 * 0.008**2, 0.001, 0])


def test_safe_control():
    zeros = anchors.SafeState(*[jnp.zeros(())] * 5)
    phase = anchors.SAFE_PHASES["plateau"]

    def advance(state, reward):
        return anchors.safe_control(state, jnp.asarray(0.5), reward, phase=phase)

    state, threshold = advance(zeros, jnp.asarray(0.0))
    error = -0.001
    assert float(state.kl) == pytest.approx(0.05)
    assert float(threshold) == pytest.approx((0.3 + (0.3 + 0.01 + 0.05) * error) * 0.8)
    _, thresholds = jax.lax.scan(advance, zeros, jnp.zeros(30000))
    assert float(thresholds[4999]) == pytest.approx((0.3 - 0.0003 - 0.05) * 0.8)
    assert thresholds.min() == pytest.approx(0.1)
    climbing, _ = jax.lax.scan(advance, zeros, jnp.arange(200.0))
    assert float(climbing.velocity) == pytest.approx(1, abs=1e-4)
    assert float(advance(climbing, climbing.reward + 1)[1]) == pytest.approx(0.6)
    # As described the penalty of the smoothed KL has a tenth of its gradient.
    slope = jax.grad(lambda kl: anchors.safe_control(
        zeros, kl, jnp.asarray(0.0), phase=phase)[0].kl)(jnp.asarray(0.5))  # fmt: skip
    assert float(slope) == pytest.approx(0.1)


@pytest.mark.parametrize("far", [80.0, -80.0])
def test_finite_at_the_extremes(far):
    log_probs, old, coverage, old_coverage, advantages, mask = batch(4)
    old[0] = log_probs[0] + far
    mask[1] = False
    for x in (log_probs, old, coverage):
        x[~mask] = np.nan
    value, gradient = jax.value_and_grad(
        lambda x: jnp.sum(anchors.apo(x, old, coverage, old_coverage, advantages, mask).loss)
    )(log_probs)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()
    half = [jnp.asarray(x, jnp.bfloat16) for x in (log_probs, old, coverage, old_coverage)]
    out = anchors.apo(*half, jnp.asarray(advantages, jnp.bfloat16), jnp.asarray(mask))
    assert out.loss.dtype == jnp.float32
    single = anchors.group_forward_kl(jnp.array([[far]]), anchors.dmpo_target(jnp.ones((1, 1))))
    assert np.array_equal(single.loss, [[0.0]])
