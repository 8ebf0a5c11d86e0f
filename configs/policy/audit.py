"""Published trainers' KL terms and policy losses as gradients: which objective is each one's?

    python -m experiments.run --config=configs/policy/audit.py

Seconds. The gradients of TRL, verl, OpenRLHF, polgrad and Tunix are those that `make audit` wrote
to benchmarks/results/audit.json; every one is compared with a loss of jdiv at the same point, whose
own gradient is compared with automatic derivatives of the objectives. To expect: a KL term in the
reward has the gradient of KL(pi‖ref); none in a loss has it.
"""

from ml_collections import ConfigDict

from configs import defaults


def get_config(scale: str = "quick") -> ConfigDict:
    """The same at every scale: the file is of one policy."""
    config = defaults.get_config("policy/audit", scale)
    # The draw of policy, reference and rewards; that of the file is 0.
    config.draw = 0
    # How far samples are from where they are said to be from: 0.
    config.drift = 0.0
    # Standard deviation of the sampled policy's logits around the policy's; the file has these.
    config.sweep = ConfigDict({"lag": (0.0, 0.5, 1.5)})
    return config
