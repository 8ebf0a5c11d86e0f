import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize, special

from jdiv import divergences, generators, regularized
from jdiv.games import preferences, self_play
from tests.checks import PARAMETERS, refused

RPS = np.array([[0.5, 0, 1], [1, 0.5, 0], [0, 1, 0.5]])
REFERENCE = np.array([0.6, 0.3, 0.1])
PREVIOUS = np.array([0.5, 0.2, 0.3])
LOG_REF, LOG_PREVIOUS = np.log(REFERENCE), np.log(PREVIOUS)
# The regularised equilibria of rock-paper-scissors, by weight of KL(pi‖ref).
EQUILIBRIA = {0.1: (0.29579, 0.44419, 0.26002), 0.3: (0.36972, 0.49322, 0.13706)}
BOTH = ((0.05, generators.kl()), (0.1, generators.reverse_kl()))


def table(x):
    return np.round(np.exp(x), 5)


# ------------------------------------------------------------------------------ proximal steps


@pytest.fixture(scope="module")
def played():
    """KL(pi*‖pi_k) on rock-paper-scissors for beta = .1, .03, .01, by method."""
    methods = {
        "prox": self_play.mirror_prox,
        "descent": functools.partial(self_play.online_mirror_descent, step_size=2.0),
        "md": functools.partial(self_play.nash_md, step_size=0.5),
    }

    @jax.jit
    @jax.vmap
    def run(beta):
        star = preferences.nash(RPS, LOG_REF, beta, generator=generators.kl()).log_policy
        return {
            name: self_play.play(
                lambda x, step=step: step(x, RPS, LOG_REF, beta=beta),
                LOG_REF,
                400,
                lambda x: divergences.kl(star, x),
            )
            for name, step in methods.items()
        }

    with jax.enable_x64(True):
        return {name: np.asarray(x) for name, x in run(jnp.array([0.1, 0.03, 0.01])).items()}


def test_reference_numbers_of_rock_paper_scissors(played):
    np.testing.assert_allclose(played["prox"][:, 0], (0.21359, 0.2377, 0.24019), atol=6e-6)
    np.testing.assert_allclose(played["prox"][:, 10], (5.46e-4, 6.78e-3, 1.54e-2), rtol=2e-3)
    np.testing.assert_allclose(played["prox"][1:, 50], (1.65e-9, 1.11e-7), rtol=5e-3)
    assert played["descent"][0, 400] < 1e-12
    expected = [(0.559, 0.743, 0.767), (1.20, 1.83, 2.03)]
    np.testing.assert_allclose(played["descent"][1:][:, [20, 100, 400]], expected, atol=5e-3)
    np.testing.assert_allclose(played["md"][2, [20, 100, 400]], (0.263, 0.339, 0.494), atol=5e-4)


def test_mirror_prox_contracts_on_random_games():
    @jax.jit
    @functools.partial(jax.vmap, in_axes=(0, None))
    def run(key, beta):
        of_game, of_ref, of_start = jax.random.split(key, 3)
        p = preferences.random_game(8, of_game, skew=3.0)
        ref, start = jax.random.normal(of_ref, (8,)), 2 * jax.random.normal(of_start, (8,))
        star = preferences.nash(p, ref, beta, generator=generators.kl())
        distances = self_play.play(
            lambda x: self_play.mirror_prox(x, p, ref, beta=beta),
            jax.nn.log_softmax(start),
            200,
            lambda x: divergences.kl(star.log_policy, x),
        )
        return distances, star.converged

    for beta in (0.3, 0.03):
        distances, converged = map(np.asarray, run(jax.random.split(jax.random.key(2), 100), beta))
        assert converged.all()
        bound = distances[:, :1] * (1 + 2 * beta) ** -np.arange(201.0)
        assert (distances <= bound + 1e-14).all()
        assert (distances[:, -1] < 1e-5).all()


@pytest.mark.parametrize("name", ["kl", "pearson_chi2"])
def test_a_proximal_step_is_the_best(name):
    row = generators.get(name, **PARAMETERS[name])
    rng = np.random.default_rng(0)
    values, beta, step_size = np.array([0.3, -0.5, 0.9]), 0.2, 3.0
    new = np.exp(
        self_play.proximal(
            jnp.asarray(values), LOG_PREVIOUS, LOG_REF,
            beta=beta, step_size=step_size, generator=row,
        )
    )  # fmt: skip
    f, slope = {
        "kl": (lambda u: u * np.log(u) - u + 1, np.log),
        "pearson_chi2": (lambda u: (u - 1) ** 2, lambda u: 2 * (u - 1)),
    }[name]

    def objective(x):
        penalty = np.sum(REFERENCE * f(x / REFERENCE), axis=-1)
        tangent = np.sum(REFERENCE * f(PREVIOUS / REFERENCE)) + (x - PREVIOUS) @ slope(
            PREVIOUS / REFERENCE
        )
        return x @ values - beta * penalty - (penalty - tangent) / step_size

    others = rng.dirichlet(np.ones(3), 20000)
    near = new + 1e-3 * (others - 1 / 3)
    assert objective(new) >= np.max(objective(others)) - 1e-14
    assert objective(new) >= np.max(objective(near)) - 1e-14


@pytest.mark.parametrize("name", ["reverse_kl"])
def test_mirror_prox_finds_the_equilibrium_of_any_row(name):
    row = generators.get(name)

    @jax.jit
    def run():
        step = functools.partial(
            self_play.mirror_prox, preference=RPS, ref_logits=LOG_REF,
            beta=0.2, step_size=0.5, generator=row,
        )  # fmt: skip
        return preferences.nash(RPS, LOG_REF, 0.2, generator=row), self_play.play(
            step, LOG_REF, 400
        )[-1]

    found, last = run()
    assert found.converged
    np.testing.assert_allclose(np.exp(last), np.exp(found.log_policy), atol=1e-9)


def test_steps_are_the_same_everywhere(same_everywhere):
    rng = np.random.default_rng(4)
    policy, ref = jnp.log(jnp.asarray(rng.dirichlet(np.ones(3), (2, 8))))
    game = jnp.broadcast_to(RPS, (8, 3, 3))
    same_everywhere(
        lambda x, p, r: self_play.mirror_prox(x, p, r, beta=0.1), policy, game, ref, rtol=1e-11
    )


def test_the_gradient_of_nash_md_loss_is_the_step_of_nash_md():
    """By enumeration of all answers of the policy and of the mixture, and of who wins."""
    rng = np.random.default_rng(5)
    beta, step_size = 0.3, 0.7
    game = np.asarray(preferences.random_game(4, jax.random.key(3)))
    logits, ref = rng.normal(size=(2, 4))
    log_ref = special.log_softmax(ref)
    ours, theirs = (x.ravel() for x in np.indices((4, 4)))

    @jax.jit
    def run(logits):
        log_policy = jax.nn.log_softmax(logits)
        mixture = self_play.geometric_mixture(log_policy, log_ref, step_size * beta)
        drawn = jnp.exp(log_policy[ours] + mixture[theirs])
        won = jnp.asarray(game)[ours, theirs]

        def mean_loss(logits, outcomes):
            log_probs = jax.nn.log_softmax(logits)[ours]
            losses = [
                chance * self_play.nash_md_loss(log_probs, log_ref[ours], outcome, beta=beta)
                for chance, outcome in outcomes
            ]
            return jnp.sum(drawn * sum(losses))

        certain = ((won, jnp.ones(16)), (1 - won, jnp.zeros(16)))  # who won each comparison
        new = self_play.nash_md(log_policy, game, log_ref, beta=beta, step_size=step_size)
        slopes = [jax.grad(mean_loss)(logits, x) for x in (((1.0, won),), certain)]
        return *slopes, (new - log_policy) / step_size

    by_probability, by_outcome, direction = map(np.asarray, run(jnp.asarray(logits)))
    pi = special.softmax(logits)
    np.testing.assert_allclose(by_probability, -pi * (direction - pi @ direction), atol=1e-14)
    np.testing.assert_allclose(by_outcome, by_probability, atol=1e-14)
    # It is at rest at the equilibrium of the regularized game, for a mixture that is the policy.
    star = preferences.nash(game, log_ref, beta, generator=generators.kl()).log_policy
    wins = jnp.asarray(game @ np.exp(star))
    slope = jax.grad(
        lambda x: jnp.sum(
            jnp.exp(star) * self_play.nash_md_loss(jax.nn.log_softmax(x), log_ref, wins, beta=beta)
        )
    )(star)
    np.testing.assert_allclose(slope, 0, atol=1e-12)


# -------------------------------------------------------------------------------------------- INPO


def pairs(x):
    """x[..., a] and x[..., b] for all pairs."""
    shape = (*x.shape, x.shape[-1])
    return jnp.broadcast_to(x[..., :, None], shape), jnp.broadcast_to(x[..., None, :], shape)


def test_the_minimizer_of_inpo_is_its_update():
    weight = PREVIOUS[:, None] * PREVIOUS[None] * RPS  # of a winning against b

    def loss(logits):
        log_policies = (jax.nn.log_softmax(logits), LOG_REF, LOG_PREVIOUS)
        arrays = [x for log_policy in log_policies for x in pairs(log_policy)]
        return jnp.sum(weight * self_play.inpo_loss(*arrays, beta=0.5, step_size=0.5))

    found = optimize.minimize(jax.jit(jax.value_and_grad(loss)), np.zeros(3), jac=True, tol=1e-14)
    new = np.exp(self_play.inpo(LOG_PREVIOUS, RPS, LOG_REF, beta=0.5, step_size=0.5))
    np.testing.assert_allclose(special.softmax(found.x), new, atol=1e-9)
    np.testing.assert_array_equal(np.round(new, 5), (0.54711, 0.23726, 0.21564))
    by_hand = REFERENCE**0.25 * PREVIOUS**0.75 * np.exp(RPS @ PREVIOUS / 2)
    np.testing.assert_allclose(new, by_hand / by_hand.sum(), rtol=1e-13)


# ----------------------------------------------------------------------------------- SPPO and RSPO


def test_sppo_spirals_and_a_penalty_holds_it():
    @jax.jit
    def run():
        free = self_play.play(lambda x: self_play.sppo(x, RPS, step_size=0.5), LOG_PREVIOUS, 5000)
        held = {
            weight: self_play.play(
                lambda x, w=weight: self_play.rspo(
                    x, RPS, LOG_REF, step_size=0.5, penalties=((w, generators.kl()),)
                ),
                LOG_PREVIOUS,
                2000,
            )[-1]
            for weight in EQUILIBRIA
        }
        both = self_play.play(
            lambda x: self_play.rspo(x, RPS, LOG_REF, step_size=0.5, penalties=BOTH),
            LOG_PREVIOUS,
            1000,
        )[-1]
        row = generators.weighted_sum(BOTH)
        gap = preferences.regularized_exploitability(both, RPS, LOG_REF, 1.0, generator=row)
        return free[-1], held, gap

    free, held, gap = run()
    np.testing.assert_array_equal(table(free), (0.99893, 0, 0.00107))
    for weight, policy in held.items():
        np.testing.assert_array_equal(table(policy), EQUILIBRIA[weight])
    assert abs(gap) < 1e-14


def test_a_weighted_sum_is_a_row():
    rows = [generators.get(name, **PARAMETERS[name]) for name in ("kl", "alpha", "le_cam")]
    row = generators.weighted_sum(tuple(zip((0.3, 0.5, 2.0), rows, strict=True)))
    p, q = LOG_PREVIOUS, LOG_REF
    apart = sum(
        w * divergences.f_divergence(r, p, q) for w, r in zip(row.weights, rows, strict=True)
    )
    np.testing.assert_allclose(divergences.f_divergence(row, p, q), apart, rtol=1e-14)
    t = jnp.asarray(np.random.default_rng(3).normal(size=40) * 3)
    back = jax.jit(row.shift)(jnp.zeros(40), row.slope(t))
    np.testing.assert_allclose(back, t, atol=1e-12)
    values = jnp.array([0.3, -0.5, 0.9])
    both = generators.jeffreys()
    penalties = (
        (1.0, generators.reverse_kl()),
        (0.0, generators.alpha(-1.0)),
        (1.0, generators.kl()),
    )
    as_sum = generators.weighted_sum(penalties)
    best = jax.jit(
        lambda: [regularized.greedy(values, q, 0.4, generator=r) for r in (both, as_sum)]
    )()
    np.testing.assert_allclose(best[1].log_policy, best[0].log_policy, atol=1e-12)
    np.testing.assert_allclose(best[1].value, best[0].value, atol=1e-14)


def test_losses_of_sppo_and_rspo():
    wins = jnp.asarray(RPS @ PREVIOUS)

    # Over functions of the answer that need not be normalised, each has its own minimizer.
    at = LOG_PREVIOUS + 0.5 * (wins - 0.5)
    np.testing.assert_allclose(
        self_play.sppo_loss(at, LOG_PREVIOUS, wins, step_size=0.5), 0, atol=1e-30
    )
    np.testing.assert_allclose(
        jax.nn.log_softmax(at), self_play.sppo(LOG_PREVIOUS, RPS, step_size=0.5), atol=1e-14
    )

    def mean_loss(logits):
        log_policy = jax.nn.log_softmax(logits)
        loss = self_play.rspo_loss(
            log_policy, LOG_PREVIOUS, LOG_REF, wins, step_size=0.5, penalties=BOTH
        )
        return jnp.sum(PREVIOUS * loss)

    def by_definition(logits):
        pi = special.softmax(logits)
        squares = (np.log(pi / PREVIOUS) - 0.5 * (RPS @ PREVIOUS - 0.5)) ** 2
        penalty = 0.05 * special.rel_entr(pi, REFERENCE) + 0.1 * special.rel_entr(REFERENCE, pi)
        return np.sum(PREVIOUS * squares + penalty)

    logits = np.array([0.2, -0.3, 0.5])
    value, gradient = jax.jit(jax.value_and_grad(mean_loss))(jnp.asarray(logits))
    assert value == pytest.approx(by_definition(logits), rel=1e-13)
    np.testing.assert_allclose(
        gradient, optimize.approx_fprime(logits, by_definition, 1e-7), atol=1e-6
    )


# -------------------------------------------------------------------------------------------- SPIN


def test_the_reference_of_spin_is_a_penalty():
    rewards, a, b = np.array([0.2, 1.0, -0.4]), 0.3, 0.7
    mixed = self_play.geometric_mixture(LOG_PREVIOUS, LOG_REF, b / (a + b))
    tilted = regularized.greedy(
        jnp.asarray(rewards), mixed, a + b, generator=generators.kl()
    ).log_policy
    np.testing.assert_array_equal(table(tilted), (0.45976, 0.47848, 0.06176))

    def negative(x):
        pi = special.softmax(x)
        kls = [special.rel_entr(pi, q).sum() for q in (PREVIOUS, REFERENCE)]
        return -(pi @ rewards) + a * kls[0] + b * kls[1]

    found = optimize.minimize(negative, np.zeros(3), tol=1e-12)
    np.testing.assert_allclose(special.softmax(found.x), np.exp(tilted), atol=1e-6)


def test_the_minimizer_of_spin_is_its_update():
    log_data = jnp.log(jnp.array([0.2, 0.5, 0.3]))
    weight = np.exp(log_data)[:, None] * PREVIOUS[None]
    options = {"beta": 0.7, "share": 0.4}

    def loss(logits):
        log_policies = (jax.nn.log_softmax(logits), LOG_PREVIOUS, LOG_REF)
        arrays = [x for log_policy in log_policies for x in pairs(log_policy)]
        return jnp.sum(weight * self_play.spin_loss(*arrays, **options))

    found = optimize.minimize(jax.jit(jax.value_and_grad(loss)), np.zeros(3), jac=True, tol=1e-14)
    step = functools.partial(self_play.spin, log_data=log_data, ref_logits=LOG_REF, **options)
    np.testing.assert_allclose(special.softmax(found.x), np.exp(step(LOG_PREVIOUS)), atol=1e-8)

    # Unregularised SPIN is there at once; with a share of the base it rests in between.
    once = self_play.spin(LOG_PREVIOUS, log_data, LOG_REF, beta=1.0)
    np.testing.assert_allclose(once, log_data, atol=1e-14)
    rest = jax.jit(lambda: self_play.play(step, LOG_PREVIOUS, 200)[-1])()
    between = self_play.geometric_mixture(log_data, LOG_REF, 0.28 / 1.28)
    np.testing.assert_allclose(np.exp(rest), np.exp(between), atol=1e-12)


def test_fictitious_play_remembers_the_average():
    log_data = jnp.log(jnp.array([0.2, 0.5, 0.3]))
    step = functools.partial(self_play.spin, log_data=log_data, ref_logits=LOG_REF, beta=2.0)

    @jax.jit
    def run():
        return self_play.play(
            lambda state: self_play.fictitious_play(
                state, lambda log_policy, opponent: step(log_policy, log_opponent=opponent)
            ),
            self_play.first_history(LOG_PREVIOUS),
            30,
        )

    history = run()
    averages = np.cumsum(np.exp(history.log_policy), axis=0) / np.arange(1, 32)[:, None]
    np.testing.assert_allclose(np.exp(history.log_average), averages, rtol=1e-12)
    expected = np.exp(history.log_policy[4]) * np.sqrt(np.exp(log_data) / averages[4])
    np.testing.assert_allclose(np.exp(history.log_policy[5]), expected / expected.sum(), rtol=1e-12)


def test_wrong_input_is_refused():
    tv, kl = generators.total_variation(), generators.kl()
    three = jnp.zeros(3)
    refused(
        ValueError, ("beta",),
        lambda: self_play.proximal(three, three, three, beta=0.0, step_size=1.0),
    )  # fmt: skip
    refused(
        ValueError, ("values", "ref_logits"),
        lambda: self_play.proximal(three, three, jnp.zeros(2), beta=1.0, step_size=1.0),
    )  # fmt: skip
    refused(
        TypeError, ("generator", "total_variation"),
        lambda: self_play.mirror_prox(three, RPS, three, beta=1.0, generator=tv),
    )  # fmt: skip
    refused(
        ValueError, ("step_size * beta", "below 1"),
        lambda: self_play.nash_md(three, RPS, three, beta=1.0, step_size=2.0),
    )  # fmt: skip
    refused(
        ValueError, ("P + P^T",), lambda: self_play.sppo(three, 0.5 * np.eye(3), step_size=0.5)
    )  # fmt: skip
    refused(ValueError, ("penalties",), lambda: generators.weighted_sum(()))
    refused(
        TypeError, ("total_variation",), lambda: generators.weighted_sum(((1.0, kl), (1.0, tv)))
    )
    refused(ValueError, ("weights",), lambda: generators.weighted_sum(((-1.0, kl),)))
    refused(
        ValueError, ("log_probs", "old_log_probs"),
        lambda: self_play.sppo_loss(three, jnp.zeros(2), three, step_size=1.0),
    )  # fmt: skip
    refused(
        ValueError, ("step_size",),
        lambda: self_play.inpo_loss(*[three] * 6, beta=0.1, step_size=-1.0),
    )  # fmt: skip
    refused(
        ValueError, ("real", "generated"),
        lambda: self_play.spin_loss(three, *[jnp.zeros(2)] * 5, beta=1.0),
    )  # fmt: skip
