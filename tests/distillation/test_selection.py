"""MiniPLM's difference and DSIR: counts by a loop, drawing without replacement by enumeration."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np

from jdiv.distillation import selection
from tests.checks import domains, refused

RNG = np.random.default_rng(0)
INF = np.inf


def test_the_difference_is_one_of_logarithms_and_the_larger_half_is_kept():
    teacher, small = np.log([[0.5, 0.9], [0.4, 0.3]]), np.log([[0.25, 0.8]] * 2)
    teacher[1, 0] = small[1, 0] = -INF
    scores = selection.difference(teacher, small)
    np.testing.assert_allclose(scores, [[np.log(2), np.log(0.9 / 0.8)], [0, np.log(0.3 / 0.8)]])
    assert np.argmax(scores[0]) == 0
    # The quotient of logarithms, as printed elsewhere, prefers the other instance here.
    teacher, small = np.log([0.5, 0.2]), np.log([0.25, 0.15])
    assert np.argmax(selection.difference(teacher, small)) == 0
    assert np.argmax(teacher / small) == 1
    scores = RNG.normal(size=21)
    for share in (0.5, 0.1, 1.0):
        kept = selection.largest(scores, share=share)
        expected = np.argsort(-scores)[: int(21 * share)]
        np.testing.assert_array_equal(np.sort(expected), np.nonzero(kept)[0])
    scores[3] = np.nan
    assert not selection.largest(scores, share=1.0)[3]
    assert selection.largest(jnp.asarray(scores, jnp.bfloat16)).sum() >= 10


def mixed(x):
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        x = (x ^ (x >> shift)) * factor % 2**32
    return x ^ (x >> 16)


def test_counts_are_those_of_a_loop():
    tokens = RNG.integers(0, 9, (3, 2, 7))
    mask = np.arange(7) < RNG.integers(0, 8, (3, 2, 1))
    counts = jax.jit(selection.hashed_counts, static_argnums=2)(tokens, mask, 11)
    expected = np.zeros((3, 2, 11))
    for at in np.ndindex(3, 2):
        words = [mixed(int(token) + 1) for token in tokens[at][mask[at]]]
        for word in words:
            expected[(*at, word % 11)] += 1
        for first, second in itertools.pairwise(words):
            expected[(*at, mixed((first * 31 + second) % 2**32) % 11)] += 1
    np.testing.assert_array_equal(counts, expected)
    # Order matters to pairs, and many words fill many buckets.
    reverse = selection.hashed_counts(np.array([[1, 2], [2, 1]]), np.ones((2, 2), bool), 10_000)
    assert np.any(reverse[0] != reverse[1])
    words = selection.hashed_counts(np.arange(4000)[:, None], np.ones((4000, 1), bool), 64)
    assert abs(words.sum(0) - 62.5).max() < 4.5 * np.sqrt(62.5)


def test_weights_are_ratios_of_products():
    counts = np.array([[2.0, 0, 1], [0, 0, 3], [0, 1, 0]])
    target, raw = np.array([0.5, 0.0, 0.5]), np.array([0.25, 0.5, 0.25])
    log_target = np.log(np.where(target > 0, target, 1)) + np.where(target > 0, 0, -INF)
    weights = selection.log_importance(counts, log_target, np.log(raw))
    np.testing.assert_allclose(weights, [3 * np.log(2), 3 * np.log(2), -INF])
    law = selection.bucket_law(counts)
    np.testing.assert_allclose(np.exp(law), counts.sum(0) / counts.sum())
    smooth = selection.bucket_law(counts * 0, smoothing=1.0)
    np.testing.assert_allclose(np.exp(smooth), 1 / 3)
    expected = np.sum(target[::2] * np.log(target[::2] / raw[::2]))
    np.testing.assert_allclose(
        selection.kl_reduction(log_target, np.log(raw), log_target), expected
    )
    reduction = selection.kl_reduction(np.array([0.0, -INF, -INF]), np.log(raw), log_target)
    assert reduction == -INF


def test_drawing_is_without_replacement_in_proportion_to_weights():
    p = np.array([0.5, 0.3, 0.2])
    keys = jax.random.split(jax.random.key(0), 20_000)
    log_weights = np.append(np.log(p) + 7, -INF)
    draw = jax.jit(jax.vmap(lambda key: selection.resample(log_weights, 2, key)))
    pairs = np.asarray(draw(keys))
    for first, second in itertools.permutations(range(3), 2):
        exact = p[first] * p[second] / (1 - p[first])
        share = np.mean((pairs[:, 0] == first) & (pairs[:, 1] == second))
        assert abs(share - exact) < 4 * np.sqrt(exact / len(keys))
    assert pairs.max() == 2


def test_wrong_arguments_are_refused():
    scores, tokens = np.arange(4.0), np.zeros((2, 3), int)
    domains(
        (selection.difference, {"teacher_log_probs": scores, "ref_log_probs": scores},
         {"ref_log_probs": [np.zeros(3)]}),
        (selection.hashed_counts, {"tokens": tokens, "mask": np.ones((2, 3), bool), "buckets": 5},
         {"buckets": [0], "mask": [np.ones(3, bool)], "tokens": [np.zeros((2, 2), int)]}),
        (selection.bucket_law, {"counts": np.ones((2, 3))}, {"smoothing": [-1.0]}),
    )  # fmt: skip
    for k in (0, 5):
        call = functools.partial(selection.resample, scores, k, jax.random.key(0))
        refused(ValueError, ["k"], call)
    refused(ValueError, ["share"], lambda: selection.largest(scores, share=1.5))
