"""Cauchy-Schwarz divergence by gradient descent: 400 free points onto two modes.

    python -m experiments.run --config=configs/estimation/cauchy_schwarz.py

Half a minute on two cores. Reproduces the two-Gaussian example of CS-IB (Yu et al. 2024) with its
400 points, kernel and learning rate, for 1,200 steps of its 10,000 (`:full`). Expect D_CS to fall
from 10 through 0.16 (step 10) and 0.011 (100) to 0.0027 (1,000), 43% of the points on each mode,
and a reverse-KL Gaussian on one mode at log 2 = 0.693.
"""

from ml_collections import ConfigDict

from configs import defaults


def get_config(scale: str = "quick") -> ConfigDict:
    """Steps and seeds by scale; the number of points is that of the reference values."""
    config = defaults.get_config("estimation/cauchy_schwarz", scale)
    config.optimized = scale != "smoke"
    config.precision = "float32"
    config.bandwidth = 1.0
    config.learning_rate = 200.0
    # The Gaussian beside them: KL(q||p), or "forward".
    config.direction = "reverse"
    config.gaussian_learning_rate = 0.1
    config.grid = ConfigDict({"reach": 10.0, "lines": 81})
    # The estimator between N(0, 1) and N(gap, 1).
    config.gaps = (1.0, 3.0)
    config.bandwidths = {"smoke": (0.25, 1.0)}.get(scale, (0.25, 0.5, 1.0, 1.5, 2.0))
    config.samples = 1000
    config.repeats = {"smoke": 3, "quick": 16, "full": 64}[scale]
    config.training = {
        "smoke": defaults.training(110, record_every=1, checkpoint_every=110),
        "quick": defaults.training(1200, record_every=1, checkpoint_every=400),
        "full": defaults.training(10_000, record_every=1, checkpoint_every=1000),
    }[scale]
    config.lanes = 4
    config.sweep = ConfigDict({"seed": tuple(range({"smoke": 2, "quick": 4, "full": 16}[scale]))})
    return config
