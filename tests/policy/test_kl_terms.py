import functools

import jax
import jax.numpy as jnp
import numpy as np

from jdiv import estimators
from jdiv.policy.clipped import reinforce
from jdiv.policy.kl_terms import (
    clamped_log_ratio,
    held_log_ratio,
    kl_penalty,
    kl_rewards,
    linear_k3,
    prefix_log_ratio,
    saturated,
    sequence_kl_penalty,
    sequence_log_ratio,
    straight_through,
    token_log_ratio,
    without_gradient,
)
from jdiv.policy.tokens import to_go
from tests.checks import refused

RNG = np.random.default_rng(0)
N, T = 16, 5
OLD = RNG.normal(size=(N, T)) - 2
NEW = OLD + 0.4 * RNG.normal(size=(N, T))
MASK = np.arange(T) < RNG.integers(0, T + 1, N)[:, None]
MASK[:3] = [[False] * T, [True] * T, [True] + [False] * (T - 1)]


def hidden(x, with_=np.nan):
    """What a caller might have behind the end."""
    return np.where(MASK, x, with_)


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


WEIGHTS = {
    "token": token_log_ratio,
    "prefix": prefix_log_ratio,
    "all": sequence_log_ratio,
    "token held": held_log_ratio,
    "all held": functools.partial(held_log_ratio, log_weight=sequence_log_ratio),
}
ESTIMATORS = {
    "k1": estimators.kl_k1,
    "k2": estimators.kl_k2,
    "k3": estimators.kl_k3,
    "k3+": straight_through,
    "sg k1": without_gradient,
}


@functools.cache
def kl_gradients():
    """Expected gradients by estimator and placement, and the two of KL."""

    def terms(logits):
        log_p, log_ref, log_old = map(sequence_logs, (logits, REFERENCE, OTHER))
        of_policy = jax.lax.stop_gradient(probabilities(logits))
        of_old = probabilities(OTHER)
        rewards = jnp.zeros(len(SEQUENCES))
        found = {}
        for name, estimator in ESTIMATORS.items():
            k = {"estimator": estimator}
            token = kl_penalty(log_p, log_ref, COUNTS, **k)
            found[name, "token"] = of_policy @ token.sum(axis=1)
            found[name, "sequence"] = of_policy @ sequence_kl_penalty(log_p, log_ref, COUNTS, **k)
            for old, weight, where in (
                (log_old, of_old, "off-policy"),
                (jax.lax.stop_gradient(log_p), of_policy, "on-policy"),
            ):
                k["old_log_probs"] = old
                for weights, log_weight in WEIGHTS.items():
                    token = kl_penalty(log_p, log_ref, COUNTS, log_weight=log_weight, **k)
                    found[name, weights, where] = weight @ token.sum(axis=1)
                found[name, "weighted sequence", where] = weight @ sequence_kl_penalty(
                    log_p, log_ref, COUNTS, **k
                )
                found[name, "held sequence", where] = weight @ sequence_kl_penalty(
                    log_p, log_ref, COUNTS, log_weight=held_log_ratio, **k
                )
        paid = kl_rewards(log_p, log_ref, rewards, COUNTS, coefficient=0.5)
        for name, returns in (
            ("to go", to_go(paid, COUNTS)),
            ("whole", jnp.sum(paid, axis=1)),
        ):
            loss = reinforce(log_p, returns, COUNTS).loss
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
            exact += [(name, "all", where)]
        exact += [(name, "held sequence", where) for name in ("k2", "k3+")]
        exact += [("sg k1", of, where) for of in ("prefix", "weighted sequence", "all")]
    for key in exact:
        np.testing.assert_allclose(gradients[key], true, atol=1e-15, err_msg=str(key))
    # Whatever the value is, the gradient is that of k2.
    exact += [("k3+", "sequence")]
    for of in ("token", ("token held", "off-policy"), ("all held", "off-policy")):
        of = (of,) if isinstance(of, str) else of
        np.testing.assert_allclose(gradients["k3+", *of], gradients["k2", *of], atol=1e-15)
    np.testing.assert_allclose(gradients["k3", "sequence"], other, atol=1e-15)
    for kind in ("token", "sequence"):
        np.testing.assert_allclose(gradients["k1", kind], 0, atol=1e-15)


def test_kl_placements_that_are_not():
    gradients, true, _ = kl_gradients()
    size = np.linalg.norm(true)
    wrong = [("k2", "token"), ("k3", "token"), ("k2", "prefix", "off-policy")]
    for where in ("off-policy", "on-policy"):
        wrong += [(name, "token", where) for name in ("k1", "k3")]
        # Held weights at single tokens have no exact estimator, whatever they are weights of.
        wrong += [(name, of, where) for name in ESTIMATORS for of in ("token held", "all held")]
    for key in wrong:
        assert np.linalg.norm(gradients[key] - true) > 0.02 * size, key
    # On-policy the weighted ones are k2's: all leave out the later tokens.
    for name in ("k1", "k3"):
        np.testing.assert_allclose(
            gradients[name, "token", "on-policy"], gradients["k2", "token"], atol=1e-15
        )


def test_weights_of_tokens_held_fixed_are_the_score_of_k1():
    """The unbiased gradient of OpenRLHF, TRL's correction and w stop_gradient(k1) are the same."""
    gradients, _, _ = kl_gradients()
    for where in ("off-policy", "on-policy"):
        for key in (("k3+", "token held"), ("sg k1", "token"), ("k3", "token"), ("k1", "token")):
            np.testing.assert_allclose(
                gradients[*key, where], gradients["k2", "token held", where], atol=1e-15
            )


def test_kl_of_one_token_published():
    """One step off-policy: by policy (.5, .3, .2), old (.2, .5, .3) and reference (.3, .3, .4)."""
    p, old, ref = (np.log(x) for x in ([0.5, 0.3, 0.2], [0.2, 0.5, 0.3], [0.3, 0.3, 0.4]))
    true = [0.197021, -0.035035, -0.161986]

    def loss(logits, name, weighted):
        log_p = jax.nn.log_softmax(logits)[:, None]
        penalty = kl_penalty(
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
    found = kl_rewards(hidden(NEW), hidden(OLD), rewards, MASK, coefficient=0.3)
    for i in range(N):
        kept = np.flatnonzero(MASK[i])
        expected = np.where(MASK[i], -0.3 * (NEW[i] - OLD[i]), 0)
        # An answer without tokens keeps its reward, at its first place.
        expected[kept[-1] if kept.size else 0] += rewards[i]
        np.testing.assert_allclose(found[i], expected, atol=1e-15)
    sums = [np.where(MASK[i], np.cumsum(np.asarray(found)[i][::-1])[::-1], 0) for i in range(N)]
    np.testing.assert_allclose(to_go(found, MASK), sums, atol=1e-14)
    free = kl_rewards(hidden(NEW), hidden(OLD), rewards, MASK, coefficient=0.0)
    np.testing.assert_allclose(free.sum(axis=1), rewards)
    assert not MASK.any(axis=1).all()


def test_kl_of_extreme_ratios():
    far = jnp.array([[80.0, -80.0, 0.0, np.nan]], jnp.float32)
    mask = jnp.array([[True, True, True, False]])
    still = jnp.zeros_like(far)

    def terms(x):
        return jnp.stack([
            kl_penalty(x, still, mask, estimator=k).sum()
            for k in (estimators.kl_k1, estimators.kl_k2, estimators.kl_k3)
        ] + [
            kl_penalty(x, x + 1, mask, old_log_probs=still, log_weight=log_weight).sum()
            for log_weight in WEIGHTS.values()
        ])  # fmt: skip

    assert np.isfinite(terms(far)).all()
    assert np.isfinite(jax.jacrev(terms)(far)).all()


@jax.jit
def of_k3(log_p, log_q, limit):
    """Values and slopes of the linear k3 and of the straight-through one."""

    def slopes(f):
        return jax.vmap(jax.value_and_grad(f))(log_p, log_q)

    linear = functools.partial(linear_k3, limit=limit)
    return slopes(linear), slopes(straight_through), saturated(log_p, log_q, limit=limit)


def test_k3_saturates_without_losing_its_gradient():
    t, limit = np.array([-3.0, 0.0, 1.999, 2.001, 5.0, 1e4, -1e4]), 2.0  # log q/p
    (value, slope), (through, k2_slope), above = of_k3(-t, 0 * t, limit)
    edge, growth = np.expm1(limit), np.expm1(np.minimum(t, 9))
    expected = np.where(t > limit, edge - limit + edge * (t - limit), growth - t)
    np.testing.assert_allclose(value, expected)
    np.testing.assert_allclose(slope, -np.minimum(growth, edge))
    np.testing.assert_array_equal(above, t > limit)
    finite = t < 1e3
    np.testing.assert_allclose(through[finite], (growth - t)[finite])
    np.testing.assert_allclose(k2_slope, -t)
    # Continuous where the pieces meet.
    near = of_k3(-limit + np.array([-1e-9, 1e-9]), np.zeros(2), limit)[0]
    np.testing.assert_allclose(*near[0], rtol=1e-8)
    np.testing.assert_allclose(*near[1], rtol=1e-8)


def test_k3_of_far_log_ratios_in_low_precision():
    far = np.array([1e4, -1e4, np.inf, 0.0])
    for dtype in (np.float32, jnp.bfloat16):
        log_p = (-far).astype(dtype)
        with jax.enable_x64(False):
            (value, slope), (through, k2_slope), _ = of_k3(log_p, np.zeros(4, dtype), 10.0)
        of_p = -np.asarray(log_p, float)
        edge = np.expm1(10.0)
        expected = [edge - 10 + edge * (of_p[0] - 10), -of_p[1] - 1, np.inf, 0]
        np.testing.assert_allclose(value, expected, rtol=2e-7)
        np.testing.assert_allclose(np.asarray(slope, float), [-edge, 1, 0, 0], rtol=4e-3)
        np.testing.assert_allclose(np.asarray(through)[1:], expected[1:], rtol=2e-7)
        np.testing.assert_array_equal(np.asarray(k2_slope, float), [-of_p[0], -of_p[1], 0, 0])


def test_without_gradient():
    far = jnp.array([3.0, -2.0])
    value, pull = jax.vjp(without_gradient, far, far / 2)
    np.testing.assert_array_equal(value, far / 2)
    assert not np.any(pull(jnp.ones(2)))


def test_a_clamped_weight_has_no_derivative():
    log_ratio = jnp.log(jnp.array([0.5, 1.9, 2.1, 50.0]))

    def weight(x, held):
        f = functools.partial(clamped_log_ratio, ceiling=2.0)
        f = functools.partial(held_log_ratio, log_weight=f) if held else f
        return jnp.exp(f(x))

    for held in (False, True):
        value, pull = jax.vjp(functools.partial(weight, held=held), log_ratio)
        np.testing.assert_allclose(value, [0.5, 1.9, 2, 2])
        expected = [0.0] * 4 if held else [0.5, 1.9, 0, 0]
        np.testing.assert_allclose(pull(jnp.ones(4))[0], expected)


def test_refusals():
    ones, mask = jnp.ones((2, 3)), jnp.full((2, 3), True)
    refused(TypeError, ("mask", "boolean"), lambda: kl_penalty(ones, ones, ones))
    refused(
        ValueError, ("rewards", "(2, 3)"),
        lambda: kl_rewards(ones, ones, ones[:1], mask, coefficient=1.0),
    )  # fmt: skip
    for f in (linear_k3, saturated):
        for limit in (0.0, -1.0, 1000.0, np.nan):
            refused(ValueError, ("limit",), lambda f=f, x=limit: f(ones, ones, limit=x))
    refused(ValueError, ("ceiling",), lambda: clamped_log_ratio(ones, ceiling=0.0))
    for f in (straight_through, without_gradient):
        refused(TypeError, ("estimator",), lambda f=f: f(ones, ones, estimator="k1"))
