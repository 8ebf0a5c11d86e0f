"""Sweeps of value iteration on random processes with few successors, all in double precision.

    python -m benchmarks.value_iteration

QuantEcon's compiled operator and products with a sparse matrix of SciPy, from zero values and with
the same number of sweeps. QuantEcon has no regularized operator.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks import table
from benchmarks.table import Contestant, Row

SWEEPS = {5_000: 500, 50_000: 100}
"""By the number of states."""
ACTIONS, BRANCHES, DISCOUNT, TEMPERATURE = 10, 5, 0.99, 0.1


def process(states: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Successors, their probabilities, rewards."""
    rng = np.random.default_rng(0)
    shape = states, ACTIONS, BRANCHES
    successor = rng.integers(states, size=shape, dtype=np.int32)
    probability = rng.dirichlet(np.ones(BRANCHES), size=shape[:2])
    return successor, probability, rng.uniform(-1, 1, shape[:2])


def in_jax(scheme: Any, ran: str, arrays: tuple) -> Contestant:
    """The values after so many sweeps of a scheme."""
    import jax.numpy as jnp

    from jdiv.mdp import SparseMdp, operators, value_iteration

    successor, probability, reward = (jnp.asarray(x) for x in arrays)
    start = jnp.full(len(reward), 1 / len(reward))
    soft = operators.soft if "md_vi" in ran else None

    def values(mdp):
        q = value_iteration.run(mdp, scheme, SWEEPS[len(reward)]).last.q
        best = operators.greedy(q) if soft is None else soft(q, q, 0.0, TEMPERATURE)
        return best.value

    mdp = SparseMdp(successor, probability, reward, jnp.asarray(DISCOUNT), start)
    return table.compiled("jdiv", ran, values, (mdp,), tolerance=1e-9)


def matrix(successor: np.ndarray, probability: np.ndarray) -> Any:
    """`[S A, S]` as a sparse matrix of SciPy."""
    from scipy import sparse

    states = len(successor)
    starts = np.arange(0, probability.size + 1, BRANCHES)
    shape = states * ACTIONS, states
    found = sparse.csr_matrix((probability.ravel(), successor.ravel(), starts), shape, copy=True)
    found.sum_duplicates()
    return found


def in_quantecon(arrays: tuple) -> Contestant:
    """Its value iteration, with the greedy policy that it ends with."""
    from quantecon.markov import DiscreteDP

    successor, probability, reward = arrays
    states, actions = (x.ravel() for x in np.indices(reward.shape))
    transition = matrix(successor, probability)
    model = DiscreteDP(reward.ravel(), transition, DISCOUNT, states, actions)

    def call() -> np.ndarray:
        start = np.zeros(len(reward))
        return model.value_iteration(v_init=start, epsilon=0.0, max_iter=SWEEPS[len(reward)]).v

    return Contestant(
        "quantecon", "DiscreteDP.value_iteration", call, lambda v: [v], tolerance=1e-9
    )


def in_scipy(arrays: tuple, *, soft: bool) -> Contestant:
    """A product with the matrix, then a maximum or soft maximum, sweep after sweep."""
    from scipy.special import logsumexp

    successor, probability, reward = arrays
    transition = matrix(successor, probability)

    def call() -> np.ndarray:
        # The soft maximum of action values that are all zero, where jdiv begins.
        value = np.full(len(reward), TEMPERATURE * np.log(ACTIONS) if soft else 0.0)
        for _ in range(SWEEPS[len(reward)]):
            q = reward + DISCOUNT * (transition @ value).reshape(reward.shape)
            value = TEMPERATURE * logsumexp(q / TEMPERATURE, axis=1) if soft else q.max(axis=1)
        return value

    ran = "csr_matrix @ value, " + ("special.logsumexp" if soft else "max")
    return Contestant("scipy", ran, call, lambda v: [v], tolerance=1e-9)


def rows() -> Iterator[Row]:
    """Value iteration, and with an entropy, at each size."""
    import jax

    from jdiv.mdp import operators

    for states, sweeps in SWEEPS.items():
        arrays = process(states)
        size = f"{states} states x {ACTIONS} x {BRANCHES}, {sweeps} sweeps"

        def quantecon(arrays: tuple = arrays) -> Contestant:
            return in_quantecon(arrays)

        def scipy(arrays: tuple = arrays) -> Contestant:
            return in_scipy(arrays, soft=False)

        def scipy_soft(arrays: tuple = arrays) -> Contestant:
            return in_scipy(arrays, soft=True)

        with jax.enable_x64(True):
            plain = in_jax(operators.value_iteration(), "operators.value_iteration", arrays)
            soft = in_jax(operators.md_vi(0.0, TEMPERATURE), "operators.md_vi", arrays)
            yield from table.compare(
                "value iteration", size, "float64", [plain, *table.peers(quantecon, scipy)]
            )
            yield from table.compare(
                "value iteration with entropy", size, "float64", [soft, *table.peers(scipy_soft)]
            )


if __name__ == "__main__":
    table.show(rows())
