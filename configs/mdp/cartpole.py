"""Heat maps of regularized deep Q-learning: weight of KL by temperature, against DQN.

    python -m experiments.run --config=configs/mdp/cartpole.py

A minute on two free cores. Vieillard et al. 2020 (arXiv:2003.14089) draw such maps
for CartPole, where regularized cells beat DQN over a wide range; their numbers and steps are
unknown to us. To expect: returns of moderately regularized cells within two standard errors of
DQN's or above, action gaps at weight 0.9 three to ten times those at weight 0.
"""

from ml_collections import ConfigDict

from configs import defaults


def get_config(scale: str = "quick") -> ConfigDict:
    """Optimizer, discount and floor of the released M-DQN for CartPole; buffer, batch and eight
    moves per gradient step to fit two cores. Exploration and target period were chosen for DQN
    alone: with 25 gradient steps between target updates, as released, its values diverged here.
    At the smoke scale more moves and target updates have to make up for fewer steps.
    """
    config = defaults.get_config("mdp/cartpole", scale)
    config.optimized = True
    config.precision = "float32"
    steps = {"smoke": 2000, "quick": 4000, "full": 60_000}[scale]
    config.training = defaults.training(
        steps, record_every=steps // 100, checkpoint_every=steps // 2
    )
    config.training.checkpoints = 1
    config.hidden = (64, 64)
    config.environments = {"smoke": 16, "quick": 8, "full": 8}[scale]
    config.capacity = {"smoke": 8192, "quick": 8192, "full": 49_152}[scale]
    config.batch = {"smoke": 32, "quick": 64, "full": 128}[scale]
    # Gradient steps.
    config.target_every = {"smoke": 50, "quick": 100, "full": 100}[scale]
    config.learning_rate = 1e-3
    config.adam_epsilon = 3.125e-4
    config.discount = 0.99
    config.exploration = 0.1
    config.floor = -10.0
    # Of Tsallis' entropy: sparsemax.
    config.index = 2.0
    # Factor on weight and temperature: 0 is DQN everywhere; weights above 1 freeze the policy.
    config.regularization = 1.0
    config.sweep = ConfigDict(
        {
            "environment": ("CartPole-v1", "Acrobot-v1"),
            "algorithm": ("munchausen", "tsallis"),
            "weight": (0.0, 0.5, 0.9),
            "temperature": (0.0, 0.03, 1.0),
            "seed": tuple(range({"smoke": 4, "quick": 5, "full": 10}[scale])),
        }
    )
    if scale == "full":
        config.sweep.weight = (0.0, 0.5, 0.9, 0.99, 1.0)
        config.sweep.temperature = (0.0, 0.01, 0.03, 0.1, 1.0)
    if scale == "smoke":
        # On CartPole a weight of .9 has not caught up with DQN after so few steps.
        config.sweep.environment = ("Acrobot-v1",)
        config.sweep.algorithm = ("munchausen",)
        config.sweep.weight = (0.0, 0.9)
        config.sweep.temperature = (0.0, 0.03, 1.0)
    return config
