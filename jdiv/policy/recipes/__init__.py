"""One paper, one file: exploration, anchors to a reference, shaping by difficulty and length.

A file whose docstring has a line `Reconstructed: ...` was built from an abstract, a README or notes
by others, and the line says what is inferred.

* `ace`: ACE, wrong answers weighted by the policy's confidence in them
* `aer`: adaptive entropy regularization, an entropy bonus by difficulty that holds a target
* `anchored_policy_optimization`: a push down on errors, a pull up of the reference's support
* `arlcp`: ARLCP, rewards less for length and for reflections
* `difficulty`: online difficulty filtering, and the KL from a policy to its optimum
* `dler`: DLER, truncation as the length penalty, advantages normalized over the batch
* `dmpo`: DMPO, a target over a group in proportion to rewards
* `dph_rl`: DPH-RL, a divergence to the initial policy on questions that it solves
* `entropy_mechanism`: KL-Cov, Clip-Cov, and the change of entropy that a step predicts
* `fg_expo`: FG-ExPO, weights of questions and a KL coefficient by accuracy
* `grpo_lambda`: GRPO-lambda, length penalties for the easiest groups only
* `gtpo`: GTPO, conflicting tokens and completions of high entropy
* `haepo`: HAEPO, weights of whole trajectories
* `lp_reg`: Lp-Reg, protection of rare tokens
* `prioritized_kl`: a KL penalty where the reference is sure
* `rapo`: RAPO, forward KL to a reference that is reweighted by rewards
* `safe`: SAFE, a KL threshold moved by a controller
* `spae`: SPAE, credit by the progress of each step
* `tpo`: TPO, a group's policy tilted by utilities
"""

from __future__ import annotations

from jdiv.policy.recipes import (
    ace,
    aer,
    anchored_policy_optimization,
    arlcp,
    difficulty,
    dler,
    dmpo,
    dph_rl,
    entropy_mechanism,
    fg_expo,
    grpo_lambda,
    gtpo,
    haepo,
    lp_reg,
    prioritized_kl,
    rapo,
    safe,
    spae,
    tpo,
)

__all__ = [
    "ace",
    "aer",
    "anchored_policy_optimization",
    "arlcp",
    "difficulty",
    "dler",
    "dmpo",
    "dph_rl",
    "entropy_mechanism",
    "fg_expo",
    "grpo_lambda",
    "gtpo",
    "haepo",
    "lp_reg",
    "prioritized_kl",
    "rapo",
    "safe",
    "spae",
    "tpo",
]
