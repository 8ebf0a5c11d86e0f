"""Values instead of policies: Q# on finite trees, and A*-PO's regression on the optimal advantage.

With KL towards a reference the optimum of a deterministic process needs no optimal control: the
soft value of a state is `eta log E_ref e^(Z/eta)`, Z the return that the *reference* has from
there. So it is enough to learn the law of Z, by supervised distributional backups, and to tilt
(`return_laws`, `q_sharp`). `regularised_values` is the backward recursion with any row of the
table, for which there is no such shortcut. A*-PO uses the same formula for the value of a prompt,
from a few samples of the reference.

A process with deterministic transitions is the array `children [nodes, actions]` of the nodes where
the actions lead; -1 is no action, and a node without actions is terminal. Nodes may share
children and may come in any order, as long as there are no cycles.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jdiv import checks, numerics
from jdiv.divergences import generators
from jdiv.divergences.generators import Generator
from jdiv.regularized import greedy

_KL = generators.kl()

# ------------------------------------------------------------------------------------ finite trees


def _graph(children: ArrayLike, ref_logits: ArrayLike) -> tuple[Array, Array, Array]:
    """Children, their log-probabilities under the reference, and which nodes are terminal."""
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
    children: ArrayLike, ref_logits: ArrayLike, log_returns: ArrayLike, *, depth: int
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


def q_sharp(children: ArrayLike, log_law: ArrayLike, support: ArrayLike, eta: ArrayLike) -> Array:
    """`Q*(s, a) = eta log E_ref e^(Z/eta)`, Z the return from the child; -inf where there is none.

    Shapes: children `[nodes, actions]`, log_law `[nodes, m]` of `return_laws`, support `[m]` the
    values of the return, eta positive, to `[nodes, actions]`. The policy is `follow`.

    Reference: Zhou et al. 2025 (arXiv:2502.20548), Q#, Theorem on deterministic transitions.
    """
    checks.positive("eta", eta)
    children, log_law = jnp.asarray(children), checks.as_float("log_law", log_law)
    support = checks.as_float("support", support).astype(log_law.dtype)
    if support.shape != log_law.shape[-1:]:
        raise ValueError(f"support must be of shape {log_law.shape[-1:]}, got {support.shape}")
    eta = jnp.asarray(eta, log_law.dtype)
    value = eta * jax.nn.logsumexp(log_law + support[None] / eta, axis=-1)
    return jnp.where(children >= 0, value[children], -jnp.inf)


def follow(
    q: ArrayLike, ref_logits: ArrayLike, eta: ArrayLike, generator: Generator = _KL
) -> Array:
    """`ref exp(Q*/eta)`, normalised: the optimal policy, `[nodes, actions]` log-probabilities.

    For another row than KL the q of `regularised_values`. Terminal nodes keep the reference.
    """
    q, ref_logits = checks.as_float("q", q), checks.as_float("ref_logits", ref_logits)
    there = q > -jnp.inf
    none = ~jnp.any(there & (ref_logits > -jnp.inf), axis=-1, keepdims=True)
    kept = jnp.where(there | none, jnp.where(none, 0, ref_logits), -jnp.inf)
    best = greedy(jnp.where(there, q, 0), kept, eta, generator).log_policy
    return jnp.where(none, numerics.log_softmax(ref_logits), best)


class Values(NamedTuple):
    """Regularised optimal values of a tree."""

    value: Array
    """`[nodes]`."""
    q: Array
    """`[nodes, actions]`, the value of the child; -inf where there is none."""


def regularised_values(
    children: ArrayLike,
    ref_logits: ArrayLike,
    returns: ArrayLike,
    eta: ArrayLike,
    generator: Generator,
    *,
    depth: int,
) -> Values:
    """`V(s) = max_pi <pi, V(child)> - eta D(pi‖ref(s))`, the penalty paid at every node.

    For KL that is `eta log E_ref e^(Z/eta)`, whatever happens in between; for no other row does
    the law of the reference's return suffice. Shapes: children and ref_logits `[nodes, actions]`,
    returns `[nodes]`, read at terminal nodes; `depth` as in `return_laws`.

    Reference: Geist, Scherrer and Pietquin 2019 (arXiv:1901.11275), section 3, the operator.
    """
    children, log_ref, terminal = _graph(children, ref_logits)
    returns = _matched("returns", returns, children, 1)
    there = children >= 0

    def backup(value: Array, _):
        following = jnp.where(there, value[children], 0)
        best = greedy(following, log_ref.astype(value.dtype), eta, generator).value
        return jnp.where(terminal, returns, best), None

    value = jax.lax.scan(backup, jnp.where(terminal, returns, 0), length=depth)[0]
    return Values(value, jnp.where(there, value[children], -jnp.inf))


# ----------------------------------------------------------------------------------------- A*-PO


def optimal_value_estimate(rewards: ArrayLike, beta: ArrayLike) -> Array:
    """`beta log mean exp(r / beta)` of n answers of the reference, below V* in the mean (Jensen).

    V* itself is `regularized.greedy(r, ref, beta, kl).value`. Shapes: `[..., n]` to `[...]`.

    >>> print(f"{optimal_value_estimate(jnp.array([1.0, 0.0]), 0.5):.4f}")
    0.7169

    Reference: A*-PO, V_hat of the released code (ZhaolinGao/A-PO), which has n = 8, beta = 1/2.
    """
    checks.positive("beta", beta)
    rewards = checks.as_float("rewards", rewards)
    if rewards.ndim == 0 or rewards.shape[-1] < 1:
        raise ValueError(f"rewards must have at least one answer, got shape {rewards.shape}")
    return greedy(rewards, jnp.zeros_like(rewards), beta, _KL).value


class BinaryValue(NamedTuple):
    """Of a prompt whose answers are right or wrong, reward 1 or 0."""

    optimal: Array
    """`V* = beta log(1 - p + p e^(1/beta))`."""
    expected: Array
    """`E[V_hat]` of n answers of the reference."""


def binary_value(accuracy: ArrayLike, beta: ArrayLike, *, n: int) -> BinaryValue:
    """V* and the mean of its estimate from n answers, a sum over how many are right.

    Shapes: accuracy in [0, 1], any, to the same twice.

    >>> exact, estimate = binary_value(jnp.array(0.5), 0.5, n=8)
    >>> print(f"{exact:.4f} {estimate:.4f}")
    0.7169 0.6964
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    checks.positive("beta", beta)
    accuracy = checks.as_float("accuracy", accuracy)
    right = jnp.arange(n + 1, dtype=accuracy.dtype)
    right = jnp.broadcast_to(right, (*accuracy.shape, n + 1))

    def value(share):
        log_ref = jnp.stack([jnp.log1p(-share), jnp.log(share)], axis=-1)
        rewards = jnp.broadcast_to(jnp.array([0.0, 1.0], log_ref.dtype), log_ref.shape)
        return greedy(rewards, log_ref, beta, _KL).value

    ways = jnp.array([math.log(math.comb(n, k)) for k in range(n + 1)], accuracy.dtype)
    log_ways = jnp.broadcast_to(ways, right.shape)
    p = jnp.broadcast_to(accuracy[..., None], right.shape)
    of_right = jnp.where(right > 0, right * jnp.log(p), 0)
    of_wrong = jnp.where(right < n, (n - right) * jnp.log1p(-p), 0)
    probability = jnp.exp(log_ways + of_right + of_wrong)
    return BinaryValue(value(accuracy), jnp.sum(probability * value(right / n), axis=-1))


def a_star_po_loss(
    log_prob: ArrayLike,
    ref_log_prob: ArrayLike,
    rewards: ArrayLike,
    value: ArrayLike,
    *,
    beta: ArrayLike,
) -> Array:
    """`(beta log(pi/ref) + V - r)^2` for answers of the policy itself.

    It vanishes at the optimum, where `beta log(pi/ref) = r - V*`. With the samples held fixed its
    gradient has the mean `2 beta E[(beta log(pi/ref) - r) grad log pi]`: V adds `E[grad log pi]`,
    which is 0, and serves the variance only. Shapes: `[...]` four times to `[...]`.

    Reference: A*-PO, the loss of the released code (ZhaolinGao/A-PO), which has beta = 1/1000.
    """
    checks.positive("beta", beta)
    arrays = {"log_prob": log_prob, "ref_log_prob": ref_log_prob, "rewards": rewards}
    arrays = {name: checks.as_float(name, x) for name, x in (arrays | {"value": value}).items()}
    checks.same_shape(**arrays)
    dtype = functools.reduce(jnp.promote_types, (x.dtype for x in arrays.values()))
    log_prob, ref_log_prob, rewards, value = (x.astype(dtype) for x in arrays.values())
    return (jnp.asarray(beta, dtype) * (log_prob - ref_log_prob) + value - rewards) ** 2
