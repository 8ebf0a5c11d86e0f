"""Adversarial learners: steps against bracketed roots, estimators by enumeration, regret bounds."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.special

from jdiv.bandits import adversarial
from jdiv.divergences import generators
from tests.checks import refused

RNG = np.random.default_rng(0)
DERIVATIVES = {
    "kl": (generators.kl(), math.log),
    "reverse_kl": (generators.reverse_kl(), lambda u: -1 / u),
    "alpha 1/2": (generators.alpha(0.5), lambda u: -2 / math.sqrt(u)),
    "jeffreys": (generators.jeffreys(), lambda u: math.log(u) - 1 / u),
    "jensen_shannon": (
        generators.jensen_shannon(0.3),
        lambda u: 0.3 * math.log(u / (0.3 * u + 0.7)),
    ),
    "neyman_chi2": (generators.neyman_chi2(), lambda u: -(u**-2)),
}
"""Mirror maps, and f' of u = K p up to a constant."""


def legendre_step(slope, start, cost):
    """`argmin <p, cost> + (1/K) sum B_f(K p, K start)`: `f'(K p) = f'(K start) - cost - x`."""
    arms = len(cost)

    def ratio(target):
        def excess(log_u):
            return slope(math.exp(log_u)) - target

        # Below e^-300 f' is nearly -inf, and p at most 1 bounds the ratio.
        if excess(math.log(2 * arms)) < 0:
            return 2 * arms
        return math.exp(scipy.optimize.brentq(excess, -40, math.log(2 * arms), xtol=1e-14))

    targets = [slope(arms * p) - c for p, c in zip(start, cost, strict=True)]

    def total(x):
        return sum(ratio(target - x) for target in targets) - arms

    low, high = -1.0, 1.0
    while total(low) < 0:
        low *= 2
    while total(high) > 0:
        high *= 2
    x = scipy.optimize.brentq(total, low, high, xtol=1e-13)
    return np.array([ratio(target - x) for target in targets]) / arms


# ------------------------------------------------------------------------------- the leaders


@pytest.mark.parametrize("name", DERIVATIVES)
def test_mirror_descent_is_its_two_steps(name):
    """Which `mirror_descent` does not take: it adds losses up."""
    generator, slope = DERIVATIVES[name]
    losses, rate = RNG.uniform(-1, 1, (4, 3)), 0.8

    @jax.jit
    def played(losses):
        return [
            adversarial.full_information(
                adversarial.online_mirror_descent(rate, generator=generator, optimistic=optimistic),
                losses,
            ).log_policy
            for optimistic in (False, True)
        ]

    for optimistic, log_policy in enumerate(played(losses)):
        z, hint = np.full(3, 1 / 3), np.zeros(3)
        for log_p, loss in zip(log_policy, losses, strict=True):
            exact = legendre_step(slope, z, rate * hint)
            np.testing.assert_allclose(jnp.exp(log_p), exact, rtol=1e-9)
            z = legendre_step(slope, z, rate * loss)
            hint = optimistic * loss


@pytest.mark.parametrize("generator", [generators.pearson_chi2(), generators.le_cam()])
def test_leader_where_arms_are_dropped(generator):
    """Against SLSQP, with the regulariser written down again."""
    learner = adversarial.ftrl(lambda arms, t: 0.4, generator=generator)
    state = learner.init(4)._replace(losses=jnp.array([0.1, 0.9, 0.2, 3.0]))
    p = jnp.exp(jax.jit(learner.act)(state))

    def objective(p):
        q = 1 / 4
        chi2 = isinstance(generator, generators.PearsonChi2)
        f = (p - q) ** 2 / q if chi2 else (p - q) ** 2 / (2 * (p + q))
        return p @ np.asarray(state.losses) + 0.4 * f.sum()

    best = scipy.optimize.minimize(
        objective, np.full(4, 0.25), bounds=[(0, 1)] * 4, method="SLSQP", options={"ftol": 1e-15},
        constraints={"type": "eq", "fun": lambda p: p.sum() - 1},
    )  # fmt: skip
    np.testing.assert_allclose(p, best.x, atol=1e-6)
    assert p[3] == 0
    assert objective(np.asarray(p)) <= best.fun + 1e-12


def test_closed_forms():
    """Softmax, Tsallis-INF's and the log barrier's with their one unknown."""
    losses = jnp.array([3.0, 0.2, 7.5, -2.0])
    state = adversarial.State(losses, jnp.zeros(4), jnp.array(9.0))
    acts = jax.jit(
        lambda state: [
            jnp.exp(learner.act(state))
            for learner in (
                adversarial.hedge(0.7),
                adversarial.tsallis_inf(),
                adversarial.log_barrier(0.3),
                adversarial.exploring(adversarial.hedge(0.7), 0.2),
            )
        ]
    )
    hedge, tsallis, barrier, exp3 = acts(state)
    softmax = scipy.special.softmax(-0.7 * np.asarray(losses))
    np.testing.assert_allclose(hedge, softmax, rtol=1e-13)
    np.testing.assert_allclose(exp3, 0.8 * softmax + 0.05, rtol=1e-13)
    low, rate = float(losses.min()), 2 / math.sqrt(9)
    for p, formula in (
        (tsallis, lambda x: 4 / (rate * (np.asarray(losses) - x)) ** 2),
        (barrier, lambda x: 1 / (0.3 * (np.asarray(losses) - x))),
    ):
        x = scipy.optimize.brentq(lambda x: formula(x).sum() - 1, low - 100, low - 1e-3, xtol=1e-14)  # noqa: B023
        np.testing.assert_allclose(p, formula(x), rtol=1e-11)


def test_regret_bounds_with_full_information():
    """On losses that a learner dislikes: the leader changes at every round."""
    horizon, arms = 400, 3
    t = np.arange(horizon)[:, None]
    switching = ((t + np.arange(arms)) % arms == 0).astype(float)
    drifting = (np.sin(t / 40 + np.arange(arms)) + 1) / 2
    rate = math.sqrt(8 * math.log(arms) / horizon)
    run = jax.jit(
        lambda losses: adversarial.regret(
            adversarial.full_information(adversarial.hedge(rate), losses), losses
        )
    )
    for losses in (switching, drifting):
        assert run(losses)[-1] <= math.sqrt(horizon * math.log(arms) / 2)


def test_optimistic_regret_is_constant_when_nothing_varies():
    losses = jnp.tile(jnp.array([[0.1, 0.5, 0.4]]), (300, 1))
    for optimistic in (True, False):
        learner = adversarial.hedge(1.0, optimistic=optimistic)
        found = jax.jit(lambda x, y=learner: adversarial.full_information(y, x))(losses)
        regret = adversarial.regret(found, losses)
        seen = np.arange(300)[:, None]
        seen = np.where(seen > 0, seen + optimistic, 0)
        weights = scipy.special.softmax(-np.asarray(losses[:1]) * seen, axis=1)
        np.testing.assert_allclose(
            regret, np.cumsum((weights * losses).sum(1) - 0.1), rtol=1e-10, atol=1e-12
        )


def barrier_excess(losses, rate):
    """Regret to the mixed comparator minus `K log T / rate`, and the two sums of its bound."""
    horizon, arms = losses.shape
    learner = adversarial.log_barrier(rate)
    p = jnp.exp(adversarial.full_information(learner, losses).log_policy)
    comparators = (1 - 1 / horizon) * jnp.eye(arms) + 1 / (horizon * arms)
    paid = jnp.sum(p * losses)
    regret = paid - jnp.min(comparators @ jnp.sum(losses, axis=0))
    first = rate / 2 * jnp.sum(p * losses**2)
    second = rate * jnp.sum(p**2 * losses**2)
    return regret - arms * math.log(horizon) / rate, first, second, jnp.min(rate * p * losses)


def test_log_barrier_bounds():
    """With p l^2 always; with p^2 l^2 only if no `rate p l` is below -1/2."""
    horizon, rate = 400, 0.5
    run = jax.jit(lambda losses: barrier_excess(losses, rate))
    heavy = RNG.standard_cauchy((6, horizon, 3)) * RNG.choice([0.3, 1, 3], (6, 1, 1))
    heavy[3:] = np.minimum(heavy[3:], 0.5)  # no positive loss of that size to make up for it
    for losses in heavy:
        excess, first, *_ = run(losses)
        assert excess <= first
    # The first arm pays until it has p near 1/T, and is then paid back more than all of it.
    trap = np.zeros((horizon, 3))
    trap[:-1, 0] = 1 / rate
    trap[-1, 0] = -2 * horizon / rate
    excess, first, second, least = run(trap)
    assert least < -1
    assert excess <= first
    assert excess > 10 * second
    # What importance weighting makes of bounded losses meets the condition.
    mild = RNG.uniform(-1, 1, (horizon, 3))
    excess, _, second, least = run(mild)
    assert least >= -0.5
    assert excess <= second


def test_tsallis_inf_regret():
    """The mean of 64 runs is below `4 sqrt(K T) + 1`, and grows as its root, not as the horizon."""
    horizon, arms = 1000, 4
    losses = jnp.asarray((RNG.random((horizon, arms)) < [0.5, 0.4, 0.6, 0.5]).astype(float))

    def run(key):
        played = adversarial.bandit(
            adversarial.tsallis_inf(), losses, adversarial.importance_weighting(), key
        )
        return adversarial.regret(played, losses)[-1]

    found = jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(0), 64))
    assert found.mean() + 4 * found.std() / 8 <= 4 * math.sqrt(arms * horizon) + 1


# ------------------------------------------------------------------------------------ estimators


def test_estimators_are_unbiased():
    """The sum over all arms that can be pulled, each with its probability."""
    arms, d = 5, 3
    features = RNG.normal(size=(arms, d))
    p = RNG.dirichlet(np.ones(arms))
    losses = features @ RNG.normal(size=d)
    bound = np.abs(losses).max()
    weighting = adversarial.importance_weighting
    plain, low = weighting(), weighting(low=-bound)
    linear = adversarial.linear(features)
    reduced = adversarial.magnitude_reduced(features, -bound, bound)
    ix = weighting(bias=0.1)
    reduced_arms = adversarial.magnitude_reduced(np.eye(arms), -bound, bound)

    def enumerated(log_p, losses):
        every = jnp.arange(arms)
        each = (plain, low, linear, reduced, ix, reduced_arms)
        return [jax.vmap(lambda arm, e=e: e(log_p, arm, losses[arm]))(every) for e in each]

    found = [np.asarray(x) for x in jax.jit(enumerated)(jnp.log(p), losses)]
    for estimates in (*found[:4], found[5]):
        np.testing.assert_allclose(p @ estimates, losses, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(p @ found[4], losses * p / (p + 0.1), rtol=1e-12)
    # As `low` without common features; and by the printed formula with them.
    np.testing.assert_allclose(found[5], found[1], rtol=1e-10, atol=1e-12)
    kernel = features @ np.linalg.inv(features.T @ (p[:, None] * features)) @ features.T
    floor = -bound * np.abs(kernel)
    printed = (kernel * losses).T - floor.T + floor @ p
    np.testing.assert_allclose(found[3], printed, rtol=1e-10)
    norm = np.sqrt(np.diag(kernel))
    assert np.all(found[3] >= -bound * norm - 1e-12)
    # Of the plain estimator that is not so.
    assert np.any(found[2] < -bound * norm)


@pytest.mark.parametrize("name", ["exp3", "exp3-ix", "tsallis", "barrier"])
def test_bandit_is_the_plain_replay(name):
    """With weights written down again, and the same draws."""
    horizon, arms, rate = 60, 3, 0.4
    losses = RNG.uniform(0, 1, (horizon, arms))
    learner, bias = {
        "exp3": (adversarial.exploring(adversarial.hedge(rate), 0.1), 0),
        "exp3-ix": (adversarial.hedge(rate), rate / 2),
        "tsallis": (adversarial.tsallis_inf(), 0),
        "barrier": (adversarial.log_barrier(rate), 0),
    }[name]
    estimator = adversarial.importance_weighting(bias=bias)
    key = jax.random.key(5)
    played = jax.jit(lambda key: adversarial.bandit(learner, losses, estimator, key))(key)

    total = np.zeros(arms)
    for t in range(horizon):
        if name.startswith("exp3"):
            p = scipy.special.softmax(-rate * total)
            p = 0.9 * p + 0.1 / arms if name == "exp3" else p
        else:
            eta = 2 / math.sqrt(t + 1)
            formula = {
                "tsallis": lambda x, e=eta: 4 / (e * (total - x)) ** 2,
                "barrier": lambda x: 1 / (rate * (total - x)),
            }[name]
            top = total.min()
            x = scipy.optimize.brentq(lambda x: formula(x).sum() - 1, top - 200, top - 1e-6)  # noqa: B023
            p = formula(x)
        np.testing.assert_allclose(np.exp(played.log_policy[t]), p, rtol=1e-8)
        arm = int(played.arms[t])
        total[arm] += losses[t, arm] / (p[arm] + bias)
    regret = adversarial.regret(played, losses)
    paid = np.cumsum((np.exp(played.log_policy) * losses).sum(1))
    np.testing.assert_allclose(regret, paid - np.cumsum(losses, 0).min(1), rtol=1e-12)
    draws = [np.mean(np.asarray(played.arms) == arm) for arm in range(arms)]
    means = np.exp(played.log_policy).mean(0)
    np.testing.assert_allclose(draws, means, atol=4 * math.sqrt(0.25 / horizon))


def test_same_under_vmap(same_everywhere):
    def run(losses):
        play = lambda losses: adversarial.full_information(
            adversarial.online_mirror_descent(0.5, generator=generators.alpha(0.3)), losses
        )
        return jax.vmap(play)(losses) if losses.ndim == 3 else play(losses)

    same_everywhere(run, jnp.asarray(RNG.uniform(0, 1, (8, 6, 3))), rtol=1e-10)


# ------------------------------------------------------------------------------ without a simplex


def ball(x, radius):
    """The projection by a solver."""
    if np.linalg.norm(x) <= radius:
        return x
    inside = {"type": "ineq", "fun": lambda y: radius**2 - y @ y, "jac": lambda y: -2 * y}
    return scipy.optimize.minimize(
        lambda y: (y - x) @ (y - x), x / np.linalg.norm(x) * radius * 0.9, method="SLSQP",
        jac=lambda y: 2 * (y - x), constraints=inside, options={"ftol": 1e-16},
    ).x  # fmt: skip


def _descent(inputs, **options):
    return adversarial.optimistic_descent(
        lambda x, c: x - c, inputs, inputs.shape[1], diameter=2.0, offset=5.0, **options
    )


def test_optimistic_descent_is_its_two_steps():
    centres = 3 * RNG.normal(size=(12, 3))
    variants = [(optimistic, count) for optimistic in (0, 1) for count in (False, True)]
    run = jax.jit(
        lambda c: [_descent(c, optimistic=bool(o), count_present=count) for o, count in variants]
    )
    for (optimistic, count_present), points in zip(variants, run(centres), strict=True):
        z, hint, variation = np.zeros(3), np.zeros(3), 0.0
        for x, centre in zip(points, centres, strict=True):
            rate = 2 / math.sqrt(5 + variation)
            np.testing.assert_allclose(x, ball(z - rate * hint, 1), atol=1e-6)
            gradient = np.asarray(x) - centre
            variation += (gradient - hint) @ (gradient - hint)
            rate = 2 / math.sqrt(5 + variation) if count_present else rate
            z = ball(z - rate * gradient, 1)
            hint = optimistic * gradient


def test_optimistic_descent_has_the_recomputed_regrets():
    """Of an independent recomputation in NumPy, whose second step counts the present round."""
    centre = np.array([0.5, 0, 0, 0, 0])

    def regret(centres, optimistic):
        x = _descent(centres, optimistic=optimistic, count_present=True)
        best = jnp.mean(centres, axis=0)[None]
        return jnp.sum((x - centres) ** 2 - (best - centres) ** 2) / 2

    run = jax.jit(regret, static_argnums=1)
    alternating = np.where(np.arange(1000) % 2, -1.0, 1.0)[:, None] * centre
    assert round(float(run(np.tile(centre, (1000, 1)), True)), 2) == 1.15
    assert round(float(run(alternating, True)), 1) == 46.2
    assert round(float(run(alternating, False)), 1) == 28.8


@pytest.mark.parametrize(
    "loss", [adversarial.SQUARED, adversarial.ABSOLUTE], ids=["squared", "absolute"]
)
def test_implicit_steps_minimise(loss):
    """Each point is the least of loss plus squared distance: `H` is its dual."""
    features = RNG.normal(size=(30, 3))
    features[7] = 0
    targets = features @ [1.0, -2, 0.5] + 0.3 * RNG.normal(size=30)
    for rate in (0.1, 30.0):
        fits = [
            jax.jit(
                lambda w, y, i=implicit, r=rate: adversarial.linear_predictor(
                    w, y, r, loss=loss, implicit=i
                )
            )(features, targets)
            for implicit in (True, False)
        ]
        value = np.abs if loss is adversarial.ABSOLUTE else (lambda r: r**2 / 2)
        for fit in fits:
            residual = np.sum(fit.weights * features, axis=1) - targets
            np.testing.assert_allclose(fit.losses, value(residual), rtol=1e-12)
            # The bound, for the fit with all data and other predictors.
            for u in (np.zeros(3), np.array([1.0, -2, 0.5]), RNG.normal(size=3)):
                gap = np.cumsum(fit.losses - value(features @ u - targets))
                bound = u @ u / (2 * rate) + np.cumsum(fit.terms)
                assert np.all(gap <= bound + 1e-9 * np.abs(bound))
        implicit, linear = fits
        assert np.all(implicit.gains >= -1e-12)
        np.testing.assert_array_equal(linear.gains, 0)
        for t in range(10):
            x, w, y = np.asarray(implicit.weights[t]), features[t], targets[t]

            def along(s, x=x, w=w, y=y):
                moved = x - rate * s * w  # noqa: B023
                return value(w @ moved - y) + rate * s**2 * (w @ w) / 2  # noqa: B023

            span = abs(x @ w - y) + 2
            found = scipy.optimize.minimize_scalar(
                along, bounds=(-span, span), method="bounded", options={"xatol": 1e-12}
            )
            ours = along((x - implicit.weights[t + 1]) @ w / max(rate * (w @ w), 1e-300))
            assert ours <= found.fun + 1e-9
        # An example without features teaches nothing.
        np.testing.assert_array_equal(implicit.weights[8], implicit.weights[7])


# -------------------------------------------------------------------------------------- refusals


def test_refusals():
    learner = adversarial.hedge(1.0)
    for error, words, call in (
        (ValueError, ["mirror map", "le_cam", "-1.5"],
         lambda: adversarial.online_mirror_descent(1.0, generator=generators.le_cam())),
        (ValueError, ["mirror map", "tsallis"],
         lambda: adversarial.online_mirror_descent(1.0, generator=generators.tsallis(1.5))),
        (ValueError, ["mirror map", "total_variation"],
         lambda: adversarial.online_mirror_descent(1.0, generator=generators.total_variation())),
        (TypeError, ["inverse", "total_variation"],
         lambda: adversarial.ftrl(
             lambda arms, t: 1.0, generator=generators.total_variation())),
        (ValueError, ["step_size", "positive", "-1.0"], lambda: adversarial.hedge(-1.0)),
        (ValueError, ["step_size", "0.0"], lambda: adversarial.tsallis_inf(0.0)),
        (ValueError, ["step_size", "inf"], lambda: adversarial.log_barrier(math.inf)),
        (ValueError, ["share", "1.5"], lambda: adversarial.exploring(learner, 1.5)),
        (ValueError, ["bias", "-0.1"], lambda: adversarial.importance_weighting(bias=-0.1)),
        (ValueError, ["features", "(2, 3)"], lambda: adversarial.linear(jnp.ones((2, 3)))),
        (TypeError, ["features", "int"], lambda: adversarial.linear(jnp.ones((2, 2), int))),
        (ValueError, ["low", "0.5"],
         lambda: adversarial.magnitude_reduced(jnp.ones((2, 1)), 0.5, 1.0)),
        (ValueError, ["high", "-0.5"],
         lambda: adversarial.magnitude_reduced(jnp.ones((2, 1)), -1.0, -0.5)),
        (ValueError, ["losses", "(3,)"],
         lambda: adversarial.full_information(learner, jnp.ones(3))),
        (TypeError, ["losses", "int"],
         lambda: adversarial.full_information(learner, jnp.ones((3, 2), int))),
        (ValueError, ["diameter"], lambda: adversarial.optimistic_descent(
            jnp.subtract, jnp.ones((3, 2)), 2, diameter=0.0, offset=1.0)),
        (TypeError, ["loss", "SQUARED or ABSOLUTE", "'hinge'"],
         lambda: adversarial.linear_predictor(jnp.ones((3, 2)), jnp.ones(3), 1.0, loss="hinge")),
        (ValueError, ["targets", "(2,)"],
         lambda: adversarial.linear_predictor(jnp.ones((3, 2)), jnp.ones(2), 1.0)),
    ):  # fmt: skip
        refused(error, words, call)


def test_mirror_maps_are_refused_inside_jit_as_well():
    def run(losses):
        learner = adversarial.online_mirror_descent(1.0, generator=generators.alpha(2.0))
        return adversarial.full_information(learner, losses)

    refused(ValueError, ["mirror map"], lambda: jax.jit(run)(jnp.ones((2, 2))))
