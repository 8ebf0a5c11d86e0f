"""Reinforcement learning with a KL penalty is inference: what is missing is a divergence.

    python -m experiments.run --config=configs/alignment/bayesian.py

Five seconds on two cores. Korbak et al. 2022: J* - J(pi) = beta KL(pi‖pi*) with J* = beta log Z, in
three answers .20783326 on both sides and J* = .63031558; without the penalty the policy collapses
onto one answer, with it the exact gradient flow ends at pi* = ref e^(r/beta)/Z.
"""

from ml_collections import ConfigDict

from configs import defaults


def get_config(scale: str = "quick") -> ConfigDict:
    """Three answers, random ones beside them, and flows with four penalties."""
    config = defaults.get_config("alignment/bayesian", scale)
    config.ref_policy = (0.5, 0.3, 0.2)
    config.policy = (0.2, 0.5, 0.3)
    config.reward = (0.3, 1.0, -0.2)
    config.beta = 0.4
    # The divergence of the policy from the reference that is the penalty.
    config.generator = "kl"
    # Random policies, references and rewards for the identity, of so many answers.
    config.cases, config.answers = {"smoke": 50, "quick": 1000, "full": 100_000}[scale], 6
    config.step_size = 1.0
    config.steps = {"smoke": 4000, "quick": 20_000, "full": 200_000}[scale]
    config.sweep = ConfigDict({"beta": (0.0, 0.1, 0.4, 1.0)})
    return config
