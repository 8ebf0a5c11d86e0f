"""Best of n from a language model: the exact law of a pool of answers, the bound, the estimator.

Beirami et al. 2024 (arXiv:2401.01879) for bound and estimator. The pool is half of the answers that
were sampled, and stands for the model: the best of n draws of it has a law that is known. The other
half, in groups of n, is best of n as it is done.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jax import Array
from ml_collections import ConfigDict

from experiments.lab import models
from experiments.lab.axes import count, fraction, labels, one_of, seeds
from experiments.lab.claims import Finding, at_least, at_most, claim, together
from experiments.lab.plots import COLORS, Picture, legend_above, panels, style
from experiments.lab.results import Labelled, labelled
from jdiv import divergences, generators
from jdiv.alignment import best_of_n

AXES = {"seed": seeds}
FIELDS = {
    "model": models.smollm2,
    "generator": one_of(("kl", "reverse_kl")),
    "tie_share": fraction,
    "prompt": labels,
    "answers": count,
    "tokens": count,
}
REWARDS = ("words", "characters")
GROUPED = (1, 2, 4, 8)
BEIRAMI = "Beirami et al. 2024 (arXiv:2401.01879)"


def validate(config: ConfigDict, point: dict) -> None:
    """Refuses pools that are too small."""
    least = 8 * max(config.draws)
    if config.answers < least:
        raise ValueError(f"config.answers must be at least {least}, got {config.answers}")
    if missing := set(GROUPED) - set(config.draws):
        raise ValueError(f"config.draws must have {sorted(missing)}, got {config.draws}")


# ----------------------------------------------------------------------------------------- answers


def rewards_of(prompt: str, text: str) -> tuple[float, float]:
    """How many words are in the lexicon, and how many characters there are."""
    from jdiv.lm import rewards

    return rewards.lexicon(prompt, text), rewards.length(prompt, text)


@functools.cache
def answers(model: str, prompt: str, number: int, tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """Rewards `[rewards, answers]` and log-probabilities `[answers]` of samples of the model."""
    from jdiv import lm

    transformer, tokenizer = models.load(model)
    start, stop = tokenizer.encode(prompt), () if tokenizer.end is None else (tokenizer.end,)
    generate = jax.jit(functools.partial(lm.generate, max_tokens=tokens, stop=stop))
    prompts, parts = np.repeat(np.array([start], np.int32), min(number, 256), axis=0), []
    for key in jax.random.split(jax.random.key(0), -(-number // len(prompts))):
        found = jax.tree.map(np.asarray, generate(transformer, prompts, key))
        rows = [row[here] for row, here in zip(found.tokens, found.mask, strict=True)]
        said = (rewards_of(prompt, tokenizer.decode(row)) for row in rows)
        parts += zip(said, found.model_log_probs.sum(1), strict=True)
    rewards, log_probs = zip(*parts[:number], strict=True)
    return np.array(rewards, float).T, np.array(log_probs, float)


def run(config: ConfigDict, point: dict, key: Array) -> dict[str, Array | Labelled]:
    """Of each reward and n KL, mean reward, win rate, estimate; and best of n as it is done."""
    with jax.ensure_compile_time_eval():  # the answers are no part of the program
        rewards, log_probs = answers(config.model, config.prompt, config.answers, config.tokens)
    half = config.answers // 2
    ref = jnp.full(half, -jnp.log(half))
    draws = jnp.asarray(config.draws, ref.dtype)

    def numbers(rewards: Array, n: Array) -> dict[str, Array]:
        law = best_of_n.best_of_n(rewards, ref, n)
        at = best_of_n.ranks(rewards, ref)
        beaten = jnp.exp(at.log_at_most) - (1 - config.tie_share) * jnp.exp(at.log_tied)
        return {
            "kl": divergences.f_divergence(generators.get(config.generator), law, ref),
            "reward": jnp.exp(law) @ rewards,
            "win": jnp.exp(law) @ beaten,
            "estimate": jnp.exp(law) @ best_of_n.kl_estimate(log_probs[:half], n),
            "subsets": best_of_n.pool_mean(rewards, rewards, n),
        }

    each = {"reward_of": REWARDS, "draws": config.draws}
    pool = jnp.asarray(rewards[:, :half], ref.dtype)
    found = jax.vmap(jax.vmap(numbers, (None, 0)), (0, None))(pool, draws)
    found = {name: labelled(x, **each) for name, x in found.items()}

    others = jax.random.permutation(key, jnp.asarray(rewards[:, half:], ref.dtype), axis=1)
    best = [others[:, : half // n * n].reshape(len(REWARDS), -1, n).max(-1) for n in GROUPED]
    error = lambda x: jnp.std(x, axis=-1, ddof=1) / x.shape[-1] ** 0.5
    groups = {"reward_of": REWARDS, "grouped": GROUPED}
    return found | {
        "done": labelled(jnp.stack([x.mean(-1) for x in best], axis=1), **groups),
        "error": labelled(jnp.stack([error(x) for x in best], axis=1), **groups),
        "bound": labelled(best_of_n.kl_bound(draws), draws=config.draws),
        "deviation": labelled(jnp.std(pool, axis=1), reward_of=REWARDS),
    }


# ----------------------------------------------------------------------------------------- figures


def figures(config: ConfigDict, results: xr.Dataset) -> dict[str, Picture]:
    """KL beside its bound and its estimate, the reward for it, and the win rate."""
    only = results.isel(seed=0)
    figure, plots = panels(3, width=3.4)
    for number, name in enumerate(REWARDS):
        here, look = only.sel(reward_of=name), {**style(number, marker=True), "linestyle": "-"}
        plots[0].plot(here.draws, here.kl, **look, label=f"reward: {name}")
        plots[0].plot(here.draws, here.estimate, "x", color=COLORS[number], markersize=9)
        gain = (here.reward - here.reward.sel(draws=1)) / here.deviation
        plots[1].plot(here.kl, gain, **look)
        plots[2].plot(here.draws, here.win, **look)
    plots[0].plot([], [], "x", color="grey", markersize=9, label="estimator")
    plots[0].plot(only.draws, only.bound, "k:", label="bound log n − (n − 1)/n; n/(n + 1)")
    plots[2].plot(only.draws, only.draws / (only.draws + 1), "k:")
    plots[0].set(xlabel="draws n", ylabel="KL(best of n‖pool), nats")
    plots[1].set(
        xlabel="KL(best of n‖pool), nats",
        ylabel="mean reward above the pool's,\nin its standard deviations",
    )
    plots[2].set(xlabel="draws n", ylabel="win rate over the pool")
    for axis in (plots[0], plots[2]):
        axis.set_xscale("log", base=2)
    legend_above(figure, plots[0], columns=4)
    return {
        "best_of_n": Picture(
            figure,
            "Best of n from a language model by two rewards of the same answers. Left: where"
            " answers tie (words of a lexicon) the divergence is far below the bound, on which the"
            " estimator (crosses) lies for both. Middle: the reward that it buys. Right: the win"
            " rate is n/(n + 1) without ties and less with them.",
        )
    }


# ------------------------------------------------------------------------------------------ claims


@claim(source=BEIRAMI, reruns=({"generator": "reverse_kl"},))
def the_bound_holds(results: xr.Dataset) -> Finding:
    """KL of the best of n is at most log n - (n - 1)/n: the largest difference over both rewards
    and all n."""
    return at_most(1e-12, (results.kl - results.bound).max())


@claim(
    source=f"{BEIRAMI} for the estimator; the sizes of the bounds are chosen here",
    wrong=({"reward": "characters"},),
)
def the_estimator_does_not_know_of_ties(results: xr.Dataset, reward: str = "words") -> Finding:
    """Where answers tie KL is below 0.8 of the bound at n = 2, 4, 8, and the estimator is above
    0.99 of it all the same: largest ratio of KL, smallest of the estimate."""
    here = results.sel(reward_of=reward, draws=list(GROUPED[1:]))
    kl, estimate = here.kl / here.bound, here.estimate / here.bound
    return together(at_most(0.8, kl.max()), at_least(0.99, estimate.min()))


@claim(
    source="The mean quantile of the best of n draws of a continuous law; a tie counts half",
    reruns=({"tie_share": 1.0},),
)
def the_win_rate_has_a_closed_form(results: xr.Dataset) -> Finding:
    """The win rate over the pool is at most n/(n + 1), and without many ties it is that to 0.02:
    largest excess of either reward, largest lack by characters."""
    excess = results.win - results.draws / (results.draws + 1)
    return at_most((1e-12, 0.02), (excess.max(), -excess.sel(reward_of="characters").min()))


@claim(
    source="Nakano et al. 2021, WebGPT (arXiv:2112.09332), for the mean over subsets",
    wrong=({"draws": (2, 4, 8, 16)},),
)
def best_of_n_as_it_is_done(results: xr.Dataset, draws: tuple[int, ...] = GROUPED) -> Finding:
    """The mean reward of the best of n of other answers, in groups of n, is that over all subsets
    of the pool: largest standard score over both rewards and n = 1, 2, 4, 8."""
    expected = results.subsets.sel(draws=list(draws)).rename(draws="grouped")
    expected = expected.assign_coords(grouped=list(GROUPED))
    # The mean over all subsets has no more variance than that over as many groups.
    return at_most(4, (np.abs(results.done - expected) / (np.sqrt(2) * results.error)).max())
