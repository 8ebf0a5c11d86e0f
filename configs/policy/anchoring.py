"""Which anchor to the reference keeps pass@k, by its strength.

    python -m experiments.run --config=configs/policy/anchoring.py

Half a minute. One policy, six questions: without an anchor pass@1 rises from .25 to .75
and pass@16 falls from .97 to .76; at beta = .03 forward KL and RAPO keep it at 1 where reverse KL
and Jensen-Shannon lose it, at .3 reverse KL keeps it, too, and is the more accurate by .09. TPO
keeps it without a reference; the pull of anchored PO does not. STCR's released coefficient is at
most 4 % of an advantage.
"""

from ml_collections import ConfigDict

from configs import defaults


def get_config(scale: str = "quick") -> ConfigDict:
    """Six questions to one policy, four with the same right answer and two with another."""
    config = defaults.get_config("policy/anchoring", scale)
    # Strengths of the anchors.
    config.betas = (0.01, 0.03, 0.1, 0.3)
    # Step of the parameters of one question, as a share of that of the parameters of all.
    config.own_share = 0.15
    config.step_size = 6.0
    config.steps = 150
    # Answers for each question, also of the reference.
    config.group = 8
    # Of pass@k.
    config.k = 16
    config.sweep = ConfigDict(
        {
            # Factor on all anchors: 0 takes them away.
            "factor": (1.0,),
            # What is lost is lost by chance: by seeds pass@16 deviates by .15.
            "seed": tuple(range(64 if scale == "full" else 24)),
        }
    )
    return config
