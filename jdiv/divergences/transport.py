"""Distances that know how far apart categories are: transport costs, MMD and energy distance.

Arguments are logits, as in `categorical`: unnormalized log-probabilities with the categories on
`axis`, `-inf` an exact zero, `where` to leave categories out. Half precision is widened to float32;
float64 stays float64. The geometry (positions, cost, kernel, distances) is an argument of its own.
All of these are finite, also between disjoint supports, and differences of probabilities are taken
without cancellation.
"""

from __future__ import annotations

import functools
import types
import warnings
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jdiv import checks, numerics
from jdiv.types import Categories, Logits, PerSequence, Reduced, Scalar, Square


def _difference(p_logits: Array, q_logits: Array) -> Array:
    """`p - q` of two `[..., n]` arrays of logits; exactly 0 for identical ones."""
    log_p, log_q, t = numerics.log_ratio(p_logits, q_logits)
    inside = (log_p != -jnp.inf) & (log_q != -jnp.inf)
    near = numerics.probability_difference(*(jnp.where(inside, x, 0) for x in (log_p, log_q, t)))
    return jnp.where(inside, near, jnp.exp(log_p) - jnp.exp(log_q))


def _square(name: str, x: ArrayLike, n: int, dtype) -> Array:
    """A checked symmetric matrix between the n categories."""
    x = checks.as_float(name, x)
    if x.shape != (n, n):
        raise ValueError(f"{name} must have shape {(n, n)} for {n} categories, got {x.shape}")
    return checks.symmetric(name, x).astype(dtype)


# ---------------------------------------------------------------------------------- one dimension


def wasserstein_1(
    p_logits: Logits,
    q_logits: Logits,
    positions: ArrayLike,
    *,
    axis: int = -1,
    where: Categories | None = None,
) -> Reduced:
    """Wasserstein distance of order 1 on a line, `int |F_p - F_q|` of the distribution functions.

    The distance itself, not a square; the cost is the distance of the positions, which may be in
    any order. Exact, by one sort: no solver. Its gradient is that of an absolute value, 0 where the
    distribution functions agree.
    Shapes: `[..., n]` logits twice and positions `[n]`, or of the shape of the logits, to `[...]`.
    Range: 0 to the largest distance of positions, reached between point masses.

    >>> p, q = jnp.array([0.0, -jnp.inf, -jnp.inf]), jnp.array([-jnp.inf, 0.0, 0.0])
    >>> wasserstein_1(p, q, jnp.array([0.0, 1.0, 3.0]))
    Array(2., dtype=float32)

    Reference: Vallender 1974.
    """
    positions = checks.as_float("positions", positions)
    shape = jnp.shape(p_logits)
    p_logits, q_logits = checks.logits_pair(p_logits, q_logits, axis, where)
    if positions.ndim == 1 and positions.shape == p_logits.shape[-1:]:
        positions = jnp.broadcast_to(positions, p_logits.shape)
    elif positions.shape == shape:
        positions = jnp.moveaxis(positions, axis, -1)
    else:
        allowed = f"{p_logits.shape[-1:]} or {tuple(shape)}"
        raise ValueError(f"positions must have shape {allowed}, got {tuple(positions.shape)}")
    order = jnp.argsort(positions, axis=-1)
    positions = jnp.take_along_axis(positions, order, axis=-1).astype(p_logits.dtype)
    difference = jnp.take_along_axis(_difference(p_logits, q_logits), order, axis=-1)
    excess = jnp.cumsum(difference, axis=-1)[..., :-1]
    # Not jnp.abs, whose derivative at 0 is 1.
    return jnp.sum(excess * jnp.sign(excess) * jnp.diff(positions, axis=-1), axis=-1)


# --------------------------------------------------------------------------------- quadratic forms


def squared_mmd(
    p_logits: Logits,
    q_logits: Logits,
    kernel: Square,
    *,
    axis: int = -1,
    where: Categories | None = None,
) -> Reduced:
    """The square of the maximum mean discrepancy, `(p - q)' K (p - q)`.

    Its root is the distance of the mean embeddings in the space of the kernel.
    Shapes: `[..., n]` logits twice and a symmetric kernel `[n, n]` to `[...]`. Range: 0 to
    `4 max K` for a positive semi-definite kernel, which is the caller's promise, up to the rounding
    of the kernel's entries. 0 for p != q too, unless the kernel is definite on differences.

    >>> p, q = jnp.array([0.0, -jnp.inf]), jnp.array([-jnp.inf, 0.0])
    >>> squared_mmd(p, q, jnp.eye(2))
    Array(2., dtype=float32)

    Reference: Gretton, Borgwardt, Rasch, Schoelkopf and Smola 2012, lemma 6.
    """
    p_logits, q_logits = checks.logits_pair(p_logits, q_logits, axis, where)
    kernel = _square("kernel", kernel, p_logits.shape[-1], p_logits.dtype)
    difference = _difference(p_logits, q_logits)
    return jnp.sum(difference * jnp.matmul(difference, kernel, precision="highest"), axis=-1)


def energy_distance(
    p_logits: Logits,
    q_logits: Logits,
    distances: Square,
    *,
    axis: int = -1,
    where: Categories | None = None,
) -> Reduced:
    """Energy distance, `2 E|X - Y| - E|X - X'| - E|Y - Y'| = -(p - q)' D (p - q)`.

    A squared quantity: its root is the metric. It is the squared MMD of the kernel -D, and on a
    line twice the squared Cramer distance, `2 int (F_p - F_q)^2`.
    Shapes: `[..., n]` logits twice and symmetric distances `[n, n]` to `[...]`. Range: 0 to twice
    the largest distance, for distances of negative type (Euclidean ones are).

    >>> p, q = jnp.array([0.0, -jnp.inf]), jnp.array([-jnp.inf, 0.0])
    >>> energy_distance(p, q, jnp.array([[0.0, 3.0], [3.0, 0.0]]))
    Array(6., dtype=float32)

    Reference: Szekely and Rizzo 2013, definition 1.
    """
    p_logits, q_logits = checks.logits_pair(p_logits, q_logits, axis, where)
    distances = _square("distances", distances, p_logits.shape[-1], p_logits.dtype)
    return squared_mmd(p_logits, q_logits, -distances)


# ------------------------------------------------------------------------------ entropic transport


class SinkhornDivergence(NamedTuple):
    """A Sinkhorn divergence and the evidence of its solver.

    Fields:
        value: `[...]`, the divergence.
        converged: `[...]`, whether `residual` is within the threshold.
        iterations: `[...]`, steps of the slowest of the three transport problems, its warm start
            included.
        residual: `[...]`, the largest L1 error of the marginals of the three plans behind the
            value.
    """

    value: Array
    converged: Array
    iterations: Array
    residual: Array


def sinkhorn(
    p_logits: Logits,
    q_logits: Logits,
    cost: Square,
    *,
    epsilon: PerSequence | Scalar,
    threshold: float = 1e-5,
    max_iterations: int = 2000,
    axis: int = -1,
    where: Categories | None = None,
) -> SinkhornDivergence:
    """Debiased Sinkhorn divergence, `OT(p, q) - OT(p, p)/2 - OT(q, q)/2`, solved by ott-jax.

    `OT(p, q) = min_P <P, C> + epsilon KL(P‖p q')` over plans P with the marginals p and q. No root
    is taken: with a squared distance as cost it is a squared divergence. It tends to the transport
    cost as epsilon -> 0 and to half the energy distance of C as epsilon -> inf.
    Shapes: `[..., n]` logits twice and a symmetric cost `[n, n]` to `[...]` each. Range: 0 to inf,
    if `exp(-C/epsilon)` is positive definite; exactly 0 for identical logits.

    The error is absolute: rounding of the size of C, and the square of the residual. Look at
    `converged`: a small epsilon takes many iterations, and float32 brings the residual no lower
    than about `1e-7 max C / epsilon`.

    Gradients by p, q, the cost and epsilon keep the potentials fixed, by the envelope theorem. They
    are right where the solver converged, also at zeros of p and q; second derivatives are not.
    Memory is one `n x n` array for each row, four with gradients: of 4 GB each for 32,000
    categories in float32.
    Call it under jit, for every eager call compiles the solver again.

    >>> p, q = jnp.array([0.0, -jnp.inf]), jnp.array([-jnp.inf, 0.0])
    >>> sinkhorn(p, q, jnp.array([[0.0, 3.0], [3.0, 0.0]]), epsilon=0.1).value
    Array(3., dtype=float32)

    Reference: Feydy, Sejourne, Vialard, Amari, Trouve and Peyre 2019, equation 3.
    """
    threshold = checks.positive("threshold", threshold)
    if not isinstance(max_iterations, int) or max_iterations < 1:
        raise ValueError(f"max_iterations must be a positive integer, got {max_iterations}")
    p_logits, q_logits = checks.logits_pair(p_logits, q_logits, axis, where)
    n, dtype = p_logits.shape[-1], p_logits.dtype
    cost = _square("cost", cost, n, dtype)
    epsilon = checks.positive("epsilon", epsilon, rows=p_logits)
    epsilon = jnp.broadcast_to(epsilon, (*p_logits.shape[:-1], 1)).reshape(-1)
    solver = functools.partial(_solve, threshold=threshold, max_iterations=max_iterations)
    rows = [numerics.log_softmax(logits).reshape(-1, n) for logits in (p_logits, q_logits)]
    each = lambda log_p, log_q, epsilon: _debiased(solver, (cost, epsilon), log_p, log_q)
    outputs = jax.vmap(each)(*rows, epsilon)
    value, iterations, residual = (x.reshape(p_logits.shape[:-1]) for x in outputs)
    return SinkhornDivergence(value, residual <= threshold, iterations, residual)


def _debiased(
    solver: Callable, problem: tuple[Array, Array], log_p: Array, log_q: Array
) -> tuple[Array, Array, Array]:
    """The divergence, the iterations, and the largest residual of its three problems.

    All three go the same way, so that they are the same number for identical logits.
    """
    alone = jnp.stack([log_p, log_q])
    start, warm = jax.lax.map(lambda log_a: solver(log_a, log_a, *problem), alone)
    first, second = np.array([0, 0, 1]), np.array([1, 0, 1])
    pairs = alone[first], alone[second], start[0][first], start[0][second]

    def entropic_cost(pair):
        log_a, log_b, *start = pair
        potentials, iterations = solver(log_a, log_b, *problem, start)
        return *_dual(log_a, log_b, *potentials, *problem), iterations

    value, residual, iterations = jax.lax.map(entropic_cost, pairs)
    value = value[0] - (value[1] + value[2]) / 2
    return value, jnp.max(iterations) + jnp.max(warm), jnp.max(residual)


def _dual(
    log_a: Array, log_b: Array, f: Array, g: Array, cost: Array, epsilon: Array
) -> tuple[Array, Array]:
    """`<a, f> + <b, g> - epsilon (sum a_i b_j e^((f_i + g_j - C_ij)/epsilon) - 1)`.

    Its maximum over f and g is the entropic cost. Also the L1 error of the marginals of the plan.
    """
    log_plan = log_a[:, None] + log_b[None, :] + (f[:, None] + g[None, :] - cost) / epsilon
    plan, a, b = jnp.exp(log_plan), jnp.exp(log_a), jnp.exp(log_b)
    value = jnp.sum(a * f) + jnp.sum(b * g) - epsilon * (jnp.sum(plan) - 1)
    errors = jnp.sum(jnp.abs(jnp.sum(plan, 1) - a)) + jnp.sum(jnp.abs(jnp.sum(plan, 0) - b))
    return value, jax.lax.stop_gradient(errors)


def _solve(
    log_a: Array,
    log_b: Array,
    cost: Array,
    epsilon: Array,
    start: tuple[Array, Array] | None = None,
    *,
    threshold: float,
    max_iterations: int,
) -> tuple[tuple[Array, Array], Array]:
    """The best f and g of `_dual`, as constants and finite at every category; the iterations.

    Without a start a = b: then averaging with the last iterate converges in a few steps. With one,
    each problem for itself; momentum begins when the error falls steadily.
    """
    ott = _import_ott()
    log_a, log_b, cost, epsilon, start = jax.lax.stop_gradient((log_a, log_b, cost, epsilon, start))
    if start is None:
        momentum, init = ott.Momentum(value=0.5), None
    else:  # ott's potentials contain the marginals: f + epsilon log a, and -inf where a = 0
        momentum = ott.Momentum(start=200, value=cost.dtype.type(1))
        init = start[0] + epsilon * log_a, start[1] + epsilon * log_b
    # ott is not written for strict promotion, which the caller may have switched on.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        geometry = ott.Geometry(cost_matrix=cost, epsilon=epsilon)
        solver = ott.Sinkhorn(
            threshold=threshold,
            max_iterations=max_iterations,
            momentum=momentum,
            parallel_dual_updates=start is None,
        )
        out = solver(ott.LinearProblem(geometry, jnp.exp(log_a), jnp.exp(log_b)), init)
        f, iterations = out.potentials[0], out.n_iters

    # One more step of the algorithm reaches the categories of no mass.
    g = -epsilon * jax.nn.logsumexp((f[None, :] - cost) / epsilon, axis=1)
    f = -epsilon * jax.nn.logsumexp(log_b[None, :] + (g[None, :] - cost) / epsilon, axis=1)
    return (f, g), iterations


def _import_ott() -> types.SimpleNamespace:
    """The parts of ott-jax in use, imported when they are first needed."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "JAXopt is no longer maintained", DeprecationWarning)
            from ott.geometry.geometry import Geometry
            from ott.problems.linear.linear_problem import LinearProblem
            from ott.solvers.linear.acceleration import Momentum
            from ott.solvers.linear.sinkhorn import Sinkhorn
    except ImportError as error:
        raise ImportError("sinkhorn needs ott-jax: pip install 'jdiv[transport]'") from error
    return types.SimpleNamespace(
        Geometry=Geometry, LinearProblem=LinearProblem, Momentum=Momentum, Sinkhorn=Sinkhorn
    )
