"""Many questions to a tabular language model: groups of sampled answers, and what training does.

Each question has a table of `jdiv.lm.tabular` of its own: logits `[questions, prefixes, V]`, and
`right [questions, sequences]` says which of all answers are right, in the order of
`tabular.enumerate_sequences`. `train` draws a group of answers to every question, hands them to a
loss as a trainer would, and descends; what the policy is meanwhile is measured without sampling.

>>> from jdiv.policy import advantages, clipped, tokens
>>> logits = jnp.zeros((2, *tabular.table_shape(2)))  # two questions, answers of one or two tokens
>>> right = jnp.eye(2, 7)  # of seven answers one is right
>>> def loss(batch, state):
...     paid = advantages.grpo_advantages(batch.rewards)
...     each = clipped.ppo_clip(batch.log_probs, batch.old_log_probs, paid, batch.mask).loss
...     return tokens.sequence_mean(each.reshape(-1, 2), batch.mask.reshape(-1, 2)), state
>>> found = train(loss, logits, logits, right, jax.random.key(0), steps=100, size=8, step_size=1.0)
>>> (found.measures.accuracy[-1] > 0.9).tolist()
[True, True]
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int, Real

from jdiv import checks, numerics
from jdiv.lm import tabular
from jdiv.types import Probs, RandomKey, Scalar

Tables = Float[Array | np.ndarray, "questions prefixes vocabulary"]
"""Logits of the next token after each prefix, for each question."""
Right = Real[Array | np.ndarray, "questions sequences"]
"""The reward of each answer to each question: 1 and 0, or any number."""
Answers = Int[Array | np.ndarray, "questions size"]
"""A group of answers to each question, by their place among all sequences."""


class Measures(NamedTuple):
    """What a policy is on each question, exact.

    Fields:
        accuracy: `[questions]` pass@1, the probability of a right answer; the mean reward.
        entropy: `[questions]` of the law of whole answers.
        kl: `[questions]` KL(pi‖ref) of whole answers, reverse KL.
        length: `[questions]` expected number of tokens.
    """

    accuracy: Array
    entropy: Array
    kl: Array
    length: Array


def measures(logits: Tables, ref_logits: Tables, right: Right) -> Measures:
    """Accuracy, entropy, KL(pi‖ref) and length on each question, by enumeration.

    Shapes: `[questions, prefixes, V]` twice and `[questions, sequences]` to `[questions]` each.
    """
    logits, ref_logits = checks.alike(logits=logits, ref_logits=ref_logits)
    return Measures(
        jax.vmap(tabular.expectation)(logits, _rewards(right, logits)),
        jax.vmap(tabular.entropy)(logits),
        jax.vmap(tabular.kl)(logits, ref_logits),
        jax.vmap(tabular.mean_length)(logits),
    )


def _rewards(right: Right, logits: Array) -> Array:
    """Checked rewards of all answers to these questions."""
    right = checks.as_rewards("right", right, logits.dtype)
    shape = len(logits), len(tabular.enumerate_sequences(logits.shape[1:]).lengths)
    if right.shape != shape:
        raise ValueError(
            f"right must be of shape [questions, sequences] = {shape}, got {right.shape}"
        )
    return right.astype(logits.dtype)


def pass_at_k(accuracy: Probs, k: Scalar) -> Array:
    """`1 - (1 - p)^k`: the probability that one of k independent answers is right.

    The mean over questions of this is what papers call pass@k; `jdiv.policy.metrics` estimates it
    from samples. Exact for small p. Shapes: any to the same.

    >>> print(pass_at_k(jnp.array([0.0, 1e-3, 1.0]), 32).round(4))
    [0.     0.0315 1.    ]
    """
    accuracy = checks.as_float("accuracy", checks.share("accuracy", accuracy))
    k = checks.positive("k", k)
    return -jnp.expm1(k * jnp.log1p(-accuracy))


# ------------------------------------------------------------------------------------- the batch


class Batch(NamedTuple):
    """Groups of answers as a loss takes them, `[questions, size, longest]` by token.

    Only `log_probs`, `logits` and `tables` depend on the policy in training; all log-probabilities
    are 0 behind the end.

    Fields:
        log_probs: of the tokens, by the policy.
        old_log_probs: by the policy that drew them.
        ref_log_probs: by the reference.
        mask: True for the tokens of an answer.
        tokens: -1 behind the end.
        rewards: `[questions, size]`
        answers: `[questions, size]` places among all sequences.
        logits: `[questions, size, longest, V]` log-probabilities of all tokens at each place.
        old_logits: The same of the policy that drew them.
        ref_logits: The same of the reference.
        tables: `[questions, prefixes, V]` normalized logits of the policy after every prefix.
        key: For what a loss draws itself.
    """

    log_probs: Array
    old_log_probs: Array
    ref_log_probs: Array
    mask: Array
    tokens: Array
    rewards: Array
    answers: Array
    logits: Array
    old_logits: Array
    ref_logits: Array
    tables: Array
    key: Array | None


def draw(logits: Tables, size: int, key: RandomKey) -> Array:
    """A group of `size` answers to each question, by their places among all sequences.

    By the inverse of the distribution function, so that equal keys give equal answers to equal
    policies. Shapes: `[questions, prefixes, V]` to `[questions, size]`.
    """
    size = checks.whole("size", size, 1, np.iinfo(np.int32).max, "at least 1")
    log_policy = jax.vmap(tabular.sequence_log_probs)(checks.as_float("logits", logits))
    below = jnp.cumsum(jnp.exp(log_policy), axis=-1)
    uniform = jax.random.uniform(key, (len(logits), size), below.dtype)
    # Scaled by the sum, which is 1 but for rounding.
    passed = below[:, None, :] <= uniform[..., None] * below[:, -1:, None]
    return jnp.sum(passed, axis=-1, dtype=jnp.int32)


def batch(
    logits: Tables,
    old_logits: Tables,
    ref_logits: Tables,
    right: Right,
    answers: Answers,
    key: RandomKey | None = None,
) -> Batch:
    """These answers with their log-probabilities by three policies, as a loss takes them.

    With all answers once, `jnp.arange(sequences)` for each question, a loss can be weighed by
    probabilities in place of samples.
    """
    logits, old_logits, ref_logits = checks.alike(
        logits=logits, old_logits=old_logits, ref_logits=ref_logits
    )
    sequences = tabular.enumerate_sequences(logits.shape[1:])
    prefixes, tokens, mask = (
        jnp.asarray(x)[answers] for x in (sequences.prefixes, sequences.tokens, sequences.mask)
    )

    def at(tables: Array) -> tuple[Array, Array]:
        visited = jax.vmap(lambda table, rows: table[rows])(tables, prefixes)
        own = jnp.take_along_axis(visited, tokens[..., None], axis=-1)[..., 0]
        return jnp.where(mask, own, 0), visited

    tables = numerics.log_softmax(logits)
    constants = jax.lax.stop_gradient([numerics.log_softmax(x) for x in (old_logits, ref_logits)])
    (own, all_own), (old, all_old), (ref, all_ref) = map(at, (tables, *constants))
    rewards = jnp.take_along_axis(_rewards(right, logits), answers, axis=-1)
    return Batch(
        own, old, ref, mask, tokens, rewards, answers, all_own, all_old, all_ref, tables, key
    )


# ------------------------------------------------------------------------------------- training


class Trained(NamedTuple):
    """The last policy, the last state of the loss, and what was measured before each step.

    Fields:
        logits: `[questions, prefixes, V]`
        state: What the loss made of its state.
        measures: Of the policies before each step, `[steps, questions]` for `Measures`.
    """

    logits: Array
    state: Any
    measures: Any


def train(
    loss: Callable[[Batch, Any], tuple[Array, Any]],
    logits: Tables,
    ref_logits: Tables,
    right: Right,
    key: RandomKey,
    *,
    steps: int,
    size: int,
    step_size: Scalar,
    inner: int = 1,
    state: Any = (),
    measure: Callable[[Array, Array, Array], Any] = measures,
) -> Trained:
    """Gradient descent on `loss(batch, state) -> (loss, state)`, `inner` steps on each batch.

    One scan, to be jitted and mapped over keys or what the loss closes over. A step draws `size`
    answers to each question. At the first of the inner steps the old log-probabilities are the
    policy's to the last digit. A mean over questions gives each a share of the step, so
    `step_size` has to be larger the more there are. `measure(logits, ref_logits, right)` is what is
    kept of the policy before each step.
    """
    logits, ref_logits = checks.alike(logits=logits, ref_logits=ref_logits)
    step_size = checks.finite("step_size", step_size)
    steps, inner = (
        checks.whole(name, x, 1, np.iinfo(np.int32).max, "at least 1")
        for name, x in (("steps", steps), ("inner", inner))
    )
    first = jnp.arange(inner) == 0

    def slope(logits: Array, old: Array, state: Any, answers: Array, given: tuple[Array, Array]):
        is_first, key = given

        def value(logits: Array) -> tuple[Array, Any]:
            drawn = batch(logits, old, ref_logits, right, answers, key)
            # A program may round equal numbers in two ways at two places, and some losses see it.
            now = jax.lax.stop_gradient((drawn.log_probs, drawn.logits))
            before = drawn.old_log_probs, drawn.old_logits
            same = [jnp.where(is_first, x, y) for x, y in zip(now, before, strict=True)]
            return loss(drawn._replace(old_log_probs=same[0], old_logits=same[1]), state)

        return jax.grad(value, has_aux=True)(logits)

    def step(carry: tuple[Array, Any], key: Array) -> tuple[tuple[Array, Any], Any]:
        start, state = carry
        of_answers, of_loss = jax.random.split(key)
        answers = draw(start, size, of_answers)

        def descend(carry: tuple[Array, Any], given: tuple[Array, Array]):
            logits, state = carry
            gradient, state = slope(logits, start, state, answers, given)
            return (logits - step_size * gradient, state), None

        keys = jax.random.split(of_loss, inner)
        carry, _ = jax.lax.scan(descend, (start, state), (first, keys))
        return carry, measure(start, ref_logits, right)

    (logits, state), measured = jax.lax.scan(step, (logits, state), jax.random.split(key, steps))
    return Trained(logits, state, measured)
