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
from jdiv.types import Categories, Logits, PerSequence, Probs, Reduced, Scalar, Values


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
        converged: `[...]` whether the residual is finite and small: `roots.small`.
    """

    log_policy: Array
    value: Array
    normalizer: Array
    residual: Array
    iterations: Array
    converged: Array


LOWEST = -1e8
"""Log-probabilities of a reference below this are masks: exact zeros."""


def greedy(
    values: Values,
    ref_logits: Logits,
    temperature: PerSequence | Scalar,
    *,
    generator: Generator,
    where: Categories | None = None,
) -> Greedy:
    """The policy that maximizes `<pi, values> - temperature * D(pi‖ref)` over the simplex.

    Shapes: values and ref_logits `[..., n]`, temperature a positive number or `[...]`. Actions
    with zero reference probability stay at zero: -inf in ref_logits, a mask such as -1e9 or the
    least float, or False in `where`; their values do not matter. A row that `where` empties has
    value 0 and no action. An action of value -inf gets nothing, one of inf everything. NaN in a
    value that matters gives NaN.

    Closed forms for KL and total variation, else a safeguarded Newton iteration on the log-ratio of
    one action. Differentiable to any order in every argument, the parameters of the generator
    included; the gradient of `value` by `values` is the policy. Made for jit: an eager call
    compiles its solver each time it meets new shapes, which takes seconds.

    >>> chi2 = generators.pearson_chi2()
    >>> policy = greedy(jnp.array([1.0, 0.0]), jnp.zeros(2), 0.5, generator=chi2)
    >>> [f"{p:.4f}" for p in jnp.exp(policy.log_policy)], policy.value.item()
    (['0.7500', '0.2500'], 0.625)

    Reference: Geist, Scherrer and Pietquin 2019 (arXiv:1901.11275), section 3, for the regularized
    greedy policy and its conjugate; Wang et al. 2024 (arXiv:2309.16240), Theorem 1, for the form
    through the inverse slope.
    """
    return with_log_ratio(values, ref_logits, temperature, generator=generator, where=where)[0]


def with_log_ratio(
    values: Values,
    ref_logits: Logits,
    temperature: PerSequence | Scalar,
    *,
    generator: Generator,
    where: Categories | None = None,
) -> tuple[Greedy, Array, Array]:
    """`greedy`, with log pi/ref and log ref.

    The log-ratio is relatively accurate where it is small, at high temperatures, while the
    difference of the two logarithms is rounding.
    """
    checked_row(generator, invertible=type(generator) not in _CLOSED_FORMS)
    values, ref_logits = checks.alike(values=values, ref_logits=ref_logits)
    if values.ndim == 0 or values.shape[-1] == 0:
        raise ValueError(f"values must have at least one action, got shape {tuple(values.shape)}")
    temperature = checks.positive("temperature", temperature, rows=values)
    temperature = jnp.broadcast_to(temperature, (*values.shape[:-1], 1))[..., 0]
    generator = generator.per_row(values)
    values, log_ref, empty = _masked(values, ref_logits, where)

    # An infinite best value is 0, and what is infinitely below it out of the competition.
    best = jax.lax.stop_gradient(jnp.max(jnp.where(log_ref == -jnp.inf, -jnp.inf, values), axis=-1))
    infinite = jnp.isinf(best)
    finite = jnp.where(values == best[..., None], 0, -jnp.inf)
    values = jnp.where(infinite[..., None], finite, values)
    competing = (log_ref != -jnp.inf) & (values != -jnp.inf)
    top = jnp.where(infinite, 0, best)
    values = jnp.where(competing, values, top[..., None])
    solve = _CLOSED_FORMS.get(type(generator), _solve)
    log_ratio, log_policy, normalizer, anchor, *evidence = solve(
        generator, values, top, temperature, jnp.where(competing, log_ref, -jnp.inf), log_ref
    )

    drop = values - anchor[..., None]
    value = anchor + _value(generator, drop, log_ref, temperature, log_policy, log_ratio)
    value = jnp.where(infinite, jnp.where(best > 0, jnp.inf, value + best), value)
    log_policy = jnp.where(empty, -jnp.inf, log_policy)
    return Greedy(log_policy, value, normalizer, *evidence), log_ratio, log_ref


def _masked(values: Array, ref_logits: Array, where: ArrayLike | None):
    """Values and the log-reference where it has mass, else 0 and -inf; and the emptied rows.

    The problem of an emptied row is one of equal values.
    """
    empty = jnp.zeros((*values.shape[:-1], 1), bool)
    if where is not None:
        where = jnp.broadcast_to(checks.as_mask("where", where), values.shape)
        empty = ~jnp.any(where, axis=-1, keepdims=True)
        ref_logits = jnp.where(empty, 0, jnp.where(where, ref_logits, -jnp.inf))
    log_ref = numerics.log_softmax(ref_logits)
    log_ref = jnp.where(log_ref < LOWEST, -jnp.inf, log_ref)
    return jnp.where(empty | (log_ref == -jnp.inf), 0, values), log_ref, empty


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


def _closed_form_kl(generator: KL, values, top, temperature, competing, log_ref):
    """Softmax: `log(pi/ref) = v/temperature - log sum ref exp(v/temperature)`."""
    scaled = (values - top[..., None]) / temperature[..., None]
    log_sum = jax.nn.logsumexp(competing + scaled, axis=-1)
    log_ratio = scaled - log_sum[..., None]
    return (
        log_ratio,
        jnp.where(competing == -jnp.inf, -jnp.inf, competing + log_ratio),
        top + temperature * log_sum,
        top,
        *_no_solver(log_sum),
    )


def _closed_form_total_variation(
    generator: TotalVariation, values, top, temperature, competing, log_ref
):
    """Moving mass costs the temperature: what lies further below the best moves to the best.

    Actions that tie for the best share what arrives in proportion to the reference.
    """
    scaled = (values - top[..., None]) / temperature[..., None]
    unknown = jnp.isnan(jnp.sum(scaled, axis=-1, keepdims=True) + log_ref)
    present = competing != -jnp.inf
    best = _best(scaled, present)
    dropped = (log_ref != -jnp.inf) & ((scaled < -1) | ~present)
    gained, share = (
        jax.nn.logsumexp(jnp.where(chosen, log_ref, -jnp.inf), axis=-1, keepdims=True)
        for chosen in (best | dropped, best)
    )
    log_ratio = jnp.where(best, gained - share, jnp.where(dropped, -jnp.inf, 0))
    log_ratio = jnp.where(unknown, jnp.nan, log_ratio)
    log_policy = jnp.where(present, competing + log_ratio, -jnp.inf)
    return log_ratio, log_policy, top - temperature / 2, top, *_no_solver(log_policy[..., 0])


def _best(scaled: Array, present: Array) -> Array:
    """The best actions: those at 0, and the first of the highest for certain.

    A compiled program that computes values twice, fused with what they are made of, may round them
    differently, so that none of them equals their maximum.
    """
    highest = jnp.argmax(jnp.where(present, scaled, -jnp.inf), axis=-1)
    first = jax.nn.one_hot(highest, scaled.shape[-1], dtype=bool)
    return present & ((scaled == 0) | first)


def _no_solver(row: Array):
    """Residual, iterations and convergence of a closed form."""
    residual = jnp.where(jnp.isnan(row), jnp.nan, 0)
    return residual, jnp.zeros((), jnp.int32), roots.small(residual)


_CLOSED_FORMS = {KL: _closed_form_kl, TotalVariation: _closed_form_total_variation}


class _At(NamedTuple):
    """A candidate for the policy, and how it moves with the log-ratio of the anchor."""

    log_ratio: Array
    relative: Array
    """Derivatives of the log-ratios; 0 where an action is dropped."""
    log_total: Array
    slope: Array
    """Derivative of log_total."""
    square: Array
    """Mean of the squares of `relative`: how far from linear a step is."""


def _solve(generator: Generator, values, top, temperature, competing, log_ref):
    """Any other generator, by one unknown: the log-ratio of one action, the anchor.

    All other log-ratios follow by `shift` from the difference of their value to the anchor's.
    """
    present = competing != -jnp.inf

    problem = generator, values, temperature, competing
    fixed = jax.lax.stop_gradient(problem)
    x, anchor, last, iterations = _search(*fixed, jax.lax.stop_gradient(top))
    root, log_ratio = _optimum(problem, anchor, x, last.log_ratio)

    # Newton's last step is too small for a float next to x, but not for the policy. Relative to
    # the reference nothing cancels: the log-ratios keep their digits where they are small.
    log_policy = jnp.where(present, fixed[-1] + last.log_ratio, -jnp.inf)
    fixed_ref = jax.lax.stop_gradient(log_ref)
    gained = numerics.probability_difference(log_policy, fixed_ref, last.log_ratio)
    gained = jnp.where(present, gained, -jnp.exp(fixed_ref))
    gained = jnp.where(fixed_ref == -jnp.inf, 0, gained)
    step = -jnp.log1p(jnp.sum(gained, axis=-1)) / last.slope
    step = jnp.where(jnp.isfinite(last.log_total), step, jnp.nan)
    moved = last.relative * step[..., None]
    rest = jax.nn.logsumexp(log_policy + moved, axis=-1)
    residual = jnp.abs(jnp.expm1(rest))
    converged = roots.small(residual)
    log_policy = jnp.where(present, (competing + log_ratio) + (moved - rest[..., None]), -jnp.inf)
    log_ratio += moved - jnp.where(converged, 0, rest)[..., None]
    slope = generator.slope((root + step)[..., None])[..., 0]
    normalizer = anchor - temperature * slope
    return log_ratio, log_policy, normalizer, anchor, residual, iterations, converged


@jax.custom_jvp
def _optimum(problem, anchor, x, log_ratio):
    """The log-ratio of the anchor and those of all actions, found before, as functions."""
    return x, log_ratio


def _optimum_jvp(primals, tangents):
    """What moves the total at this x moves x, so that the total stays 1."""
    problem, anchor, *_ = primals
    x, log_ratio = _optimum(*primals)
    here = _at(*problem, x, anchor)

    def at_x(generator, values, temperature, competing):
        ratio = _log_ratios(generator, values, temperature, competing, x, anchor)
        mass = jnp.where(competing == -jnp.inf, -jnp.inf, competing + ratio)
        return ratio, jax.nn.logsumexp(mass, axis=-1)

    change, excess = roots.along(at_x, problem, tangents[0])
    dx = -excess / here.slope
    return (x, log_ratio), (dx, change + here.relative * dx[..., None])


_optimum.defjvp(_optimum_jvp, symbolic_zeros=True)


def _log_ratios(generator: Generator, values, temperature, competing, x, anchor):
    """Of all actions, for an anchor of this value and log-ratio x."""
    steps = (values - anchor[..., None]) / temperature[..., None]
    return generator.shift(x[..., None], steps)


def _at(generator: Generator, values, temperature, competing, x, anchor) -> _At:
    problem = generator, values, temperature, competing
    one = jnp.ones_like(x)
    log_ratio, relative = jax.jvp(lambda x: _log_ratios(*problem, x, anchor), (x,), (one,))
    log_policy = jnp.where(competing == -jnp.inf, -jnp.inf, competing + log_ratio)
    relative = jnp.where(log_policy == -jnp.inf, 0, relative)
    largest = jnp.max(log_policy, axis=-1)
    largest = jnp.where(jnp.isfinite(largest), largest, 0)
    mass = jnp.exp(log_policy - largest[..., None])
    total, slope, square = (jnp.sum(mass * relative**k, axis=-1) for k in (0, 1, 2))
    return _At(log_ratio, relative, largest + jnp.log(total), slope / total, square / total)


def _search(generator: Generator, values, temperature, competing, top):
    """The anchor's log-ratio and value, the policy there, and Newton's steps of the slowest row."""
    problem = generator, values, temperature, competing
    scaled = (values - top[..., None]) / temperature[..., None]
    eps = jnp.finfo(values.dtype).eps

    def step(state):
        x, anchor, low, high, previous, resting, iteration, *_ = state
        here = _at(*problem, x, anchor)
        # The last time only to say what there is.
        over = jnp.all(resting) | (iteration == 200)
        resting |= over
        low, high = jnp.where(here.log_total < 0, x, low), jnp.where(here.log_total > 0, x, high)
        newton = -here.log_total / here.slope
        # Good enough: what the step leaves is rounding.
        enough = here.square * newton**2 <= eps
        rested = resting
        resting = resting | enough | jnp.isnan(here.log_total)

        coarse, gone = _poor_anchor(here, x)
        poor = (coarse | gone) & ~resting
        better = lambda: _better_anchor(here, gone, x, anchor, values, competing)
        same = lambda: (jnp.zeros_like(poor), anchor, x, jnp.zeros_like(x))
        changes, chosen, ratio, log_ref = jax.lax.cond(jnp.any(poor), better, same)
        changes &= poor
        # Of the new anchor's log-ratio only this is known: alone it has at most all mass.
        low, high = jnp.where(changes, -jnp.inf, low), jnp.where(changes, -log_ref, high)

        following = x + newton
        following = jnp.where(low == -jnp.inf, jnp.maximum(following, x - 2), following)
        # The root may be the end itself: all mass on the best action.
        near = 4 * eps * jnp.maximum(jnp.abs(x), 1)
        usable = (following > low - near) & (following < high + near)
        following = jnp.clip(following, low, high)
        usable &= jnp.abs(here.log_total) <= previous / 2
        middle = jnp.where(low == -jnp.inf, following, (low + high) / 2)
        following = jnp.where(enough | usable, following, middle)
        following = jnp.where(rested, x, jnp.where(changes, ratio, following))
        resting |= ~changes & (high - low <= eps * jnp.maximum(jnp.abs(x), 1))
        anchor = jnp.where(changes, chosen, anchor)
        previous = jnp.where(changes, jnp.inf, jnp.abs(here.log_total))
        count = iteration + jnp.where(over, 0, 1).astype(iteration.dtype)
        return following, anchor, low, high, previous, resting, count, here, over

    start, high = _start(generator, scaled, competing)
    never = jnp.zeros(start.shape, bool)
    infinite = jnp.full_like(start, jnp.inf)
    row, number = jnp.zeros_like(start), jnp.zeros((), jnp.int32)
    here = _At(*[jnp.zeros_like(values)] * 2, *[row] * 3)
    state = start, top, row, high, infinite, never, number, here, jnp.zeros((), bool)
    x, anchor, *_, iterations, here, _ = jax.lax.while_loop(lambda state: ~state[-1], step, state)
    return x, anchor, here, iterations


def _start(generator: Generator, scaled, competing):
    """Where the log-ratio of the best action is looked for first, and what it does not exceed."""
    # Alone the best actions have at most all mass. Where rounding leaves none at 0, as `_best` has
    # it, the least likely action bounds them all.
    present = competing != -jnp.inf
    best = jnp.where(present & (scaled == 0), competing, -jnp.inf)
    least = jnp.min(jnp.where(present, competing, 0), axis=-1)
    high = -jnp.maximum(jax.nn.logsumexp(best, axis=-1), least)
    high = jnp.maximum(high, 0)
    # The answers for KL and, where no slope has an end above, for actions that all keep mass.
    start = -jax.nn.logsumexp(competing + scaled, axis=-1)
    mean = jnp.sum(jnp.exp(competing) * scaled, axis=-1, keepdims=True)
    mean = generator.inverse_slope(-mean)[..., 0]
    unbounded = jnp.broadcast_to(generator.slope_at_infinity == jnp.inf, (*start.shape, 1))[..., 0]
    return jnp.clip(jnp.where(unbounded & (mean < start), mean, start), 0, high), high


def _poor_anchor(here: _At, x):
    """Whether floats near x are too coarse for the actions about to be dropped; or, where they are
    not, the anchor itself is to be dropped.
    """
    spread = jnp.sqrt(jnp.finfo(x.dtype).eps * here.square)
    coarse = 4 * spread * jnp.maximum(jnp.abs(x), 1) > 1
    return coarse, ~coarse & (here.log_total > 16 * here.slope)


def _better_anchor(here: _At, gone, x, anchor, values, competing):
    """Whether another action makes a better anchor, and its value, log-ratio and log-reference.

    Where floats are too coarse the best action that is fine enough. Where the anchor is `gone` the
    best of what remains, for which floats should not be too coarse either, or the old anchor is
    below their resolution.
    """
    eps = jnp.finfo(x.dtype).eps
    spread = jnp.sqrt(here.square)[..., None]
    size = jnp.maximum(jnp.abs(here.log_ratio), 1)
    above = values > anchor[..., None]
    log_policy = jnp.where(competing == -jnp.inf, -jnp.inf, competing + here.log_ratio)
    policy = jnp.exp(log_policy - here.log_total[..., None])
    remaining = jnp.sum(jnp.where(above, policy * here.relative, 0), axis=-1)
    fine = here.relative >= jnp.where(gone, remaining, spread[..., 0])[..., None] / 8
    clear = (here.relative > 8 * jnp.sqrt(eps) * spread * size) | (here.relative < eps * size)
    fit = (policy > 0) & fine & (~gone[..., None] | (above & clear))
    # What remains may not move at all, in floats: then to the next one.
    sign = jnp.where(gone & (remaining == 0), -1, 1)[..., None]
    index = jnp.argmax(jnp.where(fit, sign * values, -jnp.inf), axis=-1)[..., None]
    chosen, ratio, log_ref, fit = (
        jnp.take_along_axis(z, index, axis=-1)[..., 0]
        for z in (values, here.log_ratio, competing, fit)
    )
    # Just below, where the anchor that is gone is out.
    ratio -= jnp.where(gone, 2 * eps * jnp.maximum(jnp.abs(ratio), 1), 0)
    return fit & (chosen != anchor), chosen, ratio, log_ref


def greedy_between(
    values: Values,
    ref_logits: Logits,
    old_logits: Logits,
    ref_temperature: Scalar,
    old_temperature: Scalar,
    *,
    generator: Generator,
    where: Categories | None = None,
) -> Greedy:
    """Maximizes `<pi, values> - ref_temperature D(pi‖ref) - old_temperature D(pi‖old)`.

    Shapes as in `greedy`; the temperatures are positive numbers. Every action has
    `ref_temperature f'(pi/ref) + old_temperature f'(pi/old) = v - normalizer`: one unknown each,
    within the search for the normalizer. KL has a closed form, greedy towards the geometric mean.
    Actions without mass in both stay at zero, and so do those that `where` leaves out, as in
    `greedy`. Not for total variation, whose slope has no inverse.

    >>> even, most = jnp.zeros(2), jnp.log(jnp.array([0.8, 0.2]))
    >>> best = greedy_between(jnp.zeros(2), even, most, 1.0, 1.0, generator=generators.kl())
    >>> [f"{p:.4f}" for p in jnp.exp(best.log_policy)]
    ['0.6667', '0.3333']

    Reference: Vieillard et al. 2020 (arXiv:2003.14089), section 3, for KL and entropy at once.
    """
    checked_row(generator, invertible=True)
    ref_temperature = checks.positive("ref_temperature", ref_temperature)
    old_temperature = checks.positive("old_temperature", old_temperature)
    values = checks.as_float("values", values)
    anchors = [
        checks.as_float(name, logits).astype(values.dtype)
        for name, logits in (("ref_logits", ref_logits), ("old_logits", old_logits))
    ]
    checks.same_shape(values=values, ref_logits=anchors[0], old_logits=anchors[1])
    (_, ref, _), (_, old, empty) = (_masked(values, anchor, where) for anchor in anchors)
    anchors, supported = [ref, old], (ref != -jnp.inf) & (old != -jnp.inf)
    values = jnp.where(empty | ~supported, 0, values)
    weights = [jnp.asarray(weight, values.dtype) for weight in (ref_temperature, old_temperature)]
    if isinstance(generator, KL):
        total = weights[0] + weights[1]
        mixed = (weights[0] * anchors[0] + weights[1] * anchors[1]) / total
        shift = total * jax.nn.logsumexp(mixed, axis=-1, keepdims=True)
        best = greedy(values + shift, mixed, total, generator=generator)
        return best._replace(log_policy=jnp.where(empty, -jnp.inf, best.log_policy))
    policy, normalizer, *evidence = _solve_between(generator, values, anchors, weights)
    fixed = jax.lax.stop_gradient(policy)  # the envelope theorem
    payoff = jnp.sum(jnp.exp(fixed) * jnp.where(fixed > -jnp.inf, values, 0), axis=-1)
    costs = [
        weight * categorical.f_divergence(generator, fixed, anchor)
        for weight, anchor in zip(weights, anchors, strict=True)
    ]
    policy = jnp.where(empty, -jnp.inf, policy)
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
    where: Categories | None = None,
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
    best = greedy(values, ref_logits, temperature, generator=generator, where=where).value
    cost = categorical.f_divergence(generator, target_logits, ref_logits, where=where)
    values, target_logits = checks.alike(values=values, target_logits=target_logits)
    values, log_target, empty = _masked(values, target_logits, where)
    target = jnp.where(empty, 0, jnp.exp(log_target))
    payoff = jnp.sum(jnp.where(target > 0, target * values, 0), axis=-1)
    payoff = jnp.where(jnp.isnan(jnp.sum(target, axis=-1)), jnp.nan, payoff)
    temperature = checks.positive("temperature", temperature, rows=values)
    return best - payoff + (temperature * cost[..., None])[..., 0]


def entmax(
    scores: Values, *, index: PerSequence | Scalar = 1.5, where: Categories | None = None
) -> Probs:
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
    where = _in_reach(scores, index, where)
    *problem, generator = _tsallis_entropy(scores, index, where)
    return jnp.exp(greedy(*problem, generator=generator, where=where).log_policy)


def entmax_loss(
    scores: Values,
    target_logits: Logits,
    *,
    index: PerSequence | Scalar = 1.5,
    where: Categories | None = None,
) -> Reduced:
    """The Fenchel-Young loss of entmax: sparsemax loss at index 2, cross-entropy's regret at 1.

    Shapes: `[..., n]` twice to `[...]`.

    Reference: Peters, Niculae and Martins 2019 (arXiv:1905.05702), section 4.1.
    """
    scores = checks.as_float("scores", scores)
    _, uniform, temperature, generator = _tsallis_entropy(scores, index, where)
    return fenchel_young(
        scores, target_logits, uniform, temperature, generator=generator, where=where
    )


def sparsemax(scores: Values, *, where: Categories | None = None) -> Probs:
    """Euclidean projection of the scores onto the simplex: entmax at index 2.

    >>> [f"{p:.4f}" for p in sparsemax(jnp.array([1.0, 0.5, -1.0]))]
    ['0.7500', '0.2500', '0.0000']

    Reference: Martins and Astudillo 2016 (arXiv:1602.02068), equation 2.
    """
    return entmax(scores, index=2.0, where=where)


def _in_reach(scores: Array, index: ArrayLike, where: ArrayLike | None) -> Array:
    """Scores that may have mass above index 1: within 1/(index - 1) of the largest.

    Of many scores n^(1 - index) underflows for a large index; few of them are as near.
    """
    where = jnp.asarray(True) if where is None else checks.as_mask("where", where)
    index = checks.positive("index", index, rows=scores)
    reach = jnp.where(index > 1, 1 / (jnp.where(index > 1, index, 2) - 1), jnp.inf)
    largest = jnp.max(scores, axis=-1, keepdims=True, where=where, initial=-jnp.inf)
    # So written NaN stays in, and all of a row without any finite score.
    return where & ~(scores < jax.lax.stop_gradient(largest) - reach)


def _tsallis_entropy(scores: Array, index: ArrayLike, where: ArrayLike | None):
    """Arguments of `greedy` whose divergence is minus entmax's entropy, up to a constant.

    Entropy knows no reference: its temperature is a power of the number of scores that count.
    """
    index = jnp.asarray(checks.positive("index", index), scores.dtype)
    count = jnp.asarray(scores.shape[-1], scores.dtype)
    if where is not None:
        where = jnp.broadcast_to(checks.as_mask("where", where), scores.shape)
        count = jnp.maximum(jnp.sum(where, axis=-1), 1).astype(scores.dtype)
    return scores, jnp.zeros_like(scores), count ** (1 - index), generators.alpha(index)
