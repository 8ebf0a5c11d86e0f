"""Language models distilled by each divergence, on given, mixed and own answers, with the truth.

The teacher is a transformer that learnt a grammar of brackets. A student sees the last few tokens
alone, so that it cannot become the teacher, and which divergence it makes small decides what it
gives up. Training samples, as trainers do; what is measured is exact, as all answers of both are
enumerated (`lm.enumeration`): how often an answer is in the language, its ROUGE-L, and divergences
over whole answers. A loss is taken token by token at the prefixes of the answers that were drawn,
and the drawing is not differentiated (GKD, Agarwal et al. 2023, arXiv:2306.13649).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jax import Array
from ml_collections import ConfigDict

from experiments.lab import axes
from experiments.lab.axes import count, each, fraction, one_of, positive, seeds
from experiments.lab.claims import Finding, at_least, claim
from experiments.lab.plots import MARKERS, Picture, legend_above, panels, style, ticks
from experiments.lab.results import Labelled, labelled
from jdiv import divergences, generators, numerics
from jdiv.distillation import token

Loss = Callable[[Array, Array], Array]
"""`(student_logits, teacher_logits)` to a number for each token."""


def _row(name: str) -> Loss:
    return functools.partial(token.divergence, generator=generators.get(name))


LOSSES: dict[str, Loss] = {
    "forward KL": _row("reverse_kl"),
    "reverse KL": _row("kl"),
    "Jensen-Shannon": _row("jensen_shannon"),
    "total variation": _row("total_variation"),
    "skew forward KL": token.skew_forward_kl,
    "skew reverse KL": token.skew_reverse_kl,
    "squared Hellinger": _row("squared_hellinger"),
    "Pearson chi2": _row("pearson_chi2"),
    "Neyman chi2": _row("neyman_chi2"),
    "GKD .1": functools.partial(token.gkd, beta=0.1),
    "GKD .9": functools.partial(token.gkd, beta=0.9),
    "continuous GKD .1": functools.partial(token.gkd_continuous, beta=0.1),
    "continuous GKD .9": functools.partial(token.gkd_continuous, beta=0.9),
}
AXES = {"own": fraction, "swapped": fraction, "seed": seeds}
FIELDS = {
    "losses": each(one_of(tuple(LOSSES))),
    "longest": axes.at_least(2),
    "width": count,
    "sft_steps": count,
    "answers": count,
    "steps": count,
    "batch": count,
    "learning_rate": positive,
    "decay": fraction,
    "memory": axes.non_negative,
    "memories": each(axes.non_negative),
    "temperatures": each(positive),
}
END, TOKENS = 6, 7
SAMPLES = {"given": 0.0, "mixed": 0.5, "own": 1.0}
"""The share of the student's own answers in a batch."""


def validate(config: ConfigDict, point: dict) -> None:
    """A student remembers fewer tokens than an answer has."""
    most = max(config.memory, *config.memories)
    if most >= config.longest:
        raise ValueError(f"config.longest must be above the largest memory, {most}")


# ----------------------------------------------------------------------------- teacher and language


@functools.cache
def teacher(width: int, longest: int, steps: int) -> np.ndarray:
    """`[prefixes, TOKENS]` log-probabilities of a transformer that learnt the language.

    By the exact cross-entropy to it, a token of the language after the other. In NumPy because all
    programs take them.
    """
    import optax

    from jdiv import lm
    from jdiv.lm import enumeration

    shape = {"width": width, "layers": 1, "heads": 2, "key_heads": 1, "head_width": width // 2}
    config = lm.Config(vocabulary=TOKENS, hidden=2 * width, **shape)
    shares, optimizer = tokens_of_language(language(longest)), optax.adam(0.02)

    def table(tensors):
        model = lm.Transformer(config, tensors)
        among = jnp.arange(TOKENS)  # the end is the last
        return enumeration.table_among(model, jnp.array([END]), indices=among, longest=longest)

    def step(state, _):
        tensors, memory = state
        loss = lambda tensors: -jnp.sum(shares * jax.nn.log_softmax(table(tensors)))
        with jax.numpy_dtype_promotion("standard"):  # optax mixes counts with floats
            changes, memory = optimizer.update(jax.grad(loss)(tensors), memory, tensors)
        return (optax.apply_updates(tensors, changes), memory), None

    @jax.jit
    def trained(key):
        start = lm.weights.initial(config, key, dtype=jnp.float32)
        state = start, optimizer.init(start)
        return table(jax.lax.scan(step, state, None, steps)[0][0])

    logits = np.asarray(trained(jax.random.key(0)), float)
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


class Language(NamedTuple):
    """The grammar, exactly.

    Fields:
        tokens: `[answers, longest]` of all answers; -1 behind the end.
        probabilities: `[answers]` by the grammar; 0 for those that are not in the language.
        rouge: `[answers]` the expected ROUGE-L between an answer and one of the language.
        suffixes: `[longest, prefixes]` by number of tokens, the prefix that is the end of a prefix.
    """

    tokens: np.ndarray
    probabilities: np.ndarray
    rouge: np.ndarray
    suffixes: np.ndarray


@functools.cache
def language(longest: int) -> Language:
    """What is the same for all models."""
    from jdiv.lm import data, tabular

    shape = tabular.table_shape(longest, TOKENS)
    every = tabular.enumerate_sequences(shape)
    by_token = jax.jit(functools.partial(data.log_probs, data.brackets()))
    log_p = np.asarray(by_token(np.maximum(every.tokens, 0)), float)
    p = np.exp(np.where(every.mask, log_p, 0).sum(axis=1))
    letters = np.where(every.tokens == END, -1, every.tokens)
    there = p > 0
    suffixes = np.array([_suffixes(shape[0], n) for n in range(longest)])
    return Language(every.tokens, p, rouge_l(letters, letters[there]) @ p[there], suffixes)


def _suffixes(prefixes: int, length: int) -> list[int]:
    """Of each prefix the number of the prefix that consists of its last tokens.

    Prefixes are numbered as in `lm.tabular`: that of a prefix and a token more is `END * number +
    1 + token`.
    """
    found = []
    for number in range(prefixes):
        last = []
        while number and len(last) < length:
            last.append((number - 1) % END)
            number = (number - 1) // END
        found.append(functools.reduce(lambda n, token: END * n + 1 + token, reversed(last), 0))
    return found


def rouge_l(answers: np.ndarray, references: np.ndarray) -> np.ndarray:
    """`[answers, references]` ROUGE-L, twice the longest common subsequence over both lengths.

    Tokens of -1 do not count. Reference: Lin 2004, with equal weights.
    """
    longest = answers.shape[1]
    common = np.zeros((longest + 1, longest + 1, len(answers), len(references)), np.int8)
    for i in range(longest):
        for j in range(longest):
            a, b = answers[:, i, None], references[None, :, j]
            longer = np.maximum(common[i, j + 1], common[i + 1, j])
            common[i + 1, j + 1] = np.where((a == b) & (a >= 0), common[i, j] + 1, longer)
    lengths = (answers >= 0).sum(1)[:, None] + (references >= 0).sum(1)[None]
    return 2 * common[-1, -1] / np.maximum(lengths, 1)


def tokens_of_language(known: Language) -> np.ndarray:
    """`[prefixes, TOKENS]` the share of the language's tokens that are this one at this place."""
    from jdiv.lm import tabular

    every = tabular.enumerate_sequences((known.suffixes.shape[1], TOKENS))
    shares = np.zeros((known.suffixes.shape[1], TOKENS))
    weights = np.broadcast_to(known.probabilities[:, None], every.mask.shape)[every.mask]
    np.add.at(shares, (every.prefixes[every.mask], every.tokens[every.mask]), weights)
    return shares / shares.sum()


# ------------------------------------------------------------------------------------- the students


class Drawn(NamedTuple):
    """Answers of models, token by token.

    Fields:
        prefixes: `[..., answers, longest]` what stood before each token, by number.
        tokens: `[..., answers, longest]`
        mask: `[..., answers, longest]` True up to the end.
    """

    prefixes: Array
    tokens: Array
    mask: Array


def drawn(table: Array, suffixes: Array, uniform: Array) -> Drawn:
    """Answers of one model by inversion of uniform numbers `[answers, longest]`."""
    cumulated = jnp.cumsum(jax.nn.softmax(table, axis=-1), axis=-1)
    number = jnp.zeros(len(uniform), jnp.int32)
    running = jnp.ones(len(uniform), bool)
    steps = []
    for u in uniform.T:
        below = cumulated[suffixes[number]] < u[:, None]
        token = jnp.minimum(jnp.sum(below, axis=-1, dtype=jnp.int32), END)
        steps.append(Drawn(number, token, running))
        running = running & (token != END)
        number = jnp.where(running, END * number + 1 + token, 0)
        number = jnp.minimum(number, len(suffixes) - 1)  # after the last token there is none
    return jax.tree.map(lambda *x: jnp.stack(x, axis=1), *steps)


class Students(NamedTuple):
    """Students that are trained side by side, those of a loss next to each other.

    Fields:
        suffixes: `[students, prefixes]` the row of its table that a student reads for a prefix.
        own: `[students]` the share of its own answers.
        swapped: `[students]` True for one that takes the teacher's place in the loss.
        temperature: `[students]` of both laws in the loss.
        by_tokens: `[students]` True for one that learns from the tokens alone.
    """

    suffixes: np.ndarray
    own: Array
    swapped: Array
    temperature: np.ndarray
    by_tokens: np.ndarray


def students(config: ConfigDict, point: dict) -> tuple[Students, list[tuple[str, int]]]:
    """Those of all losses and samples, then those of all sizes and kinds of teaching; and by loss
    how many there are.
    """
    samples, many = len(SAMPLES), len(config.losses)
    sizes, taught = len(config.memories), 1 + len(config.temperatures)
    suffixes = _language(config).suffixes.astype(np.int32)
    rows = [
        suffixes[[config.memory] * many * samples],
        suffixes[np.repeat(config.memories, taught)],
    ]
    shares = np.concatenate([np.tile(list(SAMPLES.values()), many), np.zeros(sizes * taught)])
    heats = [np.ones(many * samples), np.tile([1.0, *config.temperatures], sizes)]
    tokens = [np.zeros(many * samples, bool), np.tile(np.arange(taught) == 0, sizes)]
    of = Students(np.concatenate(rows), point["own"] * jnp.asarray(shares, float),
                  (np.arange(len(shares)) < many * samples) & (point["swapped"] > 0),
                  np.concatenate(heats), np.concatenate(tokens))  # fmt: skip
    return of, [*((name, samples) for name in config.losses), ("forward KL", sizes * taught)]


def trained(config: ConfigDict, of: Students, losses: list[tuple[str, int]], key: Array) -> Array:
    """Tables `[students, prefixes, TOKENS]` after training.

    All students have the same given answers, which the teacher wrote, the same first weights and
    the same uniform numbers.
    """
    import optax

    law = jnp.asarray(_teacher(config), of.own.dtype)
    of_data, of_start, of_steps = jax.random.split(key, 3)
    uniform = jax.random.uniform(of_data, (config.answers, config.longest))
    given = drawn(law, jnp.arange(len(law)), uniform)
    start = 0.1 * jax.random.normal(of_start, (1 + of.suffixes.max(), TOKENS))
    start = jnp.broadcast_to(start, (len(of.own), *start.shape))
    rate = optax.cosine_decay_schedule(config.learning_rate, config.steps)
    optimizer = optax.adam(rate, b2=config.decay)
    read = jax.vmap(lambda table, suffixes, prefixes: table[suffixes[prefixes]])
    suffixes = jnp.asarray(of.suffixes)

    def gradient(tables: Array, key: Array) -> Array:
        answers = _batch(config, given, tables, of, key)
        logits, pull = jax.vjp(lambda tables: read(tables, suffixes, answers.prefixes), tables)
        by_logits, start = [], 0
        for name, many in losses:
            here = lambda x, start=start, many=many: x[start : start + many]
            of_here, batch = (type(x)(*map(here, x)) for x in (of, answers))
            by_logits.append(jax.grad(_loss, 1)(name, here(logits), law, of_here, batch))
            start += many
        return pull(jnp.concatenate(by_logits))[0]

    def step(state, key):
        tables, memory = state
        with jax.numpy_dtype_promotion("standard"):  # optax mixes counts with floats
            changes, memory = optimizer.update(gradient(tables, key), memory, tables)
        return (optax.apply_updates(tables, changes), memory), None

    keys = jax.random.split(of_steps, config.steps)
    (tables, _), _ = jax.lax.scan(step, (start, optimizer.init(start)), keys)
    return jax.vmap(lambda table, suffixes: table[suffixes])(tables, suffixes)


def _batch(config: ConfigDict, given: Drawn, tables: Array, of: Students, key: Array) -> Drawn:
    """Answers `[students, batch, longest]`, each the student's own with its share."""
    one, two, three = jax.random.split(key, 3)
    uniform = jax.random.uniform(one, (config.batch, config.longest))
    place = jax.random.randint(two, (config.batch,), 0, config.answers)
    lot = jax.random.uniform(three, (config.batch, 1))

    def of_student(table: Array, suffixes: Array, share: Array) -> Drawn:
        own = drawn(table, suffixes, uniform)
        return jax.tree.map(lambda x, y: jnp.where(lot < share, x, y[place]), own, given)

    return jax.vmap(of_student)(tables, jnp.asarray(of.suffixes), of.own)


def _loss(name: str, logits: Array, law: Array, of: Students, answers: Drawn) -> Array:
    """The sum over students of the mean over tokens of a batch."""
    each = lambda x: jnp.broadcast_to(jnp.asarray(x)[:, None, None], answers.mask.shape)
    heat, swapped = each(of.temperature).astype(logits.dtype), each(of.swapped)[..., None]
    teacher = law[answers.prefixes]
    sides = jnp.where(swapped, teacher, logits), jnp.where(swapped, logits, teacher)
    d = LOSSES[name](*sides, student_temperature=heat, teacher_temperature=heat)
    if of.by_tokens.any():
        chosen = jax.nn.one_hot(answers.tokens, TOKENS, dtype=bool)
        log_p = jnp.sum(jnp.where(chosen, numerics.log_softmax(logits), 0), axis=-1)
        d = jnp.where(each(of.by_tokens), -log_p, d)
    total = jnp.sum(jnp.where(answers.mask, d, 0), axis=(1, 2))
    return jnp.sum(total / jnp.sum(answers.mask, axis=(1, 2), dtype=total.dtype))


def _teacher(config: ConfigDict) -> np.ndarray:
    with jax.ensure_compile_time_eval():  # one for all points
        return teacher(config.width, config.longest, config.sft_steps)


def _language(config: ConfigDict) -> Language:
    with jax.ensure_compile_time_eval():
        return language(config.longest)


# ---------------------------------------------------------------------------------------- the runs


def run(config: ConfigDict, point: dict, key: Array) -> dict[str, Array | Labelled]:
    """Exact numbers of the students of all losses and samples, of those of all sizes, and of the
    teacher.
    """
    of, losses = students(config, point)
    tables = trained(config, of, losses, key)
    law = jnp.asarray(_teacher(config), tables.dtype)[None]
    by_loss = {"loss": config.losses, "samples": tuple(SAMPLES)}
    taught = ("tokens", *map(str, config.temperatures))
    by_size = {"remembered": config.memories, "taught": taught}
    square = lambda x, names: labelled(x.reshape([len(y) for y in names.values()]), **names)
    found = {}
    for name, x in _measured(config, jnp.concatenate([tables, law])).items():
        split = len(config.losses) * len(SAMPLES)
        found[name] = square(x[:split], by_loss)
        found[f"size_{name}"] = square(x[split:-1], by_size)
        found[f"teacher_{name}"] = x[-1]
    return found


def _measured(config: ConfigDict, tables: Array) -> dict[str, Array]:
    """Exact numbers of tables `[models, prefixes, TOKENS]`: quality, and likeness to the teacher.

    "accuracy" and "agreement" are of the most probable token, against the language's next token and
    against the teacher's most probable one, on average over the language's tokens.
    """
    from jdiv.lm import tabular

    known, law = _language(config), jnp.asarray(_teacher(config), tables.dtype)
    log_teacher = tabular.sequence_log_probs(law)
    shares, rouge = (jnp.asarray(x, tables.dtype) for x in (tokens_of_language(known), known.rouge))

    def of_one(table: Array) -> dict[str, Array]:
        log_p = tabular.sequence_log_probs(table)
        p, first = jnp.exp(log_p), jnp.argmax(table, axis=1)
        return {
            "valid": p @ (known.probabilities > 0).astype(p.dtype),
            "rouge": p @ rouge,
            "forward": divergences.reverse_kl(log_p, log_teacher),
            "reverse": divergences.kl(log_p, log_teacher),
            "js": divergences.jensen_shannon(log_p, log_teacher),
            "accuracy": jnp.take_along_axis(shares, first[:, None], axis=1).sum(),
            "agreement": shares.sum(axis=1) @ (first == jnp.argmax(law, axis=1)).astype(p.dtype),
        }

    return jax.vmap(of_one)(tables)


# ----------------------------------------------------------------------------------------- figures


def figures(config: ConfigDict, results: xr.Dataset) -> dict[str, Picture | str]:
    """All losses on all samples, and accuracy against fidelity by size and temperature."""
    only = results.isel(own=0, swapped=0)
    return {"losses": _by_loss(only), "paradox": _by_size(only)}


def _by_loss(only: xr.Dataset) -> Picture:
    figure, plots = panels(3, width=3.9, height=4.6, sharey=True)
    names = {
        "rouge": "ROUGE-L with the language",
        "js": "Jensen-Shannon divergence\nfrom the teacher (nats)",
        "forward": "KL(teacher‖student) (nats)",
    }
    places = np.arange(only.loss.size)[::-1]
    for axis, (name, label) in zip(plots, names.items(), strict=True):
        mean, error = only[name].mean("seed"), _error(only[name])
        for number, samples in enumerate(SAMPLES):
            look = {"color": style(number)["color"], "marker": MARKERS[number], "markersize": 5}
            axis.errorbar(mean.sel(samples=samples), places + 0.2 * (1 - number),
                          xerr=error.sel(samples=samples), linestyle="none", capsize=2,
                          label=f"{samples} answers", **look)  # fmt: skip
        axis.set(xlabel=label)
    plots[1].set_xscale("log")
    ticks(plots[1], x=(0.03, 0.06, 0.12))
    plots[0].set_yticks(places, only.loss.values)
    legend_above(figure, plots[0], columns=3)
    return Picture(
        figure,
        "Students by loss and by whose answers the loss is taken on, mean and standard error over"
        f" {only.seed.size} seeds. Left, to the right is better: forward KL is below what seeks"
        " modes, the two chi2 are worse than all. Middle and right, to the left is closer to the"
        " teacher: answers of its own bring a student closer by any loss, most of it by the first"
        " half; by KL(teacher‖student) forward KL is the closest, which is what it makes small.",
    )


def _by_size(only: xr.Dataset) -> Picture:
    figure, plots = panels(2, width=4.4, height=4.2)
    for number, size in enumerate(only.remembered.values):
        here = only.sel(remembered=size).mean("seed")
        look = style(number)
        for axis, name in zip(plots, ("size_agreement", "size_forward"), strict=True):
            hot = here.isel(taught=slice(1, None))
            axis.plot(hot[name], hot.size_valid, **look, marker="o", markersize=5,
                      label=f"remembers {size} token{'s' if size != 1 else ''}")  # fmt: skip
            axis.plot(here[name][0], here.size_valid[0], "X", color=look["color"], markersize=8,
                      label="by tokens alone" if size == only.remembered[-1] else None)  # fmt: skip
            for at in (0, -1):
                axis.annotate(f" {hot.taught.values[at]}", (hot[name][at], hot.size_valid[at]))
    plots[0].set(xlabel="agreement with the teacher's most probable token",
                 ylabel="share of answers in the language")  # fmt: skip
    plots[1].set(xlabel="KL(teacher‖student) (nats)", xscale="log")
    ticks(plots[1], x=(0.3, 1, 3))
    legend_above(figure, plots[0], columns=4)
    return Picture(
        figure,
        "Students by forward KL on given answers, at temperatures from .5 to 4 (numbers at the"
        " ends) of both laws. A higher temperature makes answers better; from 1 on also students"
        " less like their teacher: right, the KL rises; left, the agreement falls if they remember"
        " something. Crosses are students that learnt from the tokens of the same answers alone.",
    )


def _error(draws: xr.DataArray) -> xr.DataArray:
    """The standard error of the mean over seeds."""
    return draws.std("seed", ddof=1) / draws.sizes["seed"] ** 0.5


# ------------------------------------------------------------------------------------------ claims

POCL = "POCL's table, GPT2-1.5B to .1B, mean ROUGE-L of five sets, by way of a note on it"
GKD = "GKD (Agarwal et al. 2023, arXiv:2306.13649), by way of a note on it: gains over KD"
RAMESH = "the generalization-fidelity paradox, abstract: 10 % and more for small models"
ORDER = "; the order is the claim, the bound is chosen here"
HELD = ("reverse KL", "Jensen-Shannon", "total variation", "skew forward KL", "skew reverse KL")
SIX = ["forward KL", *HELD]
FEW = {"losses": tuple(SIX), "sweep.seed": (0, 1, 2, 3)}
SWAPPED = {"sweep.swapped": (1.0,), **FEW}
GIVEN = {"sweep.own": (0.0,), **FEW}


def _in_errors(gain: xr.DataArray) -> xr.DataArray:
    """A mean over seeds in its standard errors; 0 for gains that are all 0."""
    error = _error(gain)
    return (gain.mean("seed") / error.where(error > 0)).fillna(0)


@claim(
    source=f"{POCL}{ORDER}",
    published=(18.10, 19.44, 19.44, 20.67, 19.91, 21.44),
    reruns=(SWAPPED,),
)
def forward_kl_is_below_the_others(results: xr.Dataset) -> Finding:
    """On mixed and on own answers reverse KL, Jensen-Shannon, total variation and both skews leave
    a student with a higher expected ROUGE-L than forward KL: gains in their standard errors over
    seeds, all two or more. On given answers they are higher too, but the errors are larger. Beside
    them the published scores, of forward KL first."""
    rouge = results.rouge.sel(samples=["mixed", "own"]).isel(own=0, swapped=0)
    return at_least(2, _in_errors(rouge.sel(loss=list(HELD)) - rouge.sel(loss="forward KL")))


@claim(source=f"{GKD}{ORDER}", published=(2.1, 1.7, 1.9), reruns=(GIVEN,))
def own_answers_above_mixed_above_given(results: xr.Dataset) -> Finding:
    """KL(student‖teacher) over whole answers, on average over six losses, is less with a half of
    the student's own answers than with none, and less with own ones alone than with a half: both
    falls in their standard errors, two or more."""
    kl = results.reverse.sel(loss=SIX).mean("loss").isel(own=0, swapped=0)
    given, mixed, own = (kl.sel(samples=name, drop=True) for name in SAMPLES)
    return at_least(2, [_in_errors(given - mixed), _in_errors(mixed - own)])


@claim(
    source=f"{POCL}: sequence KD 17.11, KL 18.10; the bound is chosen here",
    wrong=({"name": "size_rouge"},),
)
def laws_are_more_faithful_than_tokens(results: xr.Dataset, name: str = "size_forward") -> Finding:
    """From the tokens of the teacher's answers alone students that remember one or two tokens end
    at 1.3 times the KL(teacher‖student) or more that its laws of the same tokens leave, by forward
    KL; both ratios. In ROUGE-L, which was published, there is no such difference."""
    mean = results[name].sel(remembered=[1, 2]).isel(own=0, swapped=0).mean("seed")
    return at_least(1.3, mean.sel(taught="tokens") / mean.sel(taught="1.0"))


@claim(source=f"{RAMESH}; of temperatures only, the bound is chosen here",
       wrong=({"cold": "0.5", "hot": "1.0"},))  # fmt: skip
def accuracy_up_and_fidelity_down(
    results: xr.Dataset, cold: str = "1.0", hot: str = "4.0"
) -> Finding:
    """At temperature 4 in place of 1 more answers are in the language, and KL(teacher‖student) is
    larger, on average over students that remember one and two tokens: both rises in their standard
    errors, two or more. From .5 to 1 the KL falls."""
    only = results.sel(remembered=[1, 2]).isel(own=0, swapped=0).mean("remembered")
    rises = [
        only[x].sel(taught=hot) - only[x].sel(taught=cold) for x in ("size_valid", "size_forward")
    ]
    return at_least(2, [_in_errors(x) for x in rises])
