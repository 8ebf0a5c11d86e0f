"""What published trainers differentiate, against our own losses and exact objectives.

`make audit` calls the trainers' functions for all batches of two answers of a tabular language
model and writes their expected gradients to a file. Here our losses are enumerated at the same
point by automatic differentiation through the table, so that "their code has the gradient of X" is
two statements that can fail: it is one of our losses, and that one has the gradient of X.
"""

from __future__ import annotations

import functools
import json
import pathlib
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jax import Array
from ml_collections import ConfigDict

from experiments.lab import axes
from experiments.lab.claims import Finding, at_least, at_most, claim, equals, together
from experiments.lab.plots import COLORS, Picture, legend_above, panels
from experiments.lab.references import KL_GRADIENTS, LANGUAGE_MODEL, THIRD_DIGIT
from experiments.lab.results import Labelled, labelled
from jdiv import estimators, testing
from jdiv.divergences import generators
from jdiv.lm import tabular
from jdiv.policy import clipped, dppo, kl_terms, tokens

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LONGEST = 3
"""Tokens of an answer at most, as in the file."""
AXES = {"lag": axes.non_negative}
FIELDS = {"draw": axes.seeds, "drift": axes.non_negative}
FILE = pathlib.Path(__file__).parents[2] / "benchmarks" / "results" / "audit.json"
AUDITED = {name: trainer["rows"] for name, trainer in json.loads(FILE.read_text()).items()}
ROWS = [(name, row) for name, rows in AUDITED.items() for row in rows]
NAMES = {"trl": "TRL", "openrlhf": "OpenRLHF", "tunix": "Tunix"}
LAGS = {"own": 0.0, "older": 0.5, "far": 1.5}
"""Samples of the policy, of an older one, and of one that is far away, as the file has them."""
OBJECTIVES = (
    "KL(pi‖ref)", "KL(ref‖pi)", "token KL(pi‖ref)", "token KL(ref‖pi)", "-E[reward]",
    "-E[reward/length]", "E[1/length]",
)  # fmt: skip
OTHER_DRAW, OTHER_SAMPLES = {"draw": 1}, {"drift": 0.5}


def title(trainer: str, row: dict) -> str:
    """A row's label: trainer, function, option."""
    return f"{trainer} {row['kind']} {row['function']}({row['option']})"


TITLES = tuple(title(trainer, row) for trainer, row in ROWS)


# ------------------------------------------------------------------------------------ our losses


def absolute(log_p: Array, log_q: Array) -> Array:
    """`|log p/q|`, which estimates no divergence."""
    return jnp.abs(log_p - log_q)


def k3_up_to_10(log_p: Array, log_q: Array) -> Array:
    """k3, and 10 where it is more."""
    return jnp.minimum(estimators.kl_k3(log_p, log_q), 10)


def kl_losses(log_probs: Array, batch: testing.Batch) -> dict[str, Array]:
    """KL terms by name, before they are averaged."""
    old, ref, _, mask = batch
    term = functools.partial(kl_terms.kl_penalty, log_probs, ref, mask)
    k3 = term(estimator=estimators.kl_k3)
    ratio = jnp.where(mask, log_probs - old, 0)
    count = jnp.sum(mask, axis=-1, keepdims=True).astype(ratio.dtype)
    mean = jnp.sum(ratio, axis=-1, keepdims=True) / count
    return {
        "k1": term(estimator=estimators.kl_k1),
        "k2": term(estimator=estimators.kl_k2),
        "k3": k3,
        # Its derivative is that of k2 times a ratio that is held fixed.
        "weighted k3": term(estimator=estimators.kl_k3, old_log_probs=old),
        "|log π/ref|": term(estimator=absolute),
        # OpenRLHF: the ratio is at most 10, and so is an estimate.
        "k2 by a ratio up to 10": jax.lax.stop_gradient(jnp.minimum(jnp.exp(ratio), 10))
        * term(estimator=estimators.kl_k2),
        "k3 by the mean ratio": jnp.exp(mean) * k3,
        "prefix-weighted k3": term(
            estimator=estimators.kl_k3, old_log_probs=old, log_weight=kl_terms.prefix_log_ratio
        ),
        **{
            f"{name} to go": in_reward(log_probs, batch, k)
            for name, k in (("k1", estimators.kl_k1), ("k3 up to 10", k3_up_to_10))
        },
    }


def in_reward(log_probs: Array, batch: testing.Batch, estimator: kl_terms.Estimator) -> Array:
    """KL to the policy that wrote the answers, as rewards are made before any step."""
    nothing = jnp.zeros_like(batch.rewards)
    paid = kl_terms.kl_rewards(
        batch.old_log_probs, batch.ref_log_probs, nothing, batch.mask,
        coefficient=1.0, estimator=estimator,
    )  # fmt: skip
    return clipped.reinforce(log_probs, tokens.to_go(paid, batch.mask), batch.mask).loss


def policy_losses(log_probs: Array, batch: testing.Batch) -> dict[str, Array]:
    """Policy losses by name, before they are averaged; bounds are those of the trainers."""
    old, _, rewards, mask = batch
    given = log_probs, old, rewards, mask
    whole = jnp.sum(jnp.where(mask, log_probs - old, 0), axis=-1)
    bounded = clipped.clipped_surrogate(whole, rewards, low=0.2, high=0.2).loss
    first = jnp.broadcast_to(jnp.arange(LONGEST) == 0, mask.shape)
    tv = jnp.where(mask, jnp.abs(jnp.exp(log_probs) - jnp.exp(old)), 0)
    inside = jnp.where(mask, log_probs, -1), jnp.where(mask, old, -1)
    kl = dppo.binary_divergence(*jax.lax.stop_gradient(inside), generator=generators.reverse_kl())
    return {
        "PPO": clipped.ppo_clip(*given).loss,
        "PPO to .28": clipped.ppo_clip(*given, high=0.28).loss,
        "dual clip": clipped.dual_clip(*given, high=0.2).loss,
        "GSPO": clipped.gspo(*given, low=0.2, high=0.2).loss,
        "narrow GSPO": clipped.gspo(*given).loss,
        "CISPO to 5": clipped.cispo(*given, high=4.0).loss,
        "CISPO to 1.2": clipped.cispo(*given, high=0.2).loss,
        "two-sided CISPO": clipped.cispo(*given, low=0.2, high=0.2).loss,
        "VESPO": clipped.vespo(*given).loss,
        "SAPO": clipped.sapo(*given).loss,
        "GMPO": clipped.gmpo(*given, low=0.2, high=0.2).loss,
        "DRO": clipped.dro(*given, beta=1.0).loss,
        "REINFORCE": clipped.reinforce(log_probs, rewards, mask).loss,
        "clip of sequences": jnp.where(first, bounded[..., None], 0),
        "DPPO by TV": dppo.dppo(*given, tv, threshold=0.2, ceiling=3.0).loss,
        "DPPO by KL": dppo.dppo(*given, kl, threshold=0.2, ceiling=3.0).loss,
    }


ALL = "summed", "by sequence", "by token"
AVERAGED = {
    **dict.fromkeys(("k1", "k2", "k3", "weighted k3", "PPO", "dual clip"), ALL),
    **dict.fromkeys(("k2 by a ratio up to 10", "REINFORCE"), ALL[::2]),
    **dict.fromkeys(("GSPO", "narrow GSPO"), ALL[:2]), **dict.fromkeys(("SAPO", "GMPO"), ALL[1:2]),
    **dict.fromkeys(
        ("PPO to .28", "CISPO to 5", "CISPO to 1.2", "two-sided CISPO", "VESPO", "DRO",
         "DPPO by TV", "DPPO by KL"), ALL[2:],
    ),
}  # fmt: skip
"""The averages in which a loss is compared: others only as they are, summed."""


def averages(lengths: np.ndarray, law: Array) -> dict[str, Array]:
    """What each token of an answer counts in the mean over batches of two answers from `law`.

    Its chance, over its length, over the expected mean length of itself and the other answer.
    """
    others = 2 / (lengths[:, None] + lengths[None])
    return dict(zip(ALL, (law, law / lengths, law * (others @ law)), strict=True))


def own_losses(log_probs: Array, batch: testing.Batch, law: Array) -> dict[str, Array]:
    """Every loss `[problem]` with its averages, in expectation over samples of `law`."""
    lengths = tabular.enumerate_sequences(tabular.table_shape(LONGEST)).lengths.astype(float)
    weights = averages(lengths, law)
    each = kl_losses(log_probs, batch) | policy_losses(log_probs, batch)
    return {
        f"{name}, {how}": jnp.sum(x, axis=-1) @ weights[how]
        for name, x in each.items()
        for how in AVERAGED.get(name, ALL[:1])
    }


# -------------------------------------------------------------------------------- the experiment


def objectives(logits: Array, ref: Array, rewards: Array) -> Array:
    """Their values in the order of OBJECTIVES, to be differentiated by the policy's logits."""
    lengths = jnp.asarray(tabular.enumerate_sequences(logits.shape).lengths, logits.dtype)
    log_p, log_q = tabular.sequence_log_probs(logits), tabular.sequence_log_probs(ref)
    each_p, each_q = jax.nn.log_softmax(logits), jax.nn.log_softmax(ref)
    visits = jax.lax.stop_gradient(jnp.exp(tabular.prefix_log_probs(logits)))
    p, kl = jnp.exp(log_p), lambda a, b: jnp.sum(jnp.exp(a) * (a - b), axis=-1)
    return jnp.stack([
        kl(log_p, log_q), kl(log_q, log_p),
        visits @ kl(each_p, each_q), visits @ kl(each_q, each_p),
        -p @ rewards, -p @ (rewards / lengths), p @ (1 / lengths),
    ])  # fmt: skip


def expected(logits: Array, refs: Array, old: Array, gains: Array, law: Array) -> dict[str, Array]:
    """Our losses `[problem]`, averaged over batches of two answers that `law` writes."""
    every = tabular.enumerate_sequences(logits.shape)
    of_all = lambda x: jnp.broadcast_to(x, (len(refs), *every.mask.shape))
    batch = testing.Batch(
        of_all(tabular.token_log_probs(old)),
        jnp.stack([tabular.token_log_probs(ref) for ref in refs]),
        gains,
        of_all(jnp.asarray(every.mask)),
    )
    chances = jnp.exp(tabular.sequence_log_probs(law))
    return own_losses(of_all(tabular.token_log_probs(logits)), batch, chances)


def run(config: ConfigDict, point: dict, key: Array) -> dict[str, Array | Labelled]:
    """Gradients `[loss, cell]` of ours, of the file, of the objectives; and lengths."""
    problem, far = testing.draw(config.draw), testing.draw(config.draw, lag=1.0)
    step = jnp.asarray(far.old_logits - far.logits)
    logits, ref, rewards = (
        jnp.asarray(x) for x in (problem.logits, problem.ref_logits, problem.rewards)
    )
    old = logits + point["lag"] * step
    law = old + config.drift * step
    # The second is the problem in which nothing is to change.
    refs, gains = jnp.stack([ref, logits]), jnp.stack([rewards, jnp.ones_like(rewards)])
    by_form = jax.jacfwd(expected)(logits, refs, old, gains, law)
    ours = jnp.stack(list(by_form.values()), axis=1)
    exact = jax.jacfwd(objectives)(logits, ref, rewards)
    longer = jax.grad(tabular.mean_length)(logits)
    flat = lambda x: x.reshape(*x.shape[:-2], -1)
    size = jnp.sqrt(jnp.sum(ours[1] ** 2, axis=(-2, -1)))
    change = -jnp.sum(ours[1] * longer[None], axis=(-2, -1)) / jnp.where(size > 1e-9, size, 1)
    published = jnp.asarray([[row[name]["gradient"] for _, row in ROWS] for name in LAGS])
    place = jnp.argmin(jnp.abs(jnp.asarray(list(LAGS.values())) - point["lag"]))
    cells = {"cell": range(logits.size)}
    return {
        "ours": labelled(flat(ours[0]), form=by_form, **cells),
        "length": labelled(jnp.where(size > 1e-9, change, 0), form=by_form),
        "published": labelled(published[place], row=TITLES, **cells),
        "exact": labelled(flat(exact), objective=OBJECTIVES, **cells),
    }


# ------------------------------------------------------------------------------- what is compared


def rows(kind: str, *, reward: bool | None = None, average: str | None = None) -> list[str]:
    """Titles of rows of a kind; of KL terms those in the reward or in the loss; of one average."""
    return [
        name
        for name, (_, row) in zip(TITLES, ROWS, strict=True)
        if row["kind"] == kind
        and reward in (None, "reward" in row["function"])
        and average in (None, row["average"])
    ]


def closest(results: xr.Dataset) -> tuple[np.ndarray, np.ndarray]:
    """For each row the name of the loss of ours that is nearest, and the relative difference.

    A loss may be larger by a factor, the same for samples of the policy and of the older one.
    """
    published, ours = (
        results[name].stack(place=("lag", "cell")).transpose(..., "place").values
        for name in ("published", "ours")
    )
    factor = published @ ours.T / (ours**2).sum(axis=1)
    rest = np.linalg.norm(published[:, None] - factor[..., None] * ours[None], axis=-1)
    rest = rest / np.linalg.norm(published, axis=-1, keepdims=True)
    return results.form.values[rest.argmin(axis=1)], rest.min(axis=1)


def error(gradient: xr.DataArray, of: xr.DataArray, *, factor: bool = False) -> xr.DataArray:
    """The size of the difference over that of `of`, after the best factor if one is allowed."""
    times = (gradient * of).sum("cell") / (of**2).sum("cell") if factor else 1.0
    return size(gradient - times * of) / size(of)


def size(gradient: xr.DataArray) -> xr.DataArray:
    """The norm."""
    return np.sqrt((gradient**2).sum("cell"))


def cosine(gradient: xr.DataArray, of: xr.DataArray) -> xr.DataArray:
    """Of the angle."""
    return (gradient * of).sum("cell") / (size(gradient) * size(of))


# ---------------------------------------------------------------------------------------- figures


def figures(config: ConfigDict, results: xr.Dataset) -> dict[str, Picture | str]:
    """Every kind of KL term that a trainer has, and who has it."""
    return {
        "terms": Picture(
            _terms(results),
            "KL terms of published trainers by what they compute, with all who have it; a star is"
            " what a trainer does if nothing else is set. Left: only k1 in the reward has the"
            " gradient of KL(π‖ref), and only from samples of the policy itself. Right: where the"
            " policy is the reference already and nothing should move, k1 in a loss that is"
            " divided by lengths makes answers longer.",
        )
    }


def _terms(results: xr.Dataset) -> Figure:
    nearest, _ = closest(results)
    found: dict[str, dict[str, int]] = {}
    for number, (form, (trainer, row)) in enumerate(zip(nearest, ROWS, strict=True)):
        if row["kind"] == "KL term":
            name = NAMES.get(trainer, trainer) + "*" * row["default"]
            found.setdefault(form, {})[name] = number
    cosines = cosine(results.published, results.exact.sel(objective="KL(pi‖ref)"))
    first = {form: next(iter(numbers.values())) for form, numbers in found.items()}
    order = sorted(found, key=lambda form: -np.nan_to_num(cosines.values[0, first[form]], nan=-1))
    figure, plots = panels(2, width=4.8, height=5.6, sharey=True)
    for place, form in enumerate(order):
        row = first[form]
        for lag, look, label in (
            (0, {"marker": "o"}, "samples of the policy"),
            (1, {"marker": "s", "mfc": "none"}, "samples of an older policy"),
        ):
            # Without a gradient there is no angle.
            if np.isnan(cosines.values[lag, row]):
                plots[0].text(0.02, place, "no gradient", va="center", fontsize="small")
            else:
                plots[0].plot(cosines[lag, row], place, color=COLORS[lag], ls="none", ms=6,
                              label=label if place == 0 else None, **look)  # fmt: skip
        plots[1].plot(ROWS[row][1]["length"], place, "D", color=COLORS[2], ms=6)
    names = [f"{form}: {', '.join(found[form])}" for form in order]
    plots[0].set_yticks(range(len(order)), names, fontsize="small")
    plots[0].set(xlabel="cosine to ∇KL(π‖ref)", xlim=(-0.3, 1.05))
    plots[1].set(xlabel="change of E[length] at π = ref,\ntokens for a step of size 1")
    for axis in plots:
        axis.grid(axis="y", alpha=0.3)
        axis.axvline(0, color="black", lw=0.8)
    plots[0].invert_yaxis()
    legend_above(figure, plots[0], columns=2)
    return figure


# ------------------------------------------------------------------------------------------ claims

SOURCE = "the trainers' released code, called by benchmarks/audit.py at the versions of its file"
PROVEN = {
    "k1 to go, summed": "KL(pi‖ref)",
    "k2, summed": "token KL(pi‖ref)",
    "weighted k3, summed": "token KL(pi‖ref)",
    "k3, summed": "token KL(ref‖pi)",
    "k1, by sequence": "E[1/length]",
    "PPO, summed": "-E[reward]",
    "PPO, by sequence": "-E[reward/length]",
}
"""Our losses and what they have the gradient of, from samples of the policy itself."""


@claim(source="the policy gradient theorem; E[∇ log π] = 0", reruns=(OTHER_SAMPLES,))
def our_losses_have_the_gradients_of_objectives(results: xr.Dataset) -> Finding:
    """Seven losses of ours against automatic derivatives of objectives, and the size of k1 in the
    loss over that of KL's gradient, from samples of the policy: largest relative errors."""
    here = results.sel(lag=LAGS["own"])
    wrong = [
        error(here.ours.sel(form=form), here.exact.sel(objective=objective))
        for form, objective in PROVEN.items()
    ]
    nothing = size(here.ours.sel(form="k1, summed")) / size(here.exact.sel(objective="KL(pi‖ref)"))
    return at_most(1e-12, (max(map(float, wrong)), nothing))


@claim(source=SOURCE, reruns=(OTHER_SAMPLES, OTHER_DRAW))
def every_published_loss_is_one_of_ours(results: xr.Dataset) -> Finding:
    """From samples of the policy, of an older one and of one far away alike, each trainer's
    gradient is that of a loss of jdiv, up to one factor: largest relative difference over KL terms,
    over policy losses. Some compute in float32, and the file has six digits."""
    distance = dict(zip(TITLES, closest(results)[1], strict=True))
    return at_most(
        1e-4, [max(distance[name] for name in rows(kind)) for kind in ("KL term", "policy loss")]
    )


KNOWN = {
    ("k2", "token-sum"): "verl KL term kl_penalty(mse, summed)",
    ("k3", "token-sum"): "tunix KL term compute_kl_divergence(low_var_kl, summed)",
    ("k1", "sequence-mean"): "verl KL term kl_penalty(kl, seq-mean-token-mean)",
    ("k2", "sequence-mean"): "tunix KL term grpo_loss_fn(mse_kl, sequence-mean-token-mean)",
    ("k3", "sequence-mean"): "polgrad KL term kl_loss(k3, seq_mean_token_mean)",
}


@claim(
    source=f"computed before on a {LANGUAGE_MODEL}",
    reference=[KL_GRADIENTS[term][:2] for term in KNOWN],
    reruns=(OTHER_DRAW,),
)
def published_code_has_the_errors_that_were_computed(results: xr.Dataset) -> Finding:
    """Relative errors and cosines to the gradient of KL(pi‖ref) of k2 and k3 summed over tokens, of
    k1, k2, k3 averaged over each sequence, as verl, Tunix and polgrad compute them."""
    here = results.sel(lag=LAGS["own"])
    found = here.published.sel(row=list(KNOWN.values()))
    exact = here.exact.sel(objective="KL(pi‖ref)")
    measured = np.stack([error(found, exact), cosine(found, exact)], axis=1)
    return equals([KL_GRADIENTS[x][:2] for x in KNOWN], measured, tolerance=THIRD_DIGIT)


@claim(source=SOURCE, reruns=(OTHER_DRAW,), wrong=({"lag": 0.5},))
def kl_is_exact_in_the_reward_alone(results: xr.Dataset, lag: float = 0.0) -> Finding:
    """k1 in the reward, to go, has the gradient of KL(pi‖ref) in verl, OpenRLHF and polgrad, from
    samples of the policy: largest relative error; and no published KL term in a loss has it:
    largest cosine, 0 where there is no gradient."""
    here = results.sel(lag=lag)
    exact = here.exact.sel(objective="KL(pi‖ref)")
    paid = [name for name in rows("KL term", reward=True) if "k3" not in name]
    in_loss = rows("KL term", reward=False)
    return together(
        at_most(1e-5, error(here.published.sel(row=paid), exact).max()),
        at_most(0.95, cosine(here.published.sel(row=in_loss), exact).fillna(0).max()),
    )


OTHERS = "k1, ", "kl, ", "abs, ", "loss_type=luspo"
"""Options of summed terms that have neither gradient: no estimate of KL, or the mean ratio."""


@claim(
    source=SOURCE,
    reruns=(OTHER_DRAW,),
    wrong=({"either": ("token KL(ref‖pi)",)}, {"either": ("token KL(pi‖ref)",)}),
)
def summed_terms_are_exact_token_by_token(
    results: xr.Dataset, either: tuple[str, ...] = ("token KL(ref‖pi)", "token KL(pi‖ref)")
) -> Finding:
    """Summed over tokens, k3 has the gradient of each token's KL(ref‖pi), and k2, verl's k1+ and
    k3+, OpenRLHF's unbiased gradient, TRL's weighted term and polgrad's surrogate that of each
    token's KL(pi‖ref), the tokens before held fixed: largest relative error to the nearer of the
    two, after one factor."""
    here = results.sel(lag=LAGS["own"])
    chosen = [
        name
        for name in rows("KL term", reward=False, average="summed")
        if not name.partition("(")[2].startswith(OTHERS) or "unbiased" in name
    ]
    found, exact = here.published.sel(row=chosen), here.exact.sel(objective=list(either))
    return at_most(1e-5, error(found, exact, factor=True).min("objective").max())


@claim(source=SOURCE, reruns=(OTHER_SAMPLES,), wrong=({"term": "k2"},))
def averages_make_k1_a_length_bonus(results: xr.Dataset, term: str = "k1") -> Finding:
    """Where the policy is the reference, k1 in the loss averaged over each sequence or over the
    tokens of the batch makes answers longer, in the four trainers that have it: the least change
    of E[length] for a step of size 1; every other KL term changes nothing: the largest change. And
    the largest difference from ours."""
    nearest, _ = closest(results)
    bonus = {f"{term}, by sequence", f"{term}, by token"}
    ours = results.length.sel(lag=LAGS["own"])
    longer, still, apart = [], [], []
    for name, form, (_, row) in zip(TITLES, nearest, ROWS, strict=True):
        if name in rows("KL term"):
            (longer if form in bonus else still).append(row["length"])
            apart.append(row["length"] - ours.sel(form=form))
    return together(
        at_least(0.5, min(longer)), at_most(1e-5, np.abs(still).max()),
        at_most(1e-5, np.abs(apart).max()),
    )  # fmt: skip


@claim(source=SOURCE, wrong=({"form": "weighted k3, summed"},))
def no_published_term_is_exact_off_policy(
    results: xr.Dataset, form: str = "prefix-weighted k3, summed"
) -> Finding:
    """From samples of an older policy every published KL term is off: largest cosine to the
    gradient of KL(pi‖ref); ours with weights of prefixes is exact: its relative error."""
    here = results.sel(lag=LAGS["older"])
    exact = here.exact.sel(objective="KL(pi‖ref)")
    found = here.published.sel(row=rows("KL term"))
    return together(
        at_most(0.95, cosine(found, exact).max()),
        at_most(1e-10, error(here.ours.sel(form=form), exact)),
    )


@claim(source=SOURCE, reruns=(OTHER_DRAW,), wrong=({"lag": 0.5},))
def averages_decide_what_a_policy_loss_maximizes(results: xr.Dataset, lag: float = 0.0) -> Finding:
    """From samples of the policy, whatever the weight of the ratio is: summed over tokens or
    divided by a constant a policy loss has the gradient of E[reward], averaged over each answer
    that of E[reward/length], averaged over the tokens of a batch of two neither. Largest relative
    error of each of the first two, after one factor; smallest of the last to either."""
    here = results.sel(lag=lag)

    def errors(average: str, objective: str) -> xr.DataArray:
        found = here.published.sel(row=rows("policy loss", average=average))
        return error(found, here.exact.sel(objective=objective), factor=True)

    by_token = [errors("by token", name).min() for name in ("-E[reward]", "-E[reward/length]")]
    return together(
        at_most(1e-5, errors("summed", "-E[reward]").max()),
        at_most(1e-5, errors("by sequence", "-E[reward/length]").max()),
        at_least(0.02, by_token),
    )
