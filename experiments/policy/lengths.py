"""Length and accuracy under losses that are to shorten answers, or are said to lengthen them.

A language model of three tokens and four places answers easy questions, whose right answers have
two to four tokens, and hard ones, which take all four; each question has a table of its own, and
what training does is exact. All rules see the same random numbers. What the papers report is of
large language models and none of it is measured here: the claims are what the formulas do, and
where the direction of a paper's result is not seen, the claim says so.
"""

import itertools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jax import Array
from ml_collections import ConfigDict

from experiments.lab.axes import count, non_negative, seeds
from experiments.lab.claims import Finding, at_least, at_most, between, claim
from experiments.lab.plots import Picture, curve, legend_above, panels, style
from experiments.lab.results import Labelled, labelled
from jdiv.lm import questions, tabular
from jdiv.policy import tokens
from jdiv.policy.advantages import grpo_advantages
from jdiv.policy.clipped import gspo, luspo, ppo_clip
from jdiv.policy.recipes.arlcp import arlcp_rewards
from jdiv.policy.recipes.dler import dler_advantages, dler_rewards
from jdiv.policy.recipes.dot import truncated_lengths
from jdiv.policy.recipes.grpo_lambda import grpo_lambda_rewards
from jdiv.policy.recipes.spae import spae_advantages, step_potential

AXES = {"strength": non_negative, "seed": seeds}
FIELDS = {
    "questions": count,
    "size": count,
    "steps": count,
    "step_size": non_negative,
}
LONGEST = 4
SHAPE = tabular.table_shape(LONGEST)
SEQUENCES = tabular.enumerate_sequences(SHAPE)
KINDS = "easy", "hard"
WAIT = 0
"""The token that ARLCP takes for a reflection."""
RECORDED = 2
"""Every second step is kept."""


# -------------------------------------------------------------------------------- the questions

BEGINS = {
    "easy": (SEQUENCES.tokens[:, 0] == 1),
    "hard": (SEQUENCES.tokens[:, :3] == (WAIT, 1, 1)).all(axis=1),
}
"""Which answers are right: those that begin with 1, and those that begin with 0 1 1."""


def asked(config: ConfigDict, key: Array) -> tuple[Array, Array]:
    """Logits, and what is right, of easy questions and then of hard ones."""
    number = config.questions
    logits = 0.5 * jax.random.normal(key, (2 * number, *SHAPE))
    path = int(np.flatnonzero(BEGINS["hard"])[0])
    rows, taken = SEQUENCES.prefixes[path, :3], SEQUENCES.tokens[path, :3]
    logits = logits.at[number:, rows, taken].add(0.7)
    right = np.repeat(np.stack([BEGINS[kind] for kind in KINDS]), number, axis=0)
    return logits, jnp.asarray(right, logits.dtype)


def measure(logits: Array, ref_logits: Array, right: Array) -> dict[str, Array]:
    """By kind, means over its questions."""
    waits = jnp.asarray((SEQUENCES.tokens == WAIT).sum(axis=1), logits.dtype)
    found = questions.measures(logits, ref_logits, right)._asdict()
    found["reflections"] = jax.vmap(tabular.expectation, (0, None))(logits, waits)
    return {name: x.reshape(len(KINDS), -1).mean(axis=1) for name, x in found.items()}


def solved_after(batch: questions.Batch, right: Array) -> Array:
    """The probability of a right answer after each token, exact; at the end whether it is one."""
    law = jnp.exp(jax.lax.stop_gradient(jax.vmap(tabular.sequence_log_probs)(batch.tables)))
    through = np.zeros((SHAPE[0], len(law[0])))
    for answer, (rows, inside) in enumerate(zip(SEQUENCES.prefixes, SEQUENCES.mask, strict=True)):
        through[rows[inside], answer] = 1
    reached = law @ jnp.asarray(through.T)
    value = (law * right) @ jnp.asarray(through.T) / jnp.where(reached > 0, reached, 1)
    following = jnp.asarray(SEQUENCES.prefixes)[batch.answers][..., 1:]
    after = jax.vmap(lambda x, rows: x[rows])(value, following)
    ended = jnp.broadcast_to(batch.rewards[..., None], batch.mask.shape)
    after = jnp.concatenate([after, ended[..., -1:]], axis=-1)
    always = jnp.full_like(batch.mask[..., :1], True)
    last = jnp.concatenate([~batch.mask[..., 1:], always], axis=-1)
    return jnp.where(last, ended, after)


# ---------------------------------------------------------------------------------------- rules
# Each gives what a token's log-probability is weighted with: its advantage times its share of the
# average, over tokens where nothing else is said.


def shared(advantages: Array, mask: Array, average: str = "DAPO") -> Array:
    """Advantages of answers or tokens times the weights of an average over the whole batch."""
    weights = tokens.AVERAGES[average].loss(mask.reshape(-1, LONGEST)).reshape(mask.shape)
    advantages = advantages if advantages.ndim == mask.ndim else advantages[..., None]
    return advantages * weights


class Given(NamedTuple):
    """What a rule is told: a batch, all right answers, the price of the longest answer."""

    batch: questions.Batch
    right: Array
    price: Array
    strength: Array

    @property
    def lengths(self) -> Array:
        """Tokens of each answer."""
        return jnp.sum(self.batch.mask, axis=-1).astype(self.batch.rewards.dtype)

    @property
    def penalized(self) -> Array:
        """Rewards less a price for each token."""
        return self.batch.rewards - self.strength * self.price * self.lengths / LONGEST


def by_tokens(given: Given) -> Array:
    """Nothing about lengths, and a mean over tokens."""
    return shared(grpo_advantages(given.batch.rewards), given.batch.mask)


def by_sequences(given: Given) -> Array:
    """A mean over answers of means over their tokens."""
    return shared(grpo_advantages(given.batch.rewards), given.batch.mask, "GRPO")


def by_constant(given: Given) -> Array:
    """A mean over answers of sums over their tokens, over the longest length: LUSPO's, too."""
    return shared(grpo_advantages(given.batch.rewards), given.batch.mask, "Dr. GRPO")


def by_penalty(given: Given) -> Array:
    """Every answer pays for its length."""
    return shared(grpo_advantages(given.penalized), given.batch.mask)


def by_lambda(given: Given) -> Array:
    """The better half of the questions pay for lengths."""
    paid = grpo_lambda_rewards(given.batch.rewards, given.penalized, share=0.5)
    return shared(grpo_advantages(paid), given.batch.mask)


def by_arlcp(given: Given) -> Array:
    """Right answers pay for their length and reflections among themselves."""
    waits = jnp.sum(given.batch.tokens == WAIT, axis=-1).astype(given.batch.rewards.dtype)
    paid = arlcp_rewards(given.batch.rewards, given.lengths, waits)
    paid = given.batch.rewards + given.strength * (paid - given.batch.rewards)
    return shared(grpo_advantages(paid), given.batch.mask)


def by_dler(given: Given) -> Array:
    """Answers of four tokens are cut off, and advantages divided by the deviation of the batch."""
    limit = jnp.where(given.strength > 0, LONGEST - 1.0, LONGEST)
    paid = dler_rewards(given.batch.rewards, given.lengths, limit=limit)
    return shared(dler_advantages(paid), given.batch.mask)


def by_dot(given: Given) -> Array:
    """The longest answers to solved questions are cut off, and lose their reward."""
    lengths = given.lengths
    margin = jnp.where(given.strength > 0, 1.0, LONGEST)
    kept = truncated_lengths(given.batch.rewards, lengths, scale=1.0, margin=margin)
    mask = given.batch.mask & (jnp.arange(LONGEST, dtype=kept.dtype)[None, None] < kept[..., None])
    return shared(grpo_advantages(jnp.where(kept < lengths, 0, given.batch.rewards)), mask)


def by_spae(given: Given) -> Array:
    """Half of the credit behind saturation, and the progress of each step."""
    solved = solved_after(given.batch, given.right)
    potential = step_potential(solved, jnp.maximum(solved, 1 - solved))
    advantages = spae_advantages(
        grpo_advantages(given.batch.rewards), potential,
        damping=0.5 * given.strength, shaping=given.strength,
    )  # fmt: skip
    return shared(advantages, given.batch.mask)


RULES = {
    "mean over tokens": (by_tokens, 0.0),
    "mean over answers": (by_sequences, 0.0),
    "constant, LUSPO": (by_constant, 0.0),
    "plain penalty, .5": (by_penalty, 0.5),
    "plain penalty, 1": (by_penalty, 1.0),
    "plain penalty, 2": (by_penalty, 2.0),
    "GRPO-lambda, .5": (by_lambda, 0.5),
    "GRPO-lambda, 1": (by_lambda, 1.0),
    "GRPO-lambda, 2": (by_lambda, 2.0),
    "ARLCP": (by_arlcp, 0.0),
    "DLER": (by_dler, 0.0),
    "DOT": (by_dot, 0.0),
    "SPAE": (by_spae, 0.0),
}
"""The rule, and the price of the longest answer where there is one."""
LOSSES = tuple(dict.fromkeys(rule for rule, _ in RULES.values()))
ALONE = "mean over tokens"


# -------------------------------------------------------------------------------- the experiment


def training(config: ConfigDict, strength: Array, key: Array) -> dict[str, Labelled]:
    """By every rule, one after the other."""
    of_questions, of_training = jax.random.split(key)
    logits, right = asked(config, of_questions)

    def trained(rule: tuple[Array, Array]) -> dict[str, Array]:
        which, price = rule

        def loss(batch: questions.Batch, state: tuple) -> tuple[Array, tuple]:
            given = Given(batch._replace(key=None), right, price, strength)
            weights = jax.lax.switch(which, LOSSES, jax.lax.stop_gradient(given))
            each = ppo_clip(batch.log_probs, batch.old_log_probs, weights, batch.mask).loss
            return jnp.sum(each), state

        return questions.train(
            loss, logits, logits, right, of_training, steps=config.steps, size=config.size,
            step_size=config.step_size * len(logits), measure=measure,
        ).measures  # fmt: skip

    which, prices = zip(
        *((LOSSES.index(loss), price) for loss, price in RULES.values()), strict=True
    )
    found = jax.lax.map(trained, (np.array(which, np.int32), jnp.asarray(prices)))
    steps = range(0, config.steps, RECORDED)
    names = {"rule": tuple(RULES), "step": steps, "kind": KINDS}
    return {name: labelled(x[:, ::RECORDED], **names) for name, x in found.items()}


SCALES = {
    "none": lambda rewards: grpo_advantages(rewards, scale=False),
    "group": grpo_advantages,
    "batch": dler_advantages,
}
ANSWERS, SIZE = 6, 4
"""Answers to a question, all as likely, and of a group."""
SOLVED = tuple(range(1, ANSWERS))
"""How many of them are right."""


def scaled() -> Labelled:
    """By what the gradient of a question's accuracy is multiplied, over all groups there are.

    `E[A grad log pi] = (E[A | right] - E[A | wrong]) p (1 - p)` times the gradient of log odds, and
    that of the accuracy is `p (1 - p)` times the same.
    """
    groups = np.array(list(itertools.product(range(ANSWERS), repeat=SIZE)))
    rewards = jnp.asarray(np.stack([groups < right for right in SOLVED]).astype(float))

    def factor(advantages: Array) -> Array:
        right, wrong = rewards == 1, rewards == 0
        mean = lambda where: jnp.mean(advantages, axis=(1, 2), where=where)
        return mean(right) - mean(wrong)

    flat = rewards.reshape(-1, SIZE)
    found = [factor(scale(flat).reshape(rewards.shape)) for scale in SCALES.values()]
    return labelled(jnp.stack(found), scale=tuple(SCALES), right=SOLVED)


def of_averages() -> Labelled:
    """Gradients of LUSPO and GSPO on a batch of its own policy, less those of averages alone."""
    rng = np.random.default_rng(0)
    mask = jnp.asarray(np.arange(6) < rng.integers(1, 7, 8)[:, None])
    log_probs = jnp.where(mask, -jnp.asarray(rng.random((8, 6))), 0)
    advantages = jnp.asarray(rng.normal(size=8))

    def error(loss, average: str) -> Array:
        own = lambda x: tokens.sequence_mean(loss(x, log_probs, advantages, mask).loss, mask)
        alone = -advantages[:, None] * tokens.AVERAGES[average].loss(mask)
        return jnp.max(jnp.abs(jax.grad(own)(log_probs) - alone))

    found = [[error(loss, average) for average in ("LUSPO", "GRPO")] for loss in (luspo, gspo)]
    rows = [jnp.stack(row) for row in found]
    return labelled(jnp.stack(rows), loss=("LUSPO", "GSPO"), average=("constant", "over answers"))


def run(config: ConfigDict, point: dict, key: Array) -> dict[str, Array | Labelled]:
    """Training by every rule; what scales and averages do, exactly."""
    exact = {"factor": scaled(), "of_average": of_averages()}
    return training(config, point["strength"], key) | exact


# -------------------------------------------------------------------------------------- figures


def figures(config: ConfigDict, results: xr.Dataset) -> dict[str, Picture]:
    """Accuracy on hard questions, length on easy ones, weights of questions."""
    at = results.isel(strength=0)
    figure, (left, middle, right) = panels(3, width=4.6, height=4.6)
    for number, rule in enumerate(SHOWN):
        look = {"label": rule, **style(number)}
        curve(left, "step", at.accuracy.sel(rule=rule, kind="hard"), over="seed", **look)
        curve(middle, "step", at.length.sel(rule=rule, kind="easy"), over="seed", **look)
    left.set(xlabel="step", ylabel="accuracy on hard questions", ylim=(-0.02, 1.02))
    middle.set(xlabel="step", ylabel="length on easy questions, tokens", ylim=(1.5, LONGEST))
    factor = at.factor.isel(seed=0).assign_coords(right=np.array(SOLVED) / ANSWERS)
    factor = factor / factor.isel(right=len(SOLVED) // 2)
    for number, (scale, name) in enumerate((("group", "group (GRPO)"), ("batch", "batch (DLER)"))):
        curve(right, "right", factor.sel(scale=scale), label=name, **style(number, marker=True))
    right.set(xlabel="accuracy on a question", ylabel="its weight in the gradient, 1 at one half")
    right.legend(title="deviation of the")
    legend_above(figure, left, columns=4)
    return {
        "lengths": Picture(
            figure,
            "Left: a price of 2 for four tokens brings hard questions, of which all answers are"
            " wrong at first, to the shortest answer and accuracy 0, if every question pays; with"
            " GRPO-lambda the better half pays. DLER cuts off their right answers, so that nothing"
            " is learned and nothing is lost. Middle: what all of these do to easy questions,"
            " whose right answers may have two tokens. Right: over the deviation of its group a"
            f" question counts more the further its accuracy is from one half (groups of {SIZE});"
            " over that of the batch all count alike.",
        )
    }


SHOWN = (
    "mean over tokens", "plain penalty, 2", "GRPO-lambda, 2", "ARLCP", "DLER", "DOT", "SPAE",
)  # fmt: skip

# -------------------------------------------------------------------------------------- claims

WITHOUT = {"sweep.strength": (0.0,)}


def late(results: xr.Dataset, name: str, kind: str) -> xr.DataArray:
    """The mean over the last quarter of the steps, over seeds and strengths, by rule."""
    here = results[name].sel(kind=kind)
    return here.isel(step=slice(-(here.sizes["step"] // 4), None)).mean(
        ("step", "seed", "strength")
    )


def shorter(results: xr.Dataset, rule: str) -> xr.DataArray:
    """The length on easy questions, in units of what it is where nothing is said about it."""
    length = late(results, "length", "easy")
    return length.sel(rule=rule) / length.sel(rule=ALONE)


@claim(
    source="GRPO-lambda (arXiv:2505.18086), abstract: accuracy collapses where all pay; +1.48 % and"
    " -47.3 % of the length, of a large model",
    reruns=(WITHOUT,),
    wrong=({"rule": "plain penalty, 2"}, {"plain": "plain penalty, .5"}),
)
def accuracy_collapses_where_all_pay(
    results: xr.Dataset, plain: str = "plain penalty, 2", rule: str = "GRPO-lambda, 2"
) -> Finding:
    """Late accuracy on hard questions at a price of 2 for the longest answer: at most .05 if all
    pay, at least .95 with GRPO-lambda, whose easy answers have at most .75 of the length."""
    accuracy = late(results, "accuracy", "hard").sel(rule=[plain, rule])
    measured = (*accuracy.values, shorter(results, rule))
    return between((0, 0.95, 0), measured, (0.05, 1, 0.75))


@claim(
    source="GRPO-lambda (arXiv:2505.18086): training lasts longer; by price, found here",
    reruns=(WITHOUT,),
    wrong=({"rule": "GRPO-lambda"},),
)
def a_small_price_costs_less(results: xr.Dataset, rule: str = "plain penalty") -> Finding:
    """Late accuracy on hard questions where all pay: above .7 at a price of .5 for the longest
    answer, no higher at 1, and less by .3 at least at 2."""
    accuracy = late(results, "accuracy", "hard")
    small, middle, large = (accuracy.sel(rule=f"{rule}, {price}") for price in (".5", "1", "2"))
    return at_least((0.7, 0, 0.3), (small, small - middle, middle - large))


@claim(
    source="ARLCP (arXiv:2602.12113): -53.1 % of the length and +5.8 % accuracy, of a large model",
    reruns=(WITHOUT,),
    wrong=({"rule": "SPAE"}, {"rule": "plain penalty, 2"}),
)
def arlcp_shortens_without_loss(results: xr.Dataset, rule: str = "ARLCP") -> Finding:
    """Length on easy questions at most .75 of what it is without, reflections on hard ones, whose
    length is fixed, at most .9; accuracy on hard questions not below by more than .01."""
    waits, accuracy = (late(results, name, "hard") for name in ("reflections", "accuracy"))
    fewer = waits.sel(rule=rule) / waits.sel(rule=ALONE)
    lost = accuracy.sel(rule=ALONE) - accuracy.sel(rule=rule)
    return at_most((0.75, 0.9, 0.01), (shorter(results, rule), fewer, lost))


def by_group(right: int) -> float:
    """The factor of the gradient of a question's accuracy with GRPO, by the binomial law."""
    p, others = right / ANSWERS, SIZE - 1
    law = [math.comb(others, k) * p**k * (1 - p) ** (others - k) for k in range(SIZE)]
    of_right = sum(law[k] * ((others - k) / (k + 1)) ** 0.5 for k in range(SIZE))
    return of_right + sum(law[k] * (k / (SIZE - k)) ** 0.5 for k in range(SIZE))


@claim(
    source="DLER (arXiv:2510.15110), abstract: a batch-wise deviation is unbiased; derived",
    reference=[by_group(right) for right in SOLVED],
    wrong=({"scales": ("batch", "group")}, {"scales": ("none", "batch")}),
)
def only_the_batch_weighs_questions_alike(
    results: xr.Dataset, scales: tuple[str, str] = ("group", "batch")
) -> Finding:
    """Over all groups of four of questions with accuracies 1/6 to 5/6, what their gradients are
    multiplied by: with GRPO the reference's factors; with DLER one factor for all; differences."""
    factor = results.factor.isel(seed=0, strength=0)
    group, batch = (factor.sel(scale=scale) for scale in scales)
    expected = np.array([by_group(right) for right in SOLVED])
    return at_most(1e-12, (abs(group - expected).max(), batch.max() / batch.min() - 1))


@claim(
    source="DLER (arXiv:2510.15110), abstract: truncation alone, -70 % of the length of a large"
    " model; that it forgoes long answers, is found here",
    reruns=(WITHOUT,),
    wrong=({"rule": "ARLCP"}, {"rule": "plain penalty, 2"}),
)
def truncation_shortens_and_forgoes_long_answers(
    results: xr.Dataset, rule: str = "DLER"
) -> Finding:
    """With answers cut off at three tokens easy ones have at most .75 of the length; hard
    questions, which take four, have the accuracy that they began with, within .01."""
    accuracy = results.accuracy.sel(rule=rule, kind="hard").mean(("seed", "strength"))
    change = abs(accuracy - accuracy.isel(step=0)).max()
    return at_most((0.75, 0.01), (shorter(results, rule), change))


@claim(
    source="DOT (arXiv:2601.03969): -78 % of the length, of a large model; its rule is about groups"
    " that are all right",
    reruns=(WITHOUT,),
    wrong=({"rule": "SPAE"}, {"rule": "plain penalty, 1"}),
)
def dot_shortens_what_is_solved(results: xr.Dataset, rule: str = "DOT") -> Finding:
    """Length on easy questions at most .75 of what it is without; on hard ones, all of whose right
    answers are as long, the same within .05 tokens, at the same accuracy within .01."""
    change = [late(results, name, "hard") for name in ("length", "accuracy")]
    change = [abs(x.sel(rule=rule) - x.sel(rule=ALONE)) for x in change]
    return at_most((0.75, 0.05, 0.01), (shorter(results, rule), *change))


@claim(
    source="Dr. GRPO (arXiv:2503.20783) and DAPO (arXiv:2503.14476), on the bias of the average",
    wrong=({"rule": "constant, LUSPO"},),
)
def a_mean_over_answers_prefers_short_ones(
    results: xr.Dataset, rule: str = "mean over answers"
) -> Finding:
    """Length on easy questions, where nothing is said about it: at most .97 of that of a mean over
    tokens; that of a constant is the same within .03."""
    constant = shorter(results, "constant, LUSPO")
    return between((0, 0.97), (shorter(results, rule), constant), (0.97, 1.03))


@claim(
    source="LUSPO and GSPO (arXiv:2507.18071), as trainers have them; derived",
    wrong=({"averages": ("over answers", "constant")},),
)
def luspo_is_a_constant_average(
    results: xr.Dataset, averages: tuple[str, str] = ("constant", "over answers")
) -> Finding:
    """On a batch of its own policy LUSPO has the gradient of a mean of sums over tokens, GSPO that
    of a mean over answers: largest differences."""
    error = results.of_average.isel(seed=0, strength=0)
    pairs = zip(("LUSPO", "GSPO"), averages, strict=True)
    return at_most(1e-12, [error.sel(loss=loss, average=average) for loss, average in pairs])


@claim(
    source="SPAE (arXiv:2601.03823), abstract: credit by progress, and less behind saturation; that"
    " this makes answers shorter is not seen in this toy",
    reruns=(WITHOUT,),
    wrong=({"rule": "mean over answers"}, {"rule": "GRPO-lambda, .5"}),
)
def spae_learns_sooner_but_not_shorter(results: xr.Dataset, rule: str = "SPAE") -> Finding:
    """Accuracy on hard questions, mean over all steps, less what it is without: at least .01; and
    length on easy ones over what it is without: within .03 of 1."""
    accuracy = results.accuracy.sel(kind="hard").mean(("step", "seed", "strength"))
    gained = accuracy.sel(rule=rule) - accuracy.sel(rule=ALONE)
    return between((0.01, 0.97), (gained, shorter(results, rule)), (1, 1.03))
