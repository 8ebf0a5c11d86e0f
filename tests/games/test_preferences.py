import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize, special

from jdiv import generators
from jdiv.games import preferences
from tests.checks import refused

REFERENCE = np.array([0.6, 0.3, 0.1])
RPS = np.array([[0.5, 0, 1], [1, 0.5, 0], [0, 1, 0.5]])
# beta -> the equilibrium, an independent computation.
EQUILIBRIA = {
    0.3: (0.36972, 0.49322, 0.13706),
    0.1: (0.29579, 0.44419, 0.26002),
    0.03: (0.31446, 0.36928, 0.31626),
    0.01: (0.32635, 0.34532, 0.32834),
}


KL = generators.kl()


@jax.jit
def solve_all(matrices, references, beta):
    """One after the other: none of them waits for the one that takes most iterations."""
    solve = lambda game: preferences.nash(*game, beta, generator=KL)
    return jax.lax.map(solve, (matrices, references))


def games(count, actions):
    keys = jax.random.split(jax.random.key(0), count)
    draw = jax.jit(jax.vmap(lambda key: preferences.random_game(actions, key, skew=2.0)))
    references = np.random.default_rng(0).dirichlet(np.ones(actions), count)
    return draw(keys), jnp.log(jnp.asarray(references))


def test_equilibria_of_rock_paper_scissors():
    solve = jax.jit(
        lambda beta: preferences.nash(RPS, jnp.log(jnp.asarray(REFERENCE)), beta, generator=KL)
    )
    for beta, expected in EQUILIBRIA.items():
        found = solve(beta)
        policy = np.exp(found.log_policy)
        np.testing.assert_array_equal(np.round(policy, 5), expected)
        logits = np.log(REFERENCE) + RPS @ policy / beta
        np.testing.assert_allclose(policy, special.softmax(logits), rtol=1e-12)
        assert found.converged
        assert abs(found.gap) < 1e-15


def test_random_games_against_a_solver_of_scipy():
    matrices, references = games(100, 20)
    for beta in (0.3, 0.03, 0.01):
        found = solve_all(matrices, references, beta)
        assert found.converged.all()
        for game in (0, 1, 2):  # from nearby: it does not find them from anywhere
            p, log_ref = np.asarray(matrices[game]), np.asarray(references[game])
            policy = np.exp(found.log_policy[game])
            start = p @ policy + 1e-3 * np.sin(np.arange(20))
            root = optimize.root(
                lambda v, p=p, r=log_ref, b=beta: v - p @ special.softmax(r + v / b), start
            )
            assert root.success
            np.testing.assert_allclose(special.softmax(log_ref + root.x / beta), policy, atol=1e-9)


def test_equilibria_at_small_weights():
    """Le Cam's slope saturates, and Newton's method alone does not find these, nor KL's below."""
    row = generators.le_cam()
    solve = jax.jit(
        jax.vmap(lambda p, r, b: preferences.nash(p, r, b, generator=row), (0, 0, None))
    )
    small, large = games(12, 3), games(100, 20)
    runs = [solve(*small, beta) for beta in (0.1, 0.01, 0.001)]
    for found in (*runs, *(solve_all(*large, beta) for beta in (0.001, 1e-4))):
        assert found.converged.all()
        assert (found.residual < 1e-11).all()


def test_quadratic_penalties_against_a_linear_system_and_with_dropped_answers():
    solve = jax.jit(
        jax.vmap(lambda p, r, b: preferences.nash(p, r, b, generator=generators.pearson_chi2()))
    )
    matrices, references = games(16, 4)
    beta = np.where(np.arange(16) < 8, 3.0, 0.03)
    found = solve(matrices, references, jnp.asarray(beta))
    assert found.converged.all()
    policies = np.exp(found.log_policy)
    assert (policies[8:] == 0).any()
    for p, log_ref, b, policy in zip(matrices, references, beta, policies, strict=True):
        # 2 beta (pi/ref - 1) = P pi - c where pi > 0, less elsewhere; sum pi = 1.
        kept = policy > 0
        n, ref = kept.sum(), np.exp(log_ref)
        system = np.zeros((n + 1, n + 1))
        system[:n, :n] = np.asarray(p)[np.ix_(kept, kept)] - 2 * b * np.diag(1 / ref[kept])
        system[:n, n], system[n, :n] = -1, 1
        solution = np.linalg.solve(system, np.append(np.full(n, -2 * b), 1))
        np.testing.assert_allclose(solution[:n], policy[kept], atol=1e-12)
        slack = np.asarray(p) @ policy - solution[n] + 2 * b
        assert (slack[~kept] <= 1e-12).all()


def test_exploitability_by_its_definition():
    rng = np.random.default_rng(1)
    matrices, references = games(1, 5)
    p, ref = np.asarray(matrices[0]), np.exp(references[0])
    policy = rng.dirichlet(np.ones(5))
    others = np.concatenate([np.eye(5), rng.dirichlet(np.ones(5), 20000)])
    plain = preferences.exploitability(jnp.log(policy), p)
    assert plain == pytest.approx((others @ p @ policy).max() - 0.5, abs=1e-15)

    def chi2(x):
        return np.sum((x - ref) ** 2 / ref, axis=-1)

    row = generators.pearson_chi2()
    gap = preferences.regularized_exploitability(
        jnp.log(policy), p, jnp.log(ref), 0.4, generator=row
    )
    gains = others @ p @ policy - 0.4 * chi2(others) - 0.5 + 0.4 * chi2(policy)
    assert gains.max() <= gap < gains.max() + 0.02
    # For KL it is beta KL(pi‖best response).
    best = special.softmax(np.log(ref) + p @ policy / 0.4)
    gap = preferences.regularized_exploitability(
        jnp.log(policy), p, jnp.log(ref), 0.4, generator=KL
    )
    assert gap == pytest.approx(0.4 * special.rel_entr(policy, best).sum(), rel=1e-12)


def test_the_equilibrium_is_differentiable():
    log_ref = jnp.log(jnp.asarray(REFERENCE))
    solve = jax.jit(
        lambda beta, ref: jnp.exp(preferences.nash(RPS, ref, beta, generator=KL).log_policy)
    )
    slopes = jax.jit(jax.jacfwd(solve, (0, 1)))(0.1, log_ref)
    h = 1e-6
    by_beta = (solve(0.1 + h, log_ref) - solve(0.1 - h, log_ref)) / (2 * h)
    step = h * jnp.eye(3)[0]
    by_ref = (solve(0.1, log_ref + step) - solve(0.1, log_ref - step)) / (2 * h)
    np.testing.assert_allclose(slopes[0], by_beta, atol=1e-8)
    np.testing.assert_allclose(slopes[1][:, 0], by_ref, atol=1e-8)


def test_games():
    skewed = preferences.random_game(6, jax.random.key(1))
    np.testing.assert_allclose(skewed + skewed.T, 1, atol=1e-15)
    ranked = preferences.random_game(6, jax.random.key(1), skew=0.0)
    odds = np.log(ranked / (1 - ranked))  # transitive: odds add up
    np.testing.assert_allclose(odds[0, 1] + odds[1, 2], odds[0, 2], rtol=1e-10)
    policy, other = jnp.log(jnp.asarray([[0.5, 0.2, 0.3], REFERENCE]))
    rate = preferences.win_rate(policy, RPS, other)
    assert rate == pytest.approx(np.exp(policy) @ RPS @ np.exp(other), rel=1e-14)


def test_wrong_input_is_refused():
    wrong = RPS.copy()
    wrong[0, 1] = 0.1
    log_ref = jnp.log(jnp.asarray(REFERENCE))
    nash = preferences.nash
    refused(ValueError, ("preference", "P + P^T", "0.1"), lambda: preferences.checked(wrong))
    refused(ValueError, ("preference", "[0, 1]"), lambda: preferences.checked(2 * RPS - 0.5))
    refused(ValueError, ("preference", "(3, 2)"), lambda: preferences.checked(RPS[:, :2]))
    refused(TypeError, ("preference", "int"), lambda: preferences.checked(np.eye(2, dtype=int)))
    refused(ValueError, ("beta", "positive"), lambda: nash(RPS, log_ref, 0.0, generator=KL))
    refused(
        ValueError, ("ref_logits", "3 answers"), lambda: nash(RPS, log_ref[:2], 0.1, generator=KL)
    )
    refused(ValueError, ("vmap",), lambda: nash(RPS[None], log_ref, 0.1, generator=KL))
    refused(
        TypeError,
        ("generator",),
        lambda: nash(RPS, log_ref, 0.1, generator=generators.total_variation()),
    )
    refused(ValueError, ("skew",), lambda: preferences.sigmoid_game(jnp.zeros(2), jnp.ones((2, 2))))
    refused(ValueError, ("actions",), lambda: preferences.random_game(0, jax.random.key(0)))
