"""The trace of a change, with KL written out."""

import jax.numpy as jnp
import numpy as np
import pytest

from jdiv.decoding import tracing


def test_the_position_is_that_of_the_largest_kl():
    rng = np.random.default_rng(0)
    p, q = rng.dirichlet(np.ones(4), (2, 3, 5))
    kl = np.sum(p * np.log(p / q), axis=-1)
    trace = tracing.kl_trace(np.log(p), np.log(q))
    np.testing.assert_allclose(trace.kl, kl, rtol=1e-12)
    np.testing.assert_array_equal(trace.position, kl.argmax(axis=-1))


def test_what_was_impossible_is_infinitely_far_and_equals_go_to_the_first():
    clean = jnp.array([[0.0, 0.0], [0.0, -jnp.inf]], jnp.bfloat16)
    changed = jnp.array([[9.0, 0.0], [0.0, 0.0]], jnp.bfloat16)
    assert tracing.kl_trace(changed, clean).position == 1
    assert tracing.kl_trace(clean, clean).position == 0
    assert (tracing.kl_trace(clean, clean).kl == 0).all()


def test_a_law_alone_is_refused():
    with pytest.raises(ValueError, match="logits must be"):
        tracing.kl_trace(np.zeros(3), np.zeros(3))
