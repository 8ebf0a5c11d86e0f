import functools

import jax
import numpy as np
import pytest
from scipy import stats

from jdiv import parallel
from jdiv.policy.recipes.rapo import rapo_penalty


def test_rapo_is_the_forward_kl_to_the_reweighted_reference():
    """Each answer as often as a reference of twentieths has it."""
    counts = np.array([10, 6, 3, 1])
    answers = np.repeat(np.arange(4), counts)
    ref = counts / 20
    policy = np.array([0.1, 0.2, 0.3, 0.4])
    weights = np.array([1.0, 0.0, 2.0, 5.0])
    args = np.log(policy)[answers], np.log(ref)[answers]
    found = rapo_penalty(*args, weights[answers])
    tilted = ref * weights / (ref @ weights)
    assert float(found.mean()) == pytest.approx(stats.entropy(tilted, policy))
    plain = rapo_penalty(*args, np.ones(20))
    assert float(plain.mean()) == pytest.approx(stats.entropy(ref, policy))
    mapped = jax.pmap(
        functools.partial(rapo_penalty, axis_name=parallel.BATCH), axis_name=parallel.BATCH
    )
    parts = [x[:16].reshape(8, 2) for x in (*args, weights[answers])]
    whole = rapo_penalty(*(x[:16] for x in (*args, weights[answers])))
    assert np.allclose(mapped(*parts).ravel(), whole)
