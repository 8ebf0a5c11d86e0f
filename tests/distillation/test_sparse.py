"""Teachers of k tokens or of another vocabulary: sums by hand, least values, bounds, edges."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jdiv import generators
from jdiv.distillation import sparse, token
from jdiv.divergences.sparse import TopK, top_k
from tests.checks import refused

RNG = np.random.default_rng(5)
N, K = 6, 3
INF, NAN = np.inf, np.nan

EDGES = {  # student, teacher, temperatures, mask, where
    "plain": ([1.5, -0.5, 0.25, 2.0, -1.0, 0.0], [0.5, 1.0, -2.0, 1.5, 0.0, -0.25]),
    "equal": ([1.0, 0.5, -2.0, 1.5, 0.0, -0.25],) * 2,
    "cold": ([1.5, -0.5, 0.25, 2.0, -1.0, 0.0], [0.5, 1.0, -2.0, 1.5, 0.0, -0.25], 0.05, 0.05),
    "student zero": ([1.5, -INF, 0.25, 2.0, -1.0, 0.0], [0.5, 1.0, -2.0, 1.5, 0.0, 0.25]),
    "teacher zero": ([0.5, 1.0, -2.0, 1.5, 0.0, 0.5], [1.5, -INF, 0.25, 2.0, -1.0, 0.0]),
    "sure teacher": ([0.5, 1.0, -2.0, 1.5, 0.0, 0.5], [-INF, -INF, 0.0, -INF, -INF, -INF]),
    "disjoint": ([-INF, -INF, -INF, 1.5, 0.0, 0.5], [0.0, 1.0, 0.5, -INF, -INF, -INF]),
    "tails": ([0.0, -112, -110, -120, -108, -130], [0.0, -110, -120, -112, -125, -106]),
    "masked": ([NAN] * 6, [NAN, INF, 0.0, 0.0, 0.0, 0.0], 1.0, 1.0, False),
    "nothing left": ([1.0] * 6, [0.0] * 6, 1.0, 1.0, True, [False] * 6),
}
ROWS = {"reverse_kl": {}, "kl": {}, "jensen_shannon": {"weight": 0.3}}


def columns():
    """The cases as arrays: student, teacher, temperatures, mask, where."""
    defaults = None, None, 1.0, 1.0, True, [True] * N
    rows = [[*case, *defaults[len(case) :]] for case in EDGES.values()]
    return [np.array(column) for column in zip(*rows, strict=True)]


def log_softmax(x):
    return x - x.max() - np.log(np.exp(x - x.max()).sum()) if x.max() > -INF else x


def kl_terms(log_p, log_q):
    """`p log p/q` with 0 times anything 0."""
    with np.errstate(invalid="ignore"):
        return np.where(log_p == -INF, 0, np.exp(log_p) * (log_p - log_q))


def of_row(name, s, t, total=np.sum):
    """The row's sum of terms, S being p."""
    if name == "kl":
        return total(kl_terms(s, t))
    if name == "reverse_kl":
        return total(kl_terms(t, s))
    m = np.logaddexp(np.log(0.3) + s, np.log(0.7) + t)
    return total(0.3 * kl_terms(s, m) + 0.7 * kl_terms(t, m))


def references(s, t, hot, cold):
    """By way and row what it is, in NumPy."""
    s, t = log_softmax(s / hot), log_softmax(t / cold)
    kept = np.argsort(-t, kind="stable")[:K]
    others = np.setdiff1d(np.arange(N), kept)
    with_rest = lambda x: np.append(x[kept], np.logaddexp.reduce(x[others]))
    # A student with nothing on the k tokens is elsewhere: on a category of its own.
    given = lambda x: log_softmax(np.append(x[kept], -INF if x[kept].max() > -INF else 0.0))
    found = {}
    for name in ROWS:
        found[f"with_tail {name}"] = of_row(name, with_rest(s), with_rest(t))
        found[f"truncated {name}"] = of_row(name, s[kept], t[kept])
        found[f"renormalized {name}"] = of_row(name, given(s), given(t))
    sizes = [np.sort(np.exp(x))[::-1] for x in (s, t)]
    found["uld"] = np.abs(sizes[0] - sizes[1]).sum()
    found["kl_top"] = found["renormalized reverse_kl"]
    found["kl_top with tail"] = found["with_tail reverse_kl"]
    return found


@jax.jit
def values_and_gradients(s, t, hot, cold, mask, where):
    """By way and row the values `[rows]` and the gradients by the student."""
    scaling = {"student_temperature": hot, "teacher_temperature": cold}
    teacher = top_k(token.sides(s, t, **scaling, mask=mask, where=where).teacher, K)
    both = {**scaling, "mask": mask, "where": where}
    alone = {"student_temperature": hot, "mask": mask, "where": where}
    losses = {
        "uld": lambda s: sparse.uld(s, t, **scaling, mask=mask & jnp.any(where, axis=-1)),
        "kl_top": lambda s: sparse.kl_top(s, t, k=K, **both),
        "kl_top with tail": lambda s: sparse.kl_top(s, t, k=K, tail=True, **both),
    }
    for name, parameters in ROWS.items():
        options = {"teacher": teacher, "generator": generators.get(name, **parameters), **alone}
        for way in (sparse.with_tail, sparse.renormalized, sparse.truncated):
            losses[f"{way.__name__} {name}"] = functools.partial(way, **options)
    found = {}
    for name, loss in losses.items():
        value, pull = jax.vjp(loss, s)
        found[name] = value, *pull(jnp.ones_like(value))
    return found


def test_values_and_gradients_are_those_of_the_plain_sums():
    """Also at the edges and in half precision; gradients are differences of the sums."""
    student, teacher, hot, cold, mask, where = columns()
    exact = values_and_gradients(*columns())
    half = [jnp.asarray(x, jnp.bfloat16) for x in (student, teacher)]
    rounded = values_and_gradients(*half, np.float32(hot), np.float32(cold), mask, where)
    rows = list(zip(student, teacher, hot, cold, strict=True))
    counted, plain = mask & where.any(-1), list(EDGES).index("plain")
    by_hand = [references(*row) if c else {} for row, c in zip(rows, counted, strict=True)]
    shifted = lambda h: references(student[plain] + h, *rows[plain][1:])
    steps = [(shifted(h), shifted(-h)) for h in 1e-5 * np.eye(N)]
    for name, (value, gradient) in exact.items():
        values = [found.get(name, 0.0) for found in by_hand]
        np.testing.assert_allclose(value, values, rtol=1e-11, atol=1e-14, err_msg=name)
        np.testing.assert_allclose(rounded[name][0], values, rtol=2e-5, atol=1e-6, err_msg=name)
        finite = np.isfinite(value)
        assert np.isfinite(gradient[finite]).all(), name
        assert not np.any(gradient[~counted]), name
        low = np.asarray(rounded[name][1], float)[finite]
        np.testing.assert_allclose(low, gradient[finite], rtol=0.02, atol=1e-5, err_msg=name)
        slopes = np.array([up[name] - down[name] for up, down in steps]) / 2e-5
        np.testing.assert_allclose(gradient[plain], slopes, rtol=1e-6, atol=1e-9, err_msg=name)


def test_least_values_of_what_is_no_divergence():
    """Truncated: M log M of forward KL, all mass on the k tokens, and -M/e of reverse KL, where all
    but M/e of the mass has left them; both students have the teacher's proportions there."""
    t = RNG.normal(size=N)
    teacher = top_k(jnp.asarray(t), K)
    kept, mass = np.asarray(teacher.indices), float(np.exp(teacher.log_probs).sum())

    def least(name, on_them):
        s = np.full(N, np.log((1 - on_them) / (N - K)) if on_them < 1 else -INF)
        s[kept] = np.asarray(teacher.log_probs) + np.log(on_them / mass)
        loss = functools.partial(sparse.truncated, teacher=teacher, generator=generators.get(name))
        return jax.jit(jax.value_and_grad(lambda s: loss(s)))(s)

    for name, on_them, value in (
        ("reverse_kl", 1.0, mass * np.log(mass)), ("kl", mass / np.e, -mass / np.e)
    ):  # fmt: skip
        found, gradient = least(name, on_them)
        np.testing.assert_allclose(found, value, rtol=1e-12)
        np.testing.assert_allclose(gradient, 0, atol=1e-14)


def test_another_vocabulary_is_compared_by_size_alone():
    s, t = RNG.normal(size=(4, 5)), RNG.normal(size=(4, 3))
    padded = np.concatenate([t, np.full((4, 2), -INF)], axis=-1)

    @jax.jit
    def both(s, t, padded):
        return sparse.uld(s, t), sparse.uld(s[:, ::-1], padded), sparse.uld(t, s)

    values = both(s, t, padded)
    for other in values[1:]:
        np.testing.assert_allclose(other, values[0], rtol=1e-14)
    assert not np.any(sparse.uld(s, s[:, ::-1]))


def test_a_masked_teacher_may_hold_anything():
    teacher = TopK(np.full((2, 2), NAN), np.full((2, 2), -100), np.full(2, NAN))
    mask = np.zeros(2, bool)
    for way in (sparse.with_tail, sparse.renormalized, sparse.truncated):
        loss = functools.partial(way, teacher=teacher, generator=generators.kl(), mask=mask)
        value, gradient = jax.value_and_grad(lambda s, loss=loss: loss(s).sum())(np.ones((2, 4)))
        assert value == 0
        assert not np.any(gradient)


def test_wrong_teachers_are_refused():
    s = np.zeros((2, 4))
    way = functools.partial(sparse.truncated, generator=generators.kl())
    refused(TypeError, ["teacher", "TopK"], lambda: way(s, s))
    refused(ValueError, ["k", "from 1 to 4"], lambda: sparse.kl_top(s, s, k=5))
    refused(ValueError, ["mask"], lambda: sparse.uld(s, s, mask=np.ones(3, bool)))
