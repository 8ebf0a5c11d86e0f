"""Which divergence keeps several correct answers alive under reinforcement learning, and why.

    python -m experiments.run --config=configs/policy/mode_collapse.py

A minute and a half on two cores. Ten answers, five of them correct, REINFORCE with a penalty
towards the initial policy. At beta = .01 reverse KL ends with one correct answer and forward KL
with 2.6; at .1 both keep all five, at .001 neither does. The optimum keeps all odds in every case:
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
    config.reference = (0.30, 0.10, 0.05, 0.03, 0.02, 0.1, 0.1, 0.1, 0.1, 0.1)
    config.correct = 5
    config.steps = 4000
    config.rate = 0.5
    config.group = 8
    # An answer counts as kept from this probability on.
    config.alive = 0.01
    # Of the penalty: -1 pushes away from the reference.
    config.sign = 1.0
    config.parameters = ConfigDict(
        {
            "jensen_shannon": {"weight": 0.5},
            "skew_kl": {"skew": 0.1},
            "alpha": {"alpha": 0.5},
            "tsallis": {"index": 1.5},
        }
    )
    config.claims = ConfigDict({"swapped": False, "odds": 3.0})
    variants = FIRST
    if scale != "smoke":
        variants += (("kl", "reference"), ("reverse_kl", "policy"))
        others = [name for name in generators.TABLE if name not in ("kl", "reverse_kl")]
        variants += tuple((name, "exact") for name in others)
    generator, sampling = zip(*variants, strict=True)
    config.sweep = ConfigDict(
        {
            "variant": tuple(range(len(variants))),
            "generator": generator,
            "sampling": sampling,
            "beta": {"smoke": (0.0, 0.001, 0.01, 0.1)}.get(
                scale, (0.0, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
            ),
            "seed": tuple(range({"smoke": 24, "quick": 64, "full": 200}[scale])),
        }
    )
    config.zipped = ("variant,generator,sampling",)
    config.lanes = 512
    return config
