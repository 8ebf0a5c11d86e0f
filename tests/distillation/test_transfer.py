import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize
from scipy.special import log_softmax

from jdiv.distillation import transfer
from tests.checks import domains

COUNTS = np.array([[4, 0, 1, 2], [0, 0, 0, 0], [3, 2, 1, 1], [0, 7, 0, 0]])
TEACHER = np.array(
    [[0.5, 0.2, 0.1, 0.2], [0.4, 0.3, 0.2, 0.1], [0.4, 0.3, 0.2, 0.1], [0.1, 0.9, 0.0, 0.0]]
)


def learned():
    with np.errstate(divide="ignore"):
        log_teacher = np.log(TEACHER)
    all_four = jax.jit(lambda counts, teacher: [
        transfer.ce_single(counts), transfer.ce_partial(counts, teacher),
        transfer.sel_partial(counts, teacher), transfer.ce_full(counts, teacher),
    ])  # fmt: skip
    return [np.exp(x) for x in all_four(COUNTS, log_teacher + 3.0)], log_teacher


def test_closed_forms():
    (single, partial, squared, full), _ = learned()
    uniform = np.full(4, 0.25)
    np.testing.assert_allclose(single, [[4 / 7, 0, 1 / 7, 2 / 7], uniform,
                                        [3 / 7, 2 / 7, 1 / 7, 1 / 7], [0, 1, 0, 0]])  # fmt: skip
    weights = COUNTS * TEACHER
    for row in (0, 2, 3):
        np.testing.assert_allclose(partial[row], weights[row] / weights[row].sum())
    np.testing.assert_allclose(squared[0], [0.5, 0.2, 0.1, 0.2])
    np.testing.assert_allclose(squared[2], TEACHER[2])
    np.testing.assert_allclose(squared[3], [0.1 / 3, 0.9, 0.1 / 3, 0.1 / 3])
    np.testing.assert_allclose(full[[0, 2, 3]], TEACHER[[0, 2, 3]], 1e-14)
    for policy in (single, partial, squared, full):
        np.testing.assert_allclose(policy[1], uniform)
        np.testing.assert_allclose(policy.sum(axis=1), 1)


def test_each_minimizes_its_loss():
    """A generic optimizer over policies of the input that has all labels seen."""
    (single, partial, squared, _), log_teacher = learned()
    counts, teacher = COUNTS[2].astype(float), log_teacher[2]

    @jax.jit
    def losses(logits):
        log_p = jax.nn.log_softmax(logits)
        each = [-log_p, transfer.ce_partial_loss(log_p, teacher),
                transfer.sel_partial_loss(log_p, teacher)]  # fmt: skip
        return jnp.stack(each) @ counts

    slopes = jax.jit(jax.jacrev(losses))
    for i, policy in enumerate((single, partial, squared)):
        best = optimize.minimize(
            lambda x, i=i: np.asarray(losses(x))[i], np.zeros(4), tol=1e-14, method="BFGS",
            jac=lambda x, i=i: np.asarray(slopes(x))[i],
        )  # fmt: skip
        np.testing.assert_allclose(np.exp(log_softmax(best.x)), policy[2], atol=1e-6)


def test_the_bias_of_the_weighted_cross_entropy():
    """With counts in proportion to the teacher it is the teacher's square, over its sum."""
    p = TEACHER[0]
    squared = np.exp(transfer.ce_partial(1e6 * p, np.log(p)))
    np.testing.assert_allclose(squared, p**2 / (p**2).sum(), 1e-12)
    np.testing.assert_allclose(np.exp(transfer.ce_single(1e6 * p)), p, 1e-12)


@pytest.mark.parametrize("dtype", [np.float64, np.float32, jnp.bfloat16])
def test_losses_at_their_edges(dtype):
    pairs = [(-0.5, -1.5), (-200, -300), (-np.inf, -np.inf), (-3, -np.inf), (-np.inf, -3), (-2, -2)]
    log_p, log_q = (jnp.asarray(x, dtype) for x in zip(*pairs, strict=True))
    value, slope = {}, {}
    for loss in (transfer.ce_partial_loss, transfer.sel_partial_loss):
        value[loss], pull = jax.vjp(lambda x, y, loss=loss: loss(x, y), log_p, log_q)
        slope[loss], to_teacher = pull(jnp.ones_like(value[loss]))
        assert np.all(to_teacher == 0)
    q = np.exp([-1.5, -300, -np.inf, -np.inf, -3, -2])
    weighted, squared = value
    exact = 1e-14 if dtype == np.float64 else 1e-6
    np.testing.assert_allclose(value[weighted], [q[0] / 2, 200 * q[1], 0, 0, np.inf, 2 * q[5]],
                               exact, 1e-40)  # fmt: skip
    np.testing.assert_allclose(value[squared], [0.5, 5000, 0, np.inf, np.inf, 0])
    rounded = exact if dtype != jnp.bfloat16 else 2**-8
    np.testing.assert_allclose(np.asarray(slope[weighted], float), -q, rounded, 1e-40)
    np.testing.assert_allclose(np.asarray(slope[squared], float)[[0, 1, 2, 5]], [1, 100, 0, 0])


def test_refusals():
    x = np.zeros((2, 3))
    domains(
        (transfer.ce_single, {"counts": x + 1}, {"counts": [x - 1]}),
        (transfer.ce_full, {"counts": x + 1, "teacher_logits": x}, {"counts": [x - 1]}),
    )
