"""Distillation on the student's own samples, by exact sums over all of them.

Fixed points of G-OPD, variances of vOPD, gradients of KDRL, MiniLLM and importance-weighted
distillation, the clip of RLAD, the routes of TRACE and the two stages of ERPD, each on a law of a
few tokens or a language model that is a table.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jax import Array
from ml_collections import ConfigDict

from experiments.lab.axes import count, each, fraction, positive, real, seeds
from experiments.lab.claims import Finding, at_least, at_most, between, claim, together
from experiments.lab.plots import Picture, panels, style
from experiments.lab.results import Labelled, labelled
from jdiv import divergences as dv
from jdiv import estimators
from jdiv.distillation import on_policy
from jdiv.lm import tabular
from jdiv.policy import clipped

AXES = {"sign": real, "anchored": fraction, "own": fraction, "seed": seeds}
FIELDS = {"tokens": count, "steps": count, "step_size": positive, "sizes": each(count)}
SCALES = 0.5, 1.0, 1.25, 2.0
PENALTIES = {"k1": estimators.kl_k1, "k2": estimators.kl_k2, "k3": estimators.kl_k3}
BASELINES = "none", "KL", "top 100", "best"
SHARES = 0.0, 0.2, 0.7
MASSES = tuple(10.0 ** -np.arange(1, 13))
COEFFICIENTS = tuple(2.0 ** np.arange(-4, 5))
STAGE = 2000
"""Steps of ERPD's first stage."""
VARIANCES = {
    10: (0.3990, 0.3687, 0.3648), 100: (1.1445, 0.8758, 0.8757), 1000: (1.5698, 1.1794, 1.1794),
}  # fmt: skip
OTHERS = {"sweep.own": (0.0,)}


def run(config: ConfigDict, point: dict, key: Array) -> dict[str, Array | Labelled]:
    """All parts, of one draw."""
    logits = jax.random.normal(key, (4, config.tokens))
    return {
        **fixed_points(config, point, *logits[:3]),
        **variances(config.sizes),
        **gradients(point, *logits),
        **sequences(point, key),
        **clip(*logits[:3]),
        **routes(config.tokens),
        **stages(logits[2], logits[3]),
    }


def column(logits: Array) -> Array:
    """Log-probabilities of all tokens, each a sequence of its own."""
    return jax.nn.log_softmax(logits)[:, None]


def enumerated(loss, own, logits: Array, law: Array | None = None) -> Array:
    """The sum over all tokens of `law loss`, the law of the samples held fixed."""
    log_p = column(logits)
    law = jnp.exp(log_p) if law is None else law
    law = jax.lax.stop_gradient(own * law + (1 - own) / logits.size)
    return jnp.sum(law * loss(log_p))


def fixed_points(config: ConfigDict, point: dict, teacher: Array, ref: Array, start: Array) -> dict:
    """Where descent on G-OPD's loss ends, against ref^(1 - scale) teacher^scale."""
    mask = jnp.full((config.tokens, 1), True)
    log_ref = point["anchored"] * column(ref)

    def descent(scale):
        loss = lambda x: on_policy.g_opd(x, column(teacher), log_ref, mask, scale=scale)
        slope = jax.grad(lambda x: point["sign"] * enumerated(loss, 1.0, x))
        step = lambda x, _: (x - config.step_size * slope(x), None)
        return jax.lax.scan(step, start, length=config.steps)[0]

    ends = jax.vmap(descent)(jnp.array(SCALES))
    scales = jnp.array(SCALES)[:, None]
    log_t, log_r = (jax.nn.log_softmax(x)[None] for x in (teacher, ref))
    targets = scales * log_t + (1 - scales) * log_r
    error = jnp.abs(jax.nn.softmax(ends) - jax.nn.softmax(targets)).max(axis=-1)
    apart = dv.kl(jnp.broadcast_to(teacher, ends.shape), ends)
    return {"error": labelled(error, scale=SCALES), "apart": labelled(apart, scale=SCALES)}


def variances(sizes: tuple[int, ...]) -> dict:
    """Trace of the covariance of one sample's gradient by the logits, and the bias of its mean."""
    draws, found, bias = np.random.default_rng(0), [], []
    for size in sizes:
        student = 2 * draws.normal(size=size)
        teacher = jnp.asarray(student + draws.normal(size=size))
        student = jnp.asarray(student)
        p, exact = jax.nn.softmax(student), jax.grad(dv.kl)(student, teacher)
        rows = [jnp.broadcast_to(x, (size, size)) for x in (student, teacher)]
        best = jnp.broadcast_to(on_policy.optimal_baseline(student, teacher), (size,))
        given = (
            {"baseline": jnp.zeros(size)}, {}, {"top_k": min(size, 100)}, {"baseline": best},
        )  # fmt: skip
        square = 1 - 2 * p + jnp.sum(p * p)
        for options in given:
            weight = on_policy.vopd(*rows, jnp.arange(size), **options)
            mean = p * (weight - jnp.sum(p * weight))
            found.append(jnp.sum(p * weight**2 * square) - jnp.sum(mean**2))
            bias.append(jnp.abs(mean - exact).max())
    shaped = lambda x: jnp.stack(x).reshape(len(sizes), len(BASELINES))
    names = {"size": sizes, "baseline": BASELINES}
    return {"variance": labelled(shaped(found), **names), "bias": labelled(shaped(bias), **names)}


def gradients(point: dict, teacher: Array, old: Array, student: Array, values: Array) -> dict:
    """Expected gradients on one token against those of the two KLs: largest differences."""
    mask = jnp.full((student.size, 1), True)
    reverse = jax.grad(dv.kl)(student, teacher)
    forward = jax.grad(dv.reverse_kl)(student, teacher)
    at = lambda loss, law=None: jax.grad(
        lambda x: enumerated(loss, point["own"], x, law)
    )(student)  # fmt: skip
    log_old = column(old)

    def kdrl(estimator, coefficient):
        return at(
            lambda x: on_policy.kdrl(
                x, jax.lax.stop_gradient(x), column(teacher), values[:, None], mask,
                coefficient=coefficient, estimator=estimator,
            )
        )  # fmt: skip

    taught = jnp.stack([kdrl(k, 1.0) - kdrl(k, 0.0) for k in PENALTIES.values()])
    late = jnp.stack([
        at(lambda x, c=c: on_policy.importance_weighted(x, log_old, column(teacher), mask,
                                                        ceiling=c), jnp.exp(log_old))
        for c in (jnp.inf, 1.0)
    ])  # fmt: skip
    largest = lambda x: jnp.abs(x).max(axis=-1)
    wanted = {"nothing": jnp.zeros_like(reverse), "reverse KL": reverse, "forward KL": forward}
    errors = jnp.stack([largest(taught - x[None]) for x in wanted.values()], axis=1)
    return {
        "taught": labelled(errors, penalty=tuple(PENALTIES), of=tuple(wanted)),
        "late": labelled(largest(late - reverse[None]), ceiling=("none", "1")),
    }


def sequences(point: dict, key: Array) -> dict:
    """MiniLLM's expected gradient on a table, relative to that of reverse KL of sequences."""
    student, teacher = jax.random.normal(key, (2, *tabular.table_shape(3)))
    every = tabular.enumerate_sequences(student.shape)
    tokens, mask = np.maximum(every.tokens, 0), every.mask
    at = lambda x: x[np.maximum(every.prefixes, 0)]

    def mean(x, share, **options):
        loss = on_policy.minillm(at(x), at(teacher), tokens, share=share, mask=mask, **options)
        mixed = on_policy.teacher_mixed(x, teacher, share=share)
        law = jnp.exp(tabular.sequence_log_probs(mixed))
        law = point["own"] * law + (1 - point["own"]) / law.size
        return jnp.sum(jax.lax.stop_gradient(law) * loss.sum(axis=-1))

    exact = jax.grad(tabular.kl)(student, teacher)
    ways = {
        "prefixes": {"unbiased": True, "normalized": False},
        "tokens": {"normalized": False},
        "tokens, by length": {},
    }
    error = lambda share, options: jnp.linalg.norm(
        jax.grad(functools.partial(mean, **options))(student, share) - exact
    ) / jnp.linalg.norm(exact)  # fmt: skip
    found = [jax.vmap(lambda s, o=o: error(s, o))(jnp.array(SHARES)) for o in ways.values()]
    return {"minillm": labelled(jnp.stack(found), weights=tuple(ways), share=SHARES)}


def clip(teacher: Array, old: Array, student: Array) -> dict:
    """RLAD: its distance from PPO at two shares, its boundary, and signs of its gradient."""
    log_p, log_old, log_t = (column(x) for x in (student, old, teacher))
    mask = jnp.full(log_p.shape, True)
    gains = jnp.where(jnp.arange(student.size) % 2 == 0, 1.0, -1.0)[:, None]
    rlad = lambda x, a, gains=gains: on_policy.rlad(x, log_old, log_t, gains, mask, share=a)
    ppo = lambda x: clipped.ppo_clip(x, log_old, gains, mask).loss
    both = lambda f: jnp.stack([f(log_p), jax.grad(lambda x: f(x).sum())(log_p)])
    shares = jnp.array([1.0, 0.5])
    found = jax.vmap(lambda a: both(lambda x: rlad(x, a)))(shares)
    slope = jax.vmap(jax.grad(lambda x, a: rlad(x, a, jnp.ones_like(gains)).sum()), (0, None))
    anchor = 0.5 * log_old + 0.5 * log_t + jnp.log(1.2)
    inside, outside = slope(anchor[None] + 1e-9 * jnp.array([-1.0, 1.0])[:, None, None], 0.5)
    return {
        "to_ppo": labelled(jnp.abs(found - both(ppo)[None]).max(axis=(1, 2, 3)),
                           of_old=("1", "1/2")),
        "edge": labelled(jnp.stack([jnp.abs(inside + 1.2).max(), jnp.abs(outside).max()]),
                         side=("inside", "outside")),
        "turned": jnp.sum(found[:, 1] * gains[None] > 0),
    }  # fmt: skip


def routes(size: int) -> dict:
    """Rates at which both routes lift a token of the teacher's that the student lacks."""
    teacher = jnp.log(jnp.concatenate([jnp.array([0.3]), jnp.full(size - 1, 0.7 / (size - 1))]))
    masses = jnp.array(MASSES)[:, None]
    rest = jnp.broadcast_to((1 - masses) / (size - 1), (len(MASSES), size - 1))
    student = jnp.log(jnp.concatenate([masses, rest], axis=1))
    on, off = jnp.full(len(MASSES), True), jnp.full(len(MASSES), False)
    rows = jnp.broadcast_to(teacher, student.shape)
    lift = lambda *masks: (
        -jax.grad(lambda x: on_policy.routed(x, rows, *masks).sum())(student)[:, 0]
    )
    rates = jnp.stack([lift(on, off), lift(off, on)])
    return {"lift": labelled(rates, route=("forward", "reverse"), mass=MASSES)}


def stages(ref: Array, rewards: Array) -> dict:
    """ERPD: reward and KL(policy‖ref) along stage one, and of stage two's minima."""
    mask = jnp.full((ref.size, 1), True)
    law = jnp.exp(column(ref))
    gains = (rewards - jnp.sum(law[:, 0] * rewards))[:, None]
    loss = lambda x: on_policy.extreme_region_search(x, column(ref), gains, mask)
    slope = jax.grad(lambda x: enumerated(loss, 1.0, x, law))
    _, path = jax.lax.scan(lambda x, _: (x - 0.05 * slope(x), x), ref, length=STAGE)
    extreme, c = path[-1], jnp.array(COEFFICIENTS)[:, None]
    second = jax.nn.log_softmax(extreme)[None] + c * jax.nn.log_softmax(ref)[None]
    second = second / (1 + c)
    rows = [jnp.broadcast_to(x, second.shape) for x in (extreme, ref)]
    rest = jax.grad(lambda x: on_policy.extreme_region(x, *rows, coefficient=c[:, 0]).sum())(second)
    of = lambda x: (
        jax.nn.softmax(x) @ rewards, dv.kl(x, jnp.broadcast_to(ref, x.shape)),
    )  # fmt: skip
    (reward, kl), (reward_two, kl_two) = of(path), of(second)
    # The least KL there is at a reward: tilts of the reference.
    tilt_reward, tilt_kl = of(ref[None] + jnp.linspace(0, 50, 1000)[:, None] * rewards[None])
    # At its clip the path goes back and forth.
    same = jnp.interp(reward_two, jax.lax.cummax(reward), jax.lax.cummax(kl))
    least = jnp.interp(reward_two, tilt_reward, tilt_kl)
    return {
        "first_reward": labelled(reward, move=range(STAGE)),
        "first_kl": labelled(kl, move=range(STAGE)),
        "second_reward": labelled(reward_two, coefficient=COEFFICIENTS),
        "second_kl": labelled(kl_two, coefficient=COEFFICIENTS),
        "kl_ratio": labelled(
            jnp.stack([kl_two, least]) / same[None],
            law=("stage two", "best"),
            coefficient=COEFFICIENTS,
        ),
        "rest": jnp.abs(rest).max(),
    }


# ------------------------------------------------------------------------------------- figures


def figures(config: ConfigDict, results: xr.Dataset) -> dict[str, Picture]:
    """Variances, routes, and stages."""
    first = results.isel(sign=0, anchored=0, own=0, seed=0)
    figure, (left, middle, right) = panels(3, width=4.2, height=3.8)
    places = np.arange(len(config.sizes))
    for number, name in enumerate(BASELINES):
        look = style(number)
        left.bar(places + 0.2 * (number - 1.5), first.variance.sel(baseline=name), 0.2,
                 color=look["color"], label=name)  # fmt: skip
    left.set_xticks(places, [str(size) for size in config.sizes])
    left.set(xlabel="tokens of the vocabulary", ylabel="variance of one sample's gradient")
    left.set_ylim(0, 2.2)
    left.legend(title="baseline", fontsize="small", ncols=2, loc="upper left")
    for number, name in enumerate(("forward", "reverse")):
        middle.plot(MASSES, first.lift.sel(route=name), label=f"{name} KL", **style(number))
    middle.set(xscale="log", xlabel="the student's mass on the token", ylim=(-0.02, 0.45))
    middle.set(ylabel="rate at which its logit rises")
    middle.legend(fontsize="small", loc="upper left")
    right.plot(first.first_kl, first.first_reward, label="stage one", **style(0))
    right.plot(first.second_kl, first.second_reward, label="stage two",
               **style(1, marker=True) | {"linestyle": ""})  # fmt: skip
    right.set(xlabel="KL(policy‖ref), nats", ylabel="mean reward")
    right.legend(fontsize="small", loc="lower right")
    return {
        "on_policy": Picture(
            figure,
            "Left: vOPD's baseline takes off most of the variance that one number can, and for"
            " large vocabularies all but a trace of it; a hundred tokens are enough for it. Middle:"
            " forward KL lifts a token of teacher's mass .3 at that rate however little the student"
            " has, reverse KL does not. Right: ERPD's second stage lies below the path of the"
            " first, which its clip ends: at equal reward it is further from the reference.",
        )
    }


# ------------------------------------------------------------------------------------------ claims

G_OPD = "G-OPD, released code; the optimum by calculus"


@claim(
    source=G_OPD,
    reruns=({"sweep.sign": (-1.0,)}, {"sweep.anchored": (0.0,)}),
)
def g_opd_ends_between_reference_and_teacher(results: xr.Dataset) -> Finding:
    """Descent on G-OPD's loss ends at ref^(1 - scale) teacher^scale for scales of .5, 1, 1.25 and
    2: the largest error of a probability."""
    return at_most(1e-5, results.error.max(("seed", "sign", "anchored", "own")))


@claim(source=G_OPD, wrong=({"scale": 1.25},))
def only_a_scale_of_one_is_the_teacher(results: xr.Dataset, scale: float = 1.0) -> Finding:
    """KL(teacher‖student) at the end is 0 at scale 1 alone: largest there, smallest elsewhere."""
    others = [other for other in SCALES if other != scale]
    apart = results.apart
    return together(
        at_most(1e-9, apart.sel(scale=scale).max()), at_least(1e-3, apart.sel(scale=others).min())
    )


@claim(
    source="vOPD, released code; an independent computation with NumPy's seed 0",
    reference=[VARIANCES[10], VARIANCES[100]],
    wrong=({"middle": "best"},),
)
def variances_of_the_reference_draw(results: xr.Dataset, middle: str = "KL") -> Finding:
    """The variance of one sample's gradient without a baseline, with KL and with the best number,
    at every size; half a unit of the last digit."""
    found = results.variance.isel(sign=0, anchored=0, own=0, seed=0)
    found = found.sel(baseline=["none", middle, "best"]).transpose("size", "baseline")
    expected = np.array([VARIANCES[int(size)] for size in found["size"]])
    return between(expected - 6e-5, found.values, expected + 6e-5)


@claim(source="vOPD; its baseline is not the best", wrong=({"middle": "best"},))
def kl_is_a_good_baseline_and_not_the_best(results: xr.Dataset, middle: str = "KL") -> Finding:
    """The variance with KL is below that of none at every size, and above that of the best number
    by 1 % for ten tokens: largest ratio to none, ratio to the best; the mean of the gradient has no
    bias by any: largest."""
    at = lambda name: results.variance.sel(baseline=name)
    return together(
        at_most(0.95, (at(middle) / at("none")).max()),
        at_least(1.01, (at(middle) / at("best")).sel(size=10).min()),
        at_most(1e-12, results.bias.max()),
    )


@claim(
    source="KDRL, abstract; gradients by the score function",
    reruns=(OTHERS,),
    wrong=({"penalties": ("k3", "k1", "k2")},),
)
def three_penalties_teach_three_things(
    results: xr.Dataset, penalties: tuple[str, ...] = ("k1", "k2", "k3")
) -> Finding:
    """Beside GRPO, k1 teaches nothing, k2 reverse KL and k3 forward KL: largest differences of the
    gradient over draws."""
    of = "nothing", "reverse KL", "forward KL"
    pairs = zip(penalties, of, strict=True)
    return at_most(1e-10, [float(results.taught.sel(penalty=k, of=x).max()) for k, x in pairs])


@claim(source="importance sampling", reruns=(OTHERS,), wrong=({"ceiling": "1"},))
def old_samples_can_be_weighted(results: xr.Dataset, ceiling: str = "none") -> Finding:
    """On-policy distillation from an older student's samples has the gradient of reverse KL, if
    its weights have no ceiling: largest difference."""
    return at_most(1e-10, results.late.sel(ceiling=ceiling).max())


@claim(
    source="MiniLLM (arXiv:2306.08543), equations 2 to 7",
    reruns=(OTHERS,),
    wrong=({"weights": "tokens"}, {"weights": "tokens, by length"}),
)
def minillm_follows_reverse_kl(results: xr.Dataset, weights: str = "prefixes") -> Finding:
    """With weights of prefixes, MiniLLM's mean gradient is that of KL(student‖teacher) of
    sequences, also for samples that are mixed with the teacher's: largest relative error. Weights
    of single tokens and the division by length, as the paper has them, are approximations."""
    return at_most(1e-10, results.minillm.sel(weights=weights).max())


@claim(source="RLAD, its trust region ratio", wrong=({"of_old": "1/2"},))
def rlad_at_one_is_ppo(results: xr.Dataset, of_old: str = "1") -> Finding:
    """At a share of 1, RLAD's losses and gradients are PPO's to the bit: largest difference."""
    return at_most(0.0, results.to_ppo.sel(of_old=of_old).max())


@claim(source="RLAD, its trust region ratio", wrong=({"end": "inside"},))
def its_bound_is_that_of_the_anchor(results: xr.Dataset, end: str = "outside") -> Finding:
    """The gradient ends where pi passes (1 + high) sqrt(old teacher): largest beyond it, and its
    error within a billionth before; and it never has the sign that the advantage has not."""
    inside = results.edge.sel(side="inside").max()
    beyond = results.edge.sel(side=end).max() + 1.2 * (end == "inside")
    return at_most((1e-8, 0.0, 0.0), (inside, beyond, results.turned.max()))


@claim(source="TRACE, abstract; rates by calculus", wrong=({"route": "reverse"},))
def forward_kl_lifts_what_is_missing(results: xr.Dataset, route: str = "forward") -> Finding:
    """A token of teacher's mass .3 of which the student has 1e-12 rises at the rate .3 by forward
    KL, and at less than 1e-9 by reverse KL."""
    at = results.lift.sel(mass=MASSES[-1])
    return together(
        at_least(0.3 - 1e-9, at.sel(route=route).min()),
        at_most(1e-9, at.sel(route="reverse").max()),
    )


@claim(source="ERPD, abstract; not found here, no toy number is known", wrong=({"law": "best"},))
def a_second_stage_costs_no_less(results: xr.Dataset, law: str = "stage two") -> Finding:
    """KL(policy‖ref) of the second stage over that of the first stage's path at the same reward is
    above 1 on average over draws and coefficients, where exact gradients lead the first stage; the
    best laws have less. And its minima are where they should be: the largest gradient left."""
    ratio = results.kl_ratio.sel(law=law).mean()
    return together(at_least(1.0, ratio), at_most(1e-12, results.rest.max()))
