"""Policy updates: exact on finite processes, and as losses of sampled tokens.

Losses of tokens are put together from `advantages`, a weight of the ratio (`clipped`, and alone in
`ratio_weights`), a KL term (`kl_terms`) and an average (`tokens`); `metrics` are reported beside
them. `trpo`, `ppo`, `dppo`, `mpo`, `reps` and `awr` bound the step, `regularized_gradient` has the
gradient of a regularized objective for every row of the table, `tabular` the exact updates, and
`recipes` one file for each further paper.
"""

from __future__ import annotations

from jdiv.policy import (
    advantages,
    awr,
    clipped,
    dppo,
    kl_terms,
    metrics,
    mpo,
    ppo,
    ratio_weights,
    recipes,
    regularized_gradient,
    reps,
    selection,
    tabular,
    tokens,
    trpo,
)
from jdiv.policy.tokens import TokenLoss

__all__ = [
    "TokenLoss",
    "advantages",
    "awr",
    "clipped",
    "dppo",
    "kl_terms",
    "metrics",
    "mpo",
    "ppo",
    "ratio_weights",
    "recipes",
    "regularized_gradient",
    "reps",
    "selection",
    "tabular",
    "tokens",
    "trpo",
]
