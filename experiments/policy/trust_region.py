"""Trust regions with exact gradients: what each update promises, what it keeps, and its rate.

TRPO (Schulman et al. 2015), PPO (2017), MPO (Abdolmaleki et al. 2018), REPS (Peters et al. 2010),
natural gradient and mirror descent (Agarwal et al. 2021; Johnson et al. 2023) and conservative
iteration (Kakade and Langford 2002) on the same random processes. The papers' own experiments are
others; what is claimed are their theorems, most of them from memory.
An iteration is one evaluation of the policy, whatever the update does with it.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
import xarray as xr
from jax import Array
from jax.typing import ArrayLike
from ml_collections import ConfigDict

from experiments.lab.claims import Claim
from experiments.lab.plots import COLORS, Picture
from jdiv import generators, numerics
from jdiv.checks import known
from jdiv.mdp import environments, model, occupancy, operators
from jdiv.mdp.model import Mdp
from jdiv.policy import tabular
from jdiv.policy.clipped import ppo_clip
from jdiv.policy.mpo import e_step, m_step
from jdiv.policy.ppo import adapt_coefficient, ppo_kl
from jdiv.policy.reps import reps
from jdiv.policy.trpo import trpo_step

TRACED = ("seed",)
PER_STEP = ("gap", "kl", "away", "gained", "ratio", "met", "unsolved", "second", "active")
WORST = ("identity", "first_order", "slack", "without_penalty")
DIMS = {name: ("update", "iteration") for name in PER_STEP} | {name: ("update",) for name in WORST}
KL = generators.kl()


def coordinates(config: ConfigDict) -> dict[str, object]:
    """Names of the updates; iterations, of which 0 is the uniform policy and the step from it."""
    return {"update": config.names, "iteration": np.arange(config.iterations)}


def validate(config: ConfigDict, point: dict) -> None:
    """Refuses unknown updates, sizes that are none, and lists of different lengths."""
    for name, kind in zip(config.names, config.kinds, strict=False):
        known(f"config.kinds of {name!r}", kind, UPDATES)
    for field in ("kinds", "sizes", "growths"):
        if len(config[field]) != len(config.names):
            raise ValueError(
                f"config.{field} must have one entry for each of config.names, got"
                f" {len(config[field])} for {len(config.names)}"
            )
    for field in ("sizes", "growths"):
        if not min(config[field]) > 0:
            raise ValueError(f"config.{field} must be positive, got {config[field]}")


# --------------------------------------------------------------------------------------- updates


class Here(NamedTuple):
    """What an update sees."""

    mdp: Mdp
    log_policy: Array
    """`[S, A]`"""
    mass: Array
    """`[S, A]` its occupancy measure."""
    advantages: Array
    """`[S, A]` of it."""
    size: Array
    """Of the step, its radius, or its clip."""
    memory: Array
    """`[]` what it has kept from the step before; 1 at first."""

    @property
    def policy(self) -> Array:
        """`[S, A]` probabilities."""
        return jnp.exp(self.log_policy)

    @property
    def visits(self) -> Array:
        """`[S]` its occupancy of states."""
        return jnp.sum(self.mass, axis=-1)

    def surrogate(self, logits: Array) -> Array:
        """`E_old[w A] / (1 - discount)`."""
        new = jnp.exp(numerics.log_softmax(logits))
        return self.visits @ jnp.sum(new * self.advantages, axis=-1) / (1 - self.mdp.discount)

    def distance(self, logits: Array) -> Array:
        """Mean KL(old‖new) over the states that the old policy visits."""
        return occupancy.action_divergence(self.log_policy, logits, self.visits, generator=KL)


class Step(NamedTuple):
    """A new policy and what was solved for it; 0 where nothing was."""

    log_policy: Array
    memory: Array
    met: ArrayLike = 0.0
    """What the radius bounds; of conservative iteration the gain that it promises."""
    unsolved: ArrayLike = 0.0
    """The same by the natural gradient as it is, without dual, or without the quadratic term."""
    second: ArrayLike = 0.0
    """Of MPO's second step what its radius bounds."""
    active: ArrayLike = 1.0
    """Whether the radius binds."""


def _scheme(make):
    """An update by a scheme that looks at the policy only."""

    def update(config: ConfigDict, at: Here) -> Step:
        return Step(tabular.update(at.mdp, make(at.size), at.log_policy), at.memory)

    return update


def _conservative(config: ConfigDict, at: Here) -> Step:
    best = jnp.exp(operators.greedy(at.advantages).log_policy)
    safe = tabular.safe_mixing(at.mdp, at.policy, best)
    scheme = operators.conservative_iteration(safe.share)
    log_policy = tabular.update(at.mdp, scheme, at.log_policy)
    first_order = safe.share * at.surrogate(jnp.log(best))
    return Step(log_policy, at.memory, safe.gain, first_order)


def _trpo(config: ConfigDict, at: Here) -> Step:
    step = trpo_step(at.surrogate, at.distance, at.log_policy, at.size, iterations=config.conjugate)
    natural = at.advantages / (1 - config.discount)
    log_policy = numerics.log_softmax(step.parameters)
    return Step(log_policy, at.memory, step.divergence, at.distance(at.log_policy + natural))


def _adam(config: ConfigDict, at: Here, loss) -> Array:
    """The policy after the inner steps on a loss per state and action, weighted by the old mass."""
    optimiser = optax.adam(config.inner_rate)

    def descend(state, _):
        logits, moments = state
        slope = jax.grad(lambda x: jnp.sum(at.mass * loss(numerics.log_softmax(x)).loss))(logits)
        with jax.numpy_dtype_promotion("standard"):  # optax mixes integers with floats
            change, moments = optimiser.update(slope, moments)
        return (logits + change, moments), None

    start = at.log_policy, optimiser.init(at.log_policy)
    return numerics.log_softmax(jax.lax.scan(descend, start, length=config.inner)[0][0])


def _ppo_clip(config: ConfigDict, at: Here) -> Step:
    every = jnp.ones(at.mass.shape, bool)

    def loss(log_policy: Array):
        return ppo_clip(log_policy, at.log_policy, at.advantages, every, low=at.size, high=at.size)

    return Step(_adam(config, at, loss), at.memory)


def _ppo_kl(config: ConfigDict, at: Here) -> Step:
    every = jnp.ones(at.mass.shape, bool)

    def loss(log_policy: Array):
        return ppo_kl(log_policy, at.log_policy, at.advantages, every, coefficient=at.memory)

    log_policy = _adam(config, at, loss)
    reached = at.distance(log_policy)
    return Step(log_policy, adapt_coefficient(at.memory, reached, at.size), reached)


def _mpo(config: ConfigDict, at: Here) -> Step:
    found = e_step(at.advantages, at.log_policy, at.size, at.visits)
    mixed = m_step(found.log_policy, at.log_policy, config.m_radius, at.visits)
    # To second order KL is Var(A)/(2 eta^2): the temperature without the dual.
    eta = jnp.sqrt(jnp.sum(at.mass * at.advantages**2) / (2 * at.size))
    rough = at.log_policy + at.advantages / jnp.where(eta > 0, eta, 1)
    unsolved = occupancy.action_divergence(rough, at.log_policy, at.visits, generator=KL)
    binds = found.active.astype(eta.dtype)
    second = jnp.where(mixed.share < 1, mixed.divergence, config.m_radius)
    return Step(mixed.log_policy, at.memory, found.divergence, unsolved, second, binds)


def _reps(config: ConfigDict, at: Here) -> Step:
    """Once the optimum is within the radius there is nothing left to do."""
    log_mass = jnp.log(at.visits)[:, None] + at.log_policy
    found = reps(at.mdp, log_mass, at.size)
    # Without the values that balance the flows: every state by its own advantages.
    rough = jax.nn.softmax(at.log_policy + at.advantages / found.temperature, axis=-1)
    mass = model.occupancy(at.mdp, rough)
    unsolved = occupancy.divergence(jnp.log(mass), log_mass, generator=KL)
    done = at.memory == 0
    active = jnp.where(done, 0, found.active.astype(mass.dtype))
    log_policy = jnp.where(done, at.log_policy, found.log_policy)
    return Step(log_policy, active, found.divergence, unsolved, active=active)


UPDATES = {
    "gradient": _scheme(tabular.gradient_ascent),
    "natural": _scheme(tabular.natural_ascent),
    "mirror": _scheme(operators.policy_mirror_descent),
    "hellinger": _scheme(
        lambda rate: operators.policy_mirror_descent(rate, generator=generators.squared_hellinger())
    ),
    "conservative": _conservative,
    "trpo": _trpo,
    "ppo_clip": _ppo_clip,
    "ppo_kl": _ppo_kl,
    "mpo": _mpo,
    "reps": _reps,
}


# ------------------------------------------------------------------------------------------- runs


def run(config: ConfigDict, point: dict, key: Array) -> dict[str, Array]:
    """Of every update by iteration the suboptimality, and what holds of the step."""
    mdp = environments.garnet(
        key, states=config.states, actions=config.actions, branches=config.branches,
        discount=config.discount,
    )  # fmt: skip
    mdp = model.dense(mdp._replace(reward=(mdp.reward + 1) / 2))
    best = model.optimum(mdp).policy
    # What an action costs at the optimum, exactly 0 for the best one.
    cost = jnp.where(best > 0, 0, -tabular.advantages(mdp, best))
    optimal = model.occupancy(mdp, best)
    policies, evidence = jax.tree.map(
        lambda *kinds: jnp.concatenate(kinds)[_order(config)],
        *(paths(config, mdp, kind) for kind in UPDATES if kind in config.kinds),
    )

    returns = jax.vmap(jax.vmap(lambda x: model.expected_return(mdp, jnp.exp(x))))(policies)

    def measured(log_policy, following, before, after) -> dict[str, Array]:
        old, new = jnp.exp(log_policy), jnp.exp(following)
        mass = model.occupancy(mdp, old)
        visits = jnp.sum(mass, axis=-1)
        gained = tabular.improvement(mdp, old, new)
        first_order = tabular.surrogate(mdp, old, new)
        log_mass = jnp.log(visits)[:, None] + log_policy
        return {
            # By the improvement identity, accurate however small.
            "gap": jnp.sum(mass * cost) / (1 - mdp.discount),
            "kl": occupancy.action_divergence(log_policy, following, visits, generator=KL),
            "away": occupancy.divergence(jnp.log(optimal), log_mass, generator=KL),
            "gained": gained,
            "ratio": jnp.max(jnp.exp(jnp.where(old > 0, following - log_policy, 0))),
            "identity": jnp.abs(gained - (after - before)),
            "first_order": jnp.abs(first_order - (after - before)),
            "slack": gained - tabular.trust_region_bound(mdp, log_policy, following),
            "without_penalty": gained - first_order,
        }

    found = jax.vmap(jax.vmap(measured))(
        policies[:, :-1], policies[:, 1:], returns[:, :-1], returns[:, 1:]
    )
    extremes = {"identity": jnp.max, "first_order": jnp.max, "slack": jnp.min}
    worst = {name: extremes.get(name, jnp.min)(found.pop(name), axis=1) for name in WORST}
    return found | evidence | worst | {"delta": jnp.min(jnp.where(best > 0, jnp.inf, cost))}


def _order(config: ConfigDict) -> np.ndarray:
    """Where each update is after they were put together by kind."""
    kinds = list(UPDATES)
    return np.argsort(np.argsort([kinds.index(kind) for kind in config.kinds], kind="stable"))


def paths(config: ConfigDict, mdp: Mdp, kind: str) -> tuple[Array, dict[str, Array]]:
    """Policies `[n, iterations + 1, S, A]` of a kind's n updates, and evidence of the steps."""
    members = [number for number, other in enumerate(config.kinds) if other == kind]
    size, growth = (jnp.array([config[x][i] for i in members]) for x in ("sizes", "growths"))
    powers = jnp.arange(config.iterations, dtype=size.dtype)
    sizes = size[:, None] * growth[:, None] ** powers[None]
    uniform = jnp.full_like(mdp.reward, -jnp.log(jnp.asarray(config.actions, mdp.reward.dtype)))

    def iterate(state: tuple[Array, Array], size: Array):
        log_policy, memory = state
        policy = jnp.exp(log_policy)
        mass, advantages = model.occupancy(mdp, policy), tabular.advantages(mdp, policy)
        step = UPDATES[kind](config, Here(mdp, log_policy, mass, advantages, size, memory))
        names = ("met", "unsolved", "second", "active")
        evidence = {name: jnp.asarray(getattr(step, name), size.dtype) for name in names}
        return (step.log_policy, step.memory), (step.log_policy, evidence)

    def path(sizes: Array):
        start = uniform, jnp.ones((), uniform.dtype)
        _, (policies, evidence) = jax.lax.scan(iterate, start, sizes)
        return jnp.concatenate([uniform[None], policies]), evidence

    return jax.vmap(path)(sizes)


# ---------------------------------------------------------------------------- figures and claims

STYLES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1, 1, 1)), (0, (1, 1)))
TINY = 1e-250
FITTED = 40


def _label(config: ConfigDict, name: str) -> str:
    """Kind and size of an update."""
    number = config.names.index(name)
    kind, size = config.kinds[number], config.sizes[number]
    sign = {"trpo": "δ", "ppo_kl": "δ", "mpo": "ε", "reps": "ε", "ppo_clip": "clip"}.get(kind, "η")
    growth = " g⁻ᵏ" if config.growths[number] > 1 else ""
    title = {"trpo": "TRPO", "mpo": "MPO", "reps": "REPS", "ppo_clip": "PPO", "ppo_kl": "PPO-KL"}
    kind = title.get(kind, kind)
    return kind if kind == "conservative" else f"{kind}, {sign} = {size:.3g}{growth}"


def figures(config: ConfigDict, results: xr.Dataset) -> dict[str, Picture]:
    """Rates of all updates, and what their steps keep."""
    regions = [n for n in config.names if n in ("trpo", "ppo_clip", "ppo_kl", "mpo", "reps")]
    others = [n for n in config.names if n not in (*regions, "mirror")]
    rates, axes = plt.subplots(1, 2, figsize=(10.8, 4.4), sharey=True)
    gap = results.gap.mean("seed")
    for axis, names in zip(axes, (regions, others), strict=True):
        for name, colour, style in zip(names, COLORS, STYLES, strict=False):
            curve = gap.sel(update=name)
            curve = curve.where(curve > 1e-14)
            axis.plot(curve.iteration, curve, color=colour, ls=style, label=_label(config, name))
        until = 30 if names is regions else 100
        axis.set(xlabel="iteration", yscale="log", xlim=(0, min(config.iterations, until)))
        axis.legend(fontsize="small", loc="best")
    axes[0].set(ylabel="J* - J, mean over processes", title="with a trust region")
    axes[1].set(title="with a step size")

    steps, axes = plt.subplots(1, 2, figsize=(10.8, 4.2))
    for name, colour, style in zip(regions, COLORS, STYLES, strict=False):
        label = _label(config, name)
        here = results.sel(update=name).isel(seed=0)
        axes[0].plot(
            here.iteration, here.kl.where(here.kl > 1e-8), color=colour, ls=style, label=label
        )
        axes[1].plot(here.iteration, here.ratio, color=colour, ls=style, label=label)
    axes[0].set(xlabel="iteration", ylabel="KL(old‖new) of a step, mean over visits", yscale="log")
    axes[1].set(xlabel="iteration", ylabel="largest ratio new/old of a step")
    for axis in axes:
        axis.set(xlim=(0, 20), xticks=range(0, 21, 4))
    axes[0].set_ylim(1e-5, 3)
    axes[0].axhline(config.m_radius, color="black", lw=0.8, ls=":", zorder=1.9)
    axes[1].axhline(1.2, color="black", lw=0.8, ls=":", zorder=1.9)
    axes[1].legend(fontsize="small")
    for axis in (*rates.axes, *axes):
        axis.title.set_fontsize("medium")
    return {
        "rates": Picture(
            rates,
            "Suboptimality by evaluations of the policy, down to 1e-14. Left: with the same radius"
            " the last steps are the longest, and REPS and MPO end at the optimum. Right: the plain"
            " gradient is slow, natural gradient (mirror descent with KL) linear in the end, steps"
            " that grow geometrically at least linear from the beginning.",
        ),
        "steps": Picture(
            steps,
            "What a step does, on one process. Left: TRPO keeps the mean KL below .03 (line), MPO"
            " its second step at it, the penalty of PPO near it; the clip of PPO bounds none. REPS"
            " bounds KL(new‖old) of occupancies, and its last step goes to the optimum, where this"
            " KL is large. Right: nor does the clip at 1.2 (line) bound the ratio.",
        ),
    }


def slopes(results: xr.Dataset, name: str) -> np.ndarray:
    """By process the factor by which the suboptimality falls an iteration at first, fitted."""
    factors = []
    first = results.gap.sel(update=name).transpose("seed", "iteration")[:, :FITTED]
    for gap in first.values:
        gap = gap[gap > TINY]
        factors.append(np.exp(np.polyfit(np.arange(len(gap)), np.log(gap), 1)[0]))
    return np.array(factors)


def late(config: ConfigDict, results: xr.Dataset, name: str) -> np.ndarray:
    """By process the last fall of the logarithm of the suboptimality over eta delta."""
    number = config.names.index(name)
    natural = config.kinds[number] == "natural"
    eta = config.sizes[number] / (1 - config.discount if natural else 1)
    falls = []
    for seed in results.seed.values:
        gap = results.gap.sel(update=name, seed=seed).values
        gap = gap[gap > TINY]
        falls.append(np.log(gap[-2] / gap[-1]) / (eta * float(results.delta.sel(seed=seed))))
    return np.array(falls)


def claims(config: ConfigDict, results: xr.Dataset) -> list[Claim]:
    """Constraints, identities, bounds, rates."""
    asked, at = config.claims, lambda name: results.sel(update=name)
    radius = dict(zip(config.names, config.sizes, strict=True))
    reached = results.met if asked.solved else results.unsolved
    misses = []
    for name in ("mpo", "reps"):
        error = np.abs(reached.sel(update=name) - radius[name])
        misses.append(float(error.where(at(name).active > 0).max()))
    misses.append(float(np.abs(at("mpo").second - config.m_radius).max()))
    new = asked.visits == "new"
    promise = at("conservative").met if asked.penalised else at("conservative").unsolved
    natural = np.log(at("natural").gap.clip(min=TINY))
    partner = np.log(at(asked.partner).gap.clip(min=TINY))
    growing = [name for name in asked.growing if name in config.names]
    nearer = -at("reps").away.diff("iteration", label="lower") - asked.radii * radius["reps"]
    return [
        Claim(
            "duals-meet-their-radius",
            "Peters, Muelling and Altun 2010; Abdolmaleki et al. 2018 (arXiv:1806.06920)",
            "KL of a step minus its radius, where that binds: MPO's first step, REPS, MPO's second"
            " step; the largest over steps and processes. The control has temperatures to second"
            " order, and no values that balance flows.",
            misses,
            high=1e-6,
            controls=({"claims.solved": False},),
        ),
        Claim(
            "trpo-keeps-its-radius",
            "Schulman et al. 2015 (arXiv:1502.05477), appendix C",
            "The largest KL of a step over the radius; the control takes F^-1 g as it is.",
            float(reached.sel(update="trpo").max()) / radius["trpo"],
            low=0.5,
            high=1,
            controls=({"claims.solved": False},),
        ),
        Claim(
            "improvement-identity",
            "Kakade and Langford 2002, lemma 6.1",
            "J' - J = E[A] / (1 - g) over the new policy's visits: the largest error over all"
            " updates; the control has the old policy's.",
            float((results.identity if new else results.first_order).max()),
            high=1e-11,
            controls=({"claims.visits": "old"},),
        ),
        Claim(
            "trust-region-bound",
            "Schulman et al. 2015 (arXiv:1502.05477), theorem 1",
            "J' - J minus the surrogate with its penalty 4 eps g/(1 - g)^2 max KL: the smallest"
            " over all updates; the control is without penalty.",
            float((results.slack if asked.penalised else results.without_penalty).min()),
            low=-1e-11,
            controls=({"claims.penalised": False},),
        ),
        Claim(
            "conservative-steps-keep-their-promise",
            "Kakade and Langford 2002, theorem 4.1, constants from memory",
            "J' - J minus a A/(1 - g) - 2 a^2 g eps/(1 - g)^2, and that promise, the smallest; the"
            " control is without the quadratic term.",
            [float((at("conservative").gained - promise).min()), float(promise.min())],
            low=(-1e-12, 0),
            controls=({"claims.penalised": False},),
        ),
        Claim(
            "natural-gradient-is-mirror-descent",
            "Agarwal, Kakade, Lee and Mahajan 2021 (arXiv:1908.00261), lemma 15",
            "logits + eta A/(1 - g) against pi exp(eta/(1 - g) q): the largest difference of the"
            " logarithm of the suboptimality; the control leaves out 1/(1 - g).",
            float(np.abs(natural - partner).max()),
            high=1e-8,
            controls=({"claims.partner": "smaller"},),
        ),
        Claim(
            "growing-steps-are-linear",
            "Johnson, Pike-Burke and Rebeschini 2023 (arXiv:2302.11381), from memory",
            f"With eta_k = g^-k the suboptimality falls by at least g = {config.discount:g} an"
            " iteration, for KL (and Hellinger's distance, not at smoke scale): the slowest factor"
            f" fitted to the first {FITTED}; the control has constant steps.",
            float(max(slopes(results, name).max() for name in growing)),
            high=config.discount,
            controls=({"claims.growing": ("smaller",)},),
        ),
        Claim(
            "natural-gradient-is-linear-in-the-end",
            "Khodadadian et al. 2021 (arXiv:2105.01424), from memory",
            "The last fall of log(J* - J) in an iteration over eta delta, delta the least advantage"
            " that a wrong action lacks at the optimum: median over processes; the control's steps"
            " grow.",
            float(np.median(late(config, results, asked.linear))),
            low=0.9,
            high=1.1,
            controls=({"claims.linear": "growing"},),
        ),
        Claim(
            "reps-comes-nearer-by-its-radius",
            "Csiszar 1975: Pythagoras' inequality of I-projections",
            "KL(mu*‖mu) falls by at least the radius while that binds, so REPS ends after"
            " KL(mu*‖mu_0)/radius steps: the least fall minus the radius.",
            float(nearer.where(at("reps").active > 0).min()),
            low=-1e-8,
            controls=({"claims.radii": 10.0},),
        ),
    ]
