import functools

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest
from scipy.special import log_softmax, xlogy

from jdiv.distillation import adaptive
from tests.checks import domains, refused

INF = np.inf
LOSSES = {
    "akl": adaptive.akl,
    "akl .9": functools.partial(adaptive.akl, share=0.9),
    "balanced": adaptive.balanced,
    "forward": functools.partial(adaptive.forward_then_reverse, phase=0.1),
    "reverse": functools.partial(adaptive.forward_then_reverse, phase=0.5),
}


# ---------------------------------------------------------------- a row at a time, with 50 digits

mp.mp.dps = 50


def probabilities(logits):
    """Softmax; minus infinity is a zero."""
    masses = [mp.e ** mp.mpf(x) if x > -INF else mp.mpf(0) for x in map(float, logits)]
    return np.array([x / mp.fsum(masses) for x in masses])


def entropy(p):
    return -mp.fsum(x * mp.log(x) for x in p if x > 0)


def kl(p, q):
    if np.any((p > 0) & (q == 0)):
        return mp.inf
    return mp.fsum(x * mp.log(x / y) for x, y in zip(p, q, strict=True) if x > 0)


def weights_of(loss, p, q):
    """Weights of forward and reverse KL, from their definition."""
    if loss in ("forward", "reverse"):
        return (1, 0) if loss == "forward" else (0, 1)
    if loss == "balanced":
        surer = mp.sign(entropy(q) - entropy(p))
        return mp.mpf(2 + surer) / 4, mp.mpf(2 - surer) / 4
    share, mass, gaps = {"akl": 0.5, "akl .9": 0.9}[loss], mp.mpf(0), [mp.mpf(0), mp.mpf(0)]
    for rank, i in enumerate(sorted(range(len(q)), key=lambda i: -q[i])):
        mass += q[i]
        gaps[int(rank > 0 and mass > share)] += abs(p[i] - q[i])
    return tuple(gap / sum(gaps) for gap in gaps) if sum(gaps) else (0.5, 0.5)


def expected(loss, student, teacher):
    """Value and gradient by the student's logits, weights held fixed."""
    p, q = probabilities(student), probabilities(teacher)
    forward, reverse = weights_of(loss, p, q)
    value = sum(w * d for w, d in ((forward, kl(q, p)), (reverse, kl(p, q))) if w)
    if not mp.isfinite(value):
        return INF, None
    gradient = forward * (p - q)
    if reverse:
        slopes = [mp.log(x / y) - kl(p, q) if x else 0 for x, y in zip(p, q, strict=True)]
        gradient = gradient + reverse * p * slopes
    return float(value), gradient.astype(float)


@functools.cache
def compiled():
    """Values, gradients by the student and by the teacher of every loss."""

    def one(loss, student, teacher, where):
        value, pull = jax.vjp(lambda p, q: loss(p, q, where=where), student, teacher)
        return value, *pull(jnp.ones_like(value))

    return jax.jit(lambda *args: {name: one(loss, *args) for name, loss in LOSSES.items()})


def found(student, teacher, where=True):
    where = jnp.broadcast_to(jnp.asarray(where), student.shape)
    return jax.tree.map(lambda x: np.asarray(x, np.float64), compiled()(student, teacher, where))


EDGES = {
    "usual": ([0.1, 0.9, -0.3, 0.2, -1], [0.5, -0.2, 0.3, 1.1, -0.4]),
    "temperature .05": ([2, 18, -6, 4, -20], [10, -4, 6, 22, -8]),
    "zero of both": ([0.1, -INF, -0.3, 0.2, -1], [0.5, -INF, 0.3, 1.1, -0.4]),
    "zero of the student": ([0.1, -INF, -0.3, 0.2, -1], [0.5, 0.2, 0.3, 1.1, -0.4]),
    "zero of the teacher": ([0.1, 0.4, -0.3, 0.2, -1], [0.5, -INF, 0.3, 1.1, -0.4]),
    "equal": ([0.1, -INF, -0.3, 0.2, -1], [0.1, -INF, -0.3, 0.2, -1]),
    "tails below e^-104": ([0, -1, -110, -130, -200], [0, -1.5, -125, -115, -210]),
    "nearly certain": ([60, 0, 0.5, -3, 1], [0.5, 50, 1.5, 0, 2]),
}


@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32, jnp.bfloat16])
def test_edges(dtype):
    student, teacher = (jnp.asarray(x, dtype) for x in zip(*EDGES.values(), strict=True))
    wide = [np.asarray(x, np.float64) for x in (student, teacher)]
    exact = 1e-12 if dtype == jnp.float64 else 2e-5
    for loss, (value, gradient, to_teacher) in found(student, teacher).items():
        for row, edge in enumerate(EDGES):
            right = expected(loss, wide[0][row], wide[1][row])
            np.testing.assert_allclose(value[row], right[0], exact, 1e-300, err_msg=(loss, edge))
            if np.isfinite(right[0]):
                tolerance = {"rtol": 2**-7 if dtype == jnp.bfloat16 else exact,
                             "atol": exact * np.abs(right[1]).max()}  # fmt: skip
                np.testing.assert_allclose(gradient[row], right[1], **tolerance)
        assert np.all(to_teacher == 0)
    infinite = found(student, teacher)
    where = list(EDGES).index
    assert infinite["forward"][0][where("zero of the student")] == INF
    assert np.isfinite(infinite["forward"][0][where("zero of the teacher")])
    assert infinite["akl"][0][where("zero of the teacher")] == INF
    assert infinite["akl"][0][where("equal")] == 0


def test_masked_categories_do_not_exist_and_a_row_without_any_costs_nothing():
    rng = np.random.default_rng(0)
    student, teacher = rng.normal(size=(2, 8, 5))
    where = np.broadcast_to([True, True, False, True, False], (8, 5)).copy()
    where[0] = False
    poisoned = [jnp.where(where, x, jnp.nan) for x in (student, teacher)]
    for loss, (value, gradient, _) in found(*poisoned, where).items():
        assert value[0] == 0, loss
        assert np.all(gradient[~where] == 0), loss
        right = [expected(loss, student[i, [0, 1, 3]], teacher[i, [0, 1, 3]]) for i in range(1, 8)]
        np.testing.assert_allclose(value[1:], [x[0] for x in right], 1e-12)
        np.testing.assert_allclose(gradient[1:][:, [0, 1, 3]], [x[1] for x in right], 1e-9, 1e-13)


def test_gradients_by_finite_differences_with_the_weights_held_fixed():
    rng = np.random.default_rng(1)
    student, teacher = 1.5 * rng.normal(size=(2, 5))
    h, steps = 1e-5, np.eye(5)
    batch = jnp.asarray(np.concatenate([student + h * steps, student - h * steps, student[None]]))
    values = found(batch, jnp.asarray(np.broadcast_to(teacher, batch.shape)))
    p, q = probabilities(student), probabilities(teacher)
    forward, reverse = values["forward"][0], values["reverse"][0]
    for loss, (_, gradient, _) in values.items():
        a, b = map(float, weights_of(loss, p, q))
        fixed = a * forward + b * reverse
        np.testing.assert_allclose(gradient[-1], (fixed[:5] - fixed[5:10]) / (2 * h), 1e-7, 1e-10)


def test_weights_sum_to_one_and_are_those_of_the_definition():
    rng = np.random.default_rng(2)
    student, teacher = 2 * rng.normal(size=(2, 40, 7))
    student[1, 2] = student[2, :3] = teacher[3, :2] = teacher[2, 0] = -INF
    share = rng.uniform(size=40)
    share[0] = 0.0
    head, tail = adaptive.head_and_tail(student, teacher, share=share)
    np.testing.assert_allclose(head + tail, 1, 1e-15)
    for i in range(40):
        p, q = (np.exp(log_softmax(x[i])) for x in (student, teacher))
        order = np.argsort(-q)
        gap, mass = np.abs(p - q)[order], np.cumsum(q[order])
        count = max(int((mass <= share[i]).sum()), 1)
        np.testing.assert_allclose(head[i], gap[:count].sum() / gap.sum(), 1e-12)


def test_passing_weights_against_enumeration():
    p = np.linspace(0.05, 0.95, 19)
    a, b = np.array([1.0, 2.0, 1.0]), np.array([1.0, 1.0, 3.0])
    grid = np.linspace(0, 1, 1201)
    weight = np.asarray(adaptive.paced(grid[:, None], a=a[None], b=b[None]))
    np.testing.assert_allclose(grid[weight.argmax(axis=0)], a / (a + b), atol=1e-3)
    assert np.all(weight[[0, -1]] == 0)
    baseline = np.stack([p, np.zeros(19), np.full(19, 0.3)])
    reward = np.array([0.0, 1.0])[:, None, None]
    law = np.stack([1 - p, p])[:, None]
    gradient = (reward - baseline) * (reward - p)
    mean = (law * gradient).sum(axis=0)
    variance = (law * (gradient - mean) ** 2).sum(axis=0)
    with np.errstate(divide="ignore"):
        ratio = mean**2 / variance
    here = np.asarray(adaptive.signal_to_noise(np.broadcast_to(p, (3, 19)), baseline))
    noisy = np.abs(1 - p - baseline) > 1e-9
    np.testing.assert_allclose(here[noisy], ratio[noisy], 1e-9)
    ends = adaptive.signal_to_noise(np.array([0.0, 1.0, 0.5]), np.array([1.0, 0.0, 0.5]))
    assert list(ends) == [0, 0, INF]


def by_loop(student, teacher):
    """LLKD's loss, sample by sample."""
    p, q = (np.exp(log_softmax(x, axis=-1)) for x in (student, teacher))
    label, confidence, entropy = q.argmax(1), q.max(1), -xlogy(p, p).sum(1)
    loss = np.zeros(len(p))
    for i in range(len(p)):
        same = label == label[i]
        if confidence[i] >= confidence[same].mean() and entropy[i] >= entropy[same].mean():
            with np.errstate(divide="ignore"):
                loss[i] = -confidence[i] * entropy[i] * np.log(p[i, label[i]])
    return loss


def test_llkd_selects_by_class():
    rng = np.random.default_rng(3)
    student, teacher = rng.normal(size=(2, 60, 4))
    student[0], student[1, 0], teacher[2, 3] = 0.0, -INF, -INF
    selected = adaptive.llkd_selection(student, teacher)
    right = by_loop(student, teacher)
    value_and_gradient = jax.jit(lambda s, t: jax.vjp(lambda s: adaptive.llkd(s, t), s)[0])
    np.testing.assert_allclose(value_and_gradient(student, teacher), right, 1e-12)
    np.testing.assert_array_equal(selected.keep, right > 0)
    assert 5 < selected.keep.sum() < 40
    gradient = np.asarray(jax.grad(lambda s: jnp.sum(adaptive.llkd(s, teacher)))(student))
    p = np.exp(log_softmax(student, axis=-1))
    one_hot = np.eye(4)[np.asarray(selected.labels)]
    factor = np.where(selected.keep, selected.weight, 0)[:, None]
    np.testing.assert_allclose(gradient, factor * (p - one_hot), 1e-12, 1e-15)


def test_llkd_at_its_edges():
    """Equal samples are all kept; a student without doubt is trained on nothing; bfloat16."""
    equal = np.broadcast_to([0.3, 0.1, -0.7], (7, 3)).astype(np.float32)
    assert adaptive.llkd_selection(equal, 3 * equal).keep.all()
    sure = np.array([[0.0, -INF], [0.0, -INF]])
    loss = adaptive.llkd(sure, np.array([[1.0, 2.0], [1.0, 2.0]]))
    assert list(loss) == [0, 0]
    half = adaptive.llkd(jnp.asarray(20 * equal, jnp.bfloat16), jnp.asarray(equal, jnp.bfloat16))
    assert half.dtype == jnp.float32
    assert np.all(np.isfinite(half) & (half > 0))


def test_refusals():
    x = np.zeros((2, 3))
    domains(
        (adaptive.akl, {"student_logits": x, "teacher_logits": x}, {"share": [-0.1, 1.1]}),
        (adaptive.balanced, {"student_logits": x, "teacher_logits": x}, {"share": [-0.1, 1.1]}),
        (adaptive.forward_then_reverse,
         {"student_logits": x, "teacher_logits": x, "phase": 0.5},
         {"share": [-0.1, 1.1], "phase": [-0.1, 1.1]}),
        (adaptive.paced, {"accuracy": 0.5}, {"accuracy": [-0.1, 1.1], "a": [-1.0], "b": [-1.0]}),
        (adaptive.signal_to_noise, {"accuracy": 0.5, "baseline": 0.2},
         {"accuracy": [-0.1, 1.1], "baseline": [INF]}),
    )  # fmt: skip
    refused(ValueError, ["batch"], lambda: adaptive.llkd_selection(x[0], x[0]))
