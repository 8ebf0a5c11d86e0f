"""DPO-Kernels on five answers: kernels, divergences, and whether there is anything to converge to.

DPO-Kernels (arXiv:2501.03271), from its released code. All pairs of the answers of
alignment/preference_divergences with Bradley-Terry preferences; each answer has an embedding. The
paper has numbers of language models only: what is compared here is derived from the loss.
"""

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jax import Array
from ml_collections import ConfigDict

from experiments.lab.axes import count, each, fraction, non_negative, positive, real
from experiments.lab.claims import Finding, at_least, at_most, claim, equals, together
from experiments.lab.plots import COLORS, Picture, panels, pick, style, ticks
from experiments.lab.results import Labelled, labelled
from jdiv import divergences, generators, regularized, roots
from jdiv.alignment import kernels, margins
from jdiv.divergences import transport

AXES = {"coefficient": non_negative, "logistic": fraction}
FIELDS = {
    "reference": each(positive),
    "reward": each(real),
    "embeddings": each(real),
    "betas": each(positive),
    "iterations": count,
}
SOURCE = "DPO-Kernels (arXiv:2501.03271), released code"
KERNELS = "none", "polynomial", "RBF", "spectral", "Mahalanobis"
OTHERS = "KL", "Jensen-Shannon", "Renyi", "Bhattacharyya", "Wasserstein", "KL of the reference"
"""Those of the released code, and KL(ref‖pi), which it does not have."""
ORDERS = 1.01, 1.5, 0.5
PROMPT = 0.5
FAR = 200.0, 400.0
"""Nats by which the worst answer is taken down."""


def log_kernels(config: ConfigDict) -> Array:
    """`[kernels, answers]` similarity of each answer to the prompt."""
    y = jnp.array(config.embeddings)[:, None]
    x = jnp.full_like(y, PROMPT)
    return jnp.stack([
        jnp.zeros_like(y[:, 0]),
        kernels.log_polynomial(x, y),
        kernels.log_rbf(x, y, bandwidth=0.5),
        kernels.log_spectral(x, y, weights=jnp.array([1.0, 0.5]), precision=jnp.array([1.0, 5.0])),
        kernels.log_mahalanobis(x, y, precision=jnp.array([[9.0]])),
    ])  # fmt: skip


def wins(config: ConfigDict) -> Array:
    """`[answers, answers]` how often the first is chosen over the second, of all pairs."""
    reward = jnp.array(config.reward)
    chance = jax.nn.sigmoid(reward[:, None] - reward[None, :])
    return jnp.where(jnp.eye(len(reward), dtype=bool), 0, chance)


def loss(
    config: ConfigDict, point: dict, log_pi: Array, log_kernel: Array, divergence: Array
) -> Array:
    """Of all pairs, as often as one is chosen over the other; `[..., answers]` to `[...]`."""
    log_kernel = jnp.broadcast_to(log_kernel, log_pi.shape)
    divergence = jnp.broadcast_to(divergence[..., None, None], (*log_pi.shape, log_pi.shape[-1]))
    first = lambda x: jnp.broadcast_to(x[..., :, None], divergence.shape)
    second = lambda x: jnp.broadcast_to(x[..., None, :], divergence.shape)
    kernel = first(log_kernel) - second(log_kernel)
    margin = lambda x: jnp.where(point["logistic"] > 0, margins.logistic(x), margins.linear(x))
    pair = first(log_pi), second(log_pi), kernel, divergence
    by_pair = kernels.kernel_dpo(*pair, coefficient=point["coefficient"], margin=margin)
    often = wins(config) / jnp.sum(wins(config))
    return jnp.sum(jnp.broadcast_to(often, by_pair.shape) * by_pair, axis=(-2, -1))


def run(config: ConfigDict, point: dict, key: Array) -> dict[str, Array | Labelled]:
    """Fits with every kernel, the loss far out with every divergence, and divergences compared."""
    log_ref = jnp.log(jnp.array(config.reference))
    of_kernel = log_kernels(config)

    def objective(logits, log_kernel):
        log_pi = jax.nn.log_softmax(logits)
        return loss(config, point, log_pi, log_kernel, divergences.kl(log_pi, log_ref))

    def fitted(log_kernel):
        return roots.minimize(lambda x: objective(x, log_kernel), log_ref, config.iterations)

    fit = jax.vmap(fitted)(of_kernel)
    at = log_ref + jnp.array(config.reward)
    slopes = jax.vmap(jax.grad(objective), (None, 0))(at, of_kernel)
    by, answers = {"kernel": KERNELS}, {"answer": range(1, 1 + len(log_ref))}
    return {
        "log_kernel": labelled(of_kernel, **by, **answers),
        "fit": labelled(jax.nn.softmax(fit.x), **by, **answers),
        "fit_slope": labelled(fit.slope, **by),
        "kernel_gradient": labelled(jnp.max(jnp.abs(slopes - slopes[:1]), axis=1), **by),
        **far_out(config, point, log_ref),
        **compared(config, log_ref),
    }


def far_out(config: ConfigDict, point: dict, log_ref: Array) -> dict[str, Array | Labelled]:
    """How the loss goes on by the nat as the worst answer vanishes, and what it wins less loses."""
    worst = int(np.argmin(config.reward))
    down = jax.nn.log_softmax(jnp.stack([log_ref.at[worst].add(-x) for x in FAR]))
    ref = jnp.broadcast_to(log_ref, down.shape)
    penalties = jnp.stack([
        divergences.kl(down, ref),
        divergences.jensen_shannon(down, ref),
        divergences.renyi(down, ref, alpha=ORDERS[0]),
        divergences.bhattacharyya(down, ref),
        transport.wasserstein_1(down, ref, jnp.array(config.embeddings)),
        divergences.reverse_kl(down, ref),
    ])  # fmt: skip
    many = jnp.broadcast_to(down, (len(OTHERS), *down.shape))
    ends = loss(config, point, many, jnp.zeros_like(log_ref), penalties)
    balance = jnp.sum(wins(config)[worst] - wins(config)[:, worst]) / jnp.sum(wins(config))
    return {
        "by_nat": labelled((ends[:, 1] - ends[:, 0]) / (FAR[1] - FAR[0]), divergence=OTHERS),
        "balance": balance,
    }


def compared(config: ConfigDict, log_ref: Array) -> dict[str, Array | Labelled]:
    """Renyi and KL, Bhattacharyya and Renyi, at tilts of the reference by the reward."""
    betas = jnp.array(config.betas)
    of = jnp.broadcast_to(log_ref, (len(betas), len(log_ref)))
    values = jnp.broadcast_to(jnp.array(config.reward), of.shape)
    pi = regularized.greedy(values, of, betas, generator=generators.kl()).log_policy
    kl = divergences.kl(pi, of)
    variance = jnp.sum(jnp.exp(pi) * (pi - of - kl[:, None]) ** 2, axis=1)
    renyi = jnp.stack([divergences.renyi(pi, of, alpha=order) for order in ORDERS])
    # By its definition: in the library it is half of Renyi.
    of_roots = -jnp.log(jnp.sum(jnp.exp((pi + of) / 2), axis=1))
    by = {"beta": tuple(config.betas)}
    return {
        "beyond_kl": labelled(renyi - kl[None], renyi_order=ORDERS, **by),
        "expected": labelled((ORDERS[0] - 1) * variance / 2, **by),
        "half_renyi": labelled(
            jnp.max(jnp.abs(renyi / 2 - of_roots[None]), axis=1), renyi_order=ORDERS
        ),
    }


# ---------------------------------------------------------------------------------------- figures


def figures(config: ConfigDict, results: xr.Dataset) -> dict[str, Picture]:
    """Fits with a margin by kernel, and without by coefficient."""
    figure, (left, right) = panels(2)
    at = results.isel(coefficient=0, logistic=-1)
    for number, kernel in enumerate(at.kernel.values):
        x = at.answer + 0.16 * (number - 2)
        left.bar(x, at.fit.sel(kernel=kernel), 0.15, color=COLORS[number], label=kernel)
    left.set(xlabel="answer", ylabel="probability", ylim=(0, 0.75))
    left.legend(title="kernel", ncols=2, fontsize="small")
    released = results.isel(logistic=0).sel(kernel=pick(results.kernel, "none"))
    for number, answer in enumerate(released.answer.values):
        line = released.fit.sel(answer=answer)
        line = line.where(line.coefficient > 0, drop=True)
        right.plot(line.coefficient, line, label=f"{answer}", **style(number, marker=True))
    right.set(
        xscale="log",
        xlabel="coefficient of KL(π‖ref)",
        ylabel="probability after the last step",
        ylim=(-0.02, 0.7),
    )
    ticks(right, x=tuple(released.coefficient.values[released.coefficient.values > 0]))
    right.legend(title="answer", ncols=3, loc="upper right")
    return {
        "kernels": Picture(
            figure,
            "Left: with a logistic margin and no divergence what is fitted is e^r divided by the"
            " kernel: answers that it finds like the prompt lose. Right: without a margin, as"
            " released, by Newton steps from the reference: at coefficient 1 answer 5 vanishes,"
            " from 1.5 on there is a local minimum.",
        )
    }


# ------------------------------------------------------------------------------------------ claims

LOGISTIC = {"sweep.logistic": (1.0,)}


@claim(source=f"{SOURCE}: order 1.01; derived", reference=1, wrong=({"order": 1.5},))
def renyi_at_its_default_is_kl(results: xr.Dataset, order: float = 1.01) -> Finding:
    """Renyi at order 1.01 less KL, over .01 Var(log p/q)/2, at four tilts of the reference."""
    at = results.isel(coefficient=0, logistic=0)
    return equals(1, at.beyond_kl.sel(renyi_order=order) / at.expected, tolerance=0.02)


@claim(source="The definition, -log sum of sqrt(p q)", wrong=({"order": 1.01},))
def bhattacharyya_is_half_of_renyi(results: xr.Dataset, order: float = 0.5) -> Finding:
    """Half of Renyi at order 1/2 less Bhattacharyya by its definition, the largest of four tilts of
    the reference."""
    return at_most(1e-14, results.half_renyi.sel(renyi_order=order))


@claim(source=f"{SOURCE}: no margin", reruns=(LOGISTIC,))
def kernels_have_no_gradient(results: xr.Dataset) -> Finding:
    """Without a margin, as released: by how much the gradient with a kernel differs from that with
    none, the largest of four kernels."""
    return at_most(1e-14, results.isel(logistic=0).kernel_gradient)


@claim(source=f"{SOURCE}: no margin; derived", reruns=(LOGISTIC,),
       wrong=({"divergences_of": OTHERS[-1:]},))  # fmt: skip
def the_loss_has_no_minimum(
    results: xr.Dataset, divergences_of: tuple[str, ...] = OTHERS[:-1]
) -> Finding:
    """Without a margin: what the loss gains by the nat that the worst answer is taken down, less
    that answer's wins and losses, with each of the released divergences; and that balance, which is
    negative: the loss falls for ever."""
    at = results.isel(logistic=0)
    apart = at.by_nat.sel(divergence=list(divergences_of)) - at.balance
    return together(equals(0, apart, tolerance=1e-12), at_most(-0.01, at.balance))


@claim(source="Derived: with a margin the kernel is in the odds", wrong=({"power": 1},))
def a_margin_divides_by_the_kernel(
    results: xr.Dataset, config: ConfigDict, power: int = -1
) -> Finding:
    """With the logistic margin and no divergence: the distance of the fit from `e^r / K`
    normalized, for every kernel."""
    at = results.isel(logistic=-1).sel(coefficient=0.0)
    weights = np.exp(np.array(config.reward) + power * at.log_kernel.transpose("kernel", "answer"))
    return at_most(1e-7, np.abs(at.fit - weights / weights.sum("answer")))


@claim(source=f"{SOURCE}; this toy", reruns=(LOGISTIC,), needs={"coefficient": (1.0, 3.0)})
def a_large_coefficient_holds_a_local_minimum(results: xr.Dataset) -> Finding:
    """Without a margin, with KL at coefficients 1 and 3: the logarithm to base 10 of the least
    probability after a fixed number of Newton steps, and at 3 the slope there."""
    at = results.isel(logistic=0).sel(kernel="none")
    least = np.log10(at.fit.min("answer"))
    held = (
        at_least(-2, least.sel(coefficient=3.0)),
        at_most(1e-9, at.fit_slope.sel(coefficient=3.0)),
    )
    return together(at_most(-10, least.sel(coefficient=1.0)), *held)
