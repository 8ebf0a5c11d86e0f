"""HARD: the largest of the divergences, and the gradient of that one alone."""

import jax
import jax.numpy as jnp
import numpy as np

from jdiv.distillation import augment
from tests.checks import domains

RNG = np.random.default_rng(0)
INF = np.inf
STUDENT, TEACHER = 2 * RNG.normal(size=(2, 3, 6, 4))


def softmax(logits):
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


@jax.jit
def measured(student, teacher, where):
    loss = lambda s, t: jnp.sum(augment.hard(s, t, where=where))
    return augment.hard(student, teacher, where=where), *jax.grad(loss, (0, 1))(student, teacher)


ALL = np.full((3, 6, 4), True)


def test_it_is_the_largest_divergence_and_its_gradient():
    p, q = softmax(STUDENT), softmax(TEACHER)
    kl = np.sum(q * np.log(q / p), axis=-1)
    value, gradient, of_teacher = measured(STUDENT, TEACHER, ALL)
    np.testing.assert_allclose(value, kl.max(0), rtol=1e-12)
    chosen = kl == kl.max(0)
    np.testing.assert_allclose(gradient, np.where(chosen[..., None], p - q, 0), atol=1e-14)
    np.testing.assert_array_equal(of_teacher, 0)


# [augmentation, row]: equal, a zero of the student, of the teacher, tails, masked rows, far.
EDGES = np.array(
    [[([0, 1, -INF, 2], [0, 1, -INF, 2]), ([0, -INF, 1, 3], [0, 2, 2, 1]),
      ([0, 1, 2, 3], [-INF, 0, -INF, 1]), ([0, -120, -121, -INF], [0, -125, -110, -INF]),
      ([np.nan] * 4, [np.nan] * 4), ([30, -20, 0, 1], [1, 2, 40, 4])],
     [([0, 1, -INF, 2], [0, 1, -INF, 2]), ([0, 2, 1, 3], [0, 2, 2, 1]),
      ([0, 1, 2, 3], [0, 0, -INF, 1]), ([0, -110, -121, -INF], [0, -110, -121, -INF]),
      ([np.nan] * 4, [np.nan] * 4), ([1, 2, 0, 1], [1, 2, 4, 4])]]
).transpose(2, 0, 1, 3)  # fmt: skip
WHERE = ~np.isnan(EDGES[0])


def test_edges():
    exact = measured(*EDGES, WHERE)
    single = EDGES.astype(np.float32)
    found = measured(*single, WHERE)
    for a, b in zip(exact, found, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-37)
    value, gradient, _ = found
    assert np.array_equal(value == INF, [False, True, False, False, False, False])
    assert value[0] == value[4] == 0
    assert np.all(gradient[:, 4] == 0)
    assert np.all(np.isfinite(gradient))
    # Of the tails: e^-110 (log e^11 - 1) and so on, more than the 0 of the other.
    q = np.exp([-125.0, -110.0])
    log_ratio = np.array([-5.0, 11.0])
    np.testing.assert_allclose(exact[0][3], np.sum(q * (log_ratio - 1 + np.exp(-log_ratio))),
                               rtol=1e-9)  # fmt: skip
    sharp = measured(*(single / np.float32(0.05)), WHERE)
    assert not np.any(np.isnan(sharp[0]))
    assert np.all(np.isfinite(sharp[1]))
    half = measured(*(x.astype(jnp.bfloat16) for x in single), WHERE)
    assert half[0].dtype == jnp.float32
    assert np.all(np.isfinite(half[1].astype(np.float32)))


def test_wrong_arguments_are_refused():
    pair = {"student_logits": STUDENT, "teacher_logits": TEACHER}
    domains((augment.hard, pair, {"student_logits": [np.zeros(4), STUDENT[:2]]}))
