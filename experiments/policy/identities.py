"""Parts of policy updates against sums over all actions and states.

MPO's M-step (Abdolmaleki et al. 2018, arXiv:1806.06920), regularized advantages (RPG,
arXiv:2505.17508), the Fisher matrix of a tabular policy (Kakade 2001), conservative iteration
(Kakade and Langford 2002), advantages of a batch (REINFORCE++, arXiv:2501.03262) and groups that
DAPO samples anew (arXiv:2503.14476). Problems are random; what is claimed are identities.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import xarray as xr
from jax import Array
from ml_collections import ConfigDict

from experiments.lab.axes import above, between, count, each, fraction, non_negative, seeds
from experiments.lab.claims import Finding, at_least, at_most, claim, together
from experiments.lab.plots import Picture, curve, panels, style
from experiments.lab.results import Labelled, labelled
from jdiv import divergences, generators
from jdiv.mdp import environments, model, value_iteration
from jdiv.policy import advantages, tabular
from jdiv.policy.mpo import m_step_loss
from jdiv.policy.regularized_gradient import regularized_advantages

AXES = {"factor": non_negative, "seed": seeds}
FIELDS = {
    "states": above(3),
    "actions": above(1),
    "discount": between(0, 0.99),
    "coefficient": non_negative,
    "shares": each(fraction),
    "iterations": count,
}
ROWS = ("kl", "reverse_kl", "pearson_chi2", "jensen_shannon")
OTHER = {"sweep.factor": (2.0,)}


def run(config: ConfigDict, point: dict, key: Array) -> dict[str, Array | Labelled]:
    """Errors of everything, on one problem."""
    of_process, of_laws, of_rewards = jax.random.split(key, 3)
    mdp = environments.garnet(
        of_process, states=config.states, actions=config.actions, branches=3,
        discount=config.discount,
    )  # fmt: skip
    mdp = model.dense(mdp._replace(reward=(mdp.reward + 1) / 2))
    logits, target, old = jax.random.normal(of_laws, (3, config.states, config.actions))
    told = config.coefficient * point["factor"]
    return {
        "m_step": of_m_step(config.coefficient, told, logits, target, old),
        "advantages": of_advantages(config.coefficient, told, logits, target, old),
        **of_fisher(mdp, logits),
        **of_mixtures(config, mdp, logits, target),
        **of_batch(of_rewards),
    }


def of_m_step(coefficient, told, logits, target, old) -> Array:
    """Derivatives at the mixture of target and old policy, and the error of the divergence."""
    mixture = jnp.log(jax.nn.softmax(target) + coefficient * jax.nn.softmax(old))

    def loss(logits):
        found = m_step_loss(logits, target, old, coefficient=told)
        return jnp.sum(found.loss), found.divergence

    slope, kl = jax.grad(loss, has_aux=True)(mixture)
    apart = jnp.abs(kl - divergences.kl(old, mixture))
    return jnp.maximum(jnp.max(jnp.abs(slope)), jnp.max(apart))


def of_advantages(coefficient, told, logits, gain, old) -> Labelled:
    """Error of the gradient of `E_old[w A']`, A' regularized, against that of the objective."""
    log_old, mask = jax.nn.log_softmax(old), jnp.ones(old.shape, bool)

    def error(name):
        row = generators.get(name)
        constants = regularized_advantages(
            jax.nn.log_softmax(logits), log_old, gain, mask, coefficient=told, generator=row
        )
        surrogate = lambda x: jnp.sum(jax.nn.softmax(x) * constants)
        pay = lambda x: jnp.sum(divergences.f_divergence(row, x, old))
        objective = lambda x: jnp.sum(jax.nn.softmax(x) * gain) - coefficient * pay(x)
        return jnp.max(jnp.abs(jax.grad(surrogate)(logits) - jax.grad(objective)(logits)))

    return labelled(jnp.stack([error(name) for name in ROWS]), generator=ROWS)


def of_fisher(mdp, logits) -> dict[str, Array]:
    """The product with the Fisher matrix by all scores; of the natural gradient, the gradient."""
    size = logits.size
    scores = jax.jacobian(jax.nn.log_softmax)(logits).reshape(size, size)
    mass = model.occupancy(mdp, jax.nn.softmax(logits)).reshape(-1)
    direction = jnp.sin(jnp.arange(size, dtype=logits.dtype)).reshape(logits.shape)
    product = scores.T @ (mass * (scores @ direction.reshape(-1)))
    found = tabular.fisher_product(mdp, logits, direction)
    natural = tabular.natural_gradient(mdp, logits)
    taken = tabular.fisher_product(mdp, logits, natural)
    gradient = jax.grad(lambda x: model.expected_return(mdp, jax.nn.softmax(x)))(logits)
    return {
        "fisher": jnp.max(jnp.abs(found.reshape(-1) - product)),
        "natural": labelled(
            jnp.stack([
                jnp.max(jnp.abs(taken - gradient)),
                jnp.max(jnp.abs(natural - gradient)),
            ]),
            direction=("Fisher times natural", "natural"),
        ),
    }  # fmt: skip


def of_mixtures(config: ConfigDict, mdp, logits, target) -> dict[str, Array | Labelled]:
    """Gains of mixtures and their bounds; returns along conservative policy iteration."""
    policy, other = jax.nn.softmax(logits), jax.nn.softmax(2 * target)
    start = model.expected_return(mdp, policy)
    safe = tabular.safe_mixing(mdp, policy, other)
    shares = jnp.append(jnp.array(config.shares), safe.share)

    def at(share):
        mixed = (1 - share) * policy + share * other
        bound = tabular.conservative_gain(mdp, policy, other, share)
        return model.expected_return(mdp, mixed) - start, bound

    gained, bound = jax.vmap(at)(shares)
    found = value_iteration.run(
        mdp, tabular.conservative_policy_iteration(), config.iterations,
        measure=lambda iterate: model.expected_return(mdp, jnp.exp(iterate.log_policy)),
    )  # fmt: skip
    return {
        "slack": labelled(gained - bound, share=(*config.shares, "safe")),
        "behind": jnp.max(bound) - bound[-1],
        "returns": labelled(found.measured, iteration=range(1, 1 + config.iterations)),
    }


def of_batch(key) -> dict[str, Array | Labelled]:
    """Advantages of an easy and a hard question: of the batch, and of each group."""
    rate = jnp.array([[0.9], [0.1], [1.0], [0.0]])
    rewards = (jax.random.uniform(key, (4, 8)) < rate).astype(rate.dtype)
    mask = jnp.ones(rewards.shape, bool)
    whole = advantages.batch_advantages(rewards, mask)
    scaled = advantages.batch_advantages(3 * rewards - 7, mask)
    group = advantages.grpo_advantages(rewards)
    some = jnp.any(group != 0, axis=1)
    mean, spread = jnp.mean(whole), jnp.std(whole)
    return {
        "batch": jnp.max(jnp.abs(jnp.stack([mean, spread - 1, jnp.max(jnp.abs(scaled - whole))]))),
        "unvaried": labelled(
            jnp.stack([
                jnp.sum(jnp.where(advantages.varied(rewards) == some, 0.0, 1.0)),
                jnp.sum(jnp.where(advantages.varied(rewards)[:, None], 0.0, jnp.abs(whole))),
            ]),
            by=("group", "batch"),
        ),
    }  # fmt: skip


def figures(config: ConfigDict, results: xr.Dataset) -> dict[str, Picture]:
    """Conservative policy iteration."""
    figure, axis = panels(1, width=6.4, height=3.8)
    returns = results.returns.isel(factor=0)
    for number, seed in enumerate(returns.seed.values[:4]):
        curve(axis, "iteration", returns.sel(seed=seed), label=f"process {seed}", **style(number))
    axis.set(xlabel="iteration", ylabel="return")
    axis.legend()
    return {
        "conservative": Picture(
            figure,
            "Conservative policy iteration never loses, and is slow: its share of the greedy policy"
            " is the one whose gain is proved.",
        )
    }


ROUNDING = 1e-12
ANY = {"factor": ..., "seed": ...}


@claim(source="Abdolmaleki et al. 2018 (arXiv:1806.06920), equation 12", reruns=(OTHER,))
def the_m_step_mixes_target_and_old_policy(results: xr.Dataset) -> Finding:
    """Derivatives of MPO's M-step loss with coefficient c at (target + c old)/(1 + c), and errors
    of the KL(old‖pi) that it returns: the largest."""
    return at_most(ROUNDING, results.m_step.max())


@claim(source="RPG (arXiv:2505.17508), regularized advantages", reruns=(OTHER,))
def regularized_advantages_have_the_gradient(results: xr.Dataset) -> Finding:
    """E_old[w A'] with the constants A' = A - c f'(w) against E_pi[A] - c D(pi‖old), for KL both
    ways, chi2 and Jensen-Shannon: the largest error of the gradient."""
    return at_most(ROUNDING, results.advantages.max(("factor", "seed")))


@claim(
    source="Kakade 2001; Agarwal et al. 2021 (arXiv:1908.00261), lemma 15",
    wrong=({"direction": "natural"},),
    needs=ANY,
)
def fisher_takes_the_natural_gradient_to_the_gradient(
    results: xr.Dataset, direction: str = "Fisher times natural"
) -> Finding:
    """Largest errors of F x against the sum over all scores, and of F times the natural gradient
    against the gradient of the return."""
    return at_most(ROUNDING, [results.fisher.max(), results.natural.sel(direction=direction).max()])


@claim(
    source="Kakade and Langford 2002, theorem 4.1 and corollary 4.2. Reconstructed: the constant",
    wrong=({"sign": -1.0},),
    needs=ANY,
)
def mixtures_gain_what_is_promised(results: xr.Dataset, sign: float = 1.0) -> Finding:
    """Gain of the mixture less the bound, least over shares and processes; how far the bound at the
    safe share is behind that at others; the least rise of the return in an iteration of
    conservative policy iteration, and in all of them."""
    returns = sign * results.returns
    rise = returns.isel(iteration=-1) - returns.isel(iteration=0)
    return together(
        at_least(-ROUNDING, results.slack.min()),
        at_most(ROUNDING, results.behind.max()),
        at_least(-ROUNDING, returns.diff("iteration").min()),
        at_least(1e-3, rise.min()),
    )


@claim(
    source="REINFORCE++ (arXiv:2501.03262); DAPO (arXiv:2503.14476), section 3.2",
    wrong=({"by": "batch"},),
    needs=ANY,
)
def groups_without_variety_teach_nothing(results: xr.Dataset, by: str = "group") -> Finding:
    """Mean 0, deviation 1 and the same for rewards in another unit, advantages of a batch: largest
    error. Groups of which `varied` says something else than whether GRPO's advantages are 0: none;
    in the batch they still have advantages, those of how easy the question is."""
    return at_most(ROUNDING, [results.batch.max(), results.unvaried.sel(by=by).max()])
