"""Losses between a teacher and a student: their identities, and what pulls at a logit.

    python -m experiments.run --config=configs/distillation/losses.py

A quarter of a minute on two cores. Expect GKD to be b KL(T‖S) for a small b and KL(T‖S) itself at
0, decoupled KD to be forward KL with 1 - T_y for its second weight, Plackett and Luce's 720
rankings of six categories to have the probability 1, and ULD to be 0 for a student that has the
teacher's probabilities on the wrong tokens.
"""

from ml_collections import ConfigDict

from configs import defaults


def get_config(scale: str = "quick") -> ConfigDict:
    """Random pairs of six categories; curves of small teachers."""
    config = defaults.get_config("distillation/losses", scale)
    # Pairs of a seed, and their size in logits.
    config.cases = {"smoke": 8, "quick": 32, "full": 512}[scale]
    config.spread = 1.5
    config.sweep.seed = tuple(range({"smoke": 2, "quick": 8, "full": 64}[scale]))
    # 1 takes the student for the teacher and the teacher for the student.
    config.sweep.exchanged = (0.0,)
    # By what temperatures and weights that an identity asks for are multiplied.
    config.sweep.factor = (1.0,)
    return config
