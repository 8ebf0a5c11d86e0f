import jax
import jax.numpy as jnp
import numpy as np
from scipy import optimize, special

from jdiv.alignment import rewards
from tests.checks import refused

# ----------------------------------------------------------------------------------- Bradley-Terry


def tournaments():
    """Dense, sparse, and lopsided counts of six answers; a ring, where each beats the next only."""
    rng = np.random.default_rng(0)
    strength = rng.normal(size=(8, 6)) * np.array([0.5, 1, 2, 3, 0.5, 1, 2, 3])[:, None]
    rate = special.expit(strength[:, :, None] - strength[:, None, :])
    games = rng.integers(0, 9, (8, 6, 6)) * (rng.uniform(size=(8, 6, 6)) < 0.7)
    games = np.triu(games, 1)
    won = rng.binomial(games, rate)
    wins = won + np.swapaxes(games - won, 1, 2)
    ring = np.roll(np.eye(6), 1, axis=1)
    return (wins + 0.25 * (ring + ring.T) * (np.arange(8) % 2)[:, None, None] + ring).astype(float)


def test_bradley_terry_is_the_likeliest():
    """Against BFGS of SciPy on the likelihood of the pairs, by `bradley_terry_loss` and by hand."""
    wins = tournaments()
    fit = jax.jit(rewards.bradley_terry)(wins)
    assert fit.converged.all()
    assert fit.iterations < 30
    assert (fit.residual < 1e-14).all()
    np.testing.assert_allclose(fit.rewards.sum(axis=-1), 0, atol=1e-12)
    for one, got, value in zip(wins, fit.rewards, fit.log_likelihood, strict=True):

        def negative(r, one=one):
            d = r[:, None] - r[None]
            slope = one * special.expit(-d)
            return (one * np.logaddexp(0, -d)).sum(), slope.sum(axis=0) - slope.sum(axis=1)

        best = optimize.minimize(negative, np.zeros(6), jac=True, method="BFGS", tol=1e-11)
        np.testing.assert_allclose(got, best.x - best.x.mean(), atol=1e-6)
        np.testing.assert_allclose(value, -best.fun, rtol=1e-12)
        assert negative(np.asarray(got))[0] <= best.fun + 1e-12
    pairs = rewards.bradley_terry_loss(*(np.asarray(got)[i] for i in np.nonzero(np.ones((6, 6)))))
    np.testing.assert_allclose(-(wins[-1].ravel() * pairs).sum(), fit.log_likelihood[-1])


def test_bradley_terry_of_extreme_counts():
    """Closed forms: two answers, and a chain of three."""
    wins = np.array([[0, 1e9], [1e-3, 0]])
    fit = jax.jit(rewards.bradley_terry)(wins)
    assert fit.converged
    np.testing.assert_allclose(fit.rewards, np.log(1e12) / 2 * np.array([1, -1]), rtol=1e-12)
    chain = np.array([[5.0, 30, 0], [1, 0, 2], [0, 40, 7]])  # the diagonal does not count
    fit = jax.jit(rewards.bradley_terry)(chain)
    expected = np.array([np.log(30), 0, np.log(20)])
    np.testing.assert_allclose(fit.rewards, expected - expected.mean(), rtol=1e-12)


def test_bradley_terry_in_single_precision_and_batched(same_everywhere):
    same_everywhere(lambda x: rewards.bradley_terry(x)._replace(iterations=x), tournaments())
    fit = jax.jit(rewards.bradley_terry)(jnp.float32(tournaments()))
    assert fit.rewards.dtype == jnp.float32
    assert fit.converged.all()


def test_bradley_terry_of_rare_upsets_in_single_precision():
    """A million wins against one: the odds, in as few steps, and evidence that sees a wrong one."""
    fit = jax.jit(rewards.bradley_terry)(np.array([[0, 10**6], [1, 0]], np.float32))
    assert fit.converged
    assert fit.iterations < 30
    np.testing.assert_allclose(fit.rewards[0] - fit.rewards[1], np.log(1e6), rtol=1e-6)
    apart = np.array([[1.0], [1.0]], np.float32)
    fit = jax.jit(rewards.linear_bradley_terry)(apart, np.array([1, 0]), np.array([10**6, 1]), 1e-9)
    assert fit.converged
    assert fit.residual < 1e-5
    np.testing.assert_allclose(fit.weights, np.log(1e6), rtol=1e-6)


def test_data_that_fall_apart():
    never_beaten = np.array([[0, 2.0, 1], [0, 0, 1], [0, 1, 0]])
    two_islands = np.kron(np.eye(2), np.ones((2, 2)))
    for wins in (never_beaten, two_islands):
        refused(ValueError, ["wins", "falls apart"], lambda wins=wins: rewards.bradley_terry(wins))
        fit = jax.jit(rewards.bradley_terry)(wins)
        assert not fit.converged
        assert np.isnan(fit.rewards).all()
    refused(ValueError, ["wins", "square"], lambda: rewards.bradley_terry(np.ones((2, 3))))
    refused(ValueError, ["wins", "negative"], lambda: rewards.bradley_terry(-np.ones((2, 2))))


def test_bradley_terry_loss():
    x = jnp.array([-800.0, -1.0, 0.0, 3.0, 800.0])
    expected = [800, *-special.log_expit(np.array([-1.0, 0, 3])), 0]
    np.testing.assert_allclose(rewards.bradley_terry_loss(x, 0 * x), expected, rtol=1e-14)
    slope = jax.grad(lambda x: rewards.bradley_terry_loss(x, 0 * x).sum())(x)
    np.testing.assert_allclose(slope, -special.expit(-np.asarray(x)), rtol=1e-14)


# --------------------------------------------------------------------------- ensembles, penalties


def test_ensembles(same_everywhere):
    members = np.random.default_rng(1).normal(size=(8, 5, 4))  # [batch, k, answers]
    by_hand = {
        rewards.mean_reward: members.mean(axis=1),
        rewards.worst_case: members.min(axis=1),
        rewards.uncertainty_weighted: members.mean(axis=1) - 0.5 * np.var(members, axis=1),
        lambda x: rewards.uncertainty_weighted(x, 0.3, unbiased=True): (
            members.mean(axis=1) - 0.3 * np.var(members, axis=1, ddof=1)
        ),
        lambda x: rewards.deviation_penalized(x, 0.7): (
            members.mean(axis=1) - 0.7 * np.std(members, axis=1)
        ),
    }
    for f, expected in by_hand.items():
        np.testing.assert_allclose(jax.vmap(f)(members), expected, rtol=1e-13)
    one = members[:, :1]
    np.testing.assert_array_equal(jax.vmap(rewards.uncertainty_weighted)(one), one[:, 0])
    refused(ValueError, ["two"], lambda: rewards.uncertainty_weighted(one[0], unbiased=True))
    refused(ValueError, ["k models"], lambda: rewards.mean_reward(np.zeros((0, 3))))
    zero_and_one = np.array([[0, 1, 1], [1, 1, 0]])
    np.testing.assert_array_equal(rewards.worst_case(zero_and_one), [0, 1, 0])
    refused(ValueError, ["rewards", "0 and 1", "2"], lambda: rewards.worst_case(2 * zero_and_one))


def test_nuclear_diversity_by_eigenvalues_and_differences():
    """Against the square roots of eigenvalues and finite differences; with rank 1 and zero."""
    members = np.random.default_rng(3).normal(size=(4, 3, 2))
    rows = members.reshape(4, 6)
    expected = np.sqrt(np.linalg.eigvalsh(rows @ rows.T)).sum()
    np.testing.assert_allclose(rewards.nuclear_diversity(members), expected, rtol=1e-12)
    slope = jax.jit(jax.grad(rewards.nuclear_diversity))
    direction, h = np.random.default_rng(4).normal(size=members.shape), 1e-6
    ends = [rewards.nuclear_diversity(members + s * h * direction) for s in (1, -1)]
    np.testing.assert_allclose(np.sum(slope(members) * direction), (ends[0] - ends[1]) / (2 * h),
                               rtol=1e-7)  # fmt: skip
    left, _, right = np.linalg.svd(rows, full_matrices=False)
    np.testing.assert_allclose(slope(members).reshape(4, 6), left @ right, atol=1e-12)
    alike = np.tile(rows[:1] / np.linalg.norm(rows[0]), (4, 1))
    np.testing.assert_allclose(rewards.nuclear_diversity(alike), 2, rtol=1e-12)
    for degenerate in (alike, np.zeros((4, 6)), np.eye(4)):
        assert np.isfinite(slope(degenerate)).all()
    assert rewards.nuclear_diversity(members.astype(np.float16)).dtype == np.float32
    refused(ValueError, ("members",), lambda: rewards.nuclear_diversity(np.ones(3)))
    refused(ValueError, ("members",), lambda: rewards.nuclear_diversity(np.ones((0, 3))))
    refused(ValueError, ("members",), lambda: rewards.nuclear_diversity(np.full((2, 3), np.nan)))
