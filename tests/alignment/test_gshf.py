"""Policies and fits next to a reference policy, against SciPy."""

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
import scipy.special

from jdiv.alignment import gshf, rewards
from tests.checks import refused

RNG = np.random.default_rng(1)


def problem(contexts=3, arms=4, d=3, beta=0.5):
    return gshf.LinearProblem(
        jnp.asarray(RNG.normal(size=(contexts, arms, d))),
        jnp.asarray(RNG.normal(size=d)),
        jnp.asarray(RNG.normal(size=(contexts, arms))),
        beta,
    )


def objective(case, p):
    """`E[reward - beta KL]`, written down again."""
    ref = scipy.special.softmax(np.asarray(case.ref_logits), axis=-1)
    cost = scipy.special.rel_entr(p, ref).sum(-1)
    return np.mean((p * np.asarray(case.rewards)).sum(-1) - case.beta * cost)


def test_tilt_is_best_and_regret_is_what_is_missing():
    case = problem()
    best = jax.jit(gshf.tilt)(case, case.rewards)
    ref = scipy.special.softmax(np.asarray(case.ref_logits), axis=-1)
    weights = ref * np.exp(np.asarray(case.rewards) / case.beta)
    p = weights / weights.sum(-1, keepdims=True)
    np.testing.assert_allclose(np.exp(best), p, rtol=1e-12)
    found = scipy.optimize.minimize(
        lambda x: -objective(case, scipy.special.softmax(x.reshape(3, 4), axis=-1)), np.zeros(12)
    )
    np.testing.assert_allclose(-found.fun, objective(case, p), rtol=1e-5)
    assert -found.fun <= objective(case, p)
    others = RNG.dirichlet(np.ones(4), (20, 3))
    regret = jax.jit(gshf.regularized_regret)(case, jnp.log(others))
    missing = [objective(case, p) - objective(case, other) for other in others]
    np.testing.assert_allclose(regret, missing, rtol=1e-10)
    assert gshf.regularized_regret(case, best) == 0


def data(n=80, d=3, weights=(1.0, -2.0, 0.5)):
    rng = np.random.default_rng(0)
    differences = rng.normal(size=(n, d))
    wins = rng.random(n) < scipy.special.expit(differences @ np.asarray(weights))
    return gshf.Comparisons(
        jnp.asarray(differences),
        jnp.asarray(wins.astype(float)),
        jnp.asarray(rng.integers(0, 2, n).astype(float)),
    )


def test_bradley_terry_is_the_likeliest():
    """Also for comparisons that are separable, and far from 0: plain Newton steps diverge there."""
    usual = data()
    separable = usual._replace(
        differences=20 * usual.differences,
        wins=(usual.differences[:, 0] > 0).astype(float),
    )
    fit = jax.jit(rewards.linear_bradley_terry)
    for case, ridge in ((usual, 1.0), (usual, 0.01), (separable, 1.0)):
        x, y, w = map(np.asarray, case)

        def gradient(weights, x=x, y=y, w=w, ridge=ridge):
            return x.T @ (w * (scipy.special.expit(x @ weights) - y)) + ridge * weights

        exact = scipy.optimize.root(gradient, np.zeros(3), tol=1e-14).x
        assert np.abs(gradient(exact)).max() < 1e-7
        found = fit(*case, ridge)
        assert found.converged
        assert found.residual < 1e-9
        np.testing.assert_allclose(found.weights, exact, rtol=1e-8, atol=1e-8)
        if case is usual:
            np.testing.assert_allclose(found.weights, exact, rtol=1e-8)
            # A dozen damped steps, whose length is about 3 each, and then quadratic ones.
            assert found.iterations <= 20
    nothing = usual._replace(counts=jnp.zeros(80))
    np.testing.assert_array_equal(fit(*nothing, 1.0).weights, 0)


def test_width_and_precision():
    case = data()
    weighted = np.asarray(case.differences)[np.asarray(case.counts) == 1]
    matrix = 0.3 * np.eye(3) + weighted.T @ weighted
    found = jax.jit(gshf.precision)(case.differences, case.counts, 0.3)
    np.testing.assert_allclose(found, matrix, rtol=1e-12)
    features, center = RNG.normal(size=(2, 4, 3)), RNG.normal(size=(2, 3))
    difference = features - center[:, None]
    exact = np.sqrt(np.einsum("xai,ij,xaj->xa", difference, np.linalg.inv(matrix), difference))
    np.testing.assert_allclose(jax.jit(gshf.width)(features, center, matrix), exact, rtol=1e-10)


def test_learned_policies_are_their_formulas():
    case, given = problem(), data()
    weights = np.asarray(rewards.linear_bradley_terry(*given, 0.5).weights)
    inverse = np.linalg.inv(np.asarray(gshf.precision(given.differences, given.counts, 0.5)))
    features = np.asarray(case.features)
    ref = scipy.special.softmax(np.asarray(case.ref_logits), axis=-1)

    def tilted(center_policy, bonus):
        difference = features - np.einsum("xa,xai->xi", center_policy, features)[:, None]
        width = np.sqrt(np.einsum("xai,ij,xaj->xa", difference, inverse, difference))
        return scipy.special.softmax(
            np.log(ref) + (features @ weights + bonus * width) / case.beta, axis=-1
        )

    run = jax.jit(
        lambda: (
            main := gshf.learned_policy(case, given, 0.5, 0.0),
            gshf.learned_policy(case, given, 0.5, -2.0),
            gshf.explorer(case, main, given, 0.5, 1.5),
        )
    )
    main, pessimist, second = (np.exp(x) for x in run())
    np.testing.assert_allclose(main, tilted(ref, 0), rtol=1e-10)
    np.testing.assert_allclose(pessimist, tilted(ref, -2), rtol=1e-10)
    np.testing.assert_allclose(second, tilted(main, 1.5), rtol=1e-10)


def test_comparisons_have_their_probabilities():
    """One context and two arms: of those that differ, the share won is the sigmoid."""
    features = jnp.array([[[1.0, 0.0], [0.0, 1.0]]])
    case = gshf.LinearProblem(features, jnp.array([0.8, 0.0]), jnp.zeros((1, 2)), 1.0)
    first, second = jnp.log(jnp.array([[0.3, 0.7]])) + 2, jnp.log(jnp.array([[6.0, 4.0]]))
    found = jax.jit(lambda key: gshf.compare(case, first, second, 20000, key))(jax.random.key(0))
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
        lambda key: gshf.online_regret(case, given, rounds, pairs, key, ridge=0.5, bonus=1.0)
    )
    now = given
    step = jax.jit(
        lambda now, key: (
            main := gshf.learned_policy(case, now, 0.5, 0.0),
            gshf.compare(case, main, gshf.explorer(case, main, now, 0.5, 1.0), pairs, key),
        )
    )
    for regret, of_round in zip(run(key), jax.random.split(key, rounds), strict=True):
        main, new = step(now, of_round)
        np.testing.assert_allclose(regret, gshf.regularized_regret(case, main), rtol=1e-8)
        now = gshf.Comparisons(*(np.concatenate(part) for part in zip(now, new, strict=True)))


def test_elliptical_uncertainty():
    rng = np.random.default_rng(2)
    chosen, rejected, features = rng.normal(size=(3, 7, 4))
    center, reward = features.mean(axis=0), rng.normal(size=7)
    precision = gshf.precision(chosen - rejected, np.ones(7), 0.5)
    by_hand = 0.5 * np.eye(4) + sum(np.outer(d, d) for d in chosen - rejected)
    np.testing.assert_allclose(precision, by_hand, rtol=1e-12)
    away = features - center
    expected = np.sqrt(np.einsum("ni,ij,nj->n", away, np.linalg.inv(by_hand), away))
    got = jax.jit(gshf.pessimistic)(reward, features, center, precision, 0.4)
    np.testing.assert_allclose(got, reward - 0.4 * expected, rtol=1e-12)
    # Twice the data along one direction: sqrt 2 less of it unknown.
    seen = np.zeros((1, 4)), np.array([[0, 0, 100.0, 0]])
    ratio = [
        gshf.width(np.eye(4)[2], np.zeros(4), gshf.precision(x - y, np.ones(len(x)), 1e-12))
        for x, y in (seen, [np.concatenate([x, x]) for x in seen])
    ]
    np.testing.assert_allclose(ratio[0] / ratio[1], np.sqrt(2), rtol=1e-12)
    refused(
        ValueError,
        ["center", "precision", "[4]"],
        lambda: gshf.width(features, center[:3], precision),
    )
    refused(ValueError, ["ridge"], lambda: gshf.precision(chosen - rejected, np.ones(7), 0.0))


def test_refusals():
    key, case, given = jax.random.key(0), problem(), data(4)
    for error, words, call in (
        (ValueError, ["ridge", "0.0"], lambda: rewards.linear_bradley_terry(*given, 0.0)),
        (ValueError, ["rounds", "pairs", "0 and 5"],
         lambda: gshf.online_regret(case, given, 0, 5, key, ridge=1.0, bonus=1.0)),
        (ValueError, ["rounds", "pairs", "5 and 0"],
         lambda: gshf.online_regret(case, given, 5, 0, key, ridge=1.0, bonus=1.0)),
    ):  # fmt: skip
        refused(error, words, call)
