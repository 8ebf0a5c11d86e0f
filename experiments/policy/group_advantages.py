"""What the advantages of a group of answers are the gradient of, and how much they vary.

For pass@k: PKPO (arXiv:2505.15201) and pass@k training (arXiv:2508.10751), by the sum over all
groups of four answers. Of least variance: OPO (arXiv:2505.23585) and the optimal token baseline
(arXiv:2602.07078), by the sum over all sequences of a tabular language model, with the baselines
that groups without end would have. And the estimates of `jdiv.policy.metrics`. What the papers have
published is training of real models; what their advantages are is exact here.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jax import Array
from ml_collections import ConfigDict

from experiments.lab.axes import fraction, real, seeds
from experiments.lab.claims import Finding, at_most, between, claim
from experiments.lab.plots import Picture, legend, panels, style
from experiments.lab.results import Labelled, labelled
from jdiv import divergences, numerics
from jdiv.lm import tabular
from jdiv.policy import advantages, metrics

AXES = {"own": fraction, "tilt": real, "seed": seeds}
FIELDS = {}
ANSWERS, SIZE, LONGEST = 4, 4, 3
"""Different answers to the question, answers of a group, tokens of a sequence at most."""
GROUPS = np.array(list(itertools.product(range(ANSWERS), repeat=SIZE)))
KS = range(2, SIZE + 1)
FORMS = {"largest with it": "pass_at_k_rewards", "what it adds": "pass_at_k_advantages"}
KINDS = "right or wrong", "graded"
BASELINES = (
    "none", "mean", "OPO", "best of the answer", "mean of the place", "OTB", "own token",
)  # fmt: skip
MANY, EASIER = 32, (1, 2, 4, 8)
"""Answers of a group, and k, of the factors of GRPO for pass@k."""


# ------------------------------------------------------------------------------------ for pass@k


def for_pass_at_k(point: dict, log_p: Array, rewards: Array) -> dict[str, Array]:
    """Gradients `[k, form, answer]` by the logits, of the objective and expected; variances."""
    chance = jnp.exp(jnp.sum(log_p[GROUPS], axis=1))
    score = jnp.eye(ANSWERS)[GROUPS] - jnp.exp(log_p)[None, None]
    paid = rewards[GROUPS]

    def of_objective(k: int) -> Array:
        draws = np.array(list(itertools.product(range(ANSWERS), repeat=k)))

        def mean_of_largest(logits: Array) -> Array:
            law = jnp.exp(jnp.sum(numerics.log_softmax(logits)[draws], axis=1))
            return law @ jnp.max(rewards[draws], axis=1)

        return jax.grad(mean_of_largest)(log_p)

    whole = jnp.stack([k * advantages.pass_at_k_rewards(paid, k) for k in KS])
    given = jnp.stack([whole, jnp.stack([advantages.pass_at_k_advantages(paid, k) for k in KS])])
    given = jnp.moveaxis(given, 0, 1)
    given = given - point["own"] * jnp.mean(given, axis=-1, keepdims=True)
    by_group = jnp.einsum("kfgi,gia->kfga", given, score) / SIZE
    gradient = jnp.einsum("g,kfga->kfa", chance, by_group)
    spread = jnp.sum(jnp.square(by_group - gradient[:, :, None]), axis=-1)
    return {
        "objective": jnp.stack([of_objective(k) for k in KS]),
        "gradient": gradient,
        "variance": spread @ chance,
        "only_best": _only_best(paid) - given[-1, 1],
    }


def _only_best(paid: Array) -> Array:
    """`n` times the distance of the best reward of a group to its second, and 0 for the others."""
    ordered = jnp.sort(paid, axis=1)
    gain = ordered[:, -1:] - ordered[:, -2:-1]
    return jnp.where(paid == ordered[:, -1:], SIZE * gain, 0)


def estimates(point: dict, log_p: Array, rewards: Array) -> dict[str, Array | Labelled]:
    """Means over all groups of pass@k, max@k, maj@k, less those of k answers of the policy."""
    k, right = 3, 0
    # In a control the groups are of another law than is said.
    tilted = numerics.log_softmax(log_p + point["tilt"] * jnp.arange(ANSWERS, dtype=log_p.dtype))
    chance = jnp.exp(jnp.sum(tilted[GROUPS], axis=1))
    draws = np.array(list(itertools.product(range(ANSWERS), repeat=k)))
    law = jnp.exp(jnp.sum(log_p[draws], axis=1))
    target = jnp.full(len(GROUPS), right, jnp.int32)
    labels = GROUPS.astype(np.int32)
    found = jnp.stack([
        metrics.pass_at_k(right == GROUPS, k) @ chance,
        metrics.max_at_k(rewards[GROUPS], k) @ chance,
        metrics.maj_at_k(labels, target, k) @ chance,
    ])  # fmt: skip
    # As if k were drawn with replacement, and as if all vote.
    share = jnp.mean(jnp.asarray(right == GROUPS, log_p.dtype), axis=1)
    plain = jnp.stack([
        (1 - (1 - share) ** k) @ chance,
        jnp.max(rewards[GROUPS], axis=1) @ chance,
        _majority(GROUPS, right, log_p.dtype) @ chance,
    ])  # fmt: skip
    true = jnp.stack([
        law @ jnp.asarray((draws == right).any(axis=1), log_p.dtype),
        law @ jnp.max(rewards[draws], axis=1),
        law @ _majority(draws, right, log_p.dtype),
    ])  # fmt: skip
    bias = jnp.stack([found, plain]) - true[None]
    p = jnp.exp(log_p[right])
    mixed = advantages.varied(right == GROUPS)
    unvaried = jnp.where(mixed[:, None], 0, advantages.rloo_advantages(right == GROUPS))
    names = {"estimate": ("without replacement", "plain"), "metric": ("pass@k", "max@k", "maj@k")}
    return {
        "bias": labelled(bias, **names),
        "varied": jnp.where(mixed, chance, 0).sum() - (1 - p**SIZE - (1 - p) ** SIZE),
        "unvaried": jnp.max(jnp.abs(unvaried)),
    }


def gaps() -> Labelled:
    """By how much a right answer has more than a wrong one, by question: 2 and 1 of 4 are right."""
    correct = jnp.array([[1.0, 1.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]])
    found = jnp.stack([
        advantages.batch_advantages(correct, jnp.full(correct.shape, True)),
        advantages.grpo_advantages(correct),
    ])  # fmt: skip
    gap = jnp.max(found, axis=-1) - jnp.min(found, axis=-1)
    return labelled(gap, over=("batch", "group"), right=(2, 1))


def _majority(votes: np.ndarray, right: int, dtype: jnp.dtype) -> Array:
    """Whether the right answer has most votes of a row, a part of it in a tie."""
    counts = (votes[:, :, None] == np.arange(ANSWERS)).sum(axis=1)
    most = counts == counts.max(axis=1, keepdims=True)
    return jnp.asarray(most[:, right] / most.sum(axis=1), dtype)


def identities(point: dict, log_p: Array) -> dict[str, Labelled]:
    """Metrics of one answer each from a uniform sampler, less the divergences that they are."""
    uniform = jnp.full_like(log_p, -np.log(ANSWERS))
    sampler = uniform + point["tilt"] * jnp.arange(ANSWERS, dtype=log_p.dtype)
    every = jnp.full((1, ANSWERS), True)
    found = metrics.sampler_mismatch(log_p[None], sampler[None], every)
    size = metrics.effective_sample_size((log_p - sampler)[None], every)[0]
    entropy = metrics.token_entropy(log_p[None, None], every[:, :1])
    kl, log_ratio = divergences.kl(uniform, log_p), jnp.abs(log_p - uniform)
    away = jnp.stack([
        found.k1 - kl,
        found.k3 - kl,
        found.largest - jnp.max(log_ratio),
        ANSWERS / size - 1 - divergences.pearson_chi2(log_p, uniform),
        entropy - (np.log(ANSWERS) - divergences.kl(log_p, uniform)),
    ])  # fmt: skip
    names = ("k1", "k3", "largest ratio", "sample size", "entropy")
    return {"away": labelled(away, identity=names)}


# -------------------------------------------------------------------------------- least variance


def baselines(logits: Array, rewards: Array) -> dict[str, Labelled]:
    """Variances of `sum_t grad log pi_t (R - b_t)` with the baselines of endless groups."""
    sequences = tabular.enumerate_sequences(logits.shape)
    probs, mask = jnp.exp(tabular.sequence_log_probs(logits)), jnp.asarray(sequences.mask)
    norms = advantages.score_norms(
        logits[sequences.prefixes], jnp.asarray(np.maximum(sequences.tokens, 0))
    )
    norms = jnp.where(mask, norms, 0)
    returns = jnp.where(mask, rewards[:, None], 0)

    def of_answer(weights: Array) -> Array:
        less = advantages.opo_advantages(rewards[None], (probs * weights)[None])[0]
        return jnp.where(mask, less[:, None], 0)

    def of_place(weights: Array) -> Array:
        by_chance = (probs[:, None] * weights)[None]
        return advantages.optimal_token_advantages(returns[None], by_chance, mask[None])[0]

    given = jnp.stack([
        returns,
        of_answer(jnp.ones_like(probs)),
        of_answer(jnp.asarray(sequences.lengths, probs.dtype)),
        of_answer(jnp.sum(norms, axis=1)),
        of_place(jnp.ones_like(norms)),
        of_place(jnp.cumsum(norms, axis=1)),
        of_place(norms),
    ])  # fmt: skip
    score = jax.jacfwd(tabular.token_log_probs)(logits)
    gradient = jnp.einsum("bst,stpv->bspv", given, score)
    mean = jnp.einsum("s,bspv->bpv", probs, gradient)
    spread = jnp.sum(jnp.square(gradient - mean[:, None]), axis=(2, 3))
    true = jax.grad(tabular.expectation)(logits, rewards)
    return {
        "baseline_variance": labelled(spread @ probs, baseline=BASELINES),
        "baseline_bias": labelled(
            jnp.max(jnp.abs(mean - true[None]), axis=(1, 2)), baseline=BASELINES
        ),
    }


# -------------------------------------------------------------------------------- the experiment


def run(config: ConfigDict, point: dict, key: Array) -> dict[str, Labelled]:
    """All of it, for one draw of policies and rewards."""
    sequences = len(tabular.enumerate_sequences(tabular.table_shape(LONGEST)).lengths)
    sizes = ANSWERS, ANSWERS, np.prod(tabular.table_shape(LONGEST)), sequences
    # One draw for all: each call of the generator takes half a second to compile.
    normal = jax.random.normal(key, (sum(sizes),))
    policy, graded, table, paid = jnp.split(normal, np.cumsum(sizes)[:-1])
    log_p = numerics.log_softmax(policy)
    right = jnp.asarray(np.arange(ANSWERS) == 0, graded.dtype)
    rewards = jnp.stack([right, graded])
    found = jax.vmap(functools.partial(for_pass_at_k, point, log_p))(rewards)
    names = {"kind": KINDS, "k": KS}
    answer = {"answer": range(ANSWERS)}
    solved = jnp.arange(MANY + 1)[:, None] > jnp.arange(MANY)[None]
    totals = jnp.stack([
        jnp.sum(jnp.abs(advantages.pass_at_k_grpo_advantages(solved, k)), axis=1) for k in EASIER
    ])  # fmt: skip
    return {
        "objective": labelled(found["objective"], **names, **answer),
        "gradient": labelled(found["gradient"], **names, form=FORMS, **answer),
        "variance": labelled(found["variance"], **names, form=FORMS),
        "only_best": labelled(jnp.max(jnp.abs(found["only_best"]), axis=(1, 2)), kind=KINDS),
        "total": labelled(totals, trained_for=EASIER, correct=range(MANY + 1)),
        **estimates(point, log_p, graded),
        **identities(point, log_p),
        "gap": gaps(),
        **baselines(table.reshape(tabular.table_shape(LONGEST)), paid),
    }


# --------------------------------------------------------------------------------------- figures


def figures(config: ConfigDict, results: xr.Dataset) -> dict[str, Picture]:
    """Which questions count, and what a baseline saves."""
    results = only(results)
    figure, axes = panels(2, width=5.0, height=4.2)
    for number, k in enumerate(results.trained_for.values):
        total = results.total.isel(seed=0).sel(trained_for=k) / MANY
        axes[0].plot(total.correct / MANY, total, label=f"k = {k}", **style(number))
    axes[0].set(
        xlabel=f"share of right answers in a group of {MANY}", ylabel="mean |advantage|",
        xlim=(0, 1), ylim=(0, 1.15),
    )  # fmt: skip
    legend(axes[0], loc="upper center", ncols=4)
    share = results.baseline_variance / results.baseline_variance.sel(baseline="none")
    names = list(BASELINES[1:])
    for place, name in enumerate(names):
        here = share.sel(baseline=name).transpose("seed")
        axes[1].plot(np.full(here.shape, place), here, ".", color="0.6", markersize=5, zorder=1)
        look = {"color": "black", "markersize": 18, "zorder": 2}
        axes[1].plot(place, np.median(here), "_", label="median" * (place == 0), **look)
    axes[1].set_xticks(
        range(len(names)), [name.replace(" of the ", "\nof the\n") for name in names]
    )
    axes[1].axhline(1, color="black", linewidth=0.8)
    axes[1].set(ylabel="variance, in units of that without baseline", ylim=(0, None))
    legend(axes[1], loc="upper right")
    return {
        "advantages": Picture(
            figure,
            "Left: the larger k, the harder are the questions to which GRPO for pass@k gives its"
            " largest advantages: a quarter of the answers is right for k = 4. Those that any k"
            " answers solve have none. Right: a dot is a policy with random rewards; weights of the"
            " token's own score have the least variance for every one of them.",
        )
    }


# ---------------------------------------------------------------------------------------- claims


CENTERED = {"sweep.own": (1.0,), "sweep.seed": (0, 1)}
TILTED = {"sweep.tilt": (0.5,), "sweep.seed": (0, 1)}


def only(results: xr.Dataset) -> xr.Dataset:
    """The one way of centering and of drawing that a run has."""
    return results.isel(own=0, tilt=0)


@claim(
    source="PKPO (arXiv:2505.15201), its theorems on unbiasedness",
    reruns=(CENTERED,),
    wrong=({"shift": 1},),
)
def advantages_have_the_gradient_of_pass_at_k(results: xr.Dataset, shift: int = 0) -> Finding:
    """Expected gradients of both forms against that of the mean of the largest of k rewards, for
    k = 2, 3, 4, right or wrong and graded: largest relative difference. The group's mean taken off,
    as GRPO does, makes them another; so does the gradient of pass@(k - 1)."""
    results = only(results)
    true, found = (
        results.objective.values,
        results.gradient.transpose(*results.objective.dims, "form"),
    )
    k = results.objective.get_axis_num("k")
    true = np.take(true, np.arange(shift, len(KS)) - shift, axis=k)
    found = np.take(found.values, np.arange(shift, len(KS)), axis=k)
    size = np.sqrt((true**2).sum(axis=-1))[..., None]
    away = np.sqrt(((found - true[..., None]) ** 2).sum(axis=-2))
    return at_most(1e-12, (away / size).max())


@claim(
    source="PKPO (arXiv:2505.15201) on its last baseline, shown there by simulation",
    wrong=({"inverted": True}, {"kind": "graded"}),
)
def what_it_adds_varies_less(
    results: xr.Dataset, kind: str = "right or wrong", inverted: bool = False
) -> Finding:
    """The variance of k times what an answer adds, over that of k times the largest with it: the
    largest ratio, k = 2, 3, 4, of rewards 0 and 1. With graded ones, of either sign, it is not so:
    at k = 2 the first has up to eight times the variance."""
    variance = only(results).variance.sel(kind=kind)
    ratio = variance.sel(form="what it adds") / variance.sel(form="largest with it")
    return at_most(1.0, (1 / ratio if inverted else ratio).max())


@claim(source="Tang et al. 2025 (arXiv:2503.19595), as in verl", reruns=(CENTERED,))
def with_the_whole_group_only_the_best_counts(results: xr.Dataset) -> Finding:
    """With k the size of the group the advantage is n times the best reward less the second, and 0
    for the others: largest difference."""
    return at_most(1e-12, only(results).only_best.max())


@claim(
    source="pass@k training (arXiv:2508.10751): harder questions count most; the bounds are those"
    " of one answer more or less",
    wrong=({"trained_for": (2, 8)},),
)
def questions_that_count_most(
    results: xr.Dataset, trained_for: tuple[int, ...] = (1, 4)
) -> Finding:
    """The share of right answers of 32 at which the sum of |advantages| is largest, for pass@1 and
    pass@4: 1/2 and 1/4."""
    total = only(results).total.isel(seed=0).sel(trained_for=list(trained_for))
    share = total.idxmax("correct").values / MANY
    return between(np.array([0.5, 0.25]) - 1 / MANY, share, np.array([0.5, 0.25]) + 1 / MANY)


@claim(
    source="Chen et al. 2021 (arXiv:2107.03374) for pass@k, the mean over subsets for the others",
    reruns=(TILTED,),
    wrong=({"estimate": "plain"},),
)
def pass_max_and_maj_have_no_bias(
    results: xr.Dataset, estimate: str = "without replacement"
) -> Finding:
    """Means over all groups of four of pass@3, max@3 and maj@3, less their values for three answers
    of the policy: largest. The share to the third power, or the majority of all four, has bias."""
    return at_most(1e-12, abs(only(results).bias.sel(estimate=estimate)).max())


@claim(source="DAPO (arXiv:2503.14476), dynamic sampling", reruns=(TILTED,))
def groups_that_are_left_out(results: xr.Dataset) -> Finding:
    """The chance that a group is varied is 1 - p^n - (1 - p)^n, and the others have no gradient:
    largest difference, and largest advantage there."""
    results = only(results)
    return at_most(1e-12, (abs(results.varied).max(), results.unvaried.max()))


@claim(
    source="REINFORCE++ (arXiv:2501.03262): one deviation for the batch",
    wrong=({"over": "group"},),
)
def a_batch_weighs_questions_alike(results: xr.Dataset, over: str = "batch") -> Finding:
    """What a right answer has more than a wrong one, where 1 of 4 is right over where 2 are, less
    1: as much with the deviation of the batch, 2/sqrt 3 times as much with that of the group."""
    gap = only(results).gap.sel(over=over)
    return at_most(1e-12, abs(gap.sel(right=1) / gap.sel(right=2) - 1).max())


@claim(source="derived: one answer each from a uniform sampler is all of it", reruns=(TILTED,))
def metrics_are_divergences(results: xr.Dataset) -> Finding:
    """Of a uniform sampler the mismatch is KL(sampler‖π) by k1 and k3, n over the effective sample
    size is 1 + chi2(π‖sampler), and the entropy is log n - KL(π‖uniform): largest difference."""
    return at_most(1e-12, abs(only(results).away).max())


@claim(
    source="optimal baselines of a policy gradient; derived for a table, whose tokens' scores are"
    " orthogonal",
    wrong=({"best": "OTB"}, {"best": "best of the answer"}),
)
def own_scores_have_least_variance(results: xr.Dataset, best: str = "own token") -> Finding:
    """The variance with weights of the token's own score over that of any other baseline: the
    largest ratio. No baseline biases the gradient: largest error of the mean beside it."""
    results = only(results)
    variance = results.baseline_variance
    others = variance.sel(baseline=[name for name in BASELINES if name != best])
    ratio = variance.sel(baseline=best, drop=True) / others
    return at_most((1.0, 1e-12), (ratio.max(), results.baseline_bias.max()))


@claim(
    source="the optimal token baseline (arXiv:2602.07078) on cumulated scores; the paper has"
    " training of real models",
    wrong=({"baseline": "none"},),
)
def otb_varies_less_than_the_mean(results: xr.Dataset, baseline: str = "OTB") -> Finding:
    """Variance with the paper's weights, the scores up to the token, over that with the mean
    reward: the mean over draws."""
    variance = only(results).baseline_variance
    ratio = variance.sel(baseline=baseline) / variance.sel(baseline="mean")
    return at_most(1.0, ratio.mean())


@claim(
    source="OPO (arXiv:2505.23585) on lengths; the paper has training of real models",
    wrong=({"baseline": "none"},),
)
def opo_varies_less_than_the_mean(results: xr.Dataset, baseline: str = "OPO") -> Finding:
    """Variance with lengths as weights over that with the mean reward: the mean over draws."""
    variance = only(results).baseline_variance
    ratio = variance.sel(baseline=baseline) / variance.sel(baseline="mean")
    return at_most(1.0, ratio.mean())
