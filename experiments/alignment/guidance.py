"""Q# from rollouts of the reference, and guidance by the reference's own values, at equal KL.

Q# (Zhou et al. 2025, arXiv:2502.20548) tilts the reference by `beta log E_ref e^(Z/beta)`, fitted
on aggregated data: rollouts of the reference from where the policies of earlier rounds lead.
Guidance without a regularizer (Mudgal et al. 2023, arXiv:2310.17022) tilts by `E_ref[Z]`. The paper
has language models and, in its abstract, an error that is smaller where the reference's return
varies less; here are trees whose ends have random rewards, of which everything is known.
"""

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jax import Array
from ml_collections import ConfigDict

from experiments.lab.axes import count, each, fraction, non_negative, positive, seeds
from experiments.lab.claims import Finding, at_least, at_most, between, claim
from experiments.lab.plots import COLORS, Picture, curve, panels, style, ticks
from experiments.lab.results import Labelled, labelled
from jdiv import divergences, generators
from jdiv.alignment import q_sharp, tilts

AXES = {"beta": positive, "noise": fraction, "factor": positive, "seed": seeds}
FIELDS = {
    "actions": count,
    "longest": count,
    "places": each(non_negative),
    "shares": each(fraction),
    "width": count,
    "rounds": count,
    "rollouts": count,
    "prior": positive,
}
VALUES = 11
SUPPORT = np.linspace(0, 1, VALUES)
NAMES = {"Q#": "Q#", "mean": "mean return"}
GUIDES = tuple(NAMES)
LAWS = ("even", "all or nothing")
DATA = ("exact", "aggregated", "reference")
KL = generators.kl()
PAPER = "Zhou et al. 2025 (arXiv:2502.20548)"
UNREGULARIZED = {"sweep.factor": (100.0,)}
"""Values of a law for a hundred times beta, which are its mean."""


def tree(actions: int, longest: int) -> np.ndarray:
    """Children of every node, by depth; the last have none."""
    inner = sum(actions**depth for depth in range(longest))
    children = np.full((inner + actions**longest, actions), -1)
    children[:inner] = 1 + np.arange(inner * actions).reshape(inner, actions)
    return children


def run(config: ConfigDict, point: dict, key: Array) -> dict[str, Array | Labelled]:
    """Reward, KL, and what both fall short of the best at equal KL and at equal beta."""
    children = tree(config.actions, config.longest)
    ends = np.flatnonzero(children[:, 0] < 0)
    of_reference, of_rewards, of_data = jax.random.split(key, 3)
    log_ref = jax.nn.log_softmax(jax.random.normal(of_reference, children.shape))
    log_shares = jnp.log(jnp.array(config.shares))
    places = jax.random.categorical(of_rewards, log_shares, shape=(len(children),))
    places = jnp.array(config.places)[places]
    means = jnp.array(SUPPORT)[places][ends]
    of_ends = at_ends(children, log_ref, config.longest)[ends]
    log_law = jnp.log(rewards_of(config, point, places))  # [law, nodes, values]

    def guided(law_of_return):
        """Log-policies by either guide, `[guide, nodes, actions]`."""
        by = jnp.array(SUPPORT), point["factor"] * point["beta"]
        q = q_sharp.q_values(children, law_of_return, *by)
        mean = q_sharp.expected_returns(children, law_of_return, by[0])
        return jnp.stack([q_sharp.optimal_policy(x, log_ref, point["beta"]) for x in (q, mean)])

    def learned(log_law, aggregated, key):
        return guided(fitted(config, children, log_ref, log_law, guided, aggregated, key))

    def of_law(log_law, key):
        exact = guided(q_sharp.return_laws(children, log_ref, log_law, depth=config.longest))
        flags = jnp.array([1.0, 0.0])
        return jnp.concatenate(
            [exact[None], jax.vmap(learned, (None, 0, None))(log_law, flags, key)]
        )

    policies = jax.vmap(of_law, (0, None))(log_law, of_data)

    def measured(log_policy):
        found = at_ends(children, log_policy, config.longest)[ends]
        reward, kl = jnp.exp(found) @ means, divergences.kl(found, of_ends)
        best = tilts.tilted_to(means, of_ends, kl, generator=KL).log_policy
        optimum = tilts.tilted(means, of_ends, point["beta"], generator=KL).value
        return {
            "reward": reward,
            "kl": kl,
            "short": jnp.exp(best) @ means - reward,
            "regret": optimum - reward + point["beta"] * kl,
        }

    for _ in range(3):
        measured = jax.vmap(measured)
    return {
        name: labelled(x, law=LAWS, data=DATA, guide=GUIDES)
        for name, x in measured(policies).items()
    } | {"variation": labelled(variation(point, of_ends, log_law[:, ends]), law=LAWS)}


def variation(point: dict, of_ends: Array, log_law: Array) -> Array:
    """Variance of `e^(Z/beta)` under the reference, over the square of its mean, by law."""
    log_returns = jax.nn.logsumexp(of_ends[None, :, None] + log_law, axis=1)
    moments = [
        jax.nn.logsumexp(log_returns + k * jnp.array(SUPPORT)[None] / point["beta"], axis=1)
        for k in (1, 2)
    ]
    return jnp.expm1(moments[1] - 2 * moments[0])


def at_ends(children: np.ndarray, log_policy: Array, longest: int) -> Array:
    """Log-probabilities to come to each node."""
    reached = jnp.zeros(len(children))
    first, width = 0, 1
    for _ in range(longest):
        nodes = slice(first, first + width)
        below = children[nodes].ravel()
        steps = (reached[nodes, None] + log_policy[nodes]).ravel()
        reached = reached.at[below].set(steps)
        first, width = first + width, width * children.shape[1]
    return reached


def rewards_of(config: ConfigDict, point: dict, places: Array) -> Array:
    """The laws of the reward `[law, nodes, values]` with these means: even noise, and 0 or 1."""
    spot = lambda at: jax.nn.one_hot(at, VALUES, dtype=point["noise"].dtype)
    mean = jnp.array(SUPPORT)[places][:, None]
    even = (spot(places - config.width) + spot(places + config.width)) / 2
    binary = (1 - mean) * spot(jnp.zeros_like(places)) + mean * spot(0 * places + VALUES - 1)
    return (1 - point["noise"]) * spot(places)[None] + point["noise"] * jnp.stack([even, binary])


# ---------------------------------------------------------------------------------------- learning


def fitted(config, children, log_ref, log_law, guided, aggregated, key: Array) -> Array:
    """The laws of the return, fitted on all rollouts of all rounds.

    The first steps of a rollout, a number drawn for each, are of Q#'s last policy; its others, and
    all in place of aggregated data, of the reference.
    """
    size = config.rollouts, config.longest + 1
    prior = config.prior * jax.nn.one_hot(0, VALUES, dtype=log_ref.dtype)
    nothing = jnp.full((config.rounds, *size), -1)

    def fit(visited, outcomes):
        outcomes = jnp.broadcast_to(outcomes[..., None], visited.shape)
        flat = visited.ravel(), outcomes.ravel()
        return q_sharp.fit_return_laws(*flat, prior, nodes=len(children))

    def a_round(state, number):
        visited, outcomes, key = state
        key, of_start, of_steps, of_reward = jax.random.split(key, 4)
        log_policy = guided(fit(visited, outcomes))[0]
        log_policy = jnp.where(aggregated > 0, log_policy, log_ref)
        switch = jax.random.randint(of_start, size[:1], 0, config.longest)

        def step(node, at):
            depth, key = at
            log_p = jnp.where((depth < switch)[:, None], log_policy[node], log_ref[node])
            after = jnp.array(children)[node, jax.random.categorical(key, log_p)]
            return after, jnp.where(depth < switch, -1, node)

        depths = jnp.arange(config.longest)
        start = jnp.zeros(config.rollouts, jnp.array(children).dtype)
        end, seen = jax.lax.scan(step, start, (depths, jax.random.split(of_steps, config.longest)))
        outcome = jax.random.categorical(of_reward, log_law[end])
        seen = jnp.concatenate([seen.T, end[:, None]], axis=1)
        return (visited.at[number].set(seen), outcomes.at[number].set(outcome), key), None

    start = nothing, jnp.zeros((config.rounds, config.rollouts), int), key
    (visited, outcomes, _), _ = jax.lax.scan(a_round, start, jnp.arange(config.rounds))
    return fit(visited, outcomes)


# ---------------------------------------------------------------------------------------- figures


def _means(results: xr.Dataset) -> xr.Dataset:
    """Over trees."""
    return results.isel(factor=0).mean("seed")


def figures(config: ConfigDict, results: xr.Dataset) -> dict[str, Picture]:
    """What is missing to the best at equal KL, exactly and from rollouts; where Q# cannot go."""
    figure, (left, middle, right) = panels(3, width=4.0, height=3.9)
    at = _means(results).sortby("beta")
    most = at.noise.values[-1]
    for number, guide in enumerate(GUIDES):
        for axis, law in ((left, "even"), (middle, "all or nothing")):
            here = at.sel(guide=guide, law=law)
            for data, line in (("exact", "-"), ("aggregated", "--")):
                one = here.sel(data=data, noise=most)
                axis.plot(
                    one.kl, one.short, line, color=COLORS[number], marker="os"[number],
                    markersize=5, label=f"{NAMES[guide]}, {data}",
                )  # fmt: skip
    for axis, law in ((left, "even noise"), (middle, "rewards of 0 or 1")):
        axis.set(xlabel="KL(π‖ref), nats", ylabel="reward short of the best at this KL")
        axis.set_title(law, fontsize="medium")
        axis.set_xscale("log")
        axis.set_ylim(-0.005, 0.27)
    left.legend(fontsize="small", loc="upper left")
    errors = at.regret.sel(law="even", guide="Q#", data="aggregated")
    for number, noise in enumerate(at.noise.values):
        look = style(number, marker=True) | {"label": f"{noise:g} of rollouts noisy"}
        curve(right, "beta", errors.sel(noise=noise), **look)
    right.set(xscale="log", xlabel="β", ylabel="regret of Q# from rollouts", ylim=(0, 0.07))
    ticks(right, x=at.beta.values)
    right.set_title("even noise", fontsize="medium")
    right.legend(fontsize="small", loc="upper left")
    return {
        "guidance": Picture(
            figure,
            "Left: with even noise Q# is the best policy at its KL, guidance by the mean return of"
            " the reference is not, and from rollouts it is farther off. Middle: with rewards of"
            " 0 or 1 Q# spends hardly any KL at any β. Right: at β = .1 Q# is worst off where half"
            " of the rewards are noisy, for there e^(Z/β) varies most.",
        )
    }


# ----------------------------------------------------------------------------------------- claims


@claim(
    source=f"{PAPER}: the optimum is a tilt by the law of the return. Even noise is a constant",
    reruns=(UNREGULARIZED,),
    wrong=({"guide": "mean"}, {"law": "all or nothing"}),
    needs={"beta": ..., "noise": ..., "seed": ...},
)
def with_even_noise_it_is_the_best(
    results: xr.Dataset, guide: str = "Q#", law: str = "even"
) -> Finding:
    """From exact laws, even noise: the largest amount of reward short of the best policy at equal
    KL, and of the regularized reward short of the best at equal beta."""
    at = results.sel(guide=guide, law=law, data="exact")
    return at_most(1e-9, [np.abs(at[name]).max() for name in ("short", "regret")])


@claim(
    source=f"{PAPER}; Mudgal et al. 2023 (arXiv:2310.17022)",
    wrong=({"beta": 0.5},),
    needs={"beta": (0.05, 0.1, 0.5)},
)
def the_mean_return_is_short_at_equal_kl(results: xr.Dataset, beta: float = 0.05) -> Finding:
    """At beta = .05, even noise: reward of guidance by the mean return, short of the best at its
    KL, from exact laws."""
    at = _means(results).sel(law="even", guide="mean", data="exact")
    return at_least(0.005, at.short.sel(beta=beta))


@claim(
    source=PAPER,
    reruns=(UNREGULARIZED,),
    wrong=({"betas": (0.5,)},),
    needs={"beta": (0.05, 0.1, 0.5)},
)
def from_rollouts_it_is_nearer_too(results: xr.Dataset, betas: tuple = (0.05, 0.1)) -> Finding:
    """From aggregated rollouts, even noise: what Q# is short of the best at its KL, over what
    guidance by the mean return is, for each noise at beta = .05 and .1."""
    short = _means(results).short.sel(law="even", data="aggregated", beta=list(betas))
    return at_most(0.8, short.sel(guide="Q#") / short.sel(guide="mean"))


@claim(source="No paper: measured here", wrong=({"law": "even"},), needs={"beta": (0.05,)})
def rewards_of_0_or_1_are_not_tilted_by_their_mean(
    results: xr.Dataset, law: str = "all or nothing"
) -> Finding:
    """At beta = .05, rewards 0 or 1, exact laws: the KL of Q# over that of the best policy at this
    beta, and the regret of guidance by the mean return over that of Q#."""
    at = _means(results).sel(beta=0.05, noise=1.0, data="exact")
    best = at.kl.sel(law="even", guide="Q#")
    at = at.sel(law=law)
    rest = at.regret.sel(guide="mean") / at.regret.sel(guide="Q#")
    return between((0, 0), [at.kl.sel(guide="Q#") / best, rest], (0.1, 0.5))


@claim(
    source=f"{PAPER}, abstract: smaller errors where the variance is small",
    reruns=(UNREGULARIZED,),
    wrong=({"guide": "mean"},),
    needs={"beta": (0.1,)},
)
def errors_follow_the_variation_of_the_tilt(results: xr.Dataset, guide: str = "Q#") -> Finding:
    """At beta = .1, even noise, the mean of both kinds of data: regret with no noise and with all,
    over that with half, where the variance of e^(Z/beta) over its squared mean is the largest;
    then these variations, over it. The variance of Z itself is largest with all."""
    at = _means(results).sel(beta=0.1, law="even")
    regret = at.regret.sel(guide=guide, data=["aggregated", "reference"]).mean("data")
    ratios = [x.sel(noise=[0.0, 1.0]) / x.sel(noise=0.5) for x in (regret, at.variation)]
    return at_most(0.9, ratios)


@claim(
    source=f"{PAPER}: data are aggregated; that it helps is refuted on these trees",
    wrong=({"data": "exact"},),
    needs={"beta": (0.05, 0.1)},
)
def aggregated_data_are_no_better(results: xr.Dataset, data: str = "aggregated") -> Finding:
    """Regret of Q# with aggregated data over that with rollouts of the reference alone, even noise,
    the mean over noise and beta = .05 and .1."""
    regret = _means(results).regret.sel(law="even", guide="Q#", beta=[0.05, 0.1])
    regret = regret.mean(("noise", "beta"))
    return at_least(0.8, regret.sel(data=data) / regret.sel(data="reference"))
