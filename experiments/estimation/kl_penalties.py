"""What the KL estimators k1, k2 and k3 do inside a loss over sequences.

A trainer adds a KL term to its loss by one of a few formulas, which differ in the estimator and in
where it stands: summed over tokens, averaged over each sequence, taken of the whole sequence, or as
a reward to go behind a stop-gradient. Here the language model is a table of logits for a vocabulary
of 0, 1 and the end, so that every sequence can be enumerated: the gradients are the expected ones,
without sampling, and so is what 2000 steps along them lead to.
"""

import functools

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from jax import Array
from ml_collections import ConfigDict

from experiments.lab.claims import Claim
from experiments.lab.plots import COLORS, Picture
from experiments.lab.references import KL_GRADIENTS, LANGUAGE_MODEL, THIRD_DIGIT
from jdiv import checks, estimators
from jdiv.lm import tabular

TRACED = ("seed",)
_TABLE, _DESCENT = ("estimator", "placement"), ("loss",)
DIMS = dict.fromkeys(("size", "error", "error_of_other", "cosine", "cosine_to_other"), _TABLE)
DIMS |= dict.fromkeys(("length", "kl", "last_length", "last_kl"), _DESCENT)
ESTIMATORS = {"k1": estimators.kl_k1, "k2": estimators.kl_k2, "k3": estimators.kl_k3}
PLACEMENTS = "token-sum", "sequence-mean", "whole-sequence", "reward-to-go"
DESCENTS = (
    ("k1", "token-sum"), ("k2", "token-sum"), ("k3", "token-sum"),
    ("k1", "sequence-mean"), ("k2", "sequence-mean"), ("k3", "sequence-mean"),
    ("k1", "reward-to-go"),
)  # fmt: skip
"""The losses that 2000 steps are taken along."""

TUNIX = (
    "the default penalty of Tunix's GRPO as read, not run: k1 as a loss, averaged over each"
    " sequence (tunix/rl/grpo/grpo_learner.py:105 with algo_core.py:598-625)"
)
LONGEST = 3
"""Tokens of a sequence at most, the end included."""
LENGTHS, DIVERGENCES = (1.879, 2.997), (0.685, 3.686)
"""Before and after 2000 steps along k1 averaged over each sequence, from the same source."""


def drawn(config: ConfigDict, seed: Array) -> Array:
    """Logits `[2, prefixes, 3]` of policy and reference, standard normal.

    Seed 0 is the published draw: its order is not given and was found by trying several, by the
    first length and KL; the gradients then agree.
    """
    return tabular.normal_logits(seed, tuple(config.sweep.seed), longest=LONGEST)


# ---------------------------------------------------------------------------------- the losses


def losses(config: ConfigDict, logits: Array, reference: Array) -> Array:
    """Expected penalty `[estimator, placement]`; its gradient is that with the samples held fixed.

    The sums over tokens are of `k(log pi_t, log ref_t)`, whole-sequence is k of the sums, and the
    reward to go is `sum_t log pi_t stop_gradient(sum_{t' >= t} k_t')`.
    """
    log_p, log_q = tabular.token_log_probs(logits), tabular.token_log_probs(reference)
    by_token = jnp.stack([k(log_p, log_q) for k in ESTIMATORS.values()])
    whole = jnp.stack([k(log_p.sum(axis=1), log_q.sum(axis=1)) for k in ESTIMATORS.values()])
    to_go = jax.lax.cumsum(by_token, axis=2, reverse=True)
    lengths = tabular.enumerate_sequences(logits.shape).lengths.astype(np.float64)
    count = {"length": lengths, "longest": np.full_like(lengths, LONGEST)}
    penalty = {
        "token-sum": by_token.sum(axis=2),
        "sequence-mean": by_token.sum(axis=2) / jnp.asarray(count[config.mean_over])[None, :],
        "whole-sequence": whole,
        "reward-to-go": (jax.lax.stop_gradient(to_go) * log_p[None]).sum(axis=2),
    }
    log_sample = {"policy": log_p, "reference": log_q}[config.sampled_from].sum(axis=1)
    weight = jax.lax.stop_gradient(jnp.exp(log_sample))
    return jnp.stack([penalty[placement] @ weight for placement in PLACEMENTS], axis=1)


# -------------------------------------------------------------------------------- the experiment


def coordinates(config: ConfigDict) -> dict[str, list]:
    """Names of the losses."""
    return {
        "estimator": list(ESTIMATORS),
        "placement": list(PLACEMENTS),
        "loss": [" ".join(loss) for loss in DESCENTS],
    }


def validate(config: ConfigDict, point: dict) -> None:
    """Refuses unknown names and sizes, and sweeps without the published draw."""
    checks.known("config.sampled_from", config.sampled_from, ("policy", "reference"))
    checks.known("config.mean_over", config.mean_over, ("length", "longest"))
    if not 0 <= config.rate < np.inf:
        raise ValueError(f"config.rate must be finite and at least 0, got {config.rate}")
    for field in ("audited", "right", "still"):
        checks.known(f"config.claims.{field}", config.claims[field], coordinates(config)["loss"])
    for field in ("exact_k2", "inexact_k2"):
        checks.known(f"config.claims.{field}", config.claims[field], PLACEMENTS)
    if min(config.sweep.seed) < 0 or 0 not in config.sweep.seed:
        raise ValueError(
            "config.sweep.seed must have 0, the published draw, and none below,"
            f" got {', '.join(map(str, config.sweep.seed))}"
        )


def init(config: ConfigDict, point: dict, key: Array) -> Array:
    """Logits `[loss, prefixes, 3]`: every descent starts from the same policy."""
    policy, _ = drawn(config, point["seed"])
    return jnp.broadcast_to(policy, (len(DESCENTS), *policy.shape))


def step(config: ConfigDict, point: dict, state: Array, key: Array) -> tuple[Array, dict]:
    """Gradient descent on each loss alone; expected length and true KL before it."""
    _, reference = drawn(config, point["seed"])
    estimator, placement = zip(*DESCENTS, strict=True)
    row = np.array([list(ESTIMATORS).index(name) for name in estimator])
    column = np.array([PLACEMENTS.index(name) for name in placement])

    def one(logits, row, column):
        return losses(config, logits, reference)[row, column]

    gradients = jax.vmap(jax.grad(one))(state, row, column)
    return state - config.rate * gradients, _where(state, reference)


def finish(config: ConfigDict, point: dict, state: Array) -> dict[str, Array]:
    """Where the descents ended, and the gradients at the start against the two of KL."""
    policy, reference = drawn(config, point["seed"])
    gradients = jax.jacrev(functools.partial(losses, config))(policy, reference)
    right, other = (
        jax.grad(tabular.kl)(policy, reference),
        jax.grad(tabular.kl, 1)(reference, policy),
    )
    shorter = jax.grad(functools.partial(tabular.mean_length, power=-1.0))(policy)
    k1_mean = gradients[list(ESTIMATORS).index("k1"), PLACEMENTS.index("sequence-mean")]
    return {f"last_{name}": x for name, x in _where(state, reference).items()} | {
        "size": _norm(gradients) / _norm(right),
        "error": _norm(gradients - right[None, None]) / _norm(right),
        "error_of_other": _norm(gradients - other[None, None]) / _norm(other),
        "cosine": _cosine(gradients, right),
        "cosine_to_other": _cosine(gradients, other),
        "error_of_length": _norm(k1_mean - shorter) / _norm(shorter),
    }


def _where(state: Array, reference: Array) -> dict[str, Array]:
    """Expected length and KL `[loss]`."""
    return {
        "length": jax.vmap(tabular.mean_length)(state),
        "kl": jax.vmap(tabular.kl, (0, None))(state, reference),
    }


def _norm(gradient: Array) -> Array:
    return jnp.sqrt(jnp.sum(jnp.square(gradient), axis=(-2, -1)))


def _cosine(gradients: Array, of: Array) -> Array:
    return jnp.sum(gradients * of[None, None], axis=(-2, -1)) / (_norm(gradients) * _norm(of))


# ------------------------------------------------------------------------------------- figures


def figures(config: ConfigDict, results: xr.Dataset) -> dict[str, Picture]:
    """Where the descents lead, and the gradients at their start."""
    return {"descents": _descents(results), "gradients": _gradients(results)}


# Colour, style and what stands at the line.
_LINES = {
    "k1 sequence-mean": (COLORS[1], "-"),
    "k1 token-sum": (COLORS[6], ":"),
    "k1 reward-to-go": (COLORS[0], "-"),
    "k2 token-sum": (COLORS[2], "-"),
    "k3 token-sum": (COLORS[2], "--"),
    "k2 sequence-mean": (COLORS[3], "-"),
    "k3 sequence-mean": (COLORS[3], "--"),
}


def _descents(results: xr.Dataset) -> Picture:
    figure, axes = plt.subplots(1, 2, figsize=(8.6, 4.6))
    for name, (colour, style) in _LINES.items():
        here = results.sel(loss=name, seed=0)
        wide = 2.6 if name == "k1 sequence-mean" else 1.7
        look = {"color": colour, "linestyle": style, "linewidth": wide}
        exact = " (exact)" * (name == "k1 reward-to-go")
        axes[0].plot(results.step, here.length, **look, label=name + exact)
        axes[1].plot(results.step, here.kl, **look)
    axes[0].axhline(LONGEST, color="black", linewidth=0.8)
    axes[0].text(0.4, LONGEST + 0.02, "longest possible", fontsize="small")
    for axis, points in zip(axes, (LENGTHS, DIVERGENCES), strict=True):
        axis.plot(
            (0, 2000), points, "o", markersize=9, markerfacecolor="none", color="#707070",
            label="published", clip_on=False, zorder=3,
        )  # fmt: skip
        axis.set_xscale("symlog", linthresh=10)
        axis.set(xlabel="gradient step", xlim=(0, 2000))
        axis.set_xticks([0, 10, 100, 1000], ["0", "10", "100", "1000"])
    axes[0].set(ylabel="expected length, tokens", ylim=(1.75, 3.1))
    axes[1].set(ylabel="true KL(π‖ref), nats", yscale="log")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=4, fontsize="small")
    return Picture(
        figure,
        "Gradient descent on the penalty alone, seed 0, no reward. The exact gradient and k2, k3"
        " bring the policy to the reference, whatever the error of their gradients. k1 as a loss"
        f" does nothing if summed, and averaged over each sequence it makes sequences {LONGEST}"
        " tokens long while the divergence that it is meant to bound grows.",
    )


def _gradients(results: xr.Dataset) -> Picture:
    rows = [
        ("k1", "reward-to-go"), ("k2", "whole-sequence"), ("k3", "whole-sequence"),
        *KL_GRADIENTS, ("k2", "reward-to-go"), ("k3", "reward-to-go"),
    ]  # fmt: skip
    figure, axes = plt.subplots(1, 3, figsize=(9.4, 4.6), sharey=True)
    panels = {
        "error": "relative error of the gradient",
        "cosine": "cosine to ∇KL(π‖ref)",
        "cosine_to_other": "cosine to ∇KL(ref‖π)",
    }
    for column, (axis, (name, label)) in enumerate(zip(axes, panels.items(), strict=True)):
        for row, (estimator, placement) in enumerate(rows):
            values = results[name].sel(estimator=estimator, placement=placement)
            axis.plot(
                values, np.full(values.shape, row), "|", color=COLORS[5], markersize=11,
                label="a draw" if row == 0 else None,
            )  # fmt: skip
            axis.plot(
                values.sel(seed=0), row, "o", color=COLORS[0], markersize=5,
                label="seed 0" if row == 0 else None,
            )  # fmt: skip
            if (estimator, placement) in KL_GRADIENTS:
                axis.plot(
                    KL_GRADIENTS[estimator, placement][column], row, "o", color="#707070",
                    markersize=10, markerfacecolor="none", label="published" if row == 3 else None,
                )  # fmt: skip
        axis.set(xlabel=label)
    axes[0].set_yticks(range(len(rows)), [" ".join(loss) for loss in rows])
    axes[0].invert_yaxis()
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3)
    return Picture(
        figure,
        "Expected gradients against the two of KL, for random policies and references. Only the top"
        " two are right for every draw; k3 of the whole sequence is right for the other direction."
        " Token by token k2 and k3 are off by a tenth and more, with a cosine that is mostly large,"
        " which is why it goes unnoticed. Everything else depends on the draw.",
    )


# -------------------------------------------------------------------------------------- claims


def claims(config: ConfigDict, results: xr.Dataset) -> list[Claim]:
    """Identities for every draw, and the published numbers of one."""
    chosen = config.claims
    fixed_count = {"mean_over": "longest", "sweep.seed": (0,)}
    # Few steps: with these samples log π of some sequences goes to minus infinity.
    other_samples = {"sampled_from": "reference", "sweep.seed": (0,)}
    other_samples |= {"training.steps": 4, "training.checkpoint_every": 4}
    k1, k2, k3 = (results.sel(estimator=name) for name in ESTIMATORS)
    audited, right = (results.sel(loss=loss) for loss in (chosen.audited, chosen.right))
    start = results.sel(step=0)
    published = np.array(list(KL_GRADIENTS.values())).T
    given = ~np.isnan(published)
    return [
        Claim(
            "k1-as-a-loss-has-no-gradient",
            "E[∇ log π] = 0; Schulman 2020 for the estimator",
            "The expected gradient of k1, summed over tokens or of the whole sequence, is 0: its"
            " largest size, relative to the gradient of KL(π‖ref), over all draws.",
            k1["size"].sel(placement=["token-sum", "whole-sequence"]).max().item(),
            high=1e-12,
            controls=(other_samples,),
        ),
        Claim(
            "two-exact-penalties",
            f"the policy gradient theorem; computed before on a {LANGUAGE_MODEL}",
            "k1 as a reward to go and k2 of the whole sequence have the gradient of KL(π‖ref): the"
            " largest relative error of each over all draws. The first has been published.",
            [
                k1.error.sel(placement="reward-to-go").max().item(),
                k2.error.sel(placement=chosen.exact_k2).max().item(),
            ],
            high=1e-12,
            controls=(other_samples, {"claims.exact_k2": "token-sum"}),
            published=6e-17,
        ),
        Claim(
            "k3-is-of-the-other-direction",
            "this code's monte_carlo module; published for a single step only",
            "k3 of the whole sequence has the gradient of KL(ref‖π): the largest relative error.",
            k3.error_of_other.sel(placement="whole-sequence").max().item(),
            high=1e-12,
            controls=(other_samples,),
        ),
        Claim(
            "wrong-token-by-token",
            f"computed before on a {LANGUAGE_MODEL}, one draw; the bound is chosen here",
            "k2 summed over tokens is not exact: its relative error is above one percent for every"
            " draw; smallest error.",
            k2.error.sel(placement=chosen.inexact_k2).min().item(),
            low=0.01,
            controls=({"claims.inexact_k2": "whole-sequence"},),
            published=0.545,
        ),
        Claim(
            "published-gradients",
            f"computed before on a {LANGUAGE_MODEL}",
            "Relative errors and cosines to the gradients of KL(π‖ref) and KL(ref‖π) at seed 0 of"
            " k2, k3 summed over tokens and k1, k2, k3 averaged over each sequence.",
            _table(results)[given],
            low=published[given] - THIRD_DIGIT,
            high=published[given] + THIRD_DIGIT,
            controls=(fixed_count,),
            published=published[given],
        ),
        Claim(
            "k1-of-sequence-means-is-about-length",
            f"computed before on a {LANGUAGE_MODEL}",
            "The expected gradient of k1 averaged over each sequence is that of E[1/length],"
            " without the reference: largest relative error over all draws.",
            results.error_of_length.max().item(),
            high=1e-12,
            controls=(fixed_count,),
            published=8e-12,
        ),
        Claim(
            "published-descent",
            f"computed before on a {LANGUAGE_MODEL}; {TUNIX}",
            "2000 steps along k1 averaged over each sequence move the expected length from 1.879 to"
            " 2.997 and the true KL from 0.685 to 3.686. No rate is given; 1 has these numbers,"
            " found by trying eight.",
            [
                float(x.sel(seed=0))
                for x in (
                    start.length.sel(loss=chosen.audited),
                    audited.last_length,
                    start.kl.sel(loss=chosen.audited),
                    audited.last_kl,
                )
            ],
            low=np.array([*LENGTHS, *DIVERGENCES]) - THIRD_DIGIT,
            high=np.array([*LENGTHS, *DIVERGENCES]) + THIRD_DIGIT,
            controls=(fixed_count, {"claims.audited": "k3 sequence-mean"}),
            published=[*LENGTHS, *DIVERGENCES],
        ),
        Claim(
            "a-length-bonus-in-place-of-a-penalty",
            f"{TUNIX}; the sizes of the bounds are chosen here",
            f"So in every draw: at the end the expected length is above 2.9 of {LONGEST}; and on"
            " average over draws the true KL is 1.5 times that of the start or more. Shortest mean"
            " length, ratio of KL.",
            [
                audited.last_length.min().item(),
                float(audited.last_kl.mean() / start.kl.sel(loss=chosen.audited).mean()),
            ],
            low=[2.9, 1.5],
            controls=(fixed_count, {"claims.audited": "k1 token-sum"}),
        ),
        Claim(
            "the-exact-gradient-reaches-the-reference",
            "the definition of KL; the size of the bound is chosen here",
            "2000 steps along k1 as a reward to go take KL below a hundredth of what it was, in"
            " every draw; and k1 summed over tokens moves nothing. Largest ratio of KL, largest"
            " change of a length.",
            [
                (right.last_kl / start.kl.sel(loss=chosen.right)).max().item(),
                float(abs(results.last_length - start.length).sel(loss=chosen.still).max()),
            ],
            high=[1e-2, 1e-10],
            controls=({"claims.right": "k1 token-sum"}, {"claims.still": "k1 sequence-mean"}),
        ),
    ]


def _table(results: xr.Dataset) -> np.ndarray:
    """What `KL_GRADIENTS` holds, as measured: `[3, losses]`."""
    return np.array([
        [results[name].sel(estimator=k, placement=at, seed=0).item() for k, at in KL_GRADIENTS]
        for name in ("error", "cosine", "cosine_to_other")
    ])  # fmt: skip
