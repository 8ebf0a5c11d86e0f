"""Divergences and gradients of a language model's logits in half precision, by who computes them.

Logits come in bfloat16 or float16. The truth is the formula in double precision on the same rounded
logits, so an error is one of the arithmetic; what the rounding of the logits themselves does to the
divergence stands beside it. The other model is the same with other temperature, with noise on its
logits, or after an instruction.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray as xr
from jax import Array
from jax.typing import DTypeLike
from ml_collections import ConfigDict

from experiments.lab import models
from experiments.lab.axes import at_least as whole_from
from experiments.lab.axes import labels, one_of, positive, seeds
from experiments.lab.claims import Finding, at_least, at_most, claim
from experiments.lab.plots import Picture, legend_above, panels, style
from experiments.lab.results import Labelled, labelled
from jdiv import divergences

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from jdiv.lm import Transformer

PRECISIONS = ("bfloat16", "float16")
AGAINST = ("tempered", "perturbed", "prompted")
GENERATORS = ("kl", "jensen_shannon")
SCALE = 1024.0
"""What a loss is multiplied by so that its gradient is no subnormal number of float16."""
AXES = {"seed": seeds}


# ------------------------------------------------------------------------------------------- forms


def _by_kl(kl: Callable, generator: str, log_p: Array, log_q: Array) -> Array:
    """A divergence made of a function for KL of log-probabilities, as users of one write it."""
    if generator == "kl":
        return kl(log_p, log_q)
    log_m = jnp.logaddexp(log_p, log_q) - np.array(np.log(2), log_p.dtype)
    return (kl(log_p, log_m) + kl(log_q, log_m)) / 2


def in_optax(generator: str, p: Array, q: Array) -> Array:
    """log-softmax in the type of the logits, then `optax.losses`."""
    kl = lambda log_p, log_q: optax.losses.kl_divergence_with_log_targets(log_q, log_p)
    return _by_kl(kl, generator, jax.nn.log_softmax(p), jax.nn.log_softmax(q))


def widened(generator: str, p: Array, q: Array) -> Array:
    """The same after a cast to single precision, as under PyTorch's autocast."""
    return in_optax(generator, p.astype(jnp.float32), q.astype(jnp.float32))


def _rounded(dtype: DTypeLike) -> Callable[[Array], Array]:
    """Rounding to a type whose numbers are kept in single precision: a compiler may not drop it."""
    bits = jnp.finfo(dtype)
    return lambda x: jax.lax.reduce_precision(x, bits.nexp, bits.nmant)


def in_torch(generator: str, p: Array, q: Array) -> Array:
    """`log_softmax` and `kl_div(log_target=True)` of PyTorch: each result is rounded, and well.

    PyTorch's own log-softmax on a CPU is a unit more off in one of thirteen entries; from there on
    the numbers are the same.
    """
    half = _rounded(p.dtype)
    kl = lambda log_p, log_q: half(
        jnp.sum(half(half(jnp.exp(log_p)) * half(log_p - log_q)), axis=-1)
    )
    log_p, log_q = (half(jax.nn.log_softmax(x.astype(jnp.float32))) for x in (p, q))
    if generator == "kl":
        return kl(log_p, log_q)
    log_m = half(jnp.logaddexp(log_p, log_q) - np.float32(np.log(2)))
    return half((kl(log_p, log_m) + kl(log_q, log_m)) / 2)


def of_probabilities(generator: str, p: Array, q: Array) -> Array:
    """Softmax first, then logarithms of the probabilities; each result is rounded."""
    half = _rounded(p.dtype)
    kl = lambda p, q: half(jnp.sum(half(p * half(half(jnp.log(p)) - half(jnp.log(q)))), axis=-1))
    p, q = (half(jax.nn.softmax(x.astype(jnp.float32))) for x in (p, q))
    if generator == "kl":
        return kl(p, q)
    m = half((p + q) / 2)
    return half((kl(p, m) + kl(q, m)) / 2)


def in_jdiv(generator: str, p: Array, q: Array) -> Array:
    """The function of `jdiv.divergences`."""
    return getattr(divergences, generator)(p, q)


FORMS = {
    "jdiv": in_jdiv,
    "widened": widened,
    "optax": in_optax,
    "torch": in_torch,
    "probabilities": of_probabilities,
}
NAMES = {
    "jdiv": "jdiv",
    "widened": "cast to float32, log-softmax",
    "optax": "log-softmax and optax, in half precision",
    "torch": "PyTorch's log_softmax and kl_div",
    "probabilities": "softmax, then its logarithm",
}
FIELDS = {
    "model": models.smollm2,
    "form": one_of(tuple(FORMS)),
    "texts": labels,
    "instruction": labels,
    "tokens": whole_from(1),
    "temperature": positive,
    "noise": positive,
}


# ------------------------------------------------------------------------------------------ logits


@functools.cache
def logits(model: str, texts: tuple[str, ...], instruction: str, tokens: int) -> np.ndarray:
    """`[2, tokens, vocabulary]` laws of the last tokens of all texts, alone and after the
    instruction, in single precision."""
    transformer, tokenizer = models.load(model, words=512, width=32, spread=0.7)
    # The random model knows no word of a text.
    encode = tokenizer.encode if model != models.RANDOM else lambda text: [*text.encode()]
    rows = [encode(start + text) for start in ("", instruction) for text in texts]
    longest = max(map(len, rows))
    batch = np.array([row + [0] * (longest - len(row)) for row in rows], np.int32)
    ends = np.array([len(row) for row in rows])
    places = ends[:, None] - 1 - np.arange(tokens)[None]

    def of_places(transformer: Transformer) -> Array:
        hidden, _ = transformer(batch)
        return transformer.logits(jnp.take_along_axis(hidden, places[..., None], axis=1))

    found = np.asarray(jax.jit(of_places)(transformer))
    return found.reshape(2, -1, found.shape[-1])


# ---------------------------------------------------------------------------------------- the runs


def _plain(generator: str, p: Array, q: Array) -> Array:
    """The formula, for double precision."""
    kl = lambda log_p, log_q: jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)
    return _by_kl(kl, generator, jax.nn.log_softmax(p), jax.nn.log_softmax(q))


def _with_gradient(f: Callable, p: Array, q: Array) -> tuple[Array, Array]:
    """Values `[..., tokens]` and the gradient of their sum by the logits of p, in double."""
    value, pull = jax.vjp(lambda p: f(p, q), p)
    (gradient,) = pull(jnp.full_like(value, SCALE))
    return value.astype(float), gradient.astype(float) / SCALE


def _summary(errors: Array) -> dict[str, Array]:
    """Of `[against, tokens]` the median and the worst; what is not finite is infinitely wrong."""
    errors = jnp.where(jnp.isfinite(errors), errors, jnp.inf)
    return {"median": jnp.median(errors, axis=-1), "worst": jnp.max(errors, axis=-1)}


def _errors(f: Callable, p: Array, q: Array, value: Array, gradient: Array) -> dict[str, Array]:
    """Relative errors of values and of gradients in Euclidean norm, and negative values."""
    found, by_p = _with_gradient(f, p, q)
    relative = lambda error, size: jnp.where(
        error == 0, 0, error / size
    )  # of equal logits all is 0
    values = relative(jnp.abs(found - value), value)
    norm = functools.partial(jnp.linalg.norm, axis=-1)
    gradients = relative(norm(by_p - gradient), norm(gradient))
    return {
        **{f"value_{k}": x for k, x in _summary(values).items()},
        **{f"gradient_{k}": x for k, x in _summary(gradients).items()},
        "negative": jnp.mean(found < 0, axis=-1, dtype=float),
        "not_finite": jnp.mean(~jnp.isfinite(found), axis=-1, dtype=float),
    }


def run(config: ConfigDict, point: dict, key: Array) -> dict[str, Array | Labelled]:
    """Errors of each form, for each type, divergence and other model."""
    with jax.ensure_compile_time_eval():  # the model is no part of the program
        raw = logits(config.model, tuple(config.texts), config.instruction, config.tokens)
    # A constant would be computed with by the compiler, which takes minutes over it.
    one, prompted = jax.lax.optimization_barrier(jnp.asarray(raw, float))
    noisy = one + config.noise * jax.random.normal(key, one.shape)
    p = jnp.broadcast_to(one, (len(AGAINST), *one.shape))
    q = jnp.stack([one / config.temperature, noisy, prompted])
    forms = FORMS | {"jdiv": FORMS[config.form]}
    found: dict[tuple[str, str], dict] = {}
    for generator in GENERATORS:
        before = _plain(generator, p, q)
        for precision in PRECISIONS:
            half = [x.astype(precision) for x in (p, q)]
            exact = functools.partial(_plain, generator)
            truth = _with_gradient(exact, *(x.astype(float) for x in half))
            each = [
                _errors(functools.partial(form, generator), *half, *truth)
                for form in forms.values()
            ]
            found[generator, precision] = {
                **jax.tree.map(lambda *x: jnp.stack(x), *each),
                "of_rounding": jnp.median(jnp.abs(truth[0] / before - 1), axis=-1),
                "size": jnp.median(before, axis=-1),
            }
    stacked = jax.tree.map(
        lambda *x: jnp.stack(x).reshape(len(GENERATORS), len(PRECISIONS), *x[0].shape),
        *found.values(),
    )
    axes = {"generator": GENERATORS, "precision": PRECISIONS}
    return {
        name: labelled(
            x, **axes, **({"form": tuple(FORMS)} if x.ndim == 4 else {}), against=AGAINST
        )
        for name, x in stacked.items()
    }


# ----------------------------------------------------------------------------------------- figures


def figures(config: ConfigDict, results: xr.Dataset) -> dict[str, Picture]:
    """Errors of values and of gradients by form, for the closest of the other models."""
    return {
        "errors": Picture(
            _errors_drawn(results.isel(seed=0).sel(generator="kl")),
            "Median error of KL over tokens of a real model, by who computes it, in bfloat16"
            " (circles) and float16 (triangles); each line is a form, left to right the other"
            " model is closer. Left: the value. jdiv is right to single precision; a cast to"
            " float32 loses digits as the models get close; forms in half precision are wrong by"
            " more than the KL itself. Black: what the rounding of the logits alone changes."
            " Right: the gradient, which after a cast is as good as jdiv's, as good as its type.",
        )
    }


def _errors_drawn(results: xr.Dataset) -> Figure:
    figure, plots = panels(2, width=4.4, height=4.2)
    for axis, what in zip(plots, ("value", "gradient"), strict=True):
        for number, form in enumerate(results.form.values):
            for precision, marker in zip(PRECISIONS, "ov", strict=True):
                here = results.sel(form=form, precision=precision)
                error = here[f"{what}_median"]
                order = np.argsort(here["size"].values)[::-1]
                axis.plot(
                    here["size"].values[order], error.where(np.isfinite(error)).values[order],
                    **(style(number) | {"marker": marker, "markersize": 5}),
                    label=NAMES[str(form)] if marker == "o" else None,
                )  # fmt: skip
        axis.set(
            xscale="log", yscale="log", xlabel="KL, nats (median over tokens)",
            ylabel=f"relative error of the {what}",
        )  # fmt: skip
        axis.invert_xaxis()
    for precision, marker in zip(PRECISIONS, "ov", strict=True):
        here = results.sel(precision=precision)
        plots[0].plot(
            here["size"], here.of_rounding, marker, color="black", fillstyle="none",
            label="exact, of rounded logits" if marker == "o" else None,
        )  # fmt: skip
    legend_above(figure, plots[0], columns=2)
    return figure


# ------------------------------------------------------------------------------------------ claims

SOURCE = "Not published; the bounds are chosen here"
UNITS = {"bfloat16": 2.0**-8, "float16": 2.0**-11}
HALF = ("optax", "torch", "probabilities")


@claim(source=SOURCE, reruns=({"form": "optax"}, {"form": "widened"}))
def values_are_right_to_single_precision(results: xr.Dataset) -> Finding:
    """jdiv's values are right to 4e-6 of themselves, for both divergences and types and all three
    models: the largest relative error over all tokens."""
    return at_most(4e-6, results.value_worst.sel(form="jdiv").max())


@claim(
    source="The unit roundoff of the two types: no gradient in them is better",
    reruns=({"form": "optax"},),
)
def gradients_are_right_to_their_type(results: xr.Dataset) -> Finding:
    """jdiv's gradients are off by no more than a rounding, 2^-8 in bfloat16 and 2^-11 in float16:
    the largest relative error in Euclidean norm over all tokens."""
    worst = results.gradient_worst.sel(form="jdiv")
    return at_most(tuple(UNITS.values()), [worst.sel(precision=name).max() for name in UNITS])


@claim(source=SOURCE, wrong=({"form": "jdiv"},))
def a_cast_loses_digits_of_small_values(results: xr.Dataset, form: str = "widened") -> Finding:
    """A cast to single precision and the formula: on the perturbed copy the worst value is off by
    at least a hundred times as much as jdiv's, for both divergences and types; smallest ratio."""
    worst = results.value_worst.sel(against="perturbed")
    return at_least(100, (worst.sel(form=form) / worst.sel(form="jdiv")).min())


@claim(source=SOURCE, wrong=({"forms": ("widened",)},))
def half_precision_is_wrong_by_half(results: xr.Dataset, forms: tuple[str, ...] = HALF) -> Finding:
    """Computed in bfloat16, the divergence from the perturbed copy is off by at least half of
    itself, for the median token, in each of three forms: the smallest error."""
    here = results.sel(form=list(forms), against="perturbed", precision="bfloat16")
    return at_least(0.5, here.value_median.min())


@claim(source=SOURCE, wrong=({"precision": "bfloat16"},))
def probabilities_underflow(results: xr.Dataset, precision: str = "float16") -> Finding:
    """Softmax and then its logarithm gives no finite number for nine tokens of ten or more in
    float16, whose probabilities are 0 below 3e-8: the smallest share."""
    here = results.not_finite.sel(form="probabilities", precision=precision)
    return at_least(0.9, here.min())


@claim(source=SOURCE, wrong=({"precision": "float16"},))
def rounding_alone_changes_small_divergences(
    results: xr.Dataset, precision: str = "bfloat16"
) -> Finding:
    """Logits rounded to bfloat16 have a divergence from the perturbed copy that is off by at least
    a fifth of itself before any arithmetic, for the median token: smallest of both."""
    here = results.of_rounding.sel(against="perturbed", precision=precision)
    return at_least(0.2, here.min())
