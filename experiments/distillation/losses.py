"""Losses between a teacher's law of a token and a student's: what they are, and how they pull.

Each claim is an identity that a loss of `jdiv.distillation` has by its formula, on random pairs:
ends and limits of GKD in both conventions, the chain rule behind decoupled and normalized KD, laws
of rankings, limits of temperatures, bounds and blind spots. Two controls rerun everything: teacher
and student exchanged, and a factor on the weight or temperature that the identity asks for.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jax import Array
from ml_collections import ConfigDict

from experiments.lab import axes
from experiments.lab.claims import Finding, at_least, at_most, between, claim, together
from experiments.lab.plots import Picture, curve, panels, style
from experiments.lab.results import Labelled, labelled
from jdiv import generators
from jdiv.distillation import ranking, self, sparse, teacher, token

AXES = {"seed": axes.seeds, "exchanged": axes.fraction, "factor": axes.positive}
FIELDS = {"cases": axes.count, "spread": axes.positive}
SIZE = 6
RANKINGS = np.array(list(itertools.permutations(range(SIZE))))
BETAS = 0.0, 1e-6, 1 - 1e-6, 1.0
CONVENTIONS = {"trl": token.gkd, "continuous": token.gkd_continuous}
EXCHANGED = {"sweep.exchanged": (1.0,)}
DOUBLED = {"sweep.factor": (2.0,)}
HOT = 1e5
"""A temperature at which probabilities are all alike."""

BETWEEN = {
    "forward KL": lambda s, t: token.divergence(s, t, generator=generators.reverse_kl()),
    "reverse KL": lambda s, t: token.divergence(s, t, generator=generators.kl()),
    "GKD, b = .5": token.gkd,
    "GKD, b = .1": lambda s, t: token.gkd(s, t, beta=0.1),
    "continuous, b = .1": lambda s, t: token.gkd_continuous(s, t, beta=0.1),
    "skew forward KL": token.skew_forward_kl,
    "skew reverse KL": token.skew_reverse_kl,
}
LOG_ODDS = np.linspace(-7, 7, 113)
LABELS = np.zeros(len(LOG_ODDS), int)
OF_A_LABEL = {
    "forward KL": BETWEEN["forward KL"],
    "decoupled KD": lambda s, t: token.decoupled(s, t, LABELS, beta=2.0),
    "NKD": lambda s, t: token.nkd(s, t, LABELS),
    "PLD": lambda s, t: ranking.pld(s, t, LABELS),
    "ListMLE": lambda s, t: ranking.list_mle(s, t, LABELS),
    "P-ListMLE": lambda s, t: ranking.p_list_mle(s, t, LABELS),
    "clipped KL, above .08": lambda s, t: token.clipped(s, t, low=0.08),
}
TWO = np.log([0.2, 0.8])
FOUR = np.log([0.6, 0.25, 0.1, 0.05])


# ------------------------------------------------------------------------------------ identities


def run(config: ConfigDict, point: dict, key: Array) -> dict[str, Array | Labelled]:
    """Errors of all identities on random pairs, and the pulls at one logit."""
    of_pairs, of_labels, of_order = jax.random.split(key, 3)
    drawn = config.spread * jax.random.normal(of_pairs, (2, config.cases, SIZE))
    exchanged = point["exchanged"]
    s = drawn[0] + exchanged * (drawn[1] - drawn[0])
    t = drawn[1] + exchanged * (drawn[0] - drawn[1])
    labels = jax.random.randint(of_labels, (config.cases,), 0, SIZE)
    plain = jax.nn.log_softmax(drawn)
    return {
        **between_directions(s, t, plain),
        **of_labels_and_others(s, t, labels, plain, point["factor"]),
        **of_rankings(s, t, labels, point["factor"]),
        **of_temperatures(s, t, drawn, point["factor"]),
        **of_other_vocabularies(s, t, of_order),
        **itself(s, t, labels, point["factor"]),
        **along_training(s, t, labels, point["factor"]),
        "pull between": labelled(_pulls(BETWEEN, TWO, 0), loss=BETWEEN, log_odds=LOG_ODDS),
        "pull of a label": labelled(
            _pulls(OF_A_LABEL, FOUR, 1), loss_of_label=OF_A_LABEL, log_odds=LOG_ODDS
        ),
    }


def _kl(log_p: Array, log_q: Array) -> Array:
    """The sum of p (log p - log q), by the letter."""
    return jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)


def between_directions(s: Array, t: Array, plain: Array) -> dict[str, Labelled]:
    """GKD by convention and weight over the two KLs, and skew KLs of disjoint sides."""
    betas = jnp.broadcast_to(jnp.array(BETAS)[:, None], (len(BETAS), s.shape[0]))
    sides = [jnp.broadcast_to(x, (*betas.shape, SIZE)) for x in (s, t)]
    values = jnp.stack([f(*sides, beta=betas) for f in CONVENTIONS.values()])
    log_s, log_t = plain
    names = {"convention": CONVENTIONS, "beta": BETAS, "case": range(s.shape[0])}
    apart = jnp.array([0.0, -jnp.inf]), jnp.array([-jnp.inf, 0.0])
    finite = [f(*apart, skew=0.9) for f in (token.skew_forward_kl, token.skew_reverse_kl)]
    infinite = [BETWEEN[name](*apart) for name in ("forward KL", "reverse KL")]
    return {
        "over_forward": labelled(values / _kl(log_t, log_s)[None, None], **names),
        "over_reverse": labelled(values / _kl(log_s, log_t)[None, None], **names),
        "apart": labelled(jnp.stack([*finite, *infinite]), "loss_of_disjoint"),
        "clipped": jnp.max(jnp.abs(token.clipped(s, t) / _kl(log_t, log_s) - 1)),
    }


def of_labels_and_others(s, t, labels, plain, factor) -> dict[str, Array]:
    """The chain rule of decoupled KD, and what normalized KD leaves out of forward KL."""
    log_s, log_t = plain
    at = lambda x: jnp.take_along_axis(x, labels[:, None], axis=-1)[:, 0]
    rest = -jnp.expm1(at(log_t)) * factor
    forward = _kl(log_t, log_s)
    whole = token.decoupled(s, t, labels, beta=rest)
    two = [jnp.where(jnp.arange(SIZE)[None] < 2, x, -jnp.inf) for x in (s, t)]
    others = token.decoupled(*two, labels % 2, alpha=0.0)
    normalized = token.nkd(s, t, labels, gamma=rest)
    entropy = -jnp.sum(jnp.exp(log_t) * log_t, axis=-1)
    left_out = jnp.expm1(at(log_t)) * jnp.log(-jnp.expm1(at(log_s)))
    low = jnp.max(jnp.exp(log_t), axis=-1)
    mode = -jnp.take_along_axis(log_s, jnp.argmax(log_t, axis=-1)[:, None], axis=-1)[:, 0]
    return {
        "chain": jnp.max(jnp.abs(whole - forward) / forward),
        "two_categories": jnp.max(jnp.abs(others)),
        "normalized": jnp.max(jnp.abs(normalized - (forward + entropy - left_out))),
        "mode": jnp.max(jnp.abs(token.clipped(s, t, low=low * (1 - 1e-9)) - mode)),
    }


def of_rankings(s: Array, t: Array, labels: Array, factor: Array) -> dict[str, Array]:
    """Plackett and Luce's law: its sum, cross-entropy, least curvature, a shift of all logits."""
    one, weights = s[0], factor * jnp.ones(SIZE)
    law = jax.vmap(lambda r: ranking.plackett_luce(one, r, weights))(jnp.array(RANKINGS))
    sure = jnp.where(jax.nn.one_hot(labels, SIZE, dtype=bool), 0.0, -jnp.inf)
    cross_entropy = -jnp.take_along_axis(jax.nn.log_softmax(s), labels[:, None], axis=-1)[:, 0]
    loss = lambda x: ranking.pld(x, s[0] * 0.7, labels[0])
    worth = jnp.where(jax.nn.one_hot(labels, SIZE, dtype=bool), jnp.inf, t)
    order = jnp.argsort(-worth, axis=-1)
    halves = jnp.array(2.0 ** np.arange(SIZE)[::-1] - 1)
    of_weights = lambda w: ranking.plackett_luce(s, order, jnp.broadcast_to(w, s.shape))
    evenly = of_weights(factor * jnp.ones(SIZE)) - SIZE * ranking.list_mle(s, t, labels)
    halved = of_weights(factor * halves) - 2**SIZE * ranking.p_list_mle(s, t, labels)
    curvature = jnp.linalg.eigvalsh(jax.hessian(loss)(s[1]))
    far = 1e3 * jnp.sign(s[1])
    return {
        "law": jnp.abs(jnp.sum(jnp.exp(-law)) - 1),
        "label_alone": jnp.max(jnp.abs(factor * ranking.pld(s, sure, labels) - cross_entropy)),
        "places": jnp.max(jnp.abs(jnp.stack([evenly, halved]))),
        "least_curvature": jnp.min(curvature),
        "shifted": jnp.abs(loss(s[1] + 100) - loss(s[1])),
        "far": jnp.max(jnp.abs(jax.grad(loss)(far))),
    }


def of_temperatures(s: Array, t: Array, drawn: Array, factor: Array) -> dict[str, Array]:
    """With the square of the temperature: the gradient's limit, and a schedule."""
    loss = lambda s: jnp.sum(token.latent_sft(s, t, temperature=HOT))
    pull = factor * jax.grad(loss)(s)
    centered = (drawn - jnp.mean(drawn, axis=-1, keepdims=True)) / SIZE
    limit = centered[0] - centered[1]
    steps = jnp.arange(11.0)
    schedule = jax.vmap(lambda step: token.temperature_schedule(step, 8, high=4.0))(steps)
    hot = jax.vmap(lambda x: jax.nn.softmax(t[0] / x))(schedule)
    entropy = -jnp.sum(hot * jnp.log(hot), axis=-1)
    top = sparse.kl_top(s, t, k=SIZE)
    return {
        "hot": jnp.max(jnp.abs(pull - limit)) / jnp.max(jnp.abs(limit)),
        "whole_top": jnp.max(jnp.abs(top / token.latent_sft(s, t, k=SIZE) - 1)),
        "rise_of_entropy": jnp.max(jnp.diff(entropy)),
        "last_temperature": schedule[-1] * factor,
    }


def of_other_vocabularies(s: Array, t: Array, key: Array) -> dict[str, Labelled]:
    """ULD and forward KL of the teacher's own probabilities on other tokens, and of padding."""
    mixed = t[:, jax.random.permutation(key, SIZE)]
    padded = jnp.concatenate([t, jnp.full((t.shape[0], 2), -jnp.inf)], axis=-1)
    losses = [sparse.uld(mixed, t), BETWEEN["forward KL"](mixed, t), sparse.uld(s, t)]
    padding = jnp.max(jnp.abs(sparse.uld(s, padded) - losses[-1]))
    names = "ULD, permuted", "forward KL, permuted", "ULD"
    return {
        "by_size": labelled(jnp.stack([jnp.mean(x) for x in losses]), compared=names),
        "padding": padding,
    }


def itself(s: Array, weak: Array, labels: Array, factor: Array) -> dict[str, Array]:
    """USKD: `P (S - 1)` by the label, of soft targets with the label's value for their mean."""
    loss = lambda s, w: jnp.sum(token.uskd(s, w, labels, share=0.8, weak_weight=0.5))
    by_s, by_w = jax.grad(loss, (0, 1))(s, weak)
    at = lambda x: jnp.take_along_axis(x, labels[:, None], axis=-1)[:, 0]
    lacking = 1 - at(jax.nn.softmax(s))
    smooth = 0.9 * jax.nn.one_hot(labels, SIZE) + 0.1 / SIZE
    weak_error = by_w - 0.5 * (jax.nn.softmax(weak) - smooth)
    return {
        "mean_target": jnp.mean(-at(by_s) / lacking) * factor,
        "weak": jnp.max(jnp.abs(weak_error)),
        "sum_of_pulls": jnp.max(jnp.abs(jnp.sum(by_s, axis=-1))),
    }


def along_training(s: Array, old: Array, labels: Array, factor: Array) -> dict[str, Array]:
    """How PS-KD scales the label's gradient, and a centroid moved by one row after the other."""
    at = lambda x: jnp.take_along_axis(x, labels[:, None], axis=-1)[:, 0]
    loss = lambda s: jnp.sum(self.progressive(s, old, labels, share=0.4))
    of_labels = at(jax.nn.softmax(s)) - 1
    scale = self.rescaling(s, old, labels, share=0.4 * factor)
    all_alike = jnp.zeros_like(labels)

    def move(center: Array, row: tuple[Array, Array]) -> tuple[Array, None]:
        logits, number = row
        share = 1 / (number + factor)
        return teacher.moved_centroids(center, logits[None], all_alike[:1], share=share), None

    numbers = jnp.arange(s.shape[0]).astype(s.dtype)
    moved, _ = jax.lax.scan(move, jax.nn.log_softmax(old[:1]), (s, numbers))
    mean = teacher.centroids(s, all_alike, 1)
    return {
        "rescaled": jnp.max(jnp.abs(at(jax.grad(loss)(s)) / of_labels - scale)),
        "moved": jnp.max(jnp.abs(jnp.exp(moved) - jnp.exp(mean))),
    }


def _pulls(losses: dict, teacher: np.ndarray, place: int) -> Array:
    """Minus the derivative by one logit, at which the student differs from the teacher."""
    others = np.delete(teacher, place)
    others = np.log(np.exp(others).sum())
    students = np.repeat(teacher[None], len(LOG_ODDS), axis=0)
    students[:, place] = others + LOG_ODDS
    teachers = jnp.broadcast_to(jnp.array(teacher), students.shape)
    total = lambda x: sum(
        jnp.sum(loss(own, teachers)) for loss, own in zip(losses.values(), x, strict=True)
    )
    slopes = jax.grad(total)([jnp.array(students)] * len(losses))
    return -jnp.stack(slopes)[..., place]


# --------------------------------------------------------------------------------------- figures


def figures(config: ConfigDict, results: xr.Dataset) -> dict[str, Picture]:
    """How each loss pulls at one logit, by the student's probability."""
    figure, plots = panels(2, width=5.2, height=4.6)
    here = results.isel(seed=0, exchanged=0, factor=0)
    for axis, name, by, taught in (
        (plots[0], "pull between", "loss", 0.2),
        (plots[1], "pull of a label", "loss_of_label", 0.25),
    ):
        for number, loss in enumerate(here[by].values):
            curve(axis, "log_odds", here[name].sel({by: loss}), label=loss, **style(number))
        axis.axhline(0, color="black", linewidth=0.7)
        axis.axvline(np.log(taught / (1 - taught)), color="black", linewidth=0.7, linestyle=":")
        axis.set(xlabel="student's log-odds of the token, nats", xlim=(LOG_ODDS[0], LOG_ODDS[-1]))
        axis.legend(fontsize="x-small", loc="lower left")
    plots[0].set(ylabel="pull at its logit, -dL/dx, nats", title="two tokens, the teacher has .2")
    plots[1].set(title="four tokens, not the label, the teacher has .25", ylim=(-2.4, 1.7))
    return {
        "pulls": Picture(
            figure,
            "How much a loss raises (above 0) or lowers the logit of a token, by the student's own"
            " log-odds of it; dotted, the teacher's. Left: forward KL alone pulls back a token that"
            " the student has lost; the others' pull vanishes with its probability, skewed forward"
            " KL's too, and at the other end, where the student is sure. Right: rankings ask for"
            " about the teacher's share of a token that is not the label, decoupled and normalized"
            " KD for its share among the others, and several times as hard.",
        )
    }


# ------------------------------------------------------------------------------------------ claims

GKD = "GKD (arXiv:2306.13649), equation 1, as TRL has it; limits by calculus"


def _largest(x: xr.DataArray) -> float:
    return float(np.abs(x).max())


@claim(source=GKD, reruns=(EXCHANGED,))
def ends_of_gkd(results: xr.Dataset) -> Finding:
    """Both conventions are KL(T‖S) at b = 0 and KL(S‖T) at b = 1: the largest relative errors."""
    low, high = results.over_forward.sel(beta=0), results.over_reverse.sel(beta=1)
    return at_most(1e-12, (_largest(low - 1), _largest(high - 1)))


@claim(source=GKD, reruns=(EXCHANGED,), wrong=({"convention": "continuous"},))
def limits_of_gkd(results: xr.Dataset, convention: str = "trl") -> Finding:
    """In TRL's convention D/b tends to KL(T‖S) and D/(1-b) to KL(S‖T): the largest relative error
    at a distance of 1e-6 from the ends."""
    at = results.sel(convention=convention)
    low = at.over_forward.sel(beta=1e-6) / 1e-6
    high = at.over_reverse.sel(beta=1 - 1e-6) / 1e-6
    return at_most(1e-3, (_largest(low - 1), _largest(high - 1)))


@claim(
    source="the jump that ms-swift's issue 10078 reports, and the definition it proposes",
    wrong=({"other": "trl"}, {"jumping": "continuous"}),
)
def one_convention_jumps(
    results: xr.Dataset, jumping: str = "trl", other: str = "continuous"
) -> Finding:
    """At b = 1e-6 TRL's is at most 2e-6 of forward KL, the continuous one at least .99 of it:
    largest and smallest."""
    near = results.over_forward.sel(beta=1e-6)
    return together(
        at_most(2e-6, near.sel(convention=jumping).max()),
        at_least(0.99, near.sel(convention=other).min()),
    )


@claim(source="Zhao et al. 2022 (arXiv:2203.08679), equation 6", reruns=(EXCHANGED, DOUBLED))
def decoupled_is_forward_kl(results: xr.Dataset) -> Finding:
    """With 1 - T_y for its second weight decoupled KD is forward KL, and of two categories its
    second part is 0: largest relative error, largest part."""
    return at_most((1e-11, 1e-14), (results.chain.max(), results.two_categories.max()))


@claim(source="Yang et al. 2023 (arXiv:2303.13005), by algebra", reruns=(EXCHANGED, DOUBLED))
def what_normalized_kd_leaves_out(results: xr.Dataset) -> Finding:
    """With g = 1 - T_y NKD is the cross-entropy of T and S less `-(1 - T_y) log (1 - S_y)`: the
    largest error, in nats."""
    return at_most(1e-11, results.normalized.max())


@claim(source="the formula; DAC-KL (arXiv:2407.10068) for the idea", reruns=(EXCHANGED,))
def clipped_between_kl_and_cross_entropy(results: xr.Dataset) -> Finding:
    """Without bounds clipped KL is forward KL, and with the mode's probability for the lower one it
    is the cross-entropy of the mode: largest errors, the first relative."""
    return at_most(1e-11, (results.clipped.max(), results.mode.max()))


@claim(source="PLD (arXiv:2506.12542): Plackett and Luce's law", reruns=(DOUBLED,))
def a_law_of_rankings(results: xr.Dataset) -> Finding:
    """The probabilities of all 720 rankings of six categories sum to 1, and a teacher that is sure
    of the label makes PLD cross-entropy: largest errors."""
    return at_most(1e-12, (results.law.max(), results.label_alone.max()))


@claim(source="ListMLE (Xia et al. 2008), P-ListMLE (Lan et al. 2014)", reruns=(DOUBLED,))
def other_weights_of_places(results: xr.Dataset) -> Finding:
    """Six times ListMLE is minus the logarithm of the law of the label and then the teacher's
    order, 2^6 times P-ListMLE has the published weights 2^(6-k) - 1: the largest error, in nats."""
    return at_most(1e-11, results.places.max())


@claim(source="PLD (arXiv:2506.12542): convex, invariant", wrong=({"sign": -1.0},))
def convex_and_blind_to_shifts(results: xr.Dataset, sign: float = 1.0) -> Finding:
    """PLD's least curvature, what adding 100 to all logits changes, and the largest pull at logits
    of 1,000, which is a number below 6."""
    return between(
        (-1e-12, 0, 0),
        (sign * results.least_curvature.min(), results.shifted.max(), sign * results.far.max()),
        (np.inf, 1e-11, 6),
    )


@claim(source="Hinton et al. 2015 (arXiv:1503.02531), section 2.1", reruns=(EXCHANGED, DOUBLED))
def hot_logits_are_matched(results: xr.Dataset) -> Finding:
    """With t^2 the gradient at t = 100,000 is the difference of centered logits over their number:
    the largest error over the largest of these."""
    return at_most(1e-3, results.hot.max())


@claim(source="Annealing KD (arXiv:2104.07163); KL of all k", reruns=(DOUBLED,))
def a_schedule_ends_with_the_teacher(results: xr.Dataset) -> Finding:
    """The schedule ends at 1, the teacher's entropy never rises along it; KL-Top and Latent-SFT's
    top-k are the same where k is all: largest relative difference."""
    return between(
        (1, -np.inf, -np.inf),
        (results.last_temperature.max(), results.rise_of_entropy.max(), results.whole_top.max()),
        (1, 1e-14, 1e-12),
    )


@claim(
    source="ULD (arXiv:2402.12030), equation 4: probabilities sorted by size",
    wrong=({"blind": "forward KL, permuted"},),
)
def another_vocabulary_is_matched_by_size(
    results: xr.Dataset, blind: str = "ULD, permuted"
) -> Finding:
    """ULD is 0 for a student with the teacher's probabilities on the wrong tokens, where forward KL
    is above .1 nats, and zeros behind change nothing: largest, smallest, largest."""
    by_size = results.by_size
    return between(
        (0, 0.1, 0),
        (
            by_size.sel(compared=blind).max(),
            by_size.sel(compared="forward KL, permuted").min(),
            results.padding.max(),
        ),
        (1e-15, np.inf, 1e-15),
    )


@claim(source="DistiLLM (arXiv:2402.03898), by the formula", wrong=({"first": 2},))
def skews_are_bounded(results: xr.Dataset, first: int = 0) -> Finding:
    """Of disjoint sides both skew KLs at .9 are -log .1: largest deviation."""
    apart = results.apart.isel(loss_of_disjoint=slice(first, first + 2))
    return at_most(1e-12, np.abs(apart + np.log(0.1)).max())


@claim(source="Yang et al. 2023 (arXiv:2303.13005)", reruns=(DOUBLED,))
def a_batch_keeps_its_label(results: xr.Dataset) -> Finding:
    """USKD's soft targets of a batch have the label's value .8 for their mean, as read off its
    gradient; the weak head's gradient is `w (W - Y)`; the others' pulls make up for the label's."""
    return between(
        (0.8 - 1e-12, 0, 0),
        (results.mean_target.max(), results.weak.max(), results.sum_of_pulls.max()),
        (0.8 + 1e-12, 1e-12, 1e-12),
    )


@claim(source="PS-KD (arXiv:2006.12000). Reconstructed: the ratio", reruns=(DOUBLED,))
def the_past_scales_the_gradient(results: xr.Dataset) -> Finding:
    """PS-KD's gradient at the label's logit over that of cross-entropy is `rescaling`: the largest
    error."""
    return at_most(1e-11, results.rescaled.max())


@claim(source="BCDKD (arXiv:2401.08732), by the formula", reruns=(DOUBLED,))
def a_moved_centroid_is_a_mean(results: xr.Dataset) -> Finding:
    """Moved by 1/i to the i-th row a centroid forgets where it began, and is the mean of all rows:
    the largest error of a probability."""
    return at_most(1e-14, results.moved.max())
