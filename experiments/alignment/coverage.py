"""Coverage: what preference losses do to an answer that is in no pair.

HyPO (Song et al. 2024, arXiv:2406.01462), a KL from online samples, and RPO (Liu et al. 2024,
arXiv:2405.16436), an SFT term, next to DPO. The parameters of HyPO's own synthetic experiment are
unknown; this toy and its numbers are an independent computation. Losses are expectations over pairs
and the KL is exact: `preference.hypo` has the same mean and gradient from samples.
"""

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jax import Array
from ml_collections import ConfigDict

from experiments.lab import axes
from experiments.lab.claims import Finding, between, claim, equals, together
from experiments.lab.plots import COLORS, Picture, curve, panels, pick, style
from experiments.lab.results import Labelled, labelled
from jdiv import divergences, roots
from jdiv.alignment import preference

AXES = {"coefficient": axes.non_negative}
DIRECTIONS = {"kl": divergences.kl, "reverse_kl": divergences.reverse_kl}
FIELDS = {
    "compared": axes.one_of((2, 3)),
    "direction": axes.one_of(DIRECTIONS),
    "beta": axes.positive,
    "iterations": axes.count,
}
TERMS = ("KL", "SFT", "KL of pairs")
HYPO, RPO = "Song et al. 2024 (arXiv:2406.01462)", "Liu et al. 2024 (arXiv:2405.16436)"
# From two starts: most mass on the unseen answer, and the reference.
RAY = ((0.029, 0.01067, 0.96033), (0.72457, 0.26655, 0.00888))
RAY_KL = (4.260, 0.110)
LOSS = 0.58220311
KEPT = {
    0.001: (0.72271, 0.26613, 0.01116),
    0.01: (0.721, 0.26786, 0.01114),
    0.1: (0.70485, 0.28419, 0.01097),
    1.0: (0.61199, 0.37772, 0.01028),
}
KEPT_KL = {0.001: (0.10958, 5.1e-6), 0.1: (0.0924, 5.1e-5)}
# Reruns: all three answers compared; the other direction of KL.
FEW = {"sweep.coefficient": (0.0, *KEPT), "starts": (4.0, float(np.log(0.01 / 0.495)))}
COMPARED = {"compared": 3, **FEW}
REVERSED = {"direction": "reverse_kl", **FEW}


def run(config: ConfigDict, point: dict, key: Array) -> dict[str, Array | Labelled]:
    """Minimizers of DPO with each term, from all starts."""
    log_ref = jnp.log(jnp.array(config.reference))
    divergence = DIRECTIONS[config.direction]
    pairs = np.array([(i, j) for i in range(config.compared) for j in range(config.compared)])
    chosen, rejected = pairs[pairs[:, 0] != pairs[:, 1]].T
    rewards = jnp.array(config.rewards)
    often = jax.nn.sigmoid(rewards[chosen] - rewards[rejected])

    def loss(logits, weights):
        """The mean over pairs of RPO's loss, and two kinds of KL."""
        log_pi = jax.nn.log_softmax(logits)
        pair = log_pi[chosen], log_pi[rejected], log_ref[chosen], log_ref[rejected]
        online, sft, offline = weights * point["coefficient"]
        of_pairs = preference.rpo(*pair, beta=config.beta, coefficient=sft)
        seen = slice(config.compared)
        return (
            often @ of_pairs
            + online * divergence(log_pi, log_ref)
            + offline * divergence(log_pi[seen], log_ref[seen])
        )

    def solve(weights, start):
        best = roots.minimize(lambda logits: loss(logits, weights), start, config.iterations)
        return {
            "policy": jax.nn.softmax(best.x),
            "kl": divergences.kl(best.x, log_ref),
            "pair_loss": loss(best.x, jnp.zeros(len(TERMS))),
            "slope": best.slope,
        }

    third = jnp.array(config.starts)
    starts = jnp.stack([jnp.zeros_like(third), jnp.zeros_like(third), third], axis=-1)
    found = jax.vmap(jax.vmap(solve, (None, 0)), (0, None))(jnp.eye(len(TERMS)), starts)
    policy = found.pop("policy")
    by = {"term": TERMS, "start": config.starts}
    answers = range(1, 1 + len(config.reference))
    return {"policy": labelled(policy, **by, answer=answers)} | {
        name: labelled(x, **by) for name, x in found.items()
    }


def figures(config: ConfigDict, results: xr.Dataset) -> dict[str, Picture]:
    """The unseen answer after the fit, against where it started; the KL against the coefficient."""
    figure, (left, right) = panels(2, height=4.2)
    in_order = results.sortby("start")
    # From logits 0, 0 and this one to the probability of the last.
    unseen = in_order.policy.sel(answer=len(config.reference))
    unseen = unseen.assign_coords(start=1 / (1 + 2 * np.exp(-in_order.start)))
    kl = results.kl.isel(start=1).sortby("coefficient")
    positive = kl.coefficient[kl.coefficient > 0]
    lines = {"DPO": (0.0, "KL")} if 0 in results.coefficient else {}
    if positive.size:
        small = pick(positive, 0.001)
        lines |= {
            "with KL(π‖ref): HyPO": (small, "KL"),
            "with SFT: RPO": (small, "SFT"),
            "with KL on the pairs": (small, "KL of pairs"),
        }
    for number, (label, (coefficient, term)) in enumerate(lines.items()):
        look = style(number) | {"linewidth": 3 if "pairs" in label else 1.5, "label": label}
        curve(left, "start", unseen.sel(coefficient=coefficient, term=term), **look)
        if coefficient:
            curve(right, "coefficient", kl.sel(term=term, coefficient=positive), **look)
        else:
            right.axhline(kl.sel(coefficient=0.0, term=term), color=COLORS[0])
    left.set(xscale="log", xlabel="unseen answer: probability at the start")
    left.set(ylabel="unseen answer: probability after the fit")
    left.set_yscale("symlog", linthresh=1e-4)
    left.set_ylim(-2e-5, 2)
    left.legend()
    right.set(xscale="log", xlabel="coefficient", ylabel="KL(π‖ref), nats", yscale="log")
    return {
        "coverage": Picture(
            figure,
            "Left: an answer that is in no pair, fitted from many starts. DPO leaves it about where"
            " it was, and so does a KL over the compared answers; .001 times the KL to the"
            " reference, which has it at .01, brings it there from everywhere, and .001 times SFT"
            " drives it to zero. Right: how far fits from the reference end from it.",
        )
    }


def at_table(results: xr.Dataset, term: str) -> xr.Dataset:
    """The fits with this term at the table's coefficients, from the table's two starts."""
    table = results.isel(start=slice(len(RAY))).sel(coefficient=list(KEPT), term=term)
    return table.transpose("coefficient", "start", "answer")


@claim(
    source=f"{HYPO}, on coverage; this toy, recomputed independently",
    reference=[*np.ravel(RAY), *RAY_KL, LOSS, LOSS],
    reruns=(COMPARED,),
    wrong=({"coefficient": 0.01},),
)
def dpo_has_a_ray_of_minimizers(results: xr.Dataset, coefficient: float = 0.0) -> Finding:
    """DPO from mass on the unseen answer and from the reference: policies, KL 4.260 and .110, and
    the same loss .58220311, each minus its reference number; then the largest derivatives."""
    ray = results.isel(start=slice(len(RAY))).sel(coefficient=coefficient, term="KL")
    return together(
        equals(0, ray.policy.transpose("start", "answer") - RAY, tolerance=5.1e-6),
        equals(0, ray.kl - RAY_KL, tolerance=5.1e-4),
        equals(0, ray.pair_loss - LOSS, tolerance=5.1e-9),
        between(0, ray.slope, 1e-12),
    )


@claim(
    source=f"{HYPO}; this toy, recomputed independently",
    reference=[*np.ravel(list(KEPT.values())), *(kl for kl, _ in KEPT_KL.values())],
    reruns=(REVERSED, COMPARED),
    wrong=({"term": "KL of pairs"}, {"term": "SFT"}),
)
def hypo_keeps_the_unseen_answer(results: xr.Dataset, term: str = "KL") -> Finding:
    """With lambda KL(pi‖ref) at lambda = .001, .01, .1, 1, from both starts: (.72271, .26613,
    .01116), (.721, .26786, .01114), (.70485, .28419, .01097), (.61199, .37772, .01028), KL .10958
    and .0924 at .001 and .1; deviations, and the largest derivative."""
    table = at_table(results, term)
    return together(
        equals(0, table.policy - np.array(list(KEPT.values()))[:, None], tolerance=5.1e-6),
        *(
            equals(0, table.kl.sel(coefficient=coefficient) - kl, tolerance=digits)
            for coefficient, (kl, digits) in KEPT_KL.items()
        ),
        between(0, table.slope.max(), 1e-12),
    )


@claim(source=f"{RPO}; analytic", reruns=(COMPARED,), wrong=({"term": "KL"},))
def rpo_drives_it_to_zero(results: xr.Dataset, config: ConfigDict, term: str = "SFT") -> Finding:
    """With eta times the SFT loss, at each eta > 0 and from both starts, DPO's ray collapses to
    (.7311, .2689, 0): deviations, the last entry of each being the unseen answer."""
    first, second, _ = config.rewards
    win = 1 / (1 + np.exp(second - first))
    point = at_table(results, term).policy - np.array([win, 1 - win, 0.0])
    return equals(0, point, tolerance=1e-6)


@claim(
    source=f"{HYPO}: the KL is estimated online",
    reruns=(COMPARED,),
    wrong=({"online": "KL of pairs"}, {"offline": "KL"}),
)
def the_kl_has_to_see_what_is_not_compared(
    results: xr.Dataset, online: str = "KL", offline: str = "KL of pairs"
) -> Finding:
    """The largest difference between the policies from both starts with the KL over all answers,
    and the least with the KL over the compared ones only, for which the unseen one is free."""

    def apart(term: str) -> xr.DataArray:
        policy = at_table(results, term).policy
        return np.abs(policy.isel(start=0) - policy.isel(start=1)).max("answer")

    return between((0, 0.9), (apart(online).max(), apart(offline).min()), (1e-6, 1))
