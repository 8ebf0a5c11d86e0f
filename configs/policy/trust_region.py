"""Trust regions with exact gradients on the same processes: what each update keeps, its rate.

    python -m experiments.run --config=configs/policy/trust_region.py

Less than a minute on two cores. TRPO, PPO with clip and with penalty, MPO, REPS, natural gradient,
mirror descent, conservative iteration and the plain gradient. The duals of MPO and REPS meet their
radius to 1e-6 and TRPO stays within it; natural gradient is mirror descent in closed form, to
rounding; its suboptimality falls in the end by exp(-eta gap) an iteration, with growing steps at
least by g = .9; REPS comes nearer to the optimum by its radius in every step. A hundredth of the
first suboptimality is left after 9 to 12 iterations of TRPO, PPO-KL, MPO and REPS, 4 to 6 of PPO,
7 to 14 of natural gradient with step .3, and more than 200 of the plain gradient.
"""

from ml_collections import ConfigDict

from configs import defaults


def get_config(scale: str = "quick") -> ConfigDict:
    """Garnet(10, 4, 3), discount .9, rewards in [0, 1]."""
    config = defaults.get_config("policy/trust_region", scale)
    config.states, config.actions, config.branches = 10, 4, 3
    config.discount = 0.9
    config.iterations = {"smoke": 40, "quick": 200, "full": 1000}[scale]
    # Radius of MPO's second step; the size of the update is the radius of its first.
    config.m_radius = 0.03
    # Steps of conjugate gradients.
    config.conjugate = 20
    # Steps of Adam and their size within an iteration of PPO.
    config.inner, config.inner_step_size = 20, 0.1
    # Duals and line searches are solved. False: TRPO, MPO and REPS take the step of first or second
    # order as it is, and conservative iteration promises without its quadratic term.
    config.solved = True
    # By name: what kind of step, its size, the factor by which it grows in every iteration.
    variants = {
        "gradient": ("gradient", 1.0, 1.0),
        "natural": ("natural", 0.3, 1.0),
        "longer": ("natural", 3.0, 1.0),
        "mirror": ("mirror", 0.3 / (1 - config.discount), 1.0),
        "smaller": ("mirror", 0.3, 1.0),
        "growing": ("mirror", 1.0, 1 / config.discount),
        "hellinger": ("hellinger", 1.0, 1 / config.discount),
        "conservative": ("conservative", 1.0, 1.0),
        "trpo": ("trpo", 0.03, 1.0),
        "ppo_clip": ("ppo_clip", 0.2, 1.0),
        "ppo_kl": ("ppo_kl", 0.03, 1.0),
        "mpo": ("mpo", 0.1, 1.0),
        "reps": ("reps", 0.03, 1.0),
    }
    if scale == "smoke":
        left_out = ("gradient", "ppo_clip", "ppo_kl")
        variants = {name: rest for name, rest in variants.items() if name not in left_out}
    config.names = tuple(variants)
    config.kinds, config.sizes, config.growths = zip(*variants.values(), strict=True)
    config.sweep.seed = tuple(range({"smoke": 5, "quick": 8, "full": 32}[scale]))
    return config
