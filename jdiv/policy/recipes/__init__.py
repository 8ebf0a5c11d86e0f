"""One paper, one file: exploration, anchors to a reference, shaping by difficulty and length.

A file whose docstring has a line `Reconstructed: ...` was built from an abstract, a README or notes
by others, and the line says what is inferred.

* `ace`: ACE, wrong answers weighted by the policy's confidence in them
* `aer`: adaptive entropy regularization, an entropy bonus by difficulty that holds a target
* `anchored_policy_optimization`: a push down on errors, a pull up of the reference's support
* `arlcp`: ARLCP, rewards less for length and for reflections
* `asymmetric_po`: right answers held by difficulty, long wrong ones pushed down harder
* `difficulty`: online difficulty filtering, and the KL from a policy to its optimum
* `dler`: DLER, truncation as the length penalty, advantages normalized over the batch
* `dmpo`: DMPO, a group fitted to a target made of its rewards
* `dot`: DOT, the longest answers to solved questions are cut off
* `dph_rl`: DPH-RL, a divergence to the initial policy on questions that it solves
* `entropy_mechanism`: KL-Cov, Clip-Cov, and the change of entropy that a step predicts
* `fg_expo`: FG-ExPO, weights of questions and a KL coefficient by accuracy
* `grpo_care`: GRPO-CARE, a bonus where the reasoning makes the answer likely
* `grpo_lambda`: GRPO-lambda, length penalties for the easiest groups only
* `gtpo`: GTPO, conflicting tokens and completions of high entropy
* `haepo`: HAEPO, weights of whole trajectories
* `ibro`: IBRO, entropy by advantage, from the information bottleneck
* `lp_reg`: Lp-Reg, protection of rare tokens
* `prioritized_kl`: a KL penalty where the reference is sure
* `rapo`: RAPO, forward KL to a reference that is reweighted by rewards
* `recap`: RECAP, replayed objectives weighted by progress and noise
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
    asymmetric_po,
    difficulty,
    dler,
    dmpo,
    dot,
    dph_rl,
    entropy_mechanism,
    fg_expo,
    grpo_care,
    grpo_lambda,
    gtpo,
    haepo,
    ibro,
    lp_reg,
    prioritized_kl,
    rapo,
    recap,
    safe,
    spae,
    tpo,
)

__all__ = [
    "ace",
    "aer",
    "anchored_policy_optimization",
    "arlcp",
    "asymmetric_po",
    "difficulty",
    "dler",
    "dmpo",
    "dot",
    "dph_rl",
    "entropy_mechanism",
    "fg_expo",
    "grpo_care",
    "grpo_lambda",
    "gtpo",
    "haepo",
    "ibro",
    "lp_reg",
    "prioritized_kl",
    "rapo",
    "recap",
    "safe",
    "spae",
    "tpo",
]
