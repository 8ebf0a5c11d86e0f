"""What changes a model's logits while it writes: another law, or a constraint that keeps count."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from jax import Array


class Rule(NamedTuple):
    """Logits by what has been written, through a state that reads each token.

    A function of logits alone is a rule as well (`as_rule`).

    Fields:
        logits: Of the model's logits `[batch, vocabulary]` and the state, those to draw from; -inf
            forbids a token, and one has to be left in each row.
        read: Of the state and the tokens `[batch]` that were drawn, the next state.
        start: The state before the first token: arrays of one sequence, with no batch.
    """

    logits: Callable[[Array, Any], Array]
    read: Callable[[Any, Array], Any]
    start: Any


def as_rule(rule: Rule | Callable[[Array], Array] | None) -> Rule:
    """The rule; a function of logits, or nothing, as one without a state.

    >>> import jax.numpy as jnp
    >>> halved = as_rule(lambda logits: logits / 2)
    >>> print(halved.logits(jnp.array([[2.0, 4.0]]), halved.start))
    [[1. 2.]]
    """
    if isinstance(rule, Rule):
        return rule
    if rule is not None and not callable(rule):
        raise TypeError(f"rule must be a Rule or a function of logits, got {type(rule).__name__}")
    of_logits = (lambda logits: logits) if rule is None else rule
    return Rule(lambda logits, state: of_logits(logits), lambda state, tokens: state, ())
