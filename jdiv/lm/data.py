"""What models are trained on: a grammar of known entropy, sums, files of lines, packed rows.

The grammar is simple: a rule writes one token and then derives at most two nonterminals, and no two
rules of a nonterminal write the same token. So a sequence has one derivation, its probability is
the product of its rules', and the entropy of the language is the solution of linear equations.
"""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jdiv import checks
from jdiv.lm.train import Text
from jdiv.types import Indices, LogProbs, RandomKey

# ------------------------------------------------------------------------------------- the grammar


class Grammar(NamedTuple):
    """A probabilistic grammar; nonterminal 0 is the start, and the end has the last token's id.

    Fields:
        rules: `[nonterminals, tokens - 1]` probability of the rule that writes this token.
        children: `[nonterminals, tokens - 1, 2]` what it derives then, the first one first; -1 for
            none, of two behind the one that is there.
    """

    rules: np.ndarray
    children: np.ndarray


def brackets(share: float = 0.3) -> Grammar:
    """A sequence is `a`, or `b` and a sequence, or a sequence in brackets of one of two kinds.

    Tokens 0 to 6: `(`, `)`, `[`, `]`, `a`, `b`, the end. Brackets have the probability `share`,
    both kinds the same, and so have the letters.

    >>> grammar = brackets()
    >>> print(f"{entropy(grammar):.4f} {mean_length(grammar):.4f}")
    3.7257 4.7143
    """
    share = float(checks.share("share", share))
    rules, children = np.zeros((3, 6)), np.full((3, 6, 2), -1)
    rules[0] = [share / 2, 0, share / 2, 0, (1 - share) / 2, (1 - share) / 2]
    children[0, 0], children[0, 2], children[0, 5, 0] = (0, 1), (0, 2), 0
    rules[1, 1] = rules[2, 3] = 1
    return Grammar(rules, children)


def _expected(grammar: Grammar, of_rule: np.ndarray) -> float:
    """The expected sum, over the rules of a derivation, of what each nonterminal has on average."""
    kinds = np.arange(len(grammar.rules))
    derived = (grammar.children[..., None] == kinds).sum(axis=2)
    means = np.einsum("nt,ntm->nm", grammar.rules, derived)
    if np.abs(np.linalg.eigvals(means)).max() >= 1:
        raise ValueError("grammar must have sequences of finite expected length")
    return float(np.linalg.solve(np.eye(len(kinds)) - means, of_rule)[0])


def entropy(grammar: Grammar) -> float:
    """The entropy of a sequence, in nats: H = h + M H, M how often what derives what."""
    p = grammar.rules
    return _expected(grammar, -(p * np.log(np.where(p > 0, p, 1))).sum(axis=1))


def mean_length(grammar: Grammar) -> float:
    """The expected number of tokens of a sequence, the end included."""
    return 1 + _expected(grammar, np.ones(len(grammar.rules)))


def _law(grammar: Grammar, stack: Array, height: Array) -> Array:
    """Log-probabilities of the next token: of the nonterminal on top, or the end."""
    top = stack[jnp.maximum(height - 1, 0)]
    rules = jnp.log(jnp.asarray(grammar.rules, jnp.float32))[top]
    done = height == 0
    of_end = jnp.where(done, 0.0, -jnp.inf).astype(rules.dtype)
    return jnp.append(jnp.where(done, -jnp.inf, rules), of_end)


def _after(grammar: Grammar, stack: Array, height: Array, token: Array) -> tuple[Array, Array]:
    """The stack when the nonterminal on top has written this token."""
    below = jnp.maximum(height - 1, 0)
    children = jnp.asarray(grammar.children, jnp.int32)
    known = (token >= 0) & (token < children.shape[1]) & (height > 0)
    first, second = children[stack[below], jnp.where(known, token, 0)]
    put = lambda stack, at, x: jnp.where(x >= 0, stack.at[at].set(x), stack)
    stack = put(stack, below, second)
    height = below + (second >= 0).astype(below.dtype)
    return put(stack, height, first), jnp.where(
        known, height + (first >= 0).astype(height.dtype), 0
    )


def _start(steps: int) -> tuple[Array, Array]:
    """A stack with the start alone, and room for what so many tokens can derive."""
    return jnp.zeros(steps + 2, jnp.int32), jnp.ones((), jnp.int32)


def sample(grammar: Grammar, key: RandomKey, *, count: int, max_tokens: int) -> Text:
    """Sequences of the grammar with their ends; longer ones are cut and have none.

    Shapes: `[count, max_tokens]`; all tokens but the first count in training, see `train.Text`.
    """

    def step(state, key):
        stack, height, running = state
        token = jax.random.categorical(key, _law(grammar, stack, height)).astype(jnp.int32)
        ended = height == 0
        out = jnp.where(running, token, 0), running
        return (*_after(grammar, stack, height, token), running & ~ended), out

    def one(key):
        start = *_start(max_tokens), jnp.ones((), bool)
        return jax.lax.scan(step, start, jax.random.split(key, max_tokens))[1]

    tokens, mask = jax.vmap(one)(jax.random.split(key, count))
    return Text(tokens, mask)


def log_probs(grammar: Grammar, tokens: Indices) -> LogProbs:
    """`log p(token | those before it)`, -inf from where no sequence goes on so.

    Shapes: `[batch, tokens]` to the same; what is behind an end has to be masked.
    """

    def step(state, token):
        log_p = _law(grammar, *state)[token]
        return _after(grammar, *state, token), log_p

    tokens = checks.as_integers("tokens", tokens).astype(jnp.int32)
    return jax.vmap(lambda row: jax.lax.scan(step, _start(len(row)), row)[1])(tokens)


# ------------------------------------------------------------------------------------ arithmetic


class Sum(NamedTuple):
    """A task and its solution, step by step.

    Fields:
        prompt: Such as `58+67=`.
        answer: The digits from the right with what is carried, and after `;` the sum:
            `8+7+0=15,5+6+1=12;125`.
    """

    prompt: str
    answer: str


def sums(seed: int, *, count: int, length: int = 2, base: int = 10) -> list[Sum]:
    """So many sums of two numbers with up to `length` digits of a base, with a scratchpad.

    >>> sums(0, count=1)
    [Sum(prompt='85+63=', answer='5+3+0=8,8+6+0=14;148')]
    >>> sums(0, count=1, base=3)
    [Sum(prompt='21+12=', answer='1+2+0=10,2+1+1=11;110')]
    """
    checks.whole("base", base, 2, 10, "from 2 to 10")
    numbers = np.random.default_rng(seed).integers(0, base**length, (count, 2))
    written = lambda n: np.base_repr(n, base)
    return [
        Sum(f"{written(a)}+{written(b)}=", _scratchpad(a, b, length, base))
        for a, b in numbers.tolist()
    ]


def _scratchpad(a: int, b: int, length: int, base: int) -> str:
    """The addition of each place, and the sum."""
    steps, carry = [], 0
    for place in range(length):
        x, y = (n // base**place % base for n in (a, b))
        steps.append(f"{x}+{y}+{carry}={np.base_repr(x + y + carry, base)}")
        carry = (x + y + carry) // base
    return f"{','.join(steps)};{np.base_repr(a + b, base)}"


# ------------------------------------------------------------------------------- files of lines


def read_prompts(path: str | os.PathLike) -> list[dict[str, Any]]:
    """Lines `{"prompt": ...}`; what else a line has is kept."""
    return _read(path, {"prompt": str})


def read_preferences(path: str | os.PathLike) -> list[dict[str, Any]]:
    """Lines `{"prompt": ..., "chosen": ..., "rejected": ...}`."""
    return _read(path, {"prompt": str, "chosen": str, "rejected": str})


def read_answers(path: str | os.PathLike) -> list[dict[str, Any]]:
    """Lines `{"prompt": ..., "answer": ..., "desirable": true or false}`."""
    return _read(path, {"prompt": str, "answer": str, "desirable": bool})


def _read(path: str | os.PathLike, wanted: Mapping[str, type]) -> list[dict[str, Any]]:
    """One record a line, empty lines left out; all lines that are none are refused together."""
    records, bad = [], []
    for number, line in enumerate(pathlib.Path(path).read_bytes().splitlines(), 1):
        if line.strip():
            record, reason = _record(line, wanted)
            records.append(record)
            bad += [f"line {number}: {reason}"] if reason else []
    if not records:
        bad.append("there is no line")
    if bad:
        raise ValueError(f"{path} cannot be read:\n" + "\n".join(bad))
    return records


def _record(line: bytes, wanted: Mapping[str, type]) -> tuple[Any, str | None]:
    """What a line says, and why it cannot be used, or None."""
    try:
        record = json.loads(line)
    except ValueError as error:  # also of bytes that are no text
        return None, f"not JSON ({error})"
    if not isinstance(record, dict):
        return None, f"not an object but {type(record).__name__}"
    wrong = [
        f"{name} is missing" if name not in record else f"{name} must be {kind.__name__}"
        for name, kind in wanted.items()
        if not isinstance(record.get(name), kind)
    ]
    return record, ", ".join(wrong) or None


# --------------------------------------------------------------------------------------- packing


def pack(sequences: Sequence[tuple[Sequence[int], Sequence[int]]], *, length: int) -> Text:
    """Prompts and answers, as ids, in as few rows as go: each in the first row with room.

    Each is a segment of its own, numbered from 0, with positions from 0; what fills a row up is
    segment -1. The answer's tokens are True in the mask, but for the first of a segment.
    Sequences that are longer than a row are refused, by number.

    >>> text = pack([([5], [6, 7]), ([8], [9]), ([1, 2], [3])], length=5)
    >>> print(text.tokens, text.segments)
    [[5 6 7 8 9]
     [1 2 3 0 0]] [[ 0  0  0  1  1]
     [ 0  0  0 -1 -1]]
    """
    checks.whole("length", length, 1, 2**31 - 1, "at least 1")
    sizes = [len(prompt) + len(answer) for prompt, answer in sequences]
    long = [f"{number} ({size})" for number, size in enumerate(sizes) if size > length]
    if long:
        raise ValueError(f"sequences must have at most {length} tokens, got {', '.join(long)}")
    rows: list[list[int]] = []
    for number, size in enumerate(sizes):
        room = (row for row in rows if sum(sizes[i] for i in row) + size <= length)
        row = next(room, None)
        rows.append([number]) if row is None else row.append(number)
    shape = len(rows), length
    tokens, positions, mask = np.zeros(shape, np.int32), np.zeros(shape, np.int32), np.zeros(shape)
    segments = np.full(shape, -1, np.int32)
    for place, row in enumerate(rows):
        start = 0
        for segment, number in enumerate(row):
            prompt, answer = sequences[number]
            here = np.s_[place, start : start + sizes[number]]
            tokens[here] = [*prompt, *answer]
            positions[here], segments[here] = np.arange(sizes[number]), segment
            mask[here] = np.arange(sizes[number]) >= max(len(prompt), 1)
            start += sizes[number]
    return Text(tokens, mask.astype(bool), positions, segments)
