"""Rewards of texts: plain Python functions `(prompt, answer) -> number`, and how one is found.

Anyone's own function of this form serves as well: `found("my_module.my_reward")`.
"""

from __future__ import annotations

import functools
import importlib
import json
import pathlib
from collections.abc import Callable

from jdiv.lm import architectures

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


@functools.lru_cache(maxsize=1)
def _of_model(folder: str) -> Reward:
    """The reward of a model in a folder, which is read once."""
    from jdiv.lm import reward_model, storage

    return reward_model.reward(*storage.load(folder))


def _judged(folder: str, prompt: str, answer: str) -> float:
    """By the model in a folder; before the first answer no device is asked for."""
    return _of_model(folder)(prompt, answer)


def found(path: str) -> Reward:
    """The function of an import path, such as "jdiv.lm.rewards.lexicon", or a folder's model.

    >>> found("jdiv.lm.rewards.length")("?", "No.")
    3.0
    """
    folder = pathlib.Path(path)
    if (folder / "config.json").is_file():
        given = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        there = (folder / "tokenizer.json").is_file()
        if not there or architectures.read(given).scores != 1:
            raise ValueError(f"{path} must be of a reward model: with a tokenizer, and one score")
        return functools.partial(_judged, path)
    module, _, name = path.rpartition(".")
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"there is no function {path}: {error}") from error
    if not callable(function):
        raise ValueError(f"{path} is no function (prompt, answer) -> number")
    return function
