"""Fidelity, calibration and retained mass against loops in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np

from jdiv.distillation import metrics
from tests.checks import domains

RNG = np.random.default_rng(0)
STUDENT, TEACHER = 2 * RNG.normal(size=(2, 40, 5))
LABELS = RNG.integers(0, 5, 40)
INF = np.inf


def softmax(logits):
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


@jax.jit
def measured(student, teacher, labels, mask):
    return (
        *metrics.fidelity(student, teacher),
        metrics.calibration_error(student, labels, mask=mask),
        metrics.calibration_error(student, labels, mask=mask, bins=4),
        metrics.retained_mass(student, teacher, 2),
    )


def calibration(p, labels, bins):
    total = 0
    confidence, right = p.max(-1), p.argmax(-1) == labels
    for m in range(bins):
        inside = (confidence > m / bins) & (confidence <= (m + 1) / bins)
        if inside.any():
            total += inside.sum() * abs(right[inside].mean() - confidence[inside].mean())
    return total / len(p)


def test_they_are_their_definitions():
    p, q = softmax(STUDENT), softmax(TEACHER)
    kl, agreement, coarse, fine, mass = measured(STUDENT, TEACHER, LABELS, np.full(40, True))
    np.testing.assert_allclose(kl, np.sum(q * np.log(q / p), -1), rtol=1e-12)
    np.testing.assert_array_equal(agreement, p.argmax(-1) == q.argmax(-1))
    np.testing.assert_allclose(coarse, calibration(p, LABELS, 15), rtol=1e-12)
    np.testing.assert_allclose(fine, calibration(p, LABELS, 4), rtol=1e-12)
    top = np.argsort(-q, -1)[:, :2]
    np.testing.assert_allclose(mass, np.take_along_axis(p, top, -1).sum(-1), rtol=1e-12)
    some = np.arange(40) < 25
    masked = np.where(some[:, None], STUDENT, np.nan)
    found = measured(masked, TEACHER, LABELS, some)[2]
    np.testing.assert_allclose(found, calibration(p[:25], LABELS[:25], 15), rtol=1e-12)
    assert measured(masked, TEACHER, LABELS, ~np.full(40, True))[2] == 0


def test_edges():
    student = np.array([[0, -INF, -INF], [0, 1, -INF], [0, -120, -121]], np.float32)
    teacher = np.array([[0, -INF, -INF], [0, 1, 2], [0, -110, -125]], np.float32)
    for temperature in (1.0, 0.05):
        kl, agreement, error, _, mass = measured(
            student / np.float32(temperature), teacher / np.float32(temperature),
            np.array([0, 1, 0]), np.full(3, True),
        )  # fmt: skip
        assert kl[0] == 0
        assert kl[1] == INF
        assert agreement.tolist() == [1, 0, 1]
        assert np.all(np.isfinite(mass))
        assert 0 <= error <= 1
    where = np.array([[True] * 3, [True] * 3, [False] * 3])
    assert metrics.fidelity(student, teacher, where=where).kl[2] == 0
    half = metrics.fidelity(*(jnp.asarray(x, jnp.bfloat16) for x in (student, teacher)))
    assert half.kl.dtype == jnp.float32
    assert half.kl[1] == INF


def test_a_bin_has_its_upper_end():
    logits = np.log([[0.5, 0.5], [0.4, 0.6]])
    found = metrics.calibration_error(logits, np.array([0, 0]), bins=2)
    np.testing.assert_allclose(found, (0.5 + 0.6) / 2)


def test_wrong_arguments_are_refused():
    rows = {"logits": STUDENT, "labels": LABELS}
    pair = {"student_logits": STUDENT, "teacher_logits": TEACHER, "k": 2}
    domains(
        (metrics.calibration_error, rows, {"bins": [0], "mask": [np.ones(3, bool)]}),
        (metrics.retained_mass, pair, {"k": [0, 6]}),
    )
