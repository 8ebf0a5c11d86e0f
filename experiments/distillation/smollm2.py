"""A real model as its own teacher: half of its layers, and all of them without an instruction.

The student with every second layer is trained by forward KL, by reverse KL and by forward KL to the
teacher's most probable tokens with a tail; the whole model, which reads no
instruction, is trained to say what it says after one. Laws are compared from hidden states, on
given texts; what is measured is measured on other texts.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING

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
from jdiv.lm import scoring, train

if TYPE_CHECKING:
    from jdiv.divergences.vocabulary import FromHidden
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
    with jax.ensure_compile_time_eval():  # training is no part of the program
        half = halved(
            config.model, config.texts, config.others, config.given, config.tokens,
            tuple(config.losses), config.top_k, config.steps, config.step_size,
        )  # fmt: skip
        context = [
            instructed(
                config.model, config.texts, config.others, config.given, config.tokens,
                config.steps, config.instructed_step_size, config.instruction, lesson,
            )
            for lesson in (config.instruction, config.other_instruction)
        ]  # fmt: skip
    by = {"when": WHEN, "measure": MEASURES}
    return {
        "half": labelled(jnp.asarray(half, jnp.float32), loss=config.losses, **by),
        "context": labelled(jnp.asarray(np.array(context), jnp.float32), lesson=LESSONS, **by),
    }


# ------------------------------------------------------------------------------------- the lessons


@functools.lru_cache(maxsize=1)
def halved(model, texts, others, given, tokens, losses, top_k, steps, step_size) -> np.ndarray:
    """`[losses, 2, measures]` of students with every second layer of the model."""
    teacher, tokenizer = models.load(model, spread=1.0, seed=1)
    taught, held = (_rows(model, tokenizer, x, given + tokens) for x in (texts, others))
    laws = _laws(teacher, taught, count=tokens)
    known = sparse.top_k(_logits(teacher, taught, count=tokens), top_k) if TAIL in losses else None
    truth = _logits(teacher, held, count=tokens)
    student = every_second_layer(teacher)
    return np.array(
        [
            _taught(
                student, taught, held, truth, known if loss == TAIL else laws, LOSSES[loss],
                steps, step_size, tokens,
            )
            for loss in losses
        ]
    )  # fmt: skip


def instructed(
    model, texts, others, given, tokens, steps, step_size, instruction, lesson
) -> np.ndarray:
    """`[2, measures]` of the model without an instruction against itself after it."""
    teacher, tokenizer = models.load(model, spread=1.0, seed=1)
    taught, held = (_rows(model, tokenizer, x, given + tokens) for x in (texts, others))
    laws = _laws(teacher, _after(_ids(model, tokenizer, lesson), taught), count=tokens)
    truth = _logits(teacher, _after(_ids(model, tokenizer, instruction), held), count=tokens)
    forward = LOSSES["forward KL"]
    return np.array(_taught(teacher, taught, held, truth, laws, forward, steps, step_size, tokens))


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
    student: Transformer, taught: Array, held: Array, truth: Array, laws, index: float,
    steps: int, step_size: float, count: int,
) -> list[Array]:  # fmt: skip
    """What is measured before and after so many steps."""
    optimizer = optax.adam(1.0)
    state = train.begin(student, optimizer)
    before = _measured(student, held, truth, count=count)
    for _ in range(steps):
        state = _stepped(state, taught, laws, index, step_size, config=student.config, count=count)
    from jdiv import lm

    return [
        before,
        _measured(lm.Transformer(student.config, state.tensors), held, truth, count=count),
    ]


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
def _laws(model: Transformer, tokens: Array, *, count: int) -> FromHidden:
    """Of the last tokens of each row."""
    return model.from_hidden(model(tokens)[0][:, -count - 1 : -1])


@functools.partial(jax.jit, static_argnames="count")
def _logits(model: Transformer, tokens: Array, *, count: int) -> Array:
    """Of the last tokens of each row, few enough to be all there."""
    return scoring.logits(model, tokens)[:, -count - 1 : -1]


@functools.partial(jax.jit, static_argnames="count")
def _measured(model: Transformer, tokens: Array, truth: Array, *, count: int) -> Array:
    """`[measures]` means over the last tokens of each row."""
    own = scoring.logits(model, tokens)[:, -count - 1 : -1]
    forward, same = metrics.fidelity(own, truth)
    return jnp.stack([x.mean() for x in (forward, divergences.kl(own, truth), same)])


def _ids(model: str, tokenizer, text: str) -> np.ndarray:
    """The tokens of a text; for a random model, whose words are none, tokens of its letters."""
    if model == models.RANDOM:
        return np.frombuffer(text.encode(), np.uint8).astype(np.int32) % 61
    return np.array(tokenizer.encode(text), np.int32)


def _rows(model: str, tokenizer, texts: tuple[str, ...], size: int) -> Array:
    """`[texts, size]` the first tokens of each; a text that is too short begins again."""
    return jnp.asarray(np.array([np.resize(_ids(model, tokenizer, x), size) for x in texts]))


def _after(ids: np.ndarray, tokens: Array) -> Array:
    """The same with an instruction before each row."""
    return jnp.concatenate(
        [jnp.broadcast_to(jnp.asarray(ids), (tokens.shape[0], ids.size)), tokens], axis=1
    )


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
