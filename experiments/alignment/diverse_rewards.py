"""Uncertainty that is made: ensembles of rewards with a nuclear norm, and how small beta may be.

UP-RLHF (arXiv:2401.00243) subtracts the uncertainty of an ensemble of adapters of one reward model,
whose diversity is maximized by a nuclear norm; Coste et al. 2024 (arXiv:2310.02743) have that with
the minimum (WCO) or the variance (UWO) of an ensemble a small KL penalty is enough. Both are of
language models. Here rewards are linear: members share a base and, trained on the same comparisons
of ordinary answers, agree in what it has wrong about strange ones.
"""

import jax
import jax.numpy as jnp
import xarray as xr
from jax import Array
from ml_collections import ConfigDict

from experiments.lab.axes import at_least as from_on
from experiments.lab.axes import count, each, fraction, non_negative, positive, real, seeds
from experiments.lab.claims import Finding, at_least, between, claim
from experiments.lab.plots import Picture, curve, legend_above, panels, pick, style
from experiments.lab.results import Labelled, labelled
from jdiv import divergences, generators
from jdiv.alignment import rewards, tilts

AXES = {"diversity": non_negative, "flipped": fraction, "coefficient": real, "seed": seeds}
FIELDS = {
    "seen": count,
    "silent": count,
    "spread": positive,
    "pairs": count,
    "members": from_on(2),
    "base": non_negative,
    "start": positive,
    "ridge": positive,
    "steps": count,
    "step_size": positive,
    "pool": count,
    "strange": fraction,
    "betas": each(positive),
}
MODELS = {
    "one": "one member",
    "mean": "mean",
    "wco": "minimum, WCO",
    "uwo": "less the variance, UWO",
    "deviation": "less the deviation",
    "true": "true reward",
}

UP_RLHF, COSTE = "UP-RLHF (arXiv:2401.00243), abstract", "Coste et al. 2024 (arXiv:2310.02743)"
PENALIZED = ("uwo", "deviation")
NOTHING_OFF = {"sweep.coefficient": (0.0,)}


def run(config: ConfigDict, point: dict, key: Array) -> dict[str, Array | Labelled]:
    """True reward and KL of the tilts by every reward, for each beta."""
    of_weights, of_pairs, of_start, of_pool = jax.random.split(key, 4)
    features = config.seen + config.silent
    weights = jax.random.normal(of_weights, (features,))
    members = ensemble(config, point, weights, of_pairs, of_start)
    answers = pool(config, of_pool)
    gold, found = answers @ weights, members @ answers.T
    proxies = jnp.stack(
        [
            found[0],
            rewards.mean_reward(found),
            rewards.worst_case(found),
            rewards.uncertainty_weighted(found, point["coefficient"]),
            rewards.deviation_penalized(found, point["coefficient"]),
            gold,
        ]
    )

    def aligned(proxy, beta):
        uniform = jnp.zeros_like(proxy)
        log_policy = tilts.tilted(proxy, uniform, beta, generator=generators.kl()).log_policy
        return jnp.exp(log_policy) @ gold, divergences.kl(log_policy, uniform)

    by_beta = jax.vmap(jax.vmap(aligned, (None, 0)), (0, None))
    gained, kl = by_beta(proxies, jnp.array(config.betas))
    dims = {"model": tuple(MODELS), "beta": config.betas}
    return {
        "gold": labelled(gained - jnp.mean(gold), **dims),
        "kl": labelled(kl, **dims),
        "disagreement": jnp.std(members[:, config.seen :], axis=0).mean(),
    }


def ensemble(config: ConfigDict, point: dict, weights: Array, of_pairs: Array, of_start: Array):
    """Weights `[members, features]`: a base that all share, and an adapter by gradient descent.

    The base knows nothing of what was compared and is wrong in the rest; all have the same pairs.
    """
    of_features, of_labels, of_flips = jax.random.split(of_pairs, 3)
    of_base, of_start = jax.random.split(of_start)
    base = config.base * jax.random.normal(of_base, weights.shape)
    base = jnp.where(jnp.arange(weights.size) < config.seen, 0, base)
    size = jnp.where(jnp.arange(weights.size) < config.seen, 1.0, config.spread)
    apart = jax.random.normal(of_features, (config.pairs, weights.size)) * size[None]
    first = jax.random.bernoulli(of_labels, jax.nn.sigmoid(apart @ weights))
    wrong = jax.random.bernoulli(of_flips, point["flipped"], first.shape)
    apart = jnp.where((first ^ wrong)[:, None], apart, -apart)
    start = config.start * jax.random.normal(of_start, (config.members, weights.size))

    def loss(adapters):
        odds = (base[None] + adapters) @ apart.T
        misfit = jnp.sum(jnp.mean(rewards.bradley_terry_loss(odds, jnp.zeros_like(odds)), axis=1))
        ridge = config.ridge * jnp.sum(adapters**2) / 2
        return misfit + ridge - point["diversity"] * rewards.nuclear_diversity(adapters)

    step = lambda _, adapters: adapters - config.step_size * jax.grad(loss)(adapters)
    return base[None] + jax.lax.fori_loop(0, config.steps, step, start)


def pool(config: ConfigDict, key: Array) -> Array:
    """Features `[pool, features]`; strange answers are as large in the silent ones."""
    of_features, of_kind = jax.random.split(key)
    x = jax.random.normal(of_features, (config.pool, config.seen + config.silent))
    strange = jax.random.uniform(of_kind, (config.pool, 1)) < config.strange
    silent = jnp.where(strange, 2 * x, config.spread * x)
    return jnp.concatenate([x[:, : config.seen], silent[:, config.seen :]], axis=1)


# ---------------------------------------------------------------------------------------- figures


def _means(results: xr.Dataset) -> xr.Dataset:
    """Over seeds."""
    return results.isel(coefficient=0).mean("seed")


def figures(config: ConfigDict, results: xr.Dataset) -> dict[str, Picture]:
    """True reward against beta, without and with the nuclear norm, and against its weight."""
    figure, (left, middle, right) = panels(3, width=4.0, height=3.9)
    at = _means(results)
    flipped = pick(at.flipped, 0.25)
    at = at.sel(flipped=flipped)
    used = pick(at.diversity, 0.05)
    for axis, diversity in ((left, at.diversity.values.min()), (middle, used)):
        for number, (model, name) in enumerate(list(MODELS.items())[:-1]):
            look = style(number, marker=True) | {"label": name}
            curve(axis, "beta", at.gold.sel(diversity=diversity, model=model), **look)
        axis.set(xscale="log", xlabel="β", ylim=(-1, 5.2))
        axis.set_ylabel("true reward above the average")
        axis.set_title(f"weight {diversity:g} of the nuclear norm", fontsize="medium")
    for number, (model, _) in enumerate(list(MODELS.items())[:-1]):
        look = style(number, marker=True)
        curve(right, "diversity", at.gold.sel(model=model).isel(beta=0), **look)
    right.set(xlabel="weight of the nuclear norm", ylim=(-1, 5.2))
    right.set_ylabel("true reward above the average")
    right.set_title(f"β = {at.beta.values[0]:g}", fontsize="medium")
    legend_above(figure, left, columns=5)
    return {
        "diverse_rewards": Picture(
            figure,
            f"True reward of the policy, {flipped:.0%} of the labels wrong. Left: members that"
            " share a base agree in its errors, and no penalty helps. Middle: made to differ by a"
            " nuclear norm they tell what they do not know, and the smallest β is the best if"
            " variance or deviation are taken away. Right: the minimum needs a larger weight.",
        )
    }


# ----------------------------------------------------------------------------------------- claims


@claim(
    source=UP_RLHF,
    reruns=(NOTHING_OFF,),
    wrong=({"models": ("one", "mean")},),
    needs={"diversity": (0.0, 0.05), "flipped": ..., "coefficient": ..., "seed": ...},
)
def differing_members_make_penalties_work(
    results: xr.Dataset, models: tuple = PENALIZED
) -> Finding:
    """Gain of true reward by the nuclear norm at beta = .05, of UWO and less the deviation, with
    right labels and with a quarter wrong."""
    gold = _means(results).gold.sel(beta=0.05, model=list(models))
    return at_least(2, gold.sel(diversity=0.05) - gold.sel(diversity=0.0))


@claim(
    source=f"{COSTE}: beta = .01 is enough with WCO or UWO, against .2 alone, for language models",
    reruns=(NOTHING_OFF,),
    wrong=({"diversity": 0.0},),
    needs={"diversity": (0.0, 0.05), "flipped": (0.25,), "coefficient": ..., "seed": ...},
)
def a_small_beta_is_enough(results: xr.Dataset, diversity: float = 0.05) -> Finding:
    """A quarter of the labels wrong: the best beta with UWO and less the deviation over that of the
    mean; then the true reward at the smallest beta of all over the largest, which is no cost."""
    gold = _means(results).gold.sel(diversity=diversity, flipped=0.25)
    here = gold.sel(model=list(PENALIZED))
    beta = here.idxmax("beta") / gold.sel(model="mean").idxmax("beta")
    kept = here.sel(beta=min(here.beta.values)) / here.max("beta")
    return between([[0] * 2, [0.95] * 2], [beta, kept], [[0.1] * 2, [1] * 2])


@claim(
    source=f"{COSTE}: gains of 30 % and, with a quarter of the labels wrong, 75 %",
    reruns=(NOTHING_OFF,),
    wrong=({"diversity": 0.0},),
    needs={"diversity": (0.0, 0.05), "flipped": (0.0, 0.25), "coefficient": ..., "seed": ...},
)
def wrong_labels_make_it_matter_more(results: xr.Dataset, diversity: float = 0.05) -> Finding:
    """True reward less the deviation at the best beta over that of the mean at its own, with a
    quarter of the labels wrong; and over the same ratio with right labels."""
    best = _means(results).gold.sel(diversity=diversity).max("beta")
    ratio = best.sel(model="deviation") / best.sel(model="mean")
    wrong, right = ratio.sel(flipped=0.25), ratio.sel(flipped=0.0)
    return at_least((1.75, 1.5), [wrong, wrong / right])
