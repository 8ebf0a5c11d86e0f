"""IBRO (arXiv:2507.18391): entropy by advantage, from the information bottleneck of reasoning.

Reasoning r is to say much about the answer a and little about the question q, `min I(q; r) - beta
I(r; a)`; of its surrogate, a weight for each token's entropy, the advantage is the approximation.

Reconstructed: from the abstract and the published line of code `mean(entropy * advantage)`; its
sign, that a trainer's entropy bonus is maximized, is inferred.
"""

from __future__ import annotations

from jax import Array

from jdiv.policy.tokens import Advantages, masked
from jdiv.types import Mask, PerToken


def information_bottleneck(entropy: PerToken, advantages: Advantages, mask: Mask) -> Array:
    """`-A_t H_t`: more entropy where answers are right, less where they are wrong.

    To be averaged as a token loss is, and added to one with a small coefficient. The entropy is
    differentiated. In expectation over samples its gradient is `-sum over prefixes of P(prefix)
    E[A | prefix] grad H(prefix)`; groups of equal rewards have none, where a plain entropy bonus
    still acts. Shapes: `[..., T]`, advantages also `[...]`, to `[..., T]`.

    Reference: IBRO (arXiv:2507.18391).
    """
    entropy, _, (advantages,) = masked(entropy, mask, advantages=advantages)
    return -advantages * entropy
