"""Attribute control on enumerated texts: the guided law, and training towards it.

Meng et al. 2024 (arXiv:2410.05559) regularize fine-tuning by KL to the model's law given a
constraint, which an auxiliary model breaks down into tokens. Its text was not at hand, and it has
numbers of language models only. Here the constraint is a finite automaton's, so that the guidance
is exact, and training goes to its end: data and guided law are mixed in closed form, in turns.
"""

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jax import Array
from ml_collections import ConfigDict
from numpy.typing import ArrayLike

from experiments.lab.axes import count, fraction, non_negative, real, seeds
from experiments.lab.claims import Finding, at_least, at_most, claim, equals, together
from experiments.lab.plots import Picture, panels, style, ticks
from jdiv import divergences, numerics
from jdiv.alignment import control
from jdiv.decoding import Automaton, automata
from jdiv.lm import tabular

AXES = {"coefficient": non_negative, "masked": fraction, "seed": seeds}
FIELDS = {"longest": count, "vocabulary": count, "excess": real, "rounds": count}
SOURCE = "Meng et al. 2024 (arXiv:2410.05559)"
MASKED = {"sweep.masked": (1.0,)}


def once(vocabulary: int) -> Automaton:
    """Texts in which the first token stands at most once; states count it."""
    same = np.repeat(np.arange(2)[:, None], vocabulary, axis=1)
    same[:, 0] = 1, -1
    return Automaton(same, np.array([True, True]))


def grown(shape: tuple[int, int], longest: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of `tabular`'s prefixes: the row after each token, state `[prefixes]`, tokens to come.

    Behind the end, and behind the last token, stands one more row, that of texts which have ended.
    """
    prefixes, vocabulary = shape
    automaton = once(vocabulary)
    children = np.full((prefixes + 1, vocabulary), prefixes)
    states, ahead = np.zeros(prefixes, int), np.full(prefixes, longest)
    for row in range(prefixes):
        for token in range(vocabulary - 1):
            child = (vocabulary - 1) * row + 1 + token
            if child < prefixes:
                children[row, token], ahead[child] = child, ahead[row] - 1
                # A text that has broken the constraint stays there.
                after = automaton.successors[states[row], token] if states[row] >= 0 else -1
                states[child] = after
    return children, states, ahead


def guided(config: ConfigDict, logits: Array, masked: Array) -> tuple[Array, Array]:
    """`log V` of each prefix and token, by recursion; masking has 0 for all that is above -inf.

    And the tables of logits that are guided by it.
    """
    automaton = once(config.vocabulary)
    children, states, ahead = grown(logits.shape, config.longest)
    ended = jnp.where(jnp.arange(config.vocabulary) == config.vocabulary - 1, 0, -jnp.inf)
    rows = jnp.concatenate([logits, ended[None].astype(logits.dtype)])
    total = automata.log_acceptance(rows, children, automaton, horizon=config.longest)
    after = automaton.successors[np.maximum(states, 0)]
    allowed = (after >= 0) & (states >= 0)[:, None]
    found = total[(ahead - 1)[:, None], children[:-1], np.maximum(after, 0)]
    log_v = jnp.where(allowed, found, -jnp.inf)
    log_v = jnp.where((masked > 0) & (log_v > -jnp.inf), 0, log_v)
    return log_v, control.token_guidance(logits, log_v)


def regularizer(logits: Array, log_v: Array, law: Array) -> Array:
    """The posterior loss of all prefixes, as often as the guided law writes them."""
    return jnp.exp(tabular.prefix_log_probs(law)) @ control.posterior_loss(logits, log_v)


def run(config: ConfigDict, point: dict, key: Array) -> dict[str, Array]:
    """The identities of a random model, and where training on random data ends."""
    shape = tabular.table_shape(config.longest, config.vocabulary)
    of_model, of_data = jax.random.split(key)
    data = jax.random.normal(of_data, shape).at[:, 0].add(config.excess)
    # Read from the texts, not by the automaton.
    kept = (tabular.enumerate_sequences(shape).tokens == 0).sum(axis=1) <= 1
    logits = jax.random.normal(of_model, shape)
    return identities(config, point, logits, kept) | trained(config, point, data, kept)


def identities(
    config: ConfigDict, point: dict, logits: Array, kept: np.ndarray
) -> dict[str, Array]:
    """The guided law against the conditional one by enumeration, the loss against -log V."""

    def log_mass(logits):
        return jax.nn.logsumexp(jnp.where(kept, tabular.sequence_log_probs(logits), -jnp.inf))

    log_v, law = guided(config, logits, point["masked"])
    log_p = tabular.sequence_log_probs(logits)
    exact = numerics.log_softmax(jnp.where(kept, log_p, -jnp.inf))
    value, slope = jax.value_and_grad(regularizer)(logits, log_v, law)
    mass, slope_of_mass = jax.value_and_grad(log_mass)(logits)
    return {
        "apart": jnp.max(jnp.abs(jnp.exp(tabular.sequence_log_probs(law)) - jnp.exp(exact))),
        "expectation_apart": jnp.abs(control.log_expectation(logits, log_v)[0] - mass),
        "value_apart": jnp.abs(value + mass),
        "slope_apart": jnp.max(jnp.abs(slope + slope_of_mass)),
    }


def trained(config: ConfigDict, point: dict, data: Array, kept: np.ndarray) -> dict[str, Array]:
    """What is left of the data's violations, and what it costs.

    A round guides the model and fits it to the data and, as often as the coefficient says, to the
    guided law; `slope` is that of cross-entropy and regularizer at the end.
    """
    log_data, coefficient = tabular.sequence_log_probs(data), point["coefficient"]

    def fit(_, log_law):
        _, law = guided(config, tabular.from_sequences(log_law, data.shape), point["masked"])
        both = jnp.log(coefficient) + tabular.sequence_log_probs(law)
        return jnp.logaddexp(log_data, both) - jnp.log1p(coefficient)

    def objective(logits, log_v, law):
        cross_entropy = -tabular.expectation(data, tabular.sequence_log_probs(logits))
        return cross_entropy + coefficient * regularizer(logits, log_v, law)

    log_law = jax.lax.fori_loop(0, config.rounds, fit, log_data)
    violating = lambda log_p: jnp.sum(jnp.where(kept, 0, jnp.exp(log_p)))
    logits = tabular.from_sequences(log_law, data.shape)
    slope = jax.grad(objective)(logits, *guided(config, logits, point["masked"]))
    return {
        "in_data": violating(log_data),
        "violations": violating(log_law),
        "excess": divergences.kl(log_data, log_law),
        "slope": jnp.max(jnp.abs(slope)),
    }


# ---------------------------------------------------------------------------------------- figures


def least(in_data: ArrayLike, violations: ArrayLike) -> ArrayLike:
    """KL of the data to any law with so many violations, at least: that of two outcomes."""
    both = ((in_data, violations), (1 - in_data, 1 - violations))
    return sum(a * np.log(a / b) for a, b in both)


def figures(config: ConfigDict, results: xr.Dataset) -> dict[str, Picture]:
    """Violations by coefficient, and what they cost."""
    figure, (left, right) = panels(2)
    at = results.isel(seed=0).sortby("coefficient")
    in_data = float(at.in_data.isel(masked=0, coefficient=0))
    weights = np.geomspace(0.05, 5, 100)
    left.plot(weights, in_data / (1 + weights), color="black", label="V₀/(1 + c)")
    levels = np.geomspace(float(at.violations.min()) * 0.8, in_data, 100)
    right.plot(levels, least(in_data, levels), color="black", label="the least there is")
    for number, masked in enumerate(at.masked.values):
        look = {"label": ("guided", "masked")[int(masked > 0)], **style(number, marker=True)}
        look |= {"linestyle": "none", "markerfacecolor": "none", "markersize": 6 + 4 * number}
        line = at.sel(masked=masked)
        positive = line.where(line.coefficient > 0, drop=True)
        left.plot(positive.coefficient, positive.violations, **look)
        right.plot(line.violations, line.excess, **look)
    left.set(
        xscale="log", yscale="log", xlabel="coefficient c", ylabel="share of texts that violate"
    )
    right.set(
        xscale="log",
        xlabel="share of texts that violate the constraint",
        ylabel="cross-entropy beyond that of the data, nats",
    )
    ticks(left, x=(0.1, 0.3, 1, 3), y=(0.03, 0.05, 0.1))
    ticks(right, x=(0.03, 0.05, 0.1, 0.2))
    for axes in (left, right):
        axes.legend()
    return {
        "control": Picture(
            figure,
            "Training on data a part of which violates the constraint, with KL from the guided law"
            " as a regularizer. Left: with either law what violates falls as V₀/(1 + c), V₀ of the"
            " data."
            " Right: with exact guidance at the least cost there is; masking, which is another law"
            " than the conditional one, costs more.",
        )
    }


# ------------------------------------------------------------------------------------------ claims


@claim(source=f"{SOURCE}; exact, by enumeration", reruns=(MASKED,))
def guidance_is_the_conditional_law(results: xr.Dataset) -> Finding:
    """The largest difference between a text's probability under guidance by recursion and under the
    model given that the constraint holds, by enumeration; and of log V of the prompt."""
    at = results.isel(masked=0)
    return at_most(1e-12, np.stack([at.apart, at.expectation_apart]))


@claim(source=f"{SOURCE}; derived: the envelope theorem", reruns=(MASKED,))
def the_loss_is_minus_log_v(results: xr.Dataset) -> Finding:
    """KL from the guided law, which is held fixed, and its gradient: the differences from -log V,
    V the probability of all texts that hold, and from its gradient."""
    at = results.isel(masked=0)
    return at_most(1e-12, np.stack([at.value_apart, at.slope_apart]))


@claim(source=f"{SOURCE}: fewer violations at little cost; the law derived", reruns=(MASKED,))
def violations_at_the_least_cost(results: xr.Dataset) -> Finding:
    """After training with coefficient c: violations times (1 + c), over those of the data; excess
    of cross-entropy beyond the least that any law with so few violations has; and the slope."""
    at = results.isel(masked=0)
    share = (1 + at.coefficient) * at.violations / at.in_data
    return together(
        equals(1, share, tolerance=1e-9),
        equals(0, at.excess - least(at.in_data, at.violations), tolerance=1e-9),
        at_most(1e-9, at.slope),
    )


@claim(
    source="Derived: masking leaves the constraint's texts another law",
    wrong=({"masked": 0.0},),
    needs={"coefficient": (3.0,), "masked": (0.0, 1.0), "seed": ...},
)
def masking_costs_more(results: xr.Dataset, masked: float = 1.0) -> Finding:
    """With masking in place of guidance, at coefficient 3: cross-entropy beyond the least that any
    law with as few violations has, over that least."""
    at = results.sel(coefficient=3.0, masked=masked)
    bound = least(at.in_data, at.violations)
    return at_least(0.01, (at.excess - bound) / bound)
