import jax
import jax.numpy as jnp
import numpy as np

from jdiv import parallel
from jdiv.policy.recipes.arlcp import arlcp_rewards
from jdiv.policy.recipes.difficulty import pass_rate
from jdiv.policy.recipes.dler import dler_advantages
from jdiv.policy.recipes.fg_expo import fg_expo_coefficient, fg_expo_weights
from jdiv.policy.recipes.grpo_lambda import grpo_lambda_rewards


def test_the_same_batch_on_many_devices():
    rng = np.random.default_rng(2)
    rate = rng.uniform(size=8)
    rewards = (rng.uniform(size=(8, 4)) < rate[:, None]).astype(float)

    def whole(axis_name, rate, rewards):
        return (
            fg_expo_weights(rate, width=0.3, axis_name=axis_name),
            fg_expo_coefficient(rate, low=0.0, high=1.0, axis_name=axis_name),
            dler_advantages(rewards, axis_name=axis_name),
            grpo_lambda_rewards(rewards, rewards / 2, share=0.3, axis_name=axis_name),
        )

    mapped = jax.pmap(lambda *x: whole(parallel.BATCH, *x), axis_name=parallel.BATCH)
    expected = whole(None, rate, rewards)
    for one, many in zip(expected, mapped(rate[:, None], rewards[:, None]), strict=True):
        assert np.allclose(many.reshape(8, *one.shape[1:]) if one.ndim else many[0], one)


def test_one_answer_and_equal_rewards_are_finite():
    for rewards in (np.ones((3, 1)), np.zeros((3, 4)), jnp.ones((2, 2), jnp.bfloat16)):
        for found in (
            dler_advantages(rewards),
            arlcp_rewards(rewards, np.ones(rewards.shape), np.ones(rewards.shape)),
            fg_expo_weights(pass_rate(rewards), width=0.1),
        ):
            assert np.isfinite(found).all()
