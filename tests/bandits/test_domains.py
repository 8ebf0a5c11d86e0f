"""Wrong arguments of every function of the package, and NaN in what is right."""

import jax
import jax.numpy as jnp
import numpy as np

from jdiv import generators
from jdiv.bandits import adversarial, contextual, stochastic, streaming
from tests.checks import domains, refused, silent

NAN = np.nan
POSITIVE = [0.0, -1.0, np.inf, NAN, "a few"]
NOT_NEGATIVE = [-0.5, np.inf, NAN, "a few"]
LOSSES = np.array([[0.2, 0.5, 0.1], [0.3, 0.0, 0.4]])
MEANS = np.array([0.9, 0.5, 0.1])
FEATURES = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
KEY = jax.random.key(0)
KL = generators.kl()


def hedge(step_size):
    """Hedge."""
    return adversarial.hedge(step_size)


def descent(step_size):
    """Mirror descent."""
    return adversarial.online_mirror_descent(step_size, generator=KL)


def tsallis(step_size):
    """Tsallis-INF."""
    return adversarial.tsallis_inf(step_size)


def barrier(step_size):
    """The log barrier."""
    return adversarial.log_barrier(step_size)


def law(make):
    """The laws of two rounds of a learner with one parameter."""

    def of(step_size):
        return adversarial.full_information(make(step_size), LOSSES).log_policy

    of.__name__ = make.__name__
    return of


def explored(share):
    """The laws of two rounds of Hedge with exploration."""
    learner = adversarial.exploring(adversarial.hedge(1.0), share)
    return adversarial.full_information(learner, LOSSES).log_policy


def weighted(bias=0.1, low=0.0):
    """Estimated losses."""
    estimate = adversarial.importance_weighting(bias=bias, low=low)
    return estimate(jnp.log(MEANS), 1, 0.5)


def reduced(low=-1.0, high=1.0):
    """Estimated losses, linear in features."""
    return adversarial.magnitude_reduced(FEATURES, low, high)(jnp.log(MEANS), 1, 0.5)


def on_a_ball(diameter, offset):
    """Points of optimistic descent."""
    return adversarial.optimistic_descent(
        lambda x, c: c, jnp.ones((3, 2)), 2, diameter=diameter, offset=offset
    )


def ucb1(exploration):
    """Its regret."""
    return stochastic.play(stochastic.ucb1(exploration), MEANS, 5, KEY).regret


def kl_ucb(c=0.0, confidence=1.0):
    """Its regret."""
    return stochastic.play(stochastic.kl_ucb(c, confidence), MEANS, 5, KEY).regret


def thompson(prior):
    """Its regret, by the first number of the prior."""
    return stochastic.play(stochastic.thompson((prior, 1.0)), MEANS, 5, KEY).regret


def greedy(means):
    """The regret of the best mean."""
    return stochastic.play(stochastic.ucb1(0.0), means, 5, KEY).regret


def predicted(features, targets):
    """Absolute losses of a linear predictor."""
    return adversarial.linear_predictor(features, targets, 1.0, loss=adversarial.ABSOLUTE).losses


def test_domains():
    learners = [(law(make), {"step_size": 1.0}, {"step_size": POSITIVE})
                for make in (hedge, descent, tsallis, barrier)]  # fmt: skip
    stream = {"means": MEANS, "horizon": 1e4, "key": KEY}
    domains(
        *learners,
        (explored, {"share": 0.1}, {"share": [0.0, 1.0, NAN, "few"]}),
        (weighted, {}, {"bias": NOT_NEGATIVE, "low": [np.inf, NAN]}),
        (reduced, {}, {"low": [0.5, -np.inf, NAN], "high": [-0.5, np.inf, NAN]}),
        (on_a_ball, {"diameter": 2.0, "offset": 1.0}, {"diameter": POSITIVE, "offset": POSITIVE}),
        (adversarial.linear_predictor,
         {"features": FEATURES, "targets": MEANS, "step_size": 1.0},
         {"step_size": POSITIVE, "loss": ["squared"], "targets": [MEANS[:2]]}),
        (adversarial.linear_predictor,
         {"features": FEATURES, "targets": MEANS, "step_size": 1.0, "loss": adversarial.ABSOLUTE},
         {"step_size": POSITIVE}),
        (contextual.square_cb, {"losses": LOSSES, "step_size": 2.0},
         {"step_size": [*POSITIVE, np.ones(3)], "losses": ["few"]}),
        (contextual.fast_cb, {"losses": LOSSES, "step_size": 2.0},
         {"step_size": [*POSITIVE, np.ones(3)], "losses": [-LOSSES, np.inf * (1 + LOSSES)]}),
        (contextual.square_cb_step_size, {"arms": 3, "horizon": 100.0, "oracle": 2.0},
         {"arms": [0, "few"], "horizon": POSITIVE, "oracle": POSITIVE}),
        (contextual.fast_cb_step_size, {"arms": 3, "horizon": 100.0, "oracle": 2.0},
         {"arms": [0], "horizon": POSITIVE, "oracle": POSITIVE, "best_loss": NOT_NEGATIVE}),
        (contextual.play, {"policy": contextual.greedy, "means": LOSSES, "horizon": 9, "key": KEY},
         {"means": [LOSSES - 1, 9 * (1 + LOSSES), MEANS], "horizon": [0, "long"]}),
        (ucb1, {"exploration": 2.0}, {"exploration": NOT_NEGATIVE}),
        (kl_ucb, {}, {"c": NOT_NEGATIVE, "confidence": POSITIVE}),
        (thompson, {"prior": 1.0}, {"prior": POSITIVE}),
        (greedy, {"means": MEANS}, {"means": [MEANS - 1, MEANS + 1, LOSSES]}),
        (stochastic.bernoulli_logits, {"mean": MEANS}, {"mean": [MEANS - 1, 2 * MEANS]}),
        (stochastic.kl_upper_bound, {"mean": MEANS, "budget": 0.5},
         {"mean": [MEANS - 1, 2 * MEANS], "budget": [-0.5, NAN, LOSSES, "small"]}),
        (stochastic.kl_upper_logit, {"mean": MEANS, "budget": 0.5}, {"budget": [-0.5, NAN]}),
        (stochastic.lai_robbins, {"means": MEANS}, {"means": [MEANS - 1, 2 * MEANS]}),
        (streaming.tolerance, {"arms": 8, "horizon": 1e6}, {"arms": [2], "horizon": POSITIVE}),
        (streaming.uniform, {"arms": 8, "horizon": 1e6}, {"arms": [0], "horizon": [0.5, NAN]}),
        (streaming.tower, {"levels": streaming.uniform(3, 1e4), **stream},
         {"horizon": POSITIVE, "means": [MEANS - 1, MEANS + 1]}),
        (streaming.game_of_arms, stream, {"horizon": POSITIVE, "means": [MEANS - 1, LOSSES]}),
    )  # fmt: skip
    levels = streaming.uniform(3, 1e4)
    refused(ValueError, ["count"], lambda: streaming.pad_levels(levels, 0))
    refused(ValueError, ["horizon"], lambda: stochastic.explore_first(0))
    refused(TypeError, ["horizon"], lambda: stochastic.successive_elimination(1.5))
    refused(ValueError, ["levels"], lambda: streaming.tower(
        levels._replace(pulls=-levels.pulls), **stream))  # fmt: skip


def test_nan_is_never_swallowed():
    silent(
        (contextual.square_cb, {"losses": LOSSES, "step_size": 2.0}, ("losses",)),
        (contextual.fast_cb, {"losses": LOSSES, "step_size": 2.0}, ("losses",)),
        (contextual.greedy, {"losses": LOSSES}, ("losses",)),
        (contextual.play, {"policy": contextual.greedy, "means": LOSSES, "horizon": 9, "key": KEY},
         ("means",)),
        (greedy, {"means": MEANS}, ("means",)),
        (stochastic.kl_upper_bound, {"mean": MEANS, "budget": 0.5}, ("mean",)),
        (stochastic.kl_upper_bound, {"mean": MEANS, "budget": 0.0}, ("mean",)),
        (stochastic.kl_upper_bound, {"mean": MEANS, "budget": MEANS}, ("budget",)),
        (stochastic.lai_robbins, {"means": MEANS}, ("means",)),
        (predicted, {"features": FEATURES, "targets": MEANS}, ("features", "targets")),
        (adversarial.absolute_step, {"residual": MEANS, "curvature": MEANS[::-1]},
         ("residual", "curvature")),
        (streaming.tower, {"levels": streaming.uniform(3, 1e4), "means": MEANS, "horizon": 1e4,
                           "key": KEY}, ("means",)),
        (streaming.game_of_arms, {"means": MEANS, "horizon": 1e4, "key": KEY}, ("means",)),
    )  # fmt: skip
