"""Supervised fine-tuning as the learning of an implicit reward, and DPO behind it.

The abstract of Implicit Reward as the Bridge has SFT as the special case of implicit reward
learning whose KL term is constant, objectives for other f-divergences, values behind the logits,
and a smaller learning rate of SFT that is better behind DPO (25 % for language models). Here the
statements are tested exactly, row by row; what the learning rate does is measured.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jax import Array
from ml_collections import ConfigDict

from experiments.lab.axes import count, each, fraction, non_negative, positive, real
from experiments.lab.claims import Finding, at_least, at_most, between, claim
from experiments.lab.plots import Picture, curve, panels, style
from experiments.lab.results import Labelled, labelled
from jdiv import generators, regularized, roots
from jdiv.alignment import preference, q_sharp

AXES = {"alpha": real, "from_reference": fraction, "factor": positive}
FIELDS = {
    "policies": count,
    "beta": positive,
    "iterations": count,
    "longest": count,
    "vocabulary": count,
    "draws": count,
    "answers": count,
    "steps": count,
    "demonstrations": each(count),
    "expert_beta": positive,
    "dpo_betas": each(positive),
    "rates": each(non_negative),
}
PAPER = "Implicit Reward as the Bridge, abstract"
OF_DATA = {"sweep.from_reference": (0.0,)}
TWICE = {"sweep.factor": (2.0,)}


def run(config: ConfigDict, point: dict, key: Array) -> dict[str, Array | Labelled]:
    """What holds for this row, and the two stages with KL."""
    row = generators.alpha(point["alpha"])
    of_policies, of_table, of_draws = jax.random.split(key, 3)
    dims = {"demonstration": config.demonstrations, "rate": config.rates}
    alone, behind = two_stages(config, of_draws)
    return {
        **single_answers(config, point, row, of_policies),
        "q_misses": token_values(config, point, row, of_table),
        "after_sft": labelled(alone, **dims),
        "after_dpo": labelled(behind, dpo_beta=config.dpo_betas, **dims),
    }


# --------------------------------------------------------------------------------- one token each


def single_answers(config: ConfigDict, point: dict, row, key: Array) -> dict[str, Array]:
    """The second mean, the gradient, the minimizer, and whether the two rewards add up."""
    answers = np.arange(len(config.data))
    of_data, of_ref = (np.repeat(answers, x) for x in (config.data, config.reference))
    log_data, log_ref = (jnp.log(jnp.array(x) / sum(x)) for x in (config.data, config.reference))
    sampled = jnp.where(point["from_reference"] > 0, jnp.array(of_ref), jnp.array(of_data))

    def loss(logits):
        log_pi = jax.nn.log_softmax(logits)
        of_answers = log_pi[of_data], log_ref[of_data], log_pi[sampled], log_ref[sampled]
        return preference.f_sft(*of_answers, generator=row)

    def first_mean(logits):
        log_pi = jax.nn.log_softmax(logits)
        return jnp.mean(
            preference.implicit_reward(log_pi[of_data], log_ref[of_data], beta=1.0, generator=row)
        )

    supervised = lambda logits: jnp.mean(preference.sft(jax.nn.log_softmax(logits)[of_data]))
    policies = jax.random.normal(key, (config.policies, answers.size))
    second = jax.vmap(lambda x: loss(x) + first_mean(x))(policies)
    of_f, of_kl = (jax.vmap(jax.grad(f))(policies) for f in (loss, supervised))
    fitted = jax.nn.log_softmax(roots.minimize(loss, log_ref, config.iterations).x)
    return {
        "second_spread": jnp.max(second) - jnp.min(second),
        "gradient_gap": jnp.max(jnp.abs(of_f - of_kl)) / jnp.max(jnp.abs(of_kl)),
        "fit_error": jnp.max(jnp.abs(jnp.exp(fitted) - jnp.exp(log_data))),
        "left_over": left_over(config, row, fitted, log_ref),
    }


def left_over(config: ConfigDict, row, fitted: Array, log_ref: Array) -> Array:
    """What the reward of both stages is off the sum of theirs, up to a constant.

    DPO has the fit of SFT for its reference and an expectation over all pairs for its loss.
    """
    rewards = jnp.array(config.rewards)
    pairs = np.array([(i, j) for i in range(rewards.size) for j in range(rewards.size) if i != j])
    chosen, rejected = pairs.T
    often = jax.nn.sigmoid(rewards[chosen] - rewards[rejected])
    options = {"beta": config.beta, "generator": row}

    def loss(logits):
        log_pi = jax.nn.log_softmax(logits)
        pair = log_pi[chosen], log_pi[rejected], fitted[chosen], fitted[rejected]
        return often @ preference.f_dpo(*pair, **options)

    last = jax.nn.log_softmax(roots.minimize(loss, fitted, config.iterations).x)
    of_both, of_first = (preference.implicit_reward(x, log_ref, **options) for x in (last, fitted))
    missing = of_both - of_first - rewards
    return jnp.max(missing) - jnp.min(missing)


# -------------------------------------------------------------------------------------- sequences


def tree(longest: int, vocabulary: int) -> np.ndarray:
    """Children of every prefix, in order of length; whole sequences have none."""
    inner = sum(vocabulary**k for k in range(longest))
    nodes = inner + vocabulary**longest
    children = np.full((nodes, vocabulary), -1)
    children[:inner] = 1 + np.arange(inner * vocabulary).reshape(inner, vocabulary)
    return children


def token_values(config: ConfigDict, point: dict, row, key: Array) -> Array:
    """How far Q - beta f'(pi/ref) of tokens is from a number per prefix.

    Q is the regularized one with the implicit reward of whole sequences at their end.
    """
    children = tree(config.longest, config.vocabulary)
    log_pi, log_ref = jax.nn.log_softmax(jax.random.normal(key, (2, *children.shape)))
    sums = [jnp.zeros(len(children)), jnp.zeros(len(children))]
    inner = np.flatnonzero(children[:, 0] >= 0)
    bounds = np.cumsum([0, *(config.vocabulary**k for k in range(config.longest))])
    for low, high in itertools.pairwise(bounds):
        at = inner[low:high]
        sums = [
            total.at[children[at]].set(total[at][:, None] + log[at])
            for total, log in zip(sums, (log_pi, log_ref), strict=True)
        ]
    options = {"beta": config.beta, "generator": row}
    returns = point["factor"] * preference.implicit_reward(*sums, **options)
    found = q_sharp.regularized_values(
        children, log_ref, returns, config.beta, generator=row, depth=config.longest
    )
    of_tokens = preference.implicit_reward(log_pi, log_ref, **options)
    gap = (found.q - of_tokens)[inner]
    return jnp.max(jnp.max(gap, axis=1) - jnp.min(gap, axis=1))


# ----------------------------------------------------------------------------------- the two stages


def two_stages(config: ConfigDict, key: Array) -> tuple[Array, Array]:
    """Mean reward after SFT by gradient descent on demonstrations, and after DPO's optimum too."""
    of_rewards, of_base, of_expert = jax.random.split(key, 3)
    shape = config.draws, config.answers
    rewards = jax.random.normal(of_rewards, shape)
    base = jax.nn.log_softmax(jax.random.normal(of_base, shape))
    expert = jax.nn.log_softmax(base + rewards / config.expert_beta)
    most = max(config.demonstrations)
    drawn = jax.random.categorical(of_expert, expert[None], shape=(most, config.draws))
    drawn = jax.nn.one_hot(drawn, config.answers, dtype=rewards.dtype)
    shares = jnp.stack([jnp.mean(drawn[:m], axis=0) for m in config.demonstrations])

    def tuned(rate, share):
        step = lambda _, x: x + rate * (share - jax.nn.softmax(x))
        return jax.nn.log_softmax(jax.lax.fori_loop(0, config.steps, step, base))

    rates = jnp.array(config.rates)
    log_pi = jax.vmap(jax.vmap(tuned, (0, None)), (None, 0))(rates, shares)
    mean = lambda log: jnp.mean(jnp.einsum("...da,da->...d", jnp.exp(log), rewards), axis=-1)
    values = jnp.broadcast_to(rewards, log_pi.shape)
    best = [
        regularized.greedy(values, log_pi, beta, generator=generators.kl()).log_policy
        for beta in config.dpo_betas
    ]
    return mean(log_pi), jnp.stack([mean(x) for x in best])


# ---------------------------------------------------------------------------------------- figures


def _first(results: xr.Dataset) -> xr.Dataset:
    return results.isel(from_reference=0, factor=0)


def figures(config: ConfigDict, results: xr.Dataset) -> dict[str, Picture]:
    """What holds for KL alone, and reward by the rate of SFT."""
    figure, (left, right) = panels(2, height=4.0)
    at = _first(results).sortby("alpha")
    names = {
        "second_spread": "spread of the second mean",
        "gradient_gap": "gradient less that of SFT",
        "left_over": "rewards of two stages less their sum",
        "q_misses": "Q - V less the token's reward",
    }
    for number, (name, label) in enumerate(names.items()):
        curve(left, "alpha", at[name], label=label, **style(number, marker=True))
    left.set(xlabel="α of the row, 1 is KL", ylabel="largest deviation", ylim=(-0.1, None))
    left.set_yscale("symlog", linthresh=0.1)
    left.legend(fontsize="small")
    here = at.isel(alpha=0)
    rates = [rate for rate in here.rate.values if rate > 0]
    number = 0
    for m in here.demonstration.values:
        lines = {"after SFT": here.after_sft} | {
            f"and DPO, β = {beta:g}": here.after_dpo.sel(dpo_beta=beta)
            for beta in here.dpo_beta.values
        }
        for label, line in lines.items():
            look = style(number, marker=True) | {"label": f"{label}, {m} demonstrations"}
            curve(right, "rate", line.sel(demonstration=m, rate=rates), **look)
            number += 1
    right.set(xscale="log", xlabel="learning rate of SFT", ylabel="mean reward", ylim=(0, 3.1))
    right.legend(fontsize="small", loc="upper left")
    return {
        "implicit_reward": Picture(
            figure,
            "Left: for KL the second mean of f-SFT is constant, its gradient is that of SFT, the"
            " rewards of SFT and DPO add up and tokens have Q - V; for no other α. Right: after SFT"
            " alone a larger rate is better; behind DPO with a small β from three demonstrations"
            " a smaller one is, by little.",
        )
    }


# ----------------------------------------------------------------------------------------- claims


@claim(source=PAPER, reruns=(OF_DATA,), wrong=({"alpha": 0.0},), needs={"alpha": (1.0, 0.0)})
def for_kl_the_second_mean_is_constant(results: xr.Dataset, alpha: float = 1.0) -> Finding:
    """With KL: how much the second mean of f-SFT differs between random policies, and its gradient
    from that of SFT, as a share of it."""
    at = _first(results).sel(alpha=alpha)
    return at_most(1e-12, [at.second_spread, at.gradient_gap])


@claim(source="No paper: measured here", wrong=({"others": (1.0,)},))
def for_other_rows_it_is_not(results: xr.Dataset, others: tuple = (0.5, 0.0, -1.0)) -> Finding:
    """With alpha = .5, 0 and -1: the same two, at least .05."""
    at = _first(results).sel(alpha=list(others))
    return at_least(0.05, [at.second_spread, at.gradient_gap])


@claim(
    source=f"{PAPER}: objectives of SFT for f-divergences",
    reruns=(OF_DATA,),
    wrong=({"of": "gradient_gap"},),
)
def every_row_fits_the_data(results: xr.Dataset, of: str = "fit_error") -> Finding:
    """The largest difference between the minimizer of f-SFT and the data, by alpha."""
    return at_most(1e-7, _first(results)[of])


@claim(
    source="Derived here: log pi/ref of two tilts adds up",
    wrong=({"alpha": 0.0},),
    needs={"alpha": (1.0, 0.0)},
)
def rewards_of_both_stages_add_up(results: xr.Dataset, alpha: float = 1.0) -> Finding:
    """With KL, DPO's minimizer with the fit of SFT for its reference: its implicit reward towards
    the base, less SFT's and the reward of the pairs, up to a constant."""
    return at_most(1e-6, _first(results).left_over.sel(alpha=alpha))


@claim(
    source=f"{PAPER}: values behind the logits of SFT",
    reruns=(TWICE,),
    wrong=({"alpha": 0.0},),
    needs={"alpha": (1.0, 0.0)},
)
def tokens_have_q_less_v(results: xr.Dataset, alpha: float = 1.0) -> Finding:
    """With KL, Q of the implicit reward of whole sequences less beta log pi/ref of the next token:
    the largest difference between two tokens of a prefix."""
    return at_most(1e-12, _first(results).q_misses.sel(alpha=alpha))


@claim(
    source=f"{PAPER}: a smaller rate is up to 25 % better behind DPO, for language models",
    reruns=({"steps": 2},),
    wrong=({"beta": 1.0}, {"stage": "after_sft"}),
    needs={"alpha": ...},
)
def a_smaller_rate_is_better_behind_dpo(
    results: xr.Dataset, beta: float = 0.3, stage: str = "after_dpo"
) -> Finding:
    """From three demonstrations, mean reward behind DPO with beta = .3 at the best rate, over that
    at the largest, which is the best after SFT alone, less 1; then the best rate."""
    at = _first(results).isel(alpha=0).sel(demonstration=3)
    reward = at[stage].sel(dpo_beta=beta) if stage == "after_dpo" else at[stage]
    best = reward.max("rate") / reward.isel(rate=-1) - 1
    return between((0.003, 0.01), [best, reward.idxmax("rate")], (0.05, 0.3))


@claim(source="No paper: measured here", wrong=({"beta": 0.3},), needs={"alpha": ...})
def with_a_large_beta_it_is_not(results: xr.Dataset, beta: float = 1.0) -> Finding:
    """From three demonstrations with beta = 1: the rate that is best behind DPO, which is the
    largest of all, as after SFT alone."""
    at = _first(results).isel(alpha=0).sel(demonstration=3)
    best = [x.idxmax("rate") for x in (at.after_dpo.sel(dpo_beta=beta), at.after_sft)]
    return at_least(3.0, best)
