"""Lower bounds from a critic: of the mutual information, of KL, of every f-divergence.

For the mutual information, `scores[i, j] = f(x_i, y_j)` is the critic on every pair of a batch of n
joint samples: the diagonal holds pairs that belong together, everything else is a sample of the
product of the marginals. Each function turns `[..., n, n]` scores into `[...]`, in nats, to be
maximized over the critic. Bias and variance at the best critic:

==================  ===========================================================================
donsker_varadhan    too high (the logarithm of a mean), and the variance of nwj
nwj, tuba           right on average; the partition has a variance of `(e^I - 1)/(n (n - 1))` or
                    more, between Gaussians about `e^(2 I)/n^2`
smile               variance tamed by clipping, which biases it, upwards for a large I
infonce             too low, and never more than log n; hardly any variance
interpolated        between infonce and tuba, and a bound all the way
==================  ===========================================================================

With any other critic nwj, tuba, infonce and interpolated are on average below the mutual
information; donsker_varadhan and smile, from a finite batch, need not be.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jdiv import checks, numerics
from jdiv.divergences.generator import Generator, checked_row
from jdiv.types import CriticOfP, CriticOfQ, PerRow, Reduced, Scores


def _scores(scores: ArrayLike) -> Array:
    """Checked scores `[..., n, n]`."""
    scores = checks.as_float("scores", scores)
    shape = tuple(scores.shape)
    if scores.ndim < 2 or shape[-1] != shape[-2] or shape[-1] < 2:
        raise ValueError(f"scores must have shape [..., n, n] with n at least 2, got {shape}")
    return scores


def _joint(matrix: Array) -> Array:
    """The diagonal, `[..., n]`."""
    return jnp.diagonal(matrix, axis1=-2, axis2=-1)


def _product(matrix: Array) -> Array:
    """All entries off the diagonal, `[..., n (n - 1)]`."""
    *batch, n, _ = matrix.shape
    rows = matrix.reshape(*batch, n * n)[..., 1:].reshape(*batch, n - 1, n + 1)
    return rows[..., :-1].reshape(*batch, n * (n - 1))


def _log_mean_exp(x: Array, axis: int = -1) -> Array:
    """`log mean exp(x)`."""
    return jax.nn.logsumexp(x, axis=axis) - math.log(x.shape[axis])


# ------------------------------------------------------------------- bounds of mutual information


def donsker_varadhan(scores: Scores) -> Reduced:
    """Donsker-Varadhan (MINE), `mean joint f - log mean product e^f`.

    Best critic: log p(x,y)/(p(x) p(y)), up to a constant. From a finite batch it is biased upwards
    at any critic, by about the variance of the partition over twice its squared mean, so that it is
    no lower bound; the gradient of a batch is biased for the same reason.
    Shapes: scores `[..., n, n]` to `[...]`.

    >>> donsker_varadhan(jnp.array([[2.0, 0.0], [0.0, 2.0]]))
    Array(2., dtype=float32)

    Reference: Donsker and Varadhan 1983; Belghazi et al. 2018 (arXiv:1801.04062).
    """
    scores = _scores(scores)
    return jnp.mean(_joint(scores), axis=-1) - _log_mean_exp(_product(scores))


def nwj(scores: Scores) -> Reduced:
    """Nguyen-Wainwright-Jordan (MINE-f, f-GAN KL), `mean joint f - mean product e^(f - 1)`.

    Best critic: 1 + log p(x,y)/(p(x) p(y)), where the mean is the mutual information itself. No
    bias, but a variance that grows exponentially with it: useless much above log n.
    Shapes: scores `[..., n, n]` to `[...]`.

    >>> nwj(jnp.array([[2.0, 1.0], [1.0, 2.0]]))
    Array(1., dtype=float32)

    Reference: Nguyen, Wainwright and Jordan 2010; Poole et al. 2019 (arXiv:1905.06922).
    """
    scores = _scores(scores)
    return jnp.mean(_joint(scores), axis=-1) - jnp.exp(_log_mean_exp(_product(scores)) - 1)


def tuba(scores: Scores, log_baseline: ArrayLike) -> Reduced:
    """Unnormalized Barber-Agakov, `1 + mean joint (f - log a) - mean product e^f / a`.

    The baseline a(y) > 0 is free; the best is the mean of e^f(x, y) over x, and the best critic is
    then log p(y|x) up to a function of y, where the mean is the mutual information itself. Bias and
    variance as of `nwj`, which is the baseline e.
    Shapes: scores `[..., n, n]`, log_baseline a number or `[..., n]` (one per y_j), to `[...]`.

    >>> tuba(jnp.array([[2.0, 1.0], [1.0, 2.0]]), 1.0)
    Array(1., dtype=float32)

    Reference: Poole et al. 2019 (arXiv:1905.06922), section 2.2.
    """
    scores = _scores(scores)
    scores = scores - _baseline(log_baseline, scores)[..., None, :]
    partition = jnp.exp(_log_mean_exp(_product(scores)))
    return 1 + jnp.mean(_joint(scores), axis=-1) - partition


def _baseline(log_baseline: ArrayLike, scores: Array) -> Array:
    """The checked logarithm of a baseline, `[..., n]`."""
    log_baseline = checks.as_float("log_baseline", log_baseline).astype(scores.dtype)
    shape, found = tuple(scores.shape[:-1]), tuple(log_baseline.shape)
    if found not in ((), shape):
        raise ValueError(f"log_baseline must be a number or of shape {shape}, got {found}")
    return jnp.broadcast_to(log_baseline, shape)


def infonce(scores: Scores) -> Reduced:
    """InfoNCE, `log n + mean_j log softmax_i(f)_jj`: which x belongs to y_j?

    Best critic: log p(y|x) up to a function of y. Hardly any variance, but never above log n, so
    far below a mutual information that is. Transposed scores ask which y belongs to x_i.
    Shapes: scores `[..., n, n]` to `[...]`, at most log n.

    >>> infonce(jnp.zeros((2, 2)))
    Array(0., dtype=float32)

    Reference: van den Oord, Li and Vinyals 2018 (arXiv:1807.03748).
    """
    scores = _scores(scores)
    log_share = numerics.log_softmax(jnp.swapaxes(scores, -1, -2))
    return math.log(scores.shape[-1]) + jnp.mean(_joint(log_share), axis=-1)


def smile(scores: Scores, *, clip: PerRow = 5.0) -> Reduced:
    """SMILE, `mean joint f - log mean product e^clip(f, -clip, clip)`.

    `donsker_varadhan` with the partition clipped, so that no pair weighs more than e^(2 clip) times
    another: less variance, and a bias, upwards where it cuts what the mean needs. The gradient is
    that of this value: none reaches clipped scores of the product, so a critic trained on it may
    push the joint ones up for ever. The authors take the value from here and the gradient from the
    Jensen-Shannon bound of the same scores, which is `log_ratio_bound` of `jensen_shannon`.
    Shapes: scores `[..., n, n]` to `[...]`; clip is positive.

    >>> smile(jnp.array([[9.0, 7.0], [7.0, 9.0]]), clip=5.0)
    Array(4., dtype=float32)

    Reference: Song and Ermon 2020 (arXiv:1910.06222), section 5.
    """
    scores = _scores(scores)
    product = _product(scores)
    clip = checks.positive("clip", clip, rows=product)
    partition = _log_mean_exp(jnp.clip(product, -clip, clip))
    return jnp.mean(_joint(scores), axis=-1) - partition


def interpolated(scores: Scores, log_baseline: ArrayLike, *, share: PerRow) -> Reduced:
    """Poole's I_alpha, `1 + mean joint log(e^f / b) - mean product e^f / b`, alpha the share.

    The baseline `b = share m(y) + (1 - share) a(y)` mixes that of InfoNCE, m(y) the mean of
    e^f(x, y) over n - 1 samples of x, with a free one, a(y). For the product the samples are those
    that do not belong to y; for the joint the one that does and all others but one, averaged over
    which. With as many in both it is a lower bound for every share, capped near
    `log((n - 1)/share)`, and the share trades bias for variance. At 0 it is `tuba` (and `nwj` if
    log a = 1), at 1 the mean of `infonce` over the n batches with one pair left out.
    Shapes: scores `[..., n, n]`, log_baseline a number or `[..., n]` (one per y_j), to `[...]`.

    >>> interpolated(jnp.array([[2.0, 1.0], [1.0, 2.0]]), 1.0, share=0.0)
    Array(1., dtype=float32)

    Reference: Poole et al. 2019 (arXiv:1905.06922), section 2.3.
    """
    scores = _scores(scores)
    share = checks.share("share", share, rows=scores[..., 0, :])
    share = share[..., None] if share.ndim else share
    log_m = _log_mean_exp_of_others(scores)
    log_a = _baseline(log_baseline, scores)[..., None, :]
    log_b = jnp.logaddexp(jnp.log(share) + log_m, jnp.log1p(-share) + log_a)
    joint = jnp.mean(_product(_joint(scores)[..., None, :] - log_b), axis=-1)
    log_product = _log_mean_exp(_product(scores - _joint(log_b)[..., None, :]))
    return 1 + joint - jnp.exp(log_product)


def _log_mean_exp_of_others(scores: Array) -> Array:
    """At [k, j], `log mean over i != k of exp(scores[i, j])`: of those before k and those after."""
    rows = scores.ndim - 2
    empty = jnp.full_like(scores[..., :1, :], -jnp.inf)
    before = jax.lax.cumlogsumexp(scores, axis=rows)[..., :-1, :]
    after = jax.lax.cumlogsumexp(scores, axis=rows, reverse=True)[..., 1:, :]
    before = jnp.concatenate([empty, before], axis=rows)
    after = jnp.concatenate([after, empty], axis=rows)
    return jnp.logaddexp(before, after) - math.log(scores.shape[-1] - 1)


# -------------------------------------------------------------------------- bounds of divergences


def _critic_pair(p_scores: ArrayLike, q_scores: ArrayLike) -> tuple[Array, Array]:
    """Checked scores `[..., n]` and `[..., m]` in one precision."""
    pair = [checks.as_float("p_scores", p_scores), checks.as_float("q_scores", q_scores)]
    for name, x in zip(("p_scores", "q_scores"), pair, strict=True):
        if x.ndim == 0 or x.shape[-1] == 0:
            raise ValueError(f"{name} must have at least one sample, got shape {tuple(x.shape)}")
    if pair[0].shape[:-1] != pair[1].shape[:-1]:
        shapes = " and ".join(str(tuple(x.shape)) for x in pair)
        raise ValueError(f"p_scores and q_scores must agree in all but the last axis, got {shapes}")
    dtype = jnp.promote_types(pair[0].dtype, pair[1].dtype)
    return pair[0].astype(dtype), pair[1].astype(dtype)


def kl_donsker_varadhan(p_scores: CriticOfP, q_scores: CriticOfQ) -> Reduced:
    """Donsker-Varadhan for KL(p‖q), `mean T(x) - log mean e^T(y)` with x ~ p and y ~ q.

    Best critic: log p/q, up to a constant. Biased upwards in a finite batch, and its gradient is
    biased too; for large m the variance is at least `(e^KL - 1)/m`.
    Shapes: critic values `[..., n]` and `[..., m]` to `[...]`.

    >>> kl_donsker_varadhan(jnp.array([1.0, 2.0]), jnp.zeros(3))
    Array(1.5, dtype=float32)

    Reference: Donsker and Varadhan 1983; Belghazi et al. 2018 (arXiv:1801.04062).
    """
    p_scores, q_scores = _critic_pair(p_scores, q_scores)
    return jnp.mean(p_scores, axis=-1) - _log_mean_exp(q_scores)


def f_divergence_bound(generator: Generator, p_scores: CriticOfP, q_scores: CriticOfQ) -> Reduced:
    """`mean T(x) - mean f*(T(y))` with x ~ p and y ~ q: a lower bound of `D(p, q)` for every row.

    f* is the conjugate of the centered generator, so the best critic is its slope f'(p/q); for KL
    that is log p/q, one less than the critic of `nwj`. No bias at the best critic, and on average
    too low at any other; the variance is that of f'(p/q) under p and of f*(f'(p/q)) under q.
    Scores of q above f'(inf) make the bound -inf: `log_ratio_bound` cannot get there.
    Shapes: critic values `[..., n]` and `[..., m]` to `[...]`.

    >>> from jdiv import generators
    >>> f_divergence_bound(generators.pearson_chi2(), jnp.array([1.0, 2.0]), jnp.zeros(3))
    Array(1.5, dtype=float32)

    Reference: Nguyen, Wainwright and Jordan 2010; Nowozin, Cseke and Tomioka 2016
    (arXiv:1606.00709).
    """
    p_scores, q_scores = _critic_pair(p_scores, q_scores)
    generator = checked_row(generator, q_scores.dtype)
    of_q = checks.spread_nan(generator.conjugate(q_scores), q_scores)
    return jnp.mean(p_scores, axis=-1) - jnp.mean(of_q, axis=-1)


def log_ratio_bound(generator: Generator, p_scores: CriticOfP, q_scores: CriticOfQ) -> Reduced:
    """`mean f'(u(x)) - mean (u f'(u) - f(u))(y)`, x ~ p and y ~ q, with a critic `t = log u`.

    `f_divergence_bound` with T = f'(e^t): a lower bound of `D(p, q)` for any critic at all, and the
    best is log p/q for every row, so one critic serves them all. For KL it is
    `mean t(x) - mean (e^t(y) - 1)`, for Jensen-Shannon with weight 1/2 the loss of a classifier.
    Bias and variance as there.
    Shapes: critic values `[..., n]` and `[..., m]` to `[...]`.

    >>> from jdiv import generators
    >>> log_ratio_bound(generators.kl(), jnp.array([1.0, 2.0]), jnp.zeros(3))
    Array(1.5, dtype=float32)

    Reference: Nowozin, Cseke and Tomioka 2016 (arXiv:1606.00709), section 2.4, for critics of the
    right range.
    """
    p_scores, q_scores = _critic_pair(p_scores, q_scores)
    generator = checked_row(generator, q_scores.dtype)
    infinite = jnp.isinf(q_scores)
    t = jnp.where(infinite, 0, q_scores)
    at_ends = jnp.where(q_scores < 0, jnp.asarray(generator.at_zero, t.dtype), -jnp.inf)
    of_q = jnp.where(infinite, at_ends, generator.perspective_q(t, jnp.zeros_like(t), t))
    return jnp.mean(generator.slope(p_scores), axis=-1) + jnp.mean(of_q, axis=-1)
