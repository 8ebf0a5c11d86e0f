"""Gradients of KL-regularized objectives: RPG's eight losses, and every placement of a KL term.

RPG (arXiv:2505.17508) derives losses for KL of either direction, normalized or not, differentiated
through or as REINFORCE; here they are taken for the whole table of divergences and compared with
the gradient of the objective by enumeration. A KL term to a reference stands in many places of a
trainer: on the tabular language model of `jdiv.lm` every estimator in each of them has an exact
expected gradient, from samples of the policy and of an older one. And gradient descent on the
losses, every step off-policy, should end at the optima, which have closed forms.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jax import Array
from jax.typing import ArrayLike
from ml_collections import ConfigDict

from experiments.lab.axes import (
    above,
    between,
    count,
    each,
    fraction,
    non_negative,
    one_of,
    positive,
    real,
    seeds,
)
from experiments.lab.claims import Finding, at_least, at_most, claim, equals
from experiments.lab.plots import COLORS, Picture, curve, panels, pick
from experiments.lab.references import KL_GRADIENTS, LANGUAGE_MODEL, THIRD_DIGIT
from experiments.lab.results import Labelled, labelled
from jdiv import divergences, estimators, generators, numerics, regularized
from jdiv.divergences import categorical
from jdiv.lm import tabular
from jdiv.policy import kl_terms, metrics
from jdiv.policy import regularized_gradient as rpg
from jdiv.policy.clipped import cispo
from jdiv.policy.kl_terms import kl_penalty, kl_rewards, sequence_kl_penalty
from jdiv.policy.tokens import to_go

AXES = {"sign": between(-1, 1), "weighted": fraction, "seed": seeds}
FIELDS = {
    "rows": each(one_of(generators.TABLE)),
    "beta": positive,
    "total": positive,
    "actions": above(1),
    "batch": count,
    "batches": count,
    "inner": count,
    "lag": real,
    "parameters.tsallis.index": positive,
    "step_size": non_negative,
    "step_back": non_negative,
    "steps_back": count,
}
FORMS = {"differentiable": rpg.rpg, "reinforce": rpg.rpg_reinforce}
ESTIMATORS = {
    "k1": estimators.kl_k1,
    "k2": estimators.kl_k2,
    "k3": estimators.kl_k3,
    "k3, ∇k2": kl_terms.straight_through,
    "k1, held": kl_terms.without_gradient,
}
LONGEST = 3
"""Tokens of a sequence of the language model at most."""
SAMPLES = "policy", "old"
_AT_MOST = functools.partial(kl_terms.clamped_log_ratio, ceiling=2.0)
WEIGHTS = {
    "token, weighted": kl_terms.token_log_ratio,
    "token, weight at most 2": _AT_MOST,
    "token, weight held": kl_terms.held_log_ratio,
    "token, weight held, at most 2": functools.partial(
        kl_terms.held_log_ratio, log_weight=_AT_MOST
    ),
    "prefix, weighted": kl_terms.prefix_log_ratio,
    "token, weighted by sequence": kl_terms.sequence_log_ratio,
}
"""Of single tokens, differentiated unless they are held."""
PLACEMENTS = (
    "token", *WEIGHTS, "sequence", "sequence, weighted", "sequence, weight held",
    "reward, whole", "reward, to go", "mean over length", "mean over length, weighted",
)  # fmt: skip
LIMIT, LOST = 5.0, (10.0, 30.0, 100.0)
"""Of log ref/pi; and by how many nats an answer is less likely than in the reference."""
TERMS = {
    "k2": estimators.kl_k2,
    "k3": estimators.kl_k3,
    "k3, clamped": lambda p, q: estimators.kl_k3(p, jnp.minimum(q, p + LIMIT)),
    "k3, linear": functools.partial(kl_terms.linear_k3, limit=LIMIT),
}
"""What a policy that has lost an answer descends."""
DESCENTS = {
    # Row of the table, whether normalized, whether clipped.
    "FKL": ("reverse_kl", True, False),
    "UFKL": ("reverse_kl", False, False),
    "RKL": ("kl", True, False),
    "URKL": ("kl", False, False),
    "RKL, clipped": ("kl", True, True),
}
SWAPPED = {"kl": "reverse_kl", "reverse_kl": "kl"}
ONE_STEP = {
    "k1 weighted": (0.197021, -0.035035, -0.161986),
    "k2 weighted": (0.205616, -0.069019, -0.136597),
    "k3 weighted": (0.197021, -0.035035, -0.161986),
    "k3": (0.190, 0.066, -0.256),
}
"""Expected gradients of one step at policy (.5, .3, .2), old (.2, .5, .3), reference (.3, .3, .4),
from an independent enumeration."""
PLACES = {"token-sum": "token", "sequence-mean": "mean over length"}
"""Placements of `KL_GRADIENTS`, as they are called here."""
TABLE = {(name, PLACES[place]): numbers for (name, place), numbers in KL_GRADIENTS.items()} | {
    ("k1", "token"): (1.0, np.nan, np.nan),
    ("k1", "reward, to go"): (0.0, 1.0, np.nan),
}
"""Relative error and both cosines by estimator and placement; NaN where no number is given."""
FEW = {"rows": ("kl", "reverse_kl"), "batches": 500, "sweep.seed": (0, 1)}
PUSHED = {"sweep.sign": (-1.0,), **FEW}
UNWEIGHTED = {"sweep.weighted": (0.0,), **FEW}


# ---------------------------------------------------------------------------------- eight losses


def row(config: ConfigDict, name: str) -> generators.Generator:
    """A row of the table with its parameter."""
    return generators.get(name, **config.parameters.get(name, {}))


def weighed(point: dict, log_p: Array, log_old: Array) -> Array:
    """What weights divide by: the old policy, or in a control the policy itself."""
    return jnp.where(point["weighted"] > 0, log_old, jax.lax.stop_gradient(log_p))


def eight_losses(config: ConfigDict, point: dict, normal: Array) -> dict[str, Labelled]:
    """Expected gradients of the losses, and minus those of the objectives."""
    logits, old, rewards = normal
    log_old = numerics.log_softmax(old)
    # The other sign of the divergence, in a control: no loss takes a negative coefficient.
    sign, mask = point["sign"], jnp.full(rewards.shape, True)

    log_p, by_logits = jax.vjp(numerics.log_softmax, logits)

    def of_loss(form, generator, total):
        def loss(log_p):
            log_q = log_old + (0.0 if total is None else np.log(total))
            return sign * jnp.exp(log_old) @ form(
                log_p, weighed(point, log_p, log_q), sign * rewards, mask,
                coefficient=config.beta, generator=generator, total=total,
            ).loss  # fmt: skip

        return jax.grad(loss)(log_p)

    def of_objective(generator, total):
        def minus_objective(log_p):
            log_q = log_old + np.log(total or 1.0)
            terms = categorical.terms(generator, log_p, log_q, log_p - log_q)
            return config.beta * jnp.sum(terms) - jnp.exp(log_p) @ rewards

        return jax.grad(minus_objective)(log_p)

    rows, masses = [row(config, name) for name in config.rows], (None, config.total)
    gradient = jnp.array([
        [[of_loss(form, one, total) for form in FORMS.values()] for total in masses] for one in rows
    ])  # fmt: skip
    objective = jnp.array([[of_objective(one, total) for total in masses] for one in rows])
    # Once for all: of each loss by itself it would be one more program to compile.
    (gradient,) = jax.vmap(jax.vmap(jax.vmap(by_logits)))(gradient)
    (objective,) = jax.vmap(jax.vmap(by_logits))(objective)
    names = {"row": config.rows, "mass": (1.0, config.total)}
    answer = {"answer": range(config.actions)}
    return {
        "gradient": labelled(gradient, **names, form=FORMS, **answer),
        "objective": labelled(objective, **names, **answer),
    }


# ------------------------------------------------------------------------------------- KL terms


def penalties(point: dict, logits: Array, ref_logits: Array, old_logits: Array) -> Array:
    """KL terms `[estimator, samples, placement, sequence]`; their gradients hold samples fixed."""
    log_p, log_ref, log_old = map(tabular.token_log_probs, (logits, ref_logits, old_logits))
    sequences = tabular.enumerate_sequences(logits.shape)
    mask, count = jnp.asarray(sequences.mask), jnp.asarray(sequences.lengths.astype(np.float64))
    still, nothing = jax.lax.stop_gradient(log_p), jnp.zeros_like(count)

    def placed(index: Array, before: Array) -> Array:
        def estimator(p: Array, q: Array) -> Array:
            return jnp.stack([k(p, q) for k in ESTIMATORS.values()])[index]

        token = functools.partial(kl_penalty, log_p, log_ref, mask, estimator=estimator)
        whole = functools.partial(sequence_kl_penalty, log_p, log_ref, mask, estimator=estimator)
        paid = kl_rewards(log_p, log_ref, nothing, mask, coefficient=1.0, estimator=estimator)
        follow = functools.partial(cispo, log_p, before, mask=mask, high=jnp.inf)
        plain = jnp.sum(token(), axis=1)
        by_weight = {
            name: jnp.sum(token(old_log_probs=before, log_weight=log_weight), axis=1)
            for name, log_weight in WEIGHTS.items()
        }
        held = kl_terms.held_log_ratio
        found = [
            plain,
            *by_weight.values(),
            whole(),
            whole(old_log_probs=before),
            whole(old_log_probs=before, log_weight=held),
            jnp.sum(follow(jnp.sum(paid, axis=1)).loss, axis=1),
            jnp.sum(follow(to_go(paid, mask)).loss, axis=1),
            plain / count,
            by_weight["token, weighted"] / count,
        ]
        return point["sign"] * jnp.stack(found)

    of_samples = jax.vmap(placed, in_axes=(None, 0))
    of_estimators = jax.vmap(of_samples, in_axes=(0, None))
    before = jnp.stack([still, weighed(point, log_p, log_old)])
    return of_estimators(jnp.arange(len(ESTIMATORS)), before)


def table(config: ConfigDict, point: dict, normal: Array) -> dict[str, Labelled]:
    """Relative errors, cosines and deviations of all penalties; what they do to the length."""
    logits, ref_logits = tabular.normal_logits(
        point["seed"], tuple(config.sweep.seed), longest=LONGEST
    )
    old_logits = logits + config.lag * normal.reshape(logits.shape)
    # Of the policy, and of the reference itself, where the right gradient is none.
    at = jnp.stack([logits, ref_logits])
    laws = jnp.stack([at, jnp.stack([old_logits, ref_logits])], axis=1)
    laws = jnp.exp(jax.vmap(jax.vmap(tabular.sequence_log_probs))(laws))
    slopes = jax.vmap(jax.jacfwd(functools.partial(penalties, point)), in_axes=(0, None, 0))
    each_sample = slopes(at, ref_logits, jnp.stack([old_logits, ref_logits]))
    gradients, at_ref = jnp.einsum("wns,wenpsij->wenpij", laws, each_sample)
    right = jax.grad(tabular.kl)(logits, ref_logits)
    other = jax.grad(tabular.kl, 1)(ref_logits, logits)
    each = jnp.stack([each_token(logits, ref_logits, by) for by in (logits, old_logits)])

    def norm(x: Array) -> Array:
        return jnp.sqrt(jnp.sum(jnp.square(x), axis=(-2, -1)))

    found = {}
    for name, of in (("", right), ("_of_other", other)):
        found["error" + name] = norm(gradients - of[None, None, None]) / norm(of)
        product = jnp.sum(gradients * of[None, None, None], axis=(-2, -1))
        size = norm(gradients) * norm(of)
        # A gradient of 0 has no direction.
        cosine = jnp.where(norm(gradients) > 1e-12 * norm(of), product / size, 0)
        found["cosine" + name.replace("of", "to")] = cosine
    spread = jnp.square(norm(each_sample[0] - gradients[:, :, :, None]))
    found["deviation"] = jnp.sqrt(jnp.einsum("ns,enps->enp", laws[0], spread)) / norm(right)
    longer = jax.grad(tabular.mean_length)(ref_logits)
    found["push"] = -jnp.sum(at_ref * longer[None, None, None], axis=(-2, -1))
    away = norm(gradients - each[None, :, None])
    found["error_of_each"] = away / norm(each)[None, :, None]
    names = {"estimator": ESTIMATORS, "samples": SAMPLES, "placement": PLACEMENTS}
    return {name: labelled(x, **names) for name, x in found.items()}


def each_token(logits: Array, ref_logits: Array, sampled: Array) -> Array:
    """The gradient of the sum of single tokens' KL, the law of the prefixes held fixed."""
    reach = jnp.exp(tabular.prefix_log_probs(sampled))
    return jax.grad(lambda x: reach @ divergences.kl(x, ref_logits))(logits)


def one_step(point: dict) -> Labelled:
    """The expected gradients of `ONE_STEP`."""
    policy, old, ref = jnp.log(jnp.array([[0.5, 0.3, 0.2], [0.2, 0.5, 0.3], [0.3, 0.3, 0.4]]))

    def of(logits: Array, estimator: str, weighted: bool) -> Array:
        log_p = numerics.log_softmax(logits)[:, None]
        penalty = kl_penalty(
            log_p, ref[:, None], jnp.full((3, 1), True),
            estimator=ESTIMATORS[estimator],
            old_log_probs=weighed(point, log_p, old[:, None]) if weighted else None,
        )  # fmt: skip
        return jnp.exp(old) @ penalty[:, 0]

    names = [name.split() for name in ONE_STEP]
    found = jnp.stack([jax.grad(of)(policy, name[0], len(name) > 1) for name in names])
    return labelled(found, penalty=ONE_STEP, token=range(3))


def way_back(config: ConfigDict, point: dict) -> dict[str, Labelled]:
    """KL(ref‖π) and the share of saturated answers after descent on each of `TERMS`.

    The policy has lost the last of three answers, the samples are an older one's, which had it; no
    weight, as in GRPO.
    """
    ref = jnp.log(jnp.array([0.4, 0.3, 0.3]))
    lost = jnp.array([[0.0, 0.0, -distance] for distance in LOST])
    start = jnp.broadcast_to(ref[None, None] + lost[None], (len(TERMS), *lost.shape))

    def loss(logits: Array) -> Array:
        log_p = numerics.log_softmax(logits)
        log_q = jnp.broadcast_to(ref[None], logits.shape[1:])
        terms = [k(one, log_q) for k, one in zip(TERMS.values(), log_p, strict=True)]
        return point["sign"] * jnp.sum(jnp.stack(terms) * jnp.exp(ref)[None, None])

    def step(_: int, logits: Array) -> Array:
        return logits - config.step_back * jax.grad(loss)(logits)

    last = numerics.log_softmax(jax.lax.fori_loop(0, config.steps_back, step, start))
    log_q = jnp.broadcast_to(ref[None, None], last.shape)
    above = kl_terms.saturated(last, log_q, limit=LIMIT)
    share = jax.vmap(jax.vmap(metrics.token_share))(above, jnp.full(above.shape, True))
    names = {"term": TERMS, "lost": LOST}
    after = divergences.kl(log_q, last)
    return {
        # k3 takes steps of e^30, after which logits are no numbers.
        "kl_after": labelled(jnp.where(jnp.isnan(after), jnp.inf, after), **names),
        "kl_before": labelled(divergences.kl(log_q[0], start[0]), lost=LOST),
        "saturated": labelled(share, **names),
    }


# ------------------------------------------------------------------------------------- descents


def descents(config: ConfigDict, point: dict, normal: Array, key: Array) -> dict[str, Labelled]:
    """From the old policy, which stays, along each loss: by enumeration and from batches."""
    log_old, rewards = numerics.log_softmax(normal[0] / 2), jnp.tanh(normal[1])
    mask = jnp.full(rewards.shape, True)

    def loss(name: str, log_p: Array, frequency: Array) -> Array:
        generator, normalized, clipped = DESCENTS[name]
        total = None if normalized else config.total
        log_q = log_old + (0.0 if normalized else np.log(config.total))
        form = rpg.rpg_reinforce_clip if clipped else rpg.rpg
        return point["sign"] * frequency @ form(
            log_p, weighed(point, log_p, log_q), point["sign"] * rewards, mask,
            coefficient=config.beta, generator=row(config, generator), total=total,
        ).loss  # fmt: skip

    def losses(logits: Array, frequency: Array) -> Array:
        log_p = numerics.log_softmax(logits)
        each = [loss(name, one, frequency) for name, one in zip(DESCENTS, log_p, strict=True)]
        return jnp.sum(jnp.stack(each))

    optimum = _optima(config, log_old, rewards)
    drawn = jnp.repeat(_batches(config, log_old, key), config.inner, axis=0)

    def step(state: Array, drawn: Array):
        frequency = jnp.stack([jnp.exp(log_old), drawn])
        away = jnp.sum(jnp.abs(jax.nn.softmax(state) - optimum[None]), axis=-1) / 2
        return state - config.step_size * jax.vmap(jax.grad(losses))(state, frequency), away

    start = jnp.broadcast_to(log_old, (2, len(DESCENTS), config.actions))
    state, distance = jax.lax.scan(step, start, drawn)
    made = range(0, config.batches * config.inner, config.inner)
    runs = {"sampling": ("exact", "sampled"), "loss": DESCENTS}
    answer = {"answer": range(config.actions)}
    return {
        "distance": labelled(distance[:: config.inner], batch=made, **runs),
        "policy": labelled(jax.nn.softmax(state), **runs, **answer),
        "optimum": labelled(optimum, loss=DESCENTS, **answer),
    }


def _optima(config: ConfigDict, log_old: Array, rewards: Array) -> Array:
    """The closed form `[loss, answer]` at which each descent should end."""

    def best(name: str, beta: ArrayLike) -> Array:
        generator = row(config, name)
        return jnp.exp(regularized.greedy(rewards, log_old, beta, generator=generator).log_policy)

    masses = jnp.array([1.0, config.total])
    forward, unnormalized = jax.vmap(lambda mass: best("reverse_kl", config.beta * mass))(masses)
    reverse = best("kl", config.beta)
    return jnp.stack([forward, unnormalized, reverse, reverse, reverse])


def _batches(config: ConfigDict, log_old: Array, key: Array) -> Array:
    """The share of every answer in each batch, by inverting the cumulative distribution."""
    uniform = jax.random.uniform(key, (config.batches, config.batch, 1))
    above = uniform > jnp.cumsum(jnp.exp(log_old))[None, None, :-1]
    taken = jnp.sum(above, axis=-1, keepdims=True) == jnp.arange(config.actions)[None, None]
    return jnp.mean(taken, axis=1, dtype=log_old.dtype)


# -------------------------------------------------------------------------------- the experiment


def run(config: ConfigDict, point: dict, key: Array) -> dict[str, Labelled]:
    """All of it, for one draw."""
    of_draws, of_batches = jax.random.split(key)
    sizes = 3 * config.actions, 2 * config.actions, np.prod(tabular.table_shape(LONGEST))
    # One draw for all: each call of the generator takes half a second to compile.
    normal = jax.random.normal(of_draws, (sum(sizes),))
    of_losses, of_descents, of_table = jnp.split(normal, np.cumsum(sizes)[:-1])
    return {
        **eight_losses(config, point, of_losses.reshape(3, -1)),
        **table(config, point, of_table),
        **descents(config, point, of_descents.reshape(2, -1), of_batches),
        **way_back(config, point),
        "one_step": one_step(point),
    }


# -------------------------------------------------------------------------------------- figures


def figures(config: ConfigDict, results: xr.Dataset) -> dict[str, Picture]:
    """The table of errors, and the descents."""
    results = only(results)
    return {"placements": _placements(results), "descents": _descents(config, results)}


def _placements(results: xr.Dataset) -> Picture:
    from matplotlib.colors import LogNorm

    seed = pick(results.seed, 0)
    error = results.error.sel(seed=seed).stack(column=("samples", "estimator"))
    error = error.transpose("placement", "column").values
    exact, number = error < 1e-10, len(ESTIMATORS)
    figure, axis = panels(1, width=8.6, height=5.6)
    shown, norm = np.where(exact, np.nan, error), LogNorm(0.1, 3, clip=True)
    axis.imshow(shown, aspect="auto", norm=norm, cmap="OrRd")
    for (i, j), value in np.ndenumerate(error):
        look = {"color": "white" if value > 0.8 else "black"}
        if exact[i, j]:
            look = {"color": "black", "fontweight": "bold"}
        text = "0" if exact[i, j] else f"{value:.3f}"
        axis.text(j, i, text, ha="center", va="center", fontsize="small", **look)
    names = [name.replace(", ", "\n") for name in ESTIMATORS]
    axis.set_xticks(range(2 * number), names * 2)
    axis.axvline(number - 0.5, color="black", linewidth=1)
    for middle, label in ((2, "samples of π"), (7, "samples of an older policy")):
        axis.text(middle, -0.75, label, ha="center", fontsize="small")
    axis.set_title("relative error of the expected gradient", fontsize="medium", pad=20)
    axis.grid(False)
    axis.spines[:].set_visible(False)
    axis.set_yticks(range(len(PLACEMENTS)), PLACEMENTS)
    axis.set(xlabel="estimator", ylabel="where the KL term stands")
    return Picture(
        figure,
        "Expected gradients of KL terms on a language model of up to three tokens,"
        f" seed {seed}. White"
        " cells are exact: k1 and k3 with the weights of prefixes or sequences, k2 with the"
        " sequence's weight held fixed, and on-policy k1 in rewards. Token by token, weighted or"
        " not, the effect on later tokens is missing; an average over the length makes everything"
        " wrong. ∇k2: with the gradient of k2; held: without a gradient of its own.",
    )


def _descents(config: ConfigDict, results: xr.Dataset) -> Picture:
    figure, axes = panels(2, width=4.9, height=4.4)
    # The draw whose two optima differ most.
    apart = abs(results.optimum.sel(loss="FKL") - results.optimum.sel(loss="RKL")).sum("answer")
    at = results.isel(seed=int(apart.argmax("seed")))
    styles = {"FKL": "-", "UFKL": "--", "RKL": "-", "URKL": "--", "RKL, clipped": ":"}
    colors = dict(zip(DESCENTS, (COLORS[1], COLORS[4], COLORS[0], COLORS[5], "k"), strict=True))
    for name, line in styles.items():
        here = results.distance.sel(loss=name).mean("seed")
        look = {"color": colors[name], "linestyle": line, "label": name}
        curve(axes[0], "batch", here.sel(sampling="exact"), **look)
        thin = {"color": colors[name], "linewidth": 0.5, "alpha": 0.6, "zorder": 1}
        curve(axes[0], "batch", here.sel(sampling="sampled"), **thin)
    axes[0].set(
        xscale="symlog", yscale="log", ylim=(1e-7, 1), xlabel="gradient step",
        ylabel="total variation to the optimum",
    )  # fmt: skip
    axes[0].set_xscale("symlog", linthresh=config.inner)
    axes[0].set_xlim(0, config.batches * config.inner)
    axes[0].legend(fontsize="small", loc="lower left")
    order = np.argsort(-at.optimum.sel(loss="RKL").values)
    places = np.arange(config.actions)
    for name, shift, marker in (("FKL", -0.12, "s"), ("RKL", 0.12, "o")):
        for sampling, shape, size in (("exact", marker, 5), ("sampled", "x", 6)):
            policy = at.policy.sel(loss=name, sampling=sampling).values[order]
            look = {"color": colors[name], "markersize": size, "label": f"{name}, {sampling}"}
            axes[1].plot(places + shift, policy, shape, **look)
        look = {"color": "black", "markersize": 15, "zorder": 1}
        look |= {"label": "closed form"} if name == "RKL" else {}
        axes[1].plot(places + shift, at.optimum.sel(loss=name).values[order], "_", **look)
    axes[1].set(xlabel="answer, by its probability in the optimum of RKL", ylabel="probability")
    axes[1].set_ylim(0, 1.1 * at.optimum.max().item())
    axes[1].set_xticks(places, places + 1)
    axes[1].legend(fontsize="small")
    return Picture(
        figure,
        "Gradient descent on the losses from samples of an old policy that stays. Left: by"
        " enumeration (thick, mean over draws) all but the clipped one end at the optimum; thin"
        f" lines are batches of {config.batch} samples used {config.inner} times. Right: where"
        " the draw ends whose optima differ most, against the closed forms.",
    )


# --------------------------------------------------------------------------------------- claims


def only(results: xr.Dataset) -> xr.Dataset:
    """The one sign and the one way to weight that a run has."""
    return results.isel(sign=0, weighted=0)


@claim(
    source="RPG (arXiv:2505.17508), its tables of losses",
    reference=6e-17,
    reruns=(UNWEIGHTED, PUSHED),
    wrong=({"swapped": True},),
)
def losses_have_the_gradient_of_the_objective(
    results: xr.Dataset, config: ConfigDict, swapped: bool = False
) -> Finding:
    """RPG's eight losses, and those of every other row that is run: the largest relative difference
    from minus the objective's gradient, old policy of mass 1 and 1.7. The objective of the other
    direction of KL has another gradient."""
    rows = [SWAPPED.get(name, name) if swapped else name for name in config.rows]
    results = only(results)
    true = results.objective.sel(row=rows).assign_coords(row=list(config.rows))
    size = np.sqrt((true**2).sum("answer"))
    return at_most(1e-12, (np.sqrt(((results.gradient - true) ** 2).sum("answer")) / size).max())


@claim(
    source=f"independent of this code, on a {LANGUAGE_MODEL}",
    reference=tuple(TABLE.values()),
    reruns=(PUSHED,),
    wrong=({"local": "token, weighted"},),
    needs={"seed": (0,)},
)
def table_of_kl_terms(results: xr.Dataset, local: str = "token") -> Finding:
    """Relative error, cosine to the gradients of KL(π‖ref) and of KL(ref‖π), at seed 0 from samples
    of the policy: k2, k3 token by token, k1, k2, k3 averaged over each sequence, k1 token by token
    (no gradient), k1 in rewards to go (exact)."""
    at = only(results).sel(seed=0, samples="policy")
    at = at[["error", "cosine", "cosine_to_other"]].to_dataarray()
    measured = np.array([
        at.sel(estimator=name, placement=local if place == "token" else place)
        for name, place in TABLE
    ])  # fmt: skip
    reference = np.array(list(TABLE.values()))
    given = ~np.isnan(reference)
    return equals(reference[given], measured[given], tolerance=THIRD_DIGIT)


@claim(
    source="an independent enumeration of one step, off-policy",
    reference=tuple(ONE_STEP.values()),
    reruns=(UNWEIGHTED,),
)
def single_step_off_policy(results: xr.Dataset) -> Finding:
    """Expected gradients of weighted k1, k2, k3 and of k3 without a weight, at policy (.5, .3, .2),
    old (.2, .5, .3), reference (.3, .3, .4): k2 is not exact with a weight, k3 not without."""
    digit = np.array([6e-7, 6e-7, 6e-7, 6e-4])[:, None]
    measured = only(results).one_step.isel(seed=0).transpose("penalty", "token")
    return equals(list(ONE_STEP.values()), measured, tolerance=digit)


@claim(
    source="RPG (arXiv:2505.17508) for the weight; the policy gradient theorem",
    reruns=(UNWEIGHTED, PUSHED),
)
def exact_placements(results: xr.Dataset) -> Finding:
    """Largest relative errors of k1, k3 and k1 held fixed with weights of prefixes or sequences,
    on- and off-policy; of k2, or k3 with its gradient, with the sequence's weight held fixed; of k2
    of the sequence, and of k1 in rewards, on-policy."""
    weighted = ["prefix, weighted", "sequence, weighted", "token, weighted by sequence"]
    error, on_policy = results.error, results.error.sel(samples="policy")
    exact = [
        error.sel(estimator=["k1", "k3", "k1, held"], placement=weighted),
        error.sel(estimator=["k2", "k3, ∇k2"], placement="sequence, weight held"),
        on_policy.sel(estimator="k2", placement="sequence"),
        on_policy.sel(estimator="k1", placement=["reward, to go", "reward, whole"]),
    ]
    return at_most(1e-12, [x.max() for x in exact])


@claim(
    source="read in their code: TRL's use_bias_correction_kl, OpenRLHF's unbiased_gradient, verl's"
    " k3+; the bounds are chosen here",
    reruns=(PUSHED,),
    wrong=({"of": "error"}, {"names": ("k2", "k3")}),
)
def unbiased_options_are_of_single_tokens(
    results: xr.Dataset, of: str = "error_of_each", names: tuple[str, str] = ("k3", "k3, ∇k2")
) -> Finding:
    """k3 with a token's weight (TRL), k3 with k2's gradient and the weight held fixed (OpenRLHF),
    without a clamp that counts, and without weight from the policy's own samples (verl): largest
    relative error to the gradient of single tokens' KL(π‖ref), which is not that of sequences."""
    found, (with_score, through) = results[of], names
    options = [
        found.sel(estimator=with_score, placement="token, weighted"),
        found.sel(estimator=through, placement="token, weight held"),
        found.sel(estimator=through, placement="token", samples="policy"),
    ]
    return at_most(1e-12, [x.max() for x in options])


@claim(
    source="compared here by enumeration; nobody has published it",
    wrong=({"placement": "sequence, weighted"}, {"estimator": "k1"}),
)
def k3_of_prefixes_varies_least(
    results: xr.Dataset, estimator: str = "k3", placement: str = "prefix, weighted"
) -> Finding:
    """Off-policy, the standard deviation of k3 with weights of prefixes over that of each other
    exact term with a weight: the largest ratio, mean over draws."""
    deviation = only(results).deviation.sel(samples="old")
    weights = "prefix, weighted", "sequence, weighted", "token, weighted by sequence"
    exact = [(name, place) for name in ("k1", "k3", "k1, held") for place in weights]
    others = {*exact, ("k2", "sequence, weight held")} - {(estimator, placement)}
    ours = deviation.sel(estimator=estimator, placement=placement)
    ratios = [
        (ours / deviation.sel(estimator=name, placement=place)).mean().item()
        for name, place in others
    ]
    return at_most(1.0, max(ratios))


@claim(
    source="E[∇ log π] = 0; the bound on the one that pushes is chosen here",
    reruns=(PUSHED,),
    wrong=({"estimator": "k3"},),
)
def only_k1_of_means_pushes_on_length(results: xr.Dataset, estimator: str = "k1") -> Finding:
    """At π = ref, where the gradient should be 0, the change of the expected length along k1's mean
    over each sequence, smallest: answers get longer. And the largest of k1, k2, k3 in the other
    placements, on-policy."""
    push = only(results).push.sel(samples="policy", estimator=["k1", "k2", "k3"])
    means = ["mean over length", "mean over length, weighted"]
    here = push.sel(estimator=estimator, placement=means[0])
    others = abs(push.sel(placement=[x for x in PLACEMENTS if x not in means]))
    found = np.array([here.min().item(), others.max().item()])
    return Finding(found, np.array([1e-3, 0]), np.array([np.inf, 1e-12]))


@claim(
    source="the effect on later tokens is missing; the size of the bound is chosen here",
    wrong=({"placement": "prefix, weighted"},),
)
def weights_of_tokens_are_not_enough(
    results: xr.Dataset, placement: str = "token, weighted"
) -> Finding:
    """Smallest relative error of k1, k3 with weights of their own tokens, off-policy."""
    error = results.error.sel(placement=placement, estimator=["k1", "k3"], samples="old")
    return at_least(0.01, error.min())


@claim(
    source="RPG (arXiv:2505.17508), on GRPO's penalty; the reference is one step",
    reference=1.4e-17,
    reruns=(PUSHED,),
    wrong=({"placement": "sequence, weighted"},),
)
def k3_without_weight_is_of_the_other_direction(
    results: xr.Dataset, placement: str = "sequence"
) -> Finding:
    """k3 of the sequence, on-policy and without weight, has the gradient of KL(ref‖π): largest
    relative error."""
    error = results.error_of_other.sel(estimator="k3", placement=placement, samples="policy")
    return at_most(1e-12, error.max())


def end_of_descent(results: xr.Dataset, name: str, *, optimum: str) -> xr.DataArray:
    """Total variation between where an enumerated descent ends and an optimum, by draw."""
    results = only(results)
    policy = results.policy.sel(loss=name, sampling="exact", drop=True)
    return abs(policy - results.optimum.sel(loss=optimum, drop=True)).sum("answer") / 2


@claim(
    source="RPG (arXiv:2505.17508): `old e^(R/beta)` for RKL, `beta old/(nu - R)` for FKL",
    reruns=(PUSHED, UNWEIGHTED),
    wrong=({"optima": ("RKL", "URKL", "FKL", "UFKL")},),
)
def descents_end_at_the_closed_forms(
    results: xr.Dataset, optima: tuple[str, ...] = ("FKL", "UFKL", "RKL", "URKL")
) -> Finding:
    """Total variation between where enumerated descents end and the optimum, largest over draws,
    for FKL, UFKL, RKL, URKL; the size of the bound is chosen here."""
    pairs = zip(("FKL", "UFKL", "RKL", "URKL"), optima, strict=True)
    away = [end_of_descent(results, name, optimum=optimum).max() for name, optimum in pairs]
    return at_most(1e-5, away)


@claim(
    source="RPG (arXiv:2505.17508), algorithm 2; the size of the bound is chosen here",
    wrong=({"loss": "RKL"},),
)
def a_clip_stops_before(results: xr.Dataset, loss: str = "RKL, clipped") -> Finding:
    """With the clip the same descent stays away from the optimum of one old policy: total
    variation, mean over draws. In a draw whose optimum is within the clip it need not."""
    return at_least(0.01, end_of_descent(results, loss, optimum="RKL").mean())


@claim(
    source="the slope of each beyond the limit; the size of the bound is chosen here",
    reruns=(PUSHED,),
    wrong=({"terms": ("k3, clamped",)}, {"terms": ("k3",)}),
)
def a_linear_k3_returns(
    results: xr.Dataset, terms: tuple[str, ...] = ("k2", "k3, linear")
) -> Finding:
    """A policy that has lost an answer by 10, 30 or 100 nats descends on samples that have it: with
    k2, and with k3 that is linear beyond 5, KL(ref‖π) goes to nothing; largest at the end."""
    return at_most(1e-3, only(results).kl_after.sel(term=list(terms)).max())


@claim(
    source="the clamp of a log-ratio has no slope, as in verl and OpenRLHF; bounds chosen here",
    wrong=({"term": "k3, linear"}, {"term": "k2"}),
)
def a_clamped_k3_stands_still(results: xr.Dataset, term: str = "k3, clamped") -> Finding:
    """With the log-ratio clamped at 5 the answer does not come back: what is left of KL(ref‖π), and
    the share of answers that are saturated at the end, one of three; smallest."""
    results = only(results)
    left = results.kl_after.sel(term=term) / results.kl_before
    return at_least((0.5, 0.3), (left.min(), results.saturated.sel(term=term).min()))
