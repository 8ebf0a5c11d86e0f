"""What is kept of SmolLM2: the grammar against a regular expression, tables against each other."""

import itertools
import json
import re

import numpy as np

from experiments.lab import smollm2
from jdiv.decoding import automata

WORD = "(true|false|null)"
LIST = re.compile(rf" ?\[({WORD}(, ?{WORD})*)?\]")


def accepted(text):
    successors, accepting = smollm2.json_lists()
    state = 0
    for symbol in text:
        state = successors[state, smollm2.SYMBOLS.index(symbol)] if state >= 0 else state
    return state >= 0 and bool(accepting[state])


def near_lists():
    """Lists of up to two values, and each with a character left out, doubled or exchanged."""
    values = [("true", "false", "null")] * 2
    whole = [[], *([x] for x in values[0]), *map(list, itertools.product(*values))]
    for start, separator in itertools.product(("[", " [", "[ "), (",", ", ", " ,")):
        for value in whole:
            text = f"{start}{separator.join(value)}]"
            yield text
            for i, x in enumerate(text):
                yield from (text[:i] + y + text[i + 1 :] for y in ("", x + x, "t", "]", " "))


def test_the_automaton_of_lists_is_the_regular_expression():
    verdicts = {text: accepted(text) for text in near_lists()}
    assert verdicts == {text: LIST.fullmatch(text) is not None for text in verdicts}
    assert 10 < sum(verdicts.values()) < len(verdicts) / 2


def test_symbols_of_tokens():
    found = smollm2.in_symbols([" [", "x", "", "true"])
    unknown = len(smollm2.SYMBOLS)
    assert found.tolist() == [[0, 1, -1, -1], [unknown, -1, -1, -1], [-1] * 4, [4, 5, 6, 7]]


def test_laws_are_sorted_and_sum_to_one():
    laws = smollm2.laws()
    assert laws.shape == (len(smollm2.TEXTS) * smollm2.PLACES, 49152)
    np.testing.assert_allclose(np.exp(laws).sum(1), 1, rtol=1e-12)
    assert np.all(np.diff(laws, axis=1) <= 0)


def test_the_table_has_every_beginning_of_a_list_once():
    words, log_p, children = smollm2.table()
    end = len(words) - 1
    np.testing.assert_allclose(np.exp(log_p.astype(float)).sum(1), 1, atol=1e-5)
    followed = children[:-1, :end]
    assert sorted(followed[followed > 0].tolist()) == list(range(1, len(log_p) - 1))
    assert set(children[:, end]) | set(children[-1]) == {len(log_p) - 1}
    lifted = automata.lifted(smollm2.json_lists(), smollm2.in_symbols(words[:end].tolist()))
    texts = [(0, "", 0)]
    for row, text, state in texts:  # grows
        assert bool(lifted.accepting[state]) == is_list(text)
        for token in np.flatnonzero(children[row, :end]):
            after = int(lifted.successors[state, token])
            assert after >= 0
            texts.append((children[row, token], text + words[token], after))
    assert len(texts) == len(log_p) - 1


def is_list(text):
    try:
        return isinstance(json.loads(text), list)
    except ValueError:
        return False
