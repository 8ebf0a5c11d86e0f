"""The grammar against an enumeration of its derivations; sums; refused lines; packed rows."""

import jax
import numpy as np
import pytest

from jdiv import lm
from jdiv.lm import data, train
from jdiv.lm.config import Config
from jdiv.lm.model import Transformer
from tests.checks import FAST

GRAMMAR = data.brackets(0.4)


def derivations(stack, left):
    """All sequences from these nonterminals within `left` tokens, with probabilities: by hand."""
    if not stack:
        yield (), 1.0
    elif left:
        top, *rest = stack
        for token, p in enumerate(GRAMMAR.rules[top]):
            more = [child for child in GRAMMAR.children[top, token] if child >= 0]
            for tokens, others in derivations([*more, *rest], left - 1) if p else ():
                yield (token, *tokens), p * others


def test_probabilities_are_those_of_all_derivations():
    found = list(derivations([0], 11))
    p = np.array([x for _, x in found])
    longest = 12
    tokens = np.full((len(found), longest), 6, np.int32)
    for row, (sequence, _) in zip(tokens, found, strict=True):
        row[: len(sequence)] = sequence
    behind = np.arange(longest)[None] > np.array([len(s) for s, _ in found])[:, None]
    log_p = np.where(behind, 0, jax.jit(lambda t: data.log_probs(GRAMMAR, t))(tokens)).sum(1)
    np.testing.assert_allclose(log_p, np.log(p), rtol=1e-5)
    assert len(set(map(tuple, tokens))) == len(found)
    # A wrong sequence has none: a bracket that closes nothing, another kind of bracket.
    wrong = np.array([[1, 6, 6], [0, 4, 3]], np.int32)
    assert (np.asarray(data.log_probs(GRAMMAR, wrong)).min(axis=1) == -np.inf).all()


def test_entropy_and_length_are_means_over_samples():
    sample = lambda key: data.sample(GRAMMAR, key, count=4000, max_tokens=200)
    text = jax.jit(sample, compiler_options=FAST)(jax.random.key(0))
    ended = (np.asarray(text.tokens) == 6).sum(1)
    assert (ended == 1).all()
    log_p = np.where(text.mask, jax.jit(lambda t: data.log_probs(GRAMMAR, t))(text.tokens), 0)
    for values, exact in (
        (-log_p.sum(1), data.entropy(GRAMMAR)),
        (np.asarray(text.mask).sum(1), data.mean_length(GRAMMAR)),
    ):
        assert abs(values.mean() - exact) < 4 * values.std() / len(values) ** 0.5


def test_grammars_without_end_are_refused():
    with pytest.raises(ValueError, match="finite expected length"):
        data.entropy(data.Grammar(np.ones((1, 1)), np.zeros((1, 1, 2), int)))


@pytest.mark.parametrize("base", [10, 3])
def test_sums_are_right_step_by_step(base):
    value_of = lambda text: sum(int(x, base) for x in text.split("+"))
    for prompt, answer in data.sums(3, count=50, length=3, base=base):
        steps, _, total = answer.partition(";")
        assert value_of(prompt[:-1]) == int(total, base)
        carry = "0"
        for step in steps.split(","):
            terms, _, value = step.partition("=")
            assert value_of(terms) == int(value, base)
            assert terms.split("+")[2] == carry
            carry = str(int(value, base) // base)
        assert int(carry) == int(total, base) // base**3


def test_bases_without_digits_are_refused():
    with pytest.raises(ValueError, match="base must be"):
        data.sums(0, count=1, base=11)


def test_bad_lines_are_refused_together_by_number(tmp_path):
    path = tmp_path / "pairs.jsonl"
    good = '{"prompt": "a", "chosen": "b", "rejected": "c"}'
    path.write_text(f"{good}\n\nno\n[1]\n" + '{"prompt": 1, "chosen": "b"}\n' + good)
    with pytest.raises(ValueError, match="cannot be read") as refused:
        data.read_preferences(path)
    said = str(refused.value).splitlines()[1:]
    assert [line[:7] for line in said] == ["line 3:", "line 4:", "line 5:"]
    assert "prompt must be str" in said[2]
    assert "rejected is missing" in said[2]
    path.write_text(good)
    assert data.read_preferences(path)[0]["rejected"] == "c"
    with pytest.raises(ValueError, match="desirable is missing"):
        data.read_answers(path)
    path.write_text("")
    with pytest.raises(ValueError, match="no line"):
        data.read_prompts(path)


def test_packed_sequences_do_not_see_each_other():
    """Log-probabilities of answers in packed rows are those of each sequence alone."""
    config = Config(vocabulary=9, width=8, layers=1, heads=1, key_heads=1, head_width=8, hidden=8)
    model = Transformer.random(config, jax.random.key(0))
    sequences = [([5], [6, 7]), ([], [8, 1, 2]), ([1, 2], [3]), ([4], [4])]
    packed = data.pack(sequences, length=6)
    assert packed.tokens.shape == (2, 6)
    alone = data.pack(sequences, length=3)
    scores = jax.jit(lambda text: train.log_probs(model, text))
    a, b = (np.sort(np.asarray(scores(text))[text.mask[:, 1:]]) for text in (packed, alone))
    np.testing.assert_allclose(a, b, atol=1e-5)
    with pytest.raises(ValueError, match=r"at most 2 tokens, got 0 \(3\), 1 \(3\), 2 \(3\)"):
        data.pack(sequences, length=2)
    assert lm.data is data
