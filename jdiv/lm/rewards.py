"""Rewards of texts: plain Python functions `(prompt, answer) -> number`, and how one is found.

Anyone's own function of this form serves as well: `found("my_module.my_reward")`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable

Reward = Callable[[str, str], float]
"""A number for an answer to a prompt."""

PLEASANT = frozenset((
    "amazing", "beautiful", "best", "calm", "clear", "delicious", "enjoy", "enjoyable",
    "excellent", "exciting", "fantastic", "fun", "good", "great", "happy", "incredible", "joy",
    "love", "loved", "lovely", "magical", "memorable", "nice", "peaceful", "perfect", "pleasant",
    "relaxing", "serene", "special", "stunning", "sunny", "unforgettable", "warm", "wonderful",
))  # fmt: skip
"""Words of praise: a small lexicon of our own, to move a model by, not to measure sentiment."""


def lexicon(prompt: str, answer: str) -> float:
    """How many words of the answer are in `PLEASANT`.

    >>> lexicon("How was it?", "A calm, sunny day; calm!")
    3.0
    """
    words = (word.strip(".,;:!?\"'()*").lower() for word in answer.split())
    return float(sum(word in PLEASANT for word in words))


def length(prompt: str, answer: str) -> float:
    """How many characters the answer has.

    >>> length("?", "Yes.")
    4.0
    """
    return float(len(answer))


def found(path: str) -> Reward:
    """The function of an import path, such as "jdiv.lm.rewards.lexicon".

    >>> found("jdiv.lm.rewards.length")("?", "No.")
    3.0
    """
    module, _, name = path.rpartition(".")
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"there is no function {path}: {error}") from error
    if not callable(function):
        raise ValueError(f"{path} is no function (prompt, answer) -> number")
    return function
