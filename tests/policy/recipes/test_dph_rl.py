import jax
import jax.numpy as jnp
import numpy as np

from jdiv import divergences, generators
from jdiv.policy.recipes.dph_rl import dph_rl_penalty


def test_dph_rl_is_the_released_generators():
    rng = np.random.default_rng(3)
    log_p, log_ref = np.log(rng.uniform(0.05, 0.95, (2, 40)))
    u, a = np.exp(log_p - log_ref), 0.2
    solved = np.full(40, True)
    alpha = dph_rl_penalty(log_p, log_ref, solved, generator=generators.alpha(1 - a))
    assert np.allclose(alpha, (u ** (1 - a) - (1 - a) * u - a) / (a * (a - 1)), rtol=1e-9)
    js = dph_rl_penalty(log_p, log_ref, solved, generator=generators.jensen_shannon())
    assert np.allclose(2 * js, u * np.log(u) - (u + 1) * np.log((u + 1) / 2), rtol=1e-8, atol=1e-14)
    half = dph_rl_penalty(log_p, log_ref, solved & (u < 1), generator=generators.reverse_kl())
    assert np.allclose(half, np.where(u < 1, u - 1 - np.log(u), 0))
    # By enumeration its gradient is the divergence's; of questions left out there is none.
    logits, ref_logits = rng.normal(size=(2, 6))
    log_ref = jax.nn.log_softmax(ref_logits)
    row = generators.jensen_shannon()

    def penalty(logits):
        each = dph_rl_penalty(jax.nn.log_softmax(logits), log_ref, jnp.full(6, True), generator=row)
        return jnp.exp(log_ref) @ each

    exact = jax.grad(lambda z: divergences.f_divergence(row, z, log_ref))(jnp.asarray(logits))
    assert np.allclose(jax.grad(penalty)(jnp.asarray(logits)), exact, atol=1e-14)
    far = jax.grad(lambda x: jnp.sum(
        dph_rl_penalty(x, jnp.zeros(2), jnp.array([False, True]), generator=row)
    ))(jnp.array([900.0, -900.0]))  # fmt: skip
    assert np.isfinite(far).all()
    assert far[0] == 0
