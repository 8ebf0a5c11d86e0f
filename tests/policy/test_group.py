import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdiv import estimators, parallel
from jdiv.policy import group
from tests.checks import refused

RNG = np.random.default_rng(0)
N, T = 16, 5
OLD = RNG.normal(size=(N, T)) - 2
NEW = OLD + 0.4 * RNG.normal(size=(N, T))
MASK = np.arange(T) < RNG.integers(0, T + 1, N)[:, None]
MASK[:3] = [[False] * T, [True] * T, [True] + [False] * (T - 1)]
ADVANTAGES = RNG.normal(size=N)
LOSSES = {
    "ppo": group.ppo_clip,
    "higher": functools.partial(group.ppo_clip, high=0.28),
    "gspo": functools.partial(group.gspo, low=0.1, high=0.1),
    "cispo": functools.partial(group.cispo, low=0.1, high=0.2),
    "open": functools.partial(group.cispo, high=jnp.inf),
    "reinforce": lambda new, old, advantages, mask: group.reinforce(new, advantages, mask),
}


def hidden(x, with_=np.nan):
    """What a caller might have behind the end."""
    return np.where(MASK, x, with_)


@functools.cache
def evaluated():
    """Of every loss the values, the evidence, and the gradient of the sum."""

    def of(loss):
        def total(new):
            found = loss(new, hidden(OLD, np.inf), ADVANTAGES, MASK)
            return jnp.sum(found.loss), found

        return jax.grad(total, has_aux=True)(hidden(NEW))

    found = jax.jit(lambda: {name: of(loss) for name, loss in LOSSES.items()})()
    return jax.tree.map(np.asarray, found)


# ---------------------------------------------------------------------------------------- losses


def ppo(w, a, low, high):
    return -np.minimum(w * a, np.clip(w, 1 - low, 1 + high) * a)


def slope(f, w):
    """Of `f(w)` by log w."""
    return (f(w * np.exp(1e-6)) - f(w * np.exp(-1e-6))) / 2e-6


def test_losses_per_token():
    w, a = np.exp(NEW - OLD), np.broadcast_to(ADVANTAGES[:, None], MASK.shape)
    clipped = {
        "ppo": ((a > 0) & (w > 1.2)) | ((a < 0) & (w < 0.8)),
        "higher": ((a > 0) & (w > 1.28)) | ((a < 0) & (w < 0.8)),
        "cispo": (w > 1.2) | (w < 0.9),
        "open": np.zeros_like(MASK),
        "reinforce": np.zeros_like(MASK),
    }
    expected = {
        "ppo": (ppo(w, a, 0.2, 0.2), slope(lambda w: ppo(w, a, 0.2, 0.2), w)),
        "higher": (ppo(w, a, 0.2, 0.28), slope(lambda w: ppo(w, a, 0.2, 0.28), w)),
        "cispo": (-np.clip(w, 0.9, 1.2) * a * NEW, -np.clip(w, 0.9, 1.2) * a),
        "open": (-w * a * NEW, -w * a),
        "reinforce": (-a * NEW, -a),
    }
    for name, (loss, by_log_prob) in expected.items():
        gradient, found = evaluated()[name]
        np.testing.assert_allclose(found.loss, np.where(MASK, loss, 0), rtol=1e-12)
        np.testing.assert_allclose(gradient, np.where(MASK, by_log_prob, 0), rtol=1e-6)
        np.testing.assert_array_equal(found.aux.clipped, clipped[name] & MASK)
        if name != "reinforce":
            np.testing.assert_allclose(found.aux.ratio, np.where(MASK, w, 0))
    assert clipped["ppo"][MASK].sum() > 3


def test_gspo_is_the_loss_of_sequences():
    gradient, found = evaluated()["gspo"]
    length = np.maximum(MASK.sum(axis=1), 1)
    s = np.exp(np.where(MASK, NEW - OLD, 0).sum(axis=1) / length)
    loss = ppo(s, ADVANTAGES, 0.1, 0.1)
    by_mean = slope(lambda s: ppo(s, ADVANTAGES, 0.1, 0.1), s)
    np.testing.assert_allclose(found.loss, np.where(MASK, loss[:, None], 0))
    # Each token has the whole slope, and an average over the sequence divides by its length.
    np.testing.assert_allclose(gradient, np.where(MASK, by_mean[:, None], 0), rtol=1e-6, atol=1e-12)
    averaged = group.sequence_mean(found.loss, MASK)
    np.testing.assert_allclose(averaged, loss[MASK.any(axis=1)].mean())
    # One token: PPO.
    one = MASK.sum(axis=1) == 1
    there = functools.partial(group.gspo, low=0.2, high=0.2)
    single = there(hidden(NEW)[one], hidden(OLD)[one], ADVANTAGES[one], MASK[one])
    np.testing.assert_allclose(single.loss, evaluated()["ppo"][1].loss[one])


def test_without_a_step_all_have_the_policy_gradient():
    def gradients(new):
        old = jax.lax.stop_gradient(new)
        return {
            name: jax.grad(lambda x, loss=loss: jnp.sum(loss(x, old, ADVANTAGES, MASK).loss))(new)
            for name, loss in LOSSES.items()
        }

    for gradient in jax.jit(gradients)(hidden(NEW)).values():
        np.testing.assert_allclose(gradient, np.where(MASK, -ADVANTAGES[:, None], 0), rtol=1e-14)


def test_extreme_ratios_and_half_precision():
    old = jnp.full((3, 5), -310, jnp.float32)
    new = old + jnp.array([80, -80, 300, -300, 0], jnp.float32)[None]
    advantages = jnp.array([1, 0, -1], jnp.float32)
    # Nothing bounds a ratio of e^300 whose advantage is negative.
    mask = jnp.full((3, 5), True).at[2, 2].set(False)

    @jax.jit
    def of(new):
        def both(loss):
            value = loss(new, old, advantages, mask).loss
            return value, jax.grad(lambda x: jnp.sum(loss(x, old, advantages, mask).loss))(new)

        return {name: both(LOSSES[name]) for name in ("ppo", "gspo", "cispo")}

    for name, (loss, gradient) in of(new).items():
        assert np.isfinite(gradient).all(), name
        assert np.isfinite(loss).all(), name
        assert loss.dtype == jnp.float32
        assert (gradient[1] == 0).all()
    half = jnp.array([[-1.0, -2.0]], jnp.bfloat16)
    found = group.ppo_clip(half, half + 0.5, jnp.ones(1, jnp.bfloat16), jnp.full((1, 2), True))
    assert found.loss.dtype == jnp.float32
    np.testing.assert_allclose(found.loss, -np.exp(np.float32(-0.5)) * np.ones((1, 2)), rtol=1e-6)


# -------------------------------------------------------------------------------------- averages


def averages(x, mask, axis_name=None):
    return jnp.stack([
        group.token_mean(x, mask, axis_name=axis_name),
        group.sequence_mean(x, mask, axis_name=axis_name),
        group.constant_mean(x, mask, 7.0, axis_name=axis_name),
    ])  # fmt: skip


def test_averages():
    rows = [NEW[i][MASK[i]] for i in range(N) if MASK[i].any()]
    expected = [
        np.concatenate(rows).mean(),
        np.mean([row.mean() for row in rows]),
        np.mean([row.sum() / 7 for row in rows]),
    ]
    np.testing.assert_allclose(averages(hidden(NEW), MASK), expected)
    np.testing.assert_array_equal(averages(hidden(NEW), np.zeros_like(MASK)), 0)
    assert averages(np.ones((0, T)), np.ones((0, T), bool)).tolist() == [0, 0, 0]


def test_a_divided_batch_has_the_same_averages_and_gradients():
    whole = jax.jit(jax.jacrev(averages))(NEW, MASK)

    def of_part(x, mask):
        gradient = jax.jacrev(lambda x: averages(x, mask, parallel.BATCH))(x)
        # Of a parameter that all devices share the mean is taken; x here is each device's own.
        advantages = group.batch_advantages(x, mask, axis_name=parallel.BATCH)
        return averages(x, mask, parallel.BATCH), gradient, advantages

    parts = (x.reshape(8, N // 8, T) for x in (NEW, MASK))
    values, gradients, advantages = jax.pmap(of_part, axis_name=parallel.BATCH)(*parts)
    np.testing.assert_allclose(values, np.broadcast_to(averages(NEW, MASK), (8, 3)))
    joined = np.moveaxis(np.asarray(gradients), 1, 0).reshape(3, N, T)
    np.testing.assert_allclose(joined / 8, whole, atol=1e-15)
    np.testing.assert_allclose(
        advantages.reshape(N, T), group.batch_advantages(NEW, MASK), atol=1e-12
    )


def test_share_of_the_gradient_by_length():
    length = MASK.sum(axis=1)
    loss = jax.jit(
        jax.jacrev(
            lambda new: averages(group.ppo_clip(new, NEW, np.ones(N), MASK).loss, MASK)
        ))  # fmt: skip
    share = np.asarray(loss(NEW)).sum(axis=2)
    flat = (length > 0) / (length > 0).sum()
    for found, expected in zip(
        share, (length / length.sum(), flat, flat * length / 7), strict=True
    ):
        np.testing.assert_allclose(-found, expected)


# ------------------------------------------------------------------------------------ advantages


def test_advantages():
    rewards = RNG.normal(size=(6, 4))
    centred = rewards - rewards.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(group.grpo_advantages(rewards, scale=False), centred, atol=1e-15)
    np.testing.assert_allclose(
        group.grpo_advantages(rewards), centred / rewards.std(axis=1, keepdims=True)
    )
    others = [[r[i] - np.delete(r, i).mean() for i in range(4)] for r in rewards]
    np.testing.assert_allclose(group.rloo_advantages(rewards), others)
    kept = NEW[MASK]
    expected = np.zeros_like(NEW)
    expected[MASK] = (kept - kept.mean()) / kept.std()
    np.testing.assert_allclose(group.batch_advantages(hidden(NEW), MASK), expected, atol=1e-14)
    assert group.varied(rewards).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_equal_rewards_and_single_answers(dtype):
    # Numbers whose mean is another number.
    for value in (0.1, 0.7, 1e-30, 1e30):
        equal = np.full((2, 49), value, dtype)
        assert not group.varied(equal).any()
        for advantages in (group.grpo_advantages, group.rloo_advantages):
            assert (np.asarray(advantages(equal)) == 0).all()
        assert (np.asarray(group.batch_advantages(equal, np.full((2, 49), True))) == 0).all()
    single = np.array([[0.3], [2.0]], dtype)
    assert (np.asarray(group.grpo_advantages(single)) == 0).all()
    np.testing.assert_array_equal(group.rloo_advantages(single), single)
    tiny = np.array([[1e-12, 3e-12]], dtype)
    np.testing.assert_allclose(group.grpo_advantages(tiny), [[-1, 1]], rtol=1e-6)


def test_expected_gradients_by_enumeration_of_groups():
    """All 27 groups of three answers out of three: RLOO is unbiased, GRPO's mean too small."""
    logits, rewards = RNG.normal(size=3), np.array([1.0, 0.0, 0.4])
    answers = np.array(list(itertools.product(range(3), repeat=3)))
    p = np.exp(logits) / np.exp(logits).sum()
    chance = p[answers].prod(axis=1)

    def gradient(advantages):
        score = np.eye(3)[answers] - p
        return np.einsum("g,gi,gia->a", chance, np.asarray(advantages), score) / 3

    true = p * (rewards - p @ rewards)
    np.testing.assert_allclose(gradient(group.rloo_advantages(rewards[answers])), true)
    unscaled = group.grpo_advantages(rewards[answers], scale=False)
    np.testing.assert_allclose(gradient(unscaled), true * 2 / 3)
    # Without the other answers' mean, too, but for variance.
    np.testing.assert_allclose(gradient(rewards[answers]), true)
    assert gradient(group.grpo_advantages(rewards[answers])) @ true > 0


def test_conflicts_cancel_at_a_shared_prefix():
    """Two answers with the same first token and opposite rewards."""
    logits = jnp.array([0.3, -0.1])
    advantages = group.grpo_advantages(jnp.array([[1.0, 0.0]]))[0]

    def loss(logits, second):
        first = jnp.full((2,), jax.nn.log_softmax(logits)[0])
        log_probs = jnp.stack([first, jax.nn.log_softmax(second)], axis=1)
        old, mask = jax.lax.stop_gradient(log_probs), jnp.full((2, 2), True)
        return group.sequence_mean(group.ppo_clip(log_probs, old, advantages, mask).loss, mask)

    shared, own = jax.grad(loss, argnums=(0, 1))(logits, jnp.array([0.0, 0.0]))
    np.testing.assert_allclose(shared, 0, atol=1e-16)
    assert own[0] < 0 < own[1]


# --------------------------------------------------------------------------------------- KL terms

# One or two tokens of three: token 0 ends at once. Row 0 of logits is the first token's, row 1 + a
# the second's after a.
SEQUENCES = [(0,)] + [(a, b) for a in (1, 2) for b in range(3)]
COUNTS = np.array([[True, len(s) == 2] for s in SEQUENCES])
ROWS = np.array([[0, s[0]] for s in SEQUENCES])
TAKEN = np.array([[s[0], s[-1]] for s in SEQUENCES])
POLICY, REFERENCE, OTHER = (RNG.normal(size=(3, 3)) for _ in range(3))


def sequence_logs(logits):
    log_p = jax.nn.log_softmax(logits, axis=-1)[ROWS, TAKEN]
    return jnp.where(COUNTS, log_p, np.nan)


def probabilities(logits):
    return jnp.exp(jnp.sum(jnp.where(COUNTS, sequence_logs(logits), 0), axis=1))


def exact_kl(logits, reference):
    p, q = probabilities(logits), probabilities(reference)
    return jnp.sum(p * jnp.log(p / q))


@functools.cache
def kl_gradients():
    """Expected gradients by estimator and placement, and the two of KL."""

    def terms(logits):
        log_p, log_ref, log_old = map(sequence_logs, (logits, REFERENCE, OTHER))
        of_policy = jax.lax.stop_gradient(probabilities(logits))
        of_old = probabilities(OTHER)
        rewards = jnp.zeros(len(SEQUENCES))
        found = {}
        for name in ("k1", "k2", "k3"):
            k = {"estimator": getattr(estimators, f"kl_{name}")}
            token = group.kl_penalty(log_p, log_ref, COUNTS, **k)
            found[name, "token"] = of_policy @ token.sum(axis=1)
            found[name, "sequence"] = of_policy @ group.sequence_kl_penalty(
                log_p, log_ref, COUNTS, **k
            )
            for old, weight, where in (
                (log_old, of_old, "off-policy"),
                (jax.lax.stop_gradient(log_p), of_policy, "on-policy"),
            ):
                k["old_log_probs"] = old
                for weights in ("token", "prefix"):
                    token = group.kl_penalty(log_p, log_ref, COUNTS, weights=weights, **k)
                    found[name, weights, where] = weight @ token.sum(axis=1)
                found[name, "weighted sequence", where] = weight @ group.sequence_kl_penalty(
                    log_p, log_ref, COUNTS, **k
                )
        paid = group.kl_rewards(rewards, log_p, log_ref, COUNTS, coefficient=0.5)
        for name, returns in (
            ("to go", group.to_go(paid, COUNTS)),
            ("whole", jnp.sum(paid, axis=1)),
        ):
            loss = group.reinforce(log_p, returns, COUNTS).loss
            found["reward", name] = of_policy @ loss.sum(axis=1) / 0.5
        return found

    gradients = jax.jit(jax.jacrev(terms))(POLICY)
    true = jax.grad(exact_kl)(POLICY, REFERENCE)
    other = jax.grad(exact_kl, argnums=1)(REFERENCE, POLICY)
    return jax.tree.map(np.asarray, (gradients, true, other))


def test_kl_placements_that_are_exact():
    gradients, true, other = kl_gradients()
    exact = [("reward", "to go"), ("reward", "whole"), ("k2", "sequence")]
    for where in ("off-policy", "on-policy"):
        for name in ("k1", "k3"):
            exact += [(name, "prefix", where), (name, "weighted sequence", where)]
    for key in exact:
        np.testing.assert_allclose(gradients[key], true, atol=1e-15, err_msg=str(key))
    np.testing.assert_allclose(gradients["k3", "sequence"], other, atol=1e-15)
    for kind in ("token", "sequence"):
        np.testing.assert_allclose(gradients["k1", kind], 0, atol=1e-15)


def test_kl_placements_that_are_not():
    gradients, true, _ = kl_gradients()
    size = np.linalg.norm(true)
    for key in [("k2", "token"), ("k3", "token"), ("k2", "prefix", "off-policy")] + [
        (name, "token", where) for name in ("k1", "k3") for where in ("off-policy", "on-policy")
    ]:
        assert np.linalg.norm(gradients[key] - true) > 0.02 * size, key
    # On-policy the weighted ones are k2's: all leave out the later tokens.
    for name in ("k1", "k3"):
        np.testing.assert_allclose(
            gradients[name, "token", "on-policy"], gradients["k2", "token"], atol=1e-15
        )


def test_kl_of_one_token_published():
    """One step off-policy: by policy (.5, .3, .2), old (.2, .5, .3) and reference (.3, .3, .4)."""
    p, old, ref = (np.log(x) for x in ([0.5, 0.3, 0.2], [0.2, 0.5, 0.3], [0.3, 0.3, 0.4]))
    true = [0.197021, -0.035035, -0.161986]

    def loss(logits, name, weighted):
        log_p = jax.nn.log_softmax(logits)[:, None]
        penalty = group.kl_penalty(
            log_p, ref[:, None], np.full((3, 1), True),
            estimator=getattr(estimators, f"kl_{name}"),
            old_log_probs=old[:, None] if weighted else None,
        )  # fmt: skip
        return np.exp(old) @ penalty[:, 0]

    for name, weighted, expected in (
        ("k1", True, true),
        ("k3", True, true),
        ("k2", True, [0.205616, -0.069019, -0.136597]),
        ("k3", False, [0.190, 0.066, -0.256]),
    ):
        found = jax.grad(loss)(p, name, weighted)
        np.testing.assert_allclose(found, expected, atol=6e-7 if weighted else 6e-4)


def test_rewards_of_tokens():
    rewards = RNG.normal(size=N)
    found = group.kl_rewards(rewards, hidden(NEW), hidden(OLD), MASK, coefficient=0.3)
    for i in range(N):
        kept = np.flatnonzero(MASK[i])
        expected = np.where(MASK[i], -0.3 * (NEW[i] - OLD[i]), 0)
        if kept.size:
            expected[kept[-1]] += rewards[i]
        np.testing.assert_allclose(found[i], expected, atol=1e-15)
    sums = [np.where(MASK[i], np.cumsum(np.asarray(found)[i][::-1])[::-1], 0) for i in range(N)]
    np.testing.assert_allclose(group.to_go(found, MASK), sums, atol=1e-14)
    free = group.kl_rewards(rewards, hidden(NEW), hidden(OLD), MASK, coefficient=0.0)
    np.testing.assert_allclose(free.sum(axis=1), rewards * MASK.any(axis=1))


def test_kl_of_extreme_ratios():
    far = jnp.array([[80.0, -80.0, 0.0, np.nan]], jnp.float32)
    mask = jnp.array([[True, True, True, False]])
    still = jnp.zeros_like(far)

    def terms(x):
        return jnp.stack([
            group.kl_penalty(x, still, mask, estimator=k).sum()
            for k in (estimators.kl_k1, estimators.kl_k2, estimators.kl_k3)
        ] + [
            group.kl_penalty(x, x + 1, mask, old_log_probs=still, weights=weights).sum()
            for weights in ("token", "prefix")
        ])  # fmt: skip

    assert np.isfinite(terms(far)).all()
    assert np.isfinite(jax.jacrev(terms)(far)).all()


def test_refusals():
    ones = jnp.ones((2, 3))
    mask = jnp.full((2, 3), True)
    refused(TypeError, ("mask", "boolean"), lambda: group.ppo_clip(ones, ones, ones, ones))
    refused(TypeError, ("mask", "boolean"), lambda: group.token_mean(ones, ones))
    refused(ValueError, ("log_probs", "mask"), lambda: group.reinforce(ones, ones, mask[:, :2]))
    refused(ValueError, ("advantages",), lambda: group.reinforce(ones, ones[:1], mask))
    refused(TypeError, ("rewards",), lambda: group.grpo_advantages(jnp.ones((2, 3), jnp.int32)))
    refused(
        ValueError, ("weights", "prefix"),
        lambda: group.kl_penalty(ones, ones, mask, weights="prefixes"),
    )  # fmt: skip
