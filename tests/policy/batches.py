import jax
import jax.numpy as jnp
import numpy as np

ROWS, TOKENS, GROUP = 8, 6, 4


def batch(seed=0, rows=ROWS):
    """Log-probabilities, old ones, advantages of sequences, a mask that keeps prefixes."""
    rng = np.random.default_rng(seed)
    log_probs = np.log(rng.uniform(0.01, 0.99, (rows, TOKENS)))
    old = log_probs + 0.3 * rng.normal(size=(rows, TOKENS))
    mask = np.arange(TOKENS) < rng.integers(2, TOKENS + 1, (rows, 1))
    return log_probs, old, rng.normal(size=rows), mask


def summed(loss, *arrays, **options):
    """A loss's result, and the gradient of its sum by the first array."""

    @jax.jit
    def compute(*arrays):
        def total(first):
            out = loss(first, *arrays[1:], **options)
            return jnp.sum(out[0]), out

        return jax.value_and_grad(total, has_aux=True)(arrays[0])

    (_, out), gradient = compute(*arrays)
    return out, np.asarray(gradient)
