"""Attribute control: a constraint on whole texts, as guidance of each token and as a loss.

`V(prefix)` is the probability that the model's text will hold to the constraint, or the mean of any
score of whole texts. Multiplying each token's probability by V of the longer prefix makes the model
conditioned on the constraint, exactly; training towards that law, held fixed, lowers `-log V` of
the prompt. Of texts of a finite automaton `decoding.automata.log_acceptance` has V; of others V is
a model that is trained to satisfy `log_expectation`.

Arguments are rows, one for each prefix: `logits` of the next token, and `log_scores`, for every
token log V of the prefix with that token.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from jdiv import numerics
from jdiv.alignment.tilts import checked_answers
from jdiv.divergences import categorical
from jdiv.types import Logits, LogPolicy, PerSequence, Values


def log_expectation(logits: Logits, log_scores: Values) -> PerSequence:
    """`log V(prefix) = log sum over tokens p(token|prefix) V(prefix, token)`: one step backwards.

    -inf where no token has a score. Shapes: `[..., n]` twice to `[...]`.

    >>> logits = jnp.log(jnp.array([0.9, 0.1]))
    >>> print(f"{jnp.exp(log_expectation(logits, jnp.log(jnp.array([0.5, 1.0])))):.3f}")
    0.550

    Reference: Meng et al. 2022, NADO (arXiv:2205.14219), the oracle of a prefix.
    """
    _, joint, some = _joint(logits, log_scores)
    total = jax.nn.logsumexp(jnp.where(some, joint, 0), axis=-1)
    return jnp.where(some[..., 0], total, -jnp.inf)


def token_guidance(logits: Logits, log_scores: Values) -> LogPolicy:
    """`p(token|prefix) V(prefix, token) / V(prefix)`: the model given that its text will hold.

    A prefix none of whose texts holds is not guided, it has the model's own law: the guided one
    never writes it. With V of 0 and 1, whether the text can still hold, it is masking, which has
    another law. Shapes: `[..., n]` twice to the same.

    >>> logits = jnp.log(jnp.array([0.9, 0.1]))  # a or b, then the text holds in .1 or .9 of cases
    >>> law = token_guidance(logits, jnp.log(jnp.array([0.1, 0.9])))
    >>> print([f"{p:.3f}" for p in jnp.exp(law)])
    ['0.500', '0.500']

    Reference: Meng et al. 2024 (arXiv:2410.05559), the token-level guidance.
    """
    log_p, joint, some = _joint(logits, log_scores)
    return numerics.log_softmax(jnp.where(some, joint, log_p))


def posterior_loss(
    logits: Logits, log_scores: Values, *, old_logits: Logits | None = None
) -> PerSequence:
    """`KL(q‖p)` of the guided law q, held fixed, and the model p: posterior regularization.

    q guides `old_logits`, the model itself by default. On prefixes that q writes, their sum has the
    mean KL(q‖p) over texts. With the model's own q its gradient is that of `-log V(prompt)`,
    although q is held fixed, and for a constraint `-log V(prompt)` is its value, too; other scores
    add their mean logarithm under q. Inf where the model never writes a token of q.
    Shapes: `[..., n]` to `[...]`; mask and average like any loss of tokens.

    >>> logits = jnp.log(jnp.array([0.9, 0.1]))
    >>> print(f"{posterior_loss(logits, jnp.log(jnp.array([0.1, 0.9]))):.4f}")
    0.5108

    Reconstructed: that q is held fixed, from the abstract's KL to the desired law.
    Reference: Meng et al. 2024 (arXiv:2410.05559), the regularization term.
    """
    guided = token_guidance(logits if old_logits is None else old_logits, log_scores)
    return categorical.kl(jax.lax.stop_gradient(guided), logits)


def _joint(logits: Logits, log_scores: Values) -> tuple[Array, Array, Array]:
    """`log p` and `log p V` of each token, and `[..., 1]` whether there is one that is not 0."""
    log_scores, log_p = checked_answers(logits, log_scores=log_scores)
    joint = jnp.where(log_p > -jnp.inf, log_p + log_scores, log_p)
    return log_p, joint, jnp.any(joint != -jnp.inf, axis=-1, keepdims=True)
