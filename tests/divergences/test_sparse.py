"""Divergences of which k categories are known: bounds, sums by hand, and what others get wrong."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdiv import divergences as dv
from jdiv import generators
from jdiv.divergences import sparse
from tests.checks import PARAMETERS, refused

N = 9


def pairs(count, seed=0):
    """Logits `[count, N]` of very different widths, zeros and equal pairs among them."""
    rng = np.random.default_rng(seed)
    p = rng.normal(size=(count, N)) * 10 ** rng.uniform(-3, 1.5, (count, 1))
    q = np.where(rng.random((count, 1)) < 0.5, p + rng.normal(size=(count, N)), p[:, ::-1])
    q[: count // 20] = p[: count // 20]
    p[rng.random((count, N)) < 0.05] = q[rng.random((count, N)) < 0.02] = -np.inf
    p[:, 0], q[:, 0] = 0, 0
    return p, q


@functools.cache
def of_every_row(k, teacher):
    """For each row the divergence with a tail and the full one, the teacher on either side."""

    @jax.jit
    def f(p, q):
        both = {}
        for name, parameters in PARAMETERS.items():
            row = generators.get(name, **parameters)
            sides = (sparse.top_k(p, k), q) if teacher == "p" else (p, sparse.top_k(q, k))
            both[name] = sparse.with_tail(row, *sides), dv.f_divergence(row, p, q)
        return both

    return f


@pytest.mark.parametrize(("k", "teacher"), [(3, "p"), (8, "q")])
def test_a_coarsening_is_never_negative_and_never_above_the_divergence(k, teacher):
    """Data processing, on 10,000 pairs for every row."""
    for name, (coarse, full) in of_every_row(k, teacher)(*pairs(10_000)).items():
        coarse, full = np.asarray(coarse), np.asarray(full)
        assert np.all(coarse >= 0), name
        rounding = 1e-15 if name == "total_variation" else 1e-25  # others are of second order
        assert not np.any(coarse > full * (1 + 1e-12) + rounding), name


def test_with_a_tail_it_is_the_divergence_of_the_sums():
    """Masses added up by hand; which side is known of only k, and gradients to the other."""
    rng = np.random.default_rng(1)
    p, q = rng.dirichlet(np.ones(6), 5), rng.dirichlet(np.ones(6), 5)
    order = np.argsort(-p, axis=-1)[:, :2]
    kept = lambda x: np.take_along_axis(x, order, axis=-1)
    masses = lambda x: np.concatenate([kept(x), 1 - kept(x).sum(-1, keepdims=True)], axis=-1)
    by_hand = np.sum(masses(p) * np.log(masses(p) / masses(q)), axis=-1)

    def total(q_logits):
        values = sparse.with_tail(generators.kl(), sparse.top_k(jnp.log(p), 2), q_logits)
        return values.sum(), values

    gradient, values = jax.jit(jax.grad(total, has_aux=True))(np.log(q))
    np.testing.assert_allclose(values, by_hand, rtol=1e-12)
    # d/dz of -sum m_p log m_q: each category gets its share of what its bucket has too much.
    ratio = np.repeat(1 - kept(p).sum(-1, keepdims=True), 6, -1) / (1 - kept(q).sum(-1))[:, None]
    np.put_along_axis(ratio, order, kept(p) / kept(q), axis=-1)
    np.testing.assert_allclose(gradient, q * (1 - ratio), atol=1e-12)


def test_what_others_do():
    """Renormalized it is blind to mass that leaves; truncated it is negative where mass comes."""
    p = np.array([0.5, 0.25, 0.125, 0.125])
    leaves, comes = np.array([0.02, 0.01, 0.5, 0.47]), np.array([0.6, 0.3, 0.05, 0.05])
    kl, of_swapped = generators.kl(), generators.reverse_kl()

    @jax.jit
    def measured(p, leaves, comes):
        top = sparse.top_k(p, 2)
        return {
            "renormalized": sparse.renormalized(kl, top, leaves),
            "with_tail": sparse.with_tail(kl, top, leaves),
            "retained": sparse.retained_mass(jnp.stack([p, leaves]), jnp.tile(top.indices, (2, 1))),
            "truncated": sparse.truncated(kl, top, comes),
            "truncated, KL again": sparse.truncated(of_swapped, comes, top),
            "truncated, equal": sparse.truncated(kl, top, p),
        }

    found = measured(*map(np.log, (p, leaves, comes)))
    assert abs(found["renormalized"]) < 1e-15
    assert found["with_tail"] > 1.5
    np.testing.assert_allclose(found["retained"], [0.75, 0.03])
    np.testing.assert_allclose(found["truncated"], 0.75 * np.log(0.5 / 0.6))
    np.testing.assert_allclose(found["truncated, KL again"], 0.75 * np.log(0.5 / 0.6))
    assert found["truncated, equal"] == 0


def test_what_a_server_sends():
    """The rest is what is missing from 1; nothing where the sum exceeds it by rounding."""
    p = np.array([[0.5, 0.25], [0.5, 0.5 + 1e-7]])
    top = sparse.from_log_probs(np.log(p), np.array([[7, 3], [0, 4]]))
    np.testing.assert_allclose(np.exp(top.log_rest), [0.25, 0], rtol=1e-12)


def test_all_categories_leave_no_rest():
    """k = n is the divergence itself, also from a student without zeros."""
    p, q = (x[:50, 1:4] for x in pairs(1000, seed=2))
    p = np.where(np.isinf(p), 0.0, p)
    q = np.where(np.isinf(q), 1.0, q)
    both = lambda p, q: (sparse.with_tail(generators.kl(), q, sparse.top_k(p, 3)), dv.kl(q, p))
    np.testing.assert_allclose(*jax.jit(both)(p, q), rtol=1e-12, atol=1e-30)


def test_traced_indices_that_are_no_categories_are_nan():
    logits = np.zeros((3, 4))
    result = jax.jit(sparse.coarsened)(logits, np.array([[0, 1], [0, 4], [-1, 1]]))
    np.testing.assert_array_equal(np.isnan(result), [[0, 0, 0], [0, 1, 0], [1, 0, 0]])


def test_wrong_use_is_refused():
    logits, row = np.zeros((2, 4)), generators.kl()
    top = sparse.top_k(logits, 2)
    refused(TypeError, ["TopK"], lambda: sparse.with_tail(row, top, top))
    refused(TypeError, ["TopK"], lambda: sparse.with_tail(row, logits, logits))
    refused(ValueError, ["k", "from 1 to 4"], lambda: sparse.top_k(logits, 5))
    refused(ValueError, ["differ"], lambda: sparse.coarsened(logits, [[0, 0], [0, 1]]))
    refused(ValueError, ["from 0 to 3"], lambda: sparse.coarsened(logits, [[0, 4], [0, 1]]))
    refused(ValueError, ["row"], lambda: sparse.coarsened(logits, [0, 1]))
    refused(ValueError, ["at most 1"], lambda: sparse.from_log_probs(np.zeros((1, 2)), [[0, 1]]))
    refused(TypeError, ["integers"], lambda: sparse.coarsened(logits, np.zeros((2, 1))))
