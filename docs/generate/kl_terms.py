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
ESTIMATORS = {"k1": kl_k1, "k2": kl_k2, "k3": kl_k3}
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


def penalties(logits: Array, reference: Array, old: Array | None = None) -> dict[str, Array]:
    """KL terms `[s]` of every sequence, by placement and estimator; samples are held fixed.

    With an older policy the weights are those of samples of it, and terms without weight are left
    as they are.
    """
    log_probs, ref_log_probs = tabular.token_log_probs(logits), tabular.token_log_probs(reference)
    still = jax.lax.stop_gradient(log_probs)
    before = still if old is None else tabular.token_log_probs(old)
    sequences = tabular.enumerate_sequences(logits.shape)
    mask = jnp.asarray(sequences.mask)
    length = jnp.asarray(sequences.lengths.astype(np.float64))
    nothing = jnp.zeros(len(length))
    follow = functools.partial(clipped.cispo, log_probs, before, mask=mask, high=jnp.inf)
    weight = jnp.exp(still.sum(axis=1) - before.sum(axis=1))
    found = {}
    for name, estimator in ESTIMATORS.items():
        of = {"estimator": estimator}
        token = functools.partial(kl_terms.kl_penalty, log_probs, ref_log_probs, mask, **of)
        whole = functools.partial(
            kl_terms.sequence_kl_penalty, log_probs, ref_log_probs, mask, **of
        )
        rewards = kl_terms.kl_rewards(
            log_probs, ref_log_probs, nothing, mask, coefficient=1.0, **of
        )
        found |= {
            f"reward to go, {name}": follow(tokens.to_go(rewards, mask)).loss.sum(axis=1),
            f"reward of the sequence, {name}": follow(rewards.sum(axis=1)).loss.sum(axis=1),
            f"loss, summed over tokens, {name}": token().sum(axis=1),
            f"loss, averaged over each sequence, {name}": token().sum(axis=1) / length,
            f"loss, of the whole sequence, {name}": whole(),
            f"loss, weights of tokens, {name}": token(old_log_probs=before).sum(axis=1),
            f"loss, weights of prefixes, {name}": token(
                old_log_probs=before, log_weight=kl_terms.prefix_log_ratio
            ).sum(axis=1),
            f"loss, weight of the sequence, {name}": whole(old_log_probs=before),
        }
        if old is not None:
            within = jnp.clip(jnp.exp(log_probs - before), 0, 2)
            found |= {
                f"loss, weight of the sequence held fixed, {name}": weight * whole(),
                f"loss, weights of tokens at most 2, {name}": (within * token()).sum(axis=1),
            }
    every = at_each_token(logits, reference)
    later = tokens.to_go(jax.lax.stop_gradient(every), mask) - jax.lax.stop_gradient(every)
    found["loss, summed over tokens, full"] = every.sum(axis=1)
    found["loss, averaged over each sequence, full"] = every.sum(axis=1) / length
    found["loss, and reward of later tokens, full"] = every.sum(axis=1) + (
        clipped.reinforce(log_probs, -later, mask).loss.sum(axis=1)
    )
    return found


def values(logits: Array, reference: Array) -> dict[str, Array]:
    """What the terms estimate, `[s]`: those of rewards are sums over the sequence."""
    found = penalties(logits, reference)
    plain = {name: found[f"loss, summed over tokens, {name}"] for name in (*ESTIMATORS, "full")}
    return {
        name: plain[name.rpartition(", ")[2]] if "reward" in name else value
        for name, value in found.items()
    }


@jax.jit
def audited(policy: Array, reference: Array, old: Array) -> dict[str, dict[str, Array]]:
    """Bias, standard deviations, errors of the gradient and what it does to the length."""
    probs = jnp.exp(tabular.sequence_log_probs(policy))
    old_probs = jnp.exp(tabular.sequence_log_probs(old))
    ref_probs = jnp.exp(tabular.sequence_log_probs(reference))
    true = tabular.kl(policy, reference)
    right = jax.grad(tabular.kl)(policy, reference)
    other = jax.grad(tabular.kl, 1)(reference, policy)
    longer = jax.grad(tabular.mean_length)(reference)
    shorter = jax.grad(functools.partial(tabular.mean_length, power=-1.0))(policy)
    each, each_other = (
        jax.grad(lambda x, of=of: probs @ of(x).sum(axis=1))(policy)
        for of in (
            lambda x: at_each_token(x, reference),
            lambda x: at_each_token(reference, x),
        )
    )
    by_sample = jax.jacfwd(penalties)(policy, reference)
    by_old = jax.jacfwd(penalties)(policy, reference, old)
    at_reference = jax.jacfwd(penalties)(reference, reference)

    def size(x: Array) -> Array:
        return jnp.sqrt(jnp.sum(jnp.square(x), axis=(-2, -1)))

    found = {}
    for name, value in values(policy, reference).items():
        gradient = jnp.tensordot(probs, by_sample[name], 1)
        spread = probs @ jnp.square(size(by_sample[name] - gradient[None]))
        cosine = jnp.vdot(gradient, right) / jnp.maximum(size(gradient) * size(right), 1e-300)
        found[name] = {
            "bias": probs @ value - true,
            "sd": jnp.sqrt(probs @ jnp.square(value - probs @ value)),
            "error": size(gradient - right) / size(right),
            "error_of_other": size(gradient - other) / size(other),
            "error_of_each": size(gradient - each) / size(each),
            "error_of_each_other": size(gradient - each_other) / size(each_other),
            "error_of_length": size(gradient - shorter) / size(shorter),
            "cosine": jnp.where(size(gradient) > 1e-12, cosine, jnp.nan),
            "gradient_sd": jnp.sqrt(spread) / size(right),
            "length_at_reference": -jnp.vdot(
                jnp.tensordot(ref_probs, at_reference[name], 1), longer
            ),
        }
    for name, gradients in by_old.items():
        gradient = jnp.tensordot(old_probs, gradients, 1)
        spread = old_probs @ jnp.square(size(gradients - gradient[None]))
        found.setdefault(name, {})["off_policy"] = size(gradient - right) / size(right)
        found[name]["off_policy_sd"] = jnp.sqrt(spread) / size(right)
    return found


@jax.jit
def descended(policy: Array, reference: Array) -> tuple[Array, Array]:
    """Length and KL `[term]` after gradient descent on each term alone; terms in sorted order."""

    def one(logits: Array, index: Array) -> Array:
        terms = jnp.stack([x for _, x in sorted(penalties(logits, reference).items())])
        return terms[index] @ jax.lax.stop_gradient(jnp.exp(tabular.sequence_log_probs(logits)))

    count = len(jax.eval_shape(penalties, policy, reference))
    slopes = jax.vmap(jax.grad(one))

    def step(_: int, logits: Array) -> Array:
        return logits - slopes(logits, jnp.arange(count))

    start = jnp.broadcast_to(policy, (count, *policy.shape))
    last = jax.lax.fori_loop(0, STEPS, step, start)
    kl = jax.vmap(tabular.kl, (0, None))(last, reference)
    return jax.vmap(tabular.mean_length)(last), kl


def computed() -> dict:
    """All numbers of the page."""
    with jax.enable_x64(True):
        policy, reference, old = drawn()
        found = jax.tree.map(float, audited(policy, reference, old))
        length, kl = descended(policy, reference)
        names = sorted(jax.eval_shape(penalties, policy, reference))
        for name, last_length, last_kl in zip(names, length, kl, strict=True):
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
