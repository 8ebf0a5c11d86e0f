"""Regularized greedy policies: `argmax_pi <pi, v> - temperature * D(pi‖ref)` for every generator.

The optimum gives every action `f'(pi/ref) = (v - normalizer) / temperature`, so the policy is
`ref` times the inverse slope of the generator, and one number, the normalizer, is left to find.
KL gives softmax, Pearson's chi2 a sparse policy, a uniform reference with the alpha divergence
entmax. The conjugate value is the soft maximum of value iteration and of optimal aligned policies.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jdiv import checks, numerics, roots
from jdiv.divergences import categorical, generators
from jdiv.divergences.generator import Generator, checked_row
from jdiv.divergences.generators import KL, TotalVariation
from jdiv.types import Logits, PerSequence, Probs, Reduced, Scalar, Values


class Greedy(NamedTuple):
    """The regularized greedy policy of each row, with the evidence that it is one.

    Fields:
        log_policy: `[..., n]` log-probabilities; -inf is an action that the policy drops.
        value: `[...]` the maximum `<pi, v> - temperature * D(pi‖ref)`; its gradient by v is the
            policy.
        normalizer: `[...]` the number with `f'(pi/ref) = (v - normalizer)/temperature` where pi >
            0.
        residual: `[...]` `|sum pi - 1|` before the last normalization.
        iterations: Steps of the solver, 0 for closed forms; one number for the whole batch.
        converged: `[...]` whether the solver came to rest within rounding of its unknown.
    """

    log_policy: Array
    value: Array
    normalizer: Array
    residual: Array
    iterations: Array
    converged: Array


def greedy(
    values: Values,
    ref_logits: Logits,
    temperature: PerSequence | Scalar,
    *,
    generator: Generator,
) -> Greedy:
    """The policy that maximizes `<pi, values> - temperature * D(pi‖ref)` over the simplex.

    Shapes: values and ref_logits `[..., n]`, temperature a positive number or `[...]`. Actions
    with zero reference probability stay at zero. Closed forms for KL and total variation, else a
    safeguarded Newton iteration on the log-ratio of the best action. Differentiable to any order
    in every argument, the parameters of the generator included; the gradient of `value` by
    `values` is the policy. Call it under jit: an eager call compiles its solver again.

    >>> chi2 = generators.pearson_chi2()
    >>> policy = greedy(jnp.array([1.0, 0.0]), jnp.zeros(2), 0.5, generator=chi2)
    >>> [f"{p:.4f}" for p in jnp.exp(policy.log_policy)], policy.value.item()
    (['0.7500', '0.2500'], 0.625)

    Reference: Geist, Scherrer and Pietquin 2019 (arXiv:1901.11275), section 3, for the regularized
    greedy policy and its conjugate; Wang et al. 2024 (arXiv:2309.16240), Theorem 1, for the form
    through the inverse slope.
    """
    checked_row(generator, invertible=type(generator) not in _CLOSED_FORMS)
    values = checks.as_float("values", values)
    ref_logits = checks.as_float("ref_logits", ref_logits)
    checks.same_shape(values=values, ref_logits=ref_logits)
    if values.ndim == 0 or values.shape[-1] == 0:
        raise ValueError(f"values must have at least one action, got shape {tuple(values.shape)}")
    checks.positive("temperature", temperature)
    dtype = jnp.promote_types(values.dtype, ref_logits.dtype)
    values, temperature = values.astype(dtype), jnp.asarray(temperature, dtype)
    if temperature.shape not in ((), values.shape[:-1]):
        raise ValueError(
            f"temperature must be a number or of shape {values.shape[:-1]}, got {temperature.shape}"
        )
    temperature = jnp.broadcast_to(temperature, values.shape[:-1])
    generator = generator.astype(dtype)
    log_ref = numerics.log_softmax(ref_logits.astype(dtype))

    # Only the reference's support competes, and only differences to its best value matter.
    supported = log_ref != -jnp.inf
    best = jnp.max(jnp.where(supported, values, -jnp.inf), axis=-1, keepdims=True)
    best = jax.lax.stop_gradient(best)
    drop = jnp.where(supported, values - best, 0)
    solve = _CLOSED_FORMS.get(type(generator), _solve)
    log_ratio, top, residual, iterations, converged = solve(
        generator, drop / temperature[..., None], log_ref
    )

    log_policy = jnp.where(supported, log_ref + log_ratio, -jnp.inf)
    return Greedy(
        log_policy=log_policy,
        value=best[..., 0] + _value(generator, drop, log_ref, temperature, log_policy, log_ratio),
        normalizer=best[..., 0] - temperature * top,
        residual=residual,
        iterations=iterations,
        converged=converged,
    )


def _payoff(generator, drop, log_ref, temperature, log_policy, log_ratio):
    """`<pi, drop> - temperature * D(pi‖ref)`."""
    taken = log_policy != -jnp.inf
    payoff = jnp.exp(log_policy) * jnp.where(taken, drop, 0)
    cost = categorical.terms(generator, log_policy, log_ref, log_ratio)
    return jnp.sum(payoff, axis=-1) - temperature * jnp.sum(cost, axis=-1)


_value = jax.custom_jvp(_payoff)


@_value.defjvp
def _value_jvp(primals, tangents):
    """The envelope theorem: at the optimum the policy counts as a constant."""
    *inputs, log_policy, log_ratio = primals
    at_policy = lambda *inputs: _payoff(*inputs, log_policy, log_ratio)
    return jax.jvp(at_policy, tuple(inputs), tuple(tangents[:4]))


def _closed_form_kl(generator: KL, scaled: Array, log_ref: Array):
    """Softmax: `log(pi/ref) = v/temperature - log sum ref exp(v/temperature)`."""
    log_sum = jax.nn.logsumexp(log_ref + scaled, axis=-1)
    return scaled - log_sum[..., None], -log_sum, *_no_solver(log_sum)


def _closed_form_total_variation(generator: TotalVariation, scaled: Array, log_ref: Array):
    """Moving mass costs the temperature: what lies further below the best moves to the best.

    Actions that tie for the best share what arrives in proportion to the reference.
    """
    supported = log_ref != -jnp.inf
    best = supported & (scaled == 0)
    dropped = supported & (scaled < -1)
    gained, share = (
        jax.nn.logsumexp(jnp.where(chosen, log_ref, -jnp.inf), axis=-1, keepdims=True)
        for chosen in (best | dropped, best)
    )
    log_ratio = jnp.where(best, gained - share, jnp.where(dropped, -jnp.inf, 0))
    return log_ratio, jnp.full_like(scaled[..., 0], 0.5), *_no_solver(scaled[..., 0])


def _no_solver(row: Array):
    """Residual, iterations and convergence of a closed form."""
    return jnp.zeros_like(row), jnp.zeros((), jnp.int32), jnp.ones(row.shape, bool)


_CLOSED_FORMS = {KL: _closed_form_kl, TotalVariation: _closed_form_total_variation}


def _solve(generator: Generator, scaled: Array, log_ref: Array):
    """Any other generator, by one unknown: the log-ratio `top` of the best actions.

    `scaled` is (v - max v)/temperature, 0 at the best actions, whose log-ratio lies between 0 and
    minus the logarithm of their reference mass. All other log-ratios follow by `shift`, in which
    nothing cancels where the slope saturates.
    """
    supported = log_ref != -jnp.inf

    def log_ratios(top):
        return generator.shift(jnp.broadcast_to(top[..., None], scaled.shape), scaled)

    def log_total(top):
        log_policy = jnp.where(supported, log_ref + log_ratios(top), -jnp.inf)
        return jax.nn.logsumexp(log_policy, axis=-1)

    best = supported & (scaled == 0)
    low = jnp.zeros_like(scaled[..., 0])
    high = -jax.nn.logsumexp(jnp.where(best, log_ref, -jnp.inf), axis=-1)
    start = -jax.nn.logsumexp(log_ref + scaled, axis=-1)  # the answer for KL
    low, high, start = jax.lax.stop_gradient((low, jnp.maximum(high, 0), start))
    top, *evidence = roots.implicit(log_total, jnp.clip(start, low, high), low, high)
    log_ratio = log_ratios(top) + _below_resolution(log_ratios, log_total, top)
    log_ratio -= jax.nn.logsumexp(jnp.where(supported, log_ref + log_ratio, -jnp.inf), axis=-1)[
        ..., None
    ]
    return log_ratio, generator.slope(top), *evidence


def _below_resolution(log_ratios, log_total, top: Array) -> Array:
    """The change of the log-ratios by Newton's next step, too small for a float next to `top`.

    An action that is about to be dropped may take up all of it: there `u^(a-1)` hardly moves, and
    u does.
    """
    one = jnp.ones_like(top)
    total, by_top = jax.jvp(log_total, (top,), (one,))
    log_ratio, slope = jax.jvp(log_ratios, (top,), (one,))
    relative = jnp.where(log_ratio == -jnp.inf, 0, slope) * (-total / by_top)[..., None]
    return jax.lax.stop_gradient(jnp.log1p(jnp.clip(relative, -0.9, 9.0)))


def greedy_between(
    values: Values,
    ref_logits: Logits,
    old_logits: Logits,
    ref_temperature: Scalar,
    old_temperature: Scalar,
    *,
    generator: Generator,
) -> Greedy:
    """Maximizes `<pi, values> - ref_temperature D(pi‖ref) - old_temperature D(pi‖old)`.

    Shapes as in `greedy`; the temperatures are positive numbers. Every action has
    `ref_temperature f'(pi/ref) + old_temperature f'(pi/old) = v - normalizer`: one unknown each,
    within the search for the normalizer. KL has a closed form, greedy towards the geometric mean.
    Actions without mass in both stay at zero. Not for total variation, whose slope has no inverse.

    >>> even, most = jnp.zeros(2), jnp.log(jnp.array([0.8, 0.2]))
    >>> best = greedy_between(jnp.zeros(2), even, most, 1.0, 1.0, generator=generators.kl())
    >>> [f"{p:.4f}" for p in jnp.exp(best.log_policy)]
    ['0.6667', '0.3333']

    Reference: Vieillard et al. 2020 (arXiv:2003.14089), section 3, for KL and entropy at once.
    """
    checked_row(generator, invertible=True)
    checks.positive("ref_temperature", ref_temperature)
    checks.positive("old_temperature", old_temperature)
    values = checks.as_float("values", values)
    anchors = [
        numerics.log_softmax(checks.as_float(name, logits).astype(values.dtype))
        for name, logits in (("ref_logits", ref_logits), ("old_logits", old_logits))
    ]
    checks.same_shape(values=values, ref_logits=anchors[0], old_logits=anchors[1])
    weights = [jnp.asarray(weight, values.dtype) for weight in (ref_temperature, old_temperature)]
    if isinstance(generator, KL):
        total = weights[0] + weights[1]
        mixed = (weights[0] * anchors[0] + weights[1] * anchors[1]) / total
        shift = total * jax.nn.logsumexp(mixed, axis=-1, keepdims=True)
        return greedy(values + shift, mixed, total, generator=generator)
    policy, normalizer, *evidence = _solve_between(generator, values, anchors, weights)
    fixed = jax.lax.stop_gradient(policy)  # the envelope theorem
    payoff = jnp.sum(jnp.exp(fixed) * jnp.where(fixed > -jnp.inf, values, 0), axis=-1)
    costs = [
        weight * categorical.f_divergence(generator, fixed, anchor)
        for weight, anchor in zip(weights, anchors, strict=True)
    ]
    return Greedy(policy, payoff - costs[0] - costs[1], normalizer, *evidence)


def _solve_between(generator: Generator, values: Array, anchors: list, weights: list):
    """The log-policy between two anchors, its normalizer, and the solver's evidence."""
    total = weights[0] + weights[1]
    lower, upper = jnp.minimum(*anchors), jnp.maximum(*anchors)
    supported = lower > -jnp.inf
    lower, upper = jnp.where(supported, lower, 0), jnp.where(supported, upper, 0)

    def log_policy(normalizer):
        """Between the answers for each anchor alone with the whole weight."""
        slope = values - normalizer[..., None]
        alone = generator.inverse_slope(slope / total)
        kept = supported & jnp.isfinite(alone)
        ends = jax.lax.stop_gradient([jnp.where(kept, x + alone, 0) for x in (lower, upper)])

        def excess(x):
            parts = [
                weight * generator.slope(x - jnp.where(kept, anchor, 0))
                for weight, anchor in zip(weights, anchors, strict=True)
            ]
            return jnp.where(kept, parts[0] + parts[1] - slope, x)

        found = roots.implicit(excess, (ends[0] + ends[1]) / 2, *ends).x
        return jnp.where(kept, found, jnp.where(supported & (alone > 0), jnp.inf, -jnp.inf))

    def missing(normalizer):
        return -jax.nn.logsumexp(log_policy(normalizer), axis=-1)

    # Some action alone has all mass at `low`; at `high` none has more than half of an anchor's.
    slope = generator.slope(jnp.where(supported, -lower, 0))
    low = jnp.max(jnp.where(supported, values - total * slope, -jnp.inf), axis=-1)
    half = generator.slope(jnp.full_like(low, -jnp.log(2.0)))
    high = jnp.max(jnp.where(supported, values, -jnp.inf), axis=-1) - total * half
    low, high = jax.lax.stop_gradient((low, high))
    normalizer, *evidence = roots.implicit(missing, (low + high) / 2, low, high)
    return numerics.log_softmax(log_policy(normalizer)), normalizer, *evidence


# --------------------------------------------------------------------------- Fenchel-Young, entmax


def fenchel_young(
    values: Values,
    target_logits: Logits,
    ref_logits: Logits,
    temperature: PerSequence | Scalar,
    *,
    generator: Generator,
) -> Reduced:
    """Fenchel-Young loss, the regret of a target policy in the regularized problem.

    `max_pi <pi, v> - temperature D(pi‖ref)`, minus the same at the target. Its gradient by values
    is `greedy policy - target`, and it is 0 exactly where the two agree; for KL it is
    temperature * KL(target‖greedy policy). Shapes: `[..., n]` three times to `[...]`.

    >>> even = jnp.zeros(2)
    >>> loss = fenchel_young(jnp.array([1.0, 0.0]), even, even, 1.0, generator=generators.kl())
    >>> print(f"{loss:.4f}")
    0.1201

    Reference: Blondel, Martins and Niculae 2020 (arXiv:1901.02324), Definition 2.
    """
    best = greedy(values, ref_logits, temperature, generator=generator).value
    cost = categorical.f_divergence(generator, target_logits, ref_logits)
    target = jnp.exp(numerics.log_softmax(checks.as_float("target_logits", target_logits)))
    payoff = jnp.sum(jnp.where(target > 0, target * values, 0), axis=-1)
    return best - payoff + temperature * cost


def entmax(scores: Values, *, index: Scalar = 1.5) -> Probs:
    """`argmax_p <p, scores> + H(p)` with Tsallis' entropy; sparsemax at index 2, softmax at 1.

    `H(p) = sum (p - p^k) / (k (k - 1))` of index k: Tsallis' entropy `sum (p - p^k) / (k - 1)`
    divided by k, as entmax's paper has it under the name alpha. It is the greedy policy of the
    alpha divergence against the uniform reference at temperature n^(1 - k).
    Shapes: `[..., n]` to probabilities `[..., n]`.

    >>> [f"{p:.4f}" for p in entmax(jnp.array([1.0, 0.5, -1.0]))]
    ['0.6740', '0.3260', '0.0000']

    Reference: Peters, Niculae and Martins 2019 (arXiv:1905.05702), equation 10.
    """
    scores = checks.as_float("scores", scores)
    *problem, generator = _tsallis_entropy(scores, index)
    return jnp.exp(greedy(*problem, generator=generator).log_policy)


def entmax_loss(scores: Values, target_logits: Logits, *, index: Scalar = 1.5) -> Reduced:
    """The Fenchel-Young loss of entmax: sparsemax loss at index 2, cross-entropy's regret at 1.

    Shapes: `[..., n]` twice to `[...]`.

    Reference: Peters, Niculae and Martins 2019 (arXiv:1905.05702), section 4.1.
    """
    scores = checks.as_float("scores", scores)
    _, uniform, temperature, generator = _tsallis_entropy(scores, index)
    return fenchel_young(scores, target_logits, uniform, temperature, generator=generator)


def sparsemax(scores: Values) -> Probs:
    """Euclidean projection of the scores onto the simplex: entmax at index 2.

    >>> [f"{p:.4f}" for p in sparsemax(jnp.array([1.0, 0.5, -1.0]))]
    ['0.7500', '0.2500', '0.0000']

    Reference: Martins and Astudillo 2016 (arXiv:1602.02068), equation 2.
    """
    return entmax(scores, index=2.0)


def _tsallis_entropy(scores: Array, index: ArrayLike):
    """Arguments of `greedy` whose divergence is minus entmax's entropy, up to a constant."""
    checks.positive("index", index)
    temperature = jnp.asarray(scores.shape[-1], scores.dtype) ** (1 - jnp.asarray(index))
    return scores, jnp.zeros_like(scores), temperature, generators.alpha(index)
