"""H-DPO's alpha: below a threshold a Gaussian gives up one of two modes.

    python -m experiments.run --config=configs/alignment/h_dpo.py

Ten seconds on two cores. Modes at -2.5 and 2.5: mean 0 and deviation 2.316 at alpha = .8, mean
2.479 and deviation .865 at .7. On four answers the optimum's entropy is .8803, 1.1653, 1.3191 at
alpha = .5, 1, 2. With alpha at the cross-entropy instead nothing of that is so.
"""

from ml_collections import ConfigDict

from configs import defaults


def get_config(scale: str = "quick") -> ConfigDict:
    """Two unit normals at -s and s, the separation; four answers for the policy."""
    config = defaults.get_config("alignment/h_dpo", scale)
    config.optimized = scale != "smoke"
    config.reference, config.rewards = (0.1, 0.2, 0.3, 0.4), (1.0, 0.0, 0.5, -0.5)
    config.beta = 0.5
    # Nodes of the quadrature; starts in each direction and iterations of Newton's method.
    config.nodes = 401
    config.starts = {"smoke": 3, "quick": 6, "full": 12}[scale]
    config.iterations = {"smoke": 15}.get(scale, 40)
    # The term of D_alpha that alpha multiplies: "entropy" or "cross-entropy".
    config.weighted = "entropy"
    few = (0.4, 0.5, 0.6, 0.7, 0.8, 1.0, 1.2, 2.0)
    fine = tuple(round(0.3 + 0.05 * i, 2) for i in range(21))
    config.sweep = ConfigDict(
        {
            "alpha": few if scale == "smoke" else (*fine, 1.5, 2.0),
            "separation": (2.0, 2.5, 3.0),
        }
    )
    return config
