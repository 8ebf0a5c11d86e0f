"""Losses of hidden layers and LELP: definitions in NumPy, the chain rule, four blobs, edges."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jdiv import estimators
from jdiv.distillation import features
from tests.checks import domains

RNG = np.random.default_rng(0)
S, T = RNG.normal(size=(2, 7, 5)) + 0.5
INF = np.inf
LOSSES = {
    "squared_error": features.squared_error,
    "cosine_distance": features.cosine_distance,
    "cka_distance": features.cka_distance,
}


def softmax(logits):
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def cka(s, t):
    """By the matrices between features, not between rows."""
    s, t = s - s.mean(0), t - t.mean(0)
    norm = np.linalg.norm
    return 1 - norm(s.T @ t) ** 2 / (norm(s.T @ s) * norm(t.T @ t))


NUMPY = {
    "squared_error": lambda s, t: np.mean((s - t) ** 2, -1),
    "cosine_distance": lambda s, t: 1 - np.sum(unit(s) * unit(t), -1),
    "cka_distance": cka,
}


def differences(f, x, step=1e-6):
    """The gradient by central differences."""
    gradient = np.zeros(x.shape)
    for at in np.ndindex(x.shape):
        change = np.zeros(x.shape)
        change[at] = step
        gradient[at] = (f(x + change) - f(x - change)) / (2 * step)
    return gradient


@jax.jit
def measured(student, teacher):
    found = {}
    for name, loss in LOSSES.items():
        total = lambda s, t, loss=loss: jnp.sum(loss(s, t))
        found[name] = loss(student, teacher), jax.grad(total, (0, 1))(student, teacher)
    scores = features.layer_scores(student, teacher, temperature=0.5)
    nothing = jnp.zeros((), scores.dtype)
    shares = [jnp.asarray(x, scores.dtype) for x in (0.0, 0.5, 1.0)]
    found["mi_alpha"] = scores, [features.mi_alpha(scores, nothing, share=x) for x in shares]
    return found


def test_losses_of_layers_are_their_definitions():
    found = measured(S, T)
    for name, formula in NUMPY.items():
        value, (gradient, of_teacher) = found[name]
        np.testing.assert_allclose(value, formula(S, T), rtol=1e-10)
        expected = differences(lambda s, f=formula: np.sum(f(s, T)), S)
        np.testing.assert_allclose(gradient, expected, atol=1e-8)
        np.testing.assert_array_equal(of_teacher, 0)


def test_mi_alpha_is_minus_a_bound_between_its_two_ends():
    scores, values = measured(S, T)["mi_alpha"]
    np.testing.assert_allclose(scores, unit(S) @ unit(T).T / 0.5, rtol=1e-12)
    n = len(S)
    product = np.exp(scores)[~np.eye(n, dtype=bool)].mean()
    np.testing.assert_allclose(values[0], -(1 + np.diag(scores).mean() - product), rtol=1e-10)
    kept = [np.delete(np.delete(scores, i, 0), i, 1) for i in range(n)]
    ends = np.mean([estimators.infonce(np.asarray(x)) for x in kept])
    np.testing.assert_allclose(values[2], -ends, rtol=1e-10)
    half = estimators.interpolated(np.asarray(scores), jnp.zeros(()), share=0.5)
    np.testing.assert_allclose(values[1], -half, rtol=1e-12)


@jax.jit
def divided(teacher_features, labels, head, teacher_logits, student_logits):
    key = jax.random.key(3)
    plain = features.projections(teacher_features, labels, 2, 2, key)
    unseen = features.projections(teacher_features, labels, 2, 2, key, head=head)
    parts = features.subclass_logits(teacher_logits, teacher_features, plain, temperature=0.5)
    loss = lambda s, t: jnp.sum(features.lelp(s, t, temperature=2.0))
    return {
        "plain": plain, "unseen": unseen, "parts": parts,
        "classes": features.class_logits(parts, 2),
        "lelp": features.lelp(student_logits, parts, temperature=2.0),
        "kl": features.lelp(student_logits, parts),
        "classes of student": features.class_logits(student_logits, 2),
        "gradients": jax.grad(loss, (0, 1))(student_logits, parts),
    }  # fmt: skip


LABELS = np.arange(60) % 2
POINTS = RNG.normal(size=(60, 5)) * np.array([3, 2, 1, 0.5, 0.3]) + LABELS[:, None]
HEAD, LOGITS, STUDENT = RNG.normal(size=(2, 5)), RNG.normal(size=(60, 2)), RNG.normal(size=(60, 8))


@functools.cache
def of_points():
    return jax.tree.map(np.asarray, divided(POINTS, LABELS, HEAD, LOGITS, STUDENT))


def test_projections_span_the_widest_directions_of_each_class():
    for label in range(2):
        own = POINTS[label == LABELS]
        np.testing.assert_allclose(of_points()["plain"].center[label], own.mean(0), rtol=1e-12)
        found = of_points()["plain"].directions[label]
        np.testing.assert_allclose(found @ found.T, np.eye(2), atol=1e-12)
        widest = np.linalg.svd(own - own.mean(0))[2][:2]
        np.testing.assert_allclose(found.T @ found, widest.T @ widest, atol=1e-10)
        assert np.abs(np.abs(found @ widest.T) - np.eye(2)).max() > 0.05  # turned
        np.testing.assert_allclose(of_points()["unseen"].directions[label] @ HEAD.T, 0, atol=1e-10)


def test_subclasses_divide_the_classes_and_the_loss_obeys_the_chain_rule():
    found = of_points()
    parts, center, axes = softmax(found["parts"]), *found["plain"]
    np.testing.assert_allclose(np.exp(found["classes"]), softmax(LOGITS), rtol=1e-10)
    along = np.einsum("bcw,ckw->bck", POINTS[:, None] - center, axes) / 0.5
    within = softmax(np.concatenate([along, -along], -1))
    expected = (softmax(LOGITS)[..., None] * within).reshape(60, 8)
    np.testing.assert_allclose(parts, expected, rtol=1e-9, atol=1e-300)

    # KL = KL of the classes + sum over classes of their probability times KL within.
    q, p = parts, softmax(STUDENT)
    q_class, p_class = q.reshape(60, 2, 4).sum(-1), p.reshape(60, 2, 4).sum(-1)
    q_in, p_in = q.reshape(60, 2, 4) / q_class[..., None], p.reshape(60, 2, 4) / p_class[..., None]
    kl = lambda a, b: np.sum(a * np.log(a / b), -1)
    chain = kl(q_class, p_class) + (q_class * kl(q_in, p_in)).sum(-1)
    np.testing.assert_allclose(found["kl"], chain, rtol=1e-9)
    np.testing.assert_allclose(softmax(found["classes of student"]), p_class, rtol=1e-10)
    q, p = softmax(found["parts"] / 2), softmax(STUDENT / 2)
    np.testing.assert_allclose(found["lelp"], 4 * kl(q, p), rtol=1e-9)
    np.testing.assert_allclose(found["gradients"][0], 2 * (p - q), atol=1e-12)
    np.testing.assert_array_equal(found["gradients"][1], 0)


def test_edges_of_layers():
    student = np.array([[0, 0, 0], [1e25, 0, 1e25], [1, 2, 3], [1e-30, 0, 0]], np.float32)
    teacher = np.array([[1, 0, 0], [1, 0, 1], [1, 2, 3], [0, 1e-30, 0]], np.float32)
    small = np.where(np.abs(student) > 1e9, 0, student)
    for pair in ((small, teacher), (student, teacher), (teacher, teacher), (0 * teacher, teacher)):
        found = measured(*pair)
        for name in ("cosine_distance", "cka_distance"):
            value, (gradient, _) = found[name]
            assert np.all(np.isfinite(value)), name
            assert np.all(np.isfinite(gradient)), name
        assert np.all(np.isfinite(found["mi_alpha"][0]))
    np.testing.assert_allclose(measured(student, teacher)["cosine_distance"][0], [1, 0, 0, 1],
                               atol=1e-6)  # fmt: skip
    assert measured(teacher, teacher)["cka_distance"][0] == 0
    assert measured(0 * teacher, teacher)["cka_distance"][0] == 1
    half = measured(*(jnp.asarray(x, jnp.bfloat16) for x in (small, teacher)))
    for value, (gradient, _) in (half[name] for name in LOSSES):
        assert value.dtype == jnp.float32
        assert np.all(np.isfinite(gradient.astype(np.float32)))


# Equal, a zero of the student, of the teacher, tails below e^-104, far.
EDGES = np.array(
    [([0, 1, -INF, 2], [0, 1, -INF, 2]), ([0, -INF, 1, 3], [0, 2, 2, 1]),
     ([0, 1, 2, 3], [-INF, -INF, 0, 1]), ([0, -120, -121, -INF], [0, -125, -110, -INF]),
     ([30, -20, 0, 1], [1, 2, 40, 4])]
).swapaxes(0, 1)  # fmt: skip


@jax.jit
def lelp_at(student, teacher, temperature):
    loss = lambda s: jnp.sum(features.lelp(s, teacher, temperature=temperature))
    value = features.lelp(student, teacher, temperature=temperature)
    return value, jax.grad(loss)(student), features.class_logits(student, 2)


def test_edges_of_lelp():
    exact, single = lelp_at(*EDGES, 1.0), EDGES.astype(np.float32)
    for a, b in zip(exact, lelp_at(*single, np.float32(1)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-37)
    assert np.array_equal(exact[0] == INF, [False, True, False, False, False])
    assert exact[0][0] == 0
    assert np.all(np.isfinite(exact[1]))
    assert not np.any(np.isnan(exact[2]))
    sharp = lelp_at(*single, np.float32(0.05))
    assert not np.any(np.isnan(sharp[0]))
    assert np.all(np.isfinite(sharp[1]))
    half = lelp_at(*(x.astype(jnp.bfloat16) for x in single), np.float32(1))
    assert half[0].dtype == jnp.float32
    assert np.all(np.isfinite(half[1].astype(np.float32)))
    gone = features.class_logits(np.full(4, -INF), 2)
    assert np.all(gone == -INF)
    center = features.Projections(np.zeros((2, 1)), np.ones((2, 1, 1)))
    parts = features.subclass_logits(np.array([0.0, -INF]), np.array([1e3]), center)
    np.testing.assert_array_equal(parts, [0, -2000, -INF, -INF])


def test_wrong_arguments_are_refused():
    pair = {"student_features": S, "teacher_features": T}
    points = {"teacher_features": POINTS, "labels": LABELS, "classes": 2, "k": 1,
              "key": jax.random.key(0)}  # fmt: skip
    domains(
        (features.squared_error, pair, {"student_features": [S[:, :2]]}),
        (features.cka_distance, pair, {"student_features": [S[:3]]}),
        (features.layer_scores, pair, {"temperature": [0.0]}),
        (features.projections, points, {"k": [0, 6]}),
        (features.class_logits, {"logits": LOGITS, "classes": 2}, {"classes": [3, 0]}),
        (features.lelp, {"student_logits": STUDENT, "teacher_logits": STUDENT},
         {"temperature": [0.0], "teacher_logits": [STUDENT[:, :2]]}),
    )  # fmt: skip
