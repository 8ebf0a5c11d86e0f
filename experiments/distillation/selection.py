"""Which data to distil on: MiniPLM's difference, DSIR's importance resampling, LLKD's selection.

Three toys, all of discrete laws. MiniPLM: a corpus of a language that the teacher knows (a Markov
chain), of its words without its grammar, and of noise; a student counts pairs in the half that was
kept. DSIR: a corpus of short documents of two topics is resampled towards a target of the rarer
one. LLKD: a student learns from the labels of a noisy teacher, of samples that were chosen.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jax import Array
from ml_collections import ConfigDict

from experiments.lab import axes
from experiments.lab.axes import count, fraction, non_negative, one_of, positive, seeds
from experiments.lab.claims import Finding, at_least, at_most, claim
from experiments.lab.plots import COLORS, Picture, panels
from experiments.lab.results import Labelled, labelled
from jdiv import divergences as dv
from jdiv.distillation import adaptive, selection

if TYPE_CHECKING:
    from matplotlib.figure import Figure

AXES = {"seed": seeds}
FIELDS = {
    "words": axes.at_least(2),
    "length": axes.at_least(2),
    "documents": axes.at_least(6),
    "score": one_of(("difference", "quotient")),
    "buckets": axes.at_least(2),
    "kept": count,
    "noise": non_negative,
    "sentence": axes.at_least(2),
    "found": fraction,
    "towards": one_of(("target", "raw")),
    "pool": axes.at_least(8),
    "steps": count,
    "step_size": positive,
    "flipped": fraction,
    "uncertain": one_of(("student", "nobody")),
}
CHOICES = ("difference", "teacher alone", "random")
WRONG = {"score": "quotient", "towards": "raw", "noise": 0.0, "uncertain": "nobody"}
"""The wrong way of each toy, in one run: they do not touch each other."""
DRAWN = ("resampled", "largest weights", "random", "target")
LEARNERS = ("LLKD", "random", "all")

# ---------------------------------------------------------------------------------- of MiniPLM


def chain(key: Array, words: int) -> Array:
    """`log p(next | word)`, `[words, words]`, far from independent."""
    return jax.nn.log_softmax(2 * jax.random.normal(key, (words, words)))


def stationary(log_p: Array) -> Array:
    """The law of a word anywhere in the chain, by a long walk."""
    power = jnp.exp(log_p)
    for _ in range(6):
        power = power @ power
    return power[0]


def corpus(config: ConfigDict, key: Array, log_p: Array, law: Array) -> Array:
    """Documents `[documents, length]`: a half of the chain, then its words, then noise."""
    of_start, of_chain, of_words, of_noise = jax.random.split(key, 4)
    shape = config.documents, config.length
    first = jax.random.categorical(of_start, jnp.log(law), shape=shape[:1])

    def step(word: Array, key: Array) -> tuple[Array, Array]:
        return jax.random.categorical(key, log_p[word]), word

    walk = jax.lax.scan(step, first, jax.random.split(of_chain, config.length))[1].T
    words = jax.random.categorical(of_words, jnp.log(law), shape=shape)
    noise = jax.random.randint(of_noise, shape, 0, config.words, walk.dtype)
    kind = jnp.arange(config.documents)[:, None] * 4 // config.documents
    return jnp.where(kind < 2, walk, jnp.where(kind < 3, words.astype(walk.dtype), noise))


def pairs(config: ConfigDict, tokens: Array, kept: Array) -> Array:
    """How often each word follows each in the kept documents, `[words, words]`."""
    at = tokens[:, :-1] * config.words + tokens[:, 1:]
    weight = jnp.broadcast_to(kept[:, None], at.shape).astype(jnp.result_type(float))
    flat = jax.ops.segment_sum(weight.ravel(), at.ravel(), config.words**2)
    return flat.reshape(config.words, config.words)


def of_difference(config: ConfigDict, key: Array) -> dict[str, Labelled]:
    """The student's KL from the chain, by word, and how much of the chain was kept, by choice."""
    of_chain, of_corpus, of_choice = jax.random.split(key, 3)
    log_p = chain(of_chain, config.words)
    law = stationary(log_p)
    tokens = corpus(config, of_corpus, log_p, law)
    teacher = jnp.log(law)[tokens[:, 0]] + log_p[tokens[:, :-1], tokens[:, 1:]].sum(axis=1)
    small = jnp.log(law)[tokens].sum(axis=1)
    by_difference = selection.difference(teacher, small)
    scores = {
        "difference": by_difference if config.score == "difference" else teacher / small,
        "teacher alone": teacher,
        "random": jax.random.uniform(of_choice, teacher.shape),
    }
    kl, share = [], []
    for name in CHOICES:
        kept = selection.largest(scores[name], share=0.5)
        student = jnp.log(pairs(config, tokens, kept) + 1)
        kl.append(law @ dv.kl(log_p, student))
        good = jnp.arange(config.documents) < config.documents // 2
        share.append(jnp.sum(kept & good) / jnp.sum(kept))
    return {
        "excess": labelled(jnp.stack(kl), choice=CHOICES),
        "good": labelled(jnp.stack(share), choice=CHOICES),
    }


# ------------------------------------------------------------------------------------- of DSIR


def documents(config: ConfigDict, key: Array, topics: Array, share: float) -> Array:
    """Documents `[documents, sentence]`: that share of the first topic, the rest of the second."""
    of_topic, of_word = jax.random.split(key)
    shape = config.documents, config.sentence
    first = jax.random.uniform(of_topic, (config.documents, 1)) < share
    words = jax.random.categorical(of_word, topics[:, None, None, :], shape=(2, *shape))
    return jnp.where(first, words[0], words[1])


def of_resampling(config: ConfigDict, key: Array) -> dict[str, Labelled]:
    """KL(target‖selected) and the entropy of the selected corpus, over hashed n-grams."""
    of_topics, of_raw, of_target, of_draw, of_random = jax.random.split(key, 5)
    topics = jax.nn.log_softmax(jax.random.normal(of_topics, (2, config.words)))
    counted = lambda key, share: selection.hashed_counts(
        documents(config, key, topics, share),
        jnp.ones((config.documents, config.sentence), bool),
        config.buckets,
    )
    raw, target = counted(of_raw, config.found), counted(of_target, 1.0)
    log_raw, log_target = (selection.bucket_law(x, smoothing=1.0) for x in (raw, target))
    sides = (log_target, log_raw) if config.towards == "target" else (log_raw, log_target)
    weights = selection.log_importance(raw, *sides)
    none = jnp.zeros_like(weights)
    drawn = {
        # Tempered weights with noise of that size are the same draw: 0 is without noise.
        "resampled": selection.resample(
            weights / config.noise if config.noise else weights * 1e6, config.kept, of_draw
        ),
        "largest weights": jax.lax.top_k(weights, config.kept)[1],
        "random": selection.resample(none, config.kept, of_random),
    }
    laws = [selection.bucket_law(raw[drawn[name]], smoothing=1.0) for name in DRAWN[:-1]]
    laws = jnp.stack([*laws, log_target])
    reduction = selection.kl_reduction(laws, jnp.broadcast_to(log_raw[None], laws.shape),
                                       jnp.broadcast_to(log_target[None], laws.shape))  # fmt: skip
    return {
        "reduction": labelled(reduction, drawn=DRAWN),
        "entropy": labelled(-jnp.sum(jnp.exp(laws) * laws, axis=-1), drawn=DRAWN),
        "raw_kl": dv.kl(log_target, log_raw),
    }


# ------------------------------------------------------------------------------------- of LLKD


def of_learning(config: ConfigDict, key: Array) -> dict[str, Labelled]:
    """Accuracy of a linear student by how its samples were chosen, and how many it was taught.

    Each step draws a fresh pool from three blobs. The teacher knows the blobs, but its answer is
    flipped to another class the more often the less sure it is.
    """
    angles = 2 * np.pi * np.arange(3) / 3
    centers = jnp.asarray(1.5 * np.stack([np.cos(angles), np.sin(angles)], axis=1))

    def pool(key: Array) -> tuple[Array, Array, Array]:
        of_label, of_x, of_flip, of_other = jax.random.split(key, 4)
        labels = jax.random.randint(of_label, (config.pool,), 0, 3)
        x = centers[labels] + jax.random.normal(of_x, (config.pool, 2))
        logits = x @ centers.T
        doubt = 1 - jnp.max(jax.nn.softmax(logits), axis=-1)
        flip = jax.random.uniform(of_flip, doubt.shape) < config.flipped * 2 * doubt
        turned = jnp.where(jax.random.bernoulli(of_other, 0.5, doubt.shape)[:, None],
                           jnp.roll(logits, 1, axis=1), jnp.roll(logits, 2, axis=1))  # fmt: skip
        return x, labels, jnp.where(flip[:, None], turned, logits)

    def step(state: tuple, key: Array) -> tuple[tuple, None]:
        weights, taught = state
        of_pool, of_random = jax.random.split(key)
        x, _, teacher = pool(of_pool)

        def loss(weights: Array) -> tuple[Array, Array]:
            features = jnp.concatenate([x, jnp.ones_like(x[:, :1])], axis=1)
            student = jnp.einsum("bf,lfn->lbn", features, weights)
            seen = student[0] if config.uncertain == "student" else jnp.zeros_like(teacher)
            chosen = adaptive.llkd_selection(seen, teacher)
            keep, target = chosen.keep, jnp.argmax(teacher, axis=-1)
            number = jnp.sum(keep)
            order = jnp.argsort(jax.random.uniform(of_random, keep.shape))
            some = jnp.zeros_like(keep).at[order].set(jnp.arange(config.pool) < number)
            masks = jnp.stack([keep, some, jnp.ones_like(keep)]).astype(x.dtype)
            at = jax.nn.log_softmax(student)[:, jnp.arange(config.pool), target]
            own = -at * masks / jnp.maximum(jnp.sum(masks, axis=1, keepdims=True), 1)
            own = own.at[0].set(
                adaptive.llkd(student[0], teacher) / jnp.maximum(number, 1).astype(x.dtype)
                if config.uncertain == "student" else own[0]
            )  # fmt: skip
            return jnp.sum(own), jnp.sum(masks, axis=1)

        gradient, number = jax.grad(loss, has_aux=True)(weights)
        return (weights - config.step_size * gradient, taught + number), None

    of_steps, of_test = jax.random.split(key)
    start = jnp.zeros((3, 3, 3)), jnp.zeros(3)
    (weights, taught), _ = jax.lax.scan(step, start, jax.random.split(of_steps, config.steps))
    x, labels, _ = jax.vmap(pool)(jax.random.split(of_test, 50))
    features = jnp.concatenate([x, jnp.ones_like(x[..., :1])], axis=-1)
    said = jnp.argmax(jnp.einsum("kbf,lfn->lkbn", features, weights), axis=-1)
    accuracy = jnp.mean((said == labels[None]).astype(x.dtype), axis=(1, 2))
    return {
        "accuracy": labelled(accuracy, learner=LEARNERS),
        "taught": labelled(taught, learner=LEARNERS),
    }


def run(config: ConfigDict, point: dict, key: Array) -> dict[str, Array | Labelled]:
    """The three toys."""
    keys = jax.random.split(key, 3)
    return {
        **of_difference(config, keys[0]),
        **of_resampling(config, keys[1]),
        **of_learning(config, keys[2]),
    }


# ------------------------------------------------------------------------------------- figures


def figures(config: ConfigDict, results: xr.Dataset) -> dict[str, Picture | str]:
    """What each choice comes to."""
    return {
        "selection": Picture(
            _selection(results),
            f"Means over {results.sizes['seed']} seeds, bars one standard deviation. Left: a"
            " student that counts pairs of words in the half that MiniPLM's difference keeps is"
            " nearer to the language than one of any half. Middle: corpora by how DSIR's weights"
            " are used; dotted is the target. Right: accuracy of a student by whom it was taught,"
            " with the number of labels used.",
        )
    }


def _bars(axis, values: xr.DataArray, by: str) -> None:
    """A bar for each label, of the mean and deviation over seeds."""
    names = [str(name) for name in values[by].values]
    axis.bar(range(len(names)), values.mean("seed"), yerr=values.std("seed"),
             color=[COLORS[i] for i in range(len(names))], capsize=3)  # fmt: skip
    axis.set_xticks(range(len(names)), [name.replace(" ", "\n") for name in names])


def _selection(results: xr.Dataset) -> Figure:
    figure, plots = panels(3, width=3.6, height=3.6)
    _bars(plots[0], results.excess, "choice")
    plots[0].set(ylabel="KL(language‖student), nats a word")
    _bars(plots[1], results.entropy.isel(drawn=slice(3)), "drawn")
    plots[1].axhline(results.entropy.sel(drawn="target").mean(), color="black", ls=":")
    low = float(results.entropy.min())
    plots[1].set(ylabel="entropy of hashed n-grams, nats", ylim=(low - 0.05, None))
    _bars(plots[2], results.accuracy, "learner")
    low = float(results.accuracy.min())
    plots[2].set(ylabel="accuracy", ylim=(max(low - 0.05, 0), 1))
    number = results.taught.mean("seed").values
    plots[2].set_xticks(range(3), [f"{name}\n{n:.0f} labels" for name, n
                                   in zip(LEARNERS, number, strict=True)])  # fmt: skip
    return figure


# ------------------------------------------------------------------------------------------ claims


def _paired(difference: xr.DataArray) -> tuple[float, float]:
    """A mean over seeds and four of its standard errors."""
    return difference.mean("seed").item(), 4 * (difference.std("seed", ddof=1).item()
                                                / np.sqrt(difference.sizes["seed"]))  # fmt: skip


MINIPLM = "Gu et al. 2025 (MiniPLM, arXiv:2410.17215); no number is published for a toy"
DSIR = "Xie et al. 2023 (DSIR, arXiv:2302.03169); no number is published for a toy"


@claim(source=MINIPLM, reruns=(WRONG,))
def the_difference_keeps_what_a_small_model_does_not_know(results: xr.Dataset) -> Finding:
    """At least .95 of the half with the largest log p_teacher - log p_ref is of the language, which
    is half of the corpus: smallest share. The quotient of the two, as printed in the code's
    description, keeps what is noise to the teacher."""
    return at_least(0.95, results.good.sel(choice="difference").min())


@claim(source=MINIPLM, reruns=(WRONG,))
def the_difference_teaches_more_than_a_random_half(results: xr.Dataset) -> Finding:
    """The KL of the language from a student that counts pairs in a random half, less that with the
    half of largest differences: more than 0 by four standard errors. Mean, less the four."""
    kl = results.excess
    mean, errors = _paired(kl.sel(choice="random") - kl.sel(choice="difference"))
    return at_least(0, mean - errors)


@claim(source=DSIR, reruns=(WRONG,), wrong=({"drawn": "random"},))
def resampling_comes_to_the_target(results: xr.Dataset, drawn: str = "resampled") -> Finding:
    """Of KL(target‖raw) resampling with Gumbel noise removes at least half: mean over seeds of the
    reduction over that of the KL."""
    share = results.reduction.sel(drawn=drawn).mean("seed") / results.raw_kl.mean("seed")
    return at_least(0.5, share)


@claim(source=DSIR, reruns=(WRONG,), wrong=({"drawn": "random"},))
def without_noise_the_corpus_is_narrower(
    results: xr.Dataset, drawn: str = "largest weights"
) -> Finding:
    """The corpus of the largest weights has less entropy than that resampled with Gumbel noise: the
    median of the gap over seeds, for a few gaps are ten times the others."""
    gap = results.entropy.sel(drawn="resampled") - results.entropy.sel(drawn=drawn)
    return at_least(0.002, gap.median("seed"))


@claim(
    source="Li et al. 2024 (LLKD, arXiv:2411.08028); no number is published for a toy",
    reruns=(WRONG,),
)
def llkd_uses_few_labels(results: xr.Dataset) -> Finding:
    """LLKD teaches on less than .3 of the samples, and its student is at most .02 less accurate
    than one taught on all: share of labels, and loss of accuracy, means over seeds."""
    taught, accuracy = results.taught.mean("seed"), results.accuracy.mean("seed")
    share = taught.sel(learner="LLKD") / taught.sel(learner="all")
    loss = accuracy.sel(learner="all") - accuracy.sel(learner="LLKD")
    return at_most((0.3, 0.02), (share, loss))
