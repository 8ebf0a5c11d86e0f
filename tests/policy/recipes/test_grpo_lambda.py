import numpy as np

from jdiv.policy.recipes.grpo_lambda import grpo_lambda_rewards


def test_grpo_lambda_penalizes_the_best_groups():
    correct = (np.arange(4) < np.array([1, 4, 0, 3, 2])[:, None]).astype(float)
    penalized = correct - 0.5
    found = np.asarray(grpo_lambda_rewards(correct, penalized, share=0.4))
    best = np.array([False, True, False, True, False])
    assert np.array_equal(found, np.where(best[:, None], penalized, correct))
    assert np.array_equal(grpo_lambda_rewards(correct, penalized, share=0.0), correct)
    assert np.array_equal(grpo_lambda_rewards(correct, penalized, share=1.0), penalized)
