"""Constraints: weights against the law, texts against enumeration, and all edges."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdiv.decoding import automata, constrained, smc
from tests.checks import refused

P = np.array([0.35, 0.25, 0.15, 0.1, 0.08, 0.05, 0.02])
ALLOWED = np.array([0, 0, 1, 0, 1, 0, 1], bool)
DRAWS = 100_000


def test_exclusion_renormalizes_to_a_rounding_and_has_finite_gradients():
    for dtype, size in ((np.float64, 7), (np.float32, 50_000)):
        rng = np.random.default_rng(0)
        logits = rng.normal(size=(2, size)).astype(dtype)
        where = rng.random((2, size)) < 0.5
        where[:, 0] = True
        p = np.exp(logits.astype(np.longdouble)) * where
        p /= p.sum(-1, keepdims=True)
        found = np.exp(constrained.exclude(logits, where))
        np.testing.assert_allclose(found, p.astype(dtype), rtol=40 * np.finfo(dtype).eps)
        assert np.all(found[~where] == 0)
    mean = lambda x: jnp.sum(jnp.where(where, constrained.exclude(x, where), 0))
    mass = lambda x: jnp.sum(constrained.log_mass(x, where))
    slopes = [np.asarray(jax.grad(f)(jnp.asarray(logits))) for f in (mean, mass)]
    assert np.isfinite(slopes).all()
    assert np.all(slopes[0][~where] == 0)
    half = constrained.exclude(jnp.asarray(logits, jnp.bfloat16), where)
    assert half.dtype == jnp.float32


def test_the_mass_keeps_its_digits_at_both_ends():
    small = np.log(np.array([1 - 1e-12, 1e-12]))
    both = constrained.log_mass(np.stack([small, small]), np.eye(2, dtype=bool))
    np.testing.assert_allclose(both, [np.log1p(-1e-12), np.log(1e-12)], rtol=1e-4)
    far = np.array([0.0, -1000.0])
    where = np.array([[1, 1], [0, 1], [0, 0]], bool)
    mass = constrained.log_mass(np.stack([far] * 3), where)
    assert mass.tolist() == [0, -1000, -np.inf]


@jax.jit
def drawn(logits, where, key):
    """Every sampler, the constraint a mask in the first of the two geometric ones."""
    test = lambda tokens: where[tokens]
    wide = jnp.broadcast_to(logits[None], (DRAWS, len(logits)))
    return [
        constrained.awrs_recursive(wide, test, key),
        constrained.awrs_geometric(wide, where, key),
        constrained.awrs_geometric(wide, test, key, accepts=4),
    ]


def test_weights_are_unbiased_and_tokens_have_the_law_of_exclusion():
    """The weight, alone and times each token's indicator, and calls: within four errors.

    The deviations .2256, .2315, .1328 and calls 3.54, 3.90, 5.21 are an independent program's.
    """
    z = P[ALLOWED].sum()
    found = drawn(np.log(P), ALLOWED, jax.random.key(1))
    expected = (0.2256, 3.54), (0.2315, 3.90), (0.1328, 5.21)
    for (tokens, log_weights, calls), (deviation, tests) in zip(found, expected, strict=True):
        w = np.exp(log_weights)[:, None] * (np.asarray(tokens)[:, None] == np.arange(7))
        error = 4 * w.std(0) / DRAWS**0.5
        assert np.all(np.abs(w.mean(0) - P * ALLOWED) <= error)
        assert abs(w.sum(1).mean() - z) < 4 * w.sum(1).std() / DRAWS**0.5
        assert abs(w.sum(1).std() - deviation) < 0.003
        assert abs(calls.mean() - tests) < 0.025
        share = (np.asarray(tokens)[:, None] == np.arange(7)).mean(0)
        np.testing.assert_allclose(share, P * ALLOWED / z, atol=4 * (0.25 / DRAWS) ** 0.5)
    exact = [float(constrained.expected_calls(np.log(P), ALLOWED, accepts=r)) for r in (1, 2, 4)]
    rejected = P[~ALLOWED]
    assert exact[0] == pytest.approx(1 + (rejected / (rejected + z)).sum(), abs=1e-12)
    for calls, mean in zip((x.calls for x in found), (exact[0] + 1, *exact[1:]), strict=True):
        assert abs(calls.mean() - mean) < 4 * calls.std() / DRAWS**0.5


def test_edges():
    """Nothing allowed, one token, zeros, NaN, all allowed: a program of rows."""
    zero, nan = -np.inf, np.nan
    logits = np.array([[0, 0, 0], [0, zero, zero], [0, 1, zero], [nan, 0, 0], [0, 0.5, 1]], float)
    where = np.array([[0, 0, 0], [1, 1, 1], [0, 0, 1], [1, 1, 0], [1, 1, 1]], bool)

    @jax.jit
    def program(logits, where, key):
        samplers = (
            constrained.locally_constrained,
            constrained.awrs_recursive,
            constrained.awrs_geometric,
            lambda logits, where, key: constrained.locally_constrained(
                logits, lambda x: where[jnp.arange(len(x)), x], key
            ),
        )
        laws = constrained.exclude(logits, where), constrained.expected_calls(logits, where)
        return [sampler(logits, where, key) for sampler in samplers], laws

    found, (law, calls) = program(logits, where, jax.random.key(0))
    for tokens, log_weights, _ in found:
        assert tokens[0] == tokens[2] == -1
        assert tokens[1] == 0
        assert log_weights[0] == log_weights[2] == -np.inf
        assert np.isnan(log_weights[3])
        np.testing.assert_allclose(log_weights[jnp.array([1, 4])], 0, atol=1e-15)
    assert [row.calls[1] for row in found] == [1, 1, 1, 1]
    assert np.isnan(law[np.array([0, 2, 3])]).all()
    assert np.isfinite(law[4]).all()
    np.testing.assert_allclose(np.asarray(calls)[[0, 1, 2, 4]], [3, 1, 2, 1])
    assert np.isnan(calls[3])
    one = jnp.zeros((2, 1), jnp.bfloat16)
    single = constrained.awrs_recursive(one, np.array([True]), jax.random.key(0))
    assert single.tokens.tolist() == [0, 0]
    assert single.log_weights.dtype == jnp.float32
    refused(ValueError, ["where"], lambda: constrained.exclude(logits[:1], where[0]))
    refused(ValueError, ["where", "(2,)"], lambda: constrained.log_mass(logits, np.ones(2, bool)))
    key = jax.random.key(0)
    refused(
        ValueError, ["accepts"], lambda: constrained.awrs_geometric(logits, where, key, accepts=1)
    )


# ------------------------------------------------------------------------------------------- texts

LAWS = np.array([[0.5, 0.3, 0.2], [0.1, 0.6, 0.3], [0.7, 0.0, 0.3]])
# Texts of a, b, c: after a `c` no `b`, and as many `b` as an even number.
SUCCESSORS = np.array([[0, 1, 2], [1, 0, 3], [2, -1, 2], [3, -1, 3]])
ACCEPTING = np.array([True, False, True, False])
AUTOMATON = automata.Automaton(SUCCESSORS, ACCEPTING)
HORIZON = 4


def accepted(text):
    text = "".join("abc"[x] for x in text)
    return text.count("b") % 2 == 0 and "b" not in text.partition("c")[2]


def enumerated(horizon=HORIZON):
    """All texts after an `a`, their probabilities, and whether they are accepted."""
    texts = list(itertools.product(range(3), repeat=horizon))
    p = [np.prod([LAWS[i, j] for i, j in itertools.pairwise((0, *text))]) for text in texts]
    return np.array(texts), np.array(p), np.array([accepted(text) for text in texts])


CHILDREN = np.tile(np.arange(3), (3, 1))
log_laws = np.log(np.where(LAWS > 0, LAWS, 1)) + np.where(LAWS > 0, 0, -np.inf)
tables = jax.jit(
    lambda logits: (
        automata.log_acceptance(logits, CHILDREN, AUTOMATON, horizon=HORIZON),
        automata.conditional(logits, CHILDREN, AUTOMATON, horizon=HORIZON),
        automata.reachable(AUTOMATON, horizon=HORIZON),
    )
)


def test_the_recursion_gives_the_exact_law_of_accepted_texts():
    texts, p, good = enumerated()
    total, law, ways = tables(log_laws)
    for horizon in range(1, HORIZON + 1):
        _, mass, fine = enumerated(horizon)
        assert np.exp(total[horizon, 0, 0]) == pytest.approx(mass[fine].sum(), rel=1e-12)
    made = []
    for text in texts:
        row, state, log_q = 0, 0, 0.0
        for left, token in zip(range(HORIZON, 0, -1), text, strict=True):
            log_q = log_q + law[left - 1, row, state, token]
            row, state = token, SUCCESSORS[state, token]
            if state < 0:
                break
        made.append(np.exp(log_q))
    np.testing.assert_allclose(made, np.where(good, p, 0) / p[good].sum(), rtol=1e-12, atol=0)
    assert not np.isnan(law).any()
    # `ab` more of length one: from the second state a text ends after a `b` alone.
    assert ways[1].tolist() == [True, True, True, False]
    lost = tables(np.array([[0.0, -np.inf, -np.inf]] * 3))  # a model that writes `a` alone
    assert np.all(lost[0][:, :, 1] == -np.inf)
    assert np.all(lost[1][:, :, 1] == -np.inf)


def test_gradients_of_the_recursion_are_finite_differences():
    value = jax.jit(
        lambda x: automata.log_acceptance(x, CHILDREN, AUTOMATON, horizon=HORIZON)[-1, 0, 0]
    )
    x = np.log(LAWS + 0.1)
    slope = np.asarray(jax.jit(jax.grad(value))(x))
    moved = [(value(x + h) - value(x - h)) / 2e-6 for h in 1e-6 * np.eye(9).reshape(9, 3, 3)]
    np.testing.assert_allclose(slope.ravel(), moved, atol=1e-8)
    assert np.isfinite(jax.jit(jax.grad(value))(log_laws)).all()


PARTICLES = 20_000


@functools.partial(jax.jit, static_argnames="sampler")
def run(logits, threshold, key, sampler):
    step = lambda memory, tokens: (memory, logits[tokens])
    start = jnp.zeros(PARTICLES, jnp.int32)
    return smc.smc(
        step, (), start, AUTOMATON, key, horizon=HORIZON, threshold=threshold, sampler=sampler
    )


@pytest.mark.parametrize("sampler", [constrained.locally_constrained, constrained.awrs_recursive])
def test_weighted_texts_converge_to_the_exact_law(sampler):
    texts, p, good = enumerated()
    exact = np.where(good, p, 0) / p[good].sum()
    for seed, threshold in enumerate((0.0, 1.0)):
        found = run(log_laws, threshold, jax.random.key(seed), sampler)
        w = np.exp(found.log_weights)
        assert w.mean() == pytest.approx(p[good].sum(), rel=0.03)
        match = (np.asarray(found.tokens)[:, None] == texts[None]).all(-1)
        assert match[w > 0][:, good].any(1).all()
        np.testing.assert_allclose(w @ match / w.sum(), exact, atol=0.02)
        assert np.all(found.sizes <= 1 + 1e-12)
        # Resampling at every step leaves equal weights; without it they differ.
        assert (np.unique(found.log_weights).size == 1) == (threshold == 1.0)


def test_particles_of_a_model_that_writes_nothing_accepted_weigh_nothing():
    logits = np.array([[-np.inf, 0.0, -np.inf]] * 3)  # `bbbb`: allowed
    assert np.exp(run(logits, 1.0, jax.random.key(0), constrained.awrs_recursive)[1]).mean() == 1
    logits = np.array([[-np.inf, 0.0, -np.inf], [-np.inf, -np.inf, 0.0], [0.0, -np.inf, -np.inf]])
    found = run(logits, 1.0, jax.random.key(0), constrained.awrs_recursive)
    assert np.all(found.log_weights == -np.inf)
    assert not np.isnan(found.sizes).any()


def test_lifting_reads_every_symbol():
    tokens = list(itertools.product(range(3), repeat=2))
    padded = np.array([*tokens, (0, -1), (2, -1), (-1, -1), (1, 5)])
    found = np.asarray(jax.jit(automata.lifted)(AUTOMATON, padded).successors)
    for state in range(4):
        for number, (first, second) in enumerate(tokens):
            after = SUCCESSORS[state, first]
            assert found[state, number] == (after if after < 0 else SUCCESSORS[after, second])
    assert np.array_equal(found[:, 9:11], SUCCESSORS[:, [0, 2]])
    assert np.all(found[:, 11:] == -1)
