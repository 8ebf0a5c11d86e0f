"""A real model as its own teacher: half of its layers, and all of them without an instruction.

The student with every second layer is trained by forward KL, by reverse KL and by forward KL to the
teacher's most probable tokens with a tail; the whole model, which reads no
instruction, is trained to say what it says after one. Laws are compared from hidden states, on
given texts; what is measured is measured on other texts.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray as xr
from jax import Array
from ml_collections import ConfigDict

from experiments.lab import models
from experiments.lab.axes import at_least as whole_from
from experiments.lab.axes import each, labels, one_of, real, seeds
from experiments.lab.claims import Finding, at_least, at_most, claim
from experiments.lab.plots import COLORS, Picture, legend_above, panels
from experiments.lab.results import Labelled, labelled
from jdiv import divergences, generators
from jdiv.distillation import metrics
from jdiv.divergences import sparse, vocabulary
from jdiv.lm import train

if TYPE_CHECKING:
    from jdiv.lm import Transformer

TAIL = "forward KL, with tail"
LOSSES = {"forward KL": 0.0, "reverse KL": 1.0, TAIL: 0.0}
"""Index of the alpha divergence."""
AXES = {"seed": seeds}
FIELDS = {
    "model": models.smollm2,
    "texts": labels,
    "others": labels,
    "given": whole_from(1),
    "tokens": whole_from(1),
    "losses": each(one_of(tuple(LOSSES))),
    "top_k": whole_from(1),
    "steps": whole_from(1),
    "step_size": real,
    "instruction": labels,
    "other_instruction": labels,
    "instructed_step_size": real,
}
MEASURES = "KL(teacher‖student)", "KL(student‖teacher)", "agreement"
WHEN = "before", "after"
AWAY = {
    "step_size": -3e-4, "instructed_step_size": -2e-5, "losses": ("forward KL",), "steps": 1,
}  # fmt: skip
"""A step uphill."""
LESSONS = "instruction", "another"


def run(config: ConfigDict, point: dict, key: Array) -> dict[str, Array | Labelled]:
    """What is measured of the half model by loss, and of the model without its instruction."""
    lessons = config.instruction, config.other_instruction
    with jax.ensure_compile_time_eval():  # training is no part of the program
        given = Given(
            config.model, config.texts, config.others, config.given, config.tokens, lessons
        )
        half = halved(given, tuple(config.losses), config.top_k, config.steps, config.step_size)
        context = [
            instructed(given, config.steps, config.instructed_step_size, lesson)
            for lesson in lessons
        ]
    by = {"when": WHEN, "measure": MEASURES}
    return {
        "half": labelled(jnp.asarray(half, jnp.float32), loss=config.losses, **by),
        "context": labelled(jnp.asarray(np.array(context), jnp.float32), lesson=LESSONS, **by),
    }


# ------------------------------------------------------------------------------------- the lessons


class Given(NamedTuple):
    """The model by name, texts to teach and others to measure on, and how much of each is used.

    Fields:
        given: Tokens of each text that no law is compared of.
        tokens: Those after them.
        lessons: Instructions; all reading has room for the longest, so that it is one program.
    """

    model: str
    taught: tuple[str, ...]
    others: tuple[str, ...]
    given: int
    tokens: int
    lessons: tuple[str, ...]


@functools.lru_cache(maxsize=1)
def loaded(name: str):
    """The model and its tokenizer."""
    return models.load(name, spread=1.0, seed=1)


@functools.lru_cache(maxsize=1)
def texts(given: Given) -> Array:
    """`[texts, tokens]` those to teach, then the others; one that is too short begins again."""
    _, tokenizer = loaded(given.model)
    rows = [np.resize(_ids(given.model, tokenizer, text), given.given + given.tokens)
            for text in (*given.taught, *given.others)]  # fmt: skip
    return jnp.asarray(np.array(rows))


def read(given: Given, model: Transformer, lesson: str = "") -> tuple[Array, Array]:
    """Hidden states `[texts, tokens, width]` of a model after this lesson, if any: of those to
    teach, and of the others."""
    _, tokenizer = loaded(given.model)
    longest = max(len(_ids(given.model, tokenizer, text)) for text in given.lessons)
    before = _ids(given.model, tokenizer, lesson)
    filled = np.concatenate([np.zeros(longest - len(before), np.int32), before])
    rows = texts(given)
    rows = jnp.concatenate([jnp.broadcast_to(filled, (len(rows), longest)), rows], axis=1)
    real = np.arange(rows.shape[1]) >= longest - len(before)
    found = _states(model, rows, np.broadcast_to(real, rows.shape), count=given.tokens)
    return found[: len(given.taught)], found[len(given.taught) :]


@functools.cache
def of_teacher(given: Given, lesson: str = "") -> tuple[Array, Array]:
    """What the whole model makes of the texts after a lesson."""
    return read(given, loaded(given.model)[0], lesson)


def halved(given: Given, losses: tuple[str, ...], top_k: int, steps: int, step_size) -> np.ndarray:
    """`[losses, 2, measures]` of students with every second layer of the model."""
    (teacher, _), (taught, held) = loaded(given.model), of_teacher(given)
    laws = teacher.from_hidden(taught)
    known = sparse.top_k(teacher.logits(taught), top_k) if TAIL in losses else None
    truth, student = teacher.logits(held), every_second_layer(teacher)
    return np.array(
        [
            _taught(given, student, truth, known if loss == TAIL else laws, LOSSES[loss], steps,
                    step_size)
            for loss in losses
        ]
    )  # fmt: skip


def instructed(given: Given, steps: int, step_size: float, lesson: str) -> np.ndarray:
    """`[2, measures]` of the model without an instruction, the first lesson, against itself after
    it; taught by this lesson."""
    teacher, _ = loaded(given.model)
    laws = teacher.from_hidden(of_teacher(given, lesson)[0])
    truth = teacher.logits(of_teacher(given, given.lessons[0])[1])
    return np.array(_taught(given, teacher, truth, laws, LOSSES["forward KL"], steps, step_size))


def every_second_layer(model: Transformer) -> Transformer:
    """The model without its odd layers; of a single layer that one, with half of its weights."""
    from jdiv import lm

    layered = {k for k, x in lm.weights.tensors(model.config).items() if x.layered}
    tensors = {k: x[...] for k, x in model.tensors.items()}
    if model.config.layers == 1:
        halves = {k: x / 2 if k in layered else x for k, x in tensors.items()}
        return lm.Transformer(model.config, halves)
    kept = {k: x[::2] if k in layered else x for k, x in tensors.items()}
    config = dataclasses.replace(model.config, layers=-(-model.config.layers // 2))
    return lm.Transformer(config, kept)


def _taught(
    given: Given, student: Transformer, truth: Array, laws, index: float, steps: int, step_size
) -> list[Array]:
    """What is measured before and after so many steps, on the other texts."""
    from jdiv import lm

    rows = texts(given)[: len(given.taught)]
    state = train.begin(student, optax.adam(1.0))
    measured = lambda model: _measured(model, read(given, model)[1], truth)
    before = measured(student)
    for _ in range(steps):
        state = _stepped(
            state, rows, laws, index, step_size, config=student.config, count=given.tokens
        )
    return [before, measured(lm.Transformer(student.config, state.tensors))]


@functools.partial(jax.jit, static_argnames=("config", "count"), donate_argnums=0)
def _stepped(state, taught, laws, index, step_size, *, config, count) -> train.State:
    """One step of Adam on the alpha divergence to the teacher's laws, mean over tokens."""

    def loss(model: Transformer, tokens: Array):
        own = model.from_hidden(model(tokens, remember=True)[0][:, -count - 1 : -1])
        d = vocabulary.divergence(generators.alpha(index), own, laws)
        return jnp.mean(d), {"weight": jnp.asarray(d.size, d.dtype)}

    scaled = optax.chain(optax.scale_by_adam(), optax.scale(-step_size))
    return train.update(state, taught, loss, config=config, optimizer=scaled)[0]


@functools.partial(jax.jit, static_argnames="count")
def _states(model: Transformer, tokens: Array, real: Array, *, count: int) -> Array:
    """Where the last tokens of each row are foretold; what is not real only fills it up."""
    positions = jnp.maximum(jnp.cumsum(real, axis=1, dtype=jnp.int32) - 1, 0)
    return model(tokens, positions, jnp.where(real, 0, 1))[0][:, -count - 1 : -1]


@jax.jit
def _measured(model: Transformer, hidden: Array, truth: Array) -> Array:
    """`[measures]` means over all tokens."""
    own = model.logits(hidden)
    forward, same = metrics.fidelity(own, truth)
    return jnp.stack([x.mean() for x in (forward, divergences.kl(own, truth), same)])


def _ids(model: str, tokenizer, text: str) -> np.ndarray:
    """The tokens of a text; for a random model, whose words are none, tokens of its letters."""
    if model == models.RANDOM:
        return np.frombuffer(text.encode(), np.uint8).astype(np.int32) % 61
    return np.array(tokenizer.encode(text), np.int32)


# ----------------------------------------------------------------------------------------- figures


def figures(config: ConfigDict, results: xr.Dataset) -> dict[str, Picture]:
    """What is measured before and after, by loss and without the instruction."""
    only = results.isel(seed=0)
    figure, axes = panels(3, width=4.2, height=3.8)
    names = [*only.loss.values, "no instruction"]
    places = np.arange(len(names))
    for axis, measure in zip(axes, MEASURES, strict=True):
        for number, when in enumerate(WHEN):
            at = {"when": when, "measure": measure}
            heights = [
                *only.half.sel(at).values,
                only.context.sel(at | {"lesson": LESSONS[0]}).item(),
            ]
            axis.bar(places + 0.38 * number, heights, 0.36, color=COLORS[number], label=when)
        axis.set_xticks(places + 0.19, names, rotation=30, ha="right")
        axis.set(ylabel=measure if measure == "agreement" else f"{measure}, nats")
    legend_above(figure, axes[0], columns=2)
    what = "SmolLM2" if config.model == "smollm2" else "A random transformer"
    return {
        "lessons": Picture(
            figure,
            f"{what} as its own teacher, on texts that were not trained on, before and after"
            f" {config.steps} steps: students with every second layer, by loss, and the whole model"
            " that learns what it says after an instruction. Agreement is the share of tokens of"
            " which both find the same one most probable.",
        )
    }


# ------------------------------------------------------------------------------------------ claims


def _left(x: xr.DataArray, measures: tuple[str, ...]) -> xr.DataArray:
    """What is left of a divergence after the lesson, as a share."""
    x = x.isel(seed=0).sel(measure=list(measures))
    return x.sel(when="after") / x.sel(when="before")


@claim(source="Definitions; no number known", reruns=(AWAY,))
def every_loss_brings_the_half_nearer(results: xr.Dataset) -> Finding:
    """Share of KL(teacher‖student), or of KL(student‖teacher) for the loss that is this, that is
    left on other texts after lessons on some."""
    left = _left(results.half, MEASURES[:2])
    own = [MEASURES[int(LOSSES[loss])] for loss in left.loss.values]
    pairs = zip(left.loss.values, own, strict=True)
    return at_most(0.9, [left.sel(loss=loss, measure=measure).item() for loss, measure in pairs])


@claim(source="Context distillation; no number known", reruns=(AWAY,))
def an_instruction_can_be_left_out(results: xr.Dataset) -> Finding:
    """Share of KL(with instruction‖without) that is left on other texts after it."""
    return at_most(0.9, _left(results.context.sel(lesson=LESSONS[0]), MEASURES[:1]))


@claim(
    source="Context distillation; no number known",
    wrong=({"own": LESSONS[1], "other": LESSONS[0]},),
)
def the_lesson_is_of_the_instruction(
    results: xr.Dataset, own: str = LESSONS[0], other: str = LESSONS[1]
) -> Finding:
    """What lessons of another instruction leave of the same KL, less what its own lessons leave.
    Part of the way is not the instruction's: those of another bring the model nearer, too."""
    left = _left(results.context, MEASURES[:1])
    return at_least(0.02, left.sel(lesson=other) - left.sel(lesson=own))


@claim(
    source="Definitions; no number known",
    wrong=({"forward": "reverse KL", "reverse": "forward KL"},),
)
def reverse_kl_leaves_tokens_of_the_teacher(
    results: xr.Dataset, forward: str = "forward KL", reverse: str = "reverse KL"
) -> Finding:
    """KL(teacher‖student) after lessons by reverse KL, less that after lessons by forward KL."""
    after = results.half.isel(seed=0).sel(when="after", measure=MEASURES[0])
    return at_least(0, after.sel(loss=reverse) - after.sel(loss=forward))
