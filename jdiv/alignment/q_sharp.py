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


def _graph(children: ArrayLike, ref_logits: Logits) -> tuple[Array, Array, Array]:
    """Checked children, the normalized log-reference, and which nodes are terminal."""
    children, ref_logits = jnp.asarray(children), checks.as_float("ref_logits", ref_logits)
    if not jnp.issubdtype(children.dtype, jnp.integer):
        raise TypeError(f"children must be integers, got dtype {children.dtype}")
    checks.same_shape(children=children, ref_logits=ref_logits)
    if children.ndim != 2:
        raise ValueError(f"children must be of shape [nodes, actions], got {children.shape}")
    if not isinstance(children, jax.core.Tracer):
        known = np.asarray(children)
        if known.max() >= len(known):
            raise ValueError(f"children must be below the {len(known)} nodes, got {known.max()}")
        there = known >= 0
        if not isinstance(ref_logits, jax.core.Tracer):
            some = np.any(there & (np.asarray(ref_logits) > -np.inf), axis=-1)
            if np.any(there.any(axis=-1) & ~some):
                raise ValueError("ref_logits must have some action at every node with children")
    terminal = jnp.all(children < 0, axis=-1)
    masked = jnp.where(terminal[:, None], 0, jnp.where(children < 0, -jnp.inf, ref_logits))
    return children, numerics.log_softmax(masked), terminal


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
    over: with fewer a law sums to less than 1. Shapes: children `[nodes, actions]`, ref_logits
    the same, log_returns `[nodes, m]` the log-probabilities of m values of the return, read at
    terminal nodes; to `[nodes, m]`.

    Reference: Zhou et al. 2025 (arXiv:2502.20548), Q#, the distributional backup.
    """
    children, log_ref, terminal = _graph(children, ref_logits)
    log_returns = _matched("log_returns", log_returns, children, 2)
    ended = jnp.where(terminal[:, None], log_returns, -jnp.inf)

    def backup(log_law: Array, _):
        there = (children >= 0)[..., None]
        following = jnp.where(there, log_law[children], -jnp.inf)
        mixed = jax.nn.logsumexp(log_ref[..., None].astype(ended.dtype) + following, axis=1)
        return jnp.where(terminal[:, None], ended, mixed), None

    return jax.lax.scan(backup, ended, length=depth)[0]


def q_values(children: ArrayLike, log_law: ArrayLike, support: ArrayLike, beta: ArrayLike) -> Array:
    """`Q*(s, a) = beta log E_ref e^(Z/beta)`, Z the return from the child; -inf without a child.

    Shapes: children `[nodes, actions]`, log_law `[nodes, m]` of `return_laws`, support `[m]` the
    values of the return, beta positive, to `[nodes, actions]`. Its policy is `optimal_policy`.

    Reference: Zhou et al. 2025 (arXiv:2502.20548), Q#, Theorem on deterministic transitions.
    """
    checks.positive("beta", beta)
    children, log_law = jnp.asarray(children), checks.as_float("log_law", log_law)
    support = checks.as_float("support", support).astype(log_law.dtype)
    if support.shape != log_law.shape[-1:]:
        raise ValueError(f"support must be of shape {log_law.shape[-1:]}, got {support.shape}")
    beta = jnp.asarray(beta, log_law.dtype)
    value = beta * jax.nn.logsumexp(log_law + support[None] / beta, axis=-1)
    return jnp.where(children >= 0, value[children], -jnp.inf)


def optimal_policy(
    q: Logits, ref_logits: Logits, beta: ArrayLike, *, generator: Generator = _KL
) -> LogPolicy:
    """`ref exp(Q*/beta)`, normalized: the optimal policy as log-probabilities.

    For another row than KL take the q of `regularized_values`. Terminal nodes keep the reference.
    Shapes: `[nodes, actions]` twice to the same.
    """
    q, ref_logits = checks.as_float("q", q), checks.as_float("ref_logits", ref_logits)
    there = q > -jnp.inf
    none = ~jnp.any(there & (ref_logits > -jnp.inf), axis=-1, keepdims=True)
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
    children, log_ref, terminal = _graph(children, ref_logits)
    returns = _matched("returns", returns, children, 1)
    there = children >= 0

    def backup(value: Array, _):
        following = jnp.where(there, value[children], 0)
        best = greedy(following, log_ref.astype(value.dtype), beta, generator=generator).value
        return jnp.where(terminal, returns, best), None

    value = jax.lax.scan(backup, jnp.where(terminal, returns, 0), length=depth)[0]
    return TreeValues(value, jnp.where(there, value[children], -jnp.inf))
