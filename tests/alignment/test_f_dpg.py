import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdiv import divergences, generators
from jdiv.alignment import f_dpg as dpg
from jdiv.policy.advantages import mean_of_others
from tests.checks import PARAMETERS, refused

# The customary generators, written down once more.
F = {
    "kl": lambda u: u * np.log(u),
    "reverse_kl": lambda u: -np.log(u),
    "jeffreys": lambda u: (u - 1) * np.log(u),
    "jensen_shannon": lambda u: 0.3 * u * np.log(u) - (0.3 * u + 0.7) * np.log(0.3 * u + 0.7),
    "skew_kl": lambda u: u * np.log(u / (0.8 * u + 0.2)),
    "total_variation": lambda u: np.abs(u - 1) / 2,
    "squared_hellinger": lambda u: 1 - np.sqrt(u),
    "pearson_chi2": lambda u: (u - 1) ** 2,
    "neyman_chi2": lambda u: (u - 1) ** 2 / u,
    "le_cam": lambda u: (u - 1) ** 2 / (2 * (u + 1)),
    "alpha": lambda u: (u**0.7 - 0.7 * u - 0.3) / (0.7 * -0.3),
    "tsallis": lambda u: (u**1.6 - u) / 0.6,
}
ROWS = {name: generators.get(name, **PARAMETERS[name]) for name in F}
N = 5


def softmax(logits):
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def cases():
    rng = np.random.default_rng(0)
    logits, target, proposal = 1.5 * rng.normal(size=(3, 20, N))
    return logits, target, proposal


@jax.jit
def by_enumeration(logits, target, proposal):
    """Rewards, and gradients of the expected loss: on-policy, from a proposal, with a baseline."""
    log_target, log_proposal = (jax.nn.log_softmax(x) for x in (target, proposal))

    def gradient(row, log_proposal, baseline):
        def expected(logits):
            log_policy = jax.nn.log_softmax(logits)
            q = log_policy if log_proposal is None else log_proposal
            loss = dpg.dpg_loss(log_policy, log_target, q, generator=row, baseline=baseline)
            return jnp.sum(jax.lax.stop_gradient(jnp.exp(q)) * loss)

        return jax.grad(expected)(logits)

    return {
        name: (
            dpg.pseudo_reward(jax.nn.log_softmax(logits), log_target, generator=row),
            gradient(row, None, 0.0),
            gradient(row, log_proposal, 0.0),
            gradient(row, log_proposal, 0.7),
            jax.grad(lambda x, row=row: divergences.f_divergence(row, x, log_target).sum())(logits),
        )
        for name, row in ROWS.items()
    }


@pytest.fixture(scope="module")
def found():
    with jax.enable_x64(True):
        return jax.tree.map(np.asarray, by_enumeration(*map(jnp.asarray, cases())))


@pytest.mark.parametrize("name", F)
def test_the_gradient_is_that_of_the_divergence(name, found):
    logits, target, _ = (x.astype(np.longdouble) for x in cases())
    p, step = softmax(target), np.longdouble(1e-6)
    change = step * np.eye(N, dtype=np.longdouble)

    def divergence(logits):
        return (p * F[name](softmax(logits) / p)).sum(axis=-1)

    differences = np.stack(
        [(divergence(logits + e) - divergence(logits - e)) / (2 * step) for e in change], axis=-1
    )
    u = softmax(logits) / p
    slope = (F[name](u * (1 + step)) - F[name](u * (1 - step))) / (2 * step * u)
    rewards, *gradients = found[name]
    np.testing.assert_allclose(rewards, -slope.astype(float), rtol=1e-9, atol=1e-9)
    for gradient in gradients:
        np.testing.assert_allclose(gradient, differences.astype(float), rtol=1e-9, atol=1e-9)


def test_the_published_table():
    """Six rows: divergence, rewards, their mean."""
    log_policy = jax.nn.log_softmax(jnp.array([0, 0.5, -1, 0.2, 1]))
    log_target = jnp.log(jnp.array([0.1, 0.2, 0.3, 0.15, 0.25]))
    table = {
        "reverse_kl": (0.315166, [0.69563, 0.84384, 5.67274, 0.85430, 0.63977], 1.0),
        "kl": (0.202812, [-1.36294, -1.16979, 0.73567, -1.15747, -1.44665], -1.2028),
        "total_variation": (0.247116, [-0.5, -0.5, 0.5, -0.5, -0.5], -0.4471),
        "jensen_shannon": (0.117630, [-0.16509, -0.0813, 1.20488, -0.07564, -0.19859], -0.0702),
        "neyman_chi2": (1.228241, [-0.5161, -0.28793, 31.18002, -0.27017, -0.5907], 1.2282),
        "pearson_chi2": (0.313172, [-0.8751, -0.37012, 1.64744, -0.3411, -1.12613], -0.6263),
    }

    @jax.jit
    def compute():
        rows = {name: generators.get(name) for name in table}
        return {
            name: (
                divergences.f_divergence(row, log_policy, log_target),
                dpg.pseudo_reward(log_policy, log_target, generator=row),
            )
            for name, row in rows.items()
        }

    for name, (value, got) in compute().items():
        divergence, rewards, mean = table[name]
        scale = 2 if name == "jensen_shannon" else 1  # the paper's
        np.testing.assert_allclose(scale * got, rewards, atol=6e-6)
        np.testing.assert_allclose(scale * jnp.exp(log_policy) @ got, mean, atol=6e-5)
        np.testing.assert_allclose(scale * value, divergence, atol=6e-7)


def test_zeros_are_exact():
    log_p = jnp.array([-jnp.inf, jnp.log(0.5), -jnp.inf])
    log_pi = jnp.array([jnp.log(0.5), -jnp.inf, -jnp.inf])
    ends = {  # -f'(inf), -f'(0), -f'(1)
        "reverse_kl": (0, np.inf, 1),
        "kl": (-np.inf, np.inf, -1),
        "total_variation": (-0.5, 0.5, 0),
        "jensen_shannon": (-np.log(2) / 2, np.inf, 0),
        "neyman_chi2": (-1, np.inf, 0),
        "pearson_chi2": (-np.inf, 2, 0),
    }
    for name, expected in ends.items():
        got = dpg.pseudo_reward(log_pi, log_p, generator=generators.get(name))
        np.testing.assert_allclose(got, expected, rtol=1e-15, atol=1e-15)

    def gradient(name):
        loss = lambda x: dpg.dpg_loss(x, log_p, jnp.zeros(3), generator=generators.get(name)).sum()
        return jax.grad(loss)(log_pi)

    # Of -(pi/q) r by log pi; nothing where pi = 0.
    np.testing.assert_array_equal(gradient("kl"), [np.inf, 0, 0])
    np.testing.assert_allclose(gradient("neyman_chi2"), [0.5, 0, 0], rtol=1e-15)


def test_a_ratio_that_overflows_costs_nothing():
    """p/pi = e^110 is no float32, (pi/q) (p/pi) = p/q is one."""
    log_pi, log_p, log_q = (jnp.float32(x) for x in (-120.0, -10.0, -9.0))
    row = jax.tree.map(jnp.float32, generators.reverse_kl())
    assert np.isinf(dpg.pseudo_reward(log_pi, log_p, generator=row))
    score = jax.grad(lambda x: dpg.dpg_loss(x, log_p, log_q, generator=row))(log_pi)
    np.testing.assert_allclose(score, -np.exp(-1), rtol=1e-6)


def test_a_baseline_from_the_others_is_unbiased():
    """Over all pairs of samples; with the own reward in the mean, half of the gradient."""
    logits, target, _ = (jnp.asarray(x[0]) for x in cases())
    log_target = jax.nn.log_softmax(target)
    row = generators.jeffreys()
    pairs = np.stack(np.meshgrid(np.arange(N), np.arange(N)), axis=-1).reshape(-1, 2)

    def expected(logits, baseline):
        log_policy = jax.nn.log_softmax(logits)
        rewards = dpg.pseudo_reward(log_policy, log_target, generator=row)[pairs]
        log_pi, log_p = log_policy[pairs], log_target[pairs]
        loss = dpg.dpg_loss(log_pi, log_p, log_pi, generator=row, baseline=baseline(rewards))
        weight = jax.lax.stop_gradient(jnp.exp(log_pi.sum(axis=-1)))
        return jnp.sum(weight * loss.mean(axis=-1))

    @jax.jit
    def gradients(logits):
        of_all = lambda rewards: jnp.mean(rewards, axis=-1, keepdims=True)
        return (
            jax.grad(lambda x: divergences.f_divergence(row, x, log_target))(logits),
            jax.grad(expected)(logits, mean_of_others),
            jax.grad(expected)(logits, of_all),
        )

    exact, of_others, of_all = gradients(logits)
    np.testing.assert_allclose(of_others, exact, atol=1e-13)
    np.testing.assert_allclose(of_all, exact / 2, atol=1e-13)


def test_window():
    rng = np.random.default_rng(1)
    stream = rng.normal(size=(4, 3))
    state, seen = dpg.empty_window(5, jnp.float64), []
    assert dpg.window_mean(state) == 0
    assert np.isnan(dpg.window_log_mean_exp(state))
    for values in stream:
        state = dpg.push(state, jnp.asarray(values))
        seen = [*seen, *values][-5:]
        np.testing.assert_allclose(dpg.window_mean(state), np.mean(seen), rtol=1e-14)
        np.testing.assert_allclose(
            dpg.window_log_mean_exp(state), np.log(np.mean(np.exp(seen))), rtol=1e-13
        )
    by_scan, _ = jax.lax.scan(
        lambda state, x: (dpg.push(state, x), None), dpg.empty_window(5, jnp.float64), stream
    )
    np.testing.assert_array_equal(by_scan.latest, state.latest)


def test_log_partition_is_unbiased():
    """Its exponential over all pairs of samples; from the target, one sample is exact."""
    rng = np.random.default_rng(2)
    log_target, q = rng.normal(size=N), softmax(rng.normal(size=N))
    pairs = np.stack(np.meshgrid(np.arange(N), np.arange(N)), axis=-1).reshape(-1, 2)
    estimate = dpg.log_partition(jnp.asarray(log_target)[pairs], jnp.log(q)[pairs])
    weight = q[pairs].prod(axis=-1)
    np.testing.assert_allclose(
        (weight * np.exp(estimate)).sum(), np.exp(log_target).sum(), rtol=1e-13
    )
    one = dpg.log_partition(log_target[:1] + 800, np.log(softmax(log_target))[:1])
    np.testing.assert_allclose(one, 800 + np.log(np.exp(log_target).sum()), rtol=1e-13)


def test_quasi_rejection(same_everywhere):
    rng = np.random.default_rng(3)
    log_target, logits = 2 * rng.normal(size=(2, 8, N))
    log_target[0, 1] = logits[1, 2] = log_target[2, 3] = logits[2, 3] = -np.inf
    target, q = np.exp(log_target), softmax(logits)
    p = target / target.sum(axis=-1, keepdims=True)
    for beta in (0.3, 2.0, 1e4):
        out = dpg.quasi_rejection(log_target, logits, beta)
        with np.errstate(divide="ignore", invalid="ignore"):
            rate = np.where(q > 0, np.minimum(1, target / (beta * q)), 0)
        law = q * rate / (q * rate).sum(axis=-1, keepdims=True)
        np.testing.assert_allclose(np.exp(out.log_policy), law, rtol=1e-12, atol=1e-15)
        np.testing.assert_allclose(out.acceptance, (q * rate).sum(axis=-1), rtol=1e-12)
        distance = np.abs(law - p).sum(axis=-1) / 2
        lost = 1 - np.minimum(target, beta * q).sum(axis=-1) / target.sum(axis=-1)
        np.testing.assert_allclose(out.bound, lost, atol=1e-13)
        assert (distance <= out.bound + 1e-13).all()
        assert (out.bound <= (p * (target > beta * q)).sum(axis=-1) + 1e-13).all()
    assert np.array_equal(out.bound > 1e-12, np.arange(8) == 1)  # what q never proposes
    same_everywhere(lambda x, y: dpg.quasi_rejection(x, y, 2.0), jnp.asarray(log_target), logits)


def test_accepted_samples_have_that_law():
    log_target, logits = jnp.array([[1.0, 0.0, -1.0], [0.0, 1.0, 0.5]])
    of_draws, of_coins = jax.random.split(jax.random.key(0))
    log_q = jax.nn.log_softmax(logits)
    x = np.asarray(jax.random.categorical(of_draws, log_q, shape=(40_000,)))
    kept = np.asarray(dpg.accept(log_target[x], log_q[x], 2.0, of_coins))
    law, acceptance, _ = dpg.quasi_rejection(log_target, logits, 2.0)
    for share, expected, count in (
        (kept.mean(), acceptance, x.size),
        *zip(np.bincount(x[kept]) / kept.sum(), np.exp(law), [kept.sum()] * 3, strict=True),
    ):
        assert abs(share - expected) < 4 * np.sqrt(expected * (1 - expected) / count)


def test_batching(same_everywhere):
    arrays = [jax.nn.log_softmax(jnp.asarray(x[:8])) for x in cases()]
    same_everywhere(lambda *x: dpg.dpg_loss(*x, generator=ROWS["skew_kl"], baseline=0.3), *arrays)


def test_refusals():
    row, x = generators.kl(), jnp.log(jnp.array([0.5, 0.5]))
    refused(ValueError, ["log_policy", "shape"], lambda: dpg.pseudo_reward(x, x[:1], generator=row))
    refused(TypeError, ["log_target"], lambda: dpg.pseudo_reward(x, jnp.arange(2), generator=row))
    none = jnp.array([-jnp.inf, 0.0])
    refused(ValueError, ["log_proposal"], lambda: dpg.dpg_loss(x, x, none, generator=row))
    refused(ValueError, ["beta", "positive"], lambda: dpg.quasi_rejection(x, x, 0.0))
    refused(ValueError, ["beta", "positive"], lambda: dpg.log_acceptance(x, x, -1.0))
    refused(ValueError, ["rewards", "two"], lambda: mean_of_others(x[:1]))
    refused(ValueError, ["size", "1"], lambda: dpg.empty_window(0))
