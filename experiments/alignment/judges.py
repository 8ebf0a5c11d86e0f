"""LLM-as-a-judge in a model that can be solved: error by samples, temperature and judge.

Halder and Pehlevan 2025 (arXiv:2512.19905): Bayesian linear regression answers, a linear judge
selects among k answers. Of the paper the abstract was at hand: its statements are tested, and the
numbers beside them derived here. The error is an exact integral over answers, averaged over
questions of random teachers. The judge stands on the line from the model's mean to the teacher.
"""

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jax import Array
from ml_collections import ConfigDict

from experiments.lab.axes import above, at_least, count, positive, seeds
from experiments.lab.claims import Finding, between, claim, equals
from experiments.lab.claims import at_least as no_less
from experiments.lab.plots import Picture, marks, panels, pick, style, ticks
from experiments.lab.results import Labelled, labelled
from jdiv.alignment import judges

AXES = {"overshoot": at_least(-1), "temperature": positive, "seed": seeds}
FIELDS = {
    "dimension": count,
    "examples": count,
    "variance": above(0),
    "questions": count,
    "samples": at_least(2),
    "draws": count,
}
SOURCE = "Halder and Pehlevan 2025 (arXiv:2512.19905), abstract"
KS = tuple(2**i for i in range(13))


def questions(config: ConfigDict, key: Array) -> tuple[judges.Prediction, Array]:
    """The model's law of the answer to some questions, and the teacher's answers."""
    keys = jax.random.split(key, 4)
    scale = config.dimension**-0.5
    inputs = scale * jax.random.normal(keys[0], (config.examples, config.dimension))
    asked = scale * jax.random.normal(keys[1], (config.questions, config.dimension))
    teacher = jax.random.normal(keys[2], (config.dimension,))
    noise = config.variance**0.5 * jax.random.normal(keys[3], (config.examples,))
    learned = judges.posterior(
        inputs, inputs @ teacher + noise, variance=config.variance, ridge=config.variance
    )
    return learned.predict(asked), asked @ teacher


def run(config: ConfigDict, point: dict, key: Array) -> dict[str, Array | Labelled]:
    """Errors by k of the best and of a softmax, their limits, and the error of drawn answers."""
    of_questions, of_draws = jax.random.split(key)
    (mean, variance), target = questions(config, of_questions)
    center, temperature = target + point["overshoot"] * (target - mean), point["temperature"]
    ks, law = jnp.array(KS, float), (mean, variance, center, target)

    def by_k(error):
        each = jax.vmap(error, (None, None, None, None, 0))
        return jax.vmap(each, (0, 0, 0, 0, None))(*law, ks).mean(axis=0)

    soft = lambda *x: judges.softmax_error(*x, temperature=temperature)
    # Reward less temperature times KL: a Gaussian times a Gaussian.
    narrow = 1 / (1 / variance + 2 / temperature)
    tilted = narrow * (mean / variance + 2 * center / temperature)
    coefficient = jnp.pi * variance * jnp.exp((target - mean) ** 2 / variance)
    drawn, error = sampled(config, law, temperature, of_draws)
    return {
        "best": labelled(by_k(judges.best_error), k=KS),
        "soft": labelled(by_k(soft), k=KS),
        "limit": jnp.mean(narrow + (tilted - target) ** 2),
        "coefficient": jnp.mean(coefficient),
        "drawn": drawn,
        "drawn_error": error,
    }


def sampled(
    config: ConfigDict, law: tuple[Array, ...], temperature: Array, key: Array
) -> tuple[Array, Array]:
    """The error of answers that are drawn and selected, mean of questions; its standard error."""
    mean, variance, center, target = (x[:, None, None] for x in law)
    noise = jax.random.normal(key, (len(law[0]), config.draws, config.samples))
    y = mean + jnp.sqrt(variance) * noise
    chances = jnp.exp(judges.select(-((y - center) ** 2), temperature=temperature))
    error = jnp.mean(jnp.sum(chances * (y - target) ** 2, axis=-1), axis=0)
    return jnp.mean(error), jnp.std(error) / config.draws**0.5


# ---------------------------------------------------------------------------------------- figures


def figures(config: ConfigDict, results: xr.Dataset) -> dict[str, Picture]:
    """Error by k for each judge, and by temperature."""
    figure, (left, right) = panels(2)
    mean = results.mean("seed")
    at = mean.isel(temperature=0)
    for number, overshoot in enumerate(at.overshoot.values):
        line = at.best.sel(overshoot=overshoot)
        left.plot(line.k, line, label=f"{overshoot:g}", **style(number))
    teacher = pick(at.overshoot, 0.0)
    bound = float(at.coefficient.sel(overshoot=teacher)) / np.array(KS, float) ** 2
    left.plot(KS[3:], bound[3:], color="black", linewidth=0.8, label="derived, 0")
    left.set(xscale="log", yscale="log", xlabel="k, samples", ylabel="squared error, best of k")
    left.set_ylim(1e-6, 30)
    left.legend(title="judge beyond the teacher", ncols=2, fontsize="small", loc="lower left")
    beyond = mean.sel(overshoot=pick(mean.overshoot, 2.0))
    for number, k in enumerate((4, 16, 64, 4096)):
        line = beyond.soft.sel(k=k)
        right.plot(line.temperature, line, label=f"{k}", **style(number, marker=True))
    marks(right, beyond.temperature, beyond.limit, "KL tilt")
    right.set(xscale="log", xlabel="temperature of the softmax", ylabel="squared error, judge at 2")
    ticks(right, x=tuple(beyond.temperature.values))
    right.set_ylim(top=0.52)
    right.legend(title="k, samples", loc="upper center", ncols=3)
    return {
        "judges": Picture(
            figure,
            "Left: with the teacher as the judge, 0, the error of the best of k falls like 1/k²; a"
            " judge elsewhere leaves an error, and beyond the teacher there is a best k."
            " Right: with a judge far beyond, a softmax has a best temperature, and at many samples"
            " the error of the optimum of reward less KL.",
        )
    }


# ------------------------------------------------------------------------------------------ claims


def judged(results: xr.Dataset, overshoot: float) -> xr.Dataset:
    """With this judge, or the only one there is."""
    return results.sel(overshoot=pick(results.overshoot, overshoot))


@claim(
    source=f"{SOURCE}: error like 1/k² with the teacher as the reward; the coefficient derived",
    reference=(-2, 1),
    reruns=({"sweep.overshoot": (0.25,)},),
    wrong=({"overshoot": 1.0},),
)
def error_falls_like_k_to_minus_two(results: xr.Dataset, overshoot: float = 0.0) -> Finding:
    """With the teacher as the judge: the slope of log error by log k from 1024 to 4096, and error
    times k² at 4096 over the mean of pi s² exp(d²/s²)."""
    at = judged(results, overshoot).isel(temperature=0)
    slope = np.log(at.best.sel(k=4096) / at.best.sel(k=1024)) / np.log(4)
    share = 4096**2 * at.best.sel(k=4096) / at.coefficient
    return equals((-2, 1), np.stack([slope, share], axis=-1), tolerance=0.02)


@claim(
    source=f"{SOURCE}: with substantial misspecification a finite k is best",
    wrong=({"overshoot": 0.0},),
)
def a_finite_k_is_best(results: xr.Dataset, overshoot: float = 2.0) -> Finding:
    """With a judge far beyond the teacher: the error of one answer, and of the best of 4096, over
    the least of all k; both are above 1."""
    best = judged(results, overshoot).best.isel(temperature=0).mean("seed")
    return no_less(1.05, np.array([best.sel(k=1), best.sel(k=4096)]) / float(best.min()))


@claim(
    source=f"{SOURCE}: for fixed k there is an optimal temperature",
    wrong=({"overshoot": 0.0},),
)
def a_temperature_is_best(results: xr.Dataset, overshoot: float = 2.0) -> Finding:
    """With a judge far beyond the teacher and 64 samples: the error of the best of them, of the
    softmax at the lowest and at the highest temperature, over the least."""
    at = judged(results, overshoot).mean("seed").sel(k=64)
    ends = at.best.isel(temperature=0), at.soft.isel(temperature=0), at.soft.isel(temperature=-1)
    return no_less(1.01, np.array(ends) / float(at.soft.min()))


@claim(
    source=f"{SOURCE}: the reward that is best for selection is not the teacher",
    wrong=({"selected": "best"},),
)
def the_best_judge_is_not_the_teacher(results: xr.Dataset, selected: str = "soft") -> Finding:
    """At temperature 1 and 64 samples: the error with the teacher as the judge over that with the
    best judge of the sweep, which stands beyond the teacher."""
    error = results[selected].sel(temperature=1.0, k=64).mean("seed")
    return no_less(1.01, error.sel(overshoot=0.0) / error.min())


@claim(
    source="Derived: a softmax of many samples is the tilt, KL with beta = T", wrong=({"k": 16},)
)
def many_samples_are_the_tilt(results: xr.Dataset, k: int = 4096) -> Finding:
    """The error of a softmax of 4096 samples over that of the optimum of reward less T KL, for
    judges as far beyond the teacher as the mean is before it, or less, and every temperature."""
    at = results.where(results.overshoot <= 1, drop=True)
    return equals(1, at.soft.sel(k=k) / at.limit, tolerance=0.01)


@claim(source="The definition, by draws", wrong=({"k": 8},))
def drawn_answers_have_this_error(
    results: xr.Dataset, config: ConfigDict, k: int | None = None
) -> Finding:
    """The error of answers that are drawn and selected, less the exact one, in standard errors."""
    exact = results.soft.sel(k=k or config.samples)
    apart = (results.drawn - exact) / results.drawn_error
    return between(-4.5, apart, 4.5)
