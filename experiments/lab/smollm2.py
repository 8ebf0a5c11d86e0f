"""What SmolLM2-135M-Instruct says, kept in a small file: laws of the next token, and of a grammar.

    python -m experiments.lab.smollm2

writes the file anew from the model. Experiments on laws alone need not load the model for them, and
have the real ones at smoke scale too. `tests/lm/test_smollm2.py` compares the file with the model.
"""

from __future__ import annotations

import functools
import pathlib
from typing import TYPE_CHECKING, NamedTuple

import jax
import numpy as np

from jdiv.decoding import Automaton, automata

if TYPE_CHECKING:
    from jdiv.lm import Tokenizer, Transformer

FILE = pathlib.Path(__file__).with_suffix(".npz")
TEXTS = (
    "The harbour was quiet in the early morning, and the fishing boats went out one after the other"
    " before the sun had come up",
    "Water boils at one hundred degrees at the level of the sea, but high up in the mountains it"
    " boils earlier, and eggs take much longer",
    "def mean(values):\n    total = 0\n    for value in values:\n        total += value\n    return"
    " total / len(values)",
)
PLACES = 8
"""In each text, evenly apart, the last one at its end."""
PROMPT = (
    "Is ice cold and is fire cold? In JSON:\n[true, false]\n"
    "Is snow white and is grass red? In JSON:\n"
)
END = "\n"
SYMBOLS = " [],truefalsn"
LONGEST = 6
"""Tokens of a list, the end included."""


class Table(NamedTuple):
    """Laws of the next token after every beginning of a list, of the tokens that occur in one.

    Fields:
        words: `[n]` the tokens as text; the last but one, "", are all others together, the last is
            the end.
        log_p: `[beginnings + 1, n]`, first after the prompt, last after the end, where it stays.
        children: `[beginnings + 1, n]` the row after each token, 0 where no list begins so.
    """

    words: np.ndarray
    log_p: np.ndarray
    children: np.ndarray


@functools.cache
def stored() -> dict[str, np.ndarray]:
    """What is in the file."""
    with np.load(FILE) as kept:
        return dict(kept)


def laws() -> np.ndarray:
    """`[TEXTS * PLACES, vocabulary]` log-probabilities in falling order, rounded to half precision.

    What is a function of a law and not of its tokens' names is a function of these.
    """
    log_p = stored()["laws"].astype(float)
    return log_p - np.log(np.sum(np.exp(log_p), axis=1, keepdims=True))


def table() -> Table:
    """Laws along all lists of up to LONGEST tokens after PROMPT."""
    return Table(*(stored()[name] for name in Table._fields))


def json_lists() -> Automaton:
    """JSON's lists of `true`, `false` and `null` over SYMBOLS; before list and value one space."""
    moves = {
        "": {" ": " ", "[": "["}, " ": {"[": "["}, "[": {"]": "]"}, "]": {}, ",": {" ": ", "},
        ", ": {}, "value": {",": ",", "]": "]"},
    }  # fmt: skip
    for word in ("true", "false", "null"):
        for before in ("[", ",", ", "):
            moves[before][word[0]] = word[1:]
        for i in range(1, len(word)):  # a state is what is left of the word
            moves[word[i:]] = {word[i]: word[i + 1 :] or "value"}
    states = list(moves)
    successors = np.full((len(states), len(SYMBOLS)), -1, np.int32)
    for state, following in moves.items():
        for symbol, after in following.items():
            successors[states.index(state), SYMBOLS.index(symbol)] = states.index(after)
    return Automaton(successors, np.array([state == "]" for state in states]))


def in_symbols(words: list[str]) -> np.ndarray:
    """`[words, longest]` the place of each character in SYMBOLS, as many as these for another one.

    -1 behind the last, for `automata.lifted`.
    """
    known = [[SYMBOLS.find(x) % (len(SYMBOLS) + 1) for x in word] for word in words]
    longest = max(map(len, known))
    return np.array([[*row, *[-1] * (longest - len(row))] for row in known], np.int32)


# ---------------------------------------------------------------------------------- from the model


def write() -> None:
    """Loads the model and writes the file."""
    from jdiv import lm

    model, tokenizer = lm.load("smollm2")
    kept = {"laws": sorted_laws(model, tokenizer), **along(model, tokenizer)._asdict()}
    np.savez_compressed(FILE, **kept)


def sorted_laws(model: Transformer, tokenizer: Tokenizer) -> np.ndarray:
    """`[TEXTS * PLACES, vocabulary]` in half precision."""
    found = []
    for text in TEXTS:
        log_p = following(model, [tokenizer.encode(text)])[0]
        places = np.linspace(0, len(log_p) - 1, PLACES + 1).round().astype(int)[1:]
        found.append(-np.sort(-log_p[places], axis=1))
    return np.concatenate(found).astype(np.float16)


def following(model: Transformer, rows: list[list[int]]) -> np.ndarray:
    """`[rows, length, vocabulary]` log-probabilities of what comes after each token."""
    from jdiv import lm

    logits = jax.jit(lm.logits)(model, np.array(rows, np.int32))
    return np.asarray(jax.nn.log_softmax(logits, axis=-1))


def vocabulary(tokenizer: Tokenizer) -> list[str]:
    """Every token as text, as far as characters of lists go."""
    size = tokenizer.inner.get_vocab_size()
    return [tokenizer.inner.id_to_token(i).replace("\u0120", " ") for i in range(size)]


def lifted(tokenizer: Tokenizer) -> Automaton:
    """The automaton of lists over the whole vocabulary."""
    return automata.lifted(json_lists(), in_symbols(vocabulary(tokenizer)))


def along(model: Transformer, tokenizer: Tokenizer) -> Table:
    """The laws after all beginnings, by length, then in the order of the tokens."""
    successors, accepting = (np.asarray(x) for x in lifted(tokenizer))
    ways = np.asarray(automata.reachable(Automaton(successors, accepting), horizon=LONGEST - 1))
    within = np.cumsum(ways, axis=0) > 0
    kept = np.flatnonzero((successors >= 0).any(axis=0))
    rows, states = [()], [0]
    children, log_p = [], []
    for row, state in zip(rows, states, strict=False):  # both grow
        left = LONGEST - 1 - len(row)  # before the end
        after = successors[state, kept]
        open_ = (after >= 0) & within[max(left - 1, 0), after] & (left > 0)
        children.append(np.where(open_, len(rows) + np.cumsum(open_) - 1, 0))
        rows += [(*row, int(token)) for token in kept[open_]]
        states += after[open_].tolist()
    prompt = tokenizer.encode(PROMPT)
    for length in range(LONGEST):
        of_length = [[*prompt, *row] for row in rows if len(row) == length]
        log_p.append(following(model, of_length)[:, -1])
    own = np.concatenate(log_p).astype(float)
    end = tokenizer.encode(END)[0]
    some = [*kept, end]
    rest = np.log1p(-np.sum(np.exp(own[:, some]), axis=1))
    own = np.column_stack([own[:, kept], rest, own[:, end]])
    at_end = np.where(np.arange(len(kept) + 2) == len(kept) + 1, 0, -np.inf)
    last = len(rows)
    children = np.column_stack([np.array(children), np.zeros(last), np.full(last, last)])
    words = [vocabulary(tokenizer)[i] for i in kept]
    return Table(
        np.array([*words, "", END]),
        np.vstack([own, at_end]).astype(np.float32),
        np.vstack([children, np.full(len(kept) + 2, last)]).astype(np.int32),
    )


if __name__ == "__main__":
    write()
