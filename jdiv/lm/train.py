"""Training of transformers: losses of a dozen lines, and one step that makes an update of any.

A loss is `(model, batch) -> (loss, metrics)`, a mean over tokens or sequences and a dictionary
with the mean's "weight", the number of what it is a mean over. So a step that adds up parts, of a
large batch or of several devices, by their weights is the step of all of them at once, however
unevenly the tokens lie. Reference log-probabilities, rewards and advantages come with the batch:
they are constants, and a group of answers may be divided among parts.

Log-probabilities go through `divergences.vocabulary`: no logits of all tokens exist. A sequence's
first token has none, `[batch, tokens]` gives `[batch, tokens - 1]`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.typing import ArrayLike, DTypeLike

from jdiv import checks, parallel
from jdiv.alignment import f_dpg as dpg
from jdiv.alignment import margins, preference, unpaired
from jdiv.alignment.margins import Margin
from jdiv.divergences import generators, vocabulary
from jdiv.divergences.generator import Generator
from jdiv.estimators import monte_carlo
from jdiv.lm import scoring
from jdiv.lm.config import Config
from jdiv.lm.model import Transformer
from jdiv.policy import clipped, kl_terms, tokens
from jdiv.types import PerRow

Metrics = dict[str, Array]
"""Means of a batch by name, "weight" among them: over how many tokens or sequences they are."""

Loss = Callable[[Transformer, Any], tuple[Array, Metrics]]
"""What `update` makes smaller: bind the options of a loss with `functools.partial`."""


Surrogate = Callable[[Array, Array, Array, Array], tokens.TokenLoss[clipped.ClipDiagnostics]]
"""`(log_probs, old_log_probs, advantages, mask)` to a loss per token, as in `policy.clipped`."""


class Text(NamedTuple):
    """Sequences, one or several a row.

    Fields:
        tokens: `[batch, tokens]`
        mask: `[batch, tokens]` True for the tokens of answers: they are learned. Never for the
            first of a row or segment, which nothing foretells.
        positions: `[batch, tokens]` or None, as the model takes them.
        segments: `[batch, tokens]` or None.
    """

    tokens: Array
    mask: Array
    positions: Array | None = None
    segments: Array | None = None


class Pairs(NamedTuple):
    """Answers of which one is preferred, with the reference's log-probabilities of both.

    Fields:
        chosen: Prompt and preferred answer, one a row.
        rejected: The other answer after the same prompt.
        ref_chosen: `[batch]` sums over the answer's tokens.
        ref_rejected: `[batch]`
    """

    chosen: Text
    rejected: Text
    ref_chosen: Array
    ref_rejected: Array


class Rollouts(NamedTuple):
    """Answers that a policy sampled, with what was found out about them.

    Fields:
        text: Prompt and answer, one a row.
        old_log_probs: `[batch, tokens - 1]` of the policy that sampled them.
        ref_log_probs: `[batch, tokens - 1]` of the reference.
        advantages: `[batch]`, or `[batch, tokens - 1]` for each token.
    """

    text: Text
    old_log_probs: Array
    ref_log_probs: Array
    advantages: Array


class Targets(NamedTuple):
    """Answers with the probability that a target gives them.

    Fields:
        text: Prompt and answer, one a row.
        log_proposal: `[batch]` log-probabilities of whole answers by what sampled them.
        log_target: `[batch]` by the target, normalized, such as `log ref + r/beta - log Z`.
        baseline: `[batch]` taken off the pseudo-reward; must not depend on the row's own answer.
    """

    text: Text
    log_proposal: Array
    log_target: Array
    baseline: Array


class Judged(NamedTuple):
    """Answers that are desirable or not, each by itself.

    Fields:
        text: Prompt and answer, one a row.
        ref_log_probs: `[batch]` log-probabilities of whole answers by the reference.
        desirable: `[batch]` True for good ones.
        kl: `[batch]` from where on an answer counts as a gain, the same for all.
    """

    text: Text
    ref_log_probs: Array
    desirable: Array
    kl: Array


# -------------------------------------------------------------------------------------- the losses


def log_probs(
    model: Transformer, batch: Text, *, tile: int | None = None, remember: bool = True
) -> Array:
    """`log p(token | those before it)`, 0 where masked. Shapes: to `[batch, tokens - 1]`."""
    laws = scoring.next_tokens(
        model, batch.tokens, batch.positions, batch.segments, remember=remember
    )
    return vocabulary.log_probs(laws, batch.tokens[:, 1:], mask=batch.mask[:, 1:], tile=tile)


def _weight(mask: Array, like: Array) -> Array:
    """How many places count."""
    return jnp.sum(mask, dtype=jnp.int32).astype(like.dtype)


def sft(model: Transformer, batch: Text, *, tile: int | None = None) -> tuple[Array, Metrics]:
    """Supervised fine-tuning: the mean of `-log p` over all tokens of answers."""
    log_p, mask = log_probs(model, batch, tile=tile), batch.mask[:, 1:]
    return tokens.token_mean(preference.sft(log_p), mask), {"weight": _weight(mask, log_p)}


def f_dpo(
    model: Transformer,
    batch: Pairs,
    *,
    beta: ArrayLike,
    generator: Generator = generators.kl(),  # noqa: B008
    margin: Margin = margins.logistic,
    tile: int | None = None,
) -> tuple[Array, Metrics]:
    """The DPO family, `alignment.preference.f_dpo`: the mean over pairs; with KL it is DPO.

    The metric "accuracy" is the share of pairs that the implicit rewards order as the data do.
    """
    chosen = log_probs(model, batch.chosen, tile=tile).sum(-1)
    rejected = log_probs(model, batch.rejected, tile=tile).sum(-1)
    pair = chosen, rejected, batch.ref_chosen, batch.ref_rejected
    loss = preference.f_dpo(*pair, beta=beta, generator=generator, margin=margin)
    right = (chosen - batch.ref_chosen > rejected - batch.ref_rejected).astype(loss.dtype)
    return loss.mean(), {"weight": jnp.asarray(loss.size, loss.dtype), "accuracy": right.mean()}


def kto(
    model: Transformer, batch: Judged, *, beta: ArrayLike, tile: int | None = None
) -> tuple[Array, Metrics]:
    """`alignment.unpaired.kto`, the mean over answers."""
    log_p = log_probs(model, batch.text, tile=tile).sum(-1)
    loss = unpaired.kto(log_p, batch.ref_log_probs, batch.desirable, batch.kl, beta=beta)
    return loss.mean(), {"weight": jnp.asarray(loss.size, loss.dtype)}


def grpo(
    model: Transformer,
    batch: Rollouts,
    *,
    surrogate: Surrogate = clipped.ppo_clip,
    average: Callable[[Array, Array], Array] = tokens.token_mean,
    coefficient: PerRow = 0.0,
    estimator: kl_terms.Estimator = monte_carlo.kl_k3,
    log_weight: Callable[[Array], Array] | None = None,
    tile: int | None = None,
) -> tuple[Array, Metrics]:
    """The GRPO family: a surrogate of the ratio, plus `coefficient` times a KL to the reference.

    The surrogate is a function of `policy.clipped` or like one of them, its bounds bound with
    `functools.partial`; advantages are those of `policy.advantages`, of a whole group. The average
    is over all tokens, or over sequences: `tokens.sequence_mean`, `tokens.constant_mean` with a
    length, or one's own. With `log_weight`, of `kl_terms`, the KL is weighted by the ratio.

    ==========  ====================  ==============================================
    GRPO        `clipped.ppo_clip`    `tokens.sequence_mean`
    DAPO        `clipped.ppo_clip`    `tokens.token_mean`, the default
    Dr. GRPO    `clipped.ppo_clip`    `tokens.constant_mean`, longest answer allowed
    two-sided   `clipped.dual_clip`   any
    GSPO        `clipped.gspo`        `tokens.sequence_mean`
    CISPO       `clipped.cispo`       `tokens.token_mean`
    ==========  ====================  ==============================================

    The metrics are the share of clipped tokens and the estimate of KL per token.
    """
    mask, old, ref = batch.text.mask[:, 1:], batch.old_log_probs, batch.ref_log_probs
    log_p = log_probs(model, batch.text, tile=tile)
    found = surrogate(log_p, old, batch.advantages, mask)
    weighting = {} if log_weight is None else {"old_log_probs": old, "log_weight": log_weight}
    penalty = kl_terms.kl_penalty(log_p, ref, mask, estimator=estimator, **weighting)
    loss = average(found.loss + coefficient * penalty, mask)
    by_token = average is tokens.token_mean
    weight = _weight(mask if by_token else jnp.any(mask, axis=-1), log_p)
    mean = tokens.token_mean if by_token else tokens.sequence_mean
    share = mean(found.aux.clipped.astype(log_p.dtype), mask)
    kl = jax.lax.stop_gradient(mean(penalty, mask))
    return loss, {"weight": weight, "clipped": share, "kl": kl}


def kl_rl(
    model: Transformer,
    batch: Rollouts,
    *,
    coefficient: PerRow,
    penalty: str = "rewards",
    estimator: kl_terms.Estimator = monte_carlo.kl_k1,
    tile: int | None = None,
) -> tuple[Array, Metrics]:
    """REINFORCE on `E[r] - coefficient KL(pi‖ref)`, for answers of the model itself.

    Advantages `[batch]` are rewards less a baseline. The KL is in the "rewards", and what is still
    to come of it is a token's return; or in the loss, of "tokens" weighted by their prefixes, or of
    whole "sequences". With `kl_k1` the gradient is exact on average for all three, since the
    weights are differentiated (`policy.kl_terms`); averages are over sequences, of sums.
    """
    checks.known("penalty", penalty, ("rewards", "tokens", "sequences"))
    mask, ref, gain = batch.text.mask[:, 1:], batch.ref_log_probs, batch.advantages
    log_p = log_probs(model, batch.text, tile=tile)
    old = jax.lax.stop_gradient(log_p)
    extra = jnp.zeros_like(log_p)
    if penalty == "rewards":
        rewards = kl_terms.kl_rewards(
            log_p, ref, gain, mask, coefficient=coefficient, estimator=estimator
        )
        gain = tokens.to_go(rewards, mask)
    elif penalty == "tokens":
        extra = kl_terms.kl_penalty(
            log_p, ref, mask, estimator=estimator, old_log_probs=old,
            log_weight=kl_terms.prefix_log_ratio,
        )  # fmt: skip
    loss = clipped.reinforce(log_p, gain, mask).loss + coefficient * extra
    loss = tokens.constant_mean(loss, mask, 1.0)
    answered = jnp.any(mask, axis=-1)
    if penalty == "sequences":
        whole = kl_terms.sequence_kl_penalty(
            log_p, ref, mask, estimator=estimator, old_log_probs=old
        )
        loss = loss + coefficient * tokens.masked_mean(whole, answered)
    kl = tokens.constant_mean(old - ref, mask, 1.0)
    return loss, {"weight": _weight(answered, log_p), "kl": kl}


def f_dpg(
    model: Transformer, batch: Targets, *, generator: Generator, tile: int | None = None
) -> tuple[Array, Metrics]:
    """`alignment.f_dpg.dpg_loss`, the mean over answers: on average its gradient is D(pi, p)'s."""
    log_p = log_probs(model, batch.text, tile=tile).sum(-1)
    loss = dpg.dpg_loss(
        log_p, batch.log_target, batch.log_proposal, generator=generator, baseline=batch.baseline
    )
    return loss.mean(), {"weight": jnp.asarray(loss.size, loss.dtype)}


def distill(
    model: Transformer,
    batch: Text,
    other: Transformer,
    *,
    generator: Generator,
    tile: int | None = None,
) -> tuple[Array, Metrics]:
    """`D(model, teacher)` of the laws of each token of answers, the mean over all of them.

    On-policy if the model sampled the answers; the sampling is not differentiated.
    """
    place = batch.tokens, batch.positions, batch.segments
    student = scoring.next_tokens(model, *place, remember=True)
    teacher = jax.lax.stop_gradient(scoring.next_tokens(other, *place))
    mask = batch.mask[:, 1:]
    d = vocabulary.divergence(generator, student, teacher, mask=mask, tile=tile)
    return tokens.token_mean(d, mask), {"weight": _weight(mask, d)}


# ---------------------------------------------------------------------------------------- the step


class State(NamedTuple):
    """What training changes: arrays alone, to be saved and to go on from.

    Fields:
        tensors: The model's by name, or those that `whole` makes it of, in single precision
            whatever it is computed in.
        optimizer: Optax's state.
        count: `[]` updates that were made.
    """

    tensors: dict[str, Array]
    optimizer: Any
    count: Array


def begin(
    model: Transformer | Mapping[str, Array], optimizer: optax.GradientTransformation
) -> State:
    """The state before the first update of this model, or of tensors such as `lora.begin` makes.

    The tensors are copies, of which half precision is widened: an update may be given the state's
    memory.
    """
    wide = lambda x: jnp.array(x, checks.wide(x.dtype))
    given = model.tensors if isinstance(model, Transformer) else model
    tensors = {name: wide(x[...]) for name, x in given.items()}
    return State(tensors, optimizer.init(tensors), jnp.zeros((), jnp.int32))


def saved(state: State) -> dict[str, np.ndarray]:
    """The arrays of a state by name, for `checkpoints.save`."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(state)
    return {_name(path): np.asarray(x) for path, x in leaves}


def restored(state: State, arrays: Mapping[str, np.ndarray]) -> State:
    """A state of the same kind with these arrays, from `checkpoints.restore`."""
    leaves, tree = jax.tree_util.tree_flatten_with_path(state)
    wanted = {_name(path): (x.shape, x.dtype) for path, x in leaves}
    found = {name: (x.shape, x.dtype) for name, x in arrays.items()}
    if wanted != found:
        names = sorted(n for n in {*wanted, *found} if wanted.get(n) != found.get(n))
        raise ValueError(f"arrays are not of this state: {', '.join(names)}")
    return tree.unflatten([jnp.array(arrays[_name(path)]) for path, _ in leaves])


def _name(path: tuple) -> str:
    """The place of an array in the state."""
    return jax.tree_util.keystr(path, simple=True, separator=".")


def update(
    state: State,
    batch: Any,
    loss: Loss,
    *,
    config: Config,
    optimizer: optax.GradientTransformation,
    whole: Callable[[dict[str, Array]], Transformer] | None = None,
    count: int = 1,
    dtype: DTypeLike | None = None,
    axis_name: str | None = None,
) -> tuple[State, Metrics]:
    """The state after one update, and the metrics of the batch, "loss" among them.

    The model has the state's tensors, or is what `whole` makes of them: `lora.merged` adds them to
    another. The batch is computed in `count` parts, one after the other, in `dtype`; on several
    devices each has its own. Weighted by what they are means over, the result is that of the whole
    batch. Made for jit with the state donated: state and result have the same shapes.
    """
    made = whole or functools.partial(Transformer, config)

    def weighted(tensors: dict[str, Array], part: Any) -> tuple[Array, Metrics]:
        parameters = {name: x[...] for name, x in made(tensors).tensors.items()}
        model = Transformer(config, {k: x.astype(dtype or x.dtype) for k, x in parameters.items()})
        mean, metrics = loss(model, part)
        weight = jax.lax.stop_gradient(metrics["weight"])
        sums = {name: weight * x for name, x in metrics.items() if name != "weight"}
        return weight * mean, sums | {"loss": weight * mean, "weight": weight}

    def add(total: Any, part: Any) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, jax.grad(weighted, has_aux=True)(tensors, part)), None

    tensors = state.tensors
    parts = jax.tree.map(lambda x: _divided(x, count), batch)
    one = jax.tree.map(lambda x: x[0], parts)
    shapes = jax.eval_shape(jax.grad(weighted, has_aux=True), tensors, one)
    nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    grads, sums = parallel.sum_over(jax.lax.scan(add, nothing, parts)[0], axis_name)
    weight = jnp.maximum(sums["weight"], 1)  # counts: if nothing does, all sums are 0
    grads = jax.tree.map(lambda x: x / weight.astype(x.dtype), grads)
    metrics = {k: x / weight for k, x in sums.items() if k != "weight"}
    with jax.numpy_dtype_promotion("standard"):  # optax mixes counts with floats
        changes, memory = optimizer.update(grads, state.optimizer, tensors)
    after = State(optax.apply_updates(tensors, changes), memory, state.count + 1)
    return after, metrics | {"weight": sums["weight"]}


def _divided(x: Array, count: int) -> Array:
    """`[batch, ...]` as `[count, batch / count, ...]`."""
    if x.shape[0] % count:
        raise ValueError(f"batch must be a multiple of count, got {x.shape[0]} for {count}")
    return x.reshape(count, -1, *x.shape[1:])
