"""Sparse decoders against a bisection in NumPy, all supports, and finite differences."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdiv.decoding import bregman

X = np.array([0.5, 0.3, 0.1, 0.06, 0.04])
PRIMAL = {
    0.5: (0.56494, 0.32954, 0.10552), 1.0: (0.55556, 0.33333, 0.11111),
    1.5: (0.54467, 0.33482, 0.12051), 2.0: (0.53333, 0.33333, 0.13333),
    3.0: (0.51531, 0.32487, 0.15982), 5.0: (0.50227, 0.31005, 0.18769),
    20.0: (0.5, 0.30001, 0.19999), 100.0: (0.5, 0.3, 0.2),
}  # fmt: skip
DUAL = {1.5: (0.54434, 0.33477, 0.12089), 2.0: (0.53333, 0.33333, 0.13333),
        3.0: (0.51697, 0.32685, 0.15618), 5.0: (0.50375, 0.31530, 0.18095)}  # fmt: skip


SUPPORTS = [support for support in itertools.product((False, True), repeat=6) if any(support)]


def phi(x, a):
    return x * np.log(x) if a == 1 else x**a / (a * (a - 1))


def slope(x, a):
    return np.log(x) + 1 if a == 1 else x ** (a - 1) / (a - 1)


def distance(p, q, a):
    """`D_phi(p, q)` over the last axis; phi(0) = 0, and q may be 0 for a > 1."""
    powers = lambda f, x: np.where(x > 0, f(np.where(x > 0, x, 1), a), 0)
    return np.sum(powers(phi, p) - powers(phi, q) - powers(slope, q) * (p - q), axis=-1)


def shared(x, kept, a, dual):
    """The laws on these tokens, `[..., n]` and a mask: by bisection in what every slope gains."""
    x = np.where(kept, x, 0.5)
    if not dual and a == 1:
        return np.where(kept, x, 0) / np.where(kept, x, 0).sum(axis=-1, keepdims=True)
    low = np.zeros((*kept.shape[:-1], 1))
    high = np.min(np.where(kept, -slope(x, a), np.inf), -1, keepdims=True) if a < 1 else low + 2

    def law(nu):
        if not dual:
            return np.maximum((a - 1) * (slope(x, a) + nu), 1e-99) ** (1 / (a - 1))
        low, high = x + 0 * nu, np.ones_like(x + nu)
        for _ in range(60):
            middle = (low + high) / 2
            below = middle ** (a - 2) * (middle - x) < nu
            low, high = np.where(below, middle, low), np.where(below, high, middle)
        return (low + high) / 2

    for _ in range(60):
        middle = (low + high) / 2
        below = np.where(kept, law(middle), 0).sum(axis=-1, keepdims=True) < 1
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return np.where(kept, law((low + high) / 2), 0)


def test_the_table_of_the_top_three_and_a_bisection():
    logits = jnp.log(X)
    by_alpha = lambda law: jax.jit(jax.vmap(lambda a: jnp.exp(law(logits, k=3, alpha=a))))
    primal = by_alpha(bregman.primal)(jnp.array(list(PRIMAL)))
    dual = by_alpha(bregman.dual)(jnp.array(list(DUAL)))
    for found, table, is_dual in ((primal, PRIMAL, False), (dual, DUAL, True)):
        np.testing.assert_allclose(found[:, :3], list(table.values()), rtol=0, atol=5.01e-6)
        assert (found[:, 3:] == 0).all()
        top = np.ones(3, bool)
        expected = [shared(X[:3], top, a, is_dual) for a in table if a <= 5]
        np.testing.assert_allclose(found[: len(expected), :3], expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("dual", [False, True])
def test_no_support_is_cheaper(dual):
    """Over all 63 supports and laws by bisection, the cheapest is the one that is found."""
    laws = np.repeat(np.random.default_rng(0).dirichlet(np.full(6, 0.7), 6), 2, axis=0)
    prices = np.tile([0.003, 0.05], 6)
    alphas = (1.5, 2.0, 3.0) if dual else (0.5, 1.0, 2.5)
    best, law = (
        (bregman.best_dual_k, bregman.dual) if dual else (bregman.best_primal_k, bregman.primal)
    )

    @jax.jit
    def program(alpha):
        alpha = jnp.full(len(laws), alpha)
        k = best(jnp.log(laws), price=prices, alpha=alpha)
        return k, jnp.exp(law(jnp.log(laws), k=k, alpha=alpha))

    sizes = np.array([sum(support) for support in SUPPORTS])[:, None]
    kept = np.broadcast_to(np.array(SUPPORTS)[:, None], (63, *laws.shape))
    for alpha in alphas:
        k, found = (np.asarray(x) for x in program(alpha))
        own = shared(laws[None], kept, alpha, dual)
        sides = (laws[None], own) if dual else (own, laws[None])
        cheapest = np.argmin(distance(*sides, alpha) + prices * sizes, axis=0)
        np.testing.assert_array_equal(found > 0, np.array(SUPPORTS)[cheapest])
        np.testing.assert_array_equal(k, sizes[cheapest, 0])
        np.testing.assert_allclose(found, own[cheapest, np.arange(12)], rtol=0, atol=1e-12)


def test_the_best_k_of_kl():
    prices = jnp.array([0.01, 0.05, 0.1, 0.3, 0.6])
    logits = jnp.broadcast_to(jnp.log(X), (5, 5))
    best = jax.jit(lambda prices: bregman.best_primal_k(logits, price=prices))
    found = best(prices)
    assert found.tolist() == [5, 4, 3, 2, 1]


def test_binary_search_is_the_exhaustive_one():
    rng = np.random.default_rng(1)
    x = rng.dirichlet(np.full(1000, 0.05), 50).clip(1e-300)
    price = np.exp(rng.uniform(-9, -1, 50))
    mass = np.cumsum(-np.sort(-x, axis=1), axis=1)
    exhaustive = 1 + np.argmin(-np.log(mass) + price[:, None] * np.arange(1, 1001), axis=1)
    best = jax.jit(lambda logits, price: bregman.best_primal_k(logits, price=price))
    found = best(np.log(x), price)
    np.testing.assert_array_equal(found, exhaustive)


@pytest.mark.parametrize(("law", "alpha"), [("primal", 0.6), ("primal", 3.0), ("dual", 1.4)])
def test_gradients_are_finite_differences(law, alpha):
    weights = np.array([1.0, -2.0, 0.5, 3.0, 1.0])

    @jax.jit
    def along(step):
        def value(logits, alpha):
            p = jnp.exp(getattr(bregman, law)(logits, k=3, alpha=alpha))
            return p @ weights

        at = jnp.log(X) + step * jnp.array([0.3, -0.5, 0.2, 0.7, -0.1]), alpha + step * 0.2
        return jax.jvp(value, at, (jnp.array([0.3, -0.5, 0.2, 0.7, -0.1]), 0.2))

    high, low = along(1e-5)[0], along(-1e-5)[0]
    np.testing.assert_allclose((high - low) / 2e-5, along(0.0)[1], rtol=1e-7)


def test_alpha_one_is_a_limit_with_a_derivative():
    logits = jnp.log(X)
    law = jax.jit(lambda a: bregman.primal(logits, k=3, alpha=a))
    plain = np.log(X[:3] / X[:3].sum())
    np.testing.assert_allclose(law(1.0)[:3], plain, atol=1e-14)
    slope = jax.jit(jax.jacfwd(law))(1.0)[:3]
    np.testing.assert_allclose(slope, (law(1 + 1e-4) - law(1 - 1e-4))[:3] / 2e-4, atol=1e-7)


def test_edges_of_both_decoders():
    """Zeros, one token, equal tokens, more k than tokens, tiny probabilities, half precision."""
    inf = np.inf
    logits = np.array([
        [0.0, -inf, -inf, -inf], [0.0, 0.0, 0.0, 0.0], [-inf, 1.0, 0.0, -inf],
        [0.0, -90.0, -1e4, -inf], [2.0, -inf, 2.0, -800.0],
    ])  # fmt: skip
    ks = np.array([2, 2, 9, 2, 3])

    @jax.jit
    def both(logits):
        alpha = jnp.full(5, 3.0)
        return bregman.primal(logits, k=ks, alpha=alpha), bregman.dual(logits, k=ks, alpha=alpha)

    for dtype, tolerance in ((np.float64, 1e-14), (jnp.bfloat16, 1e-5)):
        for law in both(jnp.asarray(logits, dtype)):
            p = np.exp(np.asarray(law, float))
            np.testing.assert_allclose(p.sum(axis=1), 1, atol=tolerance)
            assert p[0].tolist() == [1, 0, 0, 0]
            np.testing.assert_allclose(p[1], [0.5, 0.5, 0, 0], atol=tolerance)
            np.testing.assert_allclose(p[2], [0, np.e / (1 + np.e), 1 / (1 + np.e), 0], atol=1e-6)
            assert not p[[3, 3, 4], [2, 3, 1]].any()
    assert law.dtype == jnp.float32


def test_equal_tokens_are_kept_in_their_order_and_traced_nonsense_is_nan():
    law = jax.jit(lambda z, k, a: bregman.primal(z, k=k, alpha=a))
    flat = jnp.zeros(3)
    assert jnp.exp(law(flat, 2, 2.0)).tolist() == [0.5, 0.5, 0]
    for logits, k, alpha in ((flat, 0, 2.0), (flat, 2, -1.0), (flat - jnp.inf, 2, 2.0)):
        assert np.isnan(law(logits, k, alpha)).all()
    best = jax.jit(lambda z, price: bregman.best_primal_k(z, price=price))
    assert [best(*x).item() for x in ((flat, 0.0), (flat, -1.0), (flat - jnp.inf, 0.1))] == [
        3,
        0,
        0,
    ]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: bregman.primal(x, k=0), "k must be at least 1, got 0"),
        (lambda x: bregman.primal(x, k=2.0), "k must be an array of integers"),
        (lambda x: bregman.primal(x, k=2, alpha=0.0), "alpha must be positive"),
        (lambda x: bregman.dual(x, k=2, alpha=1.0), "alpha must be above 1"),
        (lambda x: bregman.primal(x - np.inf, k=2), "a category above -inf in every row"),
        (lambda x: bregman.best_primal_k(x, price=-1.0), "price must be finite and not negative"),
        (lambda x: bregman.eta(x, epsilon=2.0), "epsilon must be from 0 to 1"),
    ],
)
def test_wrong_use_is_refused(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call(np.zeros(3))


def test_eta_keeps_what_is_above_its_threshold():
    rng = np.random.default_rng(2)
    x = rng.dirichlet(np.full(40, 0.3), 20).clip(1e-300)
    law = jax.jit(lambda z, e: jnp.exp(bregman.eta(z, epsilon=e)))
    for epsilon in (0.0, 0.003, 0.05, 1.0):
        entropy = -np.sum(x * np.log(np.where(x > 0, x, 1)), axis=1, keepdims=True)
        least = np.minimum(epsilon, np.sqrt(epsilon) * np.exp(-entropy))
        keep = (x >= least) | (x == x.max(axis=1, keepdims=True))
        expected = np.where(keep, x, 0)
        expected /= expected.sum(axis=1, keepdims=True)
        np.testing.assert_allclose(law(np.log(x), epsilon), expected, atol=1e-15)
