"""Plackett and Luce's law: all permutations, cross-entropy, convexity, the plain sums, edges."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np

from jdiv.distillation import ranking
from tests.checks import refused

RNG = np.random.default_rng(11)
N = 6
INF, NAN = np.inf, np.nan

EDGES = {  # student, teacher, label, temperature of the teacher, mask, where
    "plain": ([1.5, -0.5, 0.25, 2.0, -1.0, 0.0], [0.5, 1.0, -2.0, 1.5, 0.0, -0.25], 2),
    "equal": ([1.0, 0.5, -2.0, 1.5, 0.0, -0.25],) * 2 + (1,),
    "cold": ([1.5, -0.5, 0.25, 2.0, -1.0, 0.0], [0.5, 1.0, -2.0, 1.5, 0.0, -0.25], 3, 0.05),
    "student zero": ([1.5, -INF, 0.25, 2.0, -1.0, 0.0], [0.5, 1.0, -2.0, 1.5, 0.0, 0.5], 3),
    "student zero last": ([1.5, 0.5, -INF, 2.0, -1.0, 0.0], [0.5, 1.0, -2.0, 1.5, 0.0, 0.25], 3),
    "teacher zero": ([0.5, 1.0, -2.0, 1.5, 0.0, 0.5], [1.5, -INF, 0.25, 2.0, -1.0, 0.0], 3),
    "sure teacher": ([0.5, 1.0, -2.0, 1.5, 0.0, 0.5], [-INF, -INF, 0.0, -INF, -INF, -INF], 2),
    "tails": ([0.0, -112, -110, -120, -108, -130], [0.0, -110, -120, -112, -125, -106], 0),
    "far": ([1000, -1000, 500, 0.0, -500, 100], [-1000, 1000, 0.0, 500, 100, -500], 1),
    "far, last": ([1000, -1000, 500, 0.0, -500, 100], [1000, -1000, 0.0, 500, 100, -500], 0),
    "masked": ([NAN] * 6, [NAN, INF, 0.0, 0.0, 0.0, 0.0], -100, 1.0, False),
    "nothing left": ([1.0] * 6, [0.0] * 6, 4, 1.0, True, [False] * 6),
    "three left": ([1.5, -0.5, 3.0, 2.0, -1.0, 0.0], [0.5, 1.0, 2.0, 1.5, 0.0, -0.25], 3, 1.0, True,
                   [True, False, False, True, False, True]),
}  # fmt: skip


def columns():
    """The cases as arrays: student, teacher, labels, temperature, mask, where."""
    defaults = None, None, None, 1.0, True, [True] * N
    rows = [[*case, *defaults[len(case) :]] for case in EDGES.values()]
    return [np.array(column) for column in zip(*rows, strict=True)]


def by_the_letter(s, t, y, temperature, where, weights):
    """`sum w_k (log sum_{l >= k} e^{x_l} - x_k)` of the categories that are left."""
    order = sorted(np.flatnonzero(where), key=lambda i: (i != y, -t[i], i))
    x, total = s[order], 0.0
    for k, w in enumerate(weights(t[order] / temperature)):
        left = np.logaddexp.reduce(x[k:])
        if w > 0 and left > -INF:
            total += w * (left - x[k])
    return total


def softmax(x):
    return np.exp(x - x.max()) / np.exp(x - x.max()).sum()


WEIGHTS = {
    "pld": softmax,
    "list_mle": lambda t: np.full(len(t), 1 / len(t)),
    "p_list_mle": lambda t: (2.0 ** np.arange(len(t))[::-1] - 1) / 2.0 ** len(t),
}


@jax.jit
def values_and_gradients(s, t, y, temperature, mask, where):
    """By name the values `[rows]` and the gradients by both sides."""
    options = {"mask": mask, "where": where}
    losses = {
        "pld": lambda s, t: ranking.pld(s, t, y, teacher_temperature=temperature, **options),
        "list_mle": lambda s, t: ranking.list_mle(s, t, y, **options),
        "p_list_mle": lambda s, t: ranking.p_list_mle(s, t, y, **options),
    }
    found = {}
    for name, loss in losses.items():
        value, pull = jax.vjp(loss, s, t)
        found[name] = value, *pull(jnp.ones_like(value))
    return found


def test_values_and_gradients_are_those_of_the_plain_sums():
    """Also at the edges, in half precision; gradients are differences, and sum to 0."""
    student, teacher, labels, temperature, mask, where = columns()
    exact = values_and_gradients(*columns())
    half = [jnp.asarray(x, jnp.bfloat16) for x in (student, teacher)]
    rounded = values_and_gradients(*half, labels, np.float32(temperature), mask, where)
    counted, names = mask & where.any(-1), list(EDGES)
    for name, weights in WEIGHTS.items():
        value, by_s, by_t = exact[name]

        def plain(i, s, weights=weights):
            given = teacher[i], labels[i], temperature[i], where[i], weights
            return by_the_letter(s, *given) if counted[i] else 0.0

        by_hand = [plain(i, s) for i, s in enumerate(student)]
        np.testing.assert_allclose(value, by_hand, rtol=1e-12, atol=1e-60, err_msg=name)
        np.testing.assert_allclose(rounded[name][0], by_hand, rtol=2e-6, atol=1e-30, err_msg=name)
        finite = np.isfinite(value)
        assert np.isfinite(by_s[finite]).all(), name
        assert not np.any(by_t[finite]), name
        assert not np.any(by_s[~counted]), name
        np.testing.assert_allclose(by_s[finite].sum(-1), 0, atol=1e-14, err_msg=name)
        np.testing.assert_allclose(
            np.asarray(rounded[name][1], float)[finite], by_s[finite], rtol=0.01, atol=1e-6
        )
        for i in (names.index(edge) for edge in ("plain", "cold", "teacher zero", "three left")):
            steps = 1e-5 * np.eye(N)
            slopes = [plain(i, student[i] + h) - plain(i, student[i] - h) for h in steps]
            np.testing.assert_allclose(by_s[i], np.array(slopes) / 2e-5, rtol=1e-6, atol=1e-9)
    infinite = names.index("student zero")
    assert all(value[infinite] == INF for value, *_ in exact.values())


def test_it_is_a_law_of_rankings_convex_in_the_logits():
    """The 720 rankings have the probability 1; (1, 0, ...) is cross-entropy; no curvature is below
    0, and adding a number to all logits changes nothing."""
    x = 2 * RNG.normal(size=N)
    rankings = np.array(list(itertools.permutations(range(N))))
    weights = RNG.random((8, N))

    @jax.jit
    def law(x):
        one = lambda r, w: ranking.plackett_luce(x, r, w)
        of_some = lambda x, r, w: ranking.plackett_luce(x, r, w)
        return {
            "all": jax.vmap(one, (0, None))(rankings, np.ones(N)),
            "first": jax.vmap(one, (0, None))(rankings[::120], np.eye(N)[0]),
            "some": jax.vmap(one)(rankings[::90], weights),
            "shifted": jax.vmap(of_some, (None, 0, 0))(x + 300, rankings[::90], weights),
            "curvature": jax.vmap(jax.hessian(of_some), (None, 0, 0))(x, rankings[::90], weights),
        }

    found = law(x)
    probabilities = np.exp(-found["all"])
    np.testing.assert_allclose(probabilities.sum(), 1, rtol=1e-13)
    np.testing.assert_allclose(found["first"], -np.log(softmax(x)), rtol=1e-12)
    np.testing.assert_allclose(found["shifted"], found["some"], rtol=1e-12)
    assert np.linalg.eigvalsh(found["curvature"]).min() > -1e-14
    assert math.isclose(probabilities[0], np.prod([softmax(x[k:])[0] for k in range(N)]))


def test_wrong_rankings_are_refused():
    x, first = np.zeros((2, 3)), np.array([[0, 1, 2]] * 2)
    for words, call in (
        (["ranking", "differ"], lambda: ranking.plackett_luce(x, first * 0, x)),
        (["ranking", "all"], lambda: ranking.plackett_luce(x, first[:, :2], x)),
        (["weights", "not negative"], lambda: ranking.plackett_luce(x, first, x - 1)),
        (["teacher_temperature"], lambda: ranking.pld(x, x, first[:, 0], teacher_temperature=0.0)),
    ):
        refused(ValueError, words, call)
    assert np.isnan(ranking.pld(x, x, np.array([-1, 3]))).all()
