"""SinKD: its formula in NumPy, what it does not see, its gradient, and the debiased form."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize

from jdiv.distillation import transport
from tests.checks import domains

RNG = np.random.default_rng(0)
STUDENT, TEACHER = 2 * RNG.normal(size=(2, 6, 5))
INF = np.inf


def softmax(logits):
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def published(student, teacher, temperature=2.0, epsilon=0.1, iterations=20):
    """The released code's steps, of probabilities."""
    p, q = softmax(student / temperature), softmax(teacher / temperature)
    cost = np.abs(p[:, None] - q[None]).sum(-1)
    plan = np.exp(-cost / epsilon)
    for _ in range(iterations):
        plan = plan / plan.sum(1, keepdims=True)
        plan = plan / plan.sum(0, keepdims=True)
    return (plan * cost).sum()


def differences(f, x, step=1e-6):
    """The gradient by central differences."""
    gradient = np.zeros(x.shape)
    for at in np.ndindex(x.shape):
        change = np.zeros(x.shape)
        change[at] = step
        gradient[at] = (f(x + change) - f(x - change)) / (2 * step)
    return gradient


@functools.cache
def value_and_gradients(iterations=20):
    both = lambda s, t, epsilon: transport.sinkd(s, t, epsilon=epsilon, iterations=iterations).sum()
    return jax.jit(jax.value_and_grad(both, (0, 1)))


def test_it_is_the_released_formula_and_its_gradient():
    for iterations in (1, 20):
        value, (gradient, of_teacher) = value_and_gradients(iterations)(STUDENT, TEACHER, 0.1)
        formula = functools.partial(published, teacher=TEACHER, iterations=iterations)
        np.testing.assert_allclose(value, formula(STUDENT), rtol=1e-12)
        np.testing.assert_allclose(gradient, differences(formula, STUDENT), atol=2e-8)
        np.testing.assert_array_equal(of_teacher, 0)


def test_it_does_not_know_whose_row_a_teacher_row_is_and_is_not_zero_at_the_teacher():
    of = lambda s, t, epsilon=0.1: value_and_gradients()(s, t, epsilon)[0]
    there = float(of(STUDENT, TEACHER))
    np.testing.assert_allclose(of(STUDENT, TEACHER[::-1]), there, rtol=1e-9)
    assert 1e-3 < of(TEACHER, TEACHER) < there < 2 * len(STUDENT)
    # The bound is reached between rows without a common category.
    apart = np.where(np.arange(5) < 2, STUDENT, -INF), np.where(np.arange(5) < 2, -INF, TEACHER)
    np.testing.assert_allclose(of(*apart), 2 * len(STUDENT), rtol=1e-12)
    assert of(TEACHER, TEACHER, 1e-3) < 1e-6


@jax.jit
def masked(student, teacher, mask, where):
    options = {"mask": mask, "where": where}
    debiased = transport.debiased_sinkd(student, teacher, **options, epsilon=0.3)
    fewer = transport.debiased_sinkd(student[2:, :3], teacher[2:, :3], epsilon=0.3)
    return (
        jax.value_and_grad(lambda s: transport.sinkd(s, teacher, **options))(student),
        transport.sinkd(student[2:, :3], teacher[2:, :3]),
        (debiased.value, fewer.value, debiased.converged),
    )


def test_what_is_masked_is_as_if_it_were_not_there():
    student = np.where(np.arange(6)[:, None] < 2, np.nan, STUDENT)
    rows, some = np.arange(6) >= 2, np.arange(5) < 3
    all_rows, all_of_them = np.full(6, True), np.full(5, True)
    (value, gradient), both, (debiased, fewer, converged) = masked(student, TEACHER, rows, some)
    np.testing.assert_allclose(value, both, rtol=1e-12)
    np.testing.assert_array_equal(gradient[:2], 0)
    np.testing.assert_array_equal(gradient[:, 3:], 0)
    assert np.all(gradient[2:, :3] != 0)
    assert converged
    np.testing.assert_allclose(debiased, fewer, rtol=1e-5)
    np.testing.assert_allclose(masked(student, TEACHER, rows, all_of_them)[0][0],
                               published(STUDENT[2:], TEACHER[2:]), rtol=1e-12)  # fmt: skip
    np.testing.assert_allclose(masked(STUDENT, TEACHER, all_rows, some)[0][0],
                               published(STUDENT[:, :3], TEACHER[:, :3]), rtol=1e-12)  # fmt: skip
    for nothing in ((~all_rows, all_of_them), (all_rows, ~all_of_them)):
        (value, gradient), _, (debiased, *_) = masked(student, TEACHER, *nothing)
        assert value == debiased == 0
        np.testing.assert_array_equal(gradient, 0)


@jax.jit
def debiased(student, teacher, epsilon):
    def value(student):
        out = transport.debiased_sinkd(student, teacher, epsilon=epsilon, threshold=1e-9)
        return out.value, out.converged

    return jax.value_and_grad(value, has_aux=True)(student)


def entropic(p, q, epsilon):
    """The entropic cost between two sets of rows of equal weights, by plain scaling."""
    cost, b = np.abs(p[:, None] - q[None]).sum(-1), len(p)
    f, g = np.zeros(b), np.zeros(b)
    for _ in range(3000):
        f = -epsilon * np.log(np.exp((g[None] - cost) / epsilon).mean(1))
        g = -epsilon * np.log(np.exp((f[:, None] - cost) / epsilon).mean(0))
    return f.mean() + g.mean()


def by_hand(student, teacher, epsilon):
    """The debiased divergence of its three problems."""
    p, q = softmax(student / 2), softmax(teacher / 2)
    return entropic(p, q, epsilon) - (entropic(p, p, epsilon) + entropic(q, q, epsilon)) / 2


def test_the_debiased_form_is_zero_at_the_teacher_in_any_order():
    (value, converged), gradient = debiased(TEACHER[::-1], TEACHER, 0.1)
    assert converged
    np.testing.assert_allclose(value, 0, atol=1e-8)
    np.testing.assert_allclose(gradient, 0, atol=1e-7)
    (value, _), gradient = debiased(STUDENT, TEACHER, 0.3)
    np.testing.assert_allclose(value, by_hand(STUDENT, TEACHER, 0.3), rtol=1e-6)
    one = np.zeros(STUDENT.shape)
    one[1, 2] = 1e-4
    slope = by_hand(STUDENT + one, TEACHER, 0.3) - by_hand(STUDENT - one, TEACHER, 0.3)
    np.testing.assert_allclose(gradient[1, 2], slope / 2e-4, rtol=1e-4)


def test_the_debiased_form_tends_to_the_best_matching():
    p, q = softmax(STUDENT / 2), softmax(TEACHER / 2)
    cost = np.abs(p[:, None] - q[None]).sum(-1)
    best = cost[scipy.optimize.linear_sum_assignment(cost)].mean()
    (value, converged), _ = debiased(STUDENT, TEACHER, 0.01)
    assert converged
    np.testing.assert_allclose(value, best, rtol=0.02)


EDGES = np.array(
    [
        (STUDENT[:2, :4], TEACHER[:2, :4]),
        # Equal.
        (STUDENT[:2, :4], STUDENT[:2, :4]),
        # Zeros on either side.
        ([[0, 1, -INF, 2], [-INF, 0, 0, 1]], [[0, -INF, -INF, 2], [1, 1, 0, -INF]]),
        # Both tails are below e^-104 at a temperature of 1.
        ([[0, -120, -121, -INF], [0, -130, -125, -110]],
         [[0, -125, -110, -INF], [0, -110, -120, -140]]),
        # No common support.
        ([[0, -INF, -INF, -INF], [0, 1, -INF, -INF]], [[-INF, -INF, 1, 0], [-INF, -INF, 3, 0]]),
    ]
)  # fmt: skip


@functools.partial(jax.jit, static_argnames="of_half")
def at_edges(student, teacher, temperature, of_half=False):
    if of_half:
        student, teacher = student.astype(jnp.bfloat16), teacher.astype(jnp.bfloat16)
    loss = lambda s: transport.sinkd(s, teacher, temperature=temperature).sum()
    return transport.sinkd(student, teacher, temperature=temperature), jax.grad(loss)(student)


def test_edges_have_finite_values_and_gradients():
    single = EDGES.astype(np.float32).swapaxes(0, 1)
    for temperature in (0.05, 1.0, 2.0):
        exact = at_edges(*EDGES.swapaxes(0, 1), temperature)
        found = at_edges(*single, np.float32(temperature))
        for a, b in zip(exact, found, strict=True):
            assert np.all(np.isfinite(a))
            assert np.all(np.isfinite(b))
            if temperature == 1.0:
                np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-6)
    value, gradient = at_edges(*single, np.float32(1), of_half=True)
    assert value.dtype == jnp.float32
    assert gradient.dtype == jnp.bfloat16
    assert np.all(np.isfinite(value))
    assert np.all(np.isfinite(gradient.astype(np.float32)))
    np.testing.assert_allclose(value, at_edges(*single, np.float32(1))[0], rtol=0.05, atol=1e-3)


def test_wrong_arguments_are_refused():
    pair = {"student_logits": STUDENT, "teacher_logits": TEACHER}
    domains(
        (transport.sinkd, pair, {"temperature": [0.0, -1.0], "epsilon": [0.0, np.nan],
                                 "iterations": [0], "mask": [np.ones(3, bool)],
                                 "student_logits": [np.zeros(5), np.zeros((6, 4))]}),
        (transport.debiased_sinkd, pair, {"temperature": [0.0], "epsilon": [0.0],
                                          "student_logits": [np.zeros((2, 6, 5))]}),
    )  # fmt: skip
