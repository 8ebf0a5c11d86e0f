"""Q# on star graphs, and the value that A*-PO estimates from samples of the reference.

    python -m experiments.run --config=configs/alignment/value_based.py

Ten seconds on two cores. P(correct first node) = e^(1/beta) / (e^(1/beta) + d - 1): .731059 and
.999955 for two arms at beta = 1 and .1, whatever their length. A*-PO's on-policy gradient is
(.01556, -.04683, .03127) for every V; V* = .4116 and E[V_hat] = .3697 at accuracy .2. Its
regression reaches the tilt for any V from answers of the policy, with the wrong V from the
reference's it is .055 off; from single answers it ends .006, .015, .13 off with V*, V_hat and 0.
"""

from ml_collections import ConfigDict

from configs import defaults


def get_config(scale: str = "quick") -> ConfigDict:
    """Graphs by degree and length: those of the paper come last, which the table reads."""
    config = defaults.get_config("alignment/value_based", scale)
    shorter = {"smoke": ((2, 1), (3, 2), (5, 1))}.get(
        scale, tuple((degree, length) for degree in (2, 3, 5) for length in (1, 2, 4))
    )
    config.graphs = (*shorter, (2, 5), (5, 5), (3, 8))
    # Backups of the law of returns that are left out of as many as the longest arm needs.
    config.missing_backups = 0
    # A*-PO: policy, reference, rewards and beta of the gradient, values of V; beta of V_hat.
    config.policy, config.reference = (0.2, 0.5, 0.3), (0.5, 0.3, 0.2)
    config.rewards, config.loss_beta = (0.0, 1.0, 0.0), 0.1
    config.baselines = (0.0, 0.15, 0.3, 0.45, 0.6, 0.75, 0.9, 1.0)
    config.value_beta = 0.5
    config.samples = (2, 8, 32)
    config.accuracies = (0.01, 0.03, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.97)
    # A*-PO's regression on random prompts: steps with all answers, and with one each.
    config.prompts, config.fit_steps, config.single_steps = 32, 200, 500
    config.sweep = ConfigDict(
        {"beta": (1.0, 0.1) if scale == "smoke" else (3.0, 1.0, 0.5, 0.3, 0.2, 0.15, 0.1)}
    )
    return config
