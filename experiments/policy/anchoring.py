"""Anchors to a reference: which of them keep pass@k when a policy is trained on many questions.

One policy answers six questions and has few parameters of its own for each: what is learned on one
moves all. Four have the same right answer, two another, rarer one; training without an anchor
raises pass@1 and loses the two, and with them pass@k, once no group has their answer any more.
Every anchor is trained on the same draws, by its strength. The papers report language models only;
the toy is ours, and where a direction does not hold it is said.
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
from experiments.lab.plots import Picture, curve, legend_above, panels, style
from experiments.lab.results import Labelled, labelled
from jdiv import divergences, generators
from jdiv.lm import questions, tabular
from jdiv.policy import advantages, clipped, kl_terms
from jdiv.policy.recipes import anchored_policy_optimization as anchored
from jdiv.policy.recipes import (
    asymmetric_po,
    dmpo,
    dph_rl,
    rapo,
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


# -------------------------------------------------------------------------------- the experiment


def run(config: ConfigDict, point: dict, key: Array) -> dict[str, Array | Labelled]:
    """Every strength with the same draws."""
    factor = point["factor"]
    betas = jnp.array(config.betas)
    trained = jax.vmap(lambda beta: train(config, beta, factor, key))(betas)
    by = {"beta": config.betas, "step": range(0, config.steps, THINNED), "anchor": ANCHORS}
    thinned = {name: x[:, ::THINNED] for name, x in trained.items()}
    accuracy = thinned.pop("accuracy")
    several = jnp.mean(questions.pass_at_k(accuracy, config.k), axis=-1)
    thinned |= {"pass_at_1": jnp.mean(accuracy, axis=-1), "pass_at_k": several}
    lengths = jnp.array([1000.0, 1000.0 + 4096.0])
    cost = asymmetric_po.stcr_advantages(-jnp.ones((1, 2)), jnp.array([[1.0, 0.0]]), lengths[None])
    return {
        **{name: labelled(x, **by) for name, x in thinned.items()},
        "stcr_factor": -cost[0, 1],
    }


# ----------------------------------------------------------------------------------------- figures


def last(results: xr.Dataset) -> xr.Dataset:
    """The trained policies, mean over seeds."""
    return results.isel(factor=0, step=-1).mean("seed")


DRAWN = ("reverse KL", "forward KL", "JS", "RAPO", "anchored PO", "DMPO", "DMPO, KL")


def figures(config: ConfigDict, results: xr.Dataset) -> dict[str, Picture]:
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
    picture = Picture(
        figure,
        "Six questions, one policy. In a window of β forward KL and RAPO keep the questions that"
        " training without an anchor (dashed) and with reverse KL loses; above it reverse KL keeps"
        " them too, and is more accurate. TPO (dotted) keeps them without an anchor, and is"
        " slow. DMPO's weight is 800 β, or 10 β as a forward KL, the pull of anchored PO 10 β."
        " DADS, not drawn, is close to reverse KL.",
    )
    return {"window": picture}


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
    pass@16 at .99 and is at beta = .3 at least .01 more accurate than the plain forward KL (.024 in
    the mean of 64 seeds)."""
    at = last(results)
    kept = at.pass_at_k.sel(anchor=anchor, beta=[0.03, 0.1, 0.3]).min()
    more = at.pass_at_1.sel(beta=0.3, anchor=anchor) - at.pass_at_1.sel(
        beta=0.3, anchor="forward KL"
    )
    return at_least((0.99, 0.01), (kept, more))


@claim(
    source=f"DPH-RL: JS keeps diversity, at weights of .05 to .2; refuted here. {SOURCE}",
    reruns=(UNANCHORED,),
    wrong=({"anchor": "forward KL"},),
)
def jensen_shannon_is_not_mass_covering_here(results: xr.Dataset, anchor: str = "JS") -> Finding:
    """pass@16 at beta = .03 and .1: with JS on the reference's answers less than .95, with forward
    KL at least .99. The pull of JS on an answer that is lost is bounded."""
    at = last(results).pass_at_k.sel(beta=[0.03, 0.1])
    found = [*at.sel(anchor=anchor).values, *at.sel(anchor="forward KL").values]
    return between((0.0, 0.0, 0.99, 0.99), found, (0.95, 0.95, 1.0, 1.0))


@claim(
    source=f"TPO (arXiv:2604.06159) and DMPO (arXiv:2605.19461); {SOURCE}",
    reruns=(UNANCHORED,),
    wrong=({"fitted": "none"},),
)
def targets_of_the_group_keep_pass_at_k(results: xr.Dataset, fitted: str = "TPO") -> Finding:
    """pass@16 less that of the policy gradient: with TPO's fit in its place, which needs no
    reference, and with a forward KL to DMPO's target beside it, at the best of its weights .1 to 3,
    at least .1; with DMPO's squares, as published, at the best of 8 to 240 at most .15. Neither of
    DMPO's is monotone: at the largest weight the gain is gone."""
    at = last(results).pass_at_k
    gained = at - at.sel(anchor="none")
    best = gained.sel(anchor=["DMPO, KL", "DMPO"]).max("beta")
    most = gained.sel(anchor=["DMPO, KL", "DMPO"]).isel(beta=-1).max()
    found = gained.sel(anchor=fitted).min(), *best.values, most
    return between((0.1, 0.1, -1, -1), found, (1, 1, 0.15, 0.05))


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
    """At beta = .3 the entropy with a KL by difficulty over that without KL, at least 1.5; and over
    that with equal weights, at most 1.15: weights below 1 hold no more than 1. Mean over seeds."""
    entropy = last(results).entropy.sel(beta=0.3)
    own = entropy.sel(anchor=anchor)
    ratios = own / entropy.sel(anchor="none"), own / entropy.sel(anchor="reverse KL")
    return between((1.5, 0.0), ratios, (np.inf, 1.15))


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
