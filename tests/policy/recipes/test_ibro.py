import jax
import jax.numpy as jnp
import numpy as np

from jdiv.lm import tabular
from jdiv.policy.recipes.ibro import information_bottleneck


def entropies(logits):
    """Of each row of a table."""
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    return -(p * np.log(p)).sum(axis=1)


def test_the_expected_gradient_by_enumeration_and_finite_differences():
    """That of `-sum P(prefix) E[A|prefix] H(prefix)` with probabilities and advantages held."""
    rng = np.random.default_rng(2)
    logits = rng.normal(size=tabular.table_shape(3))
    sequences = tabular.enumerate_sequences(logits.shape)
    advantages = rng.normal(size=len(sequences.lengths))
    chance = np.exp(tabular.sequence_log_probs(jnp.asarray(logits)))

    @jax.jit
    def gradient(logits, advantages):
        def expected(logits):
            rows = -jnp.sum(jax.nn.softmax(logits) * jax.nn.log_softmax(logits), axis=1)
            loss = information_bottleneck(rows[sequences.prefixes], advantages, sequences.mask)
            return jnp.sum(chance * jnp.sum(loss, axis=1))

        return jax.grad(expected)(logits)

    held = np.zeros(len(logits))
    for row, mask, p, a in zip(sequences.prefixes, sequences.mask, chance, advantages, strict=True):
        held[row[mask]] += p * a
    for place in np.ndindex(logits.shape):
        step = np.zeros(logits.shape)
        step[place] = 1e-6
        slope = (entropies(logits + step) - entropies(logits - step)) / 2e-6
        np.testing.assert_allclose(
            gradient(logits, advantages)[place], -(held * slope).sum(), atol=1e-9
        )
    assert not gradient(logits, 0 * advantages).any()
    # By token, and what is masked does not count.
    loss = information_bottleneck(
        jnp.array([[1.0, np.nan]]), jnp.array([[2.0, np.nan]]), np.array([[True, False]])
    )
    assert loss.tolist() == [[-2.0, 0.0]]
