"""H-DPO's alpha decides between covering modes and seeking one.

H-DPO (arXiv:2411.07595) minimizes `D_alpha = -alpha H(pi) + H(pi, ref)` in place of reverse KL. Its
toy figure fits a Gaussian to a mixture of two; the parameters there are unknown, and the reference
numbers are an independent computation for modes at -s and s.
"""

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jax import Array
from ml_collections import ConfigDict

from experiments.lab.axes import at_least, count, non_negative, one_of, positive
from experiments.lab.claims import Finding, at_most, claim, equals
from experiments.lab.plots import GREY, Picture, curve, curves, panels, pick, some, style, ticks
from experiments.lab.results import Labelled, labelled
from jdiv import regularized
from jdiv.alignment import preference
from jdiv.divergences import generators

AXES = {"alpha": positive, "separation": non_negative}
FIELDS = {
    "weighted": one_of(("entropy", "cross-entropy")),
    "nodes": at_least(2),
    "beta": positive,
    "iterations": count,
    "starts": count,
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
# The other term weighted, which is what alpha is easily taken for.
FEW = {"sweep.alpha": (0.4, 0.5, 0.6, 0.7, 0.8, 1.0, 1.2, 2.0), "starts": 3, "iterations": 15}
CROSS_ENTROPY = {"weighted": "cross-entropy", **FEW}


def run(config: ConfigDict, point: dict, key: Array) -> dict[str, Array | Labelled]:
    """The best Gaussian with alpha at one of the terms, and the optimal policy."""
    alpha, separation = point["alpha"], point["separation"]
    one = jnp.ones_like(alpha)
    of_entropy = config.weighted == "entropy"
    entropy_weight, cross_weight = (alpha, one) if of_entropy else (one, alpha)
    best, slope = best_gaussian(config, jnp.stack([entropy_weight, cross_weight]), separation)
    fine, plain = (cross_entropy(best, separation, n) for n in (2 * config.nodes - 1, config.nodes))
    log_policy = regularized.greedy(
        jnp.array(config.rewards),
        cross_weight * jnp.log(jnp.array(config.reference)) / entropy_weight,
        entropy_weight * config.beta,
        generator=generators.kl(),
    ).log_policy
    policy = jnp.exp(log_policy)
    slope_of_loss = jax.grad(mean_h_dpo, argnums=1)
    slopes = jax.vmap(lambda a: slope_of_loss(config, log_policy, a))(jnp.stack([alpha, one]))
    answers = range(len(config.rewards))
    return {
        "mean": best[0],
        "deviation": jnp.exp(best[1]),
        "slope": slope,
        "quadrature": jnp.abs(fine - plain),
        "policy": labelled(policy, answer=answers),
        "policy_entropy": -jnp.sum(policy * log_policy),
        "slope_of_loss": labelled(slopes, loss=("H-DPO", "DPO"), answer=answers),
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
    absolute values of the Hessian's eigenvalues, each step the best of several lengths. `weights`
    are those of the entropy and of the cross-entropy.
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
        # The longest of equally good ones: close to the minimum they differ by rounding only.
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
    figure, (left, middle, right) = panels(3, width=3.8)
    alpha = results.alpha.values
    by_separation = results["mean"].assign_coords(
        separation=[f"s = {s:g}" for s in results.separation.values]
    )
    curves(left, "alpha", by_separation, "separation", marker=True)
    left.set(xlabel="α", ylabel="mean of the best Gaussian", xlim=(0.25, 1.35), ylim=(-0.15, 3.9))
    left.legend(loc="upper right")
    x = np.linspace(-7, 7, 401)
    separation = pick(results.separation, 2.5)
    density = np.exp(log_mixture(jnp.asarray(x), jnp.asarray(separation)))
    middle.fill_between(x, density, color=GREY, label=f"two modes, s = {separation:g}")
    for number, a in enumerate(some(results.alpha, (1.0, 0.8, 0.7, 0.5))):
        at = results.sel(separation=separation, alpha=a)
        mean, deviation = float(at["mean"]), float(at.deviation)
        normal = np.exp(-(((x - mean) / deviation) ** 2) / 2) / (deviation * np.sqrt(2 * np.pi))
        middle.plot(x, normal, label=f"α = {a:g}", **style(number))
    middle.set(xlabel="x", ylabel="density", ylim=(0, None))
    middle.legend(fontsize="small", loc="upper left")
    policy = results.policy.isel(separation=0)
    for number, (r, p) in enumerate(zip(config.rewards, config.reference, strict=True)):
        look = style(number, marker=True)
        curve(right, "alpha", policy.isel(answer=number), label=f"r = {r:g}, ref {p:g}", **look)
    right.set(xlabel="α", ylabel="probability in H-DPO's optimum", xscale="log", ylim=(0, 0.95))
    ticks(right, x=[a for a in (0.3, 0.5, 1.0, 2.0) if alpha.min() <= a <= alpha.max()])
    right.legend(fontsize="small", loc="upper right", ncols=2)
    return {
        "h_dpo": Picture(
            figure,
            "Left: as α falls the best Gaussian jumps from the middle of two modes at -s and s to"
            " one of them, the later the closer they are. Middle: the fits at"
            f" s = {separation:g}. Right: on"
            " four answers a small α sharpens the optimal policy.",
        )
    }


def fitted(results: xr.Dataset, what: str, cases: list[tuple[float, float]]) -> np.ndarray:
    """`mean` or `deviation` of the best Gaussian by separation and alpha."""
    return np.array([results[what].sel(separation=s, alpha=a).item() for s, a in cases])


@claim(
    source=f"{SOURCE}; an independent computation",
    reference=[policy for policy, _ in POLICIES.values()],
    reruns=(CROSS_ENTROPY,),
    needs={"separation": ...},
)
def optimal_policies(results: xr.Dataset) -> Finding:
    """ref^(1/alpha) e^(r/(alpha beta)) at alpha = .5, 1, 2, to the reference's five digits."""
    policy = results.policy.isel(separation=0).sel(alpha=list(POLICIES))
    expected = [policy for policy, _ in POLICIES.values()]
    return equals(expected, policy.transpose("alpha", "answer"), decimals=5)


@claim(
    source=f"{SOURCE}; an independent computation",
    reference=[entropy for _, entropy in POLICIES.values()],
    reruns=(CROSS_ENTROPY,),
    needs={"separation": ...},
)
def entropies_rise_with_alpha(results: xr.Dataset) -> Finding:
    """The entropies of the optimal policies at alpha = .5, 1, 2: .8803, 1.1653, 1.3191, to four
    digits."""
    entropy = results.policy_entropy.isel(separation=0).sel(alpha=list(POLICIES))
    return equals([entropy for _, entropy in POLICIES.values()], entropy, decimals=4)


@claim(
    source=f"{SOURCE}, the loss from a reimplementation",
    reruns=(CROSS_ENTROPY,),
    wrong=({"loss": "DPO"},),
    needs={"separation": ...},
)
def the_loss_has_them_for_minimum(results: xr.Dataset, loss: str = "H-DPO") -> Finding:
    """The largest derivative of the mean H-DPO loss at the optimal policies, with Bradley-Terry
    preferences of all pairs."""
    return at_most(1e-12, np.abs(results.slope_of_loss.isel(separation=0).sel(loss=loss)).max())


@claim(
    source=f"{SOURCE}, toy figure, parameters unknown; an independent computation",
    reference=list(FITS.values()),
    reruns=(CROSS_ENTROPY,),
)
def fits_of_two_modes(results: xr.Dataset) -> Finding:
    """The mean and standard deviation of the global minimum of D_alpha: (0, 2.391), (0, 2.316),
    (2.479, .865), (2.489, .790) at s = 2.5, alpha = 1, .8, .7, .6; (1.968, .667) at s = 2, alpha =
    .4; (2.984, 1.023), (0, 2.807) at s = 3, alpha = 1, 1.2. To three decimals."""
    found = [fitted(results, what, FITS) for what in ("mean", "deviation")]
    return equals(list(FITS.values()), np.stack(found, axis=-1), decimals=3)


@claim(source=f"{SOURCE}, toy figure", reruns=(CROSS_ENTROPY,))
def the_mean_jumps(results: xr.Dataset) -> Finding:
    """The mean over s, minus one below the threshold and zero above: between .7 and .8 at s = 2.5,
    1 and 1.2 at s = 3. At s = 2 the mean is still 0 at alpha = .5."""
    jumps = [
        fitted(results, "mean", [(s, low), (s, high)]) / s - (1, 0)
        for s, (low, high) in JUMPS.items()
    ]
    still = fitted(results, "mean", [(2.0, 0.5)])
    return equals(0, np.concatenate([*jumps, still]), tolerance=0.01)


@claim(
    source="Half the step of the trapezoidal rule; the derivative at the minimum",
    reruns=({"nodes": 21, **FEW},),
)
def minima_and_integrals_are_exact(results: xr.Dataset) -> Finding:
    """The largest derivative at the minima and the largest change of the cross-entropy when the
    step of its integral is halved."""
    return at_most(1e-9, (results.slope.max(), results.quadrature.max()))
