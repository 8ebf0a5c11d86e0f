"""Trust regions with exact gradients: what each update promises, what it keeps, and its rate.

TRPO (Schulman et al. 2015), PPO (2017), MPO (Abdolmaleki et al. 2018), REPS (Peters et al. 2010),
natural gradient and mirror descent (Agarwal et al. 2021; Johnson et al. 2023) and conservative
iteration (Kakade and Langford 2002) on the same random processes. The papers' own experiments are
others; what is claimed are their theorems.
An iteration is one evaluation of the policy, whatever the update does with it.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray as xr
from jax import Array
from jax.typing import ArrayLike
from ml_collections import ConfigDict

from experiments.lab.axes import (
    above,
    count,
    each,
    in_order,
    non_negative,
    one_of,
    positive,
    process,
    seeds,
)
from experiments.lab.claims import Finding, at_least, at_most, between, claim
from experiments.lab.plots import Picture, curve, panels, style
from experiments.lab.results import Labelled, labelled
from jdiv import generators, numerics
from jdiv.mdp import environments, model, occupancy, operators
from jdiv.mdp.model import Mdp
from jdiv.policy import tabular
from jdiv.policy.clipped import ppo_clip
from jdiv.policy.mpo import e_step, m_step
from jdiv.policy.ppo import adapt_coefficient, ppo_kl
from jdiv.policy.reps import reps
from jdiv.policy.trpo import trpo_step

KL = generators.kl()
UNSOLVED = {
    "solved": False,
    "names": ("conservative", "trpo", "mpo", "reps"),
    "kinds": ("conservative", "trpo", "mpo", "reps"),
    "sizes": (1.0, 0.03, 0.1, 0.03),
    "growths": (1.0, 1.0, 1.0, 1.0),
    "iterations": 40,
    "sweep.seed": (0, 1),
}


def validate(config: ConfigDict, point: dict) -> None:
    """Refuses lists of different lengths."""
    in_order(config, "branches", "states")
    for field in ("kinds", "sizes", "growths"):
        if len(config[field]) != len(config.names):
            raise ValueError(
                f"config.{field} must have one entry for each of config.names, got"
                f" {len(config[field])} for {len(config.names)}"
            )


# --------------------------------------------------------------------------------------- updates


class Here(NamedTuple):
    """What an update sees."""

    mdp: Mdp
    log_policy: Array
    """`[S, A]`"""
    mass: Array
    """`[S, A]` its occupancy measure."""
    advantages: Array
    """`[S, A]` its advantages."""
    size: Array
    """`[]` the step size, the radius, or the clip."""
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
    """What the radius bounds; for conservative iteration the gain that it promises."""
    second: ArrayLike = 0.0
    """What the radius of MPO's second step bounds."""
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
    return Step(log_policy, at.memory, safe.gain if config.solved else first_order)


def _trpo(config: ConfigDict, at: Here) -> Step:
    if not config.solved:
        natural = at.advantages / (1 - config.discount)
        log_policy = numerics.log_softmax(at.log_policy + natural)
        return Step(log_policy, at.memory, at.distance(log_policy))
    step = trpo_step(at.surrogate, at.distance, at.log_policy, at.size, iterations=config.conjugate)
    return Step(numerics.log_softmax(step.parameters), at.memory, step.divergence)


def _adam(config: ConfigDict, at: Here, loss) -> Array:
    """The policy after the inner steps on a loss per state and action, weighted by the old mass."""
    optimizer = optax.adam(config.inner_step_size)

    def descend(state, _):
        logits, moments = state
        slope = jax.grad(lambda x: jnp.sum(at.mass * loss(numerics.log_softmax(x)).loss))(logits)
        with jax.numpy_dtype_promotion("standard"):  # optax mixes integers with floats
            change, moments = optimizer.update(slope, moments)
        return (logits + change, moments), None

    start = at.log_policy, optimizer.init(at.log_policy)
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
    target, met = found.log_policy, found.divergence
    if not config.solved:
        # To second order KL is Var(A)/(2 eta^2): the temperature without the dual.
        temperature = jnp.sqrt(jnp.sum(at.mass * at.advantages**2) / (2 * at.size))
        target = at.log_policy + at.advantages / jnp.where(temperature > 0, temperature, 1)
        met = occupancy.action_divergence(target, at.log_policy, at.visits, generator=KL)
    mixed = m_step(target, at.log_policy, config.m_radius, at.visits)
    second = jnp.where(mixed.share < 1, mixed.divergence, config.m_radius)
    return Step(mixed.log_policy, at.memory, met, second, found.active.astype(met.dtype))


def _reps(config: ConfigDict, at: Here) -> Step:
    """Once the optimum is within the radius there is nothing left to do."""
    log_mass = jnp.log(at.visits)[:, None] + at.log_policy
    found = reps(at.mdp, log_mass, at.size)
    following, met = found.log_policy, found.divergence
    if not config.solved:
        # Without the values that balance the flows: every state by its own advantages.
        following = numerics.log_softmax(at.log_policy + at.advantages / found.temperature)
        mass = model.occupancy(at.mdp, jnp.exp(following))
        met = occupancy.divergence(jnp.log(mass), log_mass, generator=KL)
    done = at.memory == 0
    active = jnp.where(done, 0, found.active.astype(met.dtype))
    return Step(jnp.where(done, at.log_policy, following), active, met, active=active)


UPDATES = {
    "gradient": _scheme(tabular.gradient_ascent),
    "natural": _scheme(tabular.natural_ascent),
    "mirror": _scheme(operators.policy_mirror_descent),
    "hellinger": _scheme(
        lambda step_size: operators.policy_mirror_descent(
            step_size, generator=generators.squared_hellinger()
        )
    ),
    "conservative": _conservative,
    "trpo": _trpo,
    "ppo_clip": _ppo_clip,
    "ppo_kl": _ppo_kl,
    "mpo": _mpo,
    "reps": _reps,
}
AXES = {"seed": seeds}
FIELDS = {
    "kinds": each(one_of(UPDATES)),
    "sizes": each(positive),
    "growths": each(positive),
    "iterations": above(1),
    **process,
    "conjugate": count,
    "inner": count,
    "inner_step_size": non_negative,
    "m_radius": positive,
}


# ------------------------------------------------------------------------------------------- runs


def run(config: ConfigDict, point: dict, key: Array) -> dict[str, Array | Labelled]:
    """The suboptimality by iteration of every update, and what holds of the step."""
    mdp = environments.garnet(
        key, states=config.states, actions=config.actions, branches=config.branches,
        discount=config.discount,
    )  # fmt: skip
    mdp = model.dense(mdp._replace(reward=(mdp.reward + 1) / 2))
    best = model.optimum(mdp).policy
    # What an action costs at the optimum, exactly 0 for the best one.
    cost = jnp.where(best > 0, 0, -tabular.advantages(mdp, best))
    policies, evidence = jax.tree.map(
        lambda *kinds: jnp.concatenate(kinds)[_order(config)],
        *(paths(config, mdp, kind) for kind in UPDATES if kind in config.kinds),
    )
    found = evidence | measured(mdp, policies, cost, jnp.log(model.occupancy(mdp, best)))
    extremes = {"identity": jnp.max, "first_order": jnp.max} | {
        name: jnp.min for name in ("slack", "without_penalty")
    }
    worst = {name: extreme(found.pop(name), axis=1) for name, extreme in extremes.items()}
    update = {"update": config.names}
    by_iteration = update | {"iteration": range(config.iterations)}
    return {
        **{name: labelled(x, **by_iteration) for name, x in found.items()},
        **{name: labelled(x, **update) for name, x in worst.items()},
        "delta": jnp.min(jnp.where(best > 0, jnp.inf, cost)),
    }


def measured(mdp: Mdp, policies: Array, cost: Array, log_optimal: Array) -> dict[str, Array]:
    """What holds of each step `[update, iteration]` between log-policies."""
    returns = jax.vmap(jax.vmap(lambda x: model.expected_return(mdp, jnp.exp(x))))(policies)

    def of_step(log_policy, following, before, after) -> dict[str, Array]:
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
            "away": occupancy.divergence(log_optimal, log_mass, generator=KL),
            "gained": gained,
            "ratio": jnp.max(jnp.exp(jnp.where(old > 0, following - log_policy, 0))),
            "identity": jnp.abs(gained - (after - before)),
            "first_order": jnp.abs(first_order - (after - before)),
            "slack": gained - tabular.trust_region_bound(mdp, log_policy, following),
            "without_penalty": gained - first_order,
        }

    return jax.vmap(jax.vmap(of_step))(
        policies[:, :-1], policies[:, 1:], returns[:, :-1], returns[:, 1:]
    )


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
        names = ("met", "second", "active")
        evidence = {name: jnp.asarray(getattr(step, name), size.dtype) for name in names}
        return (step.log_policy, step.memory), (step.log_policy, evidence)

    def path(sizes: Array):
        start = uniform, jnp.ones((), uniform.dtype)
        _, (policies, evidence) = jax.lax.scan(iterate, start, sizes)
        return jnp.concatenate([uniform[None], policies]), evidence

    return jax.vmap(path)(sizes)


# ----------------------------------------------------------------------------------------- figures

REGIONS = "trpo", "ppo_clip", "ppo_kl", "mpo", "reps"
TITLES = {"trpo": "TRPO", "mpo": "MPO", "reps": "REPS", "ppo_clip": "PPO", "ppo_kl": "PPO-KL"}
SIGNS = {"trpo": "δ", "ppo_kl": "δ", "mpo": "ε", "reps": "ε", "ppo_clip": "clip"}


def _label(config: ConfigDict, name: str) -> str:
    """Kind and size of an update."""
    number = config.names.index(name)
    kind, size = config.kinds[number], config.sizes[number]
    growth = " g⁻ᵏ" if config.growths[number] > 1 else ""
    if kind == "conservative":
        return kind
    return f"{TITLES.get(kind, kind)}, {SIGNS.get(kind, 'η')} = {size:.3g}{growth}"


def figures(config: ConfigDict, results: xr.Dataset) -> dict[str, Picture]:
    """Rates of all updates, and what their steps keep."""
    regions = [name for name in config.names if name in REGIONS]
    return {
        "rates": _rates(config, results, regions),
        "steps": _steps(config, results, regions),
    }


def _rates(config: ConfigDict, results: xr.Dataset, regions: list[str]) -> Picture:
    figure, axes = panels(2, width=5.4, height=4.4, sharey=True)
    others = [name for name in config.names if name not in (*regions, "mirror")]
    gap = results.gap.mean("seed")
    for axis, names, until in zip(axes, (regions, others), (30, 100), strict=True):
        for number, name in enumerate(names):
            here = gap.sel(update=name)
            look = style(number) | {"label": _label(config, name)}
            curve(axis, "iteration", here.where(here > 1e-14), **look)
        axis.set(xlabel="iteration", yscale="log", xlim=(0, min(config.iterations, until)))
        axis.legend(fontsize="small", loc="best")
    axes[0].set(ylabel="J* - J, mean over processes")
    for axis, title in zip(axes, ("with a trust region", "with a step size"), strict=True):
        axis.set_title(title, fontsize="medium")
    return Picture(
        figure,
        "Suboptimality by evaluations of the policy, down to 1e-14. Left: with the same radius"
        " the last steps are the longest, and REPS and MPO end at the optimum. Right: the plain"
        " gradient is slow, natural gradient (mirror descent with KL) linear in the end, steps"
        " that grow geometrically at least linear from the beginning.",
    )


def _steps(config: ConfigDict, results: xr.Dataset, regions: list[str]) -> Picture:
    figure, axes = panels(2, width=5.4, height=4.2)
    for number, name in enumerate(regions):
        here = results.sel(update=name).isel(seed=0)
        look = style(number) | {"label": _label(config, name)}
        curve(axes[0], "iteration", here.kl.where(here.kl > 1e-8), **look)
        curve(axes[1], "iteration", here.ratio, **look)
    axes[0].set(xlabel="iteration", ylabel="KL(old‖new) of a step, mean over visits", yscale="log")
    axes[1].set(xlabel="iteration", ylabel="largest ratio new/old of a step")
    for axis, line in zip(axes, (config.m_radius, 1.2), strict=True):
        axis.set(xlim=(0, 20), xticks=range(0, 21, 4))
        axis.axhline(line, color="black", lw=0.8, ls=":", zorder=1.9)
    axes[0].set_ylim(1e-5, 3)
    axes[1].legend(fontsize="small")
    return Picture(
        figure,
        "What a step does, on one process. Left: TRPO keeps the mean KL below .03 (line), MPO"
        " its second step at it, the penalty of PPO near it; the clip of PPO bounds none. REPS"
        " bounds KL(new‖old) of occupancies, and its last step goes to the optimum, where this"
        " KL is large. Right: nor does the clip at 1.2 (line) bound the ratio.",
    )


# ------------------------------------------------------------------------------------------ claims

TINY = 1e-250
FITTED = 40


def size_of(config: ConfigDict, name: str) -> float:
    """Step size or radius of an update."""
    return config.sizes[config.names.index(name)]


def slowest(results: xr.Dataset, name: str) -> float:
    """The largest factor, over processes, by which the suboptimality falls at first, fitted."""
    factors = []
    first = results.gap.sel(update=name).transpose("seed", "iteration")[:, :FITTED]
    for gap in first.values:
        gap = gap[gap > TINY]
        factors.append(np.exp(np.polyfit(np.arange(len(gap)), np.log(gap), 1)[0]))
    return max(factors)


def last_falls(config: ConfigDict, results: xr.Dataset, name: str) -> np.ndarray:
    """The last fall of the logarithm of the suboptimality by process, over eta delta."""
    natural = config.kinds[config.names.index(name)] == "natural"
    eta = size_of(config, name) / (1 - config.discount if natural else 1)
    falls = []
    for seed in results.seed.values:
        gap = results.gap.sel(update=name, seed=seed).values
        gap = gap[gap > TINY]
        falls.append(np.log(gap[-2] / gap[-1]) / (eta * float(results.delta.sel(seed=seed))))
    return np.array(falls)


@claim(
    source="Peters, Muelling and Altun 2010; Abdolmaleki et al. 2018 (arXiv:1806.06920)",
    reruns=(UNSOLVED,),
)
def duals_meet_their_radius(results: xr.Dataset, config: ConfigDict) -> Finding:
    """KL of a step minus its radius, where that binds: MPO's first step, REPS, MPO's second step;
    the largest over steps and processes. With temperatures to second order, and without values
    that balance flows, it is not met."""
    misses = []
    for name in ("mpo", "reps"):
        here = results.sel(update=name)
        misses.append(abs(here.met - size_of(config, name)).where(here.active > 0).max())
    second = abs(results.second.sel(update="mpo") - config.m_radius).max()
    return at_most(1e-6, [*misses, second])


@claim(source="Schulman et al. 2015 (arXiv:1502.05477), appendix C", reruns=(UNSOLVED,))
def trpo_keeps_its_radius(results: xr.Dataset, config: ConfigDict) -> Finding:
    """The largest KL of a step over the radius; that of F^-1 g as it is, without a line search, is
    larger."""
    return between(0.5, results.met.sel(update="trpo").max() / size_of(config, "trpo"), 1)


@claim(source="Kakade and Langford 2002, lemma 6.1", wrong=({"error": "first_order"},))
def improvement_identity(results: xr.Dataset, error: str = "identity") -> Finding:
    """J' - J = E[A] / (1 - g) over the new policy's visits: the largest error over all updates.
    Over the old policy's visits it holds to first order only."""
    return at_most(1e-11, results[error].max())


@claim(
    source="Schulman et al. 2015 (arXiv:1502.05477), theorem 1",
    wrong=({"bound": "without_penalty"},),
)
def trust_region_bound(results: xr.Dataset, bound: str = "slack") -> Finding:
    """J' - J minus the surrogate with its penalty 4 eps g/(1 - g)^2 max KL: the smallest over all
    updates. The surrogate without penalty is no bound."""
    return at_least(-1e-11, results[bound].min())


@claim(
    source="Kakade and Langford 2002, theorem 4.1; reconstructed: its constants",
    reruns=(UNSOLVED,),
)
def conservative_steps_keep_their_promise(results: xr.Dataset) -> Finding:
    """J' - J minus a A/(1 - g) - 2 a^2 g eps/(1 - g)^2, and that promise, the smallest; without the
    quadratic term the promise is not kept."""
    here = results.sel(update="conservative")
    return at_least((-1e-12, 0), ((here.gained - here.met).min(), here.met.min()))


@claim(
    source="Agarwal, Kakade, Lee and Mahajan 2021 (arXiv:1908.00261), lemma 15",
    wrong=({"partner": "smaller"},),
)
def natural_gradient_is_mirror_descent(results: xr.Dataset, partner: str = "mirror") -> Finding:
    """logits + eta A/(1 - g) against pi exp(eta/(1 - g) q): the largest difference of the logarithm
    of the suboptimality. Without 1/(1 - g) they differ."""
    natural, mirror = (
        np.log(results.gap.sel(update=name, drop=True).clip(min=TINY))
        for name in ("natural", partner)
    )
    return at_most(1e-8, abs(natural - mirror).max())


@claim(
    source="Johnson, Pike-Burke and Rebeschini 2023 (arXiv:2302.11381); reconstructed: the rate",
    wrong=({"updates": ("smaller",)},),
)
def growing_steps_are_linear(
    results: xr.Dataset, config: ConfigDict, updates: tuple[str, ...] = ("growing", "hellinger")
) -> Finding:
    """With step sizes g^-k the suboptimality falls by at least g an iteration, for KL and
    Hellinger's distance: the slowest factor fitted to the first 40. Constant steps are slower."""
    return at_most(config.discount, max(slowest(results, name) for name in updates))


@claim(
    source="Khodadadian et al. 2021 (arXiv:2105.01424); reconstructed: the rate",
    wrong=({"update": "growing"},),
)
def natural_gradient_is_linear_in_the_end(
    results: xr.Dataset, config: ConfigDict, update: str = "longer"
) -> Finding:
    """The last fall of log(J* - J) in an iteration over eta delta, delta the least advantage that a
    wrong action lacks at the optimum: median over processes. With growing steps there is no such
    rate."""
    return between(0.9, np.median(last_falls(config, results, update)), 1.1)


@claim(
    source="Csiszar 1975: Pythagoras' inequality of I-projections",
    wrong=({"update": "trpo"}, {"update": "natural"}),
)
def reps_comes_nearer_by_its_radius(
    results: xr.Dataset, config: ConfigDict, update: str = "reps"
) -> Finding:
    """KL(mu*‖mu) falls by at least the radius while it is larger, so REPS ends after
    KL(mu*‖mu_0)/radius steps: the least fall minus the radius. TRPO with the same radius, and
    natural gradients, come nearer by less."""
    away, radius = results.away.sel(update=update), size_of(config, "reps")
    nearer = -away.diff("iteration", label="lower") - radius
    return at_least(-1e-8, nearer.where(away > radius).min())
