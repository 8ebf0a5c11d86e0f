"""Moves in CartPole a second while learning, against the DQN of stable-baselines3.

    python -m benchmarks.deep_q

Both have eight environments, a network of two hidden layers of 64, and after one move in each
environment a gradient step of Adam on 32 moves of a buffer of 8,192. jdiv's method is Munchausen's,
once alone and once with 64 seeds as lanes of one program; of stable-baselines3 it is one run, as it
has no other way. What is compared is the number of moves, not what is learned by them. Compilation
is not counted, nor the making of stable-baselines3's objects.
"""

import itertools
from collections.abc import Iterator

import numpy as np

from benchmarks import table
from benchmarks.table import Contestant, Row

SEEDS, STEPS, PEER_STEPS = 64, 200, 150
ENVIRONMENTS, HIDDEN = 8, (64, 64)
SETTINGS = {"batch_size": 32, "buffer_size": 8192, "learning_rate": 1e-3, "gamma": 0.99}
UPDATE_TARGET, EXPLORATION = 50, 0.05


def in_jax(seeds: int, steps: int) -> Contestant:
    """So many gradient steps of as many seeds."""
    import jax
    import jax.numpy as jnp

    from jdiv.mdp import deep

    environment = deep.from_gymnax("CartPole-v1")
    settings = deep.Settings(
        hidden=HIDDEN, environments=ENVIRONMENTS, target_every=UPDATE_TARGET,
        capacity=SETTINGS["buffer_size"], batch=SETTINGS["batch_size"],
        learning_rate=SETTINGS["learning_rate"], discount=SETTINGS["gamma"],
        exploration=EXPLORATION,
    )  # fmt: skip
    hyper = deep.Hyperparameters(weight=0.9, temperature=0.03)

    def train(state, key):
        step = lambda state, key: deep.step(settings, environment, hyper, state, key)
        state, metrics = jax.lax.scan(step, state, jax.random.split(key, steps))
        return state, metrics["loss"][-1]

    keys = jax.random.split(jax.random.key(0), (2, seeds))
    states = jax.jit(jax.vmap(lambda key: deep.init(settings, environment, key)))(keys[0])
    shapes = [np.shape(x)[1:] for x in jax.tree.leaves(states.params["q"])]
    one = table.compiled("jdiv", "", jax.vmap(train), (states, keys[1]))
    finite = lambda result: bool(jnp.all(jnp.isfinite(result[1])))
    assert finite(one.call())
    name = "jdiv" if seeds > 1 else "jdiv, one seed"
    ran = f"mdp.deep, {seeds} seeds in one program" if seeds > 1 else "mdp.deep, one seed"
    assert sum(np.prod(shape, dtype=int) for shape in shapes) == weights()
    return one._replace(
        name=name, ran=ran, numbers=None, count=seeds * steps * ENVIRONMENTS, unit="moves/s"
    )


def weights() -> int:
    """Numbers in a network from 4 observations to 2 values."""
    sizes = (4, *HIDDEN, 2)
    return sum((a + 1) * b for a, b in itertools.pairwise(sizes))


def stable_baselines3() -> Contestant:
    """As many moves and gradient steps of one agent."""
    import torch
    from stable_baselines3 import DQN
    from stable_baselines3.common.env_util import make_vec_env

    agent = DQN(
        "MlpPolicy", make_vec_env("CartPole-v1", ENVIRONMENTS, seed=0), train_freq=1,
        gradient_steps=1, target_update_interval=UPDATE_TARGET * ENVIRONMENTS, learning_starts=0,
        exploration_initial_eps=EXPLORATION, exploration_final_eps=EXPLORATION,
        policy_kwargs={"net_arch": list(HIDDEN)}, device="cpu", seed=0, **SETTINGS,
    )  # fmt: skip
    torch.set_num_threads(1)  # faster than two for a network as small
    assert sum(x.numel() for x in agent.q_net.parameters()) == weights()
    moves = PEER_STEPS * ENVIRONMENTS

    def call() -> None:
        before = agent._n_updates
        agent.learn(moves)
        assert agent._n_updates - before == PEER_STEPS

    return Contestant(
        "stable-baselines3", "DQN, one agent, 8 environments, one thread", call, None,
        count=moves, unit="moves/s",
    )  # fmt: skip


def rows() -> Iterator[Row]:
    """Seconds a move."""
    contestants = [
        in_jax(SEEDS, STEPS), in_jax(1, 10 * STEPS), *table.peers(stable_baselines3)
    ]  # fmt: skip
    yield from table.compare("deep Q-learning", "CartPole-v1", "float32", contestants, budget=30.0)


if __name__ == "__main__":
    table.show(rows())
