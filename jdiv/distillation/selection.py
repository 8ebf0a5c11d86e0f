"""Which data to distil on: MiniPLM's difference of two models, DSIR's importance resampling."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from jdiv import checks, numerics
from jdiv.divergences import categorical
from jdiv.policy import selection
from jdiv.types import Indices, LogPolicy, PerSample, RandomKey, RowMask, Samples, Scalar

# -------------------------------------------------------------------------------------- MiniPLM


def difference(teacher_log_probs: PerSample, ref_log_probs: PerSample) -> PerSample:
    """MiniPLM's score of an instance, `log p_teacher - log p_ref` with a small reference model.

    High where the teacher knows what a small model does not: neither what is easy for both nor what
    is noise to both. It is a difference of logarithms, not a ratio of them.
    Shapes: log-probabilities of whole instances, of one length or divided by their lengths, `[...]`
    twice to `[...]`. 0 where both are impossible.

    >>> teacher, small = jnp.log(jnp.array([0.5, 0.9])), jnp.log(jnp.array([0.25, 0.8]))
    >>> print(jnp.argmax(difference(teacher, small)))
    0

    Reference: Gu et al. 2025, MiniPLM (arXiv:2410.17215), and its released code.
    """
    teacher, ref = checks.alike(teacher_log_probs=teacher_log_probs, ref_log_probs=ref_log_probs)
    return numerics.sampled_log_ratio(teacher, ref)


def largest(scores: PerSample, *, share: Scalar = 0.5) -> Array:
    """Whether an instance is among the `share` of the largest scores: at least one is kept.

    Half of them in MiniPLM. Equals of the last are kept too; NaN is never kept.
    Shapes: any to the same.

    >>> largest(jnp.array([3.0, 1.0, 2.0, 0.0])).tolist()
    [True, False, True, False]

    Reference: Gu et al. 2025, MiniPLM (arXiv:2410.17215), and its released code.
    """
    scores = checks.as_float("scores", scores)
    eligible = ~jnp.isnan(scores)
    count = selection.share_of(jnp.sum(eligible, dtype=jnp.int32), share, scores.dtype)
    return selection.among_largest(scores, eligible, count)


# ----------------------------------------------------------------------------------------- DSIR


def _mixed(x: Array) -> Array:
    """32 bits, each of which depends on all (the end of MurmurHash3)."""
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):
        x = (x ^ (x >> jnp.uint32(shift))) * jnp.uint32(factor)
    return x


def hashed_counts(tokens: Indices, mask: RowMask, buckets: int) -> Array:
    """Counts of hashed words and pairs of neighbours in each sequence.

    Shapes: tokens `[..., T]`, mask `[..., T]` of those that count, to `[..., buckets]`. A pair
    counts if both of it do. 10,000 buckets in the paper; different n-grams may share one.
    The hash is one of integers that runs on any device, in place of the paper's SHA-256 of words.

    >>> print(hashed_counts(jnp.array([5, 5, 7]), jnp.array([1, 1, 0]), 50).sum())
    3.0

    Reference: Xie et al. 2023, Data Selection for Language Models via Importance Resampling
    (arXiv:2302.03169).
    """
    tokens, mask = checks.as_integers("tokens", tokens), checks.as_mask("mask", mask)
    checks.same_shape(tokens=tokens, mask=mask)
    buckets = checks.whole("buckets", buckets, 1, 2**31 - 1, "at least 1")
    words = _mixed(tokens.astype(jnp.uint32) + jnp.uint32(1))
    pairs = _mixed(words[..., :-1] * jnp.uint32(31) + words[..., 1:])
    hashed = jnp.concatenate([words, pairs], axis=-1) % jnp.uint32(buckets)
    counts = jnp.concatenate([mask, mask[..., :-1] & mask[..., 1:]], axis=-1)
    size = hashed.shape[-1]

    def of_row(places: Array, kept: Array) -> Array:
        return jnp.zeros(buckets, jnp.result_type(float)).at[places].add(kept)

    rows = jax.vmap(of_row)(
        hashed.reshape(-1, size).astype(jnp.int32),
        counts.reshape(-1, size).astype(jnp.result_type(float)),
    )
    return rows.reshape(*tokens.shape[:-1], buckets)


def bucket_law(counts: Samples, *, smoothing: Scalar = 0.0) -> LogPolicy:
    """The logarithm of the share of each bucket in a corpus, `(n_i + s)/(n + s buckets)`.

    Shapes: counts `[items, buckets]` to `[buckets]`. Without smoothing a bucket that does not occur
    is an exact zero, where the released code adds 1e-8 to every probability.

    >>> print(jnp.exp(bucket_law(jnp.array([[1.0, 0.0], [2.0, 1.0]]))))
    [0.75 0.25]

    Reference: Xie et al. 2023 (arXiv:2302.03169).
    """
    counts = checks.as_float("counts", counts)
    smoothing = jnp.asarray(checks.not_negative("smoothing", smoothing), counts.dtype)
    total = jnp.sum(counts, axis=0) + smoothing
    return jnp.log(total) - jnp.log(jnp.sum(total))


def log_importance(counts: Samples, log_target: LogPolicy, ref_logits: LogPolicy) -> PerSample:
    """DSIR's weight, `log target(item)/raw(item) = counts . (log target - log raw)` of buckets.

    -inf for an item with a bucket that the target does not have. The raw law has to be that of a
    corpus which holds the items: what it gives no mass counts for nothing.
    Shapes: `[items, buckets]` and `[buckets]` twice to `[items]`.

    >>> laws = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.25, 0.75]))
    >>> print(jnp.exp(log_importance(jnp.array([[2.0, 0.0]]), *laws)))
    [4.]

    Reference: Xie et al. 2023 (arXiv:2302.03169).
    """
    counts = checks.as_float("counts", counts)
    log_target, log_raw = checks.alike(log_target=log_target, ref_logits=ref_logits)
    rate = jnp.where(log_raw == -jnp.inf, 0, log_target - log_raw).astype(counts.dtype)[None]
    return jnp.sum(jnp.where(counts > 0, counts * jnp.where(counts > 0, rate, 0), 0), axis=-1)


def resample(log_weights: PerSample, k: int, key: RandomKey) -> Indices:
    """k different items, drawn one after the other in proportion to their weights.

    The k largest of `log weight + Gumbel noise`, in the order in which they are drawn. Without the
    noise these would be the k largest weights: the corpus of those is narrower than the target.
    Shapes: `[items]` to `[k]`. Items of weight 0 are last.

    >>> print(resample(jnp.array([-jnp.inf, 0.0]), 1, jax.random.key(0)))
    [1]

    Reference: Xie et al. 2023 (arXiv:2302.03169); Vieira 2014 for the noise.
    """
    log_weights = checks.as_float("log_weights", log_weights)
    size = log_weights.shape[0]
    k = checks.whole("k", k, 1, size, f"from 1 to {size}, the items")
    noise = jax.random.gumbel(key, log_weights.shape, log_weights.dtype)
    return jax.lax.top_k(log_weights + noise, k)[1]


def kl_reduction(logits: LogPolicy, ref_logits: LogPolicy, log_target: LogPolicy) -> Array:
    """`KL(target‖raw) - KL(target‖selected)`: how much nearer to the target a selection is.

    Shapes: laws over buckets of the selected data, the raw data and the target, `[..., buckets]`
    each, to `[...]`. Minus infinity if the selection has no mass where the target has.

    >>> target, raw = jnp.log(jnp.array([0.9, 0.1])), jnp.log(jnp.array([0.5, 0.5]))
    >>> print(f"{kl_reduction(target, raw, target):.4f}")
    0.3681

    Reference: Xie et al. 2023 (arXiv:2302.03169).
    """
    kl = categorical.TABLE["kl"]
    return kl(log_target, ref_logits) - kl(log_target, logits)
