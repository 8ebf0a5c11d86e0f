"""Coverage: what preference losses do to an answer that is in no pair.

HyPO (Song et al. 2024, arXiv:2406.01462), a KL from online samples, and RPO (Liu et al. 2024,
arXiv:2405.16436), an SFT term, next to DPO. The parameters of HyPO's own synthetic experiment are
unknown; this toy and its numbers are an independent computation. Losses are expectations over pairs
and the KL is exact: `preference.hypo` has the same mean and gradient from samples.
"""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from jax import Array
from ml_collections import ConfigDict

from experiments.lab.claims import Claim
from experiments.lab.plots import COLORS, Picture
from jdiv import divergences, roots
from jdiv.alignment import preference

TRACED = ("coefficient",)
TERMS = ("KL", "SFT", "KL of pairs")
DIMS = {
    "policy": ("term", "start", "answer"),
    **dict.fromkeys(("kl", "pair_loss", "slope"), ("term", "start")),
}
HYPO, RPO = "Song et al. 2024 (arXiv:2406.01462)", "Liu et al. 2024 (arXiv:2405.16436)"
# Of two starts: most mass on the unseen answer, and the reference.
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


def coordinates(config: ConfigDict) -> dict[str, object]:
    """Names of what is added to DPO, of starts, numbers of answers."""
    return {"term": TERMS, "start": config.starts, "answer": range(1, 1 + len(config.reference))}


def validate(config: ConfigDict, point: dict) -> None:
    """Refuses a negative coefficient."""
    if point["coefficient"] < 0:
        raise ValueError(
            f"config.sweep.coefficient must not be negative, got {point['coefficient']}"
        )


def run(config: ConfigDict, point: dict, key: Array) -> dict[str, Array]:
    """Minimisers of DPO with each term, from both starts."""
    log_ref = jnp.log(jnp.array(config.reference))
    win = jax.nn.sigmoid(jnp.asarray(config.reward_gap))
    often = jnp.stack([win, 1 - win])

    def loss(logits, weights):
        """The mean over pairs of RPO's loss, and two kinds of KL."""
        log_pi = jax.nn.log_softmax(logits)
        pair = log_pi[:2], log_pi[1::-1], log_ref[:2], log_ref[1::-1]
        online, sft, offline = weights * point["coefficient"]
        of_pairs = preference.rpo(*pair, beta=config.beta, coefficient=sft)
        return (
            often @ of_pairs
            + online * divergences.kl(log_pi, log_ref)
            + offline * divergences.kl(log_pi[:2], log_ref[:2])
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
    each_start = jax.vmap(solve, (None, 0))
    return jax.vmap(each_start, (0, None))(jnp.eye(len(TERMS)), starts)


def figures(config: ConfigDict, results: xr.Dataset) -> dict[str, Picture]:
    """The unseen answer after the fit, against where it started; the KL against the coefficient."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.2))
    in_order = results.sortby("start")
    start = 1 / (1 + 2 * np.exp(-in_order.start))
    unseen = in_order.policy.sel(answer=len(config.reference))
    lines = {
        "DPO": ({"coefficient": 0.0, "term": "KL"}, "-"),
        "with KL(π‖ref): HyPO": ({"coefficient": 0.001, "term": "KL"}, "--"),
        "with SFT: RPO": ({"coefficient": 0.001, "term": "SFT"}, "-."),
        "with KL on the pairs": ({"coefficient": 0.001, "term": "KL of pairs"}, (0, (1, 2))),
    }
    for (label, (at, style)), colour in zip(lines.items(), COLORS, strict=False):
        width = 3 if "pairs" in label else None
        look = {"linestyle": style, "color": colour, "linewidth": width}
        left.plot(start, unseen.sel(at), label=label, **look)
        if label != "DPO":
            of_term = results.isel(start=1).sel(term=at["term"]).sortby("coefficient")
            of_term = of_term.sel(coefficient=of_term.coefficient > 0)
            right.plot(of_term.coefficient, of_term.kl, **look)
    right.axhline(
        results.kl.sel(coefficient=0.0, term="KL").isel(start=1), color=COLORS[0], label="DPO"
    )
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


def claims(config: ConfigDict, results: xr.Dataset) -> list[Claim]:
    """The ray, HyPO's table, RPO's point, what the KL has to see."""
    of = config.claims
    results = results.isel(start=slice(len(RAY)))
    ray = results.sel(coefficient=of.coefficient, term="KL")
    table = results.sel(coefficient=list(KEPT), term=of.online)
    table = table.transpose("coefficient", "start", "answer")
    kept = np.array(list(KEPT.values()))[:, None, :]
    kl = [table.kl.sel(coefficient=c).values - number for c, (number, _) in KEPT_KL.items()]
    sft = results.sel(coefficient=list(KEPT), term=of.sft)
    point = sft.policy.transpose("coefficient", "start", "answer").values
    win = 1 / (1 + np.exp(-config.reward_gap))
    apart = np.abs(results.policy.isel(start=0) - results.policy.isel(start=1))
    apart = apart.sel(coefficient=list(KEPT)).max("answer")
    return [
        Claim(
            "dpo-has-a-ray-of-minimisers",
            f"{HYPO}, on coverage; recomputed independently",
            "DPO from mass on the unseen answer and from the reference: policies, KL 4.260 and"
            " .110, and the same loss .58220311; each minus its reference number.",
            [
                *(ray.policy.transpose("start", "answer").values - RAY).ravel(),
                *(ray.kl.values - RAY_KL),
                *(ray.pair_loss.values - LOSS),
                *ray.slope.values,
            ],
            low=[*[-5.1e-6] * 6, *[-5.1e-4] * 2, *[-5.1e-9] * 2, 0, 0],
            high=[*[5.1e-6] * 6, *[5.1e-4] * 2, *[5.1e-9] * 2, 1e-12, 1e-12],
            controls=({"claims.coefficient": 0.01},),
        ),
        Claim(
            "hypo-keeps-the-unseen-answer",
            f"{HYPO}; recomputed independently",
            "With lambda KL(pi‖ref) at lambda = .001, .01, .1, 1, from both starts: (.72271,"
            " .26613, .01116), (.721, .26786, .01114), (.70485, .28419, .01097), (.61199, .37772,"
            " .01028), KL .10958 and .0924 at .001 and .1; deviations, and the largest derivative.",
            [*(table.policy.values - kept).ravel(), *np.ravel(kl), float(table.slope.max())],
            low=[*[-5.1e-6] * 24, *[-x for _, x in KEPT_KL.values() for _ in RAY], 0],
            high=[*[5.1e-6] * 24, *[x for _, x in KEPT_KL.values() for _ in RAY], 1e-12],
            controls=({"claims.online": "KL of pairs"}, {"claims.online": "SFT"}),
        ),
        Claim(
            "rpo-drives-it-to-zero",
            f"{RPO}; analytic",
            "With eta times the SFT loss, at each eta > 0 and from both starts, DPO's ray collapses"
            " to (.7311, .2689, 0): deviations, the last entry of each being the unseen answer.",
            point - np.array([win, 1 - win, 0.0]),
            low=-1e-6,
            high=1e-6,
            controls=({"claims.sft": "KL"},),
        ),
        Claim(
            "the-kl-has-to-see-what-is-not-compared",
            f"{HYPO}: the KL is estimated online",
            "Largest difference between the policies from both starts, with the KL over all answers"
            " and with the KL over the compared ones only, for which the unseen one is free.",
            [
                float(apart.sel(term=of.online).max()),
                float(apart.sel(term=of.offline).min()),
            ],
            low=(0, 0.9),
            high=(1e-6, 1),
            controls=({"claims.online": "KL of pairs"}, {"claims.offline": "KL"}),
        ),
    ]
