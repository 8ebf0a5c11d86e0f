"""What a KL term does to a real model by where a trainer puts it: to the true KL, and to length.

Answers of SmolLM2 are made of a few words here, so that all of them are enumerated: expected
gradients are exact, in all 135 million parameters, and so are the KL and the length after each step
along them. The policy is the model after a prompt with something before it, the reference the same
model after the prompt alone, as where a context is to be distilled away. There is no reward: only
the penalty that is to bring the policy back.

Placements are those of `policy.kl_terms`. The default of Tunix's GRPO, k1 as a loss averaged over
each sequence, is among them, as it was read in its code and not by running it.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jax import Array
from ml_collections import ConfigDict

from experiments.lab import models
from experiments.lab.axes import at_least as no_less_than
from experiments.lab.axes import count, each, labels, non_negative, one_of, seeds
from experiments.lab.claims import Finding, at_least, at_most, claim
from experiments.lab.plots import Picture, legend_above, panels, style
from experiments.lab.results import Labelled, labelled
from jdiv import estimators
from jdiv.lm import tabular
from jdiv.policy import clipped, kl_terms, tokens

if TYPE_CHECKING:
    from jdiv.lm import Transformer

AXES = {"seed": seeds}
PLACEMENTS = (
    "k1 rewards", "k3 rewards", "k1 token mean", "k3 token mean", "k1 sequence mean",
    "k3 sequence mean", "k3 prefixes", "k2 sequences",
)  # fmt: skip
FIELDS = {
    "model": models.smollm2,
    "prompt": labels,
    "contexts": each(labels),
    "words": each(labels),
    "longest": no_less_than(2),
    "placements": each(one_of(PLACEMENTS)),
    "mean_over": one_of(("length", "longest")),
    "weights": one_of(("prefixes", "tokens")),
    "step_size": non_negative,
    "steps": count,
}
TUNIX = "k1 sequence mean"
FIXED_COUNT = {"mean_over": "longest", "placements": (TUNIX,), "contexts": ("It rained.",)}
"""Means over the longest length there is, the same for every sequence; in one context."""
TOKEN_WEIGHTS = {"weights": "tokens", "placements": ("k1 rewards",)}
"""The weight of a token sees no other one."""


def run(config: ConfigDict, point: dict, key: Array) -> dict[str, Array | Labelled]:
    """KL and length along each descent, and error and size of each placement's gradient."""
    with jax.ensure_compile_time_eval():  # training is no part of the program
        start = at_start(config.model, config.prompt, config.contexts, config.words, config.longest)
        by_length = config.mean_over == "length"
        paths = [
            [descent(start, number, name, by_length, config.step_size, config.steps)
             for name in config.placements]
            for number in range(len(config.contexts))
        ]  # fmt: skip
    paths, policies, ref = (
        jnp.asarray(np.array(x), float) for x in (paths, start.logits, start.ref_logits)
    )
    placed = functools.partial(losses, by_length=by_length, weights=config.weights)
    gradients = jax.vmap(jax.jacrev(placed), (0, None))(policies, ref)
    right = jax.vmap(jax.grad(tabular.kl), (0, None))(policies, ref)[:, None]
    norm = lambda x: jnp.sqrt(jnp.sum(x**2, axis=(-2, -1)))
    along = lambda f: jax.vmap(jax.vmap(jax.vmap(f)))(paths)
    steps = {"placement": config.placements, "step": range(config.steps + 1)}
    terms = {"context": config.contexts, "term": PLACEMENTS}
    return {
        "length": labelled(along(tabular.mean_length), context=config.contexts, **steps),
        "kl": labelled(along(lambda x: tabular.kl(x, ref)), context=config.contexts, **steps),
        "error": labelled(norm(gradients - right) / norm(right), **terms),
        "size": labelled(norm(gradients) / norm(right), **terms),
    }


# ---------------------------------------------------------------------------------- the placements


def losses(logits: Array, ref_logits: Array, *, by_length: Array, weights: str) -> Array:
    """Expected penalty `[placement]`; its gradient is that with the answers held fixed."""
    log_p, ref = tabular.token_log_probs(logits), tabular.token_log_probs(ref_logits)
    sequences = tabular.enumerate_sequences(logits.shape)
    mask, longest = sequences.mask, sequences.mask.shape[1]
    lengths = jnp.asarray(sequences.lengths, log_p.dtype)
    old = jax.lax.stop_gradient(log_p)
    law = jnp.exp(old.sum(1))
    count = jnp.where(by_length, lengths, longest)
    log_weight = {
        "prefixes": kl_terms.prefix_log_ratio, "tokens": kl_terms.token_log_ratio,
    }[weights]  # fmt: skip
    k1, k3 = estimators.kl_k1, estimators.kl_k3

    def in_rewards(k: kl_terms.Estimator) -> Array:
        rewards = kl_terms.kl_rewards(
            log_p, ref, jnp.zeros_like(law), mask, coefficient=1.0, estimator=k
        )
        return clipped.reinforce(log_p, tokens.to_go(rewards, mask), mask).loss.sum(1)

    in_loss = lambda k: kl_terms.kl_penalty(log_p, ref, mask, estimator=k).sum(1)
    prefixes = kl_terms.kl_penalty(
        log_p, ref, mask, estimator=k3, old_log_probs=old, log_weight=log_weight
    )
    penalties = {
        "k1 rewards": in_rewards(k1),
        "k3 rewards": in_rewards(k3),
        "k1 token mean": in_loss(k1) / (law @ lengths),
        "k3 token mean": in_loss(k3) / (law @ lengths),
        "k1 sequence mean": in_loss(k1) / count,
        "k3 sequence mean": in_loss(k3) / count,
        "k3 prefixes": prefixes.sum(1),
        "k2 sequences": kl_terms.sequence_kl_penalty(log_p, ref, mask),
    }
    return jnp.stack([penalties[name] @ law for name in PLACEMENTS])


# --------------------------------------------------------------------------------------- the model


class Start(NamedTuple):
    """Policies before the first step, one for each context, and the reference of all.

    Fields:
        model: The transformer.
        prompts: For each context the tokens that the policy writes after.
        choices: `[n]` the tokens answers are made of, the end last.
        logits: `[context, prefixes, n]` of the policies.
        ref_logits: `[prefixes, n]`
        longest: Tokens of an answer at most.
    """

    model: Transformer
    prompts: tuple[np.ndarray, ...]
    choices: np.ndarray
    logits: np.ndarray
    ref_logits: Array
    longest: int

    __hash__ = object.__hash__  # the same object is the same start


@functools.lru_cache(maxsize=1)
def loaded(model: str):
    """The model and its tokenizer, which take ten seconds."""
    return models.load(model, spread=1 / 3, seed=1)


@functools.lru_cache(maxsize=2)
def at_start(
    model: str, prompt: str, contexts: tuple[str, ...], words: tuple[str, ...], longest: int
) -> Start:
    """The model after the prompt, with each context before it and without."""
    transformer, tokenizer = loaded(model)
    if model != models.RANDOM:
        ids = lambda text: np.array(tokenizer.encode(text), np.int32)
        choices = np.concatenate([ids(word) for word in words])
        if len(choices) != len(words):
            raise ValueError(f"config.words must be single tokens, got {words}")
        prompts, alone = tuple(ids(f"{text} {prompt}") for text in contexts), ids(prompt)
    else:
        choices = np.arange(len(words), dtype=np.int32)
        prompts = tuple(np.array([5 + i, 6, 7], np.int32) for i in range(len(contexts)))
        alone = np.array([6, 7], np.int32)
    table = lambda text: _table(transformer, text, choices, longest=longest)
    logits = np.array([*map(table, prompts)])
    return Start(transformer, prompts, choices, logits, table(alone), longest)


@functools.partial(jax.jit, static_argnames="longest")
def _table(model: Transformer, prompt: Array, choices: Array, *, longest: int) -> Array:
    from jdiv.lm import enumeration

    return enumeration.table_among(model, prompt, indices=choices, longest=longest)


@functools.cache
def descent(
    start: Start, number: int, name: str, by_length: bool, step_size: float, steps: int
) -> np.ndarray:
    """`[steps + 1, prefixes, n]` logits along a placement's expected gradient, in one context."""
    which = np.eye(len(PLACEMENTS))[PLACEMENTS.index(name)]
    model, prompt, longest, found = start.model, start.prompts[number], start.longest, []
    for _ in range(steps):
        model, before = _stepped(
            model, prompt, start.choices, start.ref_logits, which, by_length, step_size,
            longest=longest,
        )  # fmt: skip
        found.append(before)
    return np.array([*found, _table(model, prompt, start.choices, longest=longest)])


@functools.partial(jax.jit, static_argnames="longest")
def _stepped(
    model: Transformer, prompt: Array, choices: Array, ref_logits: Array, which: Array, by_length,
    step_size, *, longest: int,
) -> tuple[Transformer, Array]:  # fmt: skip
    """The model after one step, and its logits before it."""
    logits, pull = jax.vjp(
        lambda model: _table(model, prompt, choices, longest=longest).astype(float), model
    )
    ref = ref_logits.astype(float)
    loss = lambda logits: losses(logits, ref, by_length=by_length, weights="prefixes") @ which
    (gradient,) = pull(jax.grad(loss)(logits))
    step = lambda x, d: x - jnp.asarray(step_size, x.dtype) * d
    return jax.tree.map(step, model, gradient), logits


# ----------------------------------------------------------------------------------------- figures


def figures(config: ConfigDict, results: xr.Dataset) -> dict[str, Picture]:
    """Where each placement leads."""
    only = results.isel(seed=0)
    figure, plots = panels(results.sizes["context"], width=4, height=4.2, sharey=True)
    for axis, context in zip(np.atleast_1d(plots), config.contexts, strict=True):
        for number, name in enumerate(config.placements):
            here = only.sel(context=context, placement=name)
            axis.plot(here.length, here.kl, label=NAMES[name], **style(number, marker=True))
        start = only.sel(context=context).isel(placement=0, step=0)
        axis.plot(start.length, start.kl, "o", color="black", markersize=9, zorder=5)
        axis.set(xlabel="expected length, tokens", title=f"policy reads: {context}")
        axis.set_ylim(bottom=0)
    first = np.atleast_1d(plots)[0]
    first.set(ylabel="KL(policy‖reference), nats")
    legend_above(figure, first, columns=3)
    what = "SmolLM2" if config.model == "smollm2" else "a random transformer"
    return {
        "descents": Picture(
            figure,
            f"Steps of {what} along the expected gradient of one KL term each, from the black dot:"
            " the true KL and the expected length of its answers. The exact term lowers the KL, and"
            " so does k3 in the loss, wrong as its gradient is. k1 as a loss averaged over each"
            " sequence makes answers longer and raises the KL that it is meant to bound.",
        )
    }


NAMES = {
    "k1 rewards": "k1 in the rewards (exact)",
    "k3 rewards": "k3 in the rewards",
    "k1 token mean": "k1 in the loss, mean over tokens",
    "k3 token mean": "k3 in the loss, mean over tokens",
    "k1 sequence mean": "k1 in the loss, mean over each sequence",
    "k3 sequence mean": "k3 in the loss, mean over each sequence",
    "k3 prefixes": "k3 in the loss, weighted by prefixes (exact)",
    "k2 sequences": "k2 of sequences in the loss (exact)",
}


# ------------------------------------------------------------------------------------------ claims

DEFAULT = (
    "the default of Tunix's GRPO as read, not run: k1 as a loss, averaged over each sequence"
    " (tunix/rl/grpo/grpo_learner.py:105 with algo_core.py:598-625); the bounds are chosen here"
)
COMEDY = "Shah et al. 2025, A Comedy of Estimators (arXiv:2512.21852), by way of a note on it"
EXACT = ("k1 rewards", "k3 prefixes", "k2 sequences")


@claim(
    source="the policy gradient theorem; RPG (arXiv:2505.17508) for the weights",
    reruns=(TOKEN_WEIGHTS,),
    wrong=({"terms": ("k3 token mean",)},),
)
def three_placements_are_exact(results: xr.Dataset, terms: tuple[str, ...] = EXACT) -> Finding:
    """k1 in the rewards, k3 weighted by prefixes and k2 of sequences have the gradient of KL on
    the laws of the model: largest relative error over all contexts."""
    return at_most(1e-10, results.error.sel(term=list(terms)).max())


@claim(source="E[∇ log π] = 0", wrong=({"term": "k1 sequence mean"},))
def k1_averaged_over_tokens_is_nothing(results: xr.Dataset, term: str = "k1 token mean") -> Finding:
    """k1 as a loss averaged over all tokens of a large batch has no gradient: its largest size,
    relative to that of KL, over all contexts."""
    return at_most(1e-10, results["size"].sel(term=term).max())


def _change(results: xr.Dataset, placement: str) -> tuple[xr.DataArray, xr.DataArray]:
    """KL at the end over that at the start, and how much longer answers are, for each context."""
    here = results.sel(placement=placement)
    last, first = here.isel(step=-1), here.isel(step=0)
    return last.kl / first.kl, last.length - first.length


@claim(source=DEFAULT, reruns=(FIXED_COUNT,), wrong=({"placement": "k1 rewards"},))
def the_default_makes_answers_longer_and_kl_larger(
    results: xr.Dataset, placement: str = TUNIX
) -> Finding:
    """Steps along k1 averaged over each sequence raise the KL in every context, to at least 1.1
    times, and the expected length by at least .05 tokens. Divided by the same length for all
    sequences it does nothing. Smallest of each."""
    ratio, longer = _change(results, placement)
    return at_least((1.1, 0.05), (ratio.min(), longer.min()))


@claim(
    source="the definition of KL; the bounds are chosen here",
    wrong=({"placements": ("k3 rewards",)}, {"placements": (TUNIX,)}),
)
def terms_in_the_loss_of_k3_and_exact_ones_bring_it_back(
    results: xr.Dataset,
    placements: tuple[str, ...] = ("k1 rewards", "k3 token mean", "k3 sequence mean"),
) -> Finding:
    """Steps along k1 in the rewards, and along k3 in the loss, wrong as its gradient is, lower the
    KL in every context: largest ratio to the start."""
    return at_most(0.95, max(_change(results, name)[0].max() for name in placements))


@claim(source=f"{COMEDY}: the most biased one; this is not published",
       wrong=({"placement": "k1 rewards"},))  # fmt: skip
def k3_in_the_rewards_does_not_do_what_k1_does(
    results: xr.Dataset, placement: str = "k3 rewards"
) -> Finding:
    """Along k3 in the rewards the KL falls by less than half of what it falls along k1 in the
    rewards in every context, if it does not rise: largest ratio of the changes."""
    fall = lambda name: 1 - _change(results, name)[0]
    return at_most(0.5, (fall(placement) / fall("k1 rewards")).max())
