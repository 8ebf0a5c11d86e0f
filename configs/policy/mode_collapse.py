"""Which divergence keeps several correct answers alive under reinforcement learning, and why.

    python -m experiments.run --config=configs/policy/mode_collapse.py

Half a minute on two cores. Ten answers, five of them correct, REINFORCE with a penalty
towards the initial policy. At beta = .01 reverse KL ends with one correct answer and forward KL
with 2.5; at .1 both keep all five, at .001 neither does. The optimum keeps all odds in every case:
what collapses is the dynamics.
"""

from ml_collections import ConfigDict

from configs import defaults
from jdiv import generators

FIRST = (
    ("kl", "exact"),
    ("reverse_kl", "exact"),
    ("kl", "policy"),
    ("reverse_kl", "reference"),
)


def get_config(scale: str = "quick") -> ConfigDict:
    """The setting of DMPO's and DPH-RL's claim in a bandit; `sampling` says where the penalty's
    expectation comes from."""
    config = defaults.get_config("policy/mode_collapse", scale)
    config.optimized = True
    config.ref_policy = (0.30, 0.10, 0.05, 0.03, 0.02, 0.1, 0.1, 0.1, 0.1, 0.1)
    config.correct = 5
    config.steps = 4000
    config.step_size = 0.5
    config.group = 8
    config.seeds = {"smoke": 24, "quick": 64, "full": 200}[scale]
    # An answer counts as kept from this probability on.
    config.alive = 0.01
    # Factor on beta in training: 0 takes the penalty away, -1 pushes away from the reference.
    config.beta_factor = 1.0
    # Of rows that are not taken with their own.
    config.parameters = ConfigDict({"tsallis": {"index": 1.5}})
    penalties = FIRST
    if scale != "smoke":
        penalties += (("kl", "reference"), ("reverse_kl", "policy"))
        others = [name for name in generators.TABLE if name not in ("kl", "reverse_kl")]
        penalties += tuple((name, "exact") for name in others)
    generator, sampling = zip(*penalties, strict=True)
    config.sweep = ConfigDict(
        {
            "penalty": tuple(f"{row}, {source}" for row, source in penalties),
            "generator": generator,
            "sampling": sampling,
            "beta": {"smoke": (0.0, 0.001, 0.01, 0.1)}.get(
                scale, (0.0, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
            ),
        }
    )
    config.zipped = ("penalty,generator,sampling",)
    return config
