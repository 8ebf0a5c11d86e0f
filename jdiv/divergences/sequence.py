"""Divergences between laws of sequences, estimated from sequences that were sampled.

Sums of log-probabilities over tokens are log-probabilities of sequences, so the estimators of
`estimators.monte_carlo`, k1, k2, k3 and those of any row, are estimators of divergences between
sequences as they stand. Here is what knows more than that: at each prefix both laws of the next
token are known whole, and their divergence there needs no sample.

The chain rule, `KL(p, q) = E_p[sum of KL(p(.|prefix), q(.|prefix))]`, makes of it an estimator of
KL over sequences that is unbiased, never negative, and mostly far less noisy than the sum of
log-ratios: each term is the conditional expectation of a token's log-ratio (Rao-Blackwell). That
holds token by token and not of their sum. Where the log-ratios of a sequence make up for each other
the sum of expectations varies more: of a policy that is its reference given some event the plain
estimate is the same for all sequences, and exact. No other row has a chain rule: for those the sum
is what distillation minimizes, an average of divergences between tokens.
"""

from __future__ import annotations

import jax.numpy as jnp

from jdiv.divergences import vocabulary
from jdiv.divergences.generator import Generator
from jdiv.divergences.vocabulary import FromHidden
from jdiv.types import Logits, Mask, PerSequence


def rao_blackwellized(
    generator: Generator,
    p: FromHidden | Logits,
    q: FromHidden | Logits,
    *,
    mask: Mask | None = None,
    tile: int | None = None,
) -> PerSequence:
    """`sum over tokens of D(p(.|prefix), q(.|prefix))` of sequences that were drawn from p.

    Its mean over sequences is KL(p, q) between sequences for the row kl, exact and never negative
    for each of them; for other rows the expected sum of divergences between tokens. For reverse_kl
    it is that of KL(q, p) at the prefixes of p, which is not KL(q, p) between sequences: that one
    needs sequences of q, with the sides swapped. Its gradient by p with the sequences held fixed
    lacks what a token does to the divergence of later ones.
    Shapes: p and q `[..., tokens, V]`, logits or hidden states with a head, mask `[..., tokens]` to
    `[...]`; a token that is masked adds 0.

    >>> from jdiv import generators
    >>> p = jnp.log(jnp.array([[0.5, 0.5], [0.9, 0.1]]))
    >>> print(f"{rao_blackwellized(generators.kl(), p, jnp.zeros((2, 2))):.4f}")
    0.3681

    Reference: Amini, Vieira and Cotterell 2025 (arXiv:2504.10637), their Rao-Blackwellized
    estimator; that its variance is never more than the plain one's, as the abstract says, holds for
    single tokens alone.
    """
    return jnp.sum(vocabulary.divergence(generator, p, q, mask=mask, tile=tile), axis=-1)
