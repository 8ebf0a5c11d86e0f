"""What a teacher can pass on beside its answers: subclasses, information, its past, its symmetry.

Four toys in which linear students learn, full batches at a time. LELP: four blobs whose label is a
parity, which no linear student can learn from labels. MCMI: a teacher that is paid for what its
answers tell beyond the class. PS-KD: a student of few samples that is its own teacher. HARD: a
teacher that does not care about circular shifts, and a student that has seen one shift.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jax import Array
from ml_collections import ConfigDict

from experiments.lab import axes
from experiments.lab.axes import count, fraction, non_negative, positive, seeds
from experiments.lab.claims import Finding, at_least, at_most, claim
from experiments.lab.plots import COLORS, Picture, panels
from experiments.lab.results import Labelled, labelled
from jdiv import divergences as dv
from jdiv.distillation import augment, features, metrics, self, teacher

if TYPE_CHECKING:
    from matplotlib.figure import Figure

AXES = {"intact": fraction, "seed": seeds}
FIELDS = {
    "samples": axes.at_least(8),
    "few": axes.at_least(4),
    "hidden": count,
    "steps": count,
    "step_size": positive,
    "epoch": count,
    "coefficient": non_negative,
    "share": fraction,
}
WRONG = {"sweep.intact": (0.0,), "sweep.seed": (0, 1, 2, 3)}
"""Embeddings of other samples, nothing paid for information, no share of the past, no shifts: of
each toy what it has to teach is taken out, in one run, since they do not touch each other."""
LENGTH, MOTIF = 16, 5
TAUGHT_BY, PAID = ("soft labels", "LELP"), ("likelihood", "MCMI")
TARGETS, AUGMENTED = ("labels", "PS-KD", "smaller steps"), ("none", "random shift", "HARD")


def trained(config: ConfigDict, loss: Callable[[Array, Array], Array], weights: Array) -> Array:
    """The weights after gradient descent with momentum; the loss is told the step."""

    def step(state: tuple[Array, Array], at: Array) -> tuple[tuple[Array, Array], None]:
        weights, velocity = state
        velocity = 0.9 * velocity - config.step_size * jax.grad(loss)(weights, at)
        return (weights + velocity, velocity), None

    start = weights, jnp.zeros_like(weights)
    return jax.lax.scan(step, start, jnp.arange(config.steps))[0][0]


def blobs(key: Array, centers: Array, number: int, spread: float) -> tuple[Array, Array]:
    """Points `[number, 2]` around centers, and which."""
    of_blob, of_noise = jax.random.split(key)
    blob = jax.random.randint(of_blob, (number,), 0, centers.shape[0])
    return centers[blob] + spread * jax.random.normal(of_noise, (number, 2)), blob


def hidden(x: Array, key: Array, width: int) -> Array:
    """A layer of random weights and a constant, `[..., width + 1]`: what linear models see."""
    of_weights, of_biases = jax.random.split(key)
    weights = jax.random.normal(of_weights, (x.shape[-1], width))
    biases = jax.random.normal(of_biases, (width,)).reshape(*(1,) * (x.ndim - 1), width)
    h = jnp.tanh(x @ weights + biases)
    return jnp.concatenate([h, jnp.ones_like(h[..., :1])], axis=-1)


def circle(number: int, radius: float) -> Array:
    """So many centers on a circle, `[number, 2]`."""
    angles = 2 * np.pi * np.arange(number) / number
    return jnp.asarray(radius * np.stack([np.cos(angles), np.sin(angles)], axis=1))


# -------------------------------------------------------------------------------- the four toys


def of_subclasses(config: ConfigDict, intact: Array, key: Array) -> dict[str, Labelled]:
    """Accuracy of a linear student, and how pure in blobs its subclasses are, by who taught it."""
    of_data, of_test, of_layer, of_split, of_order = jax.random.split(key, 5)
    centers = circle(4, 2.5)
    x, blob = blobs(of_data, centers, config.samples, 0.5)
    labels = blob % 2
    likelihood = -jnp.sum(jnp.square(x[:, None] - centers[None]), axis=-1) / (2 * 0.5**2)
    logits = features.class_logits(likelihood[:, np.array([0, 2, 1, 3])], 2)
    h = hidden(x, of_layer, config.hidden)
    h = jnp.where(intact > 0, h, jax.random.permutation(of_order, h))
    along = features.projections(h, labels, 2, 1, of_split)
    even = jnp.repeat(jax.nn.log_softmax(logits), 2, axis=1)
    targets = jnp.stack([even, features.subclass_logits(logits, h, along)])
    plain = lambda x: jnp.concatenate([x, jnp.ones_like(x[:, :1])], axis=1)

    def loss(weights: Array, _: Array) -> Array:
        said = jnp.einsum("bf,sfn->sbn", plain(x), weights)
        return jnp.sum(jnp.mean(features.lelp(said, targets), axis=1))

    weights = trained(config, loss, jnp.zeros((2, 3, 4)))
    x, blob = blobs(of_test, centers, 500, 0.5)
    said = jnp.einsum("bf,sfn->sbn", plain(x), weights)
    right = jnp.argmax(features.class_logits(said, 2), axis=-1) == (blob % 2)[None]
    part = jax.nn.one_hot(jnp.argmax(said, axis=-1), 4)
    together = jnp.einsum("sbn,bm->snm", part, jax.nn.one_hot(blob, 4, dtype=part.dtype))
    purity = jnp.sum(jnp.max(together, axis=-1), axis=-1) / len(x)
    return {
        "lelp_accuracy": labelled(jnp.mean(right.astype(x.dtype), axis=1), taught_by=TAUGHT_BY),
        "purity": labelled(purity, taught_by=TAUGHT_BY),
    }


def of_information(config: ConfigDict, intact: Array, key: Array) -> dict[str, Array | Labelled]:
    """Information of two teachers beyond the class; their students see a twentieth of the data."""
    of_data, of_test, of_layer = jax.random.split(key, 3)
    centers = circle(6, 2.5)
    x, blob = blobs(of_data, centers, config.samples, 0.8)
    h, labels = hidden(x, of_layer, config.hidden), blob % 3
    coefficients = intact * jnp.array([0.0, config.coefficient])

    def loss(weights: Array, _: Array) -> Array:
        def own(weights, coefficient):
            logits = h @ weights
            centers = teacher.centroids(logits, labels, 3)
            losses = teacher.mcmi(logits, labels, centers, coefficient=coefficient)
            return jnp.mean(losses)

        return jnp.sum(jax.vmap(own)(weights, coefficients))

    weights = trained(config, loss, jnp.zeros((2, config.hidden + 1, 3)))
    logits = jnp.einsum("bf,tfn->tbn", h, weights)
    information = jax.vmap(lambda x: teacher.conditional_information(x, labels, 3))(logits)
    means = jax.vmap(lambda x: teacher.centroids(x, labels, 3))(logits)
    entropy = lambda logits: -jnp.sum(jax.nn.softmax(logits) * jax.nn.log_softmax(logits), axis=-1)
    share = jnp.mean(jax.nn.one_hot(labels, 3, dtype=x.dtype), axis=0)
    gap = entropy(means) @ share - jnp.mean(entropy(logits), axis=1)
    some = config.samples // 20

    def imitate(weights: Array, _: Array) -> Array:
        said = jnp.einsum("bf,tfn->tbn", h[:some], weights)
        return jnp.sum(jnp.mean(dv.reverse_kl(said, logits[:, :some]), axis=1))

    students = trained(config, imitate, jnp.zeros_like(weights))
    x, blob = blobs(of_test, centers, 1000, 0.8)
    h = hidden(x, of_layer, config.hidden)
    said = jnp.argmax(jnp.einsum("bf,mtfn->mtbn", h, jnp.stack([weights, students])), axis=-1)
    right = (said == (blob % 3)[None, None]).astype(x.dtype)
    return {
        "information": labelled(jnp.mean(information, axis=1), paid=PAID),
        "jensen_gap": labelled(gap, paid=PAID),
        "mcmi_accuracy": labelled(jnp.mean(right, axis=2), whose=("teacher", "student"), paid=PAID),
    }


def of_the_past(config: ConfigDict, intact: Array, key: Array) -> dict[str, Labelled]:
    """Calibration error and accuracy after training on few samples, by target."""
    of_data, of_test, of_layer = jax.random.split(key, 3)
    centers = circle(3, 1.5)
    x, labels = blobs(of_data, centers, config.few, 1.0)
    h = hidden(x, of_layer, config.hidden)
    shares = intact * jnp.array([0.0, config.share, 0.0])
    shrink = intact * jnp.array([0.0, 0.0, config.share])

    def epoch(state: tuple, number: Array) -> tuple[tuple, None]:
        weights, _ = state
        old = jnp.einsum("bf,tfn->tbn", h, weights)
        part = number.astype(h.dtype) / (config.steps // config.epoch)

        def loss(weights: Array) -> Array:
            said = jnp.einsum("bf,tfn->tbn", h, weights)
            each = lambda s, o, share: jnp.mean(
                self.progressive(s, o, labels, share=self.share_at(part, steps=1.0, share=share))
            )
            return jnp.sum((1 - shrink * part) * jax.vmap(each)(said, old, shares))

        def step(state: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], None]:
            weights, velocity = state
            velocity = 0.9 * velocity - config.step_size * jax.grad(loss)(weights)
            return (weights + velocity, velocity), None

        return jax.lax.scan(step, state, length=config.epoch)

    start = jnp.zeros((3, config.hidden + 1, 3))
    epochs = jnp.arange(config.steps // config.epoch)
    (weights, _), _ = jax.lax.scan(epoch, (start, start), epochs)
    x, labels = blobs(of_test, centers, 2000, 1.0)
    said = jnp.einsum("bf,tfn->tbn", hidden(x, of_layer, config.hidden), weights)
    error = jax.vmap(lambda logits: metrics.calibration_error(logits, labels))(said)
    right = (jnp.argmax(said, axis=-1) == labels[None]).astype(x.dtype)
    return {
        "calibration_error": labelled(error, target=TARGETS),
        "past_accuracy": labelled(jnp.mean(right, axis=1), target=TARGETS),
    }


def of_shifts(config: ConfigDict, intact: Array, key: Array) -> dict[str, Labelled]:
    """Error on shifted inputs, and the largest KL over shifts, by augmentation."""
    of_motif, of_data, of_test, of_layer, of_draw = jax.random.split(key, 5)
    motifs = jnp.pad(jax.random.normal(of_motif, (3, MOTIF)), ((0, 0), (0, LENGTH - MOTIF)))
    motifs = motifs / jnp.sqrt(jnp.sum(jnp.square(motifs), axis=1, keepdims=True))
    turned = jnp.stack([jnp.roll(motifs, i, axis=1) for i in range(LENGTH)])

    def drawn(key: Array, number: int) -> tuple[Array, Array]:
        of_label, of_noise = jax.random.split(key)
        labels = jax.random.randint(of_label, (number,), 0, 3)
        return 3 * motifs[labels] + 0.3 * jax.random.normal(of_noise, (number, LENGTH)), labels

    def everywhere(x: Array) -> tuple[Array, Array]:
        shifted = jnp.stack([jnp.roll(x, i, axis=1) for i in range(LENGTH)])
        pooled = jnp.max(jnp.einsum("abl,skl->absk", shifted, turned), axis=2)
        return hidden(shifted, of_layer, 3 * config.hidden), 2 * pooled

    x, _ = drawn(of_data, config.few)
    h, answers = everywhere(x)
    allowed = jnp.arange(LENGTH) < jnp.where(intact > 0, LENGTH, 1)

    def loss(weights: Array, at: Array) -> Array:
        said = jnp.einsum("abf,rfn->rabn", h, weights)
        kl = dv.reverse_kl(said[1], answers)
        logits = jnp.broadcast_to(jnp.where(allowed, 0.0, -jnp.inf)[None], (len(x), LENGTH))
        shift = jax.random.categorical(jax.random.fold_in(of_draw, at), logits)
        some = jnp.where(allowed[:, None, None], said[2], answers)
        return jnp.mean(
            dv.reverse_kl(said[0, 0], answers[0])
            + jnp.take_along_axis(kl, shift[None], axis=0)[0]
            + augment.hard(some, answers)
        )

    weights = trained(config, loss, jnp.zeros((3, 3 * config.hidden + 1, 3)))
    x, labels = drawn(of_test, 200)
    h, answers = everywhere(x)
    said = jnp.einsum("abf,rfn->rabn", h, weights)
    wrong = (jnp.argmax(said, axis=-1) != labels[None, None]).astype(x.dtype)
    kl = dv.reverse_kl(said, jnp.broadcast_to(answers[None], said.shape))
    return {
        "shifted_error": labelled(jnp.mean(wrong, axis=(1, 2)), augmented=AUGMENTED),
        "worst_kl": labelled(jnp.mean(jnp.max(kl, axis=1), axis=1), augmented=AUGMENTED),
    }


def run(config: ConfigDict, point: dict, key: Array) -> dict[str, Array | Labelled]:
    """The four toys."""
    keys = jax.random.split(key, 4)
    toys = (of_subclasses, of_information, of_the_past, of_shifts)
    return {
        name: x
        for toy, k in zip(toys, keys, strict=True)
        for name, x in toy(config, point["intact"], k).items()
    }


# ------------------------------------------------------------------------------------- figures


def figures(config: ConfigDict, results: xr.Dataset) -> dict[str, Picture | str]:
    """One panel for each toy."""
    return {
        "teachers": Picture(
            _teachers(results),
            f"Means over {results.sizes['seed']} seeds, bars one standard deviation. From the left:"
            " a linear student of a parity of four blobs learns it from pseudo-subclasses and not"
            " from soft labels; a teacher paid for it tells more beyond the class; the model as its"
            " own teacher is better calibrated, and so it is with steps that shrink alike; hard"
            " shifts bring the error of a student on shifted inputs down, and random ones as far.",
        )
    }


def _teachers(results: xr.Dataset) -> Figure:
    figure, plots = panels(4, width=3.0, height=3.6)
    shown = {
        "lelp_accuracy": ("taught_by", "accuracy on the parity"),
        "information": ("paid", "I(X; answer | class), nats"),
        "calibration_error": ("target", "expected calibration error"),
        "shifted_error": ("augmented", "error on shifted inputs"),
    }
    for axis, (name, (by, label)) in zip(plots, shown.items(), strict=True):
        values = results[name].isel(intact=0)
        names = [str(value).replace(" ", "\n") for value in values[by].values]
        axis.bar(range(len(names)), values.mean("seed"), yerr=values.std("seed"),
                 color=list(COLORS[: len(names)]), capsize=3)  # fmt: skip
        axis.set_xticks(range(len(names)), names)
        axis.set(ylabel=label, ylim=(0, None))
    return figure


# ------------------------------------------------------------------------------------------ claims


def _surely(difference: xr.DataArray) -> float:
    """A mean over seeds, less four of its standard errors."""
    errors = difference.std("seed", ddof=1) / np.sqrt(difference.sizes["seed"])
    return (difference.mean("seed") - 4 * errors).item()


@claim(
    source="Loo et al. 2024 (LELP, arXiv:2409.20449); no number is published for a toy",
    reruns=(WRONG,),
    wrong=({"taught_by": "soft labels"},),
)
def subclasses_teach_a_linear_student_a_parity(
    results: xr.Dataset, taught_by: str = "LELP"
) -> Finding:
    """A linear student of LELP's subclasses has an accuracy and a purity in blobs of at least .95,
    means over seeds; of soft labels it has neither."""
    accuracy = results.lelp_accuracy.sel(taught_by=taught_by).mean(("intact", "seed"))
    purity = results.purity.sel(taught_by=taught_by).mean(("intact", "seed"))
    return at_least(0.95, (accuracy, purity))


@claim(
    source="Ye et al. 2024 (MCMI, arXiv:2401.08732), definition",
    wrong=({"name": "mcmi_accuracy"},),
)
def information_is_the_jensen_gap(results: xr.Dataset, name: str = "jensen_gap") -> Finding:
    """Mean KL from the class's centroid and the gap of entropies: largest difference."""
    gap = results[name].sel(whose="teacher") if name == "mcmi_accuracy" else results[name]
    return at_most(1e-12, np.abs(results.information - gap).max())


@claim(
    source="Ye et al. 2024 (MCMI, arXiv:2401.08732); no number is published for a toy",
    reruns=(WRONG,),
)
def a_paid_teacher_tells_more(results: xr.Dataset) -> Finding:
    """The teacher that is paid for it has more information beyond the class than one of maximal
    likelihood, by four standard errors: mean difference, less the four."""
    information = results.information
    return at_least(
        1e-6, _surely(information.sel(paid="MCMI") - information.sel(paid="likelihood"))
    )


@claim(
    source="Kim et al. 2021 (PS-KD, arXiv:2006.12000); no number is published for a toy",
    reruns=(WRONG,),
)
def its_past_calibrates_a_student(results: xr.Dataset) -> Finding:
    """The calibration error with labels alone, less that with PS-KD's targets, is more than 0 by
    four standard errors: mean difference, less the four."""
    error = results.calibration_error
    return at_least(1e-6, _surely(error.sel(target="labels") - error.sel(target="PS-KD")))


@claim(
    source="from the gradient p - target, where the past is the present",
    wrong=({"target": "labels"},),
)
def so_do_steps_that_shrink_alike(results: xr.Dataset, target: str = "smaller steps") -> Finding:
    """Calibration errors of PS-KD and of labels with steps shrunk by 1 - share differ by at most
    .01, mean over seeds: in this toy PS-KD is training for less long."""
    error = results.calibration_error.mean(("intact", "seed"))
    return at_most(0.01, np.abs(error.sel(target="PS-KD") - error.sel(target=target)))


@claim(
    source="Nielsen et al. 2023 (HARD, arXiv:2305.14890); no number is published for a toy",
    reruns=(WRONG,),
    wrong=({"augmented": "none"},),
)
def hard_shifts_pass_on_the_symmetry(results: xr.Dataset, augmented: str = "HARD") -> Finding:
    """The error on shifted inputs without augmentation, less that with HARD, is at least .1: mean
    over seeds."""
    error = results.shifted_error.mean(("intact", "seed"))
    return at_least(0.1, error.sel(augmented="none") - error.sel(augmented=augmented))
