"""f-DPG: policies trained towards a target distribution, by any divergence of the table.

One policy gradient serves every row: `grad D(pi‖p) = E_pi[f'(pi/p) grad log pi]`, so the reward is
`-f'(pi/p)`. With p the optimum of a KL-regularized reward, `kl` is RLHF with a KL penalty (the
field's reverse KL) and `reverse_kl` is DPG (forward KL). The policy pi is on the left.

The target is often known up to its normalizer: `log_partition` estimates that, and quasi-rejection
sampling draws from nearly the target where only its unnormalized mass P can be evaluated.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jdiv import checks, numerics
from jdiv.divergences import categorical, generators
from jdiv.types import Logits, PerSample, RandomKey, SequenceLogProbs

# ------------------------------------------------------------------------------------ the gradient


def _alike(
    generator: generators.Generator, **arrays: ArrayLike
) -> tuple[generators.Generator, list[Array]]:
    """Arrays of one shape in one precision, and the parameters of the row in the same."""
    arrays = checks.alike(**arrays)
    return generator.astype(arrays[0].dtype), arrays


def pseudo_reward(
    log_policy: SequenceLogProbs, log_target: SequenceLogProbs, *, generator: generators.Generator
) -> PerSample:
    """`r = -f'(pi/p)` of each answer, f the customary generator that the row's docstring states.

    The centered generator's r is this plus `slope_at_one`, f'(1): a constant, which a baseline
    takes out. Shapes: any, twice the same, to the same; log-probabilities of samples or of all
    answers.
    Zeros: -f'(inf) where p = 0, which is -inf for kl and pearson_chi2 and finite for reverse_kl (0)
    or jensen_shannon; -f'(0) where pi = 0; -f'(1) where both are.

    >>> policy, target = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.25, 0.75]))
    >>> [f"{r:.4f}" for r in pseudo_reward(policy, target, generator=generators.reverse_kl())]
    ['0.5000', '1.5000']

    Reference: Go et al. 2023 (arXiv:2302.08215), section 3; naver/disco, tuners/losses.
    """
    generator, (log_policy, log_target) = _alike(
        generator, log_policy=log_policy, log_target=log_target
    )
    return -(
        generator.slope(numerics.sampled_log_ratio(log_policy, log_target)) + generator.slope_at_one
    )


def dpg_loss(
    log_probs: SequenceLogProbs,
    log_target: SequenceLogProbs,
    log_proposal: SequenceLogProbs,
    *,
    generator: generators.Generator,
    baseline: ArrayLike = 0.0,
) -> PerSample:
    """`-(pi/q) (r - baseline) log pi` of samples x ~ q: its gradient is, on average, grad D(pi‖p).

    Everything but `log pi` is a constant, and `(pi/q) f'(pi/p)` is computed as one number, so that
    a ratio which overflows costs nothing where its weight vanishes. On-policy, pass log_probs as
    the proposal. The baseline must not depend on the sample, as
    `jdiv.policy.advantages.mean_of_others` of `(pi/q) r` does not; no baseline is best for every
    row, with jensen_shannon the mean can add variance. Shapes: any, three times the same, to the
    same; a baseline that broadcasts. The gradient is infinite where D is: p = 0 under a row with an
    infinite f'(inf). A sample with pi = 0 has none.

    Reference: Go et al. 2023 (arXiv:2302.08215), theorem 1 and algorithm 1.
    """
    generator, (log_probs, log_target, log_proposal) = _alike(
        generator, log_probs=log_probs, log_target=log_target, log_proposal=log_proposal
    )
    concrete = not any(isinstance(x, jax.core.Tracer) for x in (log_probs, log_proposal))
    if concrete and np.any(np.isneginf(log_proposal) & ~np.isneginf(log_probs)):
        raise ValueError(
            "log_proposal must be finite where log_probs is: no sample comes from there"
        )
    fixed, log_target, log_proposal, baseline = jax.lax.stop_gradient(
        (log_probs, log_target, log_proposal, jnp.asarray(baseline, log_probs.dtype))
    )
    taken = fixed != -jnp.inf
    log_weight = jnp.where(taken, fixed, 0) - jnp.where(taken, log_proposal, 0)
    log_other = jnp.where(taken, log_target - jnp.where(taken, log_proposal, 0), 0)
    # The derivative by log u of q f(u/q) is u f'(u/q), zeros included; here u = pi/q.
    _, score = jax.jvp(
        lambda log_u: categorical.terms(generator, log_u, log_other, log_weight - log_other),
        (log_weight,),
        (jnp.ones_like(log_weight),),
    )
    score += jnp.exp(log_weight) * (generator.slope_at_one + baseline)
    return jnp.where(taken, score, 0) * jnp.where(taken, log_probs, 0)


# --------------------------------------------------------------------------------- moving averages


class Window(NamedTuple):
    """Latest numbers of a stream: the state of a moving average, which the caller carries.

    Fields:
        latest: `[size]` oldest first.
        filled: `[]` count of those that have come; they are at the end of `latest`.
    """

    latest: Array
    filled: Array


def empty_window(size: int = 1024, dtype: jnp.dtype = jnp.float32) -> Window:
    """A window with nothing in it yet; 1,024 pseudo-rewards in the released code of f-DPG."""
    if size < 1:
        raise ValueError(f"size must be at least 1, got {size}")
    return Window(jnp.zeros(size, dtype), jnp.zeros((), jnp.int32))


def push(window: Window, values: PerSample) -> Window:
    """The window after these values have come. Shapes: any."""
    values = checks.as_float("values", values).astype(window.latest.dtype).ravel()
    size = window.latest.size
    latest = jnp.concatenate([window.latest, values])[-size:]
    return Window(latest, jnp.minimum(window.filled + values.size, size).astype(jnp.int32))


def _filled(window: Window) -> Array:
    return jnp.arange(window.latest.size, dtype=jnp.int32) >= window.latest.size - window.filled


def window_mean(window: Window) -> Array:
    """Mean of the numbers in the window, 0 if there is none: the moving-average baseline.

    Take it before the new samples are pushed, or it depends on them.
    """
    total = jnp.sum(jnp.where(_filled(window), window.latest, 0))
    return total / jnp.maximum(window.filled, 1).astype(total.dtype)


def window_log_mean_exp(window: Window) -> Array:
    """`log mean exp` of the numbers in the window: for `log P - log q` an estimate of log Z.

    NaN if there is none.
    """
    logs = jnp.where(_filled(window), window.latest, -jnp.inf)
    return jax.nn.logsumexp(logs) - jnp.log(window.filled.astype(logs.dtype))


def log_partition(log_target: PerSample, log_proposal: PerSample, *, axis: int = -1) -> Array:
    """`log mean P(x)/q(x)` over samples x ~ q: the logarithm of an unbiased estimate of Z = sum P.

    Shapes: `[..., n, ...]` twice, log P and log q at the samples, to the shape without the axis.

    Reference: Go et al. 2023 (arXiv:2302.08215), algorithm 1.
    """
    log_target, log_proposal = checks.alike(log_target=log_target, log_proposal=log_proposal)
    count = jnp.asarray(log_target.shape[axis], log_target.dtype)
    return jax.nn.logsumexp(log_target - log_proposal, axis=axis) - jnp.log(count)


# ------------------------------------------------------------------------ quasi-rejection sampling


class QuasiRejection(NamedTuple):
    """Exact law and acceptance of quasi-rejection sampling, and a bound on its error.

    Fields:
        log_policy: `[..., n]` law of the accepted answers; NaN if none ever is.
        acceptance: `[...]` share of the proposals that are accepted.
        bound: `[...]` at least the total variation between law and target.
    """

    log_policy: Array
    acceptance: Array
    bound: Array


def log_acceptance(log_target: PerSample, log_proposal: PerSample, beta: ArrayLike) -> PerSample:
    """`log min(1, P/(beta q))` of each sample x ~ q. Shapes: any, twice the same, to the same."""
    beta = checks.positive("beta", beta)
    log_target, log_proposal = checks.alike(log_target=log_target, log_proposal=log_proposal)
    log_beta = jnp.log(jnp.asarray(beta, log_target.dtype))
    return jnp.minimum(0, numerics.sampled_log_ratio(log_target, log_proposal) - log_beta)


def quasi_rejection(log_target: Logits, proposal_logits: Logits, beta: ArrayLike) -> QuasiRejection:
    """The exact law of proposals from q that are accepted with probability `min(1, P/(beta q))`.

    It is `min(P, beta q)` over its sum Z_beta, accepted at the rate `Z_beta/beta`, and within
    `1 - Z_beta/Z` of the target in total variation. That is at most the mass which the target has
    where `P > beta q`, and 0 if beta is at least the largest P/q: rejection sampling. Mass of P on
    a zero of q is never reached and counts in the bound. Shapes: log P and the logits of q
    `[..., n]`, beta a positive number.

    >>> target, even = jnp.log(jnp.array([0.8, 0.2])), jnp.zeros(2)
    >>> out = quasi_rejection(target, even, 1.0)  # exact from beta = 1.6 on
    >>> print(f"{jnp.exp(out.log_policy[0]):.4f} {out.acceptance:.4f} {out.bound:.4f}")
    0.7143 0.7000 0.3000

    Reference: Eikema et al. 2022 (arXiv:2112.05702) for the sampler; the bound is derived here: the
    law is nowhere below min(P, beta q)/Z.
    """
    beta = checks.positive("beta", beta)
    log_target, logits = checks.alike(log_target=log_target, proposal_logits=proposal_logits)
    log_proposal = numerics.log_softmax(logits)
    log_mass = log_proposal + log_acceptance(log_target, log_proposal, beta)
    log_accepted = jax.nn.logsumexp(log_mass, axis=-1)
    # The share of each answer's target mass that lies above beta q.
    log_beta = jnp.log(jnp.asarray(beta, log_target.dtype))
    above = numerics.sampled_log_ratio(log_proposal, log_target) + log_beta
    lost = jnp.where(log_target != -jnp.inf, -jnp.expm1(jnp.minimum(above, 0)), 0)
    bound = jnp.sum(jnp.exp(numerics.log_softmax(log_target)) * lost, axis=-1)
    return QuasiRejection(log_mass - log_accepted[..., None], jnp.exp(log_accepted), bound)


def accept(
    log_target: PerSample, log_proposal: PerSample, beta: ArrayLike, key: RandomKey
) -> Array:
    """Draws which of the samples x ~ q quasi-rejection keeps; those have its law.

    Shapes: log P and log q at the samples, any, twice the same, to booleans of the same.

    Reference: Eikema et al. 2022 (arXiv:2112.05702).
    """
    log_rate = log_acceptance(log_target, log_proposal, beta)
    return -jax.random.exponential(key, log_rate.shape, log_rate.dtype) <= log_rate
