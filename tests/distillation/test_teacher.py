"""MCMI: the Jensen gap, centroids and their average, the gradient, and edges."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jdiv.distillation import teacher
from tests.checks import domains

RNG = np.random.default_rng(0)
LOGITS = 2 * RNG.normal(size=(9, 4))
LABELS = np.array([0, 1, 2, 0, 1, 2, 0, 0, 2])
OTHER = RNG.normal(size=(3, 4))
INF = np.inf


def softmax(logits):
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def entropy(p):
    return -np.sum(p * np.log(p), axis=-1)


def means(logits, labels=LABELS, classes=3):
    return np.stack([softmax(logits)[labels == y].mean(0) for y in range(classes)])


def differences(f, x, step=1e-6):
    """The gradient by central differences."""
    gradient = np.zeros(x.shape)
    for at in np.ndindex(x.shape):
        change = np.zeros(x.shape)
        change[at] = step
        gradient[at] = (f(x + change) - f(x - change)) / (2 * step)
    return gradient


@jax.jit
def measured(logits, labels, other, mask):
    information = lambda x: jnp.mean(teacher.conditional_information(x, labels, 3, mask=mask))
    loss = lambda x, c: jnp.sum(teacher.mcmi(x, labels, c, coefficient=0.7, mask=mask))
    return {
        "centroids": teacher.centroids(logits, labels, 4, mask=mask),
        "moved": teacher.moved_centroids(other, logits, labels, share=0.25, mask=mask),
        "information": jax.value_and_grad(information)(logits),
        "given": teacher.conditional_information(
            logits, labels, 3, centroid_logits=other, mask=mask
        ),
        "loss": jax.value_and_grad(loss, (0, 1))(logits, other),
    }


@functools.cache
def found():
    return measured(LOGITS, LABELS, OTHER, np.full(9, True))


def jensen_gap(logits):
    """`sum_y P(y) (H(Q_y) - mean H(p_x))`."""
    share = np.bincount(LABELS) / len(LABELS)
    return share @ entropy(means(logits)) - entropy(softmax(logits)).mean()


def test_centroids_are_means_and_move_in_probabilities():
    np.testing.assert_allclose(np.exp(found()["centroids"][:3]), means(LOGITS), rtol=1e-12)
    assert np.all(found()["centroids"][3] == -INF)
    expected = 0.75 * softmax(OTHER) + 0.25 * means(LOGITS)
    np.testing.assert_allclose(np.exp(found()["moved"]), expected, rtol=1e-12)
    some = LABELS != 1
    masked = measured(np.where(some[:, None], LOGITS, np.nan), LABELS, OTHER, some)
    np.testing.assert_allclose(np.exp(masked["moved"])[1], softmax(OTHER)[1], rtol=1e-12)
    np.testing.assert_allclose(np.exp(masked["moved"])[::2], expected[::2], rtol=1e-12)
    assert np.all(masked["information"][1][~some] == 0)
    assert np.all(masked["loss"][1][0][~some] == 0)
    assert np.isfinite(masked["loss"][0])


def test_information_is_the_jensen_gap_whose_gradient_the_constant_centroids_leave_whole():
    value, gradient = found()["information"]
    np.testing.assert_allclose(value, jensen_gap(LOGITS), rtol=1e-10)
    # With the centroids moving along.
    np.testing.assert_allclose(gradient, differences(jensen_gap, LOGITS), atol=1e-9)
    # Any other centers are further away.
    p, q = softmax(LOGITS), softmax(OTHER)[LABELS]
    np.testing.assert_allclose(found()["given"], np.sum(p * np.log(p / q), -1), rtol=1e-10)
    assert np.mean(found()["given"]) > value
    constant = measured(OTHER[LABELS], LABELS, OTHER, np.full(9, True))
    np.testing.assert_allclose(constant["information"][0], 0, atol=1e-14)


def test_the_loss_is_cross_entropy_less_information():
    p, rows = softmax(LOGITS), np.arange(9)

    def loss(logits):
        p, q = softmax(logits), softmax(OTHER)[LABELS]
        return -np.log(p[rows, LABELS]).sum() - 0.7 * np.sum(p * np.log(p / q))

    value, (gradient, of_centroids) = found()["loss"]
    np.testing.assert_allclose(value, loss(LOGITS), rtol=1e-12)
    np.testing.assert_allclose(gradient, differences(loss, LOGITS), atol=1e-8)
    np.testing.assert_array_equal(of_centroids, 0)
    log_ratio = np.log(p / softmax(OTHER)[LABELS])
    away = log_ratio - np.sum(p * log_ratio, -1, keepdims=True)
    np.testing.assert_allclose(gradient, p - np.eye(4)[LABELS] - 0.7 * p * away, atol=1e-12)


# Two rows of each class: equal ones, zeros, tails below e^-104 in both, any.
EDGES = np.array(
    [[0, 1, -INF, 2], [0, 1, -INF, 2], [0, -INF, 1, 3], [0, 2, -INF, 1], [0, -120, -121, -INF],
     [0, -110, -125, -INF], [30, -20, 0, 1], [1, 2, 40, 4]]
)  # fmt: skip


@jax.jit
def at_edges(logits):
    logits = logits / jnp.asarray(1.0, logits.dtype)
    labels = jnp.array([0, 0, 1, 1, 2, 2, 3, 3])
    centers = teacher.centroids(logits, labels, 4)
    loss = lambda x: jnp.sum(teacher.mcmi(x, labels, centers, coefficient=0.5))
    return (
        teacher.conditional_information(logits, labels, 4),
        teacher.mcmi(logits, labels, centers, coefficient=0.5),
        jax.grad(loss)(logits),
        centers,
    )


def test_edges():
    labels = np.array([0, 0, 1, 1, 2, 2, 3, 3])
    exact = at_edges(EDGES)
    for temperature in (1.0, 0.05):
        information, loss, gradient, centers = at_edges((EDGES / temperature).astype(np.float32))
        assert np.all(np.isfinite(information))
        assert np.all(np.isfinite(gradient))
        assert np.array_equal(loss == INF, EDGES[np.arange(8), labels] == -INF)
        assert not np.any(np.isnan(centers))
    for a, b in zip(exact, at_edges(EDGES.astype(np.float32)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-14)
    assert np.all(exact[0][:2] < 1e-30)
    # Of the tails alone: e^-110 against a mean of half that.
    np.testing.assert_allclose(exact[3][2, 1], -110 - np.log(2), rtol=1e-6)
    half = at_edges(EDGES.astype(jnp.bfloat16))
    assert half[0].dtype == jnp.float32
    assert half[2].dtype == jnp.bfloat16
    assert np.all(np.isfinite(half[2].astype(np.float32)))


def test_wrong_arguments_are_refused():
    rows = {"logits": LOGITS, "labels": LABELS}
    domains(
        (teacher.centroids, rows | {"classes": 3}, {"classes": [0], "labels": [LABELS[:2]]}),
        (teacher.moved_centroids, rows | {"centroid_logits": OTHER}, {"share": [-0.1, 1.1]}),
        (teacher.mcmi, rows | {"centroid_logits": OTHER, "coefficient": 0.1},
         {"coefficient": [-1.0], "centroid_logits": [OTHER[:, :2]]}),
    )  # fmt: skip
