"""DPO-Kernels on five answers: what its kernels and divergences do to what is fitted.

    python -m experiments.run --config=configs/alignment/kernels.py

A few seconds. Without a margin, as released, the kernel has no gradient and the loss no minimum,
only at a large coefficient a local one; with a margin the odds are divided by the kernel. Renyi at
its default order, 1.01, is KL but for .01 Var(log p/q)/2; Bhattacharyya is half of Renyi at 1/2.
"""

from ml_collections import ConfigDict

from configs import defaults


def get_config(scale: str = "quick") -> ConfigDict:
    """Five answers and all pairs of them, with Bradley-Terry preferences and embeddings."""
    config = defaults.get_config("alignment/kernels", scale)
    config.reference = (0.05, 0.15, 0.2, 0.25, 0.35)
    config.reward = (1.0, 0.2, -0.5, 0.3, -1.0)
    # Embeddings of the answers on a line; that of the prompt is 0.5.
    config.embeddings = (0.4, 1.0, 0.1, 0.8, 0.6)
    # Of the tilts that divergences are compared at.
    config.betas = (0.3, 0.5, 1.0, 3.0)
    config.iterations = {"smoke": 60}.get(scale, 100)
    config.sweep = ConfigDict(
        {
            "coefficient": (0.0, 1.0, 1.5, 2.0, 3.0, 10.0),
            # At 1 the margin is logistic; at 0 there is none, as released.
            "logistic": (0.0, 1.0),
        }
    )
    return config
