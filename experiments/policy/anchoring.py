"""Anchors to a reference: which of them keep pass@k when a policy is trained on many questions.

One policy answers six questions and has few parameters of its own for each: what is learned on one
moves all. Four have the same right answer, two another, rarer one; training without an anchor
raises pass@1 and loses the two, and with them pass@k, once no group has their answer any more.
Every anchor is trained on the same draws, by its strength. Beside them stand the parts that have
numbers: optima beyond the reference's support (RAPO), a chain with a wrong, unsure prior
(prioritized KL), SAFE's controller, and reasoning that fits its answer (GRPO-CARE). The papers
report language models only; the toys are ours, and where a direction does not hold it is said.
"""

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jax import Array
from ml_collections import ConfigDict

from experiments.lab import axes
from experiments.lab.claims import (
    Finding,
    at_least,
    at_most,
    between,
    claim,
    equals,
    together,
)
from experiments.lab.plots import Picture, curve, legend, legend_above, panels, style
from experiments.lab.results import Labelled, labelled
from jdiv import divergences, generators, regularized
from jdiv.lm import questions, tabular
from jdiv.policy import advantages, clipped, kl_terms
from jdiv.policy.recipes import anchored_policy_optimization as anchored
from jdiv.policy.recipes import (
    asymmetric_po,
    dmpo,
    dph_rl,
    grpo_care,
    prioritized_kl,
    rapo,
    safe,
    tpo,
)

AXES = {"factor": axes.real, "seed": axes.seeds}
FIELDS = {
    "betas": axes.each(axes.positive),
    "own_share": axes.fraction,
    "step_size": axes.non_negative,
    "steps": axes.count,
    "group": axes.above(1),
    "k": axes.at_least(1),
}
ANCHORS = (
    "none", "reverse KL", "forward KL", "JS", "RAPO", "anchored PO", "DMPO", "DMPO, KL", "TPO",
    "DADS", "STCR",
)  # fmt: skip
"""`none` is GRPO; TPO and STCR have no strength."""
SHAPE = tabular.table_shape(3)
SEQUENCES = tabular.enumerate_sequences(SHAPE)
COMMON, RARE = 1, 11
"""The right answers, of two and of three tokens, by their place among all."""
MAJORITY, MINORITY = 4, 2
SOURCE = "the papers' claims are about language models; this toy is ours"
UNANCHORED = {"sweep.factor": (0.0,), "sweep.seed": (0, 1)}
THINNED = 10
SUPPORT_BETAS, RARITIES = (0.1, 0.15, 0.2, 0.5), (1e-4, 1e-12)
CHAIN_BETA = 1.0

# ---------------------------------------------------------------------------------- the questions


def start() -> tuple[np.ndarray, np.ndarray]:
    """Probabilities of all answers by the reference, and which are right to each question."""
    count = len(SEQUENCES.lengths)
    law = np.full(count, 0.55 / (count - 2))
    law[COMMON], law[RARE] = 0.3, 0.15
    right = np.zeros((MAJORITY + MINORITY, count))
    right[:MAJORITY, COMMON], right[MAJORITY:, RARE] = 1, 1
    return law, right


def log_probs_of(logits: Array) -> Array:
    """Of all answers, by anchor and question."""
    return jax.vmap(jax.vmap(tabular.sequence_log_probs))(logits)


def penalties(batch: questions.Batch, log_policy: Array, seen: Array) -> dict[str, Array]:
    """What each anchor adds to the loss of a question, at strength 1.

    `log_policy` is of all answers, `seen` are answers of the reference.
    """
    law, right = start()
    of_seen = lambda x: jnp.take_along_axis(x, seen, axis=-1)
    log_ref = of_seen(jnp.broadcast_to(jnp.log(jnp.asarray(law)), right.shape))
    drawn = lambda name: of_seen(log_policy[ANCHORS.index(name)])
    at = lambda name: jax.tree.map(lambda x: x[ANCHORS.index(name)], batch)
    solved = jnp.broadcast_to(jnp.asarray(right @ law > 0.05)[:, None], seen.shape)
    weights = jnp.exp(of_seen(jnp.asarray(right)))

    def to_reference(here: questions.Batch) -> Array:
        return kl_terms.sequence_kl_penalty(here.log_probs, here.ref_log_probs, here.mask)

    def by_row(name: str, row: divergences.Generator) -> Array:
        return dph_rl.dph_rl_penalty(drawn(name), log_ref, solved, generator=row)

    group, other, dads = at("DMPO"), at("DMPO, KL"), at("DADS")
    of_rewards = dmpo.dmpo_target(other.rewards, temperature=0.2)
    fitted = dmpo.dmpo_loss(group.log_probs, group.rewards, group.mask, temperature=0.2)
    return {
        "reverse KL": to_reference(at("reverse KL")).mean(-1),
        "forward KL": by_row("forward KL", generators.reverse_kl()).mean(-1),
        "JS": 2 * by_row("JS", generators.jensen_shannon()).mean(-1),
        "RAPO": jax.vmap(rapo.rapo_penalty)(drawn("RAPO"), log_ref, weights).mean(-1),
        "anchored PO": pulled(at("anchored PO")),
        "DMPO": 800 * fitted,
        "DMPO, KL": 10 * tpo.group_forward_kl(jnp.sum(other.log_probs, axis=-1), of_rewards),
        "DADS": (asymmetric_po.dads_weights(dads.rewards) * to_reference(dads)).mean(-1),
    }


def pulled(batch: questions.Batch) -> Array:
    """What a pull of 10 towards the reference's two likeliest tokens of each place adds."""
    inside = anchored.support(batch.ref_logits, size=2)
    coverage = jax.nn.logsumexp(jnp.where(inside, batch.logits, -jnp.inf), axis=-1)
    coverages = coverage, jax.lax.stop_gradient(coverage)
    paid = advantages.grpo_advantages(batch.rewards)
    with_pull, without = (
        anchored.anchored_policy_optimization(
            batch.log_probs, batch.old_log_probs, *coverages, paid, batch.mask, pull=pull
        ).loss
        for pull in (10.0, 0.0)
    )
    return jnp.sum(with_pull - without, axis=-1).mean(-1)


def surrogates(batch: questions.Batch, factor: Array) -> Array:
    """GRPO's loss `[anchor, question]`; STCR's with its advantages, TPO's fit in its place."""
    paid = advantages.grpo_advantages(batch.rewards)
    stcr, of_tpo = ANCHORS.index("STCR"), ANCHORS.index("TPO")
    lengths = jnp.sum(batch.mask[stcr], axis=-1)
    harder = asymmetric_po.stcr_advantages(
        paid[stcr], batch.rewards[stcr], lengths, coefficient=1.0
    )
    answers = jnp.sum(batch.log_probs[of_tpo], axis=-1)
    target = tpo.tpo_target(jax.lax.stop_gradient(answers), paid[of_tpo])
    fitted = tpo.group_forward_kl(answers, target)
    paid = paid.at[stcr].add(factor * (harder - paid[stcr]))
    each = clipped.ppo_clip(batch.log_probs, batch.old_log_probs, paid, batch.mask).loss
    loss = jnp.sum(each, axis=-1).mean(-1)
    return loss.at[of_tpo].add(factor * (fitted - loss[of_tpo]))


def measured(logits: Array) -> dict[str, Array]:
    """Exact, by anchor: pass@1 by question, entropy of answers and length of wrong ones."""
    _, right = start()
    log_policy = log_probs_of(logits)
    policy = jnp.exp(log_policy)
    wrong = policy * jnp.asarray(1 - right)[None]
    lengths = jnp.asarray(SEQUENCES.lengths, policy.dtype)
    return {
        "accuracy": jnp.sum(policy * jnp.asarray(right)[None], axis=-1),
        "entropy": -jnp.mean(jnp.sum(policy * log_policy, axis=-1), axis=-1),
        "wrong_length": jnp.sum(wrong @ lengths, axis=-1) / jnp.sum(wrong, axis=(1, 2)),
    }


def train(config: ConfigDict, beta: Array, factor: Array, key: Array) -> dict[str, Array]:
    """What the policies of all anchors are on the way, each row a step."""
    law, right = start()
    first = tabular.from_sequences(jnp.log(jnp.asarray(law)), SHAPE)
    ref = jnp.broadcast_to(first, (len(right), *SHAPE))
    sizes = config.step_size / len(right) * np.array([1, config.own_share])

    def loss(parameters: tuple[Array, Array], answers: Array, seen: Array) -> Array:
        logits = parameters[0][:, None] + parameters[1]
        old = jax.lax.stop_gradient(logits)
        batch = jax.vmap(questions.batch, (0, 0, None, None, 0))(logits, old, ref, right, answers)
        added = penalties(batch, log_probs_of(logits), seen)
        anchor = sum(jnp.sum(x) for x in added.values())
        return jnp.sum(surrogates(batch, factor)) + factor * beta * anchor

    def step(parameters: tuple[Array, Array], key: Array):
        of_policy, of_reference = jax.random.split(key)
        logits = parameters[0][:, None] + parameters[1]
        answers = jax.vmap(questions.draw, (0, None, None))(logits, config.group, of_policy)
        seen = questions.draw(ref, config.group, of_reference)
        slopes = jax.grad(loss)(parameters, answers, seen)
        moved = tuple(x - s * g for x, s, g in zip(parameters, sizes, slopes, strict=True))
        return moved, measured(logits)

    shared = jnp.broadcast_to(first, (len(ANCHORS), *SHAPE))
    own = jnp.zeros((len(ANCHORS), len(right), *SHAPE), first.dtype)
    return jax.lax.scan(step, (shared, own), jax.random.split(key, config.steps))[1]


# ------------------------------------------------------------------------------- parts with numbers


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
    """All of it; on the questions every strength has the same draws."""
    of_questions, of_safe, of_care = jax.random.split(key, 3)
    factor = point["factor"]
    betas = jnp.array(config.betas)
    trained = jax.vmap(lambda beta: train(config, beta, factor, of_questions))(betas)
    by = {"beta": config.betas, "step": range(0, config.steps, THINNED), "anchor": ANCHORS}
    thinned = {name: x[:, ::THINNED] for name, x in trained.items()}
    accuracy = thinned.pop("accuracy")
    several = jnp.mean(questions.pass_at_k(accuracy, config.k), axis=-1)
    thinned |= {"pass_at_1": jnp.mean(accuracy, axis=-1), "pass_at_k": several}
    lengths = jnp.array([1000.0, 1000.0 + 4096.0])
    cost = asymmetric_po.stcr_advantages(-jnp.ones((1, 2)), jnp.array([[1.0, 0.0]]), lengths[None])
    two = safe.softmin(jnp.array([1.0, 2.0]), temperature=0.3)
    slope = jax.grad(safe.safe_penalty, 0)
    return {
        **{name: labelled(x, **by) for name, x in thinned.items()},
        **beyond_the_support(factor),
        **chain(factor),
        **safe_runs(config, factor, of_safe),
        **care(config, factor, of_care),
        "stcr_factor": -cost[0, 1],
        "softmin": two,
        "safe_slopes": labelled(
            jnp.stack([slope(1.0, 0.5, 0.3, as_released=released) for released in (True, False)]),
            code=("as released", "as described"),
        ),
    }


# ----------------------------------------------------------------------------------------- figures


def last(results: xr.Dataset) -> xr.Dataset:
    """The trained policies, mean over seeds."""
    return results.isel(factor=0, step=-1).mean("seed")


DRAWN = ("reverse KL", "forward KL", "JS", "RAPO", "anchored PO", "DMPO", "DMPO, KL")


def figures(config: ConfigDict, results: xr.Dataset) -> dict[str, Picture]:
    """The sweep over strengths; and the parts with numbers."""
    return {"window": window(config, results), "parts": parts(results)}


def window(config: ConfigDict, results: xr.Dataset) -> Picture:
    """pass@k and pass@1 by strength, and on the way."""
    figure, (left, middle, right) = panels(3, width=3.9, height=4.6)
    at = last(results)
    for number, name in enumerate(DRAWN):
        for plot, what in ((left, "pass_at_k"), (middle, "pass_at_1")):
            look = style(number, marker=True) | {"label": name}
            curve(plot, "beta", at[what].sel(anchor=name), **look)
    for name, line in (("none", "--"), ("TPO", ":")):
        for plot, what in ((left, "pass_at_k"), (middle, "pass_at_1")):
            level = float(at[what].sel(anchor=name).mean())
            plot.axhline(level, color="#707070", linestyle=line, label=name)
    beta = results.beta.values[min(1, results.sizes["beta"] - 1)]
    way = results.isel(factor=0).sel(beta=beta)
    for name in ("none", "reverse KL", "forward KL", "RAPO", "TPO"):
        number = DRAWN.index(name) if name in DRAWN else None
        look = style(number) if number is not None else {"color": "#707070"}
        dashes = {"none": "--", "TPO": ":"}.get(name)
        look |= {"linestyle": dashes} if dashes else {}
        curve(right, "step", way.pass_at_k.sel(anchor=name).mean("seed"), **look)
    left.set(xscale="log", xlabel="strength β", ylabel=f"pass@{config.k} after training")
    middle.set(xscale="log", xlabel="strength β", ylabel="pass@1 after training")
    right.set(xlabel="step", ylabel=f"pass@{config.k}, β = {beta:g}")
    legend_above(figure, left, columns=5)
    return Picture(
        figure,
        "Six questions, one policy. In a window of β forward KL and RAPO keep the questions that"
        " training without an anchor (dashed) and with reverse KL loses; above it reverse KL and JS"
        " keep them too, and are more accurate. TPO (dotted) keeps them without an anchor, and is"
        " slow. DMPO's weight is 800 β, or 10 β as a forward KL, the pull of anchored PO 10 β."
        " DADS, not drawn, is close to reverse KL.",
    )


def parts(results: xr.Dataset) -> Picture:
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
    return Picture(
        figure,
        "Left: what the optimum gives a right answer that the reference gives 1e-4 (full) or 1e-12"
        " (dashed): reverse KL stays with the reference, forward KL and RAPO, one line, leave it."
        " Middle: a KL weighted by the reference's confidence lets the unsure state go and holds"
        " the others. Right: SAFE's penalty as released does nothing; dashed is its largest"
        " threshold.",
    )


# ------------------------------------------------------------------------------------------ claims

SWAPPED = {"reverse": "forward KL", "forward": "reverse KL"}


@claim(source=f"DPH-RL and RAPO (arXiv:2510.03865); {SOURCE}", wrong=({"anchor": "TPO"},))
def training_trades_pass_at_k_for_pass_at_1(results: xr.Dataset, anchor: str = "none") -> Finding:
    """Without an anchor pass@1 rises by at least .3 and pass@16 falls by at least .1, mean over
    seeds."""
    way = results.isel(factor=0).mean(("seed", "beta")).sel(anchor=anchor)
    risen = [
        way[name].isel(step=-1) - way[name].isel(step=0) for name in ("pass_at_1", "pass_at_k")
    ]
    return between((0.3, -1.0), risen, (1.0, -0.1))


@claim(
    source=f"DPH-RL and RAPO (arXiv:2510.03865); {SOURCE}",
    reruns=(UNANCHORED,),
    wrong=(SWAPPED,),
)
def forward_kl_keeps_what_reverse_kl_loses(
    results: xr.Dataset, reverse: str = "reverse KL", forward: str = "forward KL"
) -> Finding:
    """At beta = .03 pass@16 with a forward KL on solved questions, and with RAPO, less that with
    reverse KL: at least .1."""
    kept = last(results).pass_at_k.sel(beta=0.03)
    return at_least(0.1, kept.sel(anchor=[forward, "RAPO"]) - kept.sel(anchor=reverse))


@claim(
    source=f"the other end of the window; {SOURCE}",
    reruns=(UNANCHORED,),
    wrong=(SWAPPED,),
)
def above_the_window_reverse_kl_keeps_too(
    results: xr.Dataset, reverse: str = "reverse KL", forward: str = "forward KL"
) -> Finding:
    """At beta = .3 the least pass@16 of both, and pass@1 with reverse less that with forward KL."""
    at = last(results).sel(beta=0.3)
    more = at.pass_at_1.sel(anchor=reverse) - at.pass_at_1.sel(anchor=forward)
    return at_least((0.99, 0.05), (at.pass_at_k.sel(anchor=[reverse, forward]).min(), more))


@claim(
    source=f"RAPO (arXiv:2510.03865); {SOURCE}",
    reruns=(UNANCHORED,),
    wrong=({"anchor": "reverse KL"},),
)
def weights_of_rewards_cost_less(results: xr.Dataset, anchor: str = "RAPO") -> Finding:
    """From beta = .03 on RAPO, a forward KL to a reference with e times the right answers, keeps
    pass@16 at .99 and is at beta = .3 at least .02 more accurate than the plain forward KL."""
    at = last(results)
    kept = at.pass_at_k.sel(anchor=anchor, beta=[0.03, 0.1, 0.3]).min()
    more = at.pass_at_1.sel(beta=0.3, anchor=anchor) - at.pass_at_1.sel(
        beta=0.3, anchor="forward KL"
    )
    return at_least((0.99, 0.02), (kept, more))


@claim(
    source=f"DPH-RL: JS keeps diversity, at weights of .05 to .2; refuted here. {SOURCE}",
    reruns=(UNANCHORED,),
    wrong=({"anchor": "forward KL"},),
)
def jensen_shannon_is_not_mass_covering_here(results: xr.Dataset, anchor: str = "JS") -> Finding:
    """pass@16 with JS on the reference's answers at beta = .03 and .1 less than .95, where forward
    KL keeps 1; at .3 it keeps it, and is at least .05 more accurate than forward KL. Its pull on an
    answer that is lost is bounded."""
    at = last(results)
    lost = at.pass_at_k.sel(anchor=anchor, beta=[0.03, 0.1])
    more = at.pass_at_1.sel(beta=0.3, anchor=anchor) - at.pass_at_1.sel(
        beta=0.3, anchor="forward KL"
    )
    return between((0.0, 0.0, 0.05), [*lost.values, more], (0.95, 0.95, 1.0))


@claim(
    source=f"TPO (arXiv:2604.06159) and DMPO (arXiv:2605.19461); {SOURCE}",
    reruns=(UNANCHORED,),
    wrong=({"fitted": "none"},),
)
def targets_of_the_group_keep_pass_at_k(results: xr.Dataset, fitted: str = "TPO") -> Finding:
    """pass@16 less that of the policy gradient: with TPO's fit in its place, which needs no
    reference; with a forward KL to DMPO's target beside it, at the best of its weights .1 to 3; and
    with DMPO's squares, at the best of 8 to 240. Neither of DMPO's is monotone: at the largest
    weight the gain is gone."""
    at = last(results).pass_at_k
    gained = at - at.sel(anchor="none")
    best = gained.sel(anchor=["DMPO, KL", "DMPO"]).max("beta")
    most = gained.sel(anchor=["DMPO, KL", "DMPO"]).isel(beta=-1).max()
    found = gained.sel(anchor=fitted).min(), *best.values, most
    return between((0.2, 0.2, 0.05, -1), found, (1, 1, 1, 0.02))


@claim(
    source=f"Anchored PO (arXiv:2602.05717): recovers pass@k; refuted here. {SOURCE}",
    wrong=({"anchor": "forward KL"},),
)
def a_pull_to_likely_tokens_does_not_keep(
    results: xr.Dataset, anchor: str = "anchored PO"
) -> Finding:
    """Anchored PO's gain in pass@16 over none, largest over pulls from .1 to 3, over that of
    forward KL: at most half. The two likeliest tokens of each place are those of the common answer
    as well."""
    gained = last(results).pass_at_k - last(results).pass_at_k.sel(anchor="none")
    return at_most(0.5, gained.sel(anchor=anchor).max() / gained.sel(anchor="forward KL").max())


@claim(
    source="Asymmetric PO (arXiv:2506.21655): DADS prevents a sharp drop of entropy, and +7 % on"
    f" language models; {SOURCE}",
    reruns=(UNANCHORED,),
    wrong=({"anchor": "STCR"},),
)
def dads_is_a_weaker_reverse_kl(results: xr.Dataset, anchor: str = "DADS") -> Finding:
    """At beta = .3 the entropy with a KL by difficulty over that without KL, at least twice; and
    over that with equal weights, at most 1.05: weights below 1 hold no more than 1. Mean over
    seeds."""
    entropy = last(results).entropy.sel(beta=0.3)
    own = entropy.sel(anchor=anchor)
    ratios = own / entropy.sel(anchor="none"), own / entropy.sel(anchor="reverse KL")
    return between((2.0, 0.0), ratios, (np.inf, 1.05))


@claim(
    source=f"Asymmetric PO (arXiv:2506.21655), its code at 917ec74; {SOURCE}",
    reference=2 - 1.00001**-4096.0,
    reruns=(UNANCHORED,),
    wrong=({"anchor": "none"},),
)
def stcr_shortens_wrong_answers(results: xr.Dataset, anchor: str = "STCR") -> Finding:
    """The largest factor that the released coefficient of 1e-5 gives a wrong answer of the 4096
    tokens allowed there, four percent; and with a coefficient of 1 the fall of the expected length
    of wrong answers after training against GRPO, in tokens."""
    length = last(results).wrong_length.mean("beta")
    shorter = length.sel(anchor="none") - length.sel(anchor=anchor)
    factor = results.stcr_factor.mean()
    exact = equals(2 - 1.00001**-4096.0, factor, tolerance=1e-12)
    return together(exact, at_least(0.01, shorter))


@claim(
    source=f"RAPO (arXiv:2510.03865): reverse KL stays in the support; closed forms, {SOURCE}",
    reference=(0.0146, 0.0146e-8),
    reruns=(UNANCHORED,),
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
    reruns=(UNANCHORED,),
)
def weights_of_confidence(results: xr.Dataset) -> Finding:
    """The weight of the KL at a confidence of .99 and .95."""
    return equals((0.2215, 0.0005), results.weight.mean(("factor", "seed")), decimals=4)


@claim(
    source="Vassoyan et al. 2025 (arXiv:2502.06533): critical tokens right by more than 80 %"
    f" against 20 to 40 % with the plain KL, of a transformer on sums; {SOURCE}",
    published=(0.8, 0.4),
    reruns=(UNANCHORED,),
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
    reruns=(UNANCHORED,),
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
    reruns=(UNANCHORED,),
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
