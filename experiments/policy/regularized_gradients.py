"""Gradients of KL-regularised objectives: RPG's eight losses, and every placement of a KL term.

RPG (arXiv:2505.17508) derives losses for KL of either direction, normalised or not, differentiated
through or as REINFORCE; here they are taken for the whole table of divergences and compared with
the gradient of the objective by enumeration. A KL term to a reference stands in many places of a
trainer: on the tabular language model of `jdiv.lm` every estimator in each of them has an exact
expected gradient, from samples of the policy and of an older one. And gradient descent on the
losses, every step off-policy, should end at the optima, which have closed forms.
"""

import functools

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from jax import Array
from matplotlib.colors import LogNorm
from ml_collections import ConfigDict

from experiments.lab.claims import Claim
from experiments.lab.plots import COLORS, Picture
from experiments.lab.references import KL_GRADIENTS, LANGUAGE_MODEL, THIRD_DIGIT
from jdiv import estimators, generators, numerics, regularized
from jdiv.checks import known
from jdiv.divergences import categorical
from jdiv.lm import tabular
from jdiv.policy import regularized_gradient as rpg
from jdiv.policy.clipped import cispo
from jdiv.policy.kl_terms import kl_penalty, kl_rewards, prefix_log_ratio, sequence_kl_penalty
from jdiv.policy.tokens import to_go

TRACED = ("seed", "variant", "sign", "weighted")
_TABLE = ("estimator", "samples", "placement")
DIMS = dict.fromkeys(("error", "error_of_other", "cosine", "cosine_to_other"), _TABLE) | {
    "gradient": ("row", "mass", "form", "answer"),
    "objective": ("row", "mass", "answer"),
    "one_step": ("penalty", "token"),
    "distance": ("batch", "sampling", "loss"),
    "policy": ("sampling", "loss", "answer"),
    "optimum": ("loss", "answer"),
}
FORMS = {"differentiable": rpg.rpg, "reinforce": rpg.rpg_reinforce}
ESTIMATORS = {"k1": estimators.kl_k1, "k2": estimators.kl_k2, "k3": estimators.kl_k3}
LONGEST = 3
"""Tokens of a sequence of the language model at most."""
SAMPLES = "policy", "old"
PLACEMENTS = (
    "token", "token, weighted", "prefix, weighted", "sequence", "sequence, weighted",
    "reward, whole", "reward, to go", "mean over length", "mean over length, weighted",
)  # fmt: skip
DESCENTS = {
    # Row of the table, whether normalised, whether clipped.
    "FKL": ("reverse_kl", True, False),
    "UFKL": ("reverse_kl", False, False),
    "RKL": ("kl", True, False),
    "URKL": ("kl", False, False),
    "RKL, clipped": ("kl", True, True),
}
VARIANTS = {"right": 0, "pushed": 1, "unweighted": 2}
"""Of the sweep: as it should be, with the divergence's sign flipped, without weights."""
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
"""Of `KL_GRADIENTS`, as they are called here."""


# ---------------------------------------------------------------------------------- eight losses


def row(config: ConfigDict, name: str) -> generators.Generator:
    """A row of the table with its parameter."""
    return generators.get(name, **config.parameters.get(name, {}))


def weighed(point: dict, log_p: Array, log_old: Array) -> Array:
    """What weights divide by: the old policy, or in a control the policy itself."""
    return jnp.where(point["weighted"] > 0, log_old, jax.lax.stop_gradient(log_p))


def eight_losses(config: ConfigDict, point: dict, normal: Array) -> dict[str, Array]:
    """Expected gradients `[row, mass, form, answer]`, and minus those of the objectives."""
    logits, old, rewards = normal
    log_old = numerics.log_softmax(old)
    beta = point["sign"] * config.beta
    mask = jnp.full(rewards.shape, True)

    log_p, by_logits = jax.vjp(numerics.log_softmax, logits)

    def of_loss(form, generator, total):
        def loss(log_p):
            log_q = log_old + (0.0 if total is None else np.log(total))
            return jnp.exp(log_old) @ form(
                log_p, weighed(point, log_p, log_q), rewards, mask,
                coefficient=beta, generator=generator, total=total,
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
    return {"gradient": gradient, "objective": objective}


# ------------------------------------------------------------------------------------- KL terms


def penalties(point: dict, logits: Array, reference: Array, old: Array) -> Array:
    """Expected KL terms `[estimator, samples, placement]`; their gradients hold samples fixed."""
    log_p, log_ref, log_old = map(tabular.token_log_probs, (logits, reference, old))
    sequences = tabular.enumerate_sequences(logits.shape)
    mask, count = jnp.asarray(sequences.mask), jnp.asarray(sequences.lengths.astype(np.float64))
    still, nothing = jax.lax.stop_gradient(log_p), jnp.zeros_like(count)

    def placed(index: Array, log_sample: Array, before: Array) -> Array:
        def estimator(p: Array, q: Array) -> Array:
            return jnp.stack([k(p, q) for k in ESTIMATORS.values()])[index]

        token = functools.partial(kl_penalty, log_p, log_ref, mask, estimator=estimator)
        whole = functools.partial(sequence_kl_penalty, log_p, log_ref, mask, estimator=estimator)
        paid = kl_rewards(log_p, log_ref, nothing, mask, coefficient=1.0, estimator=estimator)
        follow = functools.partial(cispo, log_p, before, mask=mask, high=jnp.inf)
        plain = jnp.sum(token(), axis=1)
        weighted = jnp.sum(token(old_log_probs=before), axis=1)
        found = [
            plain,
            weighted,
            jnp.sum(token(old_log_probs=before, log_weight=prefix_log_ratio), axis=1),
            whole(),
            whole(old_log_probs=before),
            jnp.sum(follow(jnp.sum(paid, axis=1)).loss, axis=1),
            jnp.sum(follow(to_go(paid, mask)).loss, axis=1),
            plain / count,
            weighted / count,
        ]
        return point["sign"] * jnp.stack(found) @ jnp.exp(jnp.sum(log_sample, axis=1))

    of_samples = jax.vmap(placed, in_axes=(None, 0, 0))
    of_estimators = jax.vmap(of_samples, in_axes=(0, None, None))
    before = jnp.stack([still, weighed(point, log_p, log_old)])
    return of_estimators(jnp.arange(3), jnp.stack([still, log_old]), before)


def table(config: ConfigDict, point: dict, normal: Array) -> dict[str, Array]:
    """Relative errors and cosines of all penalties, to KL of either direction."""
    policy, reference = tabular.normal_logits(
        point["seed"], tuple(config.sweep.seed), longest=LONGEST
    )
    old = policy + config.lag * normal.reshape(policy.shape)
    gradients = jax.jacfwd(functools.partial(penalties, point))(policy, reference, old)
    right = jax.grad(tabular.kl)(policy, reference)
    other = jax.grad(tabular.kl, 1)(reference, policy)

    def norm(x: Array) -> Array:
        return jnp.sqrt(jnp.sum(jnp.square(x), axis=(-2, -1)))

    found = {}
    for name, of in (("", right), ("_of_other", other)):
        found["error" + name] = norm(gradients - of[None, None, None]) / norm(of)
        product = jnp.sum(gradients * of[None, None, None], axis=(-2, -1))
        size = norm(gradients) * norm(of)
        # Of a gradient of 0 there is no direction.
        cosine = jnp.where(norm(gradients) > 1e-12 * norm(of), product / size, 0)
        found["cosine" + name.replace("of", "to")] = cosine
    return found


def one_step(point: dict) -> Array:
    """`[penalty, token]` of `ONE_STEP`."""
    policy, old, reference = jnp.log(jnp.array([[0.5, 0.3, 0.2], [0.2, 0.5, 0.3], [0.3, 0.3, 0.4]]))

    def of(logits: Array, estimator: str, weighted: bool) -> Array:
        log_p = numerics.log_softmax(logits)[:, None]
        penalty = kl_penalty(
            log_p, reference[:, None], jnp.full((3, 1), True),
            estimator=ESTIMATORS[estimator],
            old_log_probs=weighed(point, log_p, old[:, None]) if weighted else None,
        )  # fmt: skip
        return jnp.exp(old) @ penalty[:, 0]

    names = [name.split() for name in ONE_STEP]
    return jnp.stack([jax.grad(of)(policy, name[0], len(name) > 1) for name in names])


# ------------------------------------------------------------------------------------- descents


def descents(config: ConfigDict, point: dict, normal: Array, key: Array) -> dict[str, Array]:
    """From the old policy, which stays, along each loss: by enumeration and from batches."""
    log_old, rewards = numerics.log_softmax(normal[0] / 2), jnp.tanh(normal[1])
    mask = jnp.full(rewards.shape, True)

    def loss(name: str, log_p: Array, frequency: Array) -> Array:
        generator, normalised, clipped = DESCENTS[name]
        total = None if normalised else config.total
        log_q = log_old + (0.0 if normalised else np.log(config.total))
        form = rpg.rpg_reinforce_clip if clipped else rpg.rpg
        return frequency @ form(
            log_p, weighed(point, log_p, log_q), rewards, mask,
            coefficient=point["sign"] * config.beta, generator=row(config, generator), total=total,
        ).loss  # fmt: skip

    def losses(logits: Array, frequency: Array) -> Array:
        log_p = numerics.log_softmax(logits)
        each = [loss(name, one, frequency) for name, one in zip(DESCENTS, log_p, strict=True)]
        return jnp.sum(jnp.stack(each))

    best = {
        name: lambda beta, name=name: jnp.exp(
            regularized.greedy(rewards, log_old, beta, generator=row(config, name)).log_policy
        )
        for name in ("kl", "reverse_kl")
    }
    forward, unnormalised = jax.vmap(best["reverse_kl"])(
        config.beta * jnp.array([1.0, config.total])
    )
    reverse = best["kl"](config.beta)
    optimum = jnp.stack([forward, unnormalised, reverse, reverse, reverse])

    # Of each batch the share of every answer, by inverting the cumulative distribution.
    uniform = jax.random.uniform(key, (config.batches, config.batch, 1))
    above = uniform > jnp.cumsum(jnp.exp(log_old))[None, None, :-1]
    taken = jnp.sum(above, axis=-1, keepdims=True) == jnp.arange(config.actions)[None, None]
    drawn = jnp.repeat(jnp.mean(taken, axis=1, dtype=log_old.dtype), config.inner, axis=0)

    def step(state: Array, drawn: Array):
        frequency = jnp.stack([jnp.exp(log_old), drawn])
        away = jnp.sum(jnp.abs(jax.nn.softmax(state) - optimum[None]), axis=-1) / 2
        return state - config.rate * jax.vmap(jax.grad(losses))(state, frequency), away

    start = jnp.broadcast_to(log_old, (2, len(DESCENTS), config.actions))
    state, distance = jax.lax.scan(step, start, drawn)
    distance = distance[:: config.inner]
    return {"distance": distance, "policy": jax.nn.softmax(state), "optimum": optimum}


# -------------------------------------------------------------------------------- the experiment


def coordinates(config: ConfigDict) -> dict[str, object]:
    """Names of rows, losses and placements; steps made before a distance was taken."""
    return {
        "row": list(config.rows),
        "mass": [1.0, config.total],
        "form": list(FORMS),
        "estimator": list(ESTIMATORS),
        "placement": list(PLACEMENTS),
        "samples": list(SAMPLES),
        "penalty": list(ONE_STEP),
        "batch": np.arange(config.batches) * config.inner,
        "sampling": ["exact", "sampled"],
        "loss": list(DESCENTS),
    }


def validate(config: ConfigDict, point: dict) -> None:
    """Refuses unknown rows and placements, and sweeps without the published draw."""
    for name in config.rows:
        known("config.rows", name, generators.TABLE)
    for field in ("local", "inexact", "other"):
        known(f"config.claims.{field}", config.claims[field], PLACEMENTS)
    known("config.claims.clipped", config.claims.clipped, DESCENTS)
    known("config.claims.variant", config.claims.variant, VARIANTS)
    if config.beta <= 0 or config.total <= 0:
        raise ValueError(
            f"config.beta and config.total must be positive, got {config.beta} and {config.total}"
        )
    if min(config.sweep.seed) < 0 or 0 not in config.sweep.seed:
        raise ValueError(
            "config.sweep.seed must have 0, the published draw, and none below,"
            f" got {', '.join(map(str, config.sweep.seed))}"
        )


def run(config: ConfigDict, point: dict, key: Array) -> dict[str, Array]:
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
        "one_step": one_step(point),
    }


# -------------------------------------------------------------------------------------- figures


def figures(config: ConfigDict, results: xr.Dataset) -> dict[str, Picture]:
    """The table of errors, and the descents."""
    results = results.sel(variant=VARIANTS["right"])
    return {"placements": _placements(results), "descents": _descents(config, results)}


def _placements(results: xr.Dataset) -> Picture:
    at = results.sel(seed=0)
    columns = [(k, samples) for samples in SAMPLES for k in ESTIMATORS]
    figure, axes = plt.subplots(1, 2, figsize=(10.4, 4.9), sharey=True)
    for axis, name, title in (
        (axes[0], "error", "relative error of the gradient"),
        (axes[1], "cosine", "cosine to ∇KL(π‖ref)"),
    ):
        values = np.array([
            [at[name].sel(estimator=k, samples=s, placement=p).item() for k, s in columns]
            for p in PLACEMENTS
        ])  # fmt: skip
        if name == "error":
            shades = {"norm": LogNorm(0.1, 3, clip=True), "cmap": "OrRd"}
        else:
            shades = {"vmin": -0.2, "vmax": 1.0, "cmap": "Blues_r"}
        exact = np.array([
            [at.error.sel(estimator=k, samples=s, placement=p).item() for k, s in columns]
            for p in PLACEMENTS
        ]) < 1e-10  # fmt: skip
        axis.imshow(np.where(exact, np.nan, values), aspect="auto", **shades)
        for i, j in np.ndindex(values.shape):
            dark = values[i, j] > 0.8 if name == "error" else values[i, j] < 0.45
            text = ("0" if name == "error" else "1") if exact[i, j] else f"{values[i, j]:.3f}"
            axis.text(
                j, i, text, ha="center", va="center", fontsize="small",
                color="white" if dark and not exact[i, j] else "black",
                fontweight="bold" if exact[i, j] else "normal",
            )  # fmt: skip
        axis.set_xticks(range(6), [k for k, _ in columns])
        axis.axvline(2.5, color="black", linewidth=1)
        for middle, label in ((1, "samples of π"), (4, "samples of old")):
            axis.text(middle, -0.75, label, ha="center", fontsize="small")
        axis.set_title(title, fontsize="medium", pad=20)
        axis.grid(False)
        axis.spines[:].set_visible(False)
    axes[0].set_yticks(range(len(PLACEMENTS)), PLACEMENTS)
    axes[0].set_ylabel("where the KL term stands")
    return Picture(
        figure,
        "Expected gradients of KL terms on a language model of up to three tokens, seed 0. White"
        " cells are exact: k1 and k3 with the weights of prefixes or sequences, and on-policy k2 of"
        " the sequence and k1 in rewards. Token by token, weighted or not, the effect on later"
        " tokens is missing; an average over the length makes everything wrong.",
    )


def _descents(config: ConfigDict, results: xr.Dataset) -> Picture:
    figure, axes = plt.subplots(1, 2, figsize=(9.8, 4.4))
    # The draw whose two optima differ most.
    apart = abs(results.optimum.sel(loss="FKL") - results.optimum.sel(loss="RKL")).sum("answer")
    at = results.isel(seed=int(apart.argmax("seed")))
    styles = {"FKL": "-", "UFKL": "--", "RKL": "-", "URKL": "--", "RKL, clipped": ":"}
    colours = dict(zip(DESCENTS, (COLORS[1], COLORS[4], COLORS[0], COLORS[5], "k"), strict=True))
    for name, style in styles.items():
        here = results.distance.sel(loss=name).mean("seed")
        axes[0].plot(
            results.batch, here.sel(sampling="exact"), style, color=colours[name], label=name
        )
        axes[0].plot(
            results.batch, here.sel(sampling="sampled"), color=colours[name], linewidth=0.5,
            alpha=0.6, zorder=1,
        )  # fmt: skip
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
        axes[1].plot(
            places + shift, at.policy.sel(loss=name, sampling="exact").values[order], marker,
            color=colours[name], markersize=5, label=f"{name}, exact",
        )  # fmt: skip
        axes[1].plot(
            places + shift, at.policy.sel(loss=name, sampling="sampled").values[order], "x",
            color=colours[name], markersize=6, label=f"{name}, sampled",
        )  # fmt: skip
        axes[1].plot(
            places + shift, at.optimum.sel(loss=name).values[order], "_", color="black",
            markersize=15, label="closed form" if name == "RKL" else None, zorder=1,
        )  # fmt: skip
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


def claims(config: ConfigDict, results: xr.Dataset) -> list[Claim]:
    """Identities by enumeration, the published numbers, the optima."""
    chosen = config.claims
    results = results.sel(variant=VARIANTS[chosen.variant])
    pushed, unweighted = ({"claims.variant": name} for name in ("pushed", "unweighted"))
    swapped = SWAPPED if chosen.swapped else {}
    objective = results.objective.sel(row=[swapped.get(name, name) for name in config.rows])
    true = objective.transpose("seed", "row", "mass", "answer").values[:, :, :, None]
    found = results.gradient.transpose("seed", "row", "mass", "form", "answer").values
    gap = np.linalg.norm(found - true, axis=-1) / np.linalg.norm(true, axis=-1)

    error, other = results.error, results.error_of_other
    weighted = ["prefix, weighted", "sequence, weighted"]
    on = {"samples": "policy"}
    exact = [
        error.sel(estimator=["k1", "k3"], placement=weighted).max(),
        error.sel(estimator="k2", placement="sequence", **on).max(),
        error.sel(estimator="k1", placement=["reward, to go", "reward, whole"], **on).max(),
    ]
    published = {(k, PLACES[where]): numbers for (k, where), numbers in KL_GRADIENTS.items()} | {
        ("k1", "token"): (1.0, np.nan, np.nan),
        ("k1", "reward, to go"): (0.0, 1.0, np.nan),
    }
    reference = np.array(list(published.values()))
    given = ~np.isnan(reference)
    places = [(k, chosen.local if at == "token" else at) for k, at in published]
    measured = np.array([
        [results[name].sel(estimator=k, placement=at, seed=0, **on).item() for k, at in places]
        for name in ("error", "cosine", "cosine_to_other")
    ]).T  # fmt: skip
    single = np.array(list(ONE_STEP.values()))
    digit = np.array([6e-7, 6e-7, 6e-7, 6e-4])[:, None]
    return [
        Claim(
            "losses-have-the-gradient-of-the-objective",
            "RPG (arXiv:2505.17508), its tables of losses; recomputed before for KL",
            "RPG's eight losses, and those of every other row that is run: the largest relative"
            f" difference from minus the objective's gradient, old policy of mass 1 and"
            f" {config.total}.",
            gap.max(),
            high=1e-12,
            controls=(unweighted, pushed, {"claims.swapped": True}),
            published=6e-17,
        ),
        Claim(
            "published-table",
            f"computed before on a {LANGUAGE_MODEL}",
            "Relative error, cosine to the gradients of KL(π‖ref) and of KL(ref‖π), at seed 0 from"
            " samples of the policy: k2, k3 token by token, k1, k2, k3 averaged over each"
            " sequence, k1 token by token (no gradient), k1 in rewards to go (exact).",
            measured[given],
            low=reference[given] - THIRD_DIGIT,
            high=reference[given] + THIRD_DIGIT,
            controls=({"claims.local": "token, weighted"}, pushed),
            published=reference[given],
        ),
        Claim(
            "published-single-step",
            "an independent enumeration of one step, off-policy",
            "Expected gradients of weighted k1, k2, k3 and of k3 without a weight, at policy"
            " (.5, .3, .2), old (.2, .5, .3), reference (.3, .3, .4): k2 is not exact with a"
            " weight, k3 not without.",
            results.one_step.isel(seed=0).transpose("penalty", "token").values,
            low=single - digit,
            high=single + digit,
            controls=(unweighted,),
            published=single,
        ),
        Claim(
            "exact-placements",
            "RPG (arXiv:2505.17508) for the weight; the policy gradient theorem",
            "Largest relative errors of k1 and k3 with weights of prefixes or sequences, on- and"
            " off-policy; of k2 of the sequence, and of k1 in rewards, on-policy.",
            [float(x) for x in exact],
            high=1e-12,
            controls=(unweighted, pushed),
        ),
        Claim(
            "weights-of-tokens-are-not-enough",
            "the effect on later tokens is missing; the size of the bound is chosen here",
            "Smallest relative error of k1, k3 with weights of their own tokens, off-policy.",
            float(error.sel(placement=chosen.inexact, estimator=["k1", "k3"], samples="old").min()),
            low=0.01,
            controls=({"claims.inexact": "prefix, weighted"},),
        ),
        Claim(
            "k3-without-weight-is-of-the-other-direction",
            "RPG (arXiv:2505.17508), on GRPO's penalty; recomputed before for one step, 1.4e-17",
            "k3 of the sequence, on-policy and without weight, has the gradient of KL(ref‖π):"
            " largest relative error.",
            float(other.sel(estimator="k3", placement=chosen.other, **on).max()),
            high=1e-12,
            controls=({"claims.other": "sequence, weighted"}, pushed),
            published=1.4e-17,
        ),
        *_about_descents(config, results, (pushed, unweighted)),
    ]


def _about_descents(config: ConfigDict, results: xr.Dataset, reruns: tuple) -> list[Claim]:
    """That the losses end where they should, and the clipped one does not."""
    away = {}
    for name, (generator, normalised, _) in DESCENTS.items():
        aim = generator if not config.claims.swapped else SWAPPED[generator]
        target = next(n for n, d in DESCENTS.items() if d == (aim, normalised, False))
        policy = results.policy.sel(loss=name, drop=True)
        away[name] = abs(policy - results.optimum.sel(loss=target, drop=True)).sum("answer") / 2
    free = [name for name, (_, _, clipped) in DESCENTS.items() if not clipped]
    return [
        Claim(
            "descents-end-at-the-closed-forms",
            "RPG (arXiv:2505.17508): `old e^(R/beta)` for RKL, `beta old/(nu - R)` for FKL",
            "Total variation between where enumerated descents end and the optimum, largest over"
            " draws, for FKL, UFKL, RKL, URKL; the size of the bound is chosen here.",
            [float(away[name].sel(sampling="exact").max()) for name in free],
            high=1e-5,
            controls=(*reruns, {"claims.swapped": True}),
        ),
        Claim(
            "a-clip-stops-before",
            "RPG (arXiv:2505.17508), algorithm 2; the size of the bound is chosen here",
            "With the clip the same descent stays away from the optimum of one old policy: total"
            " variation, mean over draws. In a draw whose optimum is within the clip it need not.",
            float(away[config.claims.clipped].sel(sampling="exact").mean()),
            low=0.01,
            controls=({"claims.clipped": "RKL"},),
        ),
    ]
