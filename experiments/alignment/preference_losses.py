"""Margin losses of pairs: what they fit, and what the squared one has to do with KL.

What losses of other kinds are least for, on three answers, is `preference_minimizers`.

Tang et al. 2024 (GPO, arXiv:2402.05749). Of the paper the loss list, the expansion at 0 and the
claim on the squared loss are known, and its toys' parameters are not: the numbers here are an
independent computation, and of the figures the shape alone can be compared.
"""

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jax import Array
from ml_collections import ConfigDict

from experiments.lab import axes
from experiments.lab.claims import Finding, between, claim, equals
from experiments.lab.plots import Picture, curve, panels, style
from experiments.lab.results import Labelled, labelled
from jdiv import divergences
from jdiv.alignment import margins, preference, reference_free
from jdiv.divergences import generators

AXES = {"share": axes.inside(0, 1)}
FIELDS = {
    "generator": axes.one_of(generators.TABLE),
    "flipped": axes.between(0, 0.5),
    "step_size": axes.positive,
    "record_every": axes.count,
    "steps": axes.count,
}
SAMPLING = ("policy", "pairs", "uniform")
SOURCE = "Tang et al. 2024 (arXiv:2402.05749)"
# f'(0), f''(0), least f''; minimizers at .8 and .6.
LOGITS = (1.38629, 0.40547)
MARGINS = {
    "logistic": (-0.5, 0.25, 0.0, LOGITS),
    "squared": (-2.0, 2.0, 2.0, (0.6, 0.2)),
    "exponential": (-1.0, 1.0, 0.0, (0.69315, 0.20273)),
    "truncated_quadratic": (-2.0, 2.0, 0.0, (0.6, 0.2)),
    "savage": (-0.25, 0.125, -0.1202, LOGITS),
    "hinge": (-1.0, 0.0, 0.0, (1.0, 1.0)),
}
# Minimizers at .8 and .6 of losses with a parameter, .1 of wrong labels, gamma .5.
NAMED = {
    "cDPO": (1.04597, 0.32277),
    "robust DPO": (1.94591, 0.51083),
    "EXO": (1.31833, 0.43944),
    "SimPO": (1.73230, 0.53323),
}
FEW = {"sweep.share": (0.6, 0.8), "steps": 500}
# Log-ratios of another link, that of KL(ref‖pi), in the squared loss.
OTHER_LINK = {"generator": "reverse_kl", **FEW, "steps": 5}


def validate(config: ConfigDict, point: dict) -> None:
    """Refuses steps that are not recorded evenly."""
    if config.steps % config.record_every:
        raise ValueError(
            f"config.record_every must divide config.steps = {config.steps}, got"
            f" {config.record_every}"
        )


def run(config: ConfigDict, point: dict, key: Array) -> dict[str, Array | Labelled]:
    """Margins, gradients at the counter-example, and descents from there."""
    logits, log_ref = jnp.array(config.logits), jnp.log(jnp.array(config.reference))
    pairs = jnp.array(config.pairs)
    uniform = jnp.full_like(pairs, 1 / len(config.pairs))
    generator = generators.get(config.generator)

    def kl(logits):
        return divergences.kl(logits, log_ref)

    def loss(logits, drawn):
        return squared(logits, log_ref, drawn, generator)

    def drawn(state):
        """Who draws the pairs of each of SAMPLING."""
        return jnp.stack([jax.nn.softmax(state[0]), pairs, uniform])

    slope = jax.vmap(jax.grad(loss))

    def descend(state, _):
        """All three at once."""
        recorded = jax.vmap(kl)(state), jax.vmap(loss)(state, drawn(state))
        steps = lambda _, state: state - config.step_size * slope(state, drawn(state))
        return jax.lax.fori_loop(0, config.record_every, steps, state), recorded

    start = jnp.broadcast_to(logits, (3, len(config.logits)))
    _, (kls, losses) = jax.lax.scan(descend, start, length=config.steps // config.record_every)
    of_kl, gradients = jax.grad(kl)(logits), slope(start, drawn(start))
    differentiated = jax.grad(lambda logits: loss(logits, jax.nn.softmax(logits)))(logits)
    norm = jnp.linalg.norm(gradients, axis=-1) * jnp.linalg.norm(of_kl)
    flipped = (1 - config.flipped) * point["share"] + config.flipped * (1 - point["share"])
    by_step = {"sampling": SAMPLING, "step": range(0, config.steps, config.record_every)}
    return of_margins(flipped) | {
        "ratio": labelled(
            jnp.stack([gradients[0], differentiated]) / of_kl[None],
            gradient=("fixed", "differentiated"),
            answer=range(1, 1 + len(config.logits)),
        ),
        "cosine": labelled(gradients @ of_kl / norm, sampling=SAMPLING),
        "kl": labelled(kls.T, **by_step),
        "loss": labelled(losses.T, **by_step),
    }


def squared(logits: Array, log_ref: Array, drawn: Array, generator: generators.Generator) -> Array:
    """`E[rho^2]/2`, rho the log-ratio margin of two independent answers.

    Without a preference between them, the squared margin of both orders is `rho^2 + 1`.
    """
    log_pi = jax.nn.log_softmax(logits)
    pair = jnp.broadcast_arrays(
        log_pi[:, None], log_pi[None, :], log_ref[:, None], log_ref[None, :]
    )
    loss = preference.f_dpo(*pair, beta=1.0, generator=generator, margin=margins.squared)
    return (drawn @ loss @ drawn - 1) / 2


def fitted(losses: list[margins.Margin], share: Array) -> Array:
    """Minimizers of `p f(x) + (1 - p) f(-x)` by the sign of the slope."""
    slope = jax.grad(lambda x: jnp.sum(jnp.stack([f(x[i]) for i, f in enumerate(losses)])))

    def halve(_, ends):
        low, high = ends
        middle = (low + high) / 2
        falls = share * slope(middle) - (1 - share) * slope(-middle) < 0
        return jnp.where(falls, middle, low), jnp.where(falls, high, middle)

    ends = jnp.full(len(losses), -8.0), jnp.full(len(losses), 9.0)
    return jax.lax.fori_loop(0, 60, halve, ends)[0]


def of_margins(share: Array) -> dict[str, Labelled]:
    """What all losses fit, and derivatives of margins."""
    grid = jnp.linspace(-8, 8, 1601)
    found = []
    for margin in margins.TABLE.values():
        slope = jax.grad(margin)
        curvature = jax.vmap(jax.grad(slope))(grid)
        found.append((slope(0.0), curvature[800], jnp.min(curvature)))
    best = fitted([*margins.TABLE.values(), *named().values()], share)
    columns = zip(("slope", "curvature", "least_curvature"), zip(*found, strict=True), strict=True)
    by = {"margin": tuple(margins.TABLE)}
    return {name: labelled(jnp.stack(x), **by) for name, x in columns} | {
        "minimizer": labelled(best[: len(margins.TABLE)], **by),
        "named_minimizer": labelled(best[len(margins.TABLE) :], named=tuple(NAMED)),
    }


def named() -> dict[str, margins.Margin]:
    """Losses as functions of the log-ratio of the chosen answer, that of the other one being 0."""
    zero, one = jnp.zeros(()), jnp.ones(())
    smoothed = {"beta": 1.0, "label_smoothing": 0.1}
    free = {"lengths": (one, one), "beta": 1.0, "gamma": 0.5}
    return {
        "cDPO": lambda x: preference.dpo(x, zero, zero, zero, **smoothed),
        "robust DPO": lambda x: preference.robust(x, zero, zero, zero, **smoothed),
        "EXO": lambda x: preference.exo(x, zero, zero, zero, **smoothed),
        "SimPO": lambda x: reference_free.simpo(x, zero, **free),
    }


def figures(config: ConfigDict, results: xr.Dataset) -> dict[str, Picture]:
    """Margins and what they fit; descents of the squared loss."""
    figure, (left, right) = panels(2, height=4.2)
    x = np.linspace(-2.5, 3.5, 241)
    in_order = results.sortby("share")
    for number, (name, margin) in enumerate(margins.TABLE.items()):
        left.plot(x, margin(jnp.asarray(x)), label=name.replace("_", " "), **style(number))
        curve(right, "share", in_order.minimizer.sel(margin=name), **style(number), marker=".")
    left.set(xlabel="margin x", ylabel="loss", ylim=(-0.2, 8))
    left.legend()
    right.set(xlabel="probability that the chosen answer wins", ylabel="margin that is fitted")
    one = results.isel(share=0)
    paths, (left, right) = panels(2, height=4.2)
    names = ("the policy", "the counter-example's", "uniform")
    for number, (sampling, name) in enumerate(zip(SAMPLING, names, strict=True)):
        path = one.sel(sampling=sampling)
        left.plot(path.loss / path.loss[0], path.kl, label=name, **style(number))
        curve(right, "step", path.kl.isel(step=slice(1, None)), **style(number))
    left.set(xscale="log", xlabel="squared loss, share of its start", ylabel="KL(π‖ref), nats")
    left.set_xlim(1.5, 1e-6)
    left.legend(title="pairs drawn from")
    right.set(xscale="log", xlabel="step", ylabel="KL(π‖ref), nats")
    return {
        "margins": Picture(
            figure,
            "Six margins, and the margin that each fits to a pair that wins with a given"
            " probability: logistic and Savage the log-odds, exponential half of them, squared ones"
            " twice the excess over a half, hinge always 1.",
        ),
        "descents": Picture(
            paths,
            "Descending the squared loss of pairs that the policy draws lowers KL(π‖ref) at every"
            " step, for the gradient is twice that of the KL; the loss itself may rise, as pairs"
            " change with the policy. With the pairs of the counter-example the loss falls and the"
            " KL rises.",
        ),
    }


@claim(
    source=f"{SOURCE}, the losses; recomputed independently",
    reference=[fits for *_, fits in MARGINS.values()],
    reruns=({"flipped": 0.1, **FEW},),
    wrong=({"exponential": "logistic"},),
)
def minimizers(results: xr.Dataset, exponential: str = "exponential") -> Finding:
    """The minimizer of p f(x) + (1 - p) f(-x) at p = .8 and .6: logit p for logistic and Savage,
    half of it for exponential, 2 p - 1 for both squares, 1 for hinge; to the last digit."""
    names = [exponential if name == "exponential" else name for name in MARGINS]
    found = results.minimizer.sel(margin=names, share=[0.8, 0.6]).transpose("margin", "share")
    return equals([fits for *_, fits in MARGINS.values()], found, tolerance=5.1e-6)


@claim(
    source="Mitchell 2023, A note on DPO with noisy preferences; Chowdhury et al. 2024"
    " (arXiv:2403.00409); Ji et al. 2024 (arXiv:2402.00856); Meng et al. 2024 (arXiv:2405.14734);"
    " closed forms derived here",
    reference=list(NAMED.values()),
    reruns=({"flipped": 0.1, **FEW},),
    wrong=({"robust": "cDPO"},),
)
def minimizers_with_a_parameter(results: xr.Dataset, robust: str = "robust DPO") -> Finding:
    """The same for e = .1: cDPO logit of (1 - e) p + e (1 - p), robust DPO of (p - e)/(1 - 2 e),
    EXO (2 p - 1) log 9; SimPO with gamma = .5, log of (o - 1 + sqrt((o - 1)^2 + 4 o e^-1)) e^.5/2
    with the odds o, more than log o."""
    names = [robust if name == "robust DPO" else name for name in NAMED]
    found = results.named_minimizer.sel(named=names, share=[0.8, 0.6]).transpose("named", "share")
    return equals(list(NAMED.values()), found, tolerance=5.1e-6)


@claim(
    source=f"{SOURCE}. Reconstructed: the expansion at 0; the numbers recomputed independently",
    reference=[numbers for *numbers, _ in MARGINS.values()],
    wrong=({"savage": "logistic"},),
    needs={"share": ...},
)
def slope_and_curvature(results: xr.Dataset, savage: str = "savage") -> Finding:
    """f'(0), f''(0) and the least f'' of each: the regularization near 0 has the strength
    f''(0)/|f'(0)|, .5 for logistic and Savage, 1 for squares and exponential, none for hinge; and
    Savage alone is not convex, f'' down to -.1202."""
    names = [savage if name == "savage" else name for name in MARGINS]
    one = results.isel(share=0).sel(margin=names)
    shapes = np.array([numbers for *numbers, _ in MARGINS.values()])
    digits = np.array([1e-12, 1e-12, 5.1e-5])
    high = shapes + digits
    # The least curvature of those that flatten out is 0 at infinity.
    high[[name in ("logistic", "exponential") for name in MARGINS], 2] = 4e-4
    measured = np.column_stack([one.slope, one.curvature, one.least_curvature])
    return between(shapes - digits, measured, high)


@claim(
    source=f"{SOURCE}: the squared loss and KL on-policy",
    reference=2.0,
    reruns=(OTHER_LINK,),
    wrong=({"gradient": "differentiated"},),
    needs={"share": ...},
)
def on_policy_it_is_the_kl(results: xr.Dataset, gradient: str = "fixed") -> Finding:
    """The gradient of rho^2/2 over that of KL(pi‖ref), pairs of the policy, the distribution of
    the pairs held fixed: 2 in every coordinate; deviation from 2."""
    return equals(0, results.ratio.isel(share=0).sel(gradient=gradient) - 2, tolerance=1e-9)


@claim(
    source="A counter-example, recomputed independently",
    reference=-0.497,
    reruns=(OTHER_LINK,),
    wrong=({"sampling": "policy"},),
    needs={"share": ...},
)
def off_policy_it_is_not(results: xr.Dataset, sampling: str = "pairs") -> Finding:
    """The cosine of the gradient of rho^2/2 with that of KL(pi‖ref), the pairs from another
    distribution: -.497."""
    cosine = results.cosine.isel(share=0).sel(sampling=sampling)
    return equals(-0.497, cosine, tolerance=5.1e-4)


@claim(
    source=f"{SOURCE}. Reconstructed: its figure, loss against KL, the shape alone",
    reruns=({"pairs": (1 / 3, 1 / 3, 1 / 3), **FEW},),
    wrong=({"on_policy": "pairs"}, {"off_policy": "policy"}),
    needs={"share": ...},
)
def descending_it_raises_the_kl(
    results: xr.Dataset, on_policy: str = "policy", off_policy: str = "pairs"
) -> Finding:
    """The largest rise of the KL from one recorded step to the next with pairs of the policy, at
    most rounding; the highest KL with the other pairs over the KL at the start."""
    kl = results.kl.isel(share=0)
    rise, other = kl.sel(sampling=on_policy).diff("step").max(), kl.sel(sampling=off_policy)
    return between((-np.inf, 1.01), (rise, other.max() / other[0]), (1e-12, np.inf))
