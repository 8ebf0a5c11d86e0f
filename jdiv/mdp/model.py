"""Finite Markov decision processes, dense and sparse, and what is known exactly about them.

Both forms have the same methods, `expectation`, `flow` and `policy_transition`, and everything else
is written in terms of these. Policies are probabilities `[S, A]`, values `[S]`, action values
`[S, A]`; occupancy measures are normalized, `(1 - discount) sum_t discount^t P(s_t, a_t)`.
A process is checked where it is made, as far as its arrays have values: rows that are no
distributions and a discount out of range are refused. Of traced ones they make values NaN.

>>> stay_or_go = Mdp(
...     transition=jnp.array([[[1.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [0.0, 1.0]]]),
...     reward=jnp.array([[0.0, 1.0], [2.0, 2.0]]),
...     discount=0.5,
...     start=jnp.array([1.0, 0.0]),
... )
>>> policy_value(stay_or_go, jnp.array([[0.0, 1.0], [1.0, 0.0]])).tolist()
[3.0, 4.0]
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.linalg import lu_factor, lu_solve
from jax.typing import ArrayLike

from jdiv import checks
from jdiv.mdp import linear
from jdiv.mdp.linear import Solved
from jdiv.types import Indices, PerState, Scalar, StateActions

# ------------------------------------------------------------------------------------- two forms


def _checked_when_made(cls: type) -> type:
    """Decorator of a process: the constructor and `_replace` refuse what is none, pytrees do not.

    What a transformation of JAX hands over for leaves need not be arrays.
    """
    new = cls.__new__

    @functools.wraps(new)
    def checked(cls, *arguments, **named):
        made = new(cls, *arguments, **named)
        _refuse_known(made)
        return made

    def flatten(mdp):
        keys = map(jax.tree_util.GetAttrKey, mdp._fields)
        return tuple(zip(keys, mdp, strict=True)), None

    cls.__new__ = checked
    cls._replace = lambda self, **changes: type(self)(**{**self._asdict(), **changes})
    jax.tree_util.register_pytree_with_keys(cls, flatten, lambda _, leaves: cls._make(leaves))
    return cls


@_checked_when_made
class Mdp(NamedTuple):
    """A process by its full transition tensor.

    Fields:
        transition: `[S, A, S]` probabilities of the next state.
        reward: `[S, A]` expected reward.
        discount: `[]` in [0, 1).
        start: `[S]` probabilities of the first state.
    """

    transition: Array
    reward: Array
    discount: ArrayLike
    start: Array

    def expectation(self, value: PerState) -> Array:
        """`E[value(s') | s, a]`, from `[S]` to `[S, A]`."""
        return self.transition @ value

    def flow(self, mass: StateActions) -> Array:
        """The mass that arrives in each state, from `[S, A]` to `[S]`: the adjoint."""
        return jnp.einsum("sa,sat->t", mass, self.transition)

    def policy_transition(self, policy: StateActions) -> Array:
        """`[S, S]` transition matrix of the chain that a policy makes."""
        return jnp.einsum("sa,sat->st", policy, self.transition)


@_checked_when_made
class SparseMdp(NamedTuple):
    """A process by the few successors that each state and action has.

    Fields:
        successor: `[S, A, B]` integers, the states that can follow; one may occur twice.
        probability: `[S, A, B]` their probabilities.
        reward: `[S, A]` expected reward.
        discount: `[]` in [0, 1).
        start: `[S]` probabilities of the first state.
    """

    successor: Array
    probability: Array
    reward: Array
    discount: ArrayLike
    start: Array

    def expectation(self, value: PerState) -> Array:
        """`E[value(s') | s, a]`, from `[S]` to `[S, A]`, without `[S, A, B]` products."""
        branches = tuple(jnp.moveaxis(x, -1, 0) for x in (self.probability, self.successor))

        def add(total, branch):
            probability, successor = branch
            return total + probability * value[successor], None

        dtype = jnp.result_type(self.probability, value)
        start = jnp.zeros(self.successor.shape[:-1], dtype)
        # Unrolled sums are one loop over states and actions, which fills vectors and all cores.
        return jax.lax.scan(add, start, branches, unroll=min(8, len(branches[0])))[0]

    def flow(self, mass: StateActions) -> Array:
        """The mass that arrives in each state, from `[S, A]` to `[S]`: the adjoint."""
        arriving = mass[..., None] * self.probability
        return jnp.zeros_like(self.start).at[self.successor].add(arriving)

    def policy_transition(self, policy: StateActions) -> Array:
        """`[S, S]` transition matrix of the chain that a policy makes."""
        states = jnp.arange(self.start.shape[0])[:, None, None]
        matrix = jnp.zeros(2 * self.start.shape, self.probability.dtype)
        return matrix.at[states, self.successor].add(policy[..., None] * self.probability)


AnyMdp = Mdp | SparseMdp


def dense(mdp: AnyMdp) -> Mdp:
    """The same process by its full tensor.

    >>> twice = SparseMdp(
    ...     successor=jnp.array([[[0, 0]]]), probability=jnp.array([[[0.25, 0.75]]]),
    ...     reward=jnp.zeros((1, 1)), discount=0.9, start=jnp.ones(1),
    ... )
    >>> dense(twice).transition.tolist()
    [[[1.0]]]
    """
    if isinstance(mdp, Mdp):
        return mdp
    states, actions, _ = mdp.successor.shape
    s, a = jnp.arange(states)[:, None, None], jnp.arange(actions)[None, :, None]
    tensor = jnp.zeros((states, actions, states), mdp.probability.dtype)
    tensor = tensor.at[s, a, mdp.successor].add(mdp.probability)
    return Mdp(tensor, mdp.reward, mdp.discount, mdp.start)


def validate(mdp: AnyMdp) -> None:
    """Refuses arrays that are no process, in one line; for arrays with values, not under jit.

    >>> validate(Mdp(np.ones((1, 1, 1)), np.zeros(1), 0.9, np.ones(1)))
    Traceback (most recent call last):
    ValueError: reward must have shape (1, 1), got (1,)
    """
    rows = np.asarray(mdp.transition if isinstance(mdp, Mdp) else mdp.probability)
    reward, start = np.asarray(mdp.reward), np.asarray(mdp.start)
    name = "transition" if isinstance(mdp, Mdp) else "probability"
    if rows.ndim != 3 or not rows.size:
        raise ValueError(f"{name} must be [S, A, successors], got shape {rows.shape}")
    states, actions, successors = rows.shape
    if isinstance(mdp, Mdp) and successors != states:
        raise ValueError(f"transition must be [S, A, S], got shape {rows.shape}")
    if isinstance(mdp, SparseMdp):
        successor = np.asarray(mdp.successor)
        if successor.shape != rows.shape:
            raise ValueError(
                f"successor must have probability's shape {rows.shape}, got {successor.shape}"
            )
        if successor.dtype.kind not in "iu":
            raise TypeError(f"successor must be integers, got {successor.dtype}")
        if successor.min() < 0 or successor.max() >= states:
            raise ValueError(
                f"successor must be in [0, {states}), got {successor.min()} to {successor.max()}"
            )
    if reward.shape != (states, actions):
        raise ValueError(f"reward must have shape {(states, actions)}, got {reward.shape}")
    if start.shape != (states,):
        raise ValueError(f"start must have shape {(states,)}, got {start.shape}")
    _refuse_no_distribution(name, rows)
    _refuse_no_distribution("start", start)
    if not np.isfinite(reward).all():
        where = tuple(int(i) for i in np.argwhere(~np.isfinite(reward))[0])
        raise ValueError(f"reward must be finite, got {reward[where]} at {where}")
    _discount(mdp)


def _refuse_known(mdp: AnyMdp) -> None:
    """Refuses distributions and a discount that are none, where they are known; any batch."""
    for name in set(mdp._fields) & {"transition", "probability", "start"}:
        array = getattr(mdp, name)
        if _known(array) and np.ndim(array):
            _refuse_no_distribution(name, np.asarray(array))
    if _known(mdp.discount) or isinstance(mdp.discount, int | float):
        _discount(mdp)


def _known(x: ArrayLike) -> bool:
    """Whether this is an array of which this host can read the values."""
    if isinstance(x, jax.core.Tracer) or not isinstance(x, np.ndarray | np.generic | Array):
        return False
    return getattr(x, "is_fully_addressable", True)


def _discount(mdp: AnyMdp) -> ArrayLike:
    """The discount, NaN where it is traced and out of range."""
    return checks.in_range("discount", mdp.discount, 0, 1, "in [0, 1)", closed="low")


def _refuse_no_distribution(name: str, rows: np.ndarray) -> None:
    """Refuses rows that are negative or do not sum to one, to the precision of their type."""
    if not (rows >= 0).all():
        where = tuple(int(i) for i in np.argwhere(~(rows >= 0))[0])
        raise ValueError(f"{name} must not be negative, got {rows[where]} at {where}")
    total = rows.sum(axis=-1)
    wrong = np.abs(total - 1) > 8 * np.finfo(rows.dtype).eps * max(8, rows.shape[-1] ** 0.5)
    if wrong.any():
        where = tuple(int(i) for i in np.argwhere(wrong)[0])
        at = f" at {where}" if where else ""
        raise ValueError(f"{name} must sum to one over its last axis, got {total[where]}{at}")


# ---------------------------------------------------------------------------------- exact oracles


def action_values(mdp: AnyMdp, value: PerState) -> Array:
    """`q(s, a) = r(s, a) + discount E[v(s')]`, from `[S]` to `[S, A]`.

    >>> from jdiv.mdp import environments
    >>> action_values(environments.chain(length=3, slip=0.0), jnp.zeros(3)).tolist()
    [[0.10000000149011612, 0.0], [0.0, 0.0], [0.0, 1.0]]
    """
    return mdp.reward + mdp.discount * mdp.expectation(value)


MATRIX_STATES = 2000
"""Sparse processes of more states are solved by `linear.solve`, without a matrix."""


def without_matrix(mdp: AnyMdp) -> bool:
    """Whether values and occupancies of this process are solved without an `[S, S]` matrix."""
    return isinstance(mdp, SparseMdp) and mdp.start.shape[0] > MATRIX_STATES


def evaluation(mdp: AnyMdp, policy: StateActions, bonus: PerState | None = None) -> Solved:
    """`[S]` value of a policy as in `policy_value`, with the evidence that it is one.

    >>> from jdiv.mdp import environments
    >>> found = evaluation(environments.chain(length=3), jnp.full((3, 2), 0.5))
    >>> bool(found.residual < 1e-5), bool(found.converged)
    (True, True)
    """
    plain, level, rest, solved = _value(mdp, policy, bonus)
    # The derivative is that of the plain solution; only its rounding error is taken out.
    value = plain + jax.lax.stop_gradient(level + rest - plain)
    return solved._replace(solution=value)


def policy_value(mdp: AnyMdp, policy: StateActions, bonus: PerState | None = None) -> Array:
    """`[S]` value of a policy, `(1 - discount P_pi)^-1 r_pi`, by a linear solve.

    `bonus`, `[S]`, is added to the reward of every step: minus a regularizer, for instance.
    Policies that are none, such as their logarithms, are refused, and have the value NaN if they
    are traced. Sparse processes of more than `MATRIX_STATES` states are solved by iterations, which
    give NaN where they do not converge; `evaluation` says how far they came.
    """
    solved = evaluation(mdp, policy, bonus)
    if not without_matrix(mdp):
        return solved.solution
    return jnp.where(solved.converged, solved.solution, jnp.nan)


def _value(
    mdp: AnyMdp, policy: StateActions, bonus: PerState | None = None
) -> tuple[Array, Array, Array, Solved]:
    """The value of a policy as one solve gives it, as a constant `[]` plus the rest, the evidence.

    A constant c is the value of the rewards `(1 - discount) c`. What is left of a value without its
    mean is of the size of its differences, and so is the rounding error of its solve: with a
    discount near 1 that is less by far.
    """
    policy, discount = checks.probabilities("policy", policy), _discount(mdp)
    reward = jnp.sum(policy * mdp.reward, axis=-1)
    reward = reward if bonus is None else reward + bonus
    solve = _solver(mdp, policy)
    plain = solve(reward, None)
    level = jax.lax.stop_gradient(jnp.mean(plain.solution))
    guess = jax.lax.stop_gradient(plain.solution) - level
    rest = solve(reward - (1 - discount) * level, guess)
    solved = rest._replace(iterations=plain.iterations + rest.iterations)
    return plain.solution, level, rest.solution, solved


def _solver(
    mdp: AnyMdp, policy: StateActions, *, transposed: bool = False
) -> Callable[[Array, Array | None], Solved]:
    """Solves `x = b + discount P_pi x`, or with the transpose, from b and a first guess.

    By factors of the matrix, or without it if the process is sparse and large. Derivatives are
    solutions of the transposed equations.
    """
    if without_matrix(mdp):
        apply = _chain(mdp, policy, transposed=transposed)

        def iterate(f, b, guess):
            found = linear.solve(f, b, 0.0 if guess is None else guess)
            return found.solution, found[1:]

        def solve(b, guess):
            return jax.lax.custom_linear_solve(
                apply,
                b,
                lambda f, b: iterate(f, b, guess),
                lambda f, b: iterate(f, b, None),
                has_aux=True,
            )
    else:
        system = _system(mdp, policy)
        # The factors of the transpose itself keep the zeros of states that are never reached.
        system = system.T if transposed else system
        factors = lu_factor(jax.lax.stop_gradient(system))

        def apply(x):
            return system @ x

        def solve(b, guess):
            del guess  # needs none
            solution = jax.lax.custom_linear_solve(
                apply,
                b,
                lambda _, b: lu_solve(factors, b),
                lambda _, b: lu_solve(factors, b, trans=1),
            )
            error = jax.lax.stop_gradient(b - apply(solution))
            residual = jnp.max(jnp.abs(error))
            return solution, (residual, jnp.zeros((), jnp.int32), jnp.isfinite(residual))

    def solved(b, guess):
        solution, evidence = solve(b, guess)
        return Solved(solution, *evidence)

    return solved


def _chain(mdp: SparseMdp, policy: StateActions, *, transposed: bool) -> Callable[[Array], Array]:
    """`x - discount P_pi x`, `[S]` to `[S]`, or with the transpose, without a matrix."""
    probability = checks.probabilities("probability", mdp.probability)
    discount = _discount(mdp)
    mdp = type(mdp)._make(mdp._replace(probability=probability))

    def forward(x):
        return x - discount * jnp.sum(policy * mdp.expectation(x), axis=-1)

    def backward(x):
        return x - discount * mdp.flow(x[:, None] * policy)

    return backward if transposed else forward


def _system(mdp: AnyMdp, policy: StateActions) -> Array:
    """`[S, S]` `1 - discount P_pi`; NaN where a traced process has rows that are none."""
    chain = checks.probabilities("transition under the policy", mdp.policy_transition(policy))
    return jnp.eye(len(chain), dtype=chain.dtype) - _discount(mdp) * chain


def policy_action_values(mdp: AnyMdp, policy: StateActions) -> Array:
    """`[S, A]` action values of a policy."""
    return action_values(mdp, policy_value(mdp, policy))


def visitation(mdp: AnyMdp, policy: StateActions) -> Solved:
    """`[S]` mass of the states in the occupancy of a policy, with the evidence that it is that.

    >>> from jdiv.mdp import environments
    >>> found = visitation(environments.chain(length=3), jnp.full((3, 2), 0.5))
    >>> f"{found.solution.sum():.4f}", bool(found.converged)
    ('1.0000', True)
    """
    policy = checks.probabilities("policy", policy)
    start = (1 - _discount(mdp)) * jnp.asarray(mdp.start)
    return _solver(mdp, policy, transposed=True)(start, None)


def occupancy(mdp: AnyMdp, policy: StateActions) -> Array:
    """`[S, A]` normalized discounted occupancy measure of a policy, by a linear solve.

    `sum mu r = (1 - discount) * return`. Sparse processes of more than `MATRIX_STATES` states are
    solved by iterations, which give NaN where they do not converge, as `visitation` would say.

    >>> from jdiv.mdp import environments
    >>> chain = environments.chain(length=2, slip=0.0, discount=0.5)
    >>> occupancy(chain, jnp.array([[0.0, 1.0], [0.0, 1.0]])).tolist()
    [[0.0, 0.5], [0.0, 0.5]]
    """
    solved = visitation(mdp, policy)
    states = solved.solution
    if without_matrix(mdp):
        states = jnp.where(solved.converged, states, jnp.nan)
    return states[:, None] * policy


def expected_return(mdp: AnyMdp, policy: StateActions) -> Array:
    """`[]` value of a policy at the start."""
    return mdp.start @ policy_value(mdp, policy)


class Optimum(NamedTuple):
    """An optimal policy and the evidence that it is one.

    Fields:
        policy: `[S, A]` deterministic; the first of equally good actions.
        value: `[S]` the value of this policy.
        iterations: `[]` steps of policy iteration.
        residual: `[]` `max |T v - v|` of this value: no policy is better by more than that over
            `1 - discount`.
        converged: `[]` whether the residual is down to rounding.
    """

    policy: Array
    value: Array
    iterations: Array
    residual: Array
    converged: Array


def optimum(mdp: AnyMdp, *, evaluations: int | None = None) -> Optimum:
    """The optimal policy by policy iteration, with exact evaluation unless `evaluations` are given.

    Ends when no action is better than the policy's by more than rounding, of the differences
    between values and not of the values: with a discount near 1 these are far larger.
    With `evaluations` it is modified policy iteration, which improves the policy after so many
    sweeps, of its own actions but for the first, and solves no equation until the end. Then
    `iterations` are improvements. Either way the policy found is evaluated exactly, and the
    residual is that of its value.

    >>> from jdiv.mdp import environments
    >>> best = optimum(environments.chain(length=3, slip=0.0, discount=0.5))
    >>> best.policy.argmax(axis=1).tolist(), best.value.tolist()
    ([1, 1, 1], [0.5, 1.0, 2.0])

    Reference: Howard 1960, Dynamic programming and Markov processes; Puterman and Shin 1978 for
    the modified one.
    """
    if evaluations is None:
        choice, iterations = _policy_iteration(mdp)
    else:
        checks.in_range("evaluations", evaluations, 1, jnp.inf, "at least 1", closed="low")
        choice, iterations = _modified_policy_iteration(mdp, evaluations)
    _, q, slack, _ = _evaluated(mdp, choice)
    # Equally good actions are settled in favor of the first, whatever the path was.
    choice = jnp.argmax(q >= jnp.max(q, axis=-1, keepdims=True) - slack, axis=-1)
    value, q, slack, rest = _evaluated(mdp, choice)
    residual = jnp.max(jnp.abs(jnp.max(q, axis=-1) - rest))
    policy = jax.nn.one_hot(choice, mdp.reward.shape[1], dtype=jnp.asarray(mdp.reward).dtype)
    policy = jnp.where(jnp.isfinite(residual), policy, jnp.nan)
    return Optimum(policy, value, iterations, residual, residual <= slack)


def following(mdp: AnyMdp, choice: Indices) -> AnyMdp:
    """The process with one action, that which `choice`, `[S]`, takes in each state."""
    states = jnp.arange(choice.shape[0])
    # Fields of states and actions are those with more than one axis.
    of_actions = {name: x for name, x in mdp._asdict().items() if jnp.ndim(x) > 1}
    taken = {name: jnp.asarray(x)[states, choice][:, None] for name, x in of_actions.items()}
    return mdp._replace(**taken)


def _evaluated(mdp: AnyMdp, choice: Indices) -> tuple[Array, Array, Array, Array]:
    """Value of a choice, action values without the value's mean, how far these are from equal."""
    single = following(mdp, choice)
    _, level, rest, _ = _value(single, jnp.ones_like(single.reward))
    discount = _discount(mdp)
    q = mdp.reward - (1 - discount) * level + discount * mdp.expectation(rest)
    return level + rest, q, 64 * jnp.finfo(q.dtype).eps * jnp.max(jnp.abs(q)), rest


def _policy_iteration(mdp: AnyMdp) -> tuple[Array, Array]:
    """The best choices `[S]`, each evaluated exactly, and the number of improvements."""

    def improve(state):
        choice, _, iteration = state
        _, q, slack, _ = _evaluated(mdp, choice)
        chosen = jnp.take_along_axis(q, choice[:, None], axis=-1)[:, 0]
        better = jnp.max(q, axis=-1) > chosen + slack
        return jnp.where(better, jnp.argmax(q, axis=-1), choice), jnp.any(better), iteration + 1

    choice = jnp.argmax(jnp.asarray(mdp.reward), axis=-1)
    start = choice, jnp.array(True), jnp.zeros((), jnp.int32)
    choice, _, iterations = jax.lax.while_loop(
        lambda state: state[1] & (state[2] < 1000), improve, start
    )
    return choice, iterations


def _modified_policy_iteration(mdp: AnyMdp, evaluations: int) -> tuple[Array, Array]:
    """The greedy choices `[S]` where `T v - v` is a constant but for rounding, and improvements.

    Values are kept without their mean: a constant in them changes no choice, and without it the
    differences converge as fast as the chain mixes, whatever the discount.
    Reference: MacQueen 1966, the bounds by the least and the largest of `T v - v`.
    """
    discount = _discount(mdp)
    reward = jnp.asarray(mdp.reward)

    def centered(value):
        return value - jnp.mean(value)

    def improve(state):
        value, _, _, count = state
        q = reward + discount * mdp.expectation(value)
        best, choice = jnp.max(q, axis=-1), jnp.argmax(q, axis=-1)
        change = best - value
        slack = 16 * jnp.finfo(q.dtype).eps * jnp.max(jnp.abs(q))
        settled = jnp.max(change) - jnp.min(change) <= slack
        single = following(mdp, choice)

        def sweep(_, value):
            return centered(action_values(single, value)[:, 0])

        value = jax.lax.fori_loop(1, evaluations, sweep, centered(best))
        return value, choice, settled, count + 1

    states = reward.shape[0]
    start = jnp.zeros(states, reward.dtype), jnp.zeros(states, int), jnp.array(False), 0
    _, choice, _, count = jax.lax.while_loop(
        lambda state: ~state[2] & (state[3] < 10_000), improve, start
    )
    return choice, jnp.asarray(count)


def finite_horizon_value(
    mdp: AnyMdp, policy: StateActions, horizon: int, *, discount: Scalar = 1.0
) -> Array:
    """`[S]` expected sum of `horizon` rewards of a stationary policy, discounted if asked for.

    >>> from jdiv.mdp import environments
    >>> right = jnp.array([[0.0, 1.0], [0.0, 1.0]])
    >>> finite_horizon_value(environments.chain(length=2, slip=0.0), right, 3).tolist()
    [2.0, 3.0]
    """

    def back(value, _):
        q = mdp.reward + discount * mdp.expectation(value)
        return jnp.sum(policy * q, axis=-1), None

    return jax.lax.scan(back, jnp.zeros_like(mdp.start), length=horizon)[0]


def finite_horizon_optimum(
    mdp: AnyMdp, horizon: int, *, discount: Scalar = 1.0
) -> tuple[Array, Array]:
    """Optimal value `[S]` over `horizon` steps, and action values `[horizon, S, A]` in order.

    >>> from jdiv.mdp import environments
    >>> value, q = finite_horizon_optimum(environments.chain(length=2, slip=0.0), 3)
    >>> value.tolist(), q.shape
    ([2.0, 3.0], (3, 2, 2))
    """

    def back(value, _):
        q = mdp.reward + discount * mdp.expectation(value)
        return jnp.max(q, axis=-1), q

    value, q = jax.lax.scan(back, jnp.zeros_like(mdp.start), length=horizon)
    return value, q[::-1]
