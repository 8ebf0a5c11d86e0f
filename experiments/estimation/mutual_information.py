"""Lower bounds of mutual information while critics learn, beside the best critic there is.

Pairs of correlated Gaussians in twenty dimensions whose mutual information climbs from 2 to 10
nats, 64 pairs a batch, a critic for each bound: the experiment of SMILE (Song and Ermon 2020,
arXiv:1910.06222; settings from ermongroup/smile-mi-estimator). Each step takes a fresh batch and
evaluates the bound twice on it, before the critic learns from it: with the critic as it stands and
with the best one, the log-ratio of the densities, which is known here. The first shows what is
learnt, the second what no learning can change: the bias and the variance of the bound itself.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
import xarray as xr
from jax import Array
from ml_collections import ConfigDict

from experiments.lab.claims import Claim
from experiments.lab.plots import COLORS, GREY, Picture
from jdiv import checks, estimators, generators

TRACED = ("seed",)

REFERENCES = {
    "infonce": {2: (1.82, 0.19), 4: (3.07, 0.19), 6: (3.74, 0.12), 8: (4.02, 0.07),
                10: (4.12, 0.04)},
    "nwj": {2: (2.02, 0.25), 4: (4.03, 0.48), 6: (6.03, 0.92), 8: (8.11, 1.83), 10: (10.22, 2.35)},
    "dv": {2: (2.02, 0.25), 4: (4.08, 0.43), 6: (6.22, 0.66), 8: (8.63, 0.96), 10: (11.23, 1.35)},
    "smile": {2: (2.04, 0.24), 4: (4.27, 0.37), 6: (6.70, 0.46), 8: (9.33, 0.57),
              10: (12.04, 0.70)},
}  # fmt: skip
"""Mean and deviation over batches with the best critic, by bound and nats of information.

At 20 dimensions, 64 pairs and a clip of 5, from 500 batches; recomputed in NumPy, independently of
this code.
"""
SETTING = {"dimension": 20, "pairs": 64, "clip": 5.0}
REFERENCE_BATCHES = 500
HEAVY_TAIL = 4
"""Nats above which the deviation of NWJ, about e^I/64, is beyond what 500 batches show."""


CRITICS = ("separable", "concatenated")
PARTITIONS = ("right", "exchanged")


# ------------------------------------------------------------------------------------ the bounds


class Bound(NamedTuple):
    """What is reported, what the critic climbs, and which critic is best."""

    value: Callable[[Array, ConfigDict], Array]
    objective: Callable[[Array, ConfigDict], Array]
    offset: float
    """The best critic is this and the log-ratio of the densities."""
    label: str


def _plain(bound: Callable[[Array], Array], offset: float, label: str) -> Bound:
    """A bound that is its own objective."""
    return Bound(lambda f, _: bound(f), lambda f, _: bound(f), offset, label)


def joint_and_product(scores: Array) -> tuple[Array, Array]:
    """The diagonal `[n]` and everything else `[n (n - 1)]` of scores `[n, n]`."""
    n = scores.shape[0]
    return jnp.diagonal(scores), scores[np.nonzero(~np.eye(n, dtype=bool))]


def jensen_shannon(scores: Array) -> Array:
    """The Jensen-Shannon bound of a critic that is a log-ratio: what trains SMILE."""
    return estimators.log_ratio_bound(generators.jensen_shannon(), *joint_and_product(scores))


BOUNDS = {
    "infonce": _plain(estimators.infonce, 0.0, "InfoNCE"),
    "nwj": _plain(estimators.nwj, 1.0, "NWJ"),
    "dv": _plain(estimators.donsker_varadhan, 0.0, "DV"),
    "smile": Bound(
        lambda f, config: estimators.smile(f, clip=config.clip),
        lambda f, _: jensen_shannon(f),
        0.0,
        "SMILE",
    ),
}


def exchanged(name: str, scores: Array) -> Array:
    """The bound with the other partition, a common mistake: see `config.partition`.

    InfoNCE without the pair that belongs together in its denominator, so that it has no ceiling;
    the others with those pairs in their mean, so that they have InfoNCE's ceiling.
    """
    joint, product = joint_and_product(scores)
    n = scores.shape[0]
    if name == "infonce":
        others = jax.nn.logsumexp(product.reshape(n, n - 1), axis=1) - math.log(n - 1)
        return jnp.mean(joint - others)
    partition = jax.nn.logsumexp(scores) - 2 * math.log(n)
    if name == "nwj":
        return jnp.mean(joint) - jnp.exp(partition - 1)
    return jnp.mean(joint) - partition


# ------------------------------------------------------------------------- the batch, the critic


def correlation(nats: Array, dimension: int) -> Array:
    """Of each of the coordinates: `rho^2 = 1 - exp(-2 I/d)`."""
    return jnp.sqrt(-jnp.expm1(-2 * nats / dimension))


def gaussian_pairs(key: Array, rho: Array, pairs: int, dimension: int) -> tuple[Array, Array]:
    """x and `y = rho x + sqrt(1 - rho^2) noise`, `[n, d]` each."""
    x, noise = jax.random.normal(key, (2, pairs, dimension), dtype=jnp.float32)
    return x, rho * x + jnp.sqrt(1 - rho**2) * noise


def log_ratio(x: Array, y: Array, rho: Array) -> Array:
    """`log p(x_i, y_j)/(p(x_i) p(y_j))` of every pair, `[n, n]`."""
    square = jnp.sum(x**2, axis=1)[:, None] + jnp.sum(y**2, axis=1)[None, :]
    exponent = (2 * rho * (x @ y.T) - rho**2 * square) / (2 * (1 - rho**2))
    return exponent - x.shape[1] / 2 * jnp.log1p(-(rho**2))


def layers(key: Array, sizes: tuple[int, ...]) -> list[tuple[Array, Array]]:
    """Uniform weights `[in, out]` of variance 1/in and zero biases; the paper's are not known."""
    keys = jax.random.split(key, len(sizes) - 1)
    return [
        (
            math.sqrt(3 / m) * jax.random.uniform(k, (m, n), jnp.float32, -1, 1),
            jnp.zeros(n, jnp.float32),
        )
        for k, m, n in zip(keys, sizes[:-1], sizes[1:], strict=True)
    ]


def network(parameters: list[tuple[Array, Array]], x: Array) -> Array:
    """A perceptron with rectifiers, `[n, in]` to `[n, out]`."""
    for weights, biases in parameters[:-1]:
        x = jax.nn.relu(x @ weights + biases[None, :])
    weights, biases = parameters[-1]
    return x @ weights + biases[None, :]


def new_critic(kind: str, config: ConfigDict, key: Array) -> Any:
    """The parameters of a separable critic, g(x)'h(y), or of one that sees x and y together."""
    hidden, d = (config.hidden, config.hidden), config.dimension
    if kind == "concatenated":
        return layers(key, (2 * d, *hidden, 1))
    return [layers(k, (d, *hidden, config.embedding)) for k in jax.random.split(key)]


def critic(kind: str, parameters: Any, x: Array, y: Array) -> Array:
    """Its scores of every pair, `[n, n]`."""
    if kind == "concatenated":
        n = x.shape[0]
        pairs = jnp.concatenate([jnp.repeat(x, n, axis=0), jnp.tile(y, (n, 1))], axis=1)
        return network(parameters, pairs).reshape(n, n)
    of_x, of_y = parameters
    return network(of_x, x) @ network(of_y, y).T


# -------------------------------------------------------------------------------- the experiment


def validate(config: ConfigDict, point: dict) -> None:
    """Refuses unknown names, and sizes that make no bound."""
    checks.known("config.sweep.estimator", point["estimator"], BOUNDS)
    checks.known("config.sweep.critic", point["critic"], CRITICS)
    checks.known("config.partition", config.partition, PARTITIONS)
    for name, least in (("pairs", 2), ("dimension", 1), ("hidden", 1), ("embedding", 1)):
        if config[name] < least:
            raise ValueError(f"config.{name} must be at least {least}, got {config[name]}")
    if not config.clip > 0:
        raise ValueError(f"config.clip must be positive, got {config.clip}")
    if not config.information or min(config.information) <= 0:
        raise ValueError(f"config.information must be positive, got {config.information}")
    if config.training.steps % len(config.information):
        raise ValueError(
            f"config.training.steps must be a multiple of the {len(config.information)} levels of"
            f" config.information, got {config.training.steps}"
        )


def init(config: ConfigDict, point: dict, key: Array) -> dict[str, Any]:
    """A new critic and the state of Adam."""
    parameters = new_critic(point["critic"], config, key)
    return {
        "step": jnp.zeros((), dtype=jnp.int32),
        "critic": parameters,
        "adam": optax.adam(config.learning_rate).init(parameters),
    }


def step(
    config: ConfigDict, point: dict, state: dict[str, Any], key: Array
) -> tuple[dict[str, Any], dict[str, Array]]:
    """One batch: the bound with the critic as it stands and with the best, then Adam."""
    nats = information(config, state["step"])
    key = key if config.fresh else jax.random.key(0)
    rho = correlation(nats, config.dimension)
    x, y = gaussian_pairs(key, rho, config.pairs, config.dimension)
    bound = BOUNDS[point["estimator"]]

    def loss(parameters):
        scores = critic(point["critic"], parameters, x, y)
        return -bound.objective(scores, config), scores

    slopes, scores = jax.grad(loss, has_aux=True)(state["critic"])
    optimiser = optax.adam(config.learning_rate)
    with jax.numpy_dtype_promotion("standard"):  # optax takes a power of a float and an integer
        updates, adam = optimiser.update(slopes, state["adam"], state["critic"])
    moved = optax.apply_updates(state["critic"], updates)
    best = bound.offset + log_ratio(x, y, rho)
    metrics = {
        "information": nats,
        "trained": value(config, point["estimator"], scores),
        "best": value(config, point["estimator"], best),
    }
    return {"step": state["step"] + 1, "critic": moved, "adam": adam}, metrics


def information(config: ConfigDict, step: Array) -> Array:
    """Nats of mutual information at a step: a staircase of equal levels."""
    levels = jnp.array(config.information, dtype=jnp.float32)
    return levels[step // (config.training.steps // len(config.information))]


def value(config: ConfigDict, name: str, scores: Array) -> Array:
    """The bound of this name, `[n, n]` scores to `[]`."""
    if config.partition == "exchanged":
        return exchanged(name, scores)
    return BOUNDS[name].value(scores, config)


# ------------------------------------------------------------------------------------- figures


def figures(config: ConfigDict, results: xr.Dataset) -> dict[str, Picture]:
    """The critics as they learn, and the bounds with the best one."""
    return {"learning": _learning(config, results), "best_critic": _best_critic(config, results)}


def _learning(config: ConfigDict, results: xr.Dataset) -> Picture:
    names = [str(name) for name in results.estimator.values]
    rows = -(-len(names) // 2)
    figure, axes = plt.subplots(
        rows, 2, figsize=(8.6, 0.9 + 2.7 * rows), sharex=True, sharey=True, squeeze=False
    )
    one = results.isel(seed=0)
    window = max(config.training.steps // config.training.record_every // 100, 1)
    truth = one.information.isel(estimator=0, critic=0)
    for axis, name in zip(axes.flat, names, strict=False):
        here = one.sel(estimator=name)
        axis.plot(one.step, here.trained.isel(critic=0), color=GREY, linewidth=0.4, rasterized=True)
        for kind, colour in zip(here.critic.values, COLORS, strict=False):
            smooth = here.trained.sel(critic=kind).rolling(step=window, center=True).mean()
            axis.plot(one.step, smooth, color=colour, label=f"{kind} critic")
        smooth = here.best.isel(critic=0).rolling(step=window, center=True).mean()
        axis.plot(one.step, smooth, "--", color=COLORS[4], linewidth=1.2, label="best critic")
        axis.step(one.step, truth, where="post", color="black", linewidth=1, label="the truth")
        axis.axhline(math.log(config.pairs), color="black", linestyle=":", linewidth=1,
                     label=f"log {config.pairs}")  # fmt: skip
        axis.set_title(BOUNDS[name].label)
        axis.set_ylim(-1, 1.4 * max(config.information))
    for axis in axes[-1]:
        axis.set_xlabel("step")
    for axis in axes[:, 0]:
        axis.set_ylabel("estimate, nats")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    return Picture(
        figure,
        "Estimates while critics learn, each on a batch that its critic has not seen; grey is every"
        f" batch, lines are means of {window * config.training.record_every} steps. InfoNCE stays"
        " below the logarithm of the batch with any critic; SMILE comes nearest to the truth,"
        " though with the best critic it is too high; NWJ is right on average with the best critic"
        " and learns badly where its variance explodes.",
    )


def _best_critic(config: ConfigDict, results: xr.Dataset) -> Picture:
    figure, axes = plt.subplots(1, 2, figsize=(8.6, 4.0))
    levels = np.array(sorted(set(config.information)))
    axes[0].plot(levels, levels, color="black", linewidth=1, label="the truth")
    for place, name in enumerate(results.estimator.values):
        colour, style = COLORS[place], ("o-", "s--", "^-.", "D:")[place % 4]
        mean, deviation, _ = _at_levels(_best(results, str(name)))
        shift, label = 0.12 * (place - 1.5), BOUNDS[str(name)].label
        axes[0].errorbar(levels + shift, mean, deviation, fmt=style, color=colour, capsize=2,
                         markersize=4, linewidth=1.2, label=label)  # fmt: skip
        axes[1].plot(levels, deviation, style, color=colour, markersize=4, label=label)
        if _is_reference(config):
            known = REFERENCES[str(name)]
            ringed = {"marker": "o", "markersize": 9, "markerfacecolor": "none",
                      "linestyle": "none", "color": "#505050"}  # fmt: skip
            label = "reference" if place == results.sizes["estimator"] - 1 else None
            at = np.array(list(known))
            axes[0].plot(at + shift, [mean for mean, _ in known.values()], **ringed, label=label)
            axes[1].plot(at, [deviation for _, deviation in known.values()], **ringed, label=label)
    axes[1].plot(levels, np.sqrt(np.expm1(levels) / config.pairs), color="black", linewidth=1,
                 label="√((exp I − 1)/n)")  # fmt: skip
    axes[0].set(xlabel="mutual information I, nats", ylabel="mean ± deviation over batches, nats")
    axes[1].set(xlabel="mutual information I, nats", ylabel="deviation over batches, nats")
    axes[1].set(yscale="log", ylim=(0.02, 30))
    axes[0].legend(loc="upper left", fontsize="small")
    axes[1].legend(loc="upper left", fontsize="small", ncols=2)
    batches = _at_levels(_best(results, str(results.estimator.values[0])))[2][0]
    return Picture(
        figure,
        f"What the bounds give with the best critic there is, over {batches} batches of"
        f" {config.pairs} pairs at each level. DV and SMILE are too high, InfoNCE cannot exceed"
        f" log {config.pairs}. The line at the right is the growth of DV's deviation for large"
        " batches, which 64 pairs do not show; NWJ's own is heavy-tailed and beyond what the"
        " batches show.",
    )


# -------------------------------------------------------------------------------------- claims


def _is_reference(config: ConfigDict) -> bool:
    """Whether the setting is that of the reference values."""
    sizes = all(config[name] == size for name, size in SETTING.items())
    return sizes and set(config.information) <= set(REFERENCES["dv"])


def _best(results: xr.Dataset, name: str) -> xr.Dataset:
    """Truth and bound with the best critic; the batches are the same for every kind of critic."""
    here = results.sel(estimator=name).isel(critic=0)
    return xr.Dataset({"information": here.information, "value": here.best})


def _at_levels(one: xr.Dataset) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean, deviation and number of the values over batches, each `[levels]`, upwards."""
    nats, values = one.information.values.ravel(), one.value.values.ravel()
    groups = [values[nats == level] for level in np.unique(nats)]
    return tuple(np.array([f(group) for group in groups]) for f in (np.mean, np.std, len))


def claims(config: ConfigDict, results: xr.Dataset) -> list[Claim]:
    """Of the best critic: means, the bias and the variance of DV. Of trained ones: their limits.

    A claim is made if the bounds that it speaks of are in the sweep.
    """
    there = set(results.estimator.values)
    made = []
    if "infonce" in there:
        made.append(_ceiling(config, results))
    if _is_reference(config):
        made.append(_table(results))
    levels = set(config.information)
    if "dv" in there and max(levels) > HEAVY_TAIL:
        made.append(_too_high(config, results))
    if "dv" in there and _is_reference(config) and len(levels) > 1:
        made.append(_growth(config, results))
    if {"dv", "smile"} <= there and max(levels) > HEAVY_TAIL:
        made.append(_tamed(config, results))
    if there & {"infonce", "nwj"}:
        made.append(_below_the_truth(config, results))
    if "smile" in there:
        made.append(_above_the_ceiling(config, results))
    return made


BRIEF = {
    "hidden": 32, "training.steps": 1000, "training.record_every": 1,
    "training.checkpoint_every": 1000,
}  # fmt: skip
"""A control need not take longer: with the best critic 200 batches a level are enough."""
EXCHANGED = BRIEF | {"partition": "exchanged", "sweep.estimator": ("infonce", "dv")}
NEITHER = BRIEF | {"learning_rate": 0.0, "clip": 1000.0, "sweep.estimator": ("dv", "smile")}
"""Nothing is learnt, and nothing is clipped."""
BY_HEART = {
    "fresh": False, "hidden": 32, "learning_rate": 0.01, "sweep.estimator": ("nwj",),
    "sweep.critic": ("concatenated",), "sweep.seed": (0,), "training.steps": 200,
    "training.record_every": 1, "training.checkpoint_every": 200,
}  # fmt: skip
"""A few steps of a small critic that sees both of a pair are enough to learn one batch by heart."""
SONG = "Song and Ermon 2020 (arXiv:1910.06222)"
RECOMPUTED = "numbers from an independent recomputation in NumPy"


def _ceiling(config: ConfigDict, results: xr.Dataset) -> Claim:
    here = results.sel(estimator="infonce")
    return Claim(
        "infonce-below-log-batch",
        "van den Oord et al. 2018 (arXiv:1807.03748); Poole et al. 2019 (arXiv:1905.06922)",
        f"InfoNCE of {config.pairs} pairs is at most log {config.pairs}, on every batch, with"
        " trained critics and with the best.",
        [float(here.trained.max()), float(here.best.max())],
        high=float(np.float32(math.log(config.pairs))),
        controls=(EXCHANGED,),
        published=math.log(config.pairs),
    )


def _table(results: xr.Dataset) -> Claim:
    measured, published, margin = [], [], []
    for name in map(str, results.estimator.values):
        one = _best(results, name)
        for level, mean, _, batches in zip(
            np.unique(one.information), *_at_levels(one), strict=True
        ):
            if name == "nwj" and level > HEAVY_TAIL:
                continue
            reference, deviation = REFERENCES[name][round(float(level))]
            error = deviation * math.sqrt(1 / batches + 1 / REFERENCE_BATCHES)
            measured.append(mean)
            published.append(reference)
            margin.append(4 * error + 0.005)
    return Claim(
        "best-critic-means",
        f"{SONG}, the setting; {RECOMPUTED}",
        "The mean of each bound with the best critic, by bound and information, is that of the"
        " reference within four standard errors of the difference and the rounding to 0.01. NWJ is"
        f" compared up to {HEAVY_TAIL} nats: its deviation above is about exp(I)/64, and neither"
        " mean nor deviation of so few batches says anything.",
        measured,
        low=np.subtract(published, margin),
        high=np.add(published, margin),
        controls=(EXCHANGED,),
        published=published,
    )


def _too_high(config: ConfigDict, results: xr.Dataset) -> Claim:
    mean, deviation, batches = (x[-1] for x in _at_levels(_best(results, "dv")))
    top = max(config.information)
    known = _is_reference(config) and top in REFERENCES["dv"]
    return Claim(
        "dv-is-biased-upwards",
        f"{SONG}; {RECOMPUTED}",
        f"With the best critic Donsker-Varadhan is above the {top:g} nats there are, by more than"
        " four standard errors: no lower bound from a finite batch.",
        float(mean - top),
        low=4 * float(deviation) / math.sqrt(batches),
        controls=(EXCHANGED,),
        published=REFERENCES["dv"][top][0] - top if known else None,
    )


def _growth(config: ConfigDict, results: xr.Dataset) -> Claim:
    _, deviation, batches = _at_levels(_best(results, "dv"))
    known = np.array([REFERENCES["dv"][level][1] for level in sorted(set(config.information))])
    published = np.square(known[1:] / known[:-1])
    # The logarithm of a variance has an error of sqrt(2/n); each factor has two of them.
    margin = 4 * math.sqrt(4 / REFERENCE_BATCHES + 4 / batches.min())
    return Claim(
        "variance-of-dv-grows",
        f"{SONG}, theorem on the variance; {RECOMPUTED}",
        "From each level to the next the variance of Donsker-Varadhan with the best critic grows by"
        " the factor of the reference, within four standard errors. Large batches have a variance"
        " of at least (exp(I) - 1)/n, a factor of 7.4 for 2 nats: 64 pairs do not show that rate,"
        " here as in the reference, whose factors are from 2 to 3.",
        np.square(deviation[1:] / deviation[:-1]),
        low=published * math.exp(-margin),
        high=published * math.exp(margin),
        controls=(EXCHANGED,),
        published=published,
    )


def _tamed(config: ConfigDict, results: xr.Dataset) -> Claim:
    (_, dv, batches), (_, smile, _) = (_at_levels(_best(results, x)) for x in ("dv", "smile"))
    levels = sorted(set(config.information))
    high = np.array(levels) > HEAVY_TAIL
    known = _is_reference(config)
    return Claim(
        "clipping-tames-the-variance",
        f"{SONG}, section 5; {RECOMPUTED}",
        f"The variance of Donsker-Varadhan over that of SMILE with the best critic, at each level"
        f" above {HEAVY_TAIL} nats: more than 1 by four standard errors of a ratio of variances.",
        np.square(dv / smile)[high],
        low=math.exp(4 * math.sqrt(4 / batches.min())),
        controls=(NEITHER,),
        published=[
            (REFERENCES["dv"][level][1] / REFERENCES["smile"][level][1]) ** 2
            for level in levels
            if level > HEAVY_TAIL
        ]
        if known
        else None,
    )


def _below_the_truth(config: ConfigDict, results: xr.Dataset) -> Claim:
    excess, margin = [], []
    for name in sorted({"infonce", "nwj"} & set(results.estimator.values)):
        for kind in results.critic.values:
            here = results.sel(estimator=name, critic=kind)
            one = xr.Dataset({"information": here.information, "value": here.trained})
            mean, deviation, batches = _at_levels(one)
            excess += list(mean - np.unique(one.information))
            margin += list(4 * deviation / np.sqrt(batches))
    return Claim(
        "trained-bounds-are-lower-bounds",
        "Poole et al. 2019 (arXiv:1905.06922); no number",
        "On batches that a critic has not seen, InfoNCE and NWJ are on average below the truth at"
        " every level, within four standard errors: shown is mean minus truth. On one batch that is"
        " seen again and again they are not.",
        excess,
        high=margin,
        controls=(BY_HEART,),
    )


def _above_the_ceiling(config: ConfigDict, results: xr.Dataset) -> Claim:
    here = results.sel(estimator="smile")
    top = here.trained.where(here.information == max(config.information))
    seen = top.isel(step=slice(-(results.sizes["step"] // len(config.information) // 2), None))
    means = seen.mean(("seed", "step"))
    errors = seen.std(("seed", "step")) / math.sqrt(seen.sizes["seed"] * seen.sizes["step"])
    return Claim(
        "trained-smile-passes-log-batch",
        f"{SONG}, figure of estimates over training; only the shape is known, no number",
        f"In the second half of the level of {max(config.information):g} nats, trained SMILE is"
        f" above log {config.pairs}, the most that InfoNCE can say, by more than four standard"
        " errors.",
        (means - math.log(config.pairs)).values,
        low=4 * errors.values,
        controls=(NEITHER,),
    )
