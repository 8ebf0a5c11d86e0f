"""Steps within a bound: KL written out, a bisection, and finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdiv.decoding import steering


def moved(logits, direction, strength):
    """The steered law and both KLs, in NumPy."""
    laws = []
    for x in (logits + strength[:, None] * direction, logits):
        e = np.exp(x - x.max(axis=1, keepdims=True))
        laws.append(e / e.sum(axis=1, keepdims=True))
    p, q = laws
    return p, np.sum(p * np.log(p / q), axis=1), np.sum(q * np.log(q / p), axis=1)


@pytest.fixture
def rows():
    rng = np.random.default_rng(0)
    logits, direction = 1.5 * rng.normal(size=(2, 40, 6))
    return logits, direction, np.exp(rng.uniform(-12, -1, 40))


@jax.jit
def strengths(logits, direction, budget):
    options = {"budget": budget}
    return (
        steering.safe_strength(logits, direction, **options),
        steering.quadratic_strength(logits, direction, **options),
        steering.exact_strength(logits, direction, **options),
    )


def test_the_closed_form_keeps_both_divergences_below_the_budget(rows):
    safe, quadratic, exact = strengths(*rows)
    _, kl, other = moved(*rows[:2], np.asarray(safe))
    assert (kl <= rows[2]).all()
    assert (other <= rows[2]).all()
    assert (np.asarray(exact.strength) >= safe).all()
    _, unsafe, _ = moved(*rows[:2], np.asarray(quadratic))
    assert (unsafe > rows[2]).any()
    np.testing.assert_allclose(quadratic / exact.strength, 1, atol=0.9)


def test_it_is_tight_where_half_of_the_mass_is_at_either_end():
    x = jnp.zeros((1, 2)), jnp.array([[3.0, -1.0]]), jnp.array([1e-8])
    safe, quadratic, exact = strengths(*x)
    np.testing.assert_allclose([safe[0], quadratic[0]], exact.strength[0], rtol=1e-8)


def test_the_exact_strength_is_the_root(rows):
    logits, direction, budget = rows
    exact = strengths(*rows)[2]
    low, high = np.zeros(40), np.full(40, 60.0)
    mass = moved(logits, direction, low)[0][np.arange(40), direction.argmax(axis=1)]
    reach = -np.log(mass) > budget
    for _ in range(100):
        middle = (low + high) / 2
        below = moved(logits, direction, middle)[1] < budget
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    np.testing.assert_allclose(exact.strength[reach], low[reach], rtol=1e-5)
    np.testing.assert_allclose(exact.kl[reach], budget[reach], rtol=1e-12)
    assert (np.asarray(exact.converged) == reach).all()
    law = jax.jit(lambda z, d, s: jnp.exp(steering.steered(z, d, strength=s)))
    p = law(logits, direction, exact.strength)[reach]
    np.testing.assert_allclose(p, jnp.exp(exact.log_policy)[reach], atol=1e-12)
    np.testing.assert_allclose(p, moved(logits, direction, low)[0][reach], atol=1e-5)


def test_gradients_are_finite_differences(rows):
    logits, direction, budget = (jnp.asarray(x[:3]) for x in rows)

    @jax.jit
    def along(step):
        f = lambda z, d, b: steering.exact_strength(z, d, budget=b).strength
        push = jnp.cos(logits), jnp.sin(direction), budget / 3
        at = [x + step * y for x, y in zip((logits, direction, budget), push, strict=True)]
        return jax.jvp(f, tuple(at), push)

    high, low, (_, slope) = along(1e-5)[0], along(-1e-5)[0], along(0.0)
    np.testing.assert_allclose((high - low) / 2e-5, slope, rtol=1e-6)


def test_edges():
    """Excluded tokens, one token, no direction, a budget out of reach, half precision."""
    inf = np.inf
    logits = np.array([[0.0, -inf, 1.0], [0.0, -inf, -inf], [0.0, 1.0, 2.0], [0.0, 0.0, -inf]])
    direction = np.array([[1.0, 9.0, 0.0], [1.0, 2.0, 3.0], [2.0, 2.0, 2.0], [0.0, 1.0, inf]])
    budget = np.array([0.1, 0.1, 0.1, 5.0])
    for dtype, out in ((np.float64, jnp.float64), (jnp.bfloat16, jnp.float32)):
        safe, quadratic, exact = strengths(
            jnp.asarray(logits, dtype), jnp.asarray(direction, dtype), jnp.asarray(budget, out)
        )
        assert exact.strength.dtype == out
        assert np.isfinite([safe[0], quadratic[0], exact.strength[0]]).all()
        assert np.isinf(np.stack([safe, quadratic, exact.strength])[:, 1:3]).all()
        assert exact.converged.tolist() == [True, False, False, False]
        p = np.exp(np.asarray(exact.log_policy, float))
        assert p[0, 1] == 0
        np.testing.assert_allclose(p[1:], [[1, 0, 0], np.exp([0, 1, 2]) / np.exp([0, 1, 2]).sum(),
                                           [0, 1, 0]], atol=1e-6)  # fmt: skip
        np.testing.assert_allclose(exact.kl[1:], [0, 0, np.log(2)], atol=1e-6)
    _, _, nothing = strengths(jnp.full((1, 2), -inf), jnp.ones((1, 2)), jnp.ones(1))
    assert np.isnan(nothing.log_policy).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: steering.safe_strength(x, x, budget=-1.0), "budget must be finite and not neg"),
        (lambda x: steering.exact_strength(x, x, budget=0.0), "budget must be positive"),
        (lambda x: steering.steered(x, x, strength=np.inf), "strength must be finite"),
        (lambda x: steering.steered(x, x[:1], strength=1.0), "must have the same shape"),
        (lambda x: steering.steered(x - np.inf, x, strength=1.0), "a category above -inf"),
    ],
)
def test_wrong_use_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(np.zeros(2))
