"""SHRED: what a model memorized is demoted where its text is surprising, and the rest is kept.

The target of a token is the model's own law with the logit of what was memorized lowered by d, so
that its mass p becomes `p e^-d/(1 - p + p e^-d)` and the ratios of all others stay. The model is
distilled to it on the text that is to be forgotten alone; no other data is needed.

Reference: SHRED (Hu et al. 2026, arXiv:2605.07482).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jdiv import checks, divergences, numerics
from jdiv.divergences import sparse
from jdiv.types import Indices, Logits, LogPolicy, LogProbs, Mask, PerToken, RowMask, Scalar


def demoted_target(
    logits: Logits, tokens: Indices, *, demotion: Scalar, mask: RowMask | None = None
) -> LogPolicy:
    """`log_softmax(logits - demotion * onehot(token))`: the token's odds fall by `e^demotion`.

    Its mass p becomes `p e^-d/(1 - p + p e^-d)`, all other ratios are unchanged. Rows that the mask
    does not count keep their law. An infinite demotion excludes the token: refused where nothing
    else has mass, and NaN if that is traced.
    Shapes: logits `[..., vocabulary]`, tokens and mask `[...]`, to `[..., vocabulary]`.

    >>> p = jnp.log(jnp.array([0.6, 0.3, 0.1]))
    >>> target = jnp.exp(demoted_target(p, jnp.array(0), demotion=jnp.log(3.0)))
    >>> print([f"{x:.4f}" for x in target])
    ['0.3333', '0.5000', '0.1667']

    Reference: SHRED (Hu et al. 2026, arXiv:2605.07482).
    Reconstructed: that demoting is subtracting a constant; its size is not in the abstract.
    """
    logits, tokens = checks.as_float("logits", logits), checks.as_integers("tokens", tokens)
    if logits.shape[:-1] != tokens.shape:
        raise ValueError(
            f"tokens must be {tuple(logits.shape[:-1])}, one for each row of logits, got"
            f" {tuple(tokens.shape)}"
        )
    demotion = checks.in_range("demotion", demotion, 0, np.inf, "not negative", closed="both")
    memorized = jax.nn.one_hot(tokens, logits.shape[-1], dtype=bool)
    if mask is not None:
        mask = checks.as_mask("mask", mask)
        checks.same_shape(mask=mask, tokens=tokens)
        memorized &= mask[..., None]
    lowered = jnp.where(memorized, logits - jnp.asarray(demotion, logits.dtype), logits)
    if not isinstance(lowered, jax.core.Tracer):
        nothing = np.all(np.asarray(lowered) == -np.inf, axis=-1)
        if nothing.any():
            raise ValueError("demotion leaves no token of a row: all its mass was on the excluded")
    return numerics.log_softmax(lowered)


def forget_positions(log_probs: LogProbs, mask: Mask | None = None, *, share: Scalar) -> Mask:
    """The share of each sequence's tokens that have the least probability: the most information.

    At least one, else rounded down; ties with the last one are among them. Tokens that the mask
    does not count are none of them. Shapes: `[..., tokens]` to the same.

    >>> log_probs = jnp.log(jnp.array([0.9, 0.2, 0.95, 0.4]))
    >>> forget_positions(log_probs, share=0.5).tolist()
    [False, True, False, True]

    Reference: SHRED (Hu et al. 2026, arXiv:2605.07482), its first stage.
    Reconstructed: that the share is one of each text's tokens, and how it is rounded.
    """
    log_probs = checks.as_float("log_probs", log_probs)
    mask = jnp.ones(log_probs.shape, bool) if mask is None else checks.as_mask("mask", mask)
    checks.same_shape(log_probs=log_probs, mask=mask)
    share = jnp.asarray(checks.share("share", share), log_probs.dtype)
    total = jnp.sum(mask, axis=-1, keepdims=True).astype(log_probs.dtype)
    count = jnp.maximum(jnp.floor(share * total), 1).astype(jnp.int32)
    ordered = jnp.sort(jnp.where(mask, log_probs, jnp.inf), axis=-1)
    return mask & (log_probs <= jnp.take_along_axis(ordered, count - 1, axis=-1))


def shred(
    logits: Logits,
    ref_logits: Logits,
    tokens: Indices,
    mask: Mask | None = None,
    *,
    demotion: Scalar,
    share: Scalar,
    k: int,
) -> PerToken:
    """`KL(target‖model)` over the reference's k most probable tokens and the others as one.

    The target is the reference's law, demoted at its own `forget_positions`. The k tokens are those
    of the law before the demotion: among those of the target the demoted token may be missing, and
    a model that keeps its mass there would not be charged. No gradient reaches the reference.
    Shapes: logits `[..., tokens, vocabulary]`, tokens and mask `[..., tokens]`, to the latter;
    0 for tokens that do not count.

    >>> base = jnp.log(jnp.array([[0.9, 0.1], [0.4, 0.6]]))
    >>> text = jnp.array([0, 0])
    >>> print([f"{x:.4f}" for x in shred(base, base, text, demotion=1.0, share=0.5, k=2)])
    ['0.0000', '0.0945']

    Reference: SHRED (Hu et al. 2026, arXiv:2605.07482), its second stage.
    Reconstructed: whose k tokens they are, and that the others count as one.
    """
    logits = checks.as_float("logits", logits)
    ref_logits = checks.as_float("ref_logits", jax.lax.stop_gradient(ref_logits))
    checks.same_shape(logits=logits, ref_logits=ref_logits)
    mask = jnp.ones(tokens.shape, bool) if mask is None else checks.as_mask("mask", mask)
    log_ref = numerics.log_softmax(ref_logits)
    log_probs = jnp.take_along_axis(log_ref, tokens[..., None], axis=-1)[..., 0]
    forgotten = forget_positions(log_probs, mask, share=share)
    target = demoted_target(ref_logits, tokens, demotion=demotion, mask=forgotten)
    indices = sparse.top_k(log_ref, k).indices
    buckets: list[Array] = [sparse.coarsened(x, indices) for x in (target, logits)]
    return jnp.where(mask, divergences.kl(*buckets), 0)
