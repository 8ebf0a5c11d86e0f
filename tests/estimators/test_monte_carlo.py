"""Estimates per sample: closed forms, enumeration over small spaces, 60-digit references, edges."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jdiv import divergences as dv
from jdiv import estimators, generators
from tests.checks import refused

# The customary generator of each row and its f'(1), written down again, for any number type.
# name: (row, parameters, f, f'(1))
CUSTOMARY = {
    "kl": ("kl", {}, lambda u: u * mp.log(u), 1),
    "reverse_kl": ("reverse_kl", {}, lambda u: -mp.log(u), -1),
    "jeffreys": ("jeffreys", {}, lambda u: (u - 1) * mp.log(u), 0),
    "jensen_shannon": (
        "jensen_shannon",
        {"weight": 0.25},
        lambda u: u * mp.log(u) / 4 - (u / 4 + 0.75) * mp.log(u / 4 + 0.75),
        0,
    ),
    "skew_kl": (
        "skew_kl",
        {"skew": 0.25},
        lambda u: u * mp.log(u / (0.75 * u + 0.25)),
        0.25,
    ),
    "total_variation": ("total_variation", {}, lambda u: abs(u - 1) / 2, 0),
    "squared_hellinger": ("squared_hellinger", {}, lambda u: 1 - mp.sqrt(u), -0.5),
    "pearson_chi2": ("pearson_chi2", {}, lambda u: (u - 1) ** 2, 0),
    "neyman_chi2": ("neyman_chi2", {}, lambda u: (u - 1) ** 2 / u, 0),
    "le_cam": ("le_cam", {}, lambda u: (u - 1) ** 2 / (2 * (u + 1)), 0),
    "alpha .75": (
        "alpha",
        {"alpha": 0.75},
        lambda u: (mp.mpf(u) ** 0.75 - 0.75 * u - 0.25) / (-0.1875),
        0,
    ),
    "alpha 3": ("alpha", {"alpha": 3.0}, lambda u: (mp.mpf(u) ** 3 - 3 * u + 2) / 6, 0),
    "alpha -.5": (
        "alpha",
        {"alpha": -0.5},
        lambda u: (mp.mpf(u) ** -0.5 + 0.5 * u - 1.5) / 0.75,
        0,
    ),
    "tsallis 1.5": ("tsallis", {"index": 1.5}, lambda u: (mp.mpf(u) ** 1.5 - u) / 0.5, 1),
    "tsallis .5": ("tsallis", {"index": 0.5}, lambda u: (mp.sqrt(u) - u) / -0.5, 1),
    "tsallis 1": ("tsallis", {"index": 1.0}, lambda u: u * mp.log(u), 1),
}
SMOOTH = [name for name in CUSTOMARY if name != "total_variation"]
ONCE = [name for name in CUSTOMARY if name not in ("alpha 3", "alpha -.5", "tsallis 1")]
FORMS = ["centered_from_p", "plain_from_p", "centered_from_q", "plain_from_q"]
# Every row in every form, but plain only where it is not the centered one: f'(1) is not 0.
CASES = [
    (name, form) for name in CUSTOMARY for form in FORMS if "centered" in form or CUSTOMARY[name][3]
]


def generator_of(name):
    row, parameters, _, _ = CUSTOMARY[name]
    return generators.get(row, **parameters)


def f_of(name, form):
    """The function of u whose values the form averages, before division by u."""
    _, _, f, slope = CUSTOMARY[name]
    return f if form.startswith("plain") else lambda u: f(u) - slope * (u - 1)


def value_of(name, form):
    """What the form gives at a log-ratio t, in 60 digits."""
    f = f_of(name, form)
    if form.endswith("from_p"):
        return lambda t: f(mp.exp(t)) / mp.exp(t)
    return lambda t: f(mp.exp(t))


P = [0.4, -1.1, 0.3, 1.2, -0.2]
Q = [-0.5, 0.6, 0.1, 0.2, 1.0]
OTHER = [0.2, 0.1, -0.9, 0.4, 0.3]


@pytest.fixture(autouse=True)
def sixty_digits():
    with mp.workdps(60):
        yield


def logits():
    return tuple(jnp.array(x) for x in (P, Q, OTHER))


def log_softmax(x):
    return x - jax.nn.logsumexp(x)


def close(found, wanted, tolerance):
    np.testing.assert_allclose(
        np.asarray(found, np.float64),
        np.asarray(wanted, np.float64),
        rtol=tolerance,
        atol=tolerance,
    )


def pathwise(form, generator, p, q, source):
    """The mean of the gradients by p and q, samples held fixed and drawn from `source`.

    By enumeration.
    """

    def value(p, q):
        return form(generator, log_softmax(p), log_softmax(q))

    _, pullback = jax.vjp(value, p, q)
    return pullback(jax.nn.softmax(source))


@functools.cache
def exact(name):
    """The divergence of P and Q, and its gradients."""
    return jax.value_and_grad(functools.partial(dv.f_divergence, generator_of(name)), (0, 1))(
        jnp.array(P), jnp.array(Q)
    )


@functools.cache
def pathwise_of(name, form):
    """`pathwise` at P and Q, the samples drawn from the form's side."""
    p, q, _ = logits()
    source = p if form.endswith("from_p") else q
    return pathwise(getattr(estimators, form), generator_of(name), p, q, source)


# -------------------------------------------------------- Schulman's table: unit Gaussians, shifted


def gaussian_moments(mu, order=160):
    """Mean and standard deviation of k1, k2, k3 over the KL, x ~ N(0, 1), q = N(mu, 1)."""
    x, w = np.polynomial.hermite_e.hermegauss(order)
    w = w / w.sum()
    log_p, log_q = jnp.asarray(-(x**2) / 2), jnp.asarray(-((x - mu) ** 2) / 2)
    truth = mu**2 / 2
    for k in (estimators.kl_k1, estimators.kl_k2, estimators.kl_k3):
        value = np.asarray(k(log_p, log_q))
        mean = w @ value
        yield mean / truth, math.sqrt(w @ (value - mean) ** 2) / truth


@pytest.mark.parametrize("mu", [0.1, 1.0, 3.0])
def test_gaussian_closed_forms(mu):
    (mean1, sd1), (mean2, sd2), (mean3, sd3) = gaussian_moments(mu)
    assert mean1 == pytest.approx(1, rel=1e-11)
    assert mean2 == pytest.approx(1 + mu**2 / 4, rel=1e-11)
    assert mean3 == pytest.approx(1, rel=1e-10)
    assert sd1 == pytest.approx(2 / mu, rel=1e-11)
    assert sd2 == pytest.approx(math.sqrt(2 + mu**2), rel=1e-11)
    assert sd3 == pytest.approx(2 * math.sqrt(math.expm1(mu**2) - mu**2) / mu**2, rel=1e-9)


@pytest.mark.parametrize(
    ("mu", "bias", "deviation"),
    [
        (0.1, (0, 0.0025, 0), (20, 1.4177, 1.4166)),
        (1.0, (0, 0.25, 0), (2, 1.7321, 1.6950)),
        (3.0, (0, 2.25, 0), (0.6667, 3.3166, 20.0)),
    ],
)
def test_schulman_table(mu, bias, deviation):
    """Schulman's blog prints .002 / .25 for the bias of k2, and 20, 1.42, 1.42 / 2, 1.73, 1.7."""
    for (mean, sd), wanted_bias, wanted_sd in zip(
        gaussian_moments(mu), bias, deviation, strict=True
    ):
        assert mean - 1 == pytest.approx(wanted_bias, abs=1e-9)
        assert sd == pytest.approx(wanted_sd, rel=2e-3 if wanted_sd == 20.0 else 1e-4)


@pytest.mark.parametrize("mu", [0.1, 1.0])
def test_gaussian_samples(mu):
    n = 200_000
    x = np.random.default_rng(0).standard_normal(n)
    log_p, log_q = jnp.asarray(-(x**2) / 2), jnp.asarray(-((x - mu) ** 2) / 2)
    for k, (mean, sd) in zip(
        (estimators.kl_k1, estimators.kl_k2, estimators.kl_k3), gaussian_moments(mu), strict=True
    ):
        value = np.asarray(k(log_p, log_q)) / (mu**2 / 2)
        assert abs(value.mean() - mean) < 4 * sd / math.sqrt(n)
        assert value.std() == pytest.approx(sd, rel=0.03)


def test_k3_beats_k1_up_to_a_shift_of_1_12():
    """e^x = 1 + 2 x at x = 1.2564 = 1.1209^2."""
    for mu, better in ((1.11, True), (1.13, False)):
        (_, sd1), _, (_, sd3) = gaussian_moments(mu)
        assert (sd3 < sd1) == better


@pytest.mark.parametrize("name", SMOOTH)
@pytest.mark.parametrize("side", ["p", "q"])
def test_deviation_close_to_equality(name, side):
    """Centered: sqrt 2 of the divergence. Plain: 2 |f'(1)| / (f''(1) mu) of it on top."""
    mu = 1e-2
    x, w = np.polynomial.hermite_e.hermegauss(60)
    w, x = w / w.sum(), x + (mu if side == "q" else 0)
    log_p, log_q = jnp.asarray(-(x**2) / 2), jnp.asarray(-((x - mu) ** 2) / 2)
    generator, slope = generator_of(name), CUSTOMARY[name][3]
    curvature = float(mp.diff(CUSTOMARY[name][2], 1, 2))
    for form, wanted in (
        ("centered", math.sqrt(2)),
        ("plain", math.hypot(math.sqrt(2), 2 * slope / (curvature * mu))),
    ):
        value = np.asarray(getattr(estimators, f"{form}_from_{side}")(generator, log_p, log_q))
        mean = w @ value
        assert mean == pytest.approx(curvature * mu**2 / 2, rel=2e-3)
        assert math.sqrt(w @ (value - mean) ** 2) / mean == pytest.approx(wanted, rel=0.02)


# ------------------------------------------------------------------------------------ unbiasedness


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", CUSTOMARY)
def test_unbiased_by_enumeration(name, form):
    p, q, other = logits()
    generator, estimate = generator_of(name), getattr(estimators, form)
    log_p, log_q, log_other = map(log_softmax, (p, q, other))
    log_target = log_p if form.endswith("from_p") else log_q
    divergence, _ = exact(name)
    definition = mp.fsum(
        mp.mpf(b) * CUSTOMARY[name][2](mp.mpf(a) / mp.mpf(b))
        for a, b in zip(np.exp(log_p).tolist(), np.exp(log_q).tolist(), strict=True)
    )
    close(divergence, float(definition), 1e-14)
    close(jnp.exp(log_target) @ estimate(generator, log_p, log_q), divergence, 1e-14)
    weighted = estimate(generator, log_p, log_q, log_weights=log_target - log_other)
    close(jnp.exp(log_other) @ weighted, divergence, 1e-14)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", CUSTOMARY)
def test_values(name, form):
    """Against 60 digits, from p = q to ratios at which the divergence needs a logarithm."""
    generator, wanted = generator_of(name), value_of(name, form)
    for dtype, tolerance, ratios in (
        (jnp.float64, 2e-13, [0.0, 1e-9, -1e-5, 0.3, -0.99, 1.01, -3.0, 8.0, -40.0, 90.0, -300.0]),
        (jnp.float32, 3e-6, [0.0, 1e-6, -1e-4, 0.3, -0.99, 1.01, -3.0, 8.0, -16.0, 30.0, -41.0]),
    ):
        t = jnp.asarray(ratios, dtype)
        log_p = jnp.full_like(t, -1.0)
        # The difference of the logarithms is what the estimate sees.
        log_q = log_p - t
        seen = np.asarray(log_p - log_q, np.float64)
        found = np.asarray(getattr(estimators, form)(generator, log_p, log_q))
        assert found.dtype == dtype
        for ratio, value in zip(seen.tolist(), found.tolist(), strict=True):
            truth = float(wanted(mp.mpf(ratio)))
            if truth < float(jnp.finfo(dtype).max) / 100:
                # exp of a large number multiplies its rounding.
                assert value == pytest.approx(truth, rel=tolerance * max(1, abs(ratio))), ratio


@pytest.mark.parametrize(
    ("form", "name", "ratio"),
    [
        ("plain_from_p", "kl", -100.0),
        ("plain_from_p", "skew_kl", -100.0),
        ("plain_from_p", "tsallis 1.5", -100.0),
        ("plain_from_p", "tsallis .5", -100.0),
        ("plain_from_q", "reverse_kl", 100.0),
        ("plain_from_q", "squared_hellinger", 100.0),
    ],
)
def test_plain_form_where_the_centered_one_overflows(form, name, ratio):
    """In float32 the sum `f_c + f'(1) (u - 1)` is inf - inf here, and all noise long before."""
    generator = generator_of(name)
    log_p, log_q = jnp.float32(0.0), jnp.float32(-ratio)
    value, slope = jax.value_and_grad(getattr(estimators, form), 1)(generator, log_p, log_q)
    wanted = value_of(name, form)
    assert float(value) == pytest.approx(float(wanted(mp.mpf(ratio))), rel=1e-5)
    truth = float(mp.diff(wanted, mp.mpf(ratio)))
    assert float(slope) == pytest.approx(truth, rel=1e-4, abs=1e-7 * abs(float(value)))
    centered = getattr(estimators, form.replace("plain", "centered"))(generator, log_p, log_q)
    assert centered == jnp.inf


@pytest.mark.parametrize(("name", "form"), [case for case in CASES if case[0] in SMOOTH])
def test_slopes(name, form):
    generator, wanted = generator_of(name), value_of(name, form)
    ratios = jnp.array([0.0, 1e-7, -0.4, 0.999, -1.001, 4.0, -30.0])

    def total(log_p, log_q):
        return jnp.sum(getattr(estimators, form)(generator, log_p, log_q))

    by_p, by_q = jax.grad(total, (0, 1))(ratios, jnp.zeros_like(ratios))
    for ratio, found in zip(ratios.tolist(), by_p.tolist(), strict=True):
        truth = float(mp.diff(wanted, mp.mpf(ratio)))
        assert found == pytest.approx(truth, rel=1e-11, abs=1e-15)
    np.testing.assert_array_equal(by_q, -by_p)


def test_plain_is_centered_where_the_slope_at_one_is_zero():
    t = jnp.array([-jnp.inf, -80.0, -3.0, -0.2, 0.0, 0.7, 5.0, 90.0, jnp.inf])
    log_p, log_q = jnp.where(t < 0, t, 0), jnp.where(t < 0, 0, -t)
    for name in CUSTOMARY:
        if CUSTOMARY[name][3] == 0:
            for side in "pq":
                centered, plain = (
                    getattr(estimators, f"{form}_from_{side}")(generator_of(name), log_p, log_q)
                    for form in ("centered", "plain")
                )
                np.testing.assert_array_equal(centered, plain)


def test_kl_forms_are_k1_and_k3():
    p, q, _ = logits()
    log_p, log_q = log_softmax(p), log_softmax(q)
    for generator in (generators.kl(), generators.alpha(1.0), generators.tsallis(1.0)):
        close(
            estimators.centered_from_p(generator, log_p, log_q),
            estimators.kl_k3(log_p, log_q),
            1e-15,
        )
    for generator in (generators.kl(), generators.tsallis(1.0)):
        close(
            estimators.plain_from_p(generator, log_p, log_q), estimators.kl_k1(log_p, log_q), 1e-15
        )


@settings(max_examples=50, deadline=None)
@given(t=st.floats(-600, 600), name=st.sampled_from(list(CUSTOMARY)), side=st.sampled_from("pq"))
def test_centered_is_never_negative(t, name, side):
    estimate = getattr(estimators, f"centered_from_{side}")
    with jax.enable_x64(True):
        value = estimate(generator_of(name), jnp.float64(t), jnp.float64(0.0))
    assert value >= 0
    assert (value == 0) <= (abs(t) < 1e-100)


# ------------------------------------------------------- gradients, with the samples held fixed


def test_gradient_of_k1_is_zero_k2_kl_k3_the_other_kl():
    p, q, _ = logits()

    def mean_gradient(k):
        jacobian = jax.jit(jax.jacobian(lambda p: k(log_softmax(p), log_softmax(q))))(p)
        return jax.nn.softmax(p) @ jacobian

    right, other = (jax.jit(jax.grad(f))(p, q) for f in (dv.kl, dv.reverse_kl))
    close(mean_gradient(estimators.kl_k1), jnp.zeros_like(p), 1e-15)
    close(mean_gradient(estimators.kl_k2), right, 1e-15)
    close(mean_gradient(estimators.kl_k3), other, 1e-15)
    assert jnp.max(jnp.abs(right - other)) > 0.05


def test_gradient_of_k2_over_two_steps():
    """On the log-probability of the whole sequence k2 is exact; token by token it is not."""
    keys = jax.random.split(jax.random.key(0), 2)
    first_q, second_q = jax.random.normal(keys[0], (3,)), jax.random.normal(keys[1], (3, 3))

    def tokens(policy, a, b):
        return log_softmax(policy[0])[a], jax.nn.log_softmax(policy[1], axis=-1)[a, b]

    def sequences(f):
        return sum(f(a, b) for a, b in itertools.product(range(3), repeat=2))

    policy = jax.tree.map(lambda x: 0.5 * x[::-1], (first_q, second_q))
    reference = (first_q, second_q)

    def probability(a, b):
        return jnp.exp(sum(tokens(policy, a, b)))

    def exact(policy):
        return sequences(
            lambda a, b: (
                jnp.exp(sum(tokens(policy, a, b)))
                * (sum(tokens(policy, a, b)) - sum(tokens(reference, a, b)))
            )
        )

    def on_sequence(policy):
        return sequences(
            lambda a, b: (
                probability(a, b)
                * estimators.kl_k2(sum(tokens(policy, a, b)), sum(tokens(reference, a, b)))
            )
        )

    def on_tokens(policy):
        return sequences(
            lambda a, b: (
                probability(a, b)
                * sum(map(estimators.kl_k2, tokens(policy, a, b), tokens(reference, a, b)))
            )
        )

    wanted, sequence, token = (
        jax.jit(jax.grad(f))(policy) for f in (exact, on_sequence, on_tokens)
    )
    jax.tree.map(lambda x, y: close(x, y, 1e-14), sequence, wanted)
    assert jnp.max(jnp.abs(token[0] - wanted[0])) > 0.01


@pytest.mark.parametrize(("name", "form"), [case for case in CASES if case[0] in ONCE])
def test_gradient_by_the_side_not_sampled_is_exact(name, form):
    other = 1 if form.endswith("from_p") else 0
    _, gradients = exact(name)
    close(pathwise_of(name, form)[other], gradients[other], 1e-14)


@pytest.mark.parametrize(("name", "form"), [case for case in CASES if case[0] in ONCE])
def test_gradient_by_the_sampled_side_is_of_another_divergence(name, form):
    """g' = f' - f/u from p, and from q the same with u f(1/u) for f and p, q exchanged."""
    p, q, _ = logits()
    f = f_of(name, form)
    by_p, by_q = pathwise_of(name, form)
    if form.endswith("from_p"):
        found, sampled, fixed, adjoint = by_p, p, q, f
    else:
        found, sampled, fixed, adjoint = by_q, q, p, lambda v: v * f(1 / v)
    mass, other = (np.asarray(jax.nn.softmax(x)) for x in (sampled, fixed))
    ratios = [mp.mpf(a) / mp.mpf(b) for a, b in zip(mass.tolist(), other.tolist(), strict=True)]
    slope = np.array([float(mp.diff(adjoint, v) - adjoint(v) / v) for v in ratios])
    close(found, mass * (slope - mass @ slope), 1e-14)
    _, (own, _) = exact(name)
    if form.endswith("from_p"):
        assert np.max(np.abs(found - own)) > 0.01


def test_gradient_of_the_integral_form():
    """g(u) = f(u) - int_1^u f(v)/v dv, by quadrature and a finite difference in 40 digits."""
    name = "jensen_shannon"
    p, q, _ = logits()
    f = f_of(name, "centered")

    def divergence(*p):
        weights = [mp.exp(x) for x in p]
        u = [w / mp.fsum(weights) / b for w, b in zip(weights, masses, strict=True)]
        g = [f(x) - mp.quad(lambda v: f(v) / v, [1, x]) for x in u]
        return mp.fsum(b * x for b, x in zip(masses, g, strict=True))

    with mp.workdps(30):
        masses = [mp.mpf(b) for b in np.asarray(jax.nn.softmax(q)).tolist()]
        at = [mp.mpf(x) for x in np.asarray(p).tolist()]
        h = mp.mpf(10) ** -10
        moved = [[x + h * (i == j) for i, x in enumerate(at)] for j in range(len(at))]
        back = [[x - h * (i == j) for i, x in enumerate(at)] for j in range(len(at))]
        wanted = [
            float((divergence(*a) - divergence(*b)) / (2 * h))
            for a, b in zip(moved, back, strict=True)
        ]
    close(pathwise_of(name, "centered_from_p")[0], wanted, 1e-12)


def test_gradient_rows_named_in_the_docstring():
    p, q, _ = logits()

    def centered(generator):
        return pathwise(estimators.centered_from_p, generator, p, q, p)[0]

    def half_square(p):
        t = log_softmax(p) - log_softmax(q)
        return jnp.exp(log_softmax(q)) @ (t * t) / 2

    def half_absolute(p):
        return jnp.exp(log_softmax(q)) @ jnp.abs(log_softmax(p) - log_softmax(q)) / 2

    other = jax.grad(dv.reverse_kl)(p, q)
    close(centered(generators.kl()), other, 1e-14)
    close(centered(generators.reverse_kl()), jax.grad(half_square)(p), 1e-14)
    close(centered(generators.total_variation()), jax.grad(half_absolute)(p), 1e-14)
    for a in (-0.5, 0.5, 0.9, 2.0, 4.0):
        own = jax.grad(functools.partial(dv.alpha, alpha=a))(p, q)
        close(centered(generators.alpha(a)), (1 - 1 / a) * own + other / a, 1e-13)


@pytest.mark.parametrize(("name", "form"), [case for case in CASES if case[0] in ONCE])
def test_weights_that_carry_the_score_make_every_gradient_exact(name, form):
    p, q, old = logits()
    generator, estimate = generator_of(name), getattr(estimators, form)
    _, gradients = exact(name)

    def mean(p, q, source):
        log_p, log_q = log_softmax(p), log_softmax(q)
        log_source = jax.lax.stop_gradient(log_softmax(source))
        log_target = log_p if form.endswith("from_p") else log_q
        weights = log_target - log_source
        return jnp.exp(log_source) @ estimate(generator, log_p, log_q, log_weights=weights)

    for source in (p if form.endswith("from_p") else q, old):
        found = jax.grad(mean, (0, 1))(p, q, source)
        jax.tree.map(lambda x, y: close(x, y, 1e-13), found, gradients)


def test_off_policy_numbers():
    """One step, pi = (.5, .3, .2), samples of (.2, .5, .3), reference (.3, .3, .4)."""
    policy, old, reference = (
        jnp.log(jnp.array(x)) for x in ([0.5, 0.3, 0.2], [0.2, 0.5, 0.3], [0.3, 0.3, 0.4])
    )

    def gradient(loss):
        return jax.jit(jax.grad(lambda z: jnp.exp(old) @ loss(log_softmax(z))))(policy)

    kl, right = generators.kl(), [0.197021, -0.035035, -0.161986]
    for estimate in (estimators.plain_from_p, estimators.centered_from_p):
        weighted = gradient(
            lambda log_p, f=estimate: f(kl, log_p, reference, log_weights=log_p - old)
        )
        close(weighted, right, 1e-6)
    weighted_k2 = gradient(lambda log_p: jnp.exp(log_p - old) * estimators.kl_k2(log_p, reference))
    close(weighted_k2, [0.205616, -0.069019, -0.136597], 1e-6)
    close(gradient(lambda log_p: estimators.kl_k3(log_p, reference)), [0.190, 0.066, -0.256], 1e-3)


def test_gradient_by_parameters_of_a_row():
    p, q, _ = logits()
    log_p, log_q = log_softmax(p), log_softmax(q)
    for make, at in ((generators.tsallis, 1.5), (generators.skew_kl, 0.3)):

        def means(x, make=make):
            sources = {form: p if form.endswith("from_p") else q for form in FORMS}
            return {
                form: jax.nn.softmax(source) @ getattr(estimators, form)(make(x), log_p, log_q)
                for form, source in sources.items()
            }

        both = lambda x, make=make: (dv.f_divergence(make(x), p, q), means(x))
        exact, found = jax.jit(jax.jacfwd(both))(at)
        for form in FORMS:
            close(found[form], exact, 1e-12)


# -------------------------------------------------------------------------- zeros and precision


def test_zeros_of_k():
    log_p = jnp.array([-1.0, -1.0, -jnp.inf, -jnp.inf])
    log_q = jnp.array([-1.0, -jnp.inf, -1.0, -jnp.inf])
    inf = jnp.inf
    np.testing.assert_array_equal(estimators.kl_k1(log_p, log_q), [0, inf, -inf, 0])
    np.testing.assert_array_equal(estimators.kl_k2(log_p, log_q), [0, inf, inf, 0])
    np.testing.assert_array_equal(estimators.kl_k3(log_p, log_q), [0, inf, inf, 0])


# f(0) and f'(inf) of the customary generators.
ENDS = {
    "kl": (0, math.inf),
    "reverse_kl": (math.inf, 0),
    "jeffreys": (math.inf, math.inf),
    "jensen_shannon": (-0.75 * math.log(0.75), -0.25 * math.log(0.25)),
    "skew_kl": (0, -math.log(0.75)),
    "total_variation": (0.5, 0.5),
    "squared_hellinger": (1, 0),
    "pearson_chi2": (1, math.inf),
    "neyman_chi2": (math.inf, 1),
    "le_cam": (0.5, 0.5),
    "alpha .75": (4 / 3, 4),
    "alpha 3": (1 / 3, math.inf),
    "alpha -.5": (math.inf, 2 / 3),
    "tsallis 1.5": (0, math.inf),
    "tsallis .5": (0, 2),
    "tsallis 1": (0, math.inf),
}


@pytest.mark.parametrize("name", CUSTOMARY)
def test_zeros(name):
    """Where p is zero a sample of q gives f(0); where q is zero a sample of p gives f'(inf)."""
    generator, slope = generator_of(name), CUSTOMARY[name][3]
    at_zero, at_infinity = ENDS[name]
    here, zero = jnp.float64(-0.7), jnp.float64(-jnp.inf)
    log_w = jnp.float64(math.log(3))
    for form, added in (("plain", 0), ("centered", slope)):
        from_p = getattr(estimators, f"{form}_from_p")
        from_q = getattr(estimators, f"{form}_from_q")
        close(from_q(generator, zero, here), at_zero + added, 1e-14)
        close(from_p(generator, here, zero), at_infinity - added, 1e-14)
        close(from_q(generator, zero, here, log_weights=log_w), 3 * (at_zero + added), 1e-13)
        close(from_p(generator, here, zero, log_weights=log_w), 3 * (at_infinity - added), 1e-13)
        for estimate in (from_p, from_q):
            # No weight, no contribution, whatever the sample; twice zero is nothing.
            for pair in itertools.product((here, zero), repeat=2):
                assert estimate(generator, *pair, log_weights=zero) == 0
            assert estimate(generator, zero, zero) == 0
        # A sample that its own distribution excludes shows a mistake.
        assert from_p(generator, zero, here) == jnp.inf
        assert from_q(generator, here, zero) == jnp.inf


P_ZEROS = [0.3, -math.inf, 0.1, -0.5, -math.inf]
Q_ZEROS = [-0.2, 0.4, -math.inf, 0.2, -math.inf]


@functools.cache
def exact_with_zeros(name):
    return dv.f_divergence(generator_of(name), jnp.array(P_ZEROS), jnp.array(Q_ZEROS))


@pytest.mark.parametrize(("name", "form"), CASES)
def test_mean_and_gradient_with_zeros(name, form):
    """Unseen mass is missing as documented; gradients are finite where the values are."""
    generator, estimate = generator_of(name), getattr(estimators, form)
    p, q = jnp.array(P_ZEROS), jnp.array(Q_ZEROS)
    from_p = form.endswith("from_p")
    at_zero, at_infinity = ENDS[name]
    added = CUSTOMARY[name][3] if form.startswith("centered") else 0
    missing = (at_zero + added, q, 1) if from_p else (at_infinity - added, p, 2)
    divergence = exact_with_zeros(name)
    source = p if from_p else q

    def mean(p, q):
        value = estimate(generator, log_softmax(p), log_softmax(q))
        return jax.nn.softmax(source) @ jnp.where(source > -jnp.inf, value, 0), value

    (found, value), gradients = jax.value_and_grad(mean, (0, 1), has_aux=True)(p, q)
    if np.isfinite(divergence):
        close(found, divergence - missing[0] * jax.nn.softmax(missing[1])[missing[2]], 1e-14)
    if np.all(np.isfinite(np.asarray(value)[np.asarray(source) > -np.inf])):
        assert np.all(np.isfinite(gradients))


@pytest.mark.parametrize("form", ["kl_k3", "centered_from_p", "centered_from_q"])
@pytest.mark.parametrize(("d", "value"), [(1e-4, 5e-9), (1e-6, 5e-13)])
def test_float32_close_to_equality(form, d, value):
    """`exp(d) - d - 1` in float32 is 0 or 1.2e-7 here."""
    log_q, log_p = jnp.float32(d), jnp.float32(0.0)
    if form == "kl_k3":
        found = estimators.kl_k3(log_p, log_q)
    elif form == "centered_from_p":
        found = estimators.centered_from_p(generators.kl(), log_p, log_q)
    else:
        found = estimators.centered_from_q(generators.reverse_kl(), log_p, log_q)
    seen = float(log_q)
    assert found.dtype == jnp.float32
    assert float(found) == pytest.approx(float(mp.expm1(seen) - seen), rel=1e-6)
    assert float(found) == pytest.approx(value, rel=1e-4)
    naive = jnp.exp(log_q) - log_q - 1
    assert abs(float(naive) - value) > 0.5 * value


def test_half_precision_in_float32_out():
    log_p, log_q = jnp.array([-1.0, -2.0, -0.5]), jnp.array([-1.5, -2.0, -3.0])
    calls = [estimators.kl_k1, estimators.kl_k2, estimators.kl_k3]
    calls += [functools.partial(getattr(estimators, form), generators.kl()) for form in FORMS]
    calls += [estimators.self_normalized_mean]
    for call in calls:
        exact = call(log_p.astype(jnp.float32), log_q.astype(jnp.float32))
        for dtype in (jnp.bfloat16, jnp.float16):
            found = call(log_p.astype(dtype), log_q.astype(dtype))
            assert found.dtype == jnp.float32
            np.testing.assert_array_equal(found, exact)
        assert call(log_p, log_q).dtype == jnp.float64


# ------------------------------------------------------------------------------------- averages


def test_self_normalized_mean():
    p, q, _ = logits()
    values = jnp.arange(5.0)
    # Over a whole space with weights p it is the mean under p, for any factor.
    exact = jax.nn.softmax(p) @ values
    close(estimators.self_normalized_mean(values, p + 700), exact, 1e-14)
    # One sample: the weight cancels. Two: the bias falls.
    bias = []
    for n in (1, 2, 4):
        mean = 0.0
        for draw in itertools.product(range(5), repeat=n):
            draw = np.array(draw)
            chance = np.prod(np.asarray(jax.nn.softmax(q))[draw])
            weights = np.exp(np.asarray(p - q)[draw])
            mean += chance * (weights @ np.asarray(values)[draw]) / weights.sum()
        bias.append(float(mean - exact))
    sample = jnp.array([1, 3, 0, 3])
    found = estimators.self_normalized_mean(values[sample], (p - q)[sample])
    weights = jnp.exp(p - q)[sample]
    close(found, weights @ values[sample] / weights.sum(), 1e-14)
    assert bias[0] == pytest.approx(float(jax.nn.softmax(q) @ values - exact), abs=1e-12)
    assert abs(bias[0]) > abs(bias[1]) > 1.5 * abs(bias[2]) > 0


def test_self_normalized_mean_at_zeros():
    mean, inf = estimators.self_normalized_mean, jnp.inf
    assert mean(jnp.array([inf, 2.0]), jnp.array([-inf, 3.0])) == 2
    assert mean(jnp.array([jnp.nan, 2.0]), jnp.array([-inf, 3.0])) == 2
    assert mean(jnp.array([inf, 2.0]), jnp.array([-2000.0, 3.0])) == inf
    assert jnp.isnan(mean(jnp.array([1.0, 2.0]), jnp.array([-inf, -inf])))
    gradient = jax.jit(jax.grad(mean, (0, 1)))(
        jnp.array([inf, 2.0, 1.0]), jnp.array([-inf, 3.0, 3.0])
    )
    close(gradient[0], [0, 0.5, 0.5], 1e-15)
    close(gradient[1], [0, 0.25, -0.25], 1e-15)
    columns = mean(jnp.array([[1.0, 5.0], [3.0, 5.0]]), jnp.zeros((2, 2)), axis=0)
    close(columns, [2, 5], 1e-15)


# ------------------------------------------------------------------------------- transformations


TRANSFORMED = [
    estimators.kl_k1, estimators.kl_k2, estimators.kl_k3, estimators.self_normalized_mean,
    *(
        functools.partial(getattr(estimators, form), generators.get(row))
        for form in FORMS
        for row in ("skew_kl", "tsallis")
    ),
]  # fmt: skip


def test_jit_vmap_and_pmap_agree():
    log_p, log_q = -jnp.abs(jax.random.normal(jax.random.key(0), (2, 8, 6)))
    every = lambda p, q: [call(p, q) for call in TRANSFORMED]
    eager = [
        jnp.stack([call(a, b) for a, b in zip(log_p, log_q, strict=True)]) for call in TRANSFORMED
    ]
    jitted = jax.jit(every)
    for f in (jax.jit(jax.vmap(jitted)), jax.pmap(jitted)):
        for found, wanted in zip(f(log_p, log_q), eager, strict=True):
            close(found, wanted, 1e-14)
    for found, wanted in zip(jitted(log_p[0], log_q[0]), eager, strict=True):
        close(found, wanted[0], 1e-14)
    step = 1e-6
    for call in TRANSFORMED:
        tangent = jax.jvp(call, (log_p[0], log_q[0]), (log_q[1], log_p[1]))[1]
        moved = [call(log_p[0] + s * log_q[1], log_q[0] + s * log_p[1]) for s in (step, -step)]
        close(tangent, (moved[0] - moved[1]) / (2 * step), 1e-6)


def test_a_sweep_over_a_parameter_is_a_vmap():
    p, q, _ = logits()
    a = jnp.linspace(0.5, 2.5, 5)
    for form in FORMS:
        estimate = lambda x, form=form: getattr(estimators, form)(generators.tsallis(x), p, q)
        close(jax.jit(jax.vmap(estimate))(a), jnp.stack([estimate(float(x)) for x in a]), 1e-13)


# ------------------------------------------------------------------------------------- refusals


def test_refusals():
    kl, x, y = generators.kl(), jnp.zeros(3), jnp.zeros(4)
    refused(ValueError, ["log_p (3,)", "log_q (4,)"], lambda: estimators.kl_k1(x, y))
    refused(ValueError, ["log_p (3,)", "log_q (4,)"], lambda: estimators.kl_k3(x, y))
    refused(TypeError, ["log_q", "int"], lambda: estimators.kl_k2(x, jnp.zeros(3, jnp.int32)))
    for form in FORMS:
        estimate = functools.partial(getattr(estimators, form), kl)
        refused(TypeError, ["log_p", "int"], lambda f=estimate: f(jnp.zeros(3, jnp.int32), x))
        refused(ValueError, ["log_q (4,)"], lambda f=estimate: f(x, y))
        refused(ValueError, ["log_weights (4,)"], lambda f=estimate: f(x, x, log_weights=y))
    refused(
        ValueError,
        ["values (3,)", "log_weights (4,)"],
        lambda: estimators.self_normalized_mean(x, y),
    )
    refused(ValueError, ["axis"], lambda: estimators.self_normalized_mean(x, x, axis=1))
