"""Anyone's loss against the exact gradient of what it is meant to minimize.

A loss takes log-probabilities of sampled tokens, and in expectation over the samples it has the
gradient of something: of KL(pi‖ref), of the other direction, of the length of an answer, of
nothing. Here the language model is a table (`jdiv.lm.tabular`), so that all batches that may be
sampled are enumerated and the expected gradient is a sum. It is compared with that of an objective,
and the answer is one sentence.

>>> from jdiv import generators
>>> def k1_as_a_loss(log_probs, batch):  # In NumPy; also in JAX, or in PyTorch.
...     k1 = log_probs - batch.ref_log_probs
...     return np.where(batch.mask, k1, 0).sum(axis=1).mean()
>>> print(gradient_report(k1_as_a_loss, generators.kl(), differentiate=by_differences).message)
No gradient: those of the samples cancel, as E[grad log pi] = 0.

A test of one's own loss is a line, and fails with that sentence:

>>> def k2_of_sequences(log_probs, batch):
...     log_ratio = np.where(batch.mask, log_probs - batch.ref_log_probs, 0).sum(axis=1)
...     return (log_ratio**2 / 2).mean()
>>> assert_gradient_of(k2_of_sequences, generators.kl(), differentiate=by_differences)

Behind the end of a sequence the arrays hold numbers that mean nothing, as those of a trainer do.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jdiv import checks
from jdiv.divergences.generator import Generator
from jdiv.lm import tabular

Gradient = np.ndarray
"""A derivative by the table of logits, `[prefixes, vocabulary]`."""

BEHIND = -1.3, -0.7, -2.1
"""What stands behind the end of a sequence: for the policy, the one that was sampled, reference."""


class Problem(NamedTuple):
    """A small language model, its reference, the policy that was sampled, and rewards.

    Fields:
        logits: `[prefixes, vocabulary]` of the policy.
        ref_logits: `[prefixes, vocabulary]` of the reference.
        old_logits: `[prefixes, vocabulary]` of the policy that the samples are of.
        rewards: `[sequences]` in the order of `jdiv.lm.tabular.enumerate_sequences`.
    """

    logits: np.ndarray
    ref_logits: np.ndarray
    old_logits: np.ndarray
    rewards: np.ndarray


class Batch(NamedTuple):
    """What a loss is given beside the log-probabilities that it is differentiated by.

    Fields:
        old_log_probs: `[size, T]` of the policy that was sampled.
        ref_log_probs: `[size, T]` of the reference.
        rewards: `[size]` one for each sequence.
        mask: `[size, T]` True where there is a token, the end included.
    """

    old_log_probs: Any
    ref_log_probs: Any
    rewards: Any
    mask: Any


Loss = Callable[[Any, Batch], Any]
"""A function of `(log_probs, batch)`, `[size, T]` and a `Batch`, to one number, to be minimized."""

Differentiate = Callable[[Loss, np.ndarray, Batch], np.ndarray]
"""A function of a loss, log-probabilities and batches, all with an axis of batches in front, to the
derivatives by the log-probabilities: `by_jax`, `by_differences` or what `by_torch` makes."""

Objective = Generator | Callable[[Problem], Gradient]
"""A row, for D(pi‖ref), or a function that has an objective's gradient at a problem."""


def draw(seed: int = 0, *, longest: int = 3, vocabulary: int = 3, lag: float = 0.0) -> Problem:
    """Standard normal logits and rewards; the samples are of the policy itself where lag is 0.

    `lag` is the standard deviation of the sampled policy's logits around the policy's.
    """
    checks.not_negative("lag", lag)
    rng = np.random.default_rng(seed)
    shape = tabular.table_shape(longest, vocabulary)
    logits, ref_logits, step = rng.standard_normal((3, *shape))
    rewards = rng.standard_normal(len(tabular.enumerate_sequences(shape).lengths))
    return Problem(logits, ref_logits, logits + lag * step, rewards)


# ------------------------------------------------------------------------------------ objectives


def kl(problem: Problem) -> Gradient:
    """The gradient of KL(pi‖ref) over sequences."""
    return _by_score(problem, _log_ratios(problem))


def reverse_kl(problem: Problem) -> Gradient:
    """The gradient of KL(ref‖pi) over sequences."""
    return -_by_score(problem, np.exp(-_log_ratios(problem)))


def negative_reward(problem: Problem) -> Gradient:
    """The gradient of -E[reward]: what a policy loss is to have."""
    return -_by_score(problem, problem.rewards)


def negative_reward_per_token(problem: Problem) -> Gradient:
    """The gradient of -E[reward/length]: what is left of it by an average over each sequence."""
    return -_by_score(problem, problem.rewards / _lengths(problem))


def length(problem: Problem) -> Gradient:
    """The gradient of E[length]."""
    return _by_score(problem, _lengths(problem))


def inverse_length(problem: Problem) -> Gradient:
    """The gradient of E[1/length]."""
    return _by_score(problem, 1 / _lengths(problem))


def negative_entropy(problem: Problem) -> Gradient:
    """The gradient of E[log pi] over sequences."""
    return _by_score(problem, _sums(problem, problem.logits))


def token_kl(problem: Problem) -> Gradient:
    """That of the sum of KL(pi‖ref) of each next token, with the prefixes held fixed."""
    policy, log_ratio = _softmax(problem.logits), _log_softmax(problem.logits)
    log_ratio = log_ratio - _log_softmax(problem.ref_logits)
    mean = (policy * log_ratio).sum(axis=1, keepdims=True)
    return _reach(problem) * policy * (log_ratio - mean)


def token_reverse_kl(problem: Problem) -> Gradient:
    """That of the sum of KL(ref‖pi) of each next token, with the prefixes held fixed."""
    return _reach(problem) * (_softmax(problem.logits) - _softmax(problem.ref_logits))


KNOWN: dict[str, Callable[[Problem], Gradient]] = {
    "KL(pi‖ref)": kl,
    "KL(ref‖pi)": reverse_kl,
    "KL(pi‖ref) of each next token, the tokens before held fixed": token_kl,
    "KL(ref‖pi) of each next token, the tokens before held fixed": token_reverse_kl,
    "-E[reward]": negative_reward,
    "-E[reward/length]": negative_reward_per_token,
    "E[length]": length,
    "E[1/length]": inverse_length,
    "-entropy": negative_entropy,
}
"""What a report compares with, beside what it is asked for."""


def _softmax(logits: np.ndarray) -> np.ndarray:
    return np.exp(_log_softmax(logits))


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    return logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)


def _sequences(problem: Problem) -> tabular.Sequences:
    return tabular.enumerate_sequences(problem.logits.shape)


def _lengths(problem: Problem) -> np.ndarray:
    return _sequences(problem).lengths.astype(float)


def _tokens(problem: Problem, logits: np.ndarray) -> np.ndarray:
    """Log-probabilities `[sequences, T]`, 0 behind the end."""
    every = _sequences(problem)
    return np.where(every.mask, _log_softmax(logits)[every.prefixes, every.tokens], 0)


def _sums(problem: Problem, logits: np.ndarray) -> np.ndarray:
    """Log-probabilities `[sequences]`."""
    return _tokens(problem, logits).sum(axis=1)


def _by_table(problem: Problem, weights: np.ndarray) -> Gradient:
    """`sum over sequences and tokens of weights times grad log pi_t`, weights `[sequences, T]`."""
    every = _sequences(problem)
    table = np.zeros(problem.logits.shape)
    np.add.at(table, (every.prefixes[every.mask], every.tokens[every.mask]), weights[every.mask])
    return table - table.sum(axis=1, keepdims=True) * _softmax(problem.logits)


def _by_score(problem: Problem, values: np.ndarray) -> Gradient:
    """`E[values times grad log pi]`, the gradient of E[values]; values `[sequences]`."""
    weights = np.exp(_sums(problem, problem.logits)) * values
    return _by_table(problem, np.broadcast_to(weights[:, None], _sequences(problem).tokens.shape))


def _of_row(generator: Generator, problem: Problem) -> Gradient:
    """`grad D(pi‖ref) = E[f'(pi/ref) grad log pi]`."""
    slopes = jax.jit(generator.slope)(jnp.asarray(_log_ratios(problem)))
    return _by_score(problem, np.asarray(slopes, float))


def _log_ratios(problem: Problem) -> np.ndarray:
    """`log pi/ref` of all sequences."""
    return _sums(problem, problem.logits) - _sums(problem, problem.ref_logits)


def _reach(problem: Problem) -> np.ndarray:
    """The probability `[prefixes, 1]` that a sequence comes by."""
    every, chance = _sequences(problem), np.exp(_sums(problem, problem.logits))
    visits = np.where(every.mask, chance[:, None], 0)
    reach = np.zeros(len(problem.logits))
    np.add.at(reach, every.prefixes[every.mask], visits[every.mask])
    return reach[:, None]


# ---------------------------------------------------------------------------------- derivatives


def by_jax(loss: Loss, log_probs: np.ndarray, batches: Batch) -> np.ndarray:
    """Derivatives of a loss in JAX, of all batches in one program, in JAX's default precision."""
    log_probs, batches = jax.tree.map(jnp.asarray, (log_probs, batches))
    return np.asarray(jax.jit(jax.vmap(jax.grad(loss)))(log_probs, batches), float)


def by_differences(loss: Loss, log_probs: np.ndarray, batches: Batch) -> np.ndarray:
    """Derivatives of a loss in NumPy, by central differences in float64.

    It has no stop_gradient: what is to be held fixed is computed from `batch.old_log_probs`.
    """
    found, step = np.zeros(log_probs.shape), 1e-5
    for number, at in enumerate(log_probs):
        batch = Batch(*(x[number] for x in batches))
        for place in np.ndindex(at.shape):
            moved = np.zeros(at.shape)
            moved[place] = step
            rise = loss(at + moved, batch) - loss(at - moved, batch)
            found[number][place] = rise / (2 * step)
    return found


def by_torch(torch: Any) -> Differentiate:
    """Derivatives of a loss in PyTorch: `differentiate=by_torch(torch)`, with the caller's module.

    A loss that does not depend on the log-probabilities, by `no_grad` or `detach`, has none.
    """

    def differentiate(loss: Loss, log_probs: np.ndarray, batches: Batch) -> np.ndarray:
        found = np.zeros(log_probs.shape)
        for number, at in enumerate(log_probs):
            batch = Batch(*(torch.tensor(x[number]) for x in batches))
            given = torch.tensor(at, requires_grad=True)
            value = loss(given, batch)
            if value.requires_grad:
                value.backward()
                found[number] = given.grad.numpy()
        return found

    return differentiate


# --------------------------------------------------------------------------------------- reports


class Match(NamedTuple):
    """How a gradient compares with that of an objective.

    Fields:
        name: The objective.
        cosine: Of the angle between both; NaN where one is 0.
        factor: What the objective's gradient is to be multiplied by to come nearest.
        error: The size of the difference, relative to the objective's gradient.
        aside: What no factor explains, relative to the gradient itself.
    """

    name: str
    cosine: float
    factor: float
    error: float
    aside: float


class GradientReport(NamedTuple):
    """What the expected gradient of a loss is.

    Fields:
        message: One sentence.
        asked: How it compares with the objective that was asked for.
        nearest: The known objective with the largest cosine in size, if there is a gradient.
        matches: The same with all that are known.
        gradient: `[prefixes, vocabulary]` itself, by the logits; 0 within the tolerance is 0.
        length: The derivative of E[length] along a step of size 1 down the gradient.
        leak: The largest derivative by what stands behind the end of a sequence, over that by a
            token.
    """

    message: str
    asked: Match
    nearest: Match
    matches: tuple[Match, ...]
    gradient: np.ndarray
    length: float
    leak: float


def gradient_report(
    loss: Loss,
    objective: Objective,
    *,
    problem: Problem | None = None,
    size: int = 2,
    differentiate: Differentiate = by_jax,
    tolerance: float = 1e-5,
) -> GradientReport:
    """The expected gradient of a loss over all batches of `size` samples, and what it is one of.

    The samples are independent, of `problem.old_logits`, and the gradient is the exact sum over all
    batches, each in its order: at 3 tokens 15 sequences, 225 batches of two. A batch of one does
    not see how a loss couples its samples, by a mean over tokens or a baseline. What agrees to the
    tolerance, relative to the gradient, counts as the same. The problem is that of `draw` where
    none is given.

    >>> def mean_over_each_sequence(log_probs, batch):
    ...     sums = np.where(batch.mask, log_probs, 0).sum(axis=1)
    ...     return -(batch.rewards * sums / batch.mask.sum(axis=1)).mean()
    >>> report = gradient_report(
    ...     mean_over_each_sequence, negative_reward, differentiate=by_differences
    ... )
    >>> print(report.message)
    The gradient of -E[reward/length]; not that of -E[reward], cosine 0.966.
    """
    problem = draw() if problem is None else problem
    if not all(np.isfinite(x).all() for x in problem):
        raise ValueError("problem must have finite logits and rewards")
    found = _expected(loss, problem, size, differentiate)
    name, exact = _asked(objective, problem)
    norm = float(np.linalg.norm(found.gradient))
    none = norm <= tolerance * max(found.largest, float(np.linalg.norm(exact)))
    # Rounding has no direction.
    gradient = np.zeros_like(exact) if none else found.gradient
    asked = _match(name, gradient, exact)
    matches = tuple(_match(key, gradient, f(problem)) for key, f in KNOWN.items())
    nearest = max(matches, key=lambda match: np.nan_to_num(abs(match.cosine)))
    change = -float(np.sum(gradient * length(problem))) / (norm or 1.0)
    message = _without(found, none, tolerance) or _relation(asked, matches, tolerance)
    if not message and not np.array_equal(problem.logits, problem.old_logits):
        own = problem._replace(old_logits=problem.logits)
        right = _expected(loss, own, size, differentiate).gradient
        message = _on_policy(_match(name, right, exact), asked, tolerance)
    message = message or (
        f"Not the gradient of {name}: cosine {asked.cosine:.3f}, relative error"
        f" {asked.error:.3f}. The nearest known is that of {nearest.name}, cosine"
        f" {nearest.cosine:.3f}."
    )
    return GradientReport(message, asked, nearest, matches, gradient, change, found.leak)


def assert_gradient_of(
    loss: Loss,
    objective: Objective,
    *,
    times: float = 1.0,
    problem: Problem | None = None,
    size: int = 2,
    differentiate: Differentiate = by_jax,
    tolerance: float = 1e-5,
) -> None:
    """Fails unless the expected gradient of the loss is `times` that of the objective.

    The error says what it is instead. The other parameters are those of `gradient_report`.

    >>> def policy_loss(log_probs, batch):
    ...     return -(batch.rewards * np.where(batch.mask, log_probs, 0).sum(axis=1)).mean()
    >>> assert_gradient_of(policy_loss, negative_reward, differentiate=by_differences)
    >>> off_policy = draw(lag=0.5)
    >>> try:
    ...     assert_gradient_of(
    ...         policy_loss, negative_reward, problem=off_policy, differentiate=by_differences
    ...     )
    ... except AssertionError as error:
    ...     print(str(error).split("; ")[0])
    The gradient of -E[reward] from samples of the policy itself
    """
    problem = draw() if problem is None else problem
    report = gradient_report(
        loss,
        objective,
        problem=problem,
        size=size,
        differentiate=differentiate,
        tolerance=tolerance,
    )
    exact = times * _asked(objective, problem)[1]
    off = np.linalg.norm(report.gradient - exact)
    if report.leak > tolerance or not off <= tolerance * max(
        float(np.linalg.norm(exact)), tolerance
    ):
        raise AssertionError(report.message)


class _Expected(NamedTuple):
    """The expected gradient, the largest derivative by a token, and the `leak` of the report."""

    gradient: np.ndarray
    largest: float
    leak: float


def _expected(loss: Loss, problem: Problem, size: int, differentiate: Differentiate) -> _Expected:
    """The expected gradient over all ordered batches of samples of the old policy."""
    checks.whole("size", size, 1, 4, "at least 1 and at most 4")
    every = _sequences(problem)
    picks = np.array(list(itertools.product(range(len(every.lengths)), repeat=size)))
    chance = np.exp(_sums(problem, problem.old_logits))[picks].prod(axis=1)
    log_probs, old, ref = (
        np.where(every.mask, _tokens(problem, logits), behind)[picks]
        for logits, behind in zip(
            (problem.logits, problem.old_logits, problem.ref_logits), BEHIND, strict=True
        )
    )
    mask = every.mask[picks]
    slopes = differentiate(loss, log_probs, Batch(old, ref, problem.rewards[picks], mask))
    if np.shape(slopes) != log_probs.shape or not np.isfinite(slopes).all():
        raise ValueError(
            f"derivatives of the loss must be finite and of shape {log_probs.shape}, got"
            f" {checks.short(slopes)}"
        )
    inside = np.where(mask, slopes, 0)
    weights = np.zeros(every.tokens.shape)
    np.add.at(weights, picks, chance[:, None, None] * inside)
    largest, behind = float(np.abs(inside).max()), float(np.abs(slopes - inside).max())
    return _Expected(_by_table(problem, weights), largest, behind / (largest or 1.0))


def _asked(objective: Objective, problem: Problem) -> tuple[str, np.ndarray]:
    """Name and gradient of what was asked for."""
    if isinstance(objective, Generator):
        names = {"kl": "KL(pi‖ref)", "reverse_kl": "KL(ref‖pi)"}
        name = names.get(objective.name, f"{objective.name}(pi‖ref)")
        return name, _of_row(objective, problem)
    if not callable(objective):
        raise TypeError(
            "objective must be a row, such as generators.kl(), or a function such as"
            f" testing.negative_reward, got {objective!r}"
        )
    names = {function: key for key, function in KNOWN.items()}
    name = names.get(objective, getattr(objective, "__name__", "the objective"))
    return name, np.asarray(objective(problem), float)


def _match(name: str, gradient: np.ndarray, exact: np.ndarray) -> Match:
    """Sizes are relative where there is what they are relative to."""
    norm, of, inner = (
        float(np.sqrt(np.sum(gradient**2))),
        float(np.sqrt(np.sum(exact**2))),
        float(np.sum(gradient * exact)),
    )
    factor = inner / of**2 if of else 0.0
    return Match(
        name,
        inner / (norm * of) if norm * of else np.nan,
        factor,
        float(np.linalg.norm(gradient - exact)) / (of or 1.0),
        float(np.linalg.norm(gradient - factor * exact)) / (norm or 1.0),
    )


# -------------------------------------------------------------------------------------- messages


def _without(found: _Expected, none: bool, tolerance: float) -> str:
    """What is wrong whatever the objective is; nothing if there is a gradient of tokens alone."""
    if found.leak > tolerance:
        return (
            "Derivatives by what stands behind the end of a sequence: the mask is missing or"
            " shifted."
        )
    if found.largest == 0:
        return "No gradient: the loss does not depend on the log-probabilities. Is one detached?"
    return "No gradient: those of the samples cancel, as E[grad log pi] = 0." if none else ""


def _said(match: Match, tolerance: float) -> str:
    """`The gradient of KL`, `0.5 times the gradient of KL`; nothing if it is no multiple."""
    if match.aside > tolerance:
        return ""
    if abs(match.factor - 1) <= tolerance:
        return f"The gradient of {match.name}"
    return f"{match.factor:.4g} times the gradient of {match.name}"


def _relation(asked: Match, matches: tuple[Match, ...], tolerance: float) -> str:
    """The objective, or a multiple of it or of another known one; nothing if there is none."""
    for match in (asked, *matches):
        said = _said(match, tolerance)
        if not said:
            continue
        said += ", with the wrong sign" if match.factor < 0 else ""
        if match.name == asked.name:
            return f"{said}."
        if {match.name, asked.name} == {"KL(pi‖ref)", "KL(ref‖pi)"}:
            said += ", the other direction"
        return f"{said}; not that of {asked.name}, cosine {asked.cosine:.3f}."
    return ""


def _on_policy(here: Match, asked: Match, tolerance: float) -> str:
    """Whether the loss is right where the samples are the policy's own; nothing if it is not."""
    said = _said(here, tolerance)
    if not said:
        return ""
    return (
        f"{said} from samples of the policy itself; from those of an older one not, cosine"
        f" {asked.cosine:.3f}: the ratio pi/old is missing, clipped, or not that of the whole"
        " sequence."
    )
