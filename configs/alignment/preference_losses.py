"""Margin losses: what each fits, and when a squared loss regularizes like KL.

    python -m experiments.run --config=configs/alignment/preference_losses.py

Seconds on two cores. Tang et al. 2024 (GPO): slope and curvature at 0 of six margins, and the
margin they fit to a pair that wins with probability .8 or .6. With pairs of the policy itself the
gradient of rho^2/2 is exactly twice that of KL(pi‖ref); off-policy, in the counter-example, its
cosine with it is -.497, and descending it raises the KL.
"""

from ml_collections import ConfigDict

from configs import defaults


def get_config(scale: str = "quick") -> ConfigDict:
    """The counter-example: logits of the policy, the reference, and who draws the pairs."""
    config = defaults.get_config("alignment/preference_losses", scale)
    config.logits = (3.334742, 4.191343, -3.558059)
    config.reference = (0.600942, 0.067602, 0.331455)
    config.pairs = (0.6435, 0.000044, 0.356457)
    # Whose link makes the log-ratios of rho: that of kl is the logarithm.
    config.generator = "kl"
    # Share of pairs whose labels are turned round before margins are fitted.
    config.flipped = 0.0
    # Gradient descent of rho^2/2.
    config.step_size = 0.02
    config.steps = {"smoke": 500, "quick": 20_000, "full": 100_000}[scale]
    config.record_every = 5
    more = (0.51, 0.55, 0.65, 0.7, 0.75, 0.85, 0.9, 0.95, 0.98)
    config.sweep = ConfigDict({"share": (0.6, 0.8) if scale == "smoke" else (0.6, 0.8, *more)})
    return config
