"""Contextual bandits: probabilities against a plain loop, policies and fits against SciPy."""

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
import scipy.special

from jdiv.bandits import contextual
from tests.checks import refused

RNG = np.random.default_rng(1)


# --------------------------------------------------------------------------- inverse gap weighting


def by_hand(name, losses, rate):
    """One row, with the formulas of the papers."""
    arms, best = len(losses), int(np.argmin(losses))
    p = np.zeros(arms)
    for a in range(arms):
        gap = losses[a] - losses[best]
        if a == best or name == "greedy":
            continue
        if name == "square":
            p[a] = 1 / (arms + rate * gap)
        elif gap == 0:
            p[a] = 1 / arms
        else:
            p[a] = losses[best] / (arms * losses[best] + rate * gap)
    p[best] = 1 - p.sum()
    return p


POLICIES = {
    "square": contextual.square_cb,
    "fast": contextual.fast_cb,
    "greedy": lambda losses, rate: contextual.greedy(losses),
}


def test_probabilities():
    losses = RNG.uniform(0, 1, (40, 5))
    losses[0] = 0  # all equal, and 0
    losses[1] = 0.3  # all equal
    losses[2, :2] = 0  # two best arms of loss 0
    losses[3] = [0, 0.5, 1, 0.2, 0.2]
    for rate in (0.5, 50.0):
        found = jax.jit(lambda x, r=rate: [policy(x, r) for policy in POLICIES.values()])(losses)
        for name, p in zip(POLICIES, found, strict=True):
            exact = [by_hand(name, row, rate) for row in losses]
            np.testing.assert_allclose(p, exact, rtol=1e-13, atol=1e-15)
            assert np.all(np.asarray(p) >= 0)
    for dtype in (jnp.float32, jnp.float64):
        assert contextual.fast_cb(jnp.ones(2, dtype), 3.0).dtype == dtype


def test_square_cb_inequality():
    """`sum_a p_a (mu_a - mu* - rate/4 (y_a - mu_a)^2) <= 2 K / rate`, every mu and y."""
    y, means = RNG.uniform(0, 1, (2, 500, 4))
    y[250:] = means[250:] + 0.1 * RNG.normal(size=(250, 4))
    for rate in (1.0, 10.0, 100.0):
        p = np.asarray(contextual.square_cb(y, rate))
        excess = means - means.min(1, keepdims=True) - rate / 4 * (y - means) ** 2
        assert np.all(np.sum(p * excess, axis=1) <= 2 * 4 / rate)


def test_rates():
    assert contextual.square_cb_rate(5, 2000, 4.0) == 50
    assert contextual.fast_cb_rate(5, 2000, 4.0) == 50
    assert contextual.fast_cb_rate(3, 10**6, 1.0, 0.01) == 100
    assert contextual.fast_cb_rate(3, 10**6, jnp.float32(1.0), 0.01).dtype == jnp.float32


def test_play_is_the_plain_replay():
    """The policy sees Laplace's predictions and records them by its choice."""
    means = np.array([[0.0, 0.5, 1.0], [0.7, 0.2, 0.6]])
    horizon, key = 60, jax.random.key(2)
    uniforms = np.asarray(jax.random.uniform(key, (horizon, 3)))
    for name in POLICIES:
        policy = POLICIES[name]
        play = jax.jit(
            lambda key, p=policy: contextual.play(lambda y: p(y, 4.0), means, horizon, key)
        )
        pulls, losses, total = np.zeros((2, 3)), np.zeros((2, 3)), 0
        for t, regret in enumerate(play(key)):
            x = int(2 * uniforms[t, 0])
            p = by_hand(name, (1 + losses[x]) / (2 + pulls[x]), 4.0)
            arm = next(a for a in range(3) if uniforms[t, 1] < p[: a + 1].sum())
            pulls[x, arm] += 1
            losses[x, arm] += uniforms[t, 2] < means[x, arm]
            total += means[x, arm] - means[x].min()
            np.testing.assert_allclose(regret, total, rtol=1e-12, atol=1e-14)


# ------------------------------------------------------------------- next to a reference policy


def problem(contexts=3, arms=4, d=3, temperature=0.5):
    return contextual.Problem(
        jnp.asarray(RNG.normal(size=(contexts, arms, d))),
        jnp.asarray(RNG.normal(size=d)),
        jnp.asarray(RNG.normal(size=(contexts, arms))),
        temperature,
    )


def objective(case, p):
    """`E[reward - temperature KL]`, written down again."""
    ref = scipy.special.softmax(np.asarray(case.ref_logits), axis=-1)
    cost = scipy.special.rel_entr(p, ref).sum(-1)
    return np.mean((p * np.asarray(case.rewards)).sum(-1) - case.temperature * cost)


def test_tilt_is_best_and_regret_is_what_is_missing():
    case = problem()
    best = jax.jit(contextual.tilt)(case, case.rewards)
    ref = scipy.special.softmax(np.asarray(case.ref_logits), axis=-1)
    weights = ref * np.exp(np.asarray(case.rewards) / case.temperature)
    p = weights / weights.sum(-1, keepdims=True)
    np.testing.assert_allclose(np.exp(best), p, rtol=1e-12)
    found = scipy.optimize.minimize(
        lambda x: -objective(case, scipy.special.softmax(x.reshape(3, 4), axis=-1)), np.zeros(12)
    )
    np.testing.assert_allclose(-found.fun, objective(case, p), rtol=1e-5)
    assert -found.fun <= objective(case, p)
    others = RNG.dirichlet(np.ones(4), (20, 3))
    regret = jax.jit(contextual.regularised_regret)(case, jnp.log(others))
    missing = [objective(case, p) - objective(case, other) for other in others]
    np.testing.assert_allclose(regret, missing, rtol=1e-10)
    assert contextual.regularised_regret(case, best) == 0


def data(n=80, d=3, weights=(1.0, -2.0, 0.5)):
    differences = RNG.normal(size=(n, d))
    wins = RNG.random(n) < scipy.special.expit(differences @ np.asarray(weights))
    return contextual.Data(
        jnp.asarray(differences),
        jnp.asarray(wins.astype(float)),
        jnp.asarray(RNG.integers(0, 2, n).astype(float)),
    )


def test_bradley_terry_is_the_likeliest():
    """Also for comparisons that are separable, and far from 0: plain Newton steps diverge there."""
    usual = data()
    separable = usual._replace(
        differences=20 * usual.differences,
        wins=(usual.differences[:, 0] > 0).astype(float),
    )
    fit = jax.jit(lambda x, ridge: contextual.bradley_terry(x, ridge, steps=40))
    twelve = jax.jit(contextual.bradley_terry)
    for case, ridge in ((usual, 1.0), (usual, 0.01), (separable, 1.0)):
        x, y, w = map(np.asarray, case)

        def gradient(weights, x=x, y=y, w=w, ridge=ridge):
            return x.T @ (w * (scipy.special.expit(x @ weights) - y)) + ridge * weights

        exact = scipy.optimize.root(gradient, np.zeros(3), tol=1e-14).x
        assert np.abs(gradient(exact)).max() < 1e-7
        np.testing.assert_allclose(fit(case, ridge), exact, rtol=1e-8, atol=1e-8)
        if case is usual:
            np.testing.assert_allclose(twelve(case, ridge), exact, rtol=1e-8)
    nothing = usual._replace(weights=jnp.zeros(80))
    np.testing.assert_array_equal(twelve(nothing, 1.0), 0)


def test_width_and_precision():
    case = data()
    weighted = np.asarray(case.differences)[np.asarray(case.weights) == 1]
    matrix = 0.3 * np.eye(3) + weighted.T @ weighted
    found = jax.jit(contextual.precision)(case, 0.3)
    np.testing.assert_allclose(found, matrix, rtol=1e-12)
    features, centre = RNG.normal(size=(2, 4, 3)), RNG.normal(size=(2, 3))
    difference = features - centre[:, None]
    exact = np.sqrt(np.einsum("xai,ij,xaj->xa", difference, np.linalg.inv(matrix), difference))
    np.testing.assert_allclose(
        jax.jit(contextual.width)(features, centre, matrix), exact, rtol=1e-10
    )


def test_learned_policies_are_their_formulas():
    case, given = problem(), data()
    weights = np.asarray(contextual.bradley_terry(given, 0.5))
    inverse = np.linalg.inv(np.asarray(contextual.precision(given, 0.5)))
    features = np.asarray(case.features)
    ref = scipy.special.softmax(np.asarray(case.ref_logits), axis=-1)

    def tilted(centre_policy, bonus):
        difference = features - np.einsum("xa,xai->xi", centre_policy, features)[:, None]
        width = np.sqrt(np.einsum("xai,ij,xaj->xa", difference, inverse, difference))
        return scipy.special.softmax(
            np.log(ref) + (features @ weights + bonus * width) / case.temperature, axis=-1
        )

    run = jax.jit(
        lambda: (
            main := contextual.learned_policy(case, given, 0.5, 0.0),
            contextual.learned_policy(case, given, 0.5, -2.0),
            contextual.explorer(case, main, given, 0.5, 1.5),
        )
    )
    main, pessimist, second = (np.exp(x) for x in run())
    np.testing.assert_allclose(main, tilted(ref, 0), rtol=1e-10)
    np.testing.assert_allclose(pessimist, tilted(ref, -2), rtol=1e-10)
    np.testing.assert_allclose(second, tilted(main, 1.5), rtol=1e-10)


def test_comparisons_have_their_probabilities():
    """One context and two arms: of those that differ, the share won is the sigmoid."""
    features = jnp.array([[[1.0, 0.0], [0.0, 1.0]]])
    case = contextual.Problem(features, jnp.array([0.8, 0.0]), jnp.zeros((1, 2)), 1.0)
    first, second = jnp.log(jnp.array([[0.3, 0.7]])) + 2, jnp.log(jnp.array([[6.0, 4.0]]))
    found = jax.jit(lambda key: contextual.compare(case, first, second, 20000, key))(
        jax.random.key(0)
    )
    better = np.asarray(found.differences[:, 0])
    shares = [np.mean(better == value) for value in (1, 0, -1)]
    np.testing.assert_allclose(shares, [0.12, 0.46, 0.42], atol=4 * np.sqrt(0.25 / 20000))
    for value in (1, 0, -1):
        won = np.asarray(found.wins)[better == value]
        expected = scipy.special.expit(0.8 * value)
        np.testing.assert_allclose(won.mean(), expected, atol=4 * np.sqrt(0.25 / len(won)))


def test_iterate_is_its_rounds():
    """With the data in lists, and the functions above one after another."""
    case, given = problem(), data(10)
    rounds, pairs, key = 3, 6, jax.random.key(7)
    run = jax.jit(
        lambda key: contextual.iterate(case, given, rounds, pairs, key, ridge=0.5, bonus=1.0)
    )
    now = given
    step = jax.jit(
        lambda now, key: (
            main := contextual.learned_policy(case, now, 0.5, 0.0),
            contextual.compare(
                case, main, contextual.explorer(case, main, now, 0.5, 1.0), pairs, key
            ),
        )
    )
    for regret, of_round in zip(run(key), jax.random.split(key, rounds), strict=True):
        main, new = step(now, of_round)
        np.testing.assert_allclose(regret, contextual.regularised_regret(case, main), rtol=1e-8)
        now = contextual.Data(*(np.concatenate(part) for part in zip(now, new, strict=True)))


def test_same_under_vmap(same_everywhere):
    def run(losses):
        return contextual.fast_cb(losses, 3.0), contextual.square_cb(losses, 3.0)

    same_everywhere(run, jnp.asarray(RNG.uniform(0, 1, (8, 4))))


def test_refusals():
    key, case, given = jax.random.key(0), problem(), data(4)
    for error, words, call in (
        (TypeError, ["losses", "int"], lambda: contextual.square_cb(jnp.ones(2, int), 1.0)),
        (TypeError, ["losses", "int"], lambda: contextual.fast_cb(jnp.ones(2, int), 1.0)),
        (ValueError, ["losses", "arm", "()"], lambda: contextual.greedy(jnp.ones(()))),
        (ValueError, ["rate", "positive", "-1.0"],
         lambda: contextual.square_cb(jnp.ones(2), -1.0)),
        (ValueError, ["rate", "0.0"], lambda: contextual.fast_cb(jnp.ones(2), 0.0)),
        (ValueError, ["means", "(3,)"],
         lambda: contextual.play(contextual.greedy, jnp.ones(3), 5, key)),
        (ValueError, ["horizon", "0"],
         lambda: contextual.play(contextual.greedy, jnp.ones((3, 2)), 0, key)),
        (ValueError, ["ridge", "0.0"], lambda: contextual.bradley_terry(given, 0.0)),
        (ValueError, ["rounds", "pairs", "0 and 5"],
         lambda: contextual.iterate(case, given, 0, 5, key, ridge=1.0, bonus=1.0)),
        (ValueError, ["rounds", "pairs", "5 and 0"],
         lambda: contextual.iterate(case, given, 5, 0, key, ridge=1.0, bonus=1.0)),
    ):  # fmt: skip
        refused(error, words, call)
