"""Which divergence brings a language model to the frontier of reward and KL, with the truth beside.

A small transformer is trained on a grammar of brackets, and is the reference. Its answers are
enumerated (`lm.enumeration`), so the optimum of `E[r] - beta KL(pi‖ref)`, and the most reward that
any KL buys, are known. From the reference each objective goes there by sampled gradients: f-DPG (Go
et al. 2023, arXiv:2302.08215) minimizes D(pi‖optimum) for a row, KL-RL maximizes the objective
itself. The reward is the number of letters b.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jax import Array
from ml_collections import ConfigDict

from experiments.lab import axes
from experiments.lab.axes import count, each, one_of, positive, real, seeds
from experiments.lab.claims import Finding, at_most, claim
from experiments.lab.plots import MARKERS, Picture, legend_above, panels, style
from experiments.lab.results import Labelled, labelled
from jdiv import divergences, generators
from jdiv.alignment import best_of_n, f_dpg, tilts
from jdiv.policy import advantages

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from jdiv.lm import Config

AXES = {"sign": real, "beta": positive, "seed": seeds}
FIELDS = {
    "objectives": each(one_of(("kl_rl", *generators.TABLE))),
    "steps": count,
    "answers": axes.at_least(2),
    "learning_rate": positive,
    "decay": axes.fraction,
    "longest": axes.at_least(2),
    "width": count,
    "sft_steps": count,
}
GO = "Go et al. 2023 (arXiv:2302.08215), theorem 1"
END, B = 6, 5
BETAS = tuple(np.geomspace(0.1, 10, 25))
"""Of the frontier's line."""
DRAWS = (1, 2, 4, 8, 16)
PASSES = 4
"""One of so many answers has two letters b or more: pass@4."""
WRONG = {"sweep.sign": (-1.0,), "sweep.beta": (0.5,)}


# -------------------------------------------------------------------------------------- the models


@functools.cache
def reference(
    width: int, longest: int, steps: int
) -> tuple[Config, dict[str, np.ndarray], np.ndarray]:
    """A transformer that learnt the grammar from samples, a fresh batch at each step: config,
    tensors and law, in NumPy because the programs of any number of devices take them.
    """
    import optax

    from jdiv import lm
    from jdiv.lm import data, train

    shape = {"width": width, "layers": 1, "heads": 2, "key_heads": 1, "head_width": width // 2}
    config = lm.Config(vocabulary=END + 1, hidden=2 * width, **shape)
    grammar, optimizer = data.brackets(), optax.adam(0.02)

    def step(state, key):
        text = data.sample(grammar, key, count=64, max_tokens=longest)
        begun = lambda x, first: jnp.concatenate([jnp.full((64, 1), first, x.dtype), x], axis=1)
        batch = train.Text(begun(text.tokens, END), begun(text.mask, False))
        return train.update(state, batch, train.sft, config=config, optimizer=optimizer)

    @jax.jit
    def trained(key):
        model = lm.Transformer.random(config, key, float)
        keys = jax.random.split(jax.random.key(1), steps)
        tensors = jax.lax.scan(step, train.begin(model, optimizer), keys)[0].tensors
        return tensors, law(config, longest, tensors)

    return config, *jax.tree.map(np.asarray, trained(jax.random.key(0)))


def law(shape: Config, longest: int, tensors: dict[str, Array]) -> Array:
    """Log-probabilities `[answers]` of all answers of a model."""
    from jdiv.lm import enumeration, tabular
    from jdiv.lm.model import Transformer

    model = Transformer(shape, tensors)
    table = enumeration.table(model, jnp.array([END]), longest=longest, end=END)
    return tabular.sequence_log_probs(table)


def run(config: ConfigDict, point: dict, key: Array) -> dict[str, Array | Labelled]:
    """Trains a model by each objective from the reference; measures by enumeration where it ends.

    The laws of all models are made together, `[objectives, answers]`, and a loss reads its own.
    """
    import optax

    from jdiv.lm import enumeration, tabular

    with jax.ensure_compile_time_eval():  # one reference for all points
        shape, ref, log_ref = reference(config.width, config.longest, config.sft_steps)
    answers = enumeration.answers(tabular.table_shape(config.longest, END + 1), end=END)
    rewards = (answers.tokens == B).sum(axis=1).astype(float)

    many = len(config.objectives)
    laws = jax.vmap(functools.partial(law, shape, config.longest))
    start, before = jax.tree.map(lambda x: jnp.stack([jnp.asarray(x)] * many), (ref, log_ref))
    log_ref = jnp.asarray(log_ref)
    target = tilts.tilted(rewards, log_ref, point["beta"], generator=generators.kl()).log_policy
    rate = optax.cosine_decay_schedule(config.learning_rate, config.steps)
    optimizer = optax.adam(rate, b2=config.decay)

    def loss(tensors, key):
        log_p = laws(tensors)
        drawn = _drawn(log_p, config.answers, key)
        ours = jnp.take_along_axis(log_p, drawn, axis=1)
        # The wrong sign turns the target around the policy.
        apart = point["sign"] * (target[drawn] - jax.lax.stop_gradient(ours))
        losses = map(functools.partial(_loss, point["beta"]), config.objectives, ours, apart)
        return sum(losses), log_p

    def step(state, key):
        tensors, memory, _ = state
        grads, log_p = jax.grad(loss, has_aux=True)(tensors, key)
        with jax.numpy_dtype_promotion("standard"):  # optax mixes counts with floats
            changes, memory = optimizer.update(grads, memory, tensors)
        return (optax.apply_updates(tensors, changes), memory, log_p), None

    # The rate of one step more is 0: the laws that it begins with are where training ends.
    keys = jax.random.split(key, config.steps)
    keys = jnp.concatenate([keys, keys[:1]])
    (_, _, found), _ = jax.lax.scan(step, (start, optimizer.init(start), before), keys)
    measured = jax.vmap(lambda log_p: _measured(log_p, log_ref, target, rewards))(found)
    each = {name: labelled(x, objective=config.objectives) for name, x in measured.items()}
    return each | _exact(log_ref, rewards)


def _drawn(log_p: Array, count: int, key: Array) -> Array:
    """Answers of each law, `[objectives, count]`, where the cumulated law passes a uniform number.

    Gumbel noise for each answer of all would take most of a step's time.
    """
    cumulated = jnp.cumsum(jnp.exp(jax.lax.stop_gradient(log_p)), axis=1)
    uniform = jax.random.uniform(key, (len(log_p), count)) * cumulated[:, -1:]
    return jax.vmap(jnp.searchsorted)(cumulated, uniform)


def _loss(beta: Array, objective: str, log_p: Array, apart: Array) -> Array:
    """An objective's loss of its own answers; `apart` is `log target - log policy`."""
    fixed = jax.lax.stop_gradient(log_p)
    if objective != "kl_rl":
        row = generators.get(objective)
        paid = f_dpg.pseudo_reward(fixed, fixed + apart, generator=row)
        others = advantages.mean_of_others(paid)
        return f_dpg.dpg_loss(log_p, fixed + apart, fixed, generator=row, baseline=others).mean()
    value = beta * apart  # r - beta log(pi/ref), less a constant
    return -(log_p * (value - advantages.mean_of_others(value))).mean()


def _measured(log_p: Array, log_ref: Array, target: Array, rewards: Array) -> dict[str, Array]:
    """Reward, KL, entropy and pass@k of a law, and how far it is from optimum and frontier."""
    p, kl = jnp.exp(log_p), divergences.kl(log_p, log_ref)
    best = tilts.tilted_to(rewards, log_ref, kl, generator=generators.kl())
    return {
        "reward": p @ rewards,
        "kl": kl,
        "entropy": -jnp.sum(p * log_p),
        "passed": 1 - (1 - p @ (rewards >= 2).astype(float)) ** PASSES,
        "from_optimum": divergences.kl(log_p, target),
        "below_frontier": jnp.exp(best.log_policy) @ rewards - p @ rewards,
    }


def _exact(log_ref: Array, rewards: Array) -> dict[str, Labelled]:
    """KL and reward of the optima for all BETAS, the frontier, and of the best of DRAWS."""
    of_beta = lambda beta: tilts.tilted(rewards, log_ref, beta, generator=generators.kl())
    optima = jax.vmap(lambda beta: of_beta(beta).log_policy)(jnp.asarray(BETAS))
    best = jax.vmap(lambda n: best_of_n.best_of_n(rewards, log_ref, n))(jnp.asarray(DRAWS, float))
    kl = jax.vmap(lambda law: divergences.kl(law, log_ref))
    return {
        "frontier_kl": labelled(kl(optima), line=BETAS),
        "frontier_reward": labelled(jnp.exp(optima) @ rewards, line=BETAS),
        "best_of_n_kl": labelled(kl(best), draws=DRAWS),
        "best_of_n_reward": labelled(jnp.exp(best) @ rewards, draws=DRAWS),
    }


# ----------------------------------------------------------------------------------------- figures


def figures(config: ConfigDict, results: xr.Dataset) -> dict[str, Picture | str]:
    """Reward against KL, and the distance from the optimum."""
    return {
        "frontier": Picture(
            _frontier(results),
            "Left: reward against KL to the reference. No law can be above the line of the exact"
            " optima; crosses are the best of 1 to 16 answers. Right: KL from the model that each"
            " objective trained to the optimum of its beta, mean over seeds; f-DPG but for KL-RL.",
        )
    }


def _frontier(results: xr.Dataset) -> Figure:
    figure, (left, right) = panels(2, height=4.2)
    exact = results.isel(sign=0, seed=0, beta=0)
    left.plot(exact.frontier_kl, exact.frontier_reward, color="black", lw=1, label="frontier")
    left.plot(exact.best_of_n_kl, exact.best_of_n_reward, "x", color="black", label="best of n")
    places = np.arange(results.objective.size)[::-1]
    for number, beta in enumerate(results.beta.values):
        here = results.sel(beta=beta).isel(sign=0)
        look = {"color": style(number)["color"], "marker": MARKERS[number], "linestyle": "none"}
        left.plot(here.kl.values.ravel(), here.reward.values.ravel(), **look,
                  markerfacecolor="none", label=f"beta {beta:g}")  # fmt: skip
        right.plot(here.from_optimum.mean("seed"), places, **look)
    names = ["KL-RL" if name == "kl_rl" else name for name in results.objective.values]
    right.set_yticks(places, names)
    left.set(xlabel="KL(policy‖reference) (nats)", ylabel="reward (letters b per answer)")
    right.set(xlabel="KL(policy‖optimum) (nats)", xscale="log")
    legend_above(figure, left, columns=5)
    return figure


# ------------------------------------------------------------------------------------------ claims


@claim(source=GO, reruns=(WRONG,))
def every_row_reaches_the_optimum(results: xr.Dataset) -> Finding:
    """f-DPG with each row, and KL-RL, end close to the tilted optimum of their beta: the largest
    KL(policy‖optimum). Paid for being improbable under it they end elsewhere."""
    return at_most(0.05, results.from_optimum.max())


@claim(source="Definition of the frontier", reruns=(WRONG,))
def trained_models_are_on_the_frontier(results: xr.Dataset) -> Finding:
    """What the same KL to the reference could buy and did not, as a reward: the largest."""
    return at_most(0.02, abs(results.below_frontier).max())
