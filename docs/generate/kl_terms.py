"""Numbers of the page on KL terms: every placement and estimator, by enumeration.

    python -m docs.generate.kl_terms

writes docs/_data/kl_terms.json. The model is the tabular language model of the experiment
estimation/kl_penalties at seed 0: all sequences of up to three tokens, so expectations are sums.
"""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jdiv import divergences as dv
from jdiv.estimators import kl_k1, kl_k2, kl_k3
from jdiv.lm import tabular
from jdiv.policy import clipped, kl_terms, tokens

DATA = pathlib.Path(__file__).parents[1] / "_data" / "kl_terms.json"
PLACEMENTS = (
    "reward to go", "reward of the sequence", "loss, summed over tokens",
    "loss, averaged over each sequence", "loss, of the whole sequence", "loss, weights of tokens",
    "loss, weights of prefixes", "loss, weight of the sequence",
)  # fmt: skip
ESTIMATORS = {
    "k1": kl_k1,
    "k2": kl_k2,
    "k3": kl_k3,
    "k3 with the gradient of k2": functools.partial(kl_terms.straight_through, estimator=kl_k3),
    "k1 held fixed": functools.partial(kl_terms.without_gradient, estimator=kl_k1),
}
PLAIN = ("k1", "k2", "k3")
"""The three that stand in rewards too."""
_AT_MOST = functools.partial(kl_terms.clamped_log_ratio, ceiling=2.0)
WEIGHTS = {
    "weights of tokens": kl_terms.token_log_ratio,
    "weights of tokens at most 2": _AT_MOST,
    "weights of tokens held fixed": kl_terms.held_log_ratio,
    "weights of tokens held fixed, at most 2": functools.partial(
        kl_terms.held_log_ratio, log_weight=_AT_MOST
    ),
    "weights of prefixes": kl_terms.prefix_log_ratio,
    "weights of prefixes held fixed": functools.partial(
        kl_terms.held_log_ratio, log_weight=kl_terms.prefix_log_ratio
    ),
    "weight of the sequence at each token": kl_terms.sequence_log_ratio,
}
LAG, STEPS = 0.5, 2000
"""Standard deviation of the old policy's logits around the policy's; descent in steps of 1."""


def drawn() -> tuple[Array, Array, Array]:
    """Logits of the policy, the reference and an older policy."""
    generator = np.random.default_rng(0)
    shape = tabular.table_shape(3)
    policy, reference = generator.standard_normal((2, *shape))
    return (
        jnp.asarray(policy),
        jnp.asarray(reference),
        jnp.asarray(policy + LAG * generator.standard_normal(shape)),
    )


def at_each_token(logits: Array, reference: Array) -> Array:
    """Exact KL `[s, longest]` of the next token after each prefix, 0 behind the end."""
    sequences = tabular.enumerate_sequences(logits.shape)
    return jnp.where(sequences.mask, dv.kl(logits, reference)[sequences.prefixes], 0)


def penalties(logits: Array, reference: Array, old: Array) -> dict[str, Array]:
    """KL terms `[s]` of every sequence, by placement and estimator; samples are held fixed.

    The weights are those of samples of the older policy; terms without weight are left as they are.
    """
    log_probs, ref_log_probs, before = map(tabular.token_log_probs, (logits, reference, old))
    mask = jnp.asarray(tabular.enumerate_sequences(logits.shape).mask)
    length = jnp.sum(mask, axis=1).astype(log_probs.dtype)
    nothing = jnp.zeros_like(length)
    follow = functools.partial(clipped.cispo, log_probs, before, mask=mask, high=jnp.inf)
    token = functools.partial(kl_terms.kl_penalty, log_probs, ref_log_probs, mask)
    whole = functools.partial(kl_terms.sequence_kl_penalty, log_probs, ref_log_probs, mask)
    ratio = jnp.exp((log_probs - before).sum(axis=1))
    found = {}
    for name in PLAIN:
        of = {"estimator": ESTIMATORS[name]}
        rewards = kl_terms.kl_rewards(
            log_probs, ref_log_probs, nothing, mask, coefficient=1.0, **of
        )
        found |= {
            f"reward to go, {name}": follow(tokens.to_go(rewards, mask)).loss.sum(axis=1),
            f"reward of the sequence, {name}": follow(rewards.sum(axis=1)).loss.sum(axis=1),
            f"loss, averaged over each sequence, {name}": token(**of).sum(axis=1) / length,
        }
    for name, estimator in ESTIMATORS.items():
        of_tokens, of_sequence = token(estimator=estimator).sum(axis=1), whole(estimator=estimator)
        found |= {
            f"loss, summed over tokens, {name}": of_tokens,
            f"loss, of the whole sequence, {name}": of_sequence,
            f"loss, weight of the sequence, {name}": whole(
                estimator=estimator, old_log_probs=before
            ),
            f"loss, weight of the sequence held fixed, {name}": whole(
                estimator=estimator, old_log_probs=before, log_weight=kl_terms.held_log_ratio
            ),
            f"loss, geometric mean of the weights, {name}": ratio ** (1 / length) * of_tokens,
        }
        for weight, log_weight in WEIGHTS.items():
            weighted = token(estimator=estimator, old_log_probs=before, log_weight=log_weight)
            found[f"loss, {weight}, {name}"] = weighted.sum(axis=1)
    every = at_each_token(logits, reference)
    later = tokens.to_go(jax.lax.stop_gradient(every), mask) - jax.lax.stop_gradient(every)
    found["loss, summed over tokens, full"] = every.sum(axis=1)
    found["loss, averaged over each sequence, full"] = every.sum(axis=1) / length
    found["loss, and reward of later tokens, full"] = every.sum(axis=1) + (
        clipped.reinforce(log_probs, -later, mask).loss.sum(axis=1)
    )
    return dict(sorted(found.items()))


DESCENDED = (
    *(f"{place}, {name}" for place in PLACEMENTS for name in PLAIN),
    "loss, summed over tokens, full",
    "loss, averaged over each sequence, full",
    "loss, and reward of later tokens, full",
    "loss, summed over tokens, k3 with the gradient of k2",
    "loss, of the whole sequence, k3 with the gradient of k2",
    "loss, weights of prefixes, k1 held fixed",
)
NAMES = tuple(jax.eval_shape(penalties, *[jax.ShapeDtypeStruct((7, 3), float)] * 3))
"""Of all terms, in the order in which they are stacked."""


def values(logits: Array, reference: Array) -> Array:
    """What the terms estimate, `[term, s]`: those of rewards are sums over the sequence."""
    found = penalties(logits, reference, logits)
    plain = {name: found[f"loss, summed over tokens, {name}"] for name in (*PLAIN, "full")}
    return jnp.stack([
        plain[name.rpartition(", ")[2]] if "reward" in name else value
        for name, value in found.items()
    ])  # fmt: skip


@jax.jit
def audited(policy: Array, reference: Array, old: Array) -> dict[str, Array]:
    """Bias, standard deviations, errors of the gradient and what it does to the length, by term."""
    samples = jnp.stack([policy, old, reference])
    probs = jnp.exp(jax.vmap(tabular.sequence_log_probs)(samples))
    right, other = (
        jax.grad(tabular.kl)(policy, reference),
        jax.grad(tabular.kl, 1)(reference, policy),
    )
    longer = jax.grad(tabular.mean_length)(reference)
    shorter = jax.grad(functools.partial(tabular.mean_length, power=-1.0))(policy)
    each, each_other = (
        jax.grad(lambda x, of=of: probs[0] @ of(x).sum(axis=1))(policy)
        for of in (
            lambda x: at_each_token(x, reference),
            lambda x: at_each_token(reference, x),
        )
    )

    def stacked(logits: Array, old: Array) -> Array:
        return jnp.stack(list(penalties(logits, reference, old).values()))

    # Samples of the policy, of the older one, and of the reference by itself.
    at = jnp.stack([policy, policy, reference])
    by_sample = jax.vmap(jax.jacfwd(stacked))(at, samples)
    gradients = jnp.einsum("ws,wnspv->wnpv", probs, by_sample)

    def size(x: Array) -> Array:
        return jnp.sqrt(jnp.sum(jnp.square(x), axis=(-2, -1)))

    spread = jnp.einsum("ws,wns->wn", probs, jnp.square(size(by_sample - gradients[:, :, None])))
    gradient_sd = jnp.sqrt(spread) / size(right)
    gradient = gradients[0]

    def error(of: Array) -> Array:
        return size(gradient - of[None]) / size(of)

    cosine = jnp.sum(gradient * right[None], axis=(1, 2)) / size(right)
    cosine = jnp.where(
        size(gradient) > 1e-12, cosine / jnp.maximum(size(gradient), 1e-300), jnp.nan
    )
    value = values(policy, reference)
    mean = value @ probs[0]
    return {
        "bias": mean - tabular.kl(policy, reference),
        "sd": jnp.sqrt(jnp.square(value - mean[:, None]) @ probs[0]),
        "error": error(right),
        "error_of_other": error(other),
        "error_of_each": error(each),
        "error_of_each_other": error(each_other),
        "error_of_length": error(shorter),
        "cosine": cosine,
        "gradient_sd": gradient_sd[0],
        "length_at_reference": -jnp.sum(gradients[2] * longer[None], axis=(1, 2)),
        "off_policy": size(gradients[1] - right[None]) / size(right),
        "off_policy_sd": gradient_sd[1],
    }


def by_name(found: dict[str, Array]) -> dict[str, dict[str, float]]:
    """Numbers of every term."""
    columns = {key: np.asarray(x).tolist() for key, x in found.items()}
    return {name: {key: x[i] for key, x in columns.items()} for i, name in enumerate(NAMES)}


@jax.jit
def descended(policy: Array, reference: Array) -> tuple[Array, Array]:
    """Length and KL `[term]` after gradient descent on each of `DESCENDED` alone."""

    def one(logits: Array, index: Array) -> Array:
        still = jax.lax.stop_gradient(logits)
        found = penalties(logits, reference, still)
        terms = jnp.stack([found[name] for name in DESCENDED])
        return terms[index] @ jnp.exp(tabular.sequence_log_probs(still))

    slopes = jax.vmap(jax.grad(one))

    def step(_: int, logits: Array) -> Array:
        return logits - slopes(logits, jnp.arange(len(DESCENDED)))

    start = jnp.broadcast_to(policy, (len(DESCENDED), *policy.shape))
    last = jax.lax.fori_loop(0, STEPS, step, start)
    kl = jax.vmap(tabular.kl, (0, None))(last, reference)
    return jax.vmap(tabular.mean_length)(last), kl


def computed() -> dict:
    """All numbers of the page."""
    with jax.enable_x64(True):
        policy, reference, old = drawn()
        found = by_name(audited(policy, reference, old))
        length, kl = descended(policy, reference)
        for name, last_length, last_kl in zip(DESCENDED, length, kl, strict=True):
            found[name] |= {"last_length": float(last_length), "last_kl": float(last_kl)}
        return {
            "kl": float(tabular.kl(policy, reference)),
            "other_kl": float(tabular.kl(reference, policy)),
            "length": float(tabular.mean_length(policy)),
            "reference_length": float(tabular.mean_length(reference)),
            "old_kl": float(tabular.kl(policy, old)),
            "lag": LAG,
            "steps": STEPS,
            "terms": found,
        }


def shortened(value: object) -> object:
    """Six significant digits; what is not a number is None, and rounding noise is 0."""
    if isinstance(value, dict):
        return {key: shortened(x) for key, x in value.items()}
    if isinstance(value, float):
        return None if value != value else 0.0 if abs(value) < 1e-13 else float(f"{value:.6g}")
    return value


if __name__ == "__main__":
    DATA.write_text(json.dumps(shortened(computed()), indent=1, sort_keys=True) + "\n")
