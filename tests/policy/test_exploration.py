import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdiv import parallel
from jdiv.policy import exploration
from jdiv.policy.group import ppo_clip
from tests.checks import refused

ROWS, TOKENS, GROUP = 8, 6, 4


def batch(seed=0, rows=ROWS):
    """Log-probabilities, old ones, advantages of sequences, a mask that keeps prefixes."""
    rng = np.random.default_rng(seed)
    log_probs = np.log(rng.uniform(0.01, 0.99, (rows, TOKENS)))
    old = log_probs + 0.3 * rng.normal(size=(rows, TOKENS))
    mask = np.arange(TOKENS) < rng.integers(2, TOKENS + 1, (rows, 1))
    return log_probs, old, rng.normal(size=rows), mask


def summed(loss, *arrays, **options):
    """Value and gradient by the first array of the sum of a loss, and what it returns."""

    @jax.jit
    def compute(*arrays):
        def total(first):
            out = loss(first, *arrays[1:], **options)
            return jnp.sum(out.loss), out

        return jax.value_and_grad(total, has_aux=True)(arrays[0])

    (_, out), gradient = compute(*arrays)
    return out, np.asarray(gradient)


def covariance_by_hand(log_probs, advantages, mask):
    every = [(i, t) for i in range(ROWS) for t in range(TOKENS) if mask[i, t]]
    mean_a = sum(advantages[i] for i, _ in every) / len(every)
    mean_l = sum(log_probs[i, t] for i, t in every) / len(every)
    covariance = np.zeros_like(log_probs)
    for i, t in every:
        covariance[i, t] = (advantages[i] - mean_a) * (log_probs[i, t] - mean_l)
    return covariance, len(every)


# ------------------------------------------------------------------------------------ order


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_kth_largest_is_that_of_a_sorted_list(dtype):
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(20, 12)).astype(dtype) * 10.0 ** rng.integers(-30, 30, (20, 12))
    scores = scores.astype(dtype)
    scores[:, 3] = scores[:, 5]  # ties
    scores[0, :4] = [0.0, -0.0, np.inf, -np.inf]
    eligible = rng.uniform(size=scores.shape) < 0.8
    find = jax.jit(jax.vmap(exploration.kth_largest, (0, 0, None)))
    for count in (1, 4, 12):
        for row, keep, found in zip(scores, eligible, find(scores, eligible, count), strict=True):
            descending = np.sort(row[keep])[::-1]
            expected = descending[count - 1] if count <= len(descending) else -np.inf
            assert found == expected


# ------------------------------------------------------------------------------------- covariance


def test_entropy_falls_by_the_covariance_to_first_order():
    logits = np.random.default_rng(1).normal(size=50)
    policy = np.exp(logits) / np.exp(logits).sum()
    advantage = (np.arange(50) < 5) - policy[:5].sum()

    def entropy(logits):
        p = np.exp(logits - logits.max())
        p /= p.sum()
        return -(p * np.log(p)).sum()

    for direction in (policy * advantage, advantage):
        predicted = float(exploration.predicted_entropy_change(np.log(policy), direction))
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
    found = exploration.predicted_entropy_change(np.log(peaked), change)
    assert float(found) == pytest.approx(expected, rel=1e-12)
    assert expected < 0


@pytest.mark.parametrize("share", [0.001, 0.2])
def test_kl_cov(share):
    log_probs, old, advantages, mask = batch()
    out, gradient = summed(
        exploration.kl_cov, log_probs, old, advantages, mask, share=share, coefficient=3.0
    )
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
    out, gradient = summed(exploration.kl_cov, log_probs, log_probs, advantages, mask, share=0.5)
    assert np.allclose(gradient, np.where(mask, -advantages[:, None], 0), rtol=1e-14)
    assert np.asarray(out.aux.chosen).sum() >= mask.sum() // 2
    # Off by one digit the penalty has its whole slope.
    off = np.nextafter(log_probs, 0)
    out, gradient = summed(exploration.kl_cov, log_probs, off, advantages, mask, share=0.5)
    pushed = np.where(mask, -advantages[:, None] - np.asarray(out.aux.chosen), 0)
    assert np.allclose(gradient, pushed, rtol=1e-14)


def test_clip_cov():
    log_probs, old, advantages, mask = batch()
    advantages = 3 * advantages
    lose = functools.partial(
        exploration.clip_cov, share=0.15, lowest=0.5, highest=5.0, low=0.2, high=0.2
    )
    keys = jax.random.split(jax.random.key(0), 2000)
    everyone = jax.jit(jax.vmap(lambda key: lose(key, log_probs, old, advantages, mask)))
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
    one = exploration.clip_cov(
        keys[0], log_probs, old, advantages, mask, lowest=90.0, highest=99.0, low=0.2, high=0.2
    )
    assert np.array_equal(one.loss, parent.loss)


# ---------------------------------------------------------------------------------- entropy bonus


def test_aer_scale_rests_at_its_target_and_is_never_negative():
    at = functools.partial(exploration.aer_scale, initial_entropy=2.0, target=0.4, rate=0.5)
    assert float(at(0.3, jnp.array(0.8))) == pytest.approx(0.3)
    assert float(at(0.3, jnp.array(0.5))) > 0.3 > float(at(0.3, jnp.array(1.0)))
    assert float(at(0.01, jnp.array(2.0))) == 0.0
    found = exploration.aer_coefficients(jnp.array([0.0, 0.5, 0.8, 1.0]), 2.0, rho=0.8)
    assert np.allclose(found, [1.6, 0.6, 0, 0])


def test_integral_control_holds_the_entropy_where_fixed_coefficients_do_not():
    """Softmax of ten actions, one of reward 1: entropy bonus by control, and at constants."""
    reward = (jnp.arange(10) < 1).astype(float)
    initial = jnp.log(10.0)

    def entropy(logits):
        log_p = jax.nn.log_softmax(logits)
        return -jnp.sum(jnp.exp(log_p) * log_p)

    @jax.jit
    @jax.vmap
    def late_entropy(scale, rate):
        def step(carry, _):
            logits, scale = carry
            objective = lambda z: jax.nn.softmax(z) @ reward + scale * entropy(z)
            logits = logits + 0.5 * jax.grad(objective)(logits)
            scale = exploration.aer_scale(scale, entropy(logits), initial, rate=rate)
            return (logits, scale), entropy(logits)

        _, entropies = jax.lax.scan(step, (jnp.zeros(10), scale), length=3000)
        return entropies[-500:]

    held, weak, strong = late_entropy(jnp.array([0.0, 0.03, 3.0]), jnp.array([0.003, 0.0, 0.0])) / (
        0.4 * initial
    )
    assert np.abs(held - 1).max() < 0.05
    assert weak[-1] < 0.05
    assert strong[-1] > 2.0  # of at most 2.5


# ------------------------------------------------------------------------------------ rare tokens


def test_the_proxy_raises_what_it_keeps():
    logits = 3 * np.random.default_rng(2).normal(size=(5, 40))
    p = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    proxy = np.exp(exploration.min_p_proxy(logits, kappa=0.05))
    kept = p >= 0.05 * p.max(axis=-1, keepdims=True)
    assert ((proxy > 0) == kept).all()
    assert np.allclose(proxy.sum(axis=-1), 1)
    assert (proxy[kept] >= p[kept]).all()
    assert 0 < kept.mean() < 1
    assert np.allclose(np.exp(exploration.min_p_proxy(logits, kappa=0.0)), p)


def test_lp_reg():
    log_probs, old, advantages, mask = batch(3)
    rng = np.random.default_rng(4)
    proxy = log_probs + rng.normal(size=log_probs.shape)
    proxy[rng.uniform(size=proxy.shape) < 0.2] = -np.inf
    share, coefficient = 0.4, 50.0
    lose = functools.partial(exploration.lp_reg, share=share)
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


# ----------------------------------------------------------------------------- conflicting tokens


def conflicts_by_hand(tokens, advantages, mask, places):
    """Weights when completion i's token t stands at places[i, t]."""
    weights = np.ones(tokens.shape)
    where = [{p: t for t, p in enumerate(row)} for row in places]
    for i in range(len(tokens)):
        for t in range(tokens.shape[1]):
            for j in range(len(tokens)):
                other = where[j].get(places[i][t])
                if other is None or not (mask[i, t] and mask[j, other]):
                    continue
                if advantages[i] * advantages[j] < 0 and tokens[i, t] == tokens[j, other]:
                    weights[i, t] = 2.0 if advantages[i] > 0 else 0.0
    return weights


def test_conflict_weights():
    rng = np.random.default_rng(5)
    tokens = rng.integers(0, 2, (6, GROUP, TOKENS))
    advantages = rng.choice([-1.0, 0.0, 2.0], (6, GROUP))
    lengths = rng.integers(1, TOKENS + 1, (6, GROUP, 1))
    mask = np.arange(TOKENS) < lengths
    found = exploration.conflict_weights(tokens, advantages, mask)
    runs = exploration.conflict_weights(tokens, advantages, mask, runs=True)
    starts = np.broadcast_to(np.arange(TOKENS), (GROUP, TOKENS))
    for k in range(6):
        at_start = conflicts_by_hand(tokens[k], advantages[k], mask[k], starts)
        at_end = conflicts_by_hand(tokens[k], advantages[k], mask[k], starts - lengths[k])
        assert np.array_equal(found[k], at_start)
        for i in range(GROUP):
            for t in range(lengths[k, i, 0]):
                expected = 1.0
                if (at_start[i, : t + 1] != 1).all():
                    expected *= at_start[i, t]
                if (at_end[i, t : lengths[k, i, 0]] != 1).all():
                    expected *= at_end[i, t]
                assert runs[k, i, t] == expected
    assert 4.0 in np.asarray(runs)


def test_gtpo_on_a_shared_prefix():
    """Two completions with opposite rewards: the prefix is 0 for GRPO, doubled for GTPO."""
    tokens = jnp.array([[3, 1, 4, 1], [3, 1, 5, 9]])
    mask = jnp.full((2, 4), True)
    advantages = jnp.array([1.0, -1.0])

    def gradient(weights):
        def total(prefix):  # the same two numbers in both
            own = jnp.full((2, 2), -0.7)
            log_probs = jnp.concatenate([jnp.stack([prefix, prefix]), own], axis=1)
            out = exploration.gtpo(
                log_probs, jax.lax.stop_gradient(log_probs), jnp.zeros((2, 4)), advantages,
                weights, mask, initial_entropy=1.0, coefficient=0.0,
            )  # fmt: skip
            return jnp.sum(out.loss)

        return jax.grad(total)(jnp.array([-0.5, -1.0]))

    assert np.array_equal(gradient(jnp.ones((2, 4))), [0.0, 0.0])
    weights = exploration.conflict_weights(tokens, advantages, mask)
    assert np.array_equal(gradient(weights), [-2.0, -2.0])


def test_gtpo_drops_the_uncertain():
    log_probs, old, advantages, mask = batch(6)
    entropy = np.random.default_rng(7).uniform(0, 1.4, log_probs.shape)
    mean = np.where(mask, entropy, 0).sum(axis=1) / mask.sum(axis=1)
    ones = np.ones_like(log_probs)
    given = (log_probs, old, entropy, advantages, ones, mask)
    certain = exploration.gtpo(*given, initial_entropy=0.5)
    free = exploration.gtpo(*given, initial_entropy=0.8)
    kept = mean <= np.log(2)
    assert 0 < kept.sum() < ROWS
    assert np.array_equal(certain.aux.kept, kept)
    assert np.asarray(free.aux.kept).all()
    gain = advantages - 0.1 * mean
    expected = np.where(mask, -gain[:, None] * np.exp(log_probs - old), 0)
    assert np.allclose(free.loss, expected)
    assert np.allclose(certain.loss, np.where(kept[:, None], expected, 0))
    # Why log 2: no distribution without a majority has less entropy.
    p = np.random.default_rng(8).dirichlet(np.full(3, 0.5), 5000)
    level = -(p * np.log(np.maximum(p, 1e-300))).sum(axis=1)
    assert (p.max(axis=1)[level < np.log(2)] > 0.5).all()


# ------------------------------------------------------------------------------ whole trajectories


def test_haepo_over_an_enumeration_is_the_objective():
    rng = np.random.default_rng(9)
    logits, reference, rewards = rng.normal(size=(3, 6))
    log_p, log_ref = (x - np.log(np.exp(x).sum()) for x in (logits, reference))
    p = np.exp(log_p)
    out, gradient = summed(exploration.haepo, logits, reference, rewards, entropy=0.3, kl=0.2)
    kl, entropy = (p * (log_p - log_ref)).sum(), -(p * log_p).sum()
    expected = -p @ rewards - 0.3 * entropy + 0.2 * kl
    assert float(out.loss.sum()) == pytest.approx(expected, rel=1e-12)
    assert float(out.aux.entropy) == pytest.approx(entropy)
    assert float(out.aux.kl) == pytest.approx(kl)

    def naive(logits):
        log_w = jax.nn.log_softmax(logits)
        return jnp.exp(log_w) @ (-rewards + 0.3 * log_w + 0.2 * (log_w - log_ref))

    assert np.allclose(gradient, jax.grad(naive)(jnp.asarray(logits)), rtol=1e-10, atol=1e-14)
    _, plain = summed(exploration.haepo, logits, reference, rewards)
    assert np.allclose(plain, -p * (rewards - p @ rewards), rtol=1e-10)


def test_haepo_over_samples_counts_the_policy_twice():
    """A sample of 7 of one arm and 3 of the other: weights as pi^2, greedier than the mean."""
    taken = np.array([0] * 7 + [1] * 3)
    log_p = np.log(np.array([0.7, 0.3]))[taken]
    rewards = np.array([1.0, 0.0])[taken]
    out = exploration.haepo(log_p, log_p, rewards)
    assert float(-out.loss.sum()) == pytest.approx(0.49 / 0.58)
    assert rewards.mean() < 0.49 / 0.58


# ------------------------------------------------------------------------------------ every loss


def losses():
    key = jax.random.key(0)
    ones = jnp.ones_like
    return {
        "kl_cov": exploration.kl_cov,
        "clip_cov": functools.partial(exploration.clip_cov, key),
        "lp_reg": lambda x, old, a, m, **k: exploration.lp_reg(x, old, old, a, m, **k),
        "gtpo": lambda x, old, a, m: exploration.gtpo(
            x, old, ones(x), a, ones(x), m, initial_entropy=1.0
        ),
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
        covered = exploration.kl_cov(
            log_probs, old, advantages, mask, share=0.2, axis_name=axis_name
        )
        rare = exploration.lp_reg(
            log_probs, old, log_probs + 0.5, advantages, mask, share=0.2, axis_name=axis_name
        )
        trajectories = exploration.haepo(
            log_probs[:, 0], old[:, 0], advantages, entropy=0.1, kl=0.1, axis_name=axis_name
        )
        grad = jax.grad(
            lambda x: jnp.sum(
                exploration.haepo(x, old[:, 0], advantages, entropy=0.1, axis_name=axis_name).loss
            )
        )(log_probs[:, 0])
        return covered.loss, covered.aux.chosen, rare.loss, trajectories.loss, grad

    expected = jax.jit(functools.partial(whole, None))(*rows)
    mapped = jax.pmap(functools.partial(whole, parallel.BATCH), axis_name=parallel.BATCH)
    for one, many in zip(expected, mapped(*of_device), strict=True):
        assert np.allclose(np.squeeze(many, 1), one, rtol=1e-12)
    # One draw for each device: as many tokens in all.
    keys = jax.random.split(jax.random.key(0), ROWS)
    clip = functools.partial(exploration.clip_cov, share=0.1, lowest=0.0, axis_name=parallel.BATCH)
    chosen = jax.pmap(clip, axis_name=parallel.BATCH)(keys, *of_device).aux.chosen
    assert chosen.sum() == int(0.1 * mask.sum())


def test_groups_are_the_same_everywhere(same_everywhere):
    rng = np.random.default_rng(12)
    tokens = rng.integers(0, 2, (8, GROUP, TOKENS))
    log_probs, old, entropy = rng.uniform(-2, 0, (3, 8, GROUP, TOKENS))
    advantages = rng.choice([-1.0, 2.0], (8, GROUP))
    mask = np.arange(TOKENS) < rng.integers(1, TOKENS + 1, (8, GROUP, 1))

    def lose(tokens, log_probs, old, entropy, advantages, mask):
        weights = exploration.conflict_weights(tokens, advantages, mask, runs=True)
        return exploration.gtpo(
            log_probs, old, entropy, advantages, weights, mask, initial_entropy=0.5
        ).loss

    same_everywhere(lose, tokens, log_probs, old, entropy, advantages, mask)


def test_refusals():
    log_probs, old, advantages, mask = batch()
    refused(TypeError, ["mask", "boolean"], lambda: exploration.kl_cov(
        log_probs, old, advantages, mask.astype(float)))  # fmt: skip
    refused(ValueError, ["old_log_probs", "(8, 5)"], lambda: exploration.kl_cov(
        log_probs, old[:, 1:], advantages, mask))  # fmt: skip
    refused(TypeError, ["rewards"], lambda: exploration.haepo(
        log_probs[0], old[0], np.ones(TOKENS, int)))  # fmt: skip
