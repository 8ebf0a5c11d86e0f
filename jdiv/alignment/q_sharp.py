"""Q#: optimal values of finite trees from the law of the reference's return.

With KL towards a reference the optimum of a deterministic process needs no optimal control: the
soft value of a state is `beta log E_ref e^(Z/beta)`, Z the return that the *reference* has from
there. So it is enough to learn the law of Z, by supervised distributional backups, and to tilt
(`return_laws`, `q_sharp`). `regularized_values` is the backward recursion with any row of the
table, for which there is no such shortcut.

A process with deterministic transitions is the array `children [nodes, actions]` of the nodes where
the actions lead; -1 is no action, and a node without actions is terminal. Nodes may share
children and may come in any order, as long as there are no cycles.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jdiv import checks, numerics
from jdiv.divergences import generators
from jdiv.divergences.generator import Generator
from jdiv.regularized import greedy
from jdiv.types import Logits, LogPolicy

_KL = generators.kl()


class _Graph(NamedTuple):
    """A checked process with deterministic transitions."""

    children: Array
    log_ref: Array
    terminal: Array
    live: Array

    def solved(self, backup: Callable[[Array], Array], start: Array, depth: int) -> Array:
        """`backup` applied `depth` times; NaN where an end is further away than that."""
        ahead = lambda known: jnp.all(known[self.children] | ~self.live, axis=-1)
        known, value = jax.lax.fori_loop(
            0,
            depth,
            lambda _, at: (self.terminal | ahead(at[0]), backup(at[1])),
            (self.terminal, start),
        )
        return jnp.where(known.reshape(known.shape + (1,) * (value.ndim - 1)), value, jnp.nan)


def _graph(children: ArrayLike, ref_logits: Logits, depth: int) -> _Graph:
    """Checked children, the normalized log-reference, and which nodes are terminal."""
    children, ref_logits = _children(children), checks.as_float("ref_logits", ref_logits)
    checks.same_shape(children=children, ref_logits=ref_logits)
    checks.in_range("depth", depth, 0, jnp.inf, "at least 0", closed="low")
    terminal = jnp.all(children < 0, axis=-1)
    live = (children >= 0) & (ref_logits != -jnp.inf)
    if not any(isinstance(x, jax.core.Tracer) for x in (children, ref_logits)):
        if np.any(~np.asarray(terminal) & ~np.any(live, axis=-1)):
            raise ValueError("ref_logits must have some action at every node with children")
        _refuse_too_deep(np.asarray(children), np.asarray(live), depth)
    masked = jnp.where(terminal[:, None], 0, jnp.where(children < 0, -jnp.inf, ref_logits))
    inside = jnp.all(children < len(children), axis=-1, keepdims=True)
    log_ref = jnp.where(inside, numerics.log_softmax(masked), jnp.nan)
    return _Graph(children, log_ref, terminal, live)


def _children(children: ArrayLike) -> Array:
    """Checked indexes of nodes."""
    children = jnp.asarray(children)
    if not jnp.issubdtype(children.dtype, jnp.integer):
        raise TypeError(f"children must be integers, got dtype {children.dtype}")
    if children.ndim != 2:
        raise ValueError(f"children must be of shape [nodes, actions], got {children.shape}")
    if not isinstance(children, jax.core.Tracer) and np.max(children, initial=-1) >= len(children):
        raise ValueError(f"children must be below the {len(children)} nodes, got {children.max()}")
    return children


def _refuse_too_deep(children: np.ndarray, live: np.ndarray, depth: int) -> None:
    """Refuses a depth that does not reach the ends from everywhere, and cycles, that never do."""
    known, longest = np.all(children < 0, axis=-1), 0
    while not known.all():
        ahead = known | np.all(known[children] | ~live, axis=-1)
        if (ahead == known).all():
            node = int(np.flatnonzero(~known)[0])
            raise ValueError(f"children must have no cycles, got one that node {node} leads to")
        known, longest = ahead, longest + 1
    if depth < longest:
        raise ValueError(f"depth must be at least {longest}, the longest way, got {depth}")


def _matched(name: str, x: ArrayLike, nodes: Array, ndim: int) -> Array:
    x = checks.as_float(name, x)
    if x.ndim != ndim or len(x) != len(nodes):
        wanted = ("[nodes]", "[nodes, m]")[ndim - 1]
        raise ValueError(f"{name} must be of shape {wanted}, nodes = {len(nodes)}, got {x.shape}")
    return x


def return_laws(
    children: ArrayLike, ref_logits: Logits, log_returns: ArrayLike, *, depth: int
) -> Array:
    """The law of the return from every node under the reference, by distributional backups.

    `law(s) = sum_a ref(a|s) law(child(s, a))`, `depth` times, the number of actions until all is
    over. Fewer are refused, and so are cycles; of traced ones the laws are NaN where the ends are
    not reached. Shapes: children `[nodes, actions]`, ref_logits
    the same, log_returns `[nodes, m]` the log-probabilities of m values of the return, read at
    terminal nodes; to `[nodes, m]`.

    Reference: Zhou et al. 2025 (arXiv:2502.20548), Q#, the distributional backup.
    """
    graph = _graph(children, ref_logits, depth)
    log_returns = _matched("log_returns", log_returns, graph.children, 2)
    ended = jnp.where(graph.terminal[:, None], log_returns, -jnp.inf)
    log_ref = graph.log_ref[..., None].astype(ended.dtype)

    def backup(log_law: Array) -> Array:
        following = jnp.where(graph.live[..., None], log_law[graph.children], -jnp.inf)
        mixed = jax.nn.logsumexp(log_ref + following, axis=1)
        return jnp.where(graph.terminal[:, None], ended, mixed)

    return graph.solved(backup, ended, depth)


def fit_return_laws(
    visited: ArrayLike, outcomes: ArrayLike, prior: ArrayLike, *, nodes: int
) -> Array:
    """The law of the return from every node, from what was seen behind it: shares of counts.

    Rollouts may come to a node in any way, by policies of earlier rounds, too (aggregated data); on
    from there they have to follow the reference. `prior` counts each value before anything was
    seen; with none, a node that was not visited has NaN. Shapes: visited and outcomes `[n]`, the
    node, -1 for nothing, and the place of the value of the return; prior `[m]`, not negative; to
    `[nodes, m]` log-probabilities, as of `return_laws`.

    >>> law = fit_return_laws(jnp.array([0, 0, 1]), jnp.array([1, 1, 0]), jnp.ones(2), nodes=2)
    >>> [[f"{p:.4f}" for p in row] for row in jnp.exp(law)]
    [['0.2500', '0.7500'], ['0.6667', '0.3333']]

    Reference: Zhou et al. 2025 (arXiv:2502.20548), Q#, maximum likelihood on aggregated data.
    """
    visited, outcomes = jnp.asarray(visited), jnp.asarray(outcomes)
    prior = jnp.asarray(checks.not_negative("prior", checks.as_float("prior", prior)))
    for name, x in (("visited", visited), ("outcomes", outcomes)):
        if not jnp.issubdtype(x.dtype, jnp.integer):
            raise TypeError(f"{name} must be integers, got dtype {x.dtype}")
    checks.same_shape(visited=visited, outcomes=outcomes)
    if visited.ndim != 1 or prior.ndim != 1:
        got = f"{visited.shape} and {prior.shape}"
        raise ValueError(f"visited and prior must be of shapes [n] and [m], got {got}")
    ranges = ("visited", visited, -1, nodes), ("outcomes", outcomes, 0, len(prior))
    for name, x, low, size in ranges:
        if not isinstance(x, jax.core.Tracer) and np.any((x < low) | (x >= size)):
            raise ValueError(f"{name} must be from {low} to {size - 1}")
    # What is beyond the last node is dropped.
    at = jnp.where(visited < 0, nodes, visited), outcomes
    counts = jnp.broadcast_to(prior, (nodes, len(prior))).at[at].add(1, mode="drop")
    return jnp.log(counts) - jnp.log(jnp.sum(counts, axis=-1, keepdims=True))


def q_values(children: ArrayLike, log_law: ArrayLike, support: ArrayLike, beta: ArrayLike) -> Array:
    """`Q*(s, a) = beta log E_ref e^(Z/beta)`, Z the return from the child; -inf without a child.

    Shapes: children `[nodes, actions]`, log_law `[nodes, m]` of `return_laws`, support `[m]` the
    values of the return, beta positive, to `[nodes, actions]`. Its policy is `optimal_policy`.

    Reference: Zhou et al. 2025 (arXiv:2502.20548), Q#, Theorem on deterministic transitions.
    """
    beta = checks.positive("beta", beta)
    children, log_law, support = _law(children, log_law, support)
    beta = jnp.asarray(beta, log_law.dtype)
    value = beta * jax.nn.logsumexp(log_law + support[None] / beta, axis=-1)
    return _of_children(children, value)


def expected_returns(children: ArrayLike, log_law: ArrayLike, support: ArrayLike) -> Array:
    """`E_ref[Z]`, Z the return from the child, without any regularizer; -inf without a child.

    `q_values` for beta to infinity. Tilting the reference by it, `optimal_policy`, is guidance by
    the reference's own values: not the optimum, unless beta is large or one step is left.
    Shapes: as of `q_values`.

    Reference: Mudgal et al. 2023 (arXiv:2310.17022), controlled decoding.
    """
    children, log_law, support = _law(children, log_law, support)
    mass = jnp.exp(log_law)
    value = jnp.sum(jnp.where(mass == 0, 0, mass * support[None]), axis=-1)
    return _of_children(children, value)


def _law(children: ArrayLike, log_law: ArrayLike, support: ArrayLike) -> tuple[Array, Array, Array]:
    """Checked children, laws and values of the return, of one precision."""
    children, log_law = _children(children), checks.as_float("log_law", log_law)
    support = checks.as_float("support", support).astype(log_law.dtype)
    if log_law.ndim != 2 or len(log_law) != len(children):
        raise ValueError(f"log_law must be [{len(children)}, m], got shape {log_law.shape}")
    if support.shape != log_law.shape[-1:]:
        raise ValueError(f"support must be of shape {log_law.shape[-1:]}, got {support.shape}")
    return children, log_law, support


def _of_children(children: Array, value: Array) -> Array:
    """The values of the children, -inf without one, and NaN for one that is none of the nodes."""
    inside = jnp.where(children < len(children), value[children], jnp.nan)
    return jnp.where(children >= 0, inside, -jnp.inf)


def optimal_policy(
    q: Logits, ref_logits: Logits, beta: ArrayLike, *, generator: Generator = _KL
) -> LogPolicy:
    """`ref exp(Q*/beta)`, normalized: the optimal policy as log-probabilities.

    For another row than KL take the q of `regularized_values`. Terminal nodes keep the reference.
    Shapes: `[nodes, actions]` twice to the same.
    """
    beta = checks.positive("beta", beta)
    q, ref_logits = checks.alike(q=q, ref_logits=ref_logits)
    there = q != -jnp.inf
    none = ~jnp.any(there & (ref_logits != -jnp.inf), axis=-1, keepdims=True)
    kept = jnp.where(there | none, jnp.where(none, 0, ref_logits), -jnp.inf)
    best = greedy(jnp.where(there, q, 0), kept, beta, generator=generator).log_policy
    return jnp.where(none, numerics.log_softmax(ref_logits), best)


class TreeValues(NamedTuple):
    """Regularized optimal values of the nodes and actions of a tree.

    Fields:
        value: `[nodes]` V.
        q: `[nodes, actions]` Q, the value of the child; -inf where there is none.
    """

    value: Array
    q: Array


def regularized_values(
    children: ArrayLike,
    ref_logits: Logits,
    returns: ArrayLike,
    beta: ArrayLike,
    *,
    generator: Generator,
    depth: int,
) -> TreeValues:
    """`V(s) = max_pi <pi, V(child)> - beta D(pi‖ref(s))`, the penalty paid at every node.

    For KL that is `beta log E_ref e^(Z/beta)`, whatever happens in between; for no other row does
    the law of the reference's return suffice. Shapes: children and ref_logits `[nodes, actions]`,
    returns `[nodes]`, read at terminal nodes; `depth` as in `return_laws`.

    Reference: Geist, Scherrer and Pietquin 2019 (arXiv:1901.11275), section 3, the operator.
    """
    beta = checks.positive("beta", beta)
    graph = _graph(children, ref_logits, depth)
    returns = _matched("returns", returns, graph.children, 1)
    log_ref = graph.log_ref.astype(returns.dtype)

    def backup(value: Array) -> Array:
        following = jnp.where(graph.live, value[graph.children], 0)
        best = greedy(following, log_ref, beta, generator=generator).value
        return jnp.where(graph.terminal, returns, best)

    value = graph.solved(backup, jnp.where(graph.terminal, returns, 0), depth)
    return TreeValues(value, _of_children(graph.children, value))
