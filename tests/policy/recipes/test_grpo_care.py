import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdiv.policy.recipes.grpo_care import answer_likelihood, care_bonus


def test_the_bonus_as_loops_over_answers():
    rng = np.random.default_rng(1)
    rewards = (rng.uniform(size=(40, 6)) < 0.6) * rng.uniform(0.05, 1, (40, 6))
    confidence = rng.uniform(size=(40, 6))
    rewards[0], rewards[1], rewards[2] = 0, 0.7, 0.05
    found = np.asarray(jax.jit(care_bonus)(rewards, confidence))
    for r, c, bonus in zip(rewards, np.minimum(confidence, 0.95), found, strict=True):
        accurate = (r > 0.1) & (r >= r.mean() - 1e-12)
        level = c[accurate].mean() - 0.01 if accurate.any() else np.inf
        assert np.allclose(bonus, np.where(accurate & (c >= level), 0.5 * r, 0))
    assert not found[0].any()
    assert not found[2].any()
    assert 0 < (found > 0).mean() < (rewards > 0.1).mean()


def test_one_answer_the_ceiling_and_the_likelihood():
    # Alone an answer is its own mean; above the ceiling all are equally sure.
    assert care_bonus(np.ones((1, 1)), np.zeros((1, 1))).tolist() == [[0.5]]
    sure = np.array([[0.96, 0.97, 1.0]])
    assert care_bonus(np.ones((1, 3)), sure, margin=0.0).tolist() == [[0.5] * 3]
    log_probs = np.log(np.array([[0.5, 0.9, 0.4, np.nan], [0.5, 0.25, 1.0, 1.0], [1, 1, 1, 1.0]]))
    log_probs[1, 2] = -np.inf
    mask = np.array([[0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]], bool)
    found = jax.jit(answer_likelihood)(log_probs, mask)
    assert np.allclose(found, [0.6, 0, 0])
    assert answer_likelihood(jnp.zeros((1, 2), jnp.bfloat16), mask[:1, 1:3]).dtype == jnp.float32
    with pytest.raises(ValueError, match="confidence"):
        care_bonus(np.ones((1, 2)), np.array([[0.5, 1.5]]))
