"""What bfloat16 does to the gradient of a divergence while the student approaches its target.

The gradient of KL by the student's logits is q - p: a difference that cancels the more the closer
the two are, and training brings them closer. Measured in vllm-project/speculators #788, by the
acceptance rate sum min(p, q) of speculative decoding, with 32,000 categories.

Two errors are kept apart. *Arithmetic*: every implementation gets the same logits, rounded to
bfloat16, and is compared with float64 on these. *Inputs*: float64 on rounded logits is compared
with float64 on the logits before rounding; no implementation can help that.

A compiler may keep more than bfloat16 inside of what it fuses, so that results would depend on the
backend. Here they do not: arithmetic in bfloat16 is float32 in which every result of an operation
is rounded to eight bits (`in_bfloat16`), sums accumulating in float32.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray as xr
from jax import Array
from jax.extend import core
from ml_collections import ConfigDict

from experiments.lab import axes
from experiments.lab.claims import Finding, at_least, at_most, claim, equals
from experiments.lab.plots import Picture, curve, legend_above, marks, panels, style
from experiments.lab.results import Labelled, labelled
from jdiv import divergences

AXES = {"acceptance": axes.inside(0.2, 1), "seed": axes.seeds}
ARITHMETIC = axes.one_of(("float32", "bfloat16"))
FIELDS = {
    "vocabulary": axes.at_least(2),
    "equal_vocabulary": axes.at_least(2),
    "logit_scale": axes.positive,
    "library_arithmetic": ARITHMETIC,
    "naive_arithmetic": ARITHMETIC,
}
DIVERGENCES = ("kl", "reverse_kl", "total_variation")
PUBLISHED = {"kl": {0.88: 0.030, 0.95: 0.090, 0.98: 0.194},
             "total_variation": {0.88: 0.057, 0.95: 0.071, 0.98: 0.311}}  # fmt: skip
"""Relative gradient errors in bfloat16 by acceptance, and what float32 arithmetic leaves."""
PUBLISHED_FLOAT32 = 0.0015
ROUNDOFF = 2.0**-8
"""Half the distance of 1 to the next bfloat16: the relative error of storing a number."""
TABLE = "vllm-project/speculators #788, table"
EXCHANGED = {
    "library_arithmetic": "bfloat16",
    "naive_arithmetic": "float32",
    "vocabulary": 4000,
    "equal_vocabulary": 1000,
    "sweep.acceptance": (0.88, 0.98),
    "sweep.seed": (0, 1),
}
"""The library's formulas in bfloat16, and the customary ones in float32."""


# -------------------------------------------------------------------------- arithmetic in bfloat16


def rounded(x: Array) -> Array:
    """float32 with the eight significant bits of bfloat16, in a way no compiler removes."""
    return jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7)


def in_bfloat16(f):
    """`f` of float32 arrays with the result of every operation rounded to bfloat16."""

    def evaluated(*inputs):
        closed = jax.make_jaxpr(f)(*inputs)
        return _evaluate(closed, inputs)[0]

    return evaluated


def _evaluate(closed, inputs):
    """The outputs of a jaxpr, operation by operation."""
    values = dict(zip(closed.jaxpr.constvars, closed.consts, strict=True))
    values |= zip(closed.jaxpr.invars, inputs, strict=True)

    def read(x):
        return x.val if isinstance(x, core.Literal) else values[x]

    for equation in closed.jaxpr.eqns:
        arguments = [read(x) for x in equation.invars]
        inner = equation.params.get("jaxpr", equation.params.get("call_jaxpr"))
        if inner is not None:
            results = _evaluate(inner, arguments)
        else:
            results = equation.primitive.bind(*arguments, **equation.params)
            results = results if equation.primitive.multiple_results else [results]
            results = [rounded(x) if x.dtype == jnp.float32 else x for x in results]
        values |= zip(equation.outvars, results, strict=True)
    return [read(x) for x in closed.jaxpr.outvars]


def naive_kl(p_logits: Array, q_logits: Array) -> Array:
    """KL(p‖q) as it is customarily written, with the log-probabilities rounded."""
    log_p, log_q = jax.nn.log_softmax(p_logits), jax.nn.log_softmax(q_logits)
    return jnp.sum(jnp.exp(log_p) * (log_p - log_q))


def naive_total_variation(p_logits: Array, q_logits: Array) -> Array:
    """Total variation as it is customarily written, with the probabilities rounded."""
    return jnp.sum(jnp.abs(jax.nn.softmax(p_logits) - jax.nn.softmax(q_logits))) / 2


def optax_kl(p_logits: Array, q_logits: Array) -> Array:
    """KL(p‖q) by optax."""
    return optax.losses.kl_divergence(jax.nn.log_softmax(q_logits), jax.nn.softmax(p_logits))


def _swapped(f):
    return lambda p_logits, q_logits: f(q_logits, p_logits)


NAIVE = (naive_kl, _swapped(naive_kl), naive_total_variation)
OPTAX = (optax_kl, _swapped(optax_kl))
LIBRARY = tuple(getattr(divergences, name) for name in DIVERGENCES)


# ------------------------------------------------------------------------------- the experiment


def run(config: ConfigDict, point: dict, key: Array) -> dict[str, Array | Labelled]:
    """Relative errors of gradients by the student's logits, and values between equal logits."""
    key_target, key_noise, key_equal = jax.random.split(key, 3)
    shape = (config.vocabulary,)
    target = config.logit_scale * jax.random.normal(key_target, shape, dtype=jnp.float64)
    noise = jax.random.normal(key_noise, shape, dtype=jnp.float64)
    student = target + distance_at(point["acceptance"], target, noise) * noise
    p, q = as_bfloat16(target), as_bfloat16(student)
    p64, q64 = p.astype(jnp.float64), q.astype(jnp.float64)
    pairs = jnp.stack([p64, target]), jnp.stack([q64, student])  # after rounding, and before
    truth, before = zip(*(jax.vmap(gradient(f))(*pairs) for f in LIBRARY), strict=True)
    p32, q32 = p.astype(jnp.float32), q.astype(jnp.float32)
    of_library = [rounded(gradient(f)(p, q).astype(jnp.float32)) for f in LIBRARY]
    if config.library_arithmetic == "bfloat16":
        of_library = [in_bfloat16(gradient(f))(p32, q32) for f in LIBRARY]
    of_naive = [in_bfloat16(gradient(f))(p32, q32) for f in NAIVE]
    if config.naive_arithmetic == "float32":
        of_naive = [rounded(gradient(f)(p32, q32)) for f in NAIVE]
    of_optax = [in_bfloat16(gradient(f))(p32, q32) for f in OPTAX]
    equal = config.logit_scale * jax.random.normal(key_equal, (config.equal_vocabulary,))
    equal = as_bfloat16(equal)
    equal32 = equal.astype(jnp.float32)
    return {
        "acceptance_found": acceptance(p64, q64),
        "library": labelled(_errors(of_library, truth), divergence=DIVERGENCES),
        "naive": labelled(_errors(of_naive, truth), divergence=DIVERGENCES),
        "optax": labelled(_errors(of_optax, truth[:2]), direction=DIVERGENCES[:2]),
        "inputs": labelled(_errors(truth, before), divergence=DIVERGENCES),
        "equal_library": divergences.kl(equal, equal),
        "equal_naive": in_bfloat16(naive_kl)(equal32, equal32),
        "equal_optax": in_bfloat16(optax_kl)(equal32, equal32),
    }


def as_bfloat16(x: Array) -> Array:
    """Rounded to bfloat16, in a way no compiler removes."""
    return rounded(x.astype(jnp.float32)).astype(jnp.bfloat16)


def gradient(f):
    """The gradient by the second logits, the student's."""
    return jax.grad(f, argnums=1)


def acceptance(p_logits: Array, q_logits: Array) -> Array:
    """`sum min(p, q)`, the rate at which speculative decoding accepts."""
    return 1 - divergences.total_variation(p_logits, q_logits)


def distance_at(rate: Array, target: Array, noise: Array) -> Array:
    """How much noise makes the acceptance rate this one, after rounding: by bisection."""
    p = as_bfloat16(target).astype(jnp.float64)

    def halve(_, ends):
        middle = (ends[0] + ends[1]) / 2
        q = as_bfloat16(target + middle * noise).astype(jnp.float64)
        too_near = acceptance(p, q) > rate
        return jnp.where(too_near, middle, ends[0]), jnp.where(too_near, ends[1], middle)

    ends = jax.lax.fori_loop(0, 30, halve, (jnp.float64(0), jnp.float64(8)))
    return (ends[0] + ends[1]) / 2


def _errors(found: Sequence[Array], truth: Sequence[Array]) -> Array:
    """`|g - g*| / |g*|` for each pair, in the Euclidean norm."""
    norm = jnp.linalg.norm
    return jnp.stack(
        [norm(g.astype(jnp.float64) - t) / norm(t) for g, t in zip(found, truth, strict=True)]
    )


# ------------------------------------------------------------------------------------- figures


def figures(config: ConfigDict, results: xr.Dataset) -> dict[str, Picture]:
    """The error of each implementation against the acceptance rate, a panel a divergence."""
    figure, plots = panels(3, width=3.4, height=4.1, sharex=True, sharey=True)
    results = results.assign_coords(rejected=1 - results.acceptance_found.mean("seed"))
    results = results.swap_dims(acceptance="rejected").mean("seed")
    titles = ("KL(target‖student)", "KL(student‖target)", "total variation")
    lines = (
        ("naive", "divergence", "bfloat16 throughout"),
        ("optax", "direction", "optax in bfloat16"),
        ("library", "divergence", "this library, bfloat16 in and out"),
    )
    for axis, divergence, title in zip(plots, DIVERGENCES, titles, strict=True):
        for number, (name, dim, label) in enumerate(lines):
            if divergence in results[dim].values:
                error = results[name].sel({dim: divergence})
                curve(axis, "rejected", error, **style(number, marker=True), label=label)
        inputs = results.inputs.sel(divergence=divergence)
        look = {"color": "#909090", "linestyle": ":", "linewidth": 2.5}
        curve(axis, "rejected", inputs, **look, label="rounding of the logits")
        points = PUBLISHED.get(divergence, {})
        rejected = [1 - rate for rate in points]
        marks(axis, rejected, list(points.values()), "published, vLLM speculators #788")
        axis.axhline(ROUNDOFF, color="black", linewidth=0.8, linestyle=(0, (1, 2)))
        axis.set(xscale="log", yscale="log", title=title, xlabel="acceptance rate")
    plots[0].invert_xaxis()
    rates = [
        rate for rate in (0.5, 0.7, 0.88, 0.95, 0.98, 0.995) if rate in config.sweep.acceptance
    ]
    plots[0].set_xticks([1 - rate for rate in rates], [f"{rate:g}" for rate in rates])
    plots[0].minorticks_off()
    plots[0].set_ylabel("relative error of the gradient")
    legend_above(figure, plots[0], columns=3)
    return {
        "gradient_error": Picture(
            figure,
            f"Gradients by the student's logits, {config.vocabulary} categories, against float64 on"
            " the same rounded logits. In bfloat16 the error grows as the student approaches its"
            " target; with float32 inside it stays below the dotted line, the rounding of the"
            " result. In grey what the rounding of the logits costs, which no arithmetic recovers.",
        )
    }


# ------------------------------------------------------------------------------------------ claims


def errors_of_naive(results: xr.Dataset, acceptance: float) -> np.ndarray:
    """Mean relative errors of the customary formulas, for the published divergences."""
    here = results.naive.sel(acceptance=acceptance, divergence=list(PUBLISHED))
    return here.mean("seed").values


@claim(
    source=f"{TABLE}: fp32 softmax",
    published=PUBLISHED_FLOAT32,
    reruns=(EXCHANGED,),
    wrong=({"implementation": "naive"}, {"implementation": "optax"}),
)
def float32_inside_leaves_the_rounding_of_the_result(
    results: xr.Dataset, implementation: str = "library"
) -> Finding:
    """With bfloat16 logits in and gradients out, float32 in between leaves no larger relative error
    than the unit roundoff of bfloat16, 2^-8, at any acceptance rate and for KL, reverse KL and
    total variation (the largest over rates and seeds of each)."""
    return at_most(ROUNDOFF, results[implementation].max(["acceptance", "seed"]))


@claim(
    source=f"{TABLE}: kl_div and tv at acceptance 0.98",
    published=[rates[0.98] for rates in PUBLISHED.values()],
    reruns=(EXCHANGED,),
)
def bfloat16_loses_the_gradient_near_the_target(results: xr.Dataset) -> Finding:
    """In bfloat16 throughout the gradients of KL and of total variation are more than 5 % off at
    acceptance 0.98. The published numbers are of other logits; the size is what is claimed."""
    return at_least(0.05, errors_of_naive(results, 0.98))


@claim(
    source=f"{TABLE}: kl_div and tv, 0.98 over 0.88",
    published=[rates[0.98] / rates[0.88] for rates in PUBLISHED.values()],
    reruns=(EXCHANGED,),
)
def the_error_grows_towards_the_target(results: xr.Dataset) -> Finding:
    """From acceptance 0.88 to 0.98 the error in bfloat16 more than doubles, for KL and for total
    variation; only the shape is claimed. Errors inverse to 1 - acceptance would grow six times."""
    return at_least(2.0, errors_of_naive(results, 0.98) / errors_of_naive(results, 0.88))


@claim(
    source="erfanzar/EasyDeL #267, which measured +0.0248 in bfloat16 with 248,320 categories",
    wrong=({"implementation": "optax"},),
    needs={"acceptance": ...},
)
def equal_logits_give_exactly_zero(results: xr.Dataset, implementation: str = "library") -> Finding:
    """KL between two equal rows of bfloat16 logits is exactly 0, for every seed. By optax in
    bfloat16 it is not."""
    return equals(0, abs(results[f"equal_{implementation}"]).max())
