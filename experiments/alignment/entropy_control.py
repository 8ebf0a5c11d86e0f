"""Entropy control: H-DPO's alpha decides between covering modes and seeking one.

H-DPO (arXiv:2411.07595) minimises `D_alpha = -alpha H(pi) + H(pi, ref)` in place of reverse KL. Its
toy figure fits a Gaussian to a mixture of two; the parameters there are unknown, and the reference
numbers are an independent computation for modes at -s and s.
"""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from jax import Array
from ml_collections import ConfigDict

from experiments.lab.claims import Claim
from experiments.lab.plots import COLORS, GREY, Picture
from jdiv import generators, regularized
from jdiv.alignment import preference

TRACED = ("alpha", "separation")
WEIGHTED = ("entropy", "cross-entropy")
DIMS = {
    "mean": ("weighted",),
    "deviation": ("weighted",),
    "slope": ("weighted",),
    "quadrature": ("nodes",),
    "policy": ("answer",),
    "entropy": (),
    "h_dpo_slope": ("loss", "answer"),
}
SOURCE = "H-DPO (arXiv:2411.07595)"
# Policy and entropy by alpha, for ref = (.1, .2, .3, .4), r = (1, 0, .5, -.5), beta = 1/2.
POLICIES = {
    0.5: ((0.42901, 0.03143, 0.52254, 0.01701), 0.8803),
    1.0: ((0.38858, 0.10518, 0.42885, 0.07739), 1.1653),
    2.0: ((0.33145, 0.17244, 0.34820, 0.14791), 1.3191),
}
# Mean and standard deviation of the best Gaussian by separation and alpha; not all are known.
FITS = {
    (2.5, 1.0): (0.0, 2.391),
    (2.5, 0.8): (0.0, 2.316),
    (2.5, 0.7): (2.479, 0.865),
    (2.5, 0.6): (2.489, 0.790),
    (2.0, 0.4): (1.968, 0.667),
    (3.0, 1.0): (2.984, 1.023),
    (3.0, 1.2): (0.0, 2.807),
}
# The last alpha with one mode and the first with both, by separation, among the reference's.
JUMPS = {2.5: (0.7, 0.8), 3.0: (1.0, 1.2)}


def coordinates(config: ConfigDict) -> dict[str, object]:
    """Which of the two terms alpha multiplies."""
    nodes = (config.nodes, (config.nodes - 1) // 20 + 1)
    return {
        "weighted": WEIGHTED,
        "nodes": nodes,
        "loss": ("H-DPO", "DPO"),
        "answer": np.arange(len(config.rewards)),
    }


def validate(config: ConfigDict, point: dict) -> None:
    """Refuses weights that leave nothing to minimise."""
    if not point["alpha"] > 0:
        raise ValueError(f"config.sweep.alpha must be positive, got {point['alpha']}")
    if not point["separation"] >= 0:
        raise ValueError(f"config.sweep.separation must not be negative, got {point['separation']}")


def run(config: ConfigDict, point: dict, key: Array) -> dict[str, Array]:
    """The best Gaussian with alpha at either term, and the optimal policy of H-DPO."""
    alpha, separation = point["alpha"], point["separation"]
    weights = jnp.array([[1.0, 0.0], [0.0, 1.0]]) * (alpha - 1) + 1  # of entropy, cross-entropy
    best, slope = jax.vmap(lambda w: best_gaussian(config, w, separation))(weights)
    fine, plain, coarse = (
        jax.vmap(lambda x, nodes=nodes: cross_entropy(x, separation, nodes))(best)
        for nodes in (2 * config.nodes - 1, config.nodes, (config.nodes - 1) // 20 + 1)
    )
    ref, rewards = jnp.array(config.reference), jnp.array(config.rewards)
    log_policy = regularized.greedy(
        rewards, jnp.log(ref) / alpha, alpha * config.beta, generator=generators.kl()
    ).log_policy
    policy = jnp.exp(log_policy)
    return {
        "mean": best[:, 0],
        "deviation": jnp.exp(best[:, 1]),
        "slope": slope,
        "quadrature": jnp.max(jnp.abs(fine[None] - jnp.stack([plain, coarse])), axis=-1),
        "policy": policy,
        "entropy": -jnp.sum(policy * log_policy),
        "h_dpo_slope": jax.vmap(lambda a: jax.grad(lambda x: mean_h_dpo(config, x, a))(log_policy))(
            jnp.stack([alpha, jnp.ones_like(alpha)])
        ),
    }


def cross_entropy(gaussian: Array, separation: Array, nodes: int) -> Array:
    """`H(pi, ref)`, pi normal with this mean and log deviation, ref two unit normals at -s and s.

    The trapezoidal rule over ten deviations on both sides: exponentially accurate here.
    """
    z = jnp.linspace(-10.0, 10.0, nodes)
    weight = jax.nn.softmax(-(z**2) / 2)
    x = gaussian[0] + jnp.exp(gaussian[1]) * z
    return jnp.sum(weight * -log_mixture(x, separation))


def log_mixture(x: Array, separation: Array) -> Array:
    """Log-density of the two modes."""
    apart = jnp.logaddexp(-((x - separation) ** 2) / 2, -((x + separation) ** 2) / 2)
    return apart - jnp.log(2.0) - jnp.log(2 * jnp.pi) / 2


def best_gaussian(config: ConfigDict, weights: Array, separation: Array) -> tuple[Array, Array]:
    """The global minimum over mean and log deviation, and the largest derivative there.

    From a grid of starts, of which the means are not negative by symmetry: Newton's method with the
    absolute values of the Hessian's eigenvalues, each step the best of several lengths.
    """

    def objective(gaussian: Array) -> Array:
        entropy = gaussian[1] + jnp.log(2 * jnp.pi * jnp.e) / 2
        return weights[1] * cross_entropy(gaussian, separation, config.nodes) - weights[0] * entropy

    lengths = jnp.array([1.0, 0.5, 0.25, 0.1, 0.01, 0.0])

    def improve(gaussian: Array, _) -> tuple[Array, None]:
        values, vectors = jnp.linalg.eigh(jax.hessian(objective)(gaussian))
        along = vectors.T @ jax.grad(objective)(gaussian)
        curvature = jnp.maximum(jnp.abs(values), 1e-3)
        move = vectors @ (along / curvature)
        candidates = gaussian[None] - lengths[:, None] * jnp.clip(move, -1, 1)[None]
        # Of equally good ones the longest: close to the minimum they differ by rounding only.
        value = jax.vmap(objective)(candidates)
        return candidates[jnp.argmax(value <= jnp.min(value) + 1e-15)], None

    means = jnp.linspace(0.0, 1.2, config.starts) * separation
    deviations = jnp.linspace(-1.0, 1.5, config.starts)
    starts = jnp.stack(jnp.meshgrid(means, deviations), axis=-1).reshape(-1, 2)
    ends = jax.vmap(lambda x: jax.lax.scan(improve, x, length=config.iterations)[0])(starts)
    best = ends[jnp.argmin(jax.vmap(objective)(ends))]
    return best, jnp.max(jnp.abs(jax.grad(objective)(best)))


def mean_h_dpo(config: ConfigDict, log_policy: Array, alpha: Array) -> Array:
    """Mean loss over all pairs, with Bradley-Terry preferences of the rewards."""
    rewards, log_ref = jnp.array(config.rewards), jnp.log(jnp.array(config.reference))
    shape = 2 * rewards.shape
    pairs = [
        jnp.broadcast_to(x[at], shape)
        for x in (jax.nn.log_softmax(log_policy), log_ref)
        for at in ((slice(None), None), (None, slice(None)))
    ]
    wins = jax.nn.sigmoid(rewards[:, None] - rewards[None])
    return jnp.mean(wins * preference.h_dpo(*pairs, beta=config.beta, alpha=alpha))


def figures(config: ConfigDict, results: xr.Dataset) -> dict[str, Picture]:
    """Mean against alpha, densities, policies."""
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(11.4, 3.8))
    alpha = results.alpha.values
    for separation, style, colour in zip(
        results.separation.values, ("o-", "s--", "^-."), COLORS, strict=False
    ):
        mean = results["mean"].sel(separation=separation, weighted="entropy")
        left.plot(alpha, mean, style, color=colour, markersize=5, label=f"s = {separation:g}")
    left.set(xlabel="α", ylabel="mean of the best Gaussian", xlim=(0.25, 1.35), ylim=(-0.15, 3.9))
    left.legend(loc="upper right")
    x = np.linspace(-7, 7, 401)
    density = np.exp(log_mixture(jnp.asarray(x), jnp.asarray(2.5)))
    middle.fill_between(x, density, color=GREY, label="two modes, s = 2.5")
    chosen = [a for a in (1.0, 0.8, 0.7, 0.5) if a in alpha]
    for a, style, colour in zip(chosen, ("-", "--", "-.", ":"), COLORS, strict=False):
        at = results.sel(separation=2.5, alpha=a, weighted="entropy")
        mean, deviation = float(at["mean"]), float(at.deviation)
        normal = np.exp(-(((x - mean) / deviation) ** 2) / 2) / (deviation * np.sqrt(2 * np.pi))
        middle.plot(x, normal, style, color=colour, label=f"α = {a:g}")
    middle.set(xlabel="x", ylabel="density", ylim=(0, None))
    middle.legend(fontsize="small", loc="upper left")
    policy = results.policy.isel(separation=0)
    names = [f"r = {r:g}, ref {p:g}" for r, p in zip(config.rewards, config.reference, strict=True)]
    for answer, (name, style) in enumerate(zip(names, ("o-", "s--", "^-.", "v:"), strict=False)):
        right.plot(alpha, policy.sel(answer=answer), style, markersize=5, label=name)
    right.set(xlabel="α", ylabel="probability in H-DPO's optimum", xscale="log", ylim=(0, 0.95))
    ticks = [a for a in (0.3, 0.5, 1.0, 2.0) if alpha.min() <= a <= alpha.max()]
    right.set_xticks(ticks, [f"{a:g}" for a in ticks])
    right.minorticks_off()
    right.legend(fontsize="small", loc="upper right", ncols=2)
    return {
        "entropy_control": Picture(
            figure,
            "Left: as α falls the best Gaussian jumps from the middle of two modes at -s and s to"
            " one of them, the later the closer they are. Middle: the fits at s = 2.5. Right: on"
            " four answers a small α sharpens the optimal policy.",
        )
    }


def claims(config: ConfigDict, results: xr.Dataset) -> list[Claim]:
    """The table of policies, the fits, the jump, the evidence."""
    at = results.isel(separation=0)
    alphas = np.array(list(POLICIES))
    order = alphas[::-1] if config.claims.reversed else alphas
    policy = at.policy.sel(alpha=order).transpose("alpha", "answer").values
    expected = np.array([p for p, _ in POLICIES.values()])
    entropies = np.array([h for _, h in POLICIES.values()])
    fits = results.sel(weighted=config.claims.weighted)

    def fitted(what, cases):
        return np.array([float(fits[what].sel(separation=s, alpha=a)) for s, a in cases])

    jumps = [fitted("mean", [(s, low), (s, high)]) / s - (1, 0) for s, (low, high) in JUMPS.items()]
    slope = at.h_dpo_slope.sel(loss=config.claims.loss)
    return [
        Claim(
            "optimal-policies",
            f"{SOURCE}; reference table of an independent computation",
            "ref^(1/alpha) e^(r/(alpha beta)) at alpha = .5, 1, 2, to the table's five digits.",
            policy,
            low=expected - 5.01e-6,
            high=expected + 5.01e-6,
            controls=({"claims.reversed": True},),
        ),
        Claim(
            "entropies-rise-with-alpha",
            f"{SOURCE}; reference table of an independent computation",
            "Their entropies: .8803, 1.1653, 1.3191, to four digits.",
            at.entropy.sel(alpha=order).values,
            low=entropies - 5.01e-5,
            high=entropies + 5.01e-5,
            controls=({"claims.reversed": True},),
        ),
        Claim(
            "the-loss-has-them-for-minimum",
            f"{SOURCE}, the loss from its code",
            "Largest derivative of the mean H-DPO loss at these policies, with Bradley-Terry"
            " preferences of all pairs.",
            float(np.abs(slope).max()),
            high=1e-12,
            controls=({"claims.loss": "DPO"},),
        ),
        Claim(
            "fits-of-two-modes",
            f"{SOURCE}, toy figure, parameters unknown; reference table of an independent"
            " computation",
            "Mean and standard deviation of the global minimum of D_alpha: (0, 2.391), (0, 2.316),"
            " (2.479, .865), (2.489, .790) at s = 2.5, alpha = 1, .8, .7, .6; (1.968, .667) at s ="
            " 2, alpha = .4; (2.984, 1.023), (0, 2.807) at s = 3, alpha = 1, 1.2. To three"
            " decimals.",
            np.stack([fitted("mean", FITS), fitted("deviation", FITS)], axis=-1),
            low=np.array(list(FITS.values())) - 5.01e-4,
            high=np.array(list(FITS.values())) + 5.01e-4,
            controls=({"claims.weighted": "cross-entropy"},),
        ),
        Claim(
            "the-mean-jumps",
            f"{SOURCE}, toy figure",
            "Mean over s, minus one below the threshold and zero above: between .7 and .8 at s ="
            " 2.5, 1 and 1.2 at s = 3. At s = 2 the mean is still 0 at alpha = .5.",
            np.append(np.concatenate(jumps), fitted("mean", [(2.0, 0.5)])),
            low=-0.01,
            high=0.01,
            controls=({"claims.weighted": "cross-entropy"},),
        ),
        Claim(
            "minima-and-integrals-are-exact",
            "Half the step of the trapezoidal rule; the derivative at the minimum",
            "Largest derivative at the minima and largest change of the cross-entropy.",
            [
                float(results.slope.max()),
                float(results.quadrature.isel(nodes=config.claims.nodes).max()),
            ],
            high=1e-9,
            controls=({"claims.nodes": 1},),
        ),
    ]
