"""Anchors and bonuses that adapt: to rewards, to confidence, to the KL itself, to the answer.

Four parts with exact numbers: optima beyond the reference's support (RAPO weighs the reference by
its rewards), a chain with a wrong, unsure prior (a KL by the prior's confidence), SAFE's controller
of the KL in noisy training, and reasoning that fits its answer, by a reference that follows the
policy (GRPO-CARE). The papers report language models only; the toys are ours.
"""

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jax import Array
from ml_collections import ConfigDict

from experiments.lab import axes
from experiments.lab.claims import Finding, at_least, between, claim, equals
from experiments.lab.plots import Picture, curve, legend, panels, style
from experiments.lab.results import Labelled, labelled
from jdiv import divergences, generators, regularized
from jdiv.policy import advantages
from jdiv.policy.recipes import grpo_care, prioritized_kl, rapo, safe

AXES = {"factor": axes.real, "seed": axes.seeds}
FIELDS = {"steps": axes.count, "group": axes.above(1)}
SUPPORT_BETAS, RARITIES = (0.1, 0.15, 0.2, 0.5), (1e-4, 1e-12)
CHAIN_BETA = 1.0
SOURCE = "the papers' claims are about language models; this toy is ours"
WITHOUT = {"sweep.factor": (0.0,), "sweep.seed": (0, 1)}


def beyond_the_support(factor: Array) -> dict[str, Labelled]:
    """Probability of the right answer in the optimum, by what the reference gives it; RAPO's slope.

    The optima of `E[r] - beta D` in closed form; and the largest derivative of RAPO's objective,
    over an enumeration, where its closed form has the optimum.
    """
    by = len(RARITIES), len(SUPPORT_BETAS)
    rare = jnp.broadcast_to(jnp.array(RARITIES)[:, None], by)
    beta = jnp.broadcast_to(jnp.array(SUPPORT_BETAS)[None], by)
    reward = jnp.broadcast_to(jnp.eye(10)[0], (*by, 10))
    log_ref = jnp.log(jnp.where(reward > 0, rare[..., None], (1 - rare[..., None]) / 9))
    tilted = log_ref + reward / beta[..., None]
    # KL(pi‖ref) once, KL(ref‖pi) to the reference and to the tilted one.
    inside = optimum(reward, log_ref, beta, "kl")[:, :, None]
    twice = lambda x: jnp.stack([x, x], axis=2)
    both = jnp.stack([log_ref, tilted], axis=2)
    outside = optimum(twice(reward), both, twice(beta), "reverse_kl")
    laws = jnp.exp(jnp.concatenate([inside, outside], axis=2)[..., 0])
    names = "reverse KL", "forward KL", "RAPO"
    slopes = jax.vmap(rapo_slope, (0, 0, None))(outside[0, :, 1], beta[0], factor)
    return {
        "rare_right": labelled(laws, rare=RARITIES, strength=SUPPORT_BETAS, optimum=names),
        "rapo_slope": labelled(slopes, strength=SUPPORT_BETAS),
    }


def optimum(reward: Array, log_ref: Array, beta: Array, row: str) -> Array:
    """The logarithm of the policy that maximizes `E[r] - beta D(pi, ref)`."""
    return regularized.greedy(reward, log_ref, beta, generator=generators.get(row)).log_policy


def rapo_slope(log_policy: Array, beta: Array, factor: Array) -> Array:
    """The largest derivative of RAPO's objective at a policy, by enumeration.

    Of 10,000 samples of the reference one is the right answer, and 1111 each of the others.
    """
    samples = np.repeat(np.arange(10), (1, *[1111] * 9))
    reward, log_ref = jnp.eye(10)[0], jnp.log(jnp.array([1e-4, *[0.1111] * 9]))

    def objective(logits: Array) -> Array:
        log_policy = jax.nn.log_softmax(logits)
        weights = jnp.exp(factor * reward / beta)[samples]
        penalty = rapo.rapo_penalty(log_policy[samples], log_ref[samples], weights)
        return jnp.exp(log_policy) @ reward - beta * jnp.mean(penalty)

    return jnp.max(jnp.abs(jax.grad(objective)(log_policy)))


def chain(factor: Array) -> dict[str, Labelled]:
    """Optimum of each state of a chain with a KL by confidence, and with the same KL everywhere.

    In the sure states a wrong action is paid half of what the right one brings in the unsure state.
    """
    unsure = np.array([0.05, 0.6, 0.175, 0.175])
    prior = jnp.asarray(np.stack([[0.999, *[0.001 / 3] * 3], [0.99, *[0.01 / 3] * 3], unsure]))
    paid = jnp.array([[0.0, 0.5, 0.0, 0.0]] * 2 + [[1.0, 0.0, 0.0, 0.0]])
    log_prior = jnp.log(prior)
    sure = prioritized_kl.confidence(log_prior)
    weights = prioritized_kl.prioritized_weights(sure, power=150 * factor)
    found = []
    for held in (weights, jnp.ones_like(weights)):
        best = regularized.greedy(
            paid, log_prior, CHAIN_BETA * held, generator=generators.kl()
        ).log_policy
        found.append((divergences.kl(best, log_prior), jnp.exp(best[:, 0])))
    kl, kept = (jnp.stack(x) for x in zip(*found, strict=True))
    by = {"weights": ("by confidence", "equal"), "state": ("surest", "sure", "unsure")}
    given = jnp.array([0.99, 0.95])
    table = prioritized_kl.prioritized_weights(given, power=150 * factor)
    return {
        "chain_kl": labelled(kl, **by),
        "chain_right": labelled(kept, **by),
        "weight": labelled(table, confidence=(0.99, 0.95)),
    }


PENALTIES = {
    # Which of SAFE's penalties, and its weight in the loss.
    "none": (0, 0.0),
    "as released": (0, 50.0),
    "as described": (1, 1.0),
    "as described, 50 times": (1, 50.0),
    "asymmetric": (2, 1.0),
    "asymmetric, 50 times": (2, 50.0),
}


def safe_runs(config: ConfigDict, factor: Array, key: Array) -> dict[str, Labelled]:
    """KL of a bandit in training with noisy rewards, by SAFE's penalty, and the largest threshold.

    The policy gradient is exact. As released the penalty is a constant; as described it is of the
    smoothed KL, of which a step's own is a tenth.
    """
    count, reward = len(PENALTIES), jnp.linspace(0.0, 1.0, 10)
    log_ref = jnp.full(10, -jnp.log(10.0))
    which, weights = (np.array(x) for x in zip(*PENALTIES.values(), strict=True))

    def loss(logits: Array, states: safe.SafeState, old_kl: Array, paid: Array):
        log_policy = jax.nn.log_softmax(logits)
        policy = jnp.exp(log_policy)
        kl = jnp.sum(policy * (log_policy - log_ref[None]), axis=-1)
        gained = policy @ paid
        states, threshold = jax.vmap(lambda *x: safe.safe_control(*x, phase=1.2))(
            states, kl, jax.lax.stop_gradient(gained)
        )
        beyond = states.kl, -jnp.sum(policy * log_policy, axis=-1), threshold
        released, described = (
            jax.vmap(lambda *x, r=r: safe.safe_penalty(*x, as_released=r))(*beyond)
            for r in (True, False)
        )
        steep = safe.safe_penalty_asymmetric(kl, old_kl)
        added = jnp.stack([released, described, steep])[which, np.arange(count)]
        states = jax.lax.stop_gradient(states)
        return jnp.sum(-gained + factor * weights * added), (states, kl, threshold)

    def step(carry, paid: Array):
        logits, states, old = carry
        slope, (states, kl, threshold) = jax.grad(loss, has_aux=True)(logits, states, old[0], paid)
        old = jnp.concatenate([old[1:], jax.lax.stop_gradient(kl)[None]])
        return (logits - slope, states, old), (kl, threshold)

    zeros = jnp.zeros(count, reward.dtype)
    states, old = safe.SafeState(*[zeros] * 5), jnp.zeros((50, count), reward.dtype)
    noisy = reward[None] + 0.3 * jax.random.normal(key, (config.steps, 10))
    carry = jnp.zeros((count, 10), reward.dtype), states, old
    _, (kl, threshold) = jax.lax.scan(step, carry, noisy)
    names = {"penalty": PENALTIES}
    return {
        "safe_kl": labelled(kl[-1], **names),
        "threshold": labelled(jnp.max(threshold, axis=0), **names),
    }


def care(config: ConfigDict, factor: Array, key: Array) -> dict[str, Labelled]:
    """Share of right answers that follow from their reasoning, with a bonus and without, by step.

    A token of reasoning, then one of the answer, which is right if it is 0. After reasoning 0 the
    reference says so by .9, after reasoning 1, which it has by .6, in one half of all cases.
    """
    first = jnp.log(jnp.array([[0.4, 0.6], [0.9, 0.1], [0.5, 0.5]]))
    count = 16

    def joint(logits: Array) -> Array:
        rows = jax.nn.log_softmax(logits)
        return rows[..., :1, :].swapaxes(-1, -2) + rows[..., 1:, :]

    def step(carry: tuple[Array, Array], given: tuple[Array, Array]):
        logits, ref = carry
        number, key = given
        law = jnp.exp(joint(logits)).reshape(2, count, 4)
        uniform = jax.random.uniform(key, (count, config.group))
        below = jnp.cumsum(law, axis=-1)[:, :, None, :3] < uniform[None, :, :, None]
        answers = jnp.sum(below, axis=-1)
        rewards = (answers % 2 == 0).astype(law.dtype)
        rows = jax.nn.log_softmax(ref)[..., 1:, :].reshape(2, count, 4)
        said = jnp.take_along_axis(rows, answers, axis=-1)[..., None]
        likelihood = grpo_care.answer_likelihood(said, jnp.full(said.shape, True))
        bonus = grpo_care.care_bonus(rewards, likelihood)
        scale = factor * jnp.array([0.0, 1.0])
        paid = advantages.grpo_advantages(rewards + scale[:, None, None] * bonus)

        def loss(logits: Array) -> Array:
            log_probs = joint(logits).reshape(2, count, 4)
            return -jnp.sum(paid * jnp.take_along_axis(log_probs, answers, axis=-1))

        logits = logits - 0.5 / config.group * jax.grad(loss)(logits)
        follows = jnp.where(number % 10 == 9, 0.995, 1.0)
        right = law[..., 0] + law[..., 2]
        found = jnp.mean(law[..., 0] / right, axis=-1), jnp.mean(right, axis=-1)
        return (logits, follows * ref + (1 - follows) * logits), found

    begin = jnp.broadcast_to(first, (2, count, 3, 2))
    keys = jax.random.split(key, config.steps)
    _, (consistent, right) = jax.lax.scan(step, (begin, begin), (jnp.arange(config.steps), keys))
    by = {"bonus": ("none", "CARE")}
    return {
        "consistency": labelled(consistent[-1], **by),
        "care_accuracy": labelled(right[-1], **by),
    }


# -------------------------------------------------------------------------------- the experiment


def run(config: ConfigDict, point: dict, key: Array) -> dict[str, Array | Labelled]:
    """All four."""
    of_safe, of_care = jax.random.split(key)
    factor = point["factor"]
    slope = jax.grad(safe.safe_penalty, 0)
    return {
        **beyond_the_support(factor),
        **chain(factor),
        **safe_runs(config, factor, of_safe),
        **care(config, factor, of_care),
        "softmin": safe.softmin(jnp.array([1.0, 2.0]), temperature=0.3),
        "safe_slopes": labelled(
            jnp.stack([slope(1.0, 0.5, 0.3, as_released=released) for released in (True, False)]),
            code=("as released", "as described"),
        ),
    }


# ----------------------------------------------------------------------------------------- figures


def figures(config: ConfigDict, results: xr.Dataset) -> dict[str, Picture]:
    """What the optima give a rare answer, the states of the chain, SAFE's KL."""
    figure, (left, middle, right) = panels(3, width=3.9, height=4.0)
    at = results.isel(factor=0).mean("seed")
    for number, name in enumerate(at.optimum.values):
        for rare, line in zip(at.rare.values, ("-", "--"), strict=True):
            look = style(number, marker=True) | {"linestyle": line}
            label = name if line == "-" else None
            curve(left, "strength", at.rare_right.sel(optimum=name, rare=rare), label=label, **look)
    left.set(
        yscale="log", ylim=(1e-13, 3), xlabel="strength β", ylabel="right answer's probability"
    )
    legend(left, fontsize="small", loc="center right")
    places = np.arange(at.sizes["state"])
    for number, name in enumerate(at.weights.values):
        middle.bar(
            places + 0.4 * number, at.chain_kl.sel(weights=name), 0.38, label=name,
            color=style(number)["color"],
        )  # fmt: skip
    middle.set_xticks(places + 0.2, list(at.state.values))
    middle.set(yscale="log", ylabel="KL(π‖ref) of the state, nats", xlabel="state of the chain")
    legend(middle, fontsize="small", title="weights of the KL")
    names = list(at.penalty.values)
    right.barh(np.arange(len(names)), at.safe_kl, color=style(0)["color"])
    right.set_yticks(np.arange(len(names)), [name.replace(", ", ",\n") for name in names])
    right.axvline(at.threshold.max(), color="black", linestyle="--", linewidth=1.2)
    right.invert_yaxis()
    right.set(xlabel="KL(π‖ref) after training, nats")
    picture = Picture(
        figure,
        "Left: what the optimum gives a right answer that the reference gives 1e-4 (full) or 1e-12"
        " (dashed): reverse KL stays with the reference, forward KL and RAPO, one line, leave it."
        " Middle: a KL weighted by the reference's confidence lets the unsure state go and holds"
        " the others. Right: SAFE's penalty as released does nothing; dashed is its largest"
        " threshold.",
    )
    return {"parts": picture}


# ------------------------------------------------------------------------------------------ claims


@claim(
    source=f"RAPO (arXiv:2510.03865): reverse KL stays in the support; closed forms, {SOURCE}",
    reference=(0.0146, 0.0146e-8),
    reruns=(WITHOUT,),
    wrong=({"inside": "forward KL"},),
)
def forward_kl_leaves_the_support(results: xr.Dataset, inside: str = "reverse KL") -> Finding:
    """A right answer of which the reference has 1e-4 and 1e-12, in the optimum at beta = .2: with
    reverse KL at most 148 = e^(1/beta) times as likely, with RAPO at least .8; and the largest
    derivative of RAPO's sampled objective there, by enumeration. That RAPO's weights add to the
    plain forward KL is not seen (.8036 against .8000)."""
    at = results.isel(factor=0).mean("seed")
    right = at.rare_right.sel(strength=0.2)
    ratio = right.sel(optimum=inside) / right.rare
    found = [*ratio.values, *right.sel(optimum="RAPO").values, at.rapo_slope.max()]
    return between((1, 1, 0.8, 0.8, 0), found, (148.5, 148.5, 1, 1, 1e-9))


@claim(
    source="Vassoyan et al. 2025 (arXiv:2502.06533), its code: power 150",
    reference=(0.2215, 0.0005),
    reruns=(WITHOUT,),
)
def weights_of_confidence(results: xr.Dataset) -> Finding:
    """The weight of the KL at a confidence of .99 and .95."""
    return equals((0.2215, 0.0005), results.weight.mean(("factor", "seed")), decimals=4)


@claim(
    source="Vassoyan et al. 2025 (arXiv:2502.06533): critical tokens right by more than 80 %"
    f" against 20 to 40 % with the plain KL, of a transformer on sums; {SOURCE}",
    published=(0.8, 0.4),
    reruns=(WITHOUT,),
    wrong=({"weights": "equal"},),
)
def the_unsure_state_moves_and_the_others_stay(
    results: xr.Dataset, weights: str = "by confidence"
) -> Finding:
    """A chain whose third state has a wrong prior of .6: in the optimum its right action has at
    least .8 with weights by confidence and at most .4 with equal ones; the two sure states, which
    are paid for a wrong action, keep at least .97 of the right one with either."""
    at = results.isel(factor=0).mean("seed").chain_right
    third = at.sel(state="unsure")
    sure = at.sel(state=["surest", "sure"]).min()
    found = third.sel(weights=weights), third.sel(weights="equal"), sure
    return between((0.8, 0.0, 0.97), found, (1.0, 0.4, 1.0))


@claim(
    source="ryyzn9/SAFE at 183daf7, its code",
    reference=(1.1974, 0.0, 0.1 * 2 * 0.7 * 2 / 0.6),
    wrong=({"code": ("as described", "as released")},),
)
def safe_as_released_has_no_gradient(
    results: xr.Dataset, code: tuple[str, str] = ("as released", "as described")
) -> Finding:
    """softmin(1, 2) at .3; the derivative of the penalty by a KL of 1, at a threshold of .3 and an
    entropy of .5, as released and as described."""
    at = results.isel(factor=0).mean("seed")
    found = [at.softmin, *at.safe_slopes.sel(code=list(code)).values]
    return equals((1.1974, 0.0, 0.14 / 0.3), found, tolerance=(5e-5, 0, 1e-12))


@claim(
    source=f"ryyzn9/SAFE at 183daf7: stable KL, .725 against .689 of a language model; {SOURCE}",
    reruns=(WITHOUT,),
    wrong=({"penalty": "none"},),
)
def safe_holds_the_kl_if_differentiated(
    results: xr.Dataset, penalty: str = "as described"
) -> Finding:
    """KL of a trained bandit over that without penalty: 1 as released, less than .7 as described
    and asymmetric. Its threshold, at most .4 there, it does not hold: that takes a weight of 50 and
    more."""
    kl = results.isel(factor=0).mean("seed").safe_kl
    ratio = kl.sel(penalty=["as released", penalty, "asymmetric"]) / kl.sel(penalty="none")
    over = kl.sel(penalty="as described") - results.threshold.max()
    return between((1, 0, 0, 0), [*ratio.values, over], (1, 0.7, 0.7, np.inf))


@claim(
    source="GRPO-CARE (arXiv:2506.16141): consistency 57.9 % with GRPO and +24.5 of a language"
    f" model; {SOURCE}",
    published=(0.579, 0.824),
    reruns=(WITHOUT,),
    wrong=({"bonus": ("CARE", "none")},),
)
def a_bonus_for_likely_answers_makes_reasoning_fit(
    results: xr.Dataset, bonus: tuple[str, str] = ("none", "CARE")
) -> Finding:
    """Share of right answers whose reasoning leads to them, with the bonus less without it, at
    least .1; and the probability of a right answer, at least .95 with both."""
    at = results.isel(factor=0).mean("seed")
    without, given = at.consistency.sel(bonus=list(bonus))
    return at_least((0.1, 0.95), (given - without, at.care_accuracy.min()))
