import functools

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest

from jdiv import divergences, generators
from jdiv.policy.clipped import cispo
from jdiv.policy.dppo import binary_divergence, dppo, dppo_weight
from tests.checks import PARAMETERS

RNG = np.random.default_rng(0)
ROWS = {name: generators.get(name, **PARAMETERS[name]) for name in generators.TABLE}
LOGITS, OLD = (2 * RNG.normal(size=(40, 6)) for _ in range(2))


@functools.cache
def evaluated():
    """By row the divergences of all tokens, `[policies]`, and the binary ones of each.

    The first 40 policies are over six tokens, the next 40 over two of them, the last 40 are equal.
    """
    two = np.where(np.arange(6) < 2, LOGITS, -np.inf), np.where(np.arange(6) < 2, OLD, -np.inf)
    logits = np.concatenate([LOGITS, two[0], LOGITS])
    old = np.concatenate([OLD, two[1], LOGITS])

    @jax.jit
    def found(logits, old):
        log_p, log_q = jax.nn.log_softmax(logits), jax.nn.log_softmax(old)
        return {
            name: (
                divergences.f_divergence(row, logits, old),
                binary_divergence(log_p, log_q, generator=row),
            )
            for name, row in ROWS.items()
        }

    return jax.tree.map(lambda x: np.asarray(x).reshape(3, 40, -1), found(logits, old))


@pytest.mark.parametrize("name", ROWS)
def test_the_binary_divergence_is_a_lower_bound_and_exact_for_two(name):
    whole, binary = evaluated()[name]
    assert (binary[0] <= whole[0] * (1 + 1e-12)).all()
    assert (binary[0] > 0).all()
    np.testing.assert_allclose(binary[1, :, :2], np.tile(whole[1], 2), rtol=1e-9)
    assert (binary[1, :, 2:] == 0).all()  # tokens that neither policy has
    assert (binary[2] == 0).all()


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 2e-6), (np.float64, 1e-13)])
def test_rare_and_common_tokens_keep_their_digits(dtype, tolerance):
    """KL(old‖pi) where |log p| or 1 - p is 1e-10, against fifty digits."""
    new, old = np.array([-23.0, -1e-7, -0.5], dtype), np.array([-24.0, -3e-7, -0.9], dtype)
    found = binary_divergence(new, old, generator=generators.reverse_kl())
    with mpmath.workdps(50):
        q, p = ([mpmath.exp(mpmath.mpf(float(x))) for x in side] for side in (old, new))
        expected = [
            b * mpmath.log(b / a) + (1 - b) * mpmath.log((1 - b) / (1 - a))
            for a, b in zip(p, q, strict=True)
        ]
    np.testing.assert_allclose(found, np.array(expected, float), rtol=tolerance)
    sure = binary_divergence(np.array([0.0, 1e-8, -np.inf], dtype), np.log(np.full(3, 0.5, dtype)),
                             generator=generators.kl())  # fmt: skip
    np.testing.assert_allclose(sure, np.log(2), rtol=1e-6)


def test_the_loss_is_cispo_without_what_has_gone_too_far():
    new, old = RNG.normal(size=(2, 8, 5)) / 2 - 1.5
    gains, far = RNG.normal(size=8), RNG.uniform(size=(8, 5))
    mask = RNG.random((8, 5)) < 0.8
    gains[0] = 0

    @jax.jit
    def both(x):
        def of(loss):
            return jax.value_and_grad(lambda x: jnp.sum(loss(x).loss))(x)

        limits = {"threshold": 0.5, "ceiling": 1.5}
        own = dppo(x, old, gains, mask, far, **limits)
        every = jnp.broadcast_to(gains[:, None], mask.shape)
        weight = dppo_weight(x - old, every, jnp.asarray(far), **limits)
        return own, of(lambda x: dppo(x, old, gains, mask, far, **limits)), weight, of(
            lambda x: cispo(x, old, gains, mask, high=0.5)
        )  # fmt: skip

    found, (_, gradient), weight, (_, cispos) = both(new)
    a = gains[:, None]
    dropped = mask & (far > 0.5) & (((a > 0) & (new > old)) | ((a < 0) & (new < old)))
    expected = np.where(dropped, 0, cispos)
    np.testing.assert_allclose(gradient, expected, rtol=1e-14)
    np.testing.assert_allclose(found.loss, expected * np.where(mask, new, 0), rtol=1e-14)
    np.testing.assert_allclose(weight, np.where(mask, -expected, weight), rtol=1e-14)
    np.testing.assert_array_equal(found.aux.clipped, dropped)
    assert 0 < dropped.sum() < mask.sum() / 2
    assert (np.abs(gradient)[mask & ~dropped & (a != 0)] > 0).all()
