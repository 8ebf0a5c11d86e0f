"""Q# on star graphs and the value of A*-PO, exactly.

Q# (Zhou et al. 2025, arXiv:2502.20548) tilts the reference by `eta log E_ref e^(Z/eta)`; its graphs
are those of Bachmann and Nagarajan 2024, on which a model pretrained on next tokens guesses the
first step. Its code is not available and the accuracies of the paper are those of trained networks:
here the tables are exact. A*-PO estimates the same value from eight samples of the reference.
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
from jdiv import generators
from jdiv.alignment import a_star_po, q_sharp
from jdiv.mdp import environments

TRACED = ("eta",)
SAMPLED = ("policy", "reference")
DIMS = {
    "first": ("graph",),
    "pretrained": ("graph",),
    "gradient": ("sampled", "value", "logit"),
    "deviation": ("value",),
    "table": ("accuracy", "kind"),
    "disagreement": ("backups",),
}
SOURCE = "Q# (Zhou et al. 2025, arXiv:2502.20548), section 3.1"
# P(correct first node) by degree and eta.
FIRST = {
    (2, 1.0): (0.731059, 5e-7),
    (2, 0.1): (0.999955, 5e-7),
    (5, 1.0): (0.40461, 5e-6),
    (5, 0.1): (0.999818, 5e-7),
    (3, 1.0): (0.576117, 5e-7),
    (3, 0.1): (0.999909, 5e-7),
}
# V* and E[V_hat] of eight samples, by accuracy.
VALUES = {
    0.05: (0.1386, 0.1101),
    0.2: (0.4116, 0.3697),
    0.5: (0.7169, 0.6964),
    0.9: (0.9548, 0.9520),
}
GRADIENT = (0.01556, -0.04683, 0.03127)


def coordinates(config: ConfigDict) -> dict[str, object]:
    """Graphs by degree and length of their arms; V; accuracies of the reference."""
    return {
        "graph": [f"{degree}x{length}" for degree, length in config.graphs],
        "sampled": SAMPLED,
        "value": config.baselines,
        "logit": np.arange(3),
        "accuracy": config.accuracies,
        "backups": ("all", "one too few"),
        "kind": ("exact", *(str(n) for n in config.samples)),
    }


def validate(config: ConfigDict, point: dict) -> None:
    """Refuses temperatures and sample sizes without a meaning."""
    if not point["eta"] > 0:
        raise ValueError(f"config.sweep.eta must be positive, got {point['eta']}")
    if 8 not in config.samples or not set(VALUES) <= set(config.accuracies):
        raise ValueError("config.samples must have 8, config.accuracies all of the reference table")


def forest(graphs: tuple) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Children, returns and roots of all star graphs, one beside the other."""
    width = max(degree for degree, _ in graphs)
    children, returns, roots = [], [], []
    for degree, length in graphs:
        star = environments.star_graph(degree=degree, length=length)
        target = np.argmax(star.transition, axis=-1)
        target = np.where(target == np.arange(len(target))[:, None], -1, target)
        first = sum(map(len, returns))
        padded = np.full((len(target), width), -1)
        padded[:, :degree] = np.where(target >= 0, target + first, -1)
        children.append(padded)
        returns.append(np.eye(len(target))[length])  # the end of the first arm
        roots.append(first)
    return np.concatenate(children), np.concatenate(returns), np.array(roots)


def run(config: ConfigDict, point: dict, key: Array) -> dict[str, Array]:
    """P(correct first node) at this eta, and what is known of A*-PO."""
    with jax.ensure_compile_time_eval():
        children, returns, roots = forest(config.graphs)
    depth = max(length for _, length in config.graphs)
    eta, uniform = point["eta"], jnp.zeros(children.shape)
    log_returns = jnp.log(jnp.stack([1 - returns, returns], axis=-1))
    support = jnp.array([0.0, 1.0])
    law, early = (
        q_sharp.return_laws(children, uniform, log_returns, depth=backups)
        for backups in (depth, depth - 2)  # the children need one less than the centre
    )
    q, early = (q_sharp.q_values(children, x, support, eta) for x in (law, early))
    policy = jnp.exp(q_sharp.optimal_policy(q, uniform, eta))
    recursion = q_sharp.regularized_values(
        children, uniform, returns, eta, generator=generators.kl(), depth=depth
    )
    there = children[roots] >= 0
    mean, deviation = gradients(config)
    return {
        "first": policy[roots, 0],
        "pretrained": 1 / jnp.sum(there, axis=-1, dtype=policy.dtype),
        "disagreement": jnp.stack(
            [jnp.max(jnp.abs(jnp.where(there, (recursion.q - x)[roots], 0))) for x in (q, early)]
        ),
        "gradient": mean,
        "deviation": deviation,
        "table": values(config),
    }


def gradients(config: ConfigDict) -> tuple[Array, Array]:
    """Mean gradient of A*-PO's loss by the logits, and its deviation on-policy, for each V."""
    ref, rewards = jnp.array(config.reference), jnp.array(config.rewards)
    logits = jnp.log(jnp.array(config.policy))

    def losses(logits, value):
        return a_star_po.a_star_po_loss(
            jax.nn.log_softmax(logits), jnp.log(ref), rewards, jnp.full(3, value), beta=config.beta
        )

    def of(value):
        each = jax.jacobian(losses)(logits, value)  # [answer, logit]
        pi = jax.nn.softmax(logits)
        mean = jnp.stack([pi @ each, ref @ each])
        return mean, jnp.sqrt(pi @ jnp.sum((each - mean[0][None]) ** 2, axis=-1))

    mean, deviation = jax.vmap(of)(jnp.array(config.baselines))
    return jnp.swapaxes(mean, 0, 1), deviation


def values(config: ConfigDict) -> Array:
    """V* and E[V_hat] for each accuracy and number of samples."""
    accuracy = jnp.array(config.accuracies)
    of = [a_star_po.binary_value(accuracy, config.beta_value, n=n) for n in config.samples]
    return jnp.stack([of[0].optimal, *(x.expected for x in of)], axis=-1)


def figures(config: ConfigDict, results: xr.Dataset) -> dict[str, Picture]:
    """First step against eta, bias of V, deviation of the gradient."""
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(11.4, 3.7))
    eta = results.eta.values
    shown = {degree: f"{degree}x{length}" for degree, length in reversed(config.graphs)}
    for (degree, graph), style, colour in zip(
        sorted(shown.items()), ("o-", "s--", "^-."), COLORS, strict=False
    ):
        left.plot(1 / eta, results["first"].sel(graph=graph), style, color=colour,
                  label=f"Q#, {degree} arms")  # fmt: skip
        left.axhline(1 / degree, color=colour, linestyle=":", linewidth=1)
    left.plot([], [], "k:", linewidth=1, label="pretrained, 1/arms")
    left.set(xscale="log", xlabel="1/η", ylabel="P(correct first node)", ylim=(0, 1.4),
             yticks=np.linspace(0, 1, 6))  # fmt: skip
    left.legend(loc="upper left", ncols=2, fontsize="small", columnspacing=1)
    table = results.table.isel(eta=0)
    gap = table.sel(kind="exact") - table
    for n, style in zip(config.samples, ("-", "--", "-.", ":"), strict=False):
        middle.plot(table.accuracy, gap.sel(kind=str(n)), style, label=f"{n} samples")
    middle.set(xlabel="accuracy of the reference", ylabel="V* - E[V̂]", ylim=(0, None))
    middle.legend()
    right.plot(results.value, results.deviation.isel(eta=0), "-", label="deviation of one sample")
    mean = results.gradient.isel(eta=0).sel(sampled="policy")
    size = np.sqrt((mean**2).sum("logit"))
    right.plot(results.value, size, "--", label="size of the mean")
    right.set(xlabel="V in the loss", ylabel="gradient of A*-PO by the logits", ylim=(0, None))
    right.legend()
    return {
        "value_based": Picture(
            figure,
            "Left: tilting by the law of the reference's return finds the first node, the same for"
            " every length of the arms, where pretraining guesses. Middle: the value from n samples"
            " is too small, by Jensen, most for hard prompts. Right: V changes the noise of A*-PO's"
            " on-policy gradient and not its mean.",
        )
    }


def claims(config: ConfigDict, results: xr.Dataset) -> list[Claim]:
    """The table of first steps, its independence of length, and A*-PO's two facts."""
    etas = {1.0: 0.1, 0.1: 1.0} if config.claims.exchanged else {1.0: 1.0, 0.1: 0.1}
    lengths = dict(config.graphs)
    first = [
        float(results["first"].sel(graph=f"{degree}x{lengths[degree]}", eta=etas[eta]))
        for degree, eta in FIRST
    ]
    number, half = np.array(list(FIRST.values())).T
    group = config.claims.group
    alike = [graph[group] for graph in config.graphs]
    by_graph = results["first"].transpose("eta", "graph").values
    spread = [
        float(np.ptp(by_graph[:, [key == one for key in alike]], axis=-1).max())
        for one in sorted(set(alike))
    ]
    at = results.isel(eta=0)
    table = at.table.sel(accuracy=list(VALUES), kind=["exact", config.claims.samples])
    measured = table.transpose("accuracy", "kind").values
    if config.claims.exchanged:
        measured = measured[:, ::-1]
    expected = np.array(list(VALUES.values()))
    gradient = at.gradient.sel(sampled=config.claims.sampled, value=[0.0, 0.3, 1.0])
    every = at.table.transpose("accuracy", "kind").values
    bias = every[:, :1] - every[:, 1:]
    return [
        Claim(
            "first-node-of-star-graphs",
            f"{SOURCE}; exact values by the formula e^(1/eta) / (e^(1/eta) + d - 1)",
            "P(correct first node) with d arms at eta = 1 and .1: .731059, .999955 (d = 2),"
            " .40461, .999818 (5), .576117, .999909 (3), to these digits. The paper"
            " reports about 100% for trained networks.",
            first,
            low=number - 1.01 * half,
            high=number + 1.01 * half,
            controls=({"claims.exchanged": True},),
        ),
        Claim(
            "the-same-for-every-length",
            f"{SOURCE}; follows from deterministic arms",
            "Largest difference of P(correct first node) between graphs of equal degree.",
            spread,
            high=1e-12,
            controls=({"claims.group": 1},),
        ),
        Claim(
            "pretraining-guesses",
            f"{SOURCE}: about 1/d before, about 100% with Q#",
            "P(correct first node) at eta = .1 over that of the reference, by degree 2, 3, 5: it"
            " is nearly d.",
            [
                float(
                    (results["first"] / results.pretrained).sel(
                        graph=f"{degree}x{lengths[degree]}", eta=etas[0.1]
                    )
                )
                / degree
                for degree in (2, 3, 5)
            ],
            low=0.999,
            high=1.0,
            controls=({"claims.exchanged": True},),
        ),
        Claim(
            "the-law-of-returns-is-enough",
            "Geist, Scherrer and Pietquin 2019: the soft Bellman recursion",
            "Largest difference at the centre between eta log E_ref e^(Z/eta) and the recursion.",
            results.disagreement.sel(backups=config.claims.backups).values,
            high=1e-12,
            controls=({"claims.backups": "one too few"},),
        ),
        Claim(
            "the-mean-gradient-ignores-v",
            "A*-PO, released code (ZhaolinGao/A-PO); reference numbers, whose setting was not given"
            " and was found by search: it is in the config",
            "The exact gradient for V = 0, .3, 1, each (.01556, -.04683, .03127), answers from the"
            " policy.",
            gradient.transpose("value", "logit").values,
            low=[np.array(GRADIENT) - 5.01e-6] * 3,
            high=[np.array(GRADIENT) + 5.01e-6] * 3,
            controls=({"claims.sampled": "reference"},),
        ),
        Claim(
            "value-of-eight-samples",
            "A*-PO, released code, 8 samples, beta = 1/2; reference table, binomial enumeration",
            "V* and E[V_hat] at accuracies .05, .2, .5, .9: .1386 .1101, .4116 .3697, .7169 .6964,"
            " .9548 .9520.",
            measured,
            low=expected - 5.01e-5,
            high=expected + 5.01e-5,
            controls=({"claims.samples": "2"},),
        ),
        Claim(
            "the-estimate-is-too-small",
            "Jensen's inequality",
            "V* - E[V_hat], least over all accuracies and numbers of samples.",
            float((-bias if config.claims.exchanged else bias).min()),
            low=0.0,
            controls=({"claims.exchanged": True},),
        ),
    ]
