"""PS-KD: the gradient is that of its target, the rescaling is a ratio of gradients, and edges."""

import jax
import jax.numpy as jnp
import numpy as np

from jdiv.distillation import self
from tests.checks import domains

RNG = np.random.default_rng(0)
NOW, OLD = 2 * RNG.normal(size=(2, 6, 4))
LABELS = np.array([0, 1, 2, 3, 1, 0])
INF = np.inf


def softmax(logits):
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


@jax.jit
def measured(now, old, labels, share, mask):
    loss = lambda s, t: jnp.sum(self.progressive(s, t, labels, share=share, mask=mask))
    return (
        self.progressive(now, old, labels, share=share, mask=mask),
        jax.grad(loss, (0, 1))(now, old),
        self.rescaling(now, old, labels, share=share, mask=mask),
    )


ALL = np.full(6, True)


def test_it_is_cross_entropy_with_the_mixed_target():
    share = np.linspace(0, 1, 6)
    value, (gradient, of_old), _ = measured(NOW, OLD, LABELS, share, ALL)
    target = (1 - share)[:, None] * np.eye(4)[LABELS] + share[:, None] * softmax(OLD)
    np.testing.assert_allclose(value, -np.sum(target * np.log(softmax(NOW)), -1), rtol=1e-12)
    np.testing.assert_allclose(gradient, softmax(NOW) - target, atol=1e-14)
    np.testing.assert_array_equal(of_old, 0)
    # At the label's logit the gradient over that of cross-entropy, which is share 0.
    _, (plain, _), _ = measured(NOW, OLD, LABELS, np.zeros(6), ALL)
    ratio = (gradient / plain)[np.arange(6), LABELS]
    np.testing.assert_allclose(measured(NOW, OLD, LABELS, share, ALL)[2], ratio, rtol=1e-10)


def test_the_share_grows_with_the_epochs():
    assert self.share_at(0, steps=10) == 0
    np.testing.assert_allclose(self.share_at(5, steps=10, share=0.6), 0.3)
    np.testing.assert_allclose(self.share_at(10, steps=10), 0.8)


# Equal, sure of the label, without it, tails below e^-104, zeros of the past, anything.
EDGES = np.array(
    [([0, 1, -INF, 2], [0, 1, -INF, 2]), ([INF, 0, 0, 0], [0, -INF, -INF, -INF]),
     ([0, -INF, 1, 3], [0, 2, -INF, 1]), ([0, -120, -121, -INF], [0, -125, -110, -INF]),
     ([0, 1, 2, 3], [-INF, 0, -INF, 1]), ([30, -20, 0, 1], [1, 2, 40, 4])]
)  # fmt: skip
EDGES[1, 0] = [0, -INF, -INF, -INF]
AT = np.array([0, 0, 0, 0, 3, 0])


def test_edges():
    share = np.full(6, 0.5)
    exact = measured(*EDGES.swapaxes(0, 1), AT, share, ALL)
    single = EDGES.astype(np.float32).swapaxes(0, 1)
    found = measured(*single, AT, share.astype(np.float32), ALL)
    for a, b in zip(jax.tree.leaves(exact), jax.tree.leaves(found), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
    value, (gradient, _), rescaling = found
    # The past has mass where the model has none: infinite, with the gradient p - target.
    assert np.array_equal(np.isinf(value), [False, False, True, False, False, False])
    target = 0.5 * np.eye(4)[AT] + 0.5 * softmax(EDGES[:, 1])
    np.testing.assert_allclose(gradient, softmax(EDGES[:, 0]) - target, atol=1e-6)
    np.testing.assert_allclose(rescaling[3], 1 - 0.5 * np.exp(10) / (1 + np.exp(-1)), rtol=1e-4)
    assert rescaling[1] == 1
    sharp = measured(*(single / np.float32(0.05)), AT, share.astype(np.float32), ALL)
    assert np.all(np.isfinite(sharp[1][0]))
    nothing = measured(np.full((6, 4), np.nan), OLD, LABELS, share, ~ALL)
    assert all(np.all(x == 0) for x in jax.tree.leaves(nothing))
    half = measured(*(x.astype(jnp.bfloat16) for x in single), AT, share.astype(np.float32), ALL)
    assert half[0].dtype == jnp.float32
    assert half[1][0].dtype == jnp.bfloat16
    np.testing.assert_allclose(half[1][0].astype(np.float32), gradient, atol=0.02)


def test_wrong_arguments_are_refused():
    rows = {"student_logits": NOW, "old_logits": OLD, "labels": LABELS, "share": 0.5}
    wrong = {"share": [-0.1, 1.5], "labels": [LABELS[:3]], "old_logits": [OLD[:, :2]]}
    domains(
        (self.progressive, rows, wrong),
        (self.rescaling, rows, wrong),
        (self.share_at, {"step": 1.0, "steps": 2.0}, {"share": [2.0], "steps": [0.0]}),
    )
