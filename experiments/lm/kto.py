"""The bias of KTO's baseline, by enumeration of language models of a few tokens.

The loss of Ethayarajh et al. 2024 (arXiv:2402.01306) has the KL(policy‖reference) of its prompts as
the point from which an answer is a gain. Trainers take `log policy/reference` of answers to other
prompts of the batch, mean over the batch, cut off at 0. That is an expectation too, and exact here:
of answers that the policy writes to the other prompts, or of the data's, which the reference wrote.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import xarray as xr
from jax import Array
from ml_collections import ConfigDict

from experiments.lab import axes
from experiments.lab.axes import fraction, positive, seeds
from experiments.lab.claims import Finding, at_least, at_most, claim
from experiments.lab.plots import Picture, legend_above, panels, style
from experiments.lab.results import Labelled, labelled
from jdiv.lm import tabular

if TYPE_CHECKING:
    from matplotlib.figure import Figure

AXES = {"distance": positive, "seed": seeds}
FIELDS = {
    "prompts": axes.at_least(2),
    "longest": axes.at_least(1),
    "vocabulary": axes.at_least(2),
    "common": fraction,
    "matched": fraction,
}
SOURCES = ("policy", "reference")
NAMES = {"policy": "answers of the policy", "reference": "answers of the reference"}
MATCHED = {"matched": 1.0}


def run(config: ConfigDict, point: dict, key: Array) -> dict[str, Array | Labelled]:
    """The KL, and what a large batch and a batch of one answer take for it."""
    shape = config.prompts, *tabular.table_shape(config.longest, config.vocabulary)
    keys = jax.random.split(key, 3)
    ref, own = (jax.random.normal(k, shape) for k in keys[:2])
    common = jax.random.normal(keys[2], shape[1:])[None]
    change = config.common**0.5 * common + (1 - config.common) ** 0.5 * own
    policy = ref + point["distance"] * change
    log_p, log_q = (jax.vmap(tabular.sequence_log_probs)(x) for x in (policy, ref))
    log_ratio = log_p - log_q
    # [source, other prompt, answer] and [prompt, other prompt].
    laws = jnp.exp(jnp.stack([log_p, log_q]))
    same = jnp.eye(config.prompts)
    pairs = config.matched * same + (1 - config.matched) * (1 - same) / (config.prompts - 1)
    over = lambda values: jnp.einsum("xy,xa,sya->s", pairs, values, laws) / config.prompts
    return {
        "kl": jax.vmap(tabular.kl)(policy, ref).mean(),
        "mean": labelled(over(log_ratio), source=SOURCES),
        "single": labelled(over(jnp.maximum(log_ratio, 0)), source=SOURCES),
    }


def _over_kl(results: xr.Dataset, name: str, source: str) -> xr.DataArray:
    """The baseline over the KL: a ratio of means over seeds, by distance."""
    return results[name].sel(source=source).mean("seed") / results.kl.mean("seed")


def figures(config: ConfigDict, results: xr.Dataset) -> dict[str, Picture | str]:
    """Baselines over the KL, by distance."""
    return {
        "baseline": Picture(
            _baselines(results),
            "What trainers take for the KL, over the KL (1 would be right), by how far the policy"
            " is from the reference; mean over models. Answers to other prompts give a fraction of"
            " it, answers of the data a negative number, which is cut off at 0. Of a batch of one"
            " the cut makes a number that is positive whatever the policy is.",
        )
    }


def _baselines(results: xr.Dataset) -> Figure:
    figure, axis = panels(1, width=6.4, height=4.8)
    for number, source in enumerate(SOURCES):
        for name, what in (("mean", "large batch"), ("single", "batch of one, cut off at 0")):
            look = style(2 * number + (name == "single"))
            axis.plot(results.distance, _over_kl(results, name, source),
                      label=f"{NAMES[source]}, {what}", **look)  # fmt: skip
    axis.axhline(1, color="black", lw=0.8)
    axis.axhline(0, color="black", lw=0.8)
    axis.set(xlabel="distance of the policy (standard deviation of the change of logits)",
             ylabel="baseline / KL(policy‖reference)")  # fmt: skip
    axis.set_xscale("log", base=2)
    legend_above(figure, axis, columns=1)
    return figure


# ------------------------------------------------------------------------------------------ claims

SOURCE = "Ethayarajh et al. 2024 (arXiv:2402.01306), section 4.2; this bias is not published"


@claim(source=SOURCE, reruns=(MATCHED,))
def answers_to_other_prompts_do_not_measure_the_kl(results: xr.Dataset) -> Finding:
    """The policy's answers to other prompts give a large batch at most a fifth of the KL, at every
    distance; answers to their own prompts all of it. Largest ratio of means over models."""
    return at_most(0.2, _over_kl(results, "mean", "policy").max())


@claim(source=SOURCE, wrong=({"source": "policy"},))
def answers_of_the_data_make_it_zero(results: xr.Dataset, source: str = "reference") -> Finding:
    """Answers that the reference wrote, as those of the data, have a negative mean, of at least
    half the size of the KL: cut off at 0 it is 0. Largest ratio of means over models."""
    return at_most(-0.5, _over_kl(results, "mean", source).max())


@claim(source=SOURCE, wrong=({"name": "mean"},), needs={"distance": (0.25,)})
def the_cut_makes_small_batches_positive(results: xr.Dataset, name: str = "single") -> Finding:
    """Close to the reference, at a distance of .25, a batch of one answer of the policy has at
    least twice the KL on average, by the cut at 0 alone."""
    return at_least(2, _over_kl(results, name, "policy").sel(distance=0.25))
