"""Recipes for exploration, on questions whose right answer is rare.

A language model of three tokens answers questions of three kinds, each of which has a table of its
own, so that what training does is exact. Two kinds have a right answer of probability 1e-3 or
1e-4, and a frequent one that is paid half, on which GRPO collapses; the third kind begins sure of a
wrong answer. All rules see the same random numbers. What the papers report is of large language
models, and none of it is measured here: the claims are what their formulas do, and where the
direction of a paper's result is not seen, the claim says so.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jax import Array
from ml_collections import ConfigDict

from experiments.lab.axes import count, non_negative, seeds
from experiments.lab.claims import Finding, at_most, between, claim
from experiments.lab.plots import COLORS, Picture, curve, panels, style
from experiments.lab.results import Labelled, labelled
from jdiv import numerics
from jdiv.lm import questions, tabular
from jdiv.policy import kl_terms
from jdiv.policy.advantages import grpo_advantages
from jdiv.policy.clipped import ppo_clip
from jdiv.policy.recipes import ace, aer, entropy_mechanism, fg_expo, gtpo, haepo, lp_reg
from jdiv.policy.tokens import sequence_mean, token_mean

AXES = {"strength": non_negative, "seed": seeds}
FIELDS = {
    "questions": count,
    "size": count,
    "steps": count,
    "inner": count,
    "step_size": non_negative,
}
LONGEST = 3
SHAPE = tabular.table_shape(LONGEST)
SEQUENCES = tabular.enumerate_sequences(SHAPE)
RIGHT = int(np.flatnonzero((SEQUENCES.tokens == 0).all(axis=1))[0])
"""The answer 0 0 0, right for every question."""
OTHER = int(np.flatnonzero((SEQUENCES.tokens == 1).all(axis=1))[0])
"""The answer 1 1 1: half right and frequent, or wrong and what the policy is sure of."""
KINDS = {"rare, 1e-3": 1e-3, "rare, 1e-4": 1e-4, "sure of a wrong one": 0.1}
"""Probability of the right answer by the reference."""
RARE, RARER, SURE = KINDS
K = 32
"""Answers of which one has to be right, for pass@k."""
SAMPLES = "each once", "as drawn"
RECORDED = 2
"""Every second step is kept."""


# -------------------------------------------------------------------------------- the questions


def with_path(tables: Array, path: int, probability: Array) -> Array:
    """Tables in which this answer has this probability, the same at each of its tokens.

    Other tokens keep their odds. Shapes: `[questions, prefixes, V]` and `[questions]`.
    """
    rows, tokens = SEQUENCES.prefixes[path], SEQUENCES.tokens[path]
    each = (probability ** (1 / len(rows)))[:, None, None]
    here = tokens[:, None] == np.arange(SHAPE[1])
    others = numerics.log_softmax(jnp.where(here[None], -jnp.inf, tables[:, rows]))
    return tables.at[:, rows].set(jnp.where(here[None], jnp.log(each), others + jnp.log1p(-each)))


def asked(config: ConfigDict, key: Array) -> tuple[Array, Array, Array]:
    """Logits of policy and reference, and rewards, of questions of all kinds one after another."""
    number = config.questions
    by_kind = lambda values: jnp.repeat(jnp.asarray(values, float), number)
    tables = jax.random.normal(key, (3 * number, *SHAPE))
    tables = with_path(tables, OTHER, by_kind((0.2, 0.2, 0.02)))
    ref = with_path(tables, RIGHT, by_kind(tuple(KINDS.values())))
    sure = jnp.arange(3 * number)[:, None, None] >= 2 * number
    start = jnp.where(sure, with_path(ref, OTHER, jnp.full(3 * number, 0.9)), ref)
    rewards = jnp.zeros((3 * number, len(SEQUENCES.lengths)))
    rewards = rewards.at[:, RIGHT].set(1.0).at[:, OTHER].set(by_kind((0.5, 0.5, 0.0)))
    return start, ref, rewards


def measure(logits: Array, ref_logits: Array, rewards: Array) -> dict[str, Array]:
    """By kind, means over its questions."""
    right = jnp.zeros_like(rewards).at[:, RIGHT].set(1.0)
    found = questions.measures(logits, ref_logits, right)
    law = jnp.exp(jax.vmap(tabular.sequence_log_probs)(logits))
    by_question = {
        "accuracy": found.accuracy,
        "passed": questions.pass_at_k(found.accuracy, float(K)),
        "entropy": found.entropy,
        "kl": found.kl,
        "other": law[:, OTHER],
    }
    return {name: x.reshape(len(KINDS), -1).mean(axis=1) for name, x in by_question.items()}


# ---------------------------------------------------------------------------------------- rules


class State(NamedTuple):
    """What a loss is told and may change."""

    strength: Array
    scale: Array
    adapts: Array
    rho: Array
    initial_entropy: Array


def averaged(loss: Array, mask: Array) -> Array:
    """The mean over all tokens of the batch."""
    return token_mean(loss.reshape(-1, LONGEST), mask.reshape(-1, LONGEST))


def surrogate(batch: questions.Batch, advantages: Array) -> Array:
    """PPO's loss of each token."""
    return ppo_clip(batch.log_probs, batch.old_log_probs, advantages, batch.mask).loss


def token_entropies(batch: questions.Batch) -> Array:
    """Of the law of the next token at each place, 0 behind the end."""
    entropy = -jnp.sum(jnp.exp(batch.logits) * batch.logits, axis=-1)
    return jnp.where(batch.mask, entropy, 0)


def by_grpo(batch: questions.Batch, state: State) -> tuple[Array, State]:
    """Nothing added."""
    return averaged(surrogate(batch, grpo_advantages(batch.rewards)), batch.mask), state


def by_kl_cov(batch: questions.Batch, state: State) -> tuple[Array, State]:
    """A fifth of the tokens, those of the largest covariance, held by their log-ratio."""
    loss = entropy_mechanism.kl_cov(
        batch.log_probs, batch.old_log_probs, grpo_advantages(batch.rewards), batch.mask,
        share=0.2, coefficient=state.strength * state.scale,
    ).loss  # fmt: skip
    return averaged(loss, batch.mask), state


def by_clip_cov(batch: questions.Batch, state: State) -> tuple[Array, State]:
    """A fifth of the tokens, of those of large covariance, without gradient."""
    loss = entropy_mechanism.clip_cov(
        batch.log_probs, batch.old_log_probs, grpo_advantages(batch.rewards), batch.mask, batch.key,
        share=0.2, lowest=1.0, highest=jnp.where(state.strength > 0, 5.0, 1.0),
    ).loss  # fmt: skip
    return averaged(loss, batch.mask), state


def by_entropy(batch: questions.Batch, state: State) -> tuple[Array, State]:
    """A bonus on the entropy: AER's coefficients, whose scale holds a target, or a fixed one."""
    entropy = jnp.sum(token_entropies(batch), axis=-1).mean(axis=-1)
    accuracy = jnp.mean(batch.rewards, axis=-1)
    coefficient = jnp.where(
        state.adapts > 0, aer.aer_coefficients(accuracy, state.scale, rho=state.rho), state.scale
    )
    loss, _ = by_grpo(batch, state)
    scale = aer.aer_scale(
        state.scale, jax.lax.stop_gradient(entropy.mean()), state.initial_entropy,
        target=TARGET, step_size=state.adapts,
    )  # fmt: skip
    return loss - state.strength * jnp.mean(coefficient * entropy), state._replace(scale=scale)


def by_lp_reg(batch: questions.Batch, state: State) -> tuple[Array, State]:
    """Rare tokens of wrong answers pulled up to their probability among the likely ones."""
    proxy = lp_reg.min_p_proxy(batch.old_logits, kappa=0.02)
    tokens = jnp.maximum(batch.tokens, 0)[..., None]
    loss = lp_reg.lp_reg(
        batch.log_probs, batch.old_log_probs, jnp.take_along_axis(proxy, tokens, axis=-1)[..., 0],
        grpo_advantages(batch.rewards), batch.mask, share=0.05, coefficient=state.strength,
    ).loss  # fmt: skip
    return averaged(loss, batch.mask), state


def by_gtpo(batch: questions.Batch, state: State) -> tuple[Array, State]:
    """Tokens that right and wrong answers share, and answers of high entropy."""
    advantages = grpo_advantages(batch.rewards, scale=False)
    conflicts = gtpo.conflict_weights(batch.tokens, advantages, batch.mask)
    lengths = jnp.sum(batch.mask, axis=-1)
    loss = gtpo.gtpo(
        batch.log_probs, batch.old_log_probs, token_entropies(batch), advantages,
        1 + state.strength * state.scale * (conflicts - 1), batch.mask,
        initial_entropy=state.initial_entropy / jnp.mean(lengths.astype(conflicts.dtype)),
        coefficient=0.1 * state.strength, threshold=state.rho,
    ).loss  # fmt: skip
    return sequence_mean(loss.reshape(-1, LONGEST), batch.mask.reshape(-1, LONGEST)), state


def by_haepo(batch: questions.Batch, state: State) -> tuple[Array, State]:
    """Answers weighted by their likelihood among those to the same question."""
    whole = [x.sum(axis=-1) for x in (batch.log_probs, batch.ref_log_probs)]
    terms = jax.vmap(lambda *x: haepo.haepo(*x, entropy_weight=0.05).terms)(*whole, batch.rewards)
    return terms.sum(axis=-1).mean(), state


def by_fg_expo(batch: questions.Batch, state: State) -> tuple[Array, State]:
    """Questions of middling accuracy count most, and the KL term more the better the batch is."""
    accuracy = jnp.mean(batch.rewards, axis=-1)
    weights = 1 + state.strength * (fg_expo.fg_expo_weights(accuracy, width=0.25) - 1)
    coefficient = state.strength * fg_expo.fg_expo_coefficient(accuracy, low=0.0, high=0.05)
    loss = weights[:, None, None] * surrogate(batch, grpo_advantages(batch.rewards))
    penalty = kl_terms.kl_penalty(batch.log_probs, batch.ref_log_probs, batch.mask)
    return averaged(loss + coefficient * penalty, batch.mask), state


def by_ace(batch: questions.Batch, state: State) -> tuple[Array, State]:
    """Wrong answers that the policy has grown sure of pushed harder."""
    log_ratio = jnp.sum(batch.log_probs - batch.ref_log_probs, axis=-1)
    advantages = ace.ace_advantages(
        grpo_advantages(batch.rewards), jax.lax.stop_gradient(log_ratio), alpha=state.strength
    )
    return averaged(surrogate(batch, advantages), batch.mask), state


def by_rule(which: Array, batch: questions.Batch, state: State) -> tuple[Array, State]:
    """A number with the gradient of one of the losses, which is taken where the loss is chosen.

    Cheaper than the gradient of a choice, for which every loss would keep what all others need.
    """

    def slopes(loss):
        def of_batch(batch: questions.Batch, state: State):
            def value(log_probs: Array, logits: Array) -> tuple[Array, State]:
                return loss(batch._replace(log_probs=log_probs, logits=logits), state)

            return jax.grad(value, (0, 1), has_aux=True)(batch.log_probs, batch.logits)

        return of_batch

    still = jax.lax.stop_gradient(batch._replace(key=None))._replace(key=batch.key)
    slope, state = jax.lax.switch(which, [slopes(loss) for loss in LOSSES], still, state)
    of_tokens, of_laws = jnp.sum(slope[0] * batch.log_probs), jnp.sum(slope[1] * batch.logits)
    return of_tokens + of_laws, state


LOSSES = (
    by_grpo, by_kl_cov, by_clip_cov, by_entropy, by_lp_reg, by_gtpo, by_haepo, by_fg_expo, by_ace,
)  # fmt: skip
TARGET = 0.4
"""Of the initial entropy, AER's."""
# The loss, the coefficient that it begins with, the step of its control, AER's rho.
RULES = {
    "no clip": (by_kl_cov, 0.0, 0.0, 0.0),
    "GRPO": (by_grpo, 0.0, 0.0, 0.0),
    "KL-Cov": (by_kl_cov, 2.0, 0.0, 0.0),
    "Clip-Cov": (by_clip_cov, 0.0, 0.0, 0.0),
    "Lp-Reg": (by_lp_reg, 0.0, 0.0, 0.0),
    "GTPO": (by_gtpo, 1.0, 0.0, gtpo.LOG_2),
    "GTPO, all kept": (by_gtpo, 1.0, 0.0, 10.0),
    "GTPO, no conflicts": (by_gtpo, 0.0, 0.0, 10.0),
    "HAEPO": (by_haepo, 0.0, 0.0, 0.0),
    "FG-ExPO": (by_fg_expo, 0.0, 0.0, 0.0),
    "ACE": (by_ace, 0.0, 0.0, 0.0),
    "AER": (by_entropy, 0.1, 0.03, 2.0),
    "AER from .01": (by_entropy, 0.01, 0.03, 2.0),
    "AER from 1": (by_entropy, 1.0, 0.03, 2.0),
    "AER, rho 1": (by_entropy, 0.1, 0.03, 1.0),
    "entropy .01": (by_entropy, 0.01, 0.0, 0.0),
    "entropy .1": (by_entropy, 0.1, 0.0, 0.0),
    "entropy 1": (by_entropy, 1.0, 0.0, 0.0),
}


# ------------------------------------------------------------------------------ without training


def pulls(strength: Array) -> dict[str, Array]:
    """What Lp-Reg adds to PPO's pull on each token of random laws, all of negative advantage."""
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(16, 8)) * 2)
    log_p, proxy = jax.nn.log_softmax(logits), lp_reg.min_p_proxy(logits, kappa=0.1)
    paid, mask = jnp.full(log_p.shape, -1.0), jnp.full(log_p.shape, True)

    def added(x: Array) -> Array:
        own = lp_reg.lp_reg(x, log_p, proxy, paid, mask, share=1.0, coefficient=strength).loss
        return jnp.sum(ppo_clip(x, log_p, paid, mask, low=1.0, high=9.0).loss - own)

    pull, kept = jax.grad(added)(log_p), proxy > -jnp.inf
    mass = jnp.sum(jnp.where(kept, jnp.exp(log_p), 0), axis=-1, keepdims=True)
    dropped = jnp.sum(~kept, axis=-1) > 0
    return {
        "kept_pull": jnp.min(jnp.where(kept & dropped[:, None], pull, jnp.inf)),
        "pull_error": jnp.max(jnp.abs(jnp.where(kept, pull - (1 / mass - 1), 0))),
        "dropped_pull": jnp.max(jnp.abs(jnp.where(kept, 0, pull))),
    }


def weighted(strength: Array) -> dict[str, Array | Labelled]:
    """HAEPO where each answer stands once, and where answers stand as often as they are drawn."""
    logits = jnp.asarray(np.random.default_rng(1).normal(size=SHAPE))
    rewards = jnp.asarray(np.random.default_rng(2).random(len(SEQUENCES.lengths)))
    whole = lambda logits: strength * tabular.sequence_log_probs(logits)
    paid = lambda x, rewards: -jnp.sum(haepo.haepo(x, x, rewards).terms)
    found = jax.grad(lambda logits: paid(whole(logits), rewards))(logits)
    exact = jax.grad(tabular.expectation)(logits, rewards)

    def arms(logit: Array, sample: np.ndarray) -> Array:
        log_p = jax.nn.log_softmax(jnp.stack([jnp.zeros_like(logit), logit]))
        return paid(strength * log_p[sample], jnp.asarray(sample == 1, float))

    both = [jax.value_and_grad(arms)(jnp.log(3.0), np.array(x)) for x in ((0, 1), (0, 1, 1, 1))]
    return {
        "haepo_error": jnp.linalg.norm(found - exact) / jnp.linalg.norm(exact),
        "haepo": labelled(
            jnp.stack([jnp.stack(x) for x in both]), answers=SAMPLES, of=("return", "slope")
        ),
    }


# -------------------------------------------------------------------------------- the experiment


def run(config: ConfigDict, point: dict, key: Array) -> dict[str, Array | Labelled]:
    """Training by every rule, one after the other, with the same random numbers."""
    of_questions, of_training = jax.random.split(key)
    start, ref, rewards = asked(config, of_questions)
    initial = questions.measures(start, ref, rewards).entropy.mean()
    losses, *numbers = zip(*RULES.values(), strict=True)

    def trained(rule: tuple[Array, ...]) -> dict[str, Array]:
        which, coefficient, adapts, rho = rule
        return questions.train(
            functools.partial(by_rule, which),
            start, ref, rewards, of_training, steps=config.steps, size=config.size,
            step_size=config.step_size * len(start), inner=config.inner, measure=measure,
            state=State(point["strength"], coefficient, adapts, rho, initial),
        ).measures  # fmt: skip

    rules = np.array([LOSSES.index(loss) for loss in losses], np.int32)
    found = jax.lax.map(trained, (rules, *map(jnp.asarray, numbers)))
    steps = range(0, config.steps, RECORDED)
    names = {"rule": tuple(RULES), "step": steps, "kind": tuple(KINDS)}
    found = {name: labelled(x[:, ::RECORDED], **names) for name, x in found.items()}
    target = {"target": TARGET * initial}
    return found | target | pulls(point["strength"]) | weighted(point["strength"])


# ------------------------------------------------------------------------------------- figures


def figures(config: ConfigDict, results: xr.Dataset) -> dict[str, Picture]:
    """Entropy, what is left of the rare answers, and a wrong answer that the policy is sure of."""
    at = results.isel(strength=0)
    figure, (left, middle, right) = panels(3, width=4.6, height=4.6)
    entropy = at.entropy.mean(("kind", "seed")) / at.target.mean("seed")
    for number, rule in enumerate(("GRPO", *FIXED)):
        curve(left, "step", entropy.sel(rule=rule), label=rule, **style(number))
    for rule, line in zip(HELD, ("-", "--", ":"), strict=True):
        look = {"color": COLORS[4], "linestyle": line}
        curve(left, "step", entropy.sel(rule=rule), label=rule, **look)
    left.set(xlabel="step", ylabel="entropy / AER's target", yscale="log")
    left.set_ylim(0.02, 60)
    left.legend(fontsize="small", ncols=2)
    names = [name for name in RULES if name not in ("AER, rho 1", "GTPO, no conflicts")]
    last = at.passed.isel(step=-1).mean("seed").clip(min=1e-5)
    for kind, color, marker in zip((RARE, RARER), COLORS, "os", strict=False):
        label = f"right at {KINDS[kind]:g}"
        middle.plot(
            last.sel(rule=names, kind=kind), range(len(names)), marker, color=color, label=label
        )
        middle.axvline(1 - (1 - KINDS[kind]) ** K, color=color, linewidth=0.8, linestyle=":")
    middle.set_yticks(range(len(names)), names, fontsize="small")
    middle.invert_yaxis()
    middle.set(xlabel=f"pass@{K} at the end (line: the reference)", xscale="log", xlim=(7e-6, 2))
    middle.legend(fontsize="small", loc="lower center", bbox_to_anchor=(0.4, 1), ncols=2)
    for number, rule in enumerate(("GRPO", "ACE", "GTPO", "GTPO, all kept", "HAEPO")):
        curve(
            right,
            "step",
            at.other.sel(rule=rule, kind=SURE),
            over="seed",
            label=rule,
            **style(number),
        )
    right.set(xlabel="step", ylabel="probability of the wrong answer it is sure of", ylim=(0, 1.35))
    right.set_yticks([0, 0.25, 0.5, 0.75, 1])
    right.legend(fontsize="small", loc="upper right", ncols=2)
    return {
        "rules": Picture(
            figure,
            "Left: a fixed entropy bonus lets the entropy collapse or keeps it at its largest; AER"
            " holds its target from starts a hundred times apart. Middle: what is left of a rare"
            " right answer beside a frequent half-right one. Losses without an entropy bonus lose"
            " it, but for KL-Cov and for what GTPO does not train; the one of 1e-4 takes a bonus"
            " that begins large. Right: a wrong answer of probability .9 goes soonest with ACE, and"
            " stays with HAEPO, which weights answers by their likelihood, and on those questions"
            " of GTPO whose answers are of high entropy.",
        )
    }


# -------------------------------------------------------------------------------------- claims

HELD = "AER", "AER from .01", "AER from 1"
FIXED = "entropy .01", "entropy .1", "entropy 1"
WITHOUT = {"sweep.strength": (0.0,)}


def late(results: xr.Dataset, name: str) -> xr.DataArray:
    """The mean over the last quarter of the steps, over seeds and strengths."""
    here = results[name]
    return here.isel(step=slice(-(here.sizes["step"] // 4), None)).mean(
        ("step", "seed", "strength")
    )


def late_entropy(results: xr.Dataset) -> xr.DataArray:
    """In units of AER's target, by rule."""
    return late(results, "entropy").mean("kind") / results.target.mean()


@claim(
    source="AER (arXiv:2510.10959), abstract: a target that is a share of the initial entropy."
    " Reconstructed: .4 and both formulas; 5 % was computed before on a table",
    reruns=(WITHOUT,),
    wrong=({"rules": ("AER, rho 1",)}, {"rules": FIXED}),
)
def aer_holds_its_target(results: xr.Dataset, rules: tuple[str, ...] = HELD) -> Finding:
    """Entropy over the last quarter of training, in units of the target, from a scale of .1, .01
    and 1: within 5 %. With rho = 1 there is no bonus left on solved questions, and it swings."""
    return between(0.95, late_entropy(results).sel(rule=list(rules)), 1.05)


@claim(
    source="Computed before on a table: a fixed coefficient collapses or explodes, scaled by ten",
    reruns=(WITHOUT,),
    wrong=({"rules": HELD},),
)
def fixed_coefficients_do_not(results: xr.Dataset, rules: tuple[str, ...] = FIXED) -> Finding:
    """Of coefficients .01, .1 and 1 the first two leave less than half of the target, the last one
    more than three times as much."""
    return between((0, 0, 3), late_entropy(results).sel(rule=list(rules)), (0.5, 0.5, np.inf))


@claim(
    source="AER (arXiv:2510.10959): better exploration; these questions are not the paper's",
    reruns=(WITHOUT,),
    wrong=({"rule": "FG-ExPO"}, {"rule": "entropy .01"}),
)
def an_entropy_bonus_finds_rare_answers(results: xr.Dataset, rule: str = "AER from 1") -> Finding:
    """Late pass@32 of right answers of probability 1e-3 and 1e-4 with AER, which begins with a
    coefficient of 1: at least .5; with GRPO at most .1, where the reference has .0315 and .0032. A
    smaller beginning finds the first in a part of the questions."""
    passed = late(results, "passed").sel(kind=[RARE, RARER], rule=[rule, "GRPO"])
    passed = passed.transpose("rule", "kind")
    return between(((0.5, 0.5), (0, 0)), passed, ((1, 1), (0.1, 0.1)))


@claim(
    source="derived: the best policy under an entropy bonus is as wide as its coefficient",
    reruns=(WITHOUT,),
    wrong=({"rules": ("entropy .01", "AER from 1")}, {"rules": ("entropy 1", "entropy 1")}),
)
def a_bonus_that_stays_costs_accuracy(
    results: xr.Dataset, rules: tuple[str, str] = ("AER from 1", "entropy 1")
) -> Finding:
    """Late accuracy on the questions of 1e-4 with AER from a coefficient of 1, at least .4, and
    with a coefficient that stays 1, at most .2; pass@32 of the latter, at least .9."""
    accuracy = late(results, "accuracy").sel(kind=RARER, rule=list(rules))
    passed = late(results, "passed").sel(kind=RARER, rule=rules[1])
    return between((0.4, 0, 0.9), (*accuracy.values, passed), (1, 0.2, 1))


@claim(
    source="Cui et al. 2025 (arXiv:2505.22617): KL-Cov's plateau is over ten times higher; of large"
    " models, here refuted",
    reruns=(WITHOUT,),
    wrong=({"rules": ("AER", "Clip-Cov")}, {"rules": ("Clip-Cov", "Clip-Cov")}),
)
def kl_cov_holds_some_and_clip_cov_none(
    results: xr.Dataset, rules: tuple[str, str] = ("KL-Cov", "Clip-Cov")
) -> Finding:
    """Entropy late in training over that without a clip: KL-Cov with a fifth of the tokens and a
    coefficient of 2 between 1.2 and ten times, Clip-Cov with a fifth of them at most 1.2 times."""
    entropy = late_entropy(results)
    return between((1.2, 0), entropy.sel(rule=list(rules)) / entropy.sel(rule="no clip"), (10, 1.2))


@claim(
    source="Lp-Reg (arXiv:2510.03222), code: the gradient of k3 at the proxy",
    reruns=(WITHOUT,),
)
def lp_reg_raises_kept_tokens(results: xr.Dataset) -> Finding:
    """What Lp-Reg adds to PPO's pull on log pi: on tokens that the proxy keeps `proxy/pi - 1`
    (largest error, 1e-12), at least .001, and on those that it drops exactly 0."""
    measured = [x.max() for x in (results.pull_error, results.dropped_pull)]
    low, high = (0, 0, 1e-3), (1e-12, 0, np.inf)
    return between(low, (*measured, results.kept_pull.min()), high)


@claim(
    source="Lp-Reg: 60.17 against 57.43 of GRPO, of a large model; in this toy refuted",
    wrong=({"rule": "AER"},),
)
def lp_reg_does_not_save_the_rare_answer(results: xr.Dataset, rule: str = "Lp-Reg") -> Finding:
    """pass@32 at 1e-3 and 1e-4 less that without it (and without clip): no more than .005."""
    passed = late(results, "passed").sel(kind=[RARE, RARER])
    return at_most(0.005, passed.sel(rule=rule) - passed.sel(rule="no clip"))


@claim(
    source="HAEPO (arXiv:2508.18884), abstract; derived by hand: weights of answers that are drawn"
    " have pi twice",
    reference=((0.75, 3 / 16), (0.9, 0.09)),
    reruns=(WITHOUT,),
    wrong=({"answers": SAMPLES[::-1]},),
)
def haepo_is_exact_when_enumerated(
    results: xr.Dataset, answers: tuple[str, str] = SAMPLES
) -> Finding:
    """On two arms of 1/4 and 3/4, the second one right: the return and its slope, 3/4 and 3/16 with
    each answer once, as they are, .9 and .09 with each as often as drawn, those of pi^2; and the
    relative error of the enumerated gradient on a language model."""
    arms = results.haepo.isel(strength=0, seed=0).sel(answers=list(answers)).values.ravel()
    measured = [*(arms - (0.75, 3 / 16, 0.9, 0.09)), results.haepo_error.max()]
    return between(-1e-12, measured, 1e-12)


@claim(source="derived from the weights of HAEPO", wrong=({"rule": "GTPO"}, {"rule": "GRPO"}))
def haepo_stays_with_what_it_is_sure_of(results: xr.Dataset, rule: str = "HAEPO") -> Finding:
    """The wrong answer that begins at .9: still above .8 late in training, below .2 with GRPO."""
    other = late(results, "other").sel(kind=SURE, rule=[rule, "GRPO"])
    return between((0.8, 0), other, (1, 0.2))


@claim(
    source="ACE (arXiv:2602.21420), abstract: over-confident errors are removed",
    reruns=(WITHOUT,),
    wrong=({"rule": "GTPO"},),
)
def ace_removes_it_sooner(results: xr.Dataset, rule: str = "ACE") -> Finding:
    """The probability of the wrong answer that begins at .9, summed over all steps, in units of
    what it is with GRPO: at most .95."""
    other = results.other.sel(kind=SURE).mean(("seed", "strength")).sum("step")
    return at_most(0.95, other.sel(rule=rule) / other.sel(rule="GRPO"))


@claim(
    source="GTPO (arXiv:2508.03772): no collapse without a reference; why, is found here",
    wrong=({"rules": ("GTPO, all kept", "GTPO")},),
)
def gtpo_keeps_what_it_does_not_train(
    results: xr.Dataset, rules: tuple[str, str] = ("GTPO", "GTPO, all kept")
) -> Finding:
    """pass@32 at 1e-3 and the wrong answer that begins at .9, late in training. Answers of entropy
    above log 2 are dropped, and with them half of the questions: at least a third of the
    reference's .0315, and .3. With all answers kept: less than that third, and .2."""
    at = late(results, "passed").sel(kind=RARE), late(results, "other").sel(kind=SURE)
    measured = np.array([x.sel(rule=list(rules)) for x in at])
    return between(((0.0105, 0), (0.3, 0)), measured, ((1, 0.0105), (1, 0.2)))


@claim(source="GTPO (arXiv:2508.03772): weights of conflicting tokens", reruns=(WITHOUT,))
def weights_of_conflicts_learn_faster(results: xr.Dataset) -> Finding:
    """The probability of the wrong answer that begins at .9, summed over all steps, all answers
    kept: at most .95 of what it is without the weights of conflicting tokens."""
    other = results.other.sel(kind=SURE).mean(("seed", "strength")).sum("step")
    return at_most(0.95, other.sel(rule="GTPO, all kept") / other.sel(rule="GTPO, no conflicts"))


@claim(
    source="FG-ExPO (arXiv:2605.11403), abstract: pass@32 from 63.33 to 76.67 of a large model;"
    " Reconstructed: both functions; in this toy refuted",
    reruns=(WITHOUT,),
    wrong=({"rule": "AER from 1"},),
)
def fg_expo_is_nearer_but_finds_no_more(results: xr.Dataset, rule: str = "FG-ExPO") -> Finding:
    """KL(pi‖ref), mean over questions, less that of GRPO: at most -.02, by its KL term; pass@32
    less that of GRPO, mean over questions: no more than .05."""
    both = {name: late(results, name).mean("kind") for name in ("kl", "passed")}
    change = [x.sel(rule=rule) - x.sel(rule="GRPO") for x in both.values()]
    return at_most((-0.02, 0.05), change)
