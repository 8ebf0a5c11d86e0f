"""How fast a student learns a teacher on finitely many inputs, by what a sample shows of it.

Zhao and Zhu 2023 (arXiv:2310.07838), sections 3 to 6 and appendix F. The student minimizes one of
four losses over all policies, in closed form (`distillation.transfer`), on n samples of inputs and
of the teacher's labels: their counts are all that it sees, and are drawn as such.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jax import Array
from ml_collections import ConfigDict

from experiments.lab.axes import between, count, each, labels, one_of, seeds, static
from experiments.lab.claims import Finding, at_most, claim, equals, together, within
from experiments.lab.plots import Picture, legend_above, panels, style
from experiments.lab.results import Labelled, labelled
from jdiv import divergences, numerics
from jdiv.distillation import transfer

AXES = {
    "teacher": labels,
    "instance": between(0, 3),
    "inputs": static(count),
    "labels": static(count),
    "seed": seeds,
}
FIELDS = {
    "samples": each(count),
    "weighted": one_of((True, False)),
    "follows": one_of((True, False)),
}
LEARNERS = ("CE, label", "CE, its probability", "SEL, its probability", "CE, all")
SOURCE = "Zhao and Zhu 2023 (arXiv:2310.07838)"
WIDE, ONE = "even and one, 100 x 25", "even and one, 1 x 100"
WORST = {
    "CE, label": "two levels, 10 x 10",
    "SEL, its probability": "rare labels, 10 x 11",
    "CE, all": "rare inputs, 10 x 11",
}
"""For each learner that converges the teachers that are worst for it."""
REFERENCE = {
    100: (0.5928, 0.5855, 0.2830, 0.1774),
    500: (0.5289, 0.4778, 0.0327, 0.0041),
    1000: (0.4597, 0.4439, 0.0029, 0.0),
    2500: (0.3316, 0.4427, 0.0, 0.0),
    10_000: (0.1542, 0.4448, 0.0, 0.0),
}
"""Errors with 100 inputs and 25 labels, by samples and learner; means of 20 repetitions."""
UNWEIGHTED = {
    "weighted": False,
    "sweep.teacher": (WIDE, ONE),
    "sweep.instance": (0, 0),
    "sweep.inputs": (100, 1),
    "sweep.labels": (25, 100),
    "sweep.seed": tuple(range(20)),
}
STANDING = {
    "follows": False,
    "sweep.teacher": tuple(WORST.values()),
    "sweep.instance": (1, 2, 3),
    "sweep.inputs": (10, 10, 10),
    "sweep.labels": (11, 11, 11),
    "sweep.seed": tuple(range(100)),
}


def run(config: ConfigDict, point: dict, key: Array) -> dict[str, Array | Labelled]:
    """The four errors for each number of samples, and the error of `ce_partial` in the limit."""
    samples = jnp.array(config.samples, float)
    learned = jax.vmap(lambda n, key: error(config, point, n, key))
    errors, slopes = learned(samples, jax.random.split(key, samples.size))
    by = {"samples": config.samples, "learner": LEARNERS}
    inputs, teacher = instance(point, samples[-1])
    limit = transfer.ce_partial(inputs[:, None] * jnp.exp(teacher), teacher)
    return {
        "error": labelled(errors, **by),
        "slope": labelled(slopes, samples=config.samples, loss=LEARNERS[1:3]),
        "limit": jnp.sum(inputs * divergences.total_variation(limit, teacher)),
    }


def error(config: ConfigDict, point: dict, n: Array, key: Array) -> tuple[Array, Array]:
    """Of the learners after n samples `[4]` the total variation to the teacher, mean over inputs.

    And `[2]` the largest slope of the two losses of the label's probability at their learners.
    """
    inputs, teacher = instance(point, n if config.follows else jnp.asarray(100, n.dtype))
    law = inputs[:, None] * jnp.exp(teacher)
    counts = jax.random.multinomial(key, n, law.reshape(-1)).reshape(law.shape)
    weights = teacher if config.weighted else jnp.zeros_like(teacher)
    learned = (
        transfer.ce_single(counts),
        transfer.ce_partial(counts, weights),
        transfer.sel_partial(counts, teacher),
        transfer.ce_full(counts, teacher),
    )
    errors = jnp.stack([inputs @ divergences.total_variation(x, teacher) for x in learned])
    losses = transfer.ce_partial_loss, transfer.sel_partial_loss
    slopes = [slope(f, counts, teacher, x) for f, x in zip(losses, learned[1:3], strict=True)]
    return errors, jnp.stack(slopes)


def slope(loss: Callable, counts: Array, teacher: Array, learned: Array) -> Array:
    """The largest derivative, by a logit, of the mean loss of the samples."""
    seen = counts > 0

    def mean(logits: Array) -> Array:
        log_policy = jnp.where(seen, numerics.log_softmax(logits), 0)
        losses = loss(log_policy, jnp.where(seen, teacher, 0))
        return jnp.sum(jnp.where(seen, counts * losses, 0)) / jnp.sum(counts)

    return jnp.max(jnp.abs(jax.grad(mean)(learned)))


def instance(point: dict, n: Array) -> tuple[Array, Array]:
    """Probabilities of the inputs and the teacher's log-probabilities `[inputs, labels]`.

    Appendix F: half even and half on one label; two levels that n samples hardly tell apart;
    labels, and then inputs, that n samples hardly show. Two levels need an even number of labels:
    of an odd one the last has no mass.
    """
    size, width = point["inputs"], point["labels"]
    label = jnp.arange(width)
    one = jax.nn.one_hot((jnp.arange(size) + 1) % width, width)
    pairs = width - width % 2
    edge = jnp.where(label % 2 == 0, 0.25, -0.25) * jnp.sqrt(size * pairs / n)
    rare = jnp.where(label % 2 == 0, size / (n + 1), 0)
    rare = rare.at[-1].set(1 - size * (width - 1) / (2 * (n + 1)))
    every = lambda law: jnp.broadcast_to(law, (size, width))
    laws = (
        0.5 / width + 0.5 * one,
        every(jnp.where(label < pairs, (1 + edge) / pairs, 0)),
        every(rare),
        every(rare),
    )
    even = jnp.full(size, 1 / size)
    few = jnp.full(size, 1 / (n + 1)).at[-1].set(1 - (size - 1) / (n + 1))
    number = point["instance"]
    inputs = jnp.where(number == 3, few, even)
    return inputs, jnp.log(jnp.select([number == k for k in range(4)], laws))


# ----------------------------------------------------------------------------------------- figures


def figures(config: ConfigDict, results: xr.Dataset) -> dict[str, Picture]:
    """Errors by samples: one teacher for all learners, and the worst one of each."""
    figure, (left, right) = panels(2, width=5.0, height=4.2)
    mean = results.error.mean("seed")
    first = results.teacher.values[0]
    for number, learner in enumerate(LEARNERS):
        here = mean.sel(teacher=first, learner=learner)
        left.plot(here.samples, here.where(here > 0), label=learner, **style(number, marker=True))
        worst = WORST.get(learner)
        if worst in results.teacher:
            here = mean.sel(teacher=worst, learner=learner)
            right.plot(here.samples, here, **style(number, marker=True))
    left.axhline(results.limit.isel(seed=0).sel(teacher=first).item(), color="#808080", ls=":")
    slopes = {rate: (mean.samples / mean.samples[0]) ** rate for rate in (-0.5, -1.0)}
    for (rate, line), height in zip(slopes.items(), (0.6, 0.04), strict=True):
        right.plot(mean.samples, height * line, color="#808080", ls=":", lw=1)
        right.annotate(
            f"$n^{{{rate:g}}}$", (mean.samples[1], height * line[1]), color="#606060",
            xytext=(4, 4), textcoords="offset points",
        )  # fmt: skip
    left.set(title=first, ylabel="total variation to the teacher")
    right.set(title="the worst teachers of each")
    for axis in (left, right):
        axis.set(xscale="log", yscale="log", xlabel="samples n")
    left.set_ylim(1e-4, 1)
    legend_above(figure, left, columns=4)
    return {
        "errors": Picture(
            figure,
            "Error of four learners by what they see of the teacher, besides the input: the label;"
            " the label and its probability, by weighted cross-entropy and by squared error of"
            " logarithms; all probabilities. Weighted cross-entropy does not converge (dotted: its"
            " limit). Right: with teachers that are worst for a number of samples the others fall"
            " like the dotted rates.",
        )
    }


# ------------------------------------------------------------------------------------------ claims


@claim(
    source=f"{SOURCE}, figure 1 for about .44; exact limits recomputed",
    published=0.44,
    reference=(0.445714, 0.485388),
    reruns=(UNWEIGHTED,),
    needs={"teacher": (WIDE, ONE)},
)
def weighted_cross_entropy_stays(results: xr.Dataset) -> Finding:
    """Error of cross-entropy weighted by the label's probability after 100,000 samples, to 1e-3 of
    the exact limit for 25 labels and for 100; and the limit itself, to six digits."""
    both = results.sel(teacher=[WIDE, ONE])
    last = both.error.sel(learner="CE, its probability").isel(samples=-1).mean("seed")
    expected = (0.445714, 0.485388)
    return together(
        equals(expected, last, tolerance=1e-3),
        equals(expected, both.limit.isel(seed=0), decimals=6),
    )


@claim(
    source=f"{SOURCE}, figure 1, recomputed with 20 repetitions",
    reference=list(REFERENCE.values()),
    reruns=(UNWEIGHTED,),
    needs={"teacher": (WIDE,)},
)
def errors_by_samples(results: xr.Dataset) -> Finding:
    """The four errors with 100 inputs and 25 labels after 100 to 10,000 samples, within four
    standard errors of the difference to the reference and its last digit."""
    error = results.error.sel(teacher=WIDE, samples=list(REFERENCE))
    draws = error.transpose("samples", "learner", "seed")
    return within(list(REFERENCE.values()), draws, behind=20, rounding=1e-4)


@claim(
    source=f"{SOURCE}, theorems on the rates and figure 2",
    published=(-0.532, -1.004, -0.977),
    reference=(-0.5, -1.0, -1.0),
    reruns=(STANDING,),
    needs={"teacher": tuple(WORST.values())},
)
def rates_of_the_worst_cases(results: xr.Dataset) -> Finding:
    """Slope of the log of the error by the log of the samples, from 1000 to 100,000, with the
    teachers that are worst for the learner: with labels, with the label's probability by squared
    error, with all probabilities."""
    mean = results.error.mean("seed").sel(samples=slice(1000, None))
    errors = [mean.sel(learner=learner, teacher=teacher) for learner, teacher in WORST.items()]
    fits = [np.polyfit(np.log(x.samples), np.log(np.maximum(x, 1e-300)), 1)[0] for x in errors]
    return equals((-0.5, -1.0, -1.0), np.array(fits), tolerance=0.03)


@claim(source=f"{SOURCE}, the losses of the learners", reruns=(UNWEIGHTED,))
def learners_minimize_their_losses(results: xr.Dataset) -> Finding:
    """Largest derivative of the weighted cross-entropy and of the squared error of logarithms where
    their learners are, over all teachers and samples; unweighted counts are not where the first
    has its least value."""
    return at_most(1e-12, results.slope.max(("samples", "seed", "teacher")))
