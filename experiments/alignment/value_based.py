"""Q# on star graphs and the value of A*-PO, exactly.

Q# (Zhou et al. 2025, arXiv:2502.20548) tilts the reference by `beta log E_ref e^(Z/beta)`; its
graphs are those of Bachmann and Nagarajan 2024, on which a model pretrained on next tokens guesses
the first step. Its code is not available and the accuracies of the paper are those of trained
networks: here the tables are exact. A*-PO estimates the same value from eight samples of the
reference and fits a policy to it, from answers of its own.
"""

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jax import Array
from ml_collections import ConfigDict

from experiments.lab.axes import count, each, fraction, non_negative, positive
from experiments.lab.claims import Finding, at_least, at_most, between, claim, equals
from experiments.lab.plots import Picture, curve, panels, style
from experiments.lab.results import Labelled, labelled
from jdiv import divergences
from jdiv.alignment import a_star_po, q_sharp, tilts
from jdiv.divergences import generators
from jdiv.mdp import environments

AXES = {"beta": positive}
FIELDS = {
    "accuracies": each(fraction),
    "missing_backups": non_negative,
    "loss_beta": positive,
    "value_beta": positive,
    "prompts": count,
    "fit_steps": count,
    "single_steps": count,
}
SAMPLED = ("policy", "reference")
BASELINES = ("V*", "of samples", "zero")
SOURCE = "Q# (Zhou et al. 2025, arXiv:2502.20548), section 3.1"
# P(correct first node) by degree and beta.
FIRST = {
    (2, 1.0): (0.731059, 5e-7),
    (2, 0.1): (0.999955, 5e-7),
    (5, 1.0): (0.40461, 5e-6),
    (5, 0.1): (0.999818, 5e-7),
    (3, 1.0): (0.576117, 5e-7),
    (3, 0.1): (0.999909, 5e-7),
}
# V* and E[V_hat] of eight samples, by accuracy.
VALUES = {
    0.05: (0.1386, 0.1101),
    0.2: (0.4116, 0.3697),
    0.5: (0.7169, 0.6964),
    0.9: (0.9548, 0.9520),
}
GRADIENT = (0.01556, -0.04683, 0.03127)


def validate(config: ConfigDict, point: dict) -> None:
    """Refuses what leaves claims without numbers."""
    if 8 not in config.samples or not set(VALUES) <= set(config.accuracies):
        raise ValueError("config.samples must have 8, config.accuracies all of the reference table")


def forest(graphs: tuple) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Children, returns and roots of all star graphs, one beside the other."""
    width = max(degree for degree, _ in graphs)
    children, returns, roots = [], [], []
    for degree, length in graphs:
        star = environments.star_graph(degree=degree, length=length)
        target = np.argmax(star.transition, axis=-1)
        target = np.where(target == np.arange(len(target))[:, None], -1, target)
        first = sum(map(len, returns))
        padded = np.full((len(target), width), -1)
        padded[:, :degree] = np.where(target >= 0, target + first, -1)
        children.append(padded)
        returns.append(np.eye(len(target))[length])  # the end of the first arm
        roots.append(first)
    return np.concatenate(children), np.concatenate(returns), np.array(roots)


def run(config: ConfigDict, point: dict, key: Array) -> dict[str, Array | Labelled]:
    """P(correct first node) at this beta, and what is known of A*-PO."""
    with jax.ensure_compile_time_eval():
        children, returns, roots = forest(config.graphs)
    depth = max(length for _, length in config.graphs)
    beta, uniform = point["beta"], jnp.zeros(children.shape)
    log_returns = jnp.log(jnp.stack([1 - returns, returns], axis=-1))
    # With too few backups what comes from the ends of longer arms has not arrived.
    arms = np.repeat([length for _, length in config.graphs], np.diff([*roots, len(children)]))
    arrived = (arms <= depth - config.missing_backups)[:, None]
    law = q_sharp.return_laws(
        children, uniform, jnp.where(arrived, log_returns, -jnp.inf), depth=depth
    )
    q = q_sharp.q_values(children, law, jnp.array([0.0, 1.0]), beta)
    policy = jnp.exp(q_sharp.optimal_policy(q, uniform, beta))
    recursion = q_sharp.regularized_values(
        children, uniform, returns, beta, generator=generators.kl(), depth=depth
    )
    there = children[roots] >= 0
    graphs = [f"{degree}x{length}" for degree, length in config.graphs]
    mean, deviation = gradients(config)
    return {
        "first": labelled(policy[roots, 0], graph=graphs),
        "pretrained": labelled(1 / jnp.sum(there, axis=-1, dtype=policy.dtype), graph=graphs),
        "disagreement": jnp.max(jnp.abs(jnp.where(there, (recursion.q - q)[roots], 0))),
        "gradient": labelled(mean, sampled=SAMPLED, value=config.baselines, logit=range(3)),
        "deviation": labelled(deviation, value=config.baselines),
        **second_stage(config, key),
        "table": labelled(
            values(config), accuracy=config.accuracies, samples=("exact", *map(str, config.samples))
        ),
    }


def gradients(config: ConfigDict) -> tuple[Array, Array]:
    """Mean gradient of A*-PO's loss by the logits, and its deviation on-policy, for each V."""
    ref, rewards = jnp.array(config.reference), jnp.array(config.rewards)
    logits = jnp.log(jnp.array(config.policy))

    def losses(logits, value):
        return a_star_po.a_star_po_loss(
            jax.nn.log_softmax(logits),
            jnp.log(ref),
            rewards,
            jnp.full(3, value),
            beta=config.loss_beta,
        )

    def moments(value):
        by_answer = jax.jacobian(losses)(logits, value)  # [answer, logit]
        pi = jax.nn.softmax(logits)
        mean = jnp.stack([pi @ by_answer, ref @ by_answer])
        return mean, jnp.sqrt(pi @ jnp.sum((by_answer - mean[0][None]) ** 2, axis=-1))

    mean, deviation = jax.vmap(moments)(jnp.array(config.baselines))
    return jnp.swapaxes(mean, 0, 1), deviation


def second_stage(config: ConfigDict, key: Array) -> dict[str, Labelled]:
    """Distance from the tilt of A*-PO's regression, exactly and from single answers, by V."""
    of_reference, of_rewards, of_values, of_answers = jax.random.split(key, 4)
    shape, beta = (config.prompts, len(config.rewards) * 2), config.value_beta
    log_ref = jax.nn.log_softmax(jax.random.normal(of_reference, shape) / 2)
    rewards = 1 + jax.random.normal(of_rewards, shape) / 2
    best = tilts.tilted(rewards, log_ref, beta, generator=generators.kl())
    drawn = jax.random.categorical(of_values, log_ref[None], shape=(8, config.prompts))
    seen = jnp.take_along_axis(rewards, drawn.T, axis=1)
    estimate = a_star_po.optimal_value_estimate(seen, beta)
    baselines = jnp.stack([best.value, estimate, jnp.zeros_like(estimate)])

    def slopes(logits, value, weights):
        """Of the mean loss by the logits, what is sampled held fixed."""

        def mean(logits):
            each = jnp.broadcast_to(value[:, None], shape)
            policies = jax.nn.log_softmax(logits), log_ref
            return jnp.sum(weights * a_star_po.a_star_po_loss(*policies, rewards, each, beta=beta))

        return jax.grad(mean)(logits)

    def fitted(value, sampled):
        """Each logit moves by its slope over how often its answer is sampled."""

        def step(_, logits):
            weights = jnp.where(sampled == 0, jax.nn.softmax(logits), jnp.exp(log_ref))
            return logits - slopes(logits, value, weights) / (4 * beta**2 * weights)

        return jax.lax.fori_loop(0, config.fit_steps, step, log_ref)

    def from_single(value):
        """One answer of the policy a step, and a step size that falls."""

        def step(number, state):
            logits, key = state
            key, of_step = jax.random.split(key)
            weights = jax.nn.one_hot(jax.random.categorical(of_step, logits), shape[1])
            size = 1 / (1 + number / 20)
            return logits - size * slopes(logits, value, weights.astype(logits.dtype)), key

        return jax.lax.fori_loop(0, config.single_steps, step, (log_ref, of_answers))[0]

    distance = lambda x: divergences.total_variation(x, jnp.broadcast_to(best.log_policy, x.shape))
    both = {"sampled": SAMPLED, "baseline": BASELINES}
    exact = jax.vmap(jax.vmap(fitted, (0, None)), (None, 0))(baselines, jnp.arange(2))
    single = jax.vmap(from_single)(baselines)
    return {
        "off": labelled(jnp.max(distance(exact), axis=-1), **both),
        "mean_off": labelled(
            jnp.mean(distance(exact), axis=-1), sampled=SAMPLED, baseline=BASELINES
        ),
        "single_off": labelled(jnp.mean(distance(single), axis=-1), baseline=BASELINES),
        "value_bias": jnp.mean(estimate - best.value),
    }


def values(config: ConfigDict) -> Array:
    """V* and E[V_hat] for each accuracy and number of samples."""
    accuracy = jnp.array(config.accuracies)
    found = [a_star_po.binary_value(accuracy, config.value_beta, n=n) for n in config.samples]
    return jnp.stack([found[0].optimal, *(x.expected for x in found)], axis=-1)


def figures(config: ConfigDict, results: xr.Dataset) -> dict[str, Picture]:
    """First step against beta, bias of V, deviation of the gradient."""
    figure, (left, middle, right) = panels(3, width=3.8, height=3.7)
    first = results["first"].assign_coords(beta=1 / results.beta)
    last = {degree: f"{degree}x{length}" for degree, length in config.graphs}
    for number, (degree, graph) in enumerate(sorted(last.items())):
        look = style(number, marker=True)
        curve(left, "beta", first.sel(graph=graph), label=f"Q#, {degree} arms", **look)
        left.axhline(1 / degree, color=look["color"], linestyle=":", linewidth=1)
    left.plot([], [], "k:", linewidth=1, label="pretrained, 1/arms")
    left.set(xscale="log", xlabel="1/β", ylabel="P(correct first node)", ylim=(0, 1.4))
    left.set_yticks(np.linspace(0, 1, 6))
    left.legend(loc="upper left", ncols=2, fontsize="small", columnspacing=1)
    at = results.isel(beta=0)
    gap = at.table.sel(samples="exact") - at.table
    for number, n in enumerate(config.samples):
        label = f"{n} samples"
        curve(middle, "accuracy", gap.sel(samples=str(n)), label=label, **style(number))
    middle.set(xlabel="accuracy of the reference", ylabel="V* - E[V̂]", ylim=(0, None))
    middle.legend()
    curve(right, "value", at.deviation, label="deviation of one sample", **style(0))
    size = np.sqrt((at.gradient.sel(sampled="policy") ** 2).sum("logit"))
    curve(right, "value", size, label="size of the mean", **style(1))
    right.set(xlabel="V in the loss", ylabel="gradient of A*-PO by the logits", ylim=(0, None))
    right.legend()
    return {
        "value_based": Picture(
            figure,
            "Left: tilting by the law of the reference's return finds the first node, the same for"
            " every length of the arms, where pretraining guesses. Middle: the value from n samples"
            " is too small, by Jensen, most for hard prompts. Right: V changes the noise of A*-PO's"
            " on-policy gradient and not its mean.",
        )
    }


TOO_FEW = {"missing_backups": 2, "sweep.beta": (1.0, 0.1)}


def of_paper(config: ConfigDict, degree: int) -> str:
    """The last graph of this degree in the config, which is the paper's."""
    return f"{degree}x{dict(config.graphs)[degree]}"


@claim(
    source=f"{SOURCE}; exact values by the formula e^(1/beta) / (e^(1/beta) + d - 1)",
    reference=[number for number, _ in FIRST.values()],
    reruns=(TOO_FEW,),
)
def first_node_of_star_graphs(results: xr.Dataset, config: ConfigDict) -> Finding:
    """P(correct first node) with d arms at beta = 1 and .1: .731059, .999955 (d = 2), .40461,
    .999818 (5), .576117, .999909 (3), to these digits."""
    first = results["first"]
    found = [first.sel(graph=of_paper(config, d), beta=beta).item() for d, beta in FIRST]
    number, half = np.array(list(FIRST.values())).T
    return equals(number, found, tolerance=1.01 * half)


@claim(
    source=f"{SOURCE}; follows from deterministic arms",
    reruns=(TOO_FEW,),
    wrong=({"by": "length"},),
)
def the_same_for_every_length(
    results: xr.Dataset, config: ConfigDict, by: str = "degree"
) -> Finding:
    """The largest difference of P(correct first node) between graphs of equal degree."""
    alike = [degree if by == "degree" else length for degree, length in config.graphs]
    first = results["first"].assign_coords(graph=alike).groupby("graph")
    return at_most(1e-12, (first.max("graph") - first.min("graph")).max("beta"))


@claim(
    source=f"{SOURCE}. Reconstructed: about 1/d before, about 100% with Q#",
    reruns=(TOO_FEW,),
)
def pretraining_guesses(results: xr.Dataset, config: ConfigDict) -> Finding:
    """P(correct first node) at beta = .1 over that of the reference, by degree 2, 3, 5, over d: the
    reference guesses one of d, and the optimum is nearly sure."""
    gain = (results["first"] / results.pretrained).sel(beta=0.1)
    return between(0.999, [gain.sel(graph=of_paper(config, d)) / d for d in (2, 3, 5)], 1.0)


@claim(
    source="Geist, Scherrer and Pietquin 2019: the soft Bellman recursion",
    reruns=(TOO_FEW,),
)
def the_law_of_returns_is_enough(results: xr.Dataset) -> Finding:
    """The largest difference at the center between beta log E_ref e^(Z/beta) and the recursion, for
    each beta."""
    return at_most(1e-12, results.disagreement)


@claim(
    source="A*-PO, released code (ZhaolinGao/A-PO); an independent computation, whose setting was"
    " not given and was found by search: it is in the config",
    reference=[GRADIENT] * 3,
    wrong=({"sampled": "reference"},),
    needs={"beta": ...},
)
def the_mean_gradient_ignores_v(results: xr.Dataset, sampled: str = "policy") -> Finding:
    """The exact gradient for V = 0, .3, 1, each (.01556, -.04683, .03127), answers from the
    policy."""
    gradient = results.gradient.isel(beta=0).sel(sampled=sampled, value=[0.0, 0.3, 1.0])
    return equals([GRADIENT] * 3, gradient.transpose("value", "logit"), decimals=5)


@claim(
    source="A*-PO, released code, 8 samples, beta = 1/2; an independent computation, binomial"
    " enumeration",
    reference=list(VALUES.values()),
    wrong=({"samples": "2"},),
    needs={"beta": ...},
)
def value_of_eight_samples(results: xr.Dataset, samples: str = "8") -> Finding:
    """V* and E[V_hat] at accuracies .05, .2, .5, .9: .1386 .1101, .4116 .3697, .7169 .6964, .9548
    .9520."""
    table = results.table.isel(beta=0).sel(accuracy=list(VALUES), samples=["exact", samples])
    return equals(list(VALUES.values()), table.transpose("accuracy", "samples"), decimals=4)


# The control takes the estimate of two samples for the value.
@claim(source="Jensen's inequality", wrong=({"exact": "2"},), needs={"beta": ...})
def the_estimate_is_too_small(results: xr.Dataset, exact: str = "exact") -> Finding:
    """V* - E[V_hat], the least over all accuracies and numbers of samples."""
    table = results.table.isel(beta=0)
    bias = table.sel(samples=exact) - table.drop_sel(samples="exact")
    return at_least(0.0, bias.min())


@claim(
    source="A*-PO, released code (ZhaolinGao/A-PO): the second stage. Derived here",
    wrong=({"sampled": "reference"},),
    needs={"beta": ...},
)
def its_regression_reaches_the_tilt_for_any_v(
    results: xr.Dataset, sampled: str = "policy"
) -> Finding:
    """Answers from the policy: the largest total variation between what the mean loss comes to rest
    at and the tilt, with V*, with its estimate from eight answers of the reference, and with 0."""
    return at_most(1e-12, results.off.isel(beta=0).sel(sampled=sampled))


@claim(source="Derived here", wrong=({"baseline": "V*"},), needs={"beta": ...})
def from_the_references_answers_v_matters(
    results: xr.Dataset, baseline: str = "of samples"
) -> Finding:
    """Answers from the reference: total variation from the tilt with V*, the largest, and with the
    estimate, the mean over prompts, at least .01."""
    at = results.isel(beta=0).sel(sampled="reference")
    found = [at.off.sel(baseline="V*"), at.mean_off.sel(baseline=baseline)]
    return between((0, 0.01), found, (1e-9, 1))


@claim(source="No paper: measured here", wrong=({"baseline": "zero"},), needs={"beta": ...})
def single_answers_reach_it_by_v(results: xr.Dataset, baseline: str = "of samples") -> Finding:
    """One answer of the policy a step: mean total variation from the tilt at the end with the
    estimate of V over that with no V, and with V*, where no noise is left at the tilt, over that
    with the estimate."""
    single = results.single_off.isel(beta=0)
    here = single.sel(baseline=baseline)
    return at_most(0.5, [here / single.sel(baseline="zero"), single.sel(baseline="V*") / here])
