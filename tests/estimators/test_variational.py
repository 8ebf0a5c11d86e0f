"""Bounds from critics: every batch of a small joint, Gaussians with a known critic, definitions."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdiv import divergences as dv
from jdiv import estimators, generators
from tests.checks import refused

GENERATORS = [
    ("kl", {}),
    ("reverse_kl", {}),
    ("jeffreys", {}),
    ("jensen_shannon", {"weight": 0.25}),
    ("skew_kl", {"skew": 0.25}),
    ("total_variation", {}),
    ("squared_hellinger", {}),
    ("pearson_chi2", {}),
    ("neyman_chi2", {}),
    ("le_cam", {}),
    ("alpha", {"alpha": 0.75}),
    ("tsallis", {"index": 1.5}),
]


def close(found, wanted, tolerance):
    np.testing.assert_allclose(
        np.asarray(found, np.float64),
        np.asarray(wanted, np.float64),
        rtol=tolerance,
        atol=tolerance,
    )


def information(joint):
    return float(np.sum(joint * np.log(joint / joint.sum(1, keepdims=True) / joint.sum(0))))


# ---------------------------------------------------------------- every batch of a small joint

JOINT = np.array([[0.35, 0.05], [0.1, 0.2], [0.05, 0.25]])
LOG_RATIO = np.log(JOINT / JOINT.sum(1, keepdims=True) / JOINT.sum(0))
CRITICS = {
    "best": LOG_RATIO,
    "too strong": 2.5 * LOG_RATIO + 0.3,
    "wrong": np.array([[0.3, 1.4], [-0.7, 0.2], [1.1, -2.0]]),
}


def mean_over_batches(estimate, critic, n=3):
    """The exact mean over all batches of n pairs, and each batch's value."""
    cells = list(itertools.product(range(3), range(2)))
    batches = np.array(list(itertools.product(range(len(cells)), repeat=n)))
    pairs = np.array(cells)[batches]
    chance = np.prod(JOINT[pairs[..., 0], pairs[..., 1]], axis=1)
    scores = critic[pairs[:, :, None, 0], pairs[:, None, :, 1]]
    values = np.asarray(estimate(scores, pairs[..., 1]))
    return float(chance @ values), values


BOUNDS = {
    "nwj": lambda scores, y: estimators.nwj(scores),
    "tuba": lambda scores, y: estimators.tuba(scores, jnp.array([0.4, -0.3])[y]),
    "infonce": lambda scores, y: estimators.infonce(scores),
    "interpolated .01": lambda scores, y: estimators.interpolated(scores, 0.2, share=0.01),
    "interpolated .3": lambda scores, y: estimators.interpolated(scores, 0.2, share=0.3),
    "interpolated .9": lambda scores, y: estimators.interpolated(
        scores, jnp.array([0.4, -0.3])[y], share=0.9
    ),
    "interpolated 1": lambda scores, y: estimators.interpolated(scores, 0.2, share=1.0),
    "donsker_varadhan": lambda scores, y: estimators.donsker_varadhan(scores),
}
BOUNDS = {name: jax.jit(bound) for name, bound in BOUNDS.items()}


@pytest.mark.parametrize("critic", CRITICS)
@pytest.mark.parametrize("bound", [name for name in BOUNDS if name != "donsker_varadhan"])
def test_lower_bounds_are_lower_bounds(bound, critic):
    mean, _ = mean_over_batches(BOUNDS[bound], CRITICS[critic])
    assert mean < information(JOINT) + 1e-14


def test_best_critics_reach_the_information():
    truth = information(JOINT)
    mean, _ = mean_over_batches(BOUNDS["nwj"], 1 + LOG_RATIO)
    assert mean == pytest.approx(truth, abs=1e-14)
    # The critic log p(y|x) + c(y), with the mean of e^f over x as the baseline.
    shift = np.array([0.7, -1.3])
    log_likelihood = np.log(JOINT / JOINT.sum(1, keepdims=True)) + shift
    log_a = np.log(JOINT.sum(1) @ np.exp(log_likelihood))
    tuba = jax.jit(lambda scores, y: estimators.tuba(scores, jnp.array(log_a)[y]))
    mean, _ = mean_over_batches(tuba, log_likelihood)
    assert mean == pytest.approx(truth, abs=1e-14)


@pytest.mark.parametrize("critic", CRITICS)
def test_donsker_varadhan_is_too_high_in_a_finite_batch(critic):
    f = CRITICS[critic]
    product = JOINT.sum(1, keepdims=True) * JOINT.sum(0)
    bound = np.sum(JOINT * f) - math.log(np.sum(product * np.exp(f)))
    means = [mean_over_batches(BOUNDS["donsker_varadhan"], f, n)[0] for n in (2, 3, 4)]
    assert means[0] > means[1] > means[2] > bound
    if critic == "best":
        assert means[2] > information(JOINT) + 0.01


@pytest.mark.parametrize("n", [2, 3, 4])
def test_infonce_never_exceeds_log_n(n):
    for critic in (100 * LOG_RATIO, CRITICS["wrong"]):
        _, values = mean_over_batches(BOUNDS["infonce"], critic, n)
        assert values.max() <= math.log(n)
    assert BOUNDS["infonce"](1e4 * np.eye(n)[None], None) == math.log(n)


# ------------------------------------------------------------------------------------ definitions


def random_scores(*shape, seed=0, scale=2.0):
    return scale * jax.random.normal(jax.random.key(seed), shape)


def test_definitions_by_loops():
    f = np.asarray(random_scores(5, 5))
    log_a = np.asarray(random_scores(5, seed=1))
    n = len(f)
    off = [f[i, j] for i in range(n) for j in range(n) if i != j]
    joint = np.mean(np.diag(f))
    close(estimators.donsker_varadhan(f), joint - math.log(np.mean(np.exp(off))), 1e-14)
    close(estimators.nwj(f), joint - np.mean(np.exp(off)) / math.e, 1e-14)
    clipped = np.mean(np.exp(np.clip(off, -1, 1)))
    close(estimators.smile(f, clip=1.0), joint - math.log(clipped), 1e-14)
    close(estimators.smile(f, clip=1e9), estimators.donsker_varadhan(f), 1e-14)
    weights = np.exp(f - log_a)
    others = np.mean([weights[i, j] for i in range(n) for j in range(n) if i != j])
    close(estimators.tuba(f, log_a), 1 + np.mean(np.diag(f) - log_a) - others, 1e-14)
    nce = [f[j, j] - math.log(np.mean(np.exp(f[:, j]))) for j in range(n)]
    close(estimators.infonce(f), np.mean(nce), 1e-14)


@pytest.mark.parametrize("share", [0.0, 0.2, 0.99, 1.0])
def test_interpolated_by_loops(share):
    f = np.asarray(random_scores(5, 5))
    log_a = np.asarray(random_scores(5, seed=1))
    n = len(f)

    def baseline(k, j):
        m = np.mean([math.exp(f[i, j]) for i in range(n) if i != k])
        return share * m + (1 - share) * math.exp(log_a[j])

    pairs = [(i, j) for i in range(n) for j in range(n) if i != j]
    joint = np.mean([f[j, j] - math.log(baseline(k, j)) for k, j in pairs])
    product = np.mean([math.exp(f[i, j]) / baseline(j, j) for i, j in pairs])
    close(estimators.interpolated(f, log_a, share=share), 1 + joint - product, 1e-14)


def test_interpolated_ends():
    f, log_a = random_scores(6, 6), random_scores(6, seed=1)
    close(estimators.interpolated(f, log_a, share=0.0), estimators.tuba(f, log_a), 1e-14)
    close(estimators.interpolated(f, 1.0, share=0.0), estimators.nwj(f), 1e-14)
    close(estimators.tuba(f, 1.0), estimators.nwj(f), 1e-14)
    without = [np.delete(np.delete(np.asarray(f), k, 0), k, 1) for k in range(6)]
    close(
        estimators.interpolated(f, log_a, share=1.0),
        np.mean([estimators.infonce(x) for x in without]),
        1e-14,
    )


def test_interpolated_where_one_score_dominates():
    """Leaving out by subtraction, log(sum - e^f), keeps nothing of the others here."""
    f = random_scores(4, 4).at[1, 1].set(60.0)
    column = np.delete(np.asarray(f)[:, 1], 1)
    others = math.log(np.mean(np.exp(column)))
    ours = np.asarray(jax.jit(estimators.variational._log_mean_exp_of_others)(f))
    close(ours[1, 1], others, 1e-14)
    left = np.exp(np.asarray(f)[:, 1]).sum() - math.exp(60.0)
    assert not 0.1 < left / (3 * math.exp(others)) < 10
    program = jax.jit(jax.value_and_grad(lambda f: estimators.interpolated(f, 0.0, share=0.5)))
    value, gradient = program(f)
    assert jnp.isfinite(value)
    assert jnp.all(jnp.isfinite(gradient))


def test_constants_that_do_not_matter():
    f = random_scores(5, 5)
    per_y = random_scores(5, seed=3)
    close(estimators.donsker_varadhan(f + 700), estimators.donsker_varadhan(f), 1e-12)
    close(estimators.infonce(f + per_y[None, :]), estimators.infonce(f), 1e-14)
    shifted = estimators.interpolated(f + per_y[None, :], 0.3 + per_y, share=0.4)
    close(shifted, estimators.interpolated(f, 0.3, share=0.4), 1e-14)


def test_gradient_of_smile_stops_at_the_clip():
    f = jnp.array([[9.0, 7.0, 1.0], [2.0, 9.0, -8.0], [-1.0, 0.5, 9.0]])
    gradient = jax.jit(jax.grad(lambda f: estimators.smile(f, clip=5.0)))(f)
    np.testing.assert_array_equal(gradient == 0, [[0, 1, 0], [0, 0, 1], [0, 0, 0]])
    close(jnp.diagonal(gradient), 1 / 3, 1e-15)


# -------------------------------------------------- Gaussians: 20 dimensions, 64 pairs, 500 batches

# Mean and standard deviation over batches at the best critic: InfoNCE, NWJ, DV, SMILE (clip 5).
TABLE = {
    2: ((1.82, 0.19), (2.02, 0.25), (2.02, 0.25), (2.04, 0.24)),
    4: ((3.07, 0.19), (4.03, 0.48), (4.08, 0.43), (4.27, 0.37)),
    6: ((3.74, 0.12), (6.03, 0.92), (6.22, 0.66), (6.70, 0.46)),
    8: ((4.02, 0.07), (8.11, 1.83), (8.63, 0.96), (9.33, 0.57)),
    10: ((4.12, 0.04), (10.22, 2.35), (11.23, 1.35), (12.04, 0.70)),
}
DIMENSION, PAIRS, BATCHES = 20, 64, 500


def gaussian_log_ratio(x, y, rho):
    """log p(x, y)/(p(x) p(y)) of every pair, summed over dimensions."""
    square = jnp.sum(x * x, -1)[:, None] + jnp.sum(y * y, -1)[None, :]
    exponent = (2 * rho * (x @ y.T) - rho**2 * square) / (2 * (1 - rho**2))
    return exponent - DIMENSION / 2 * jnp.log1p(-(rho**2))


@functools.cache
def compiled_batches():
    @jax.jit
    def run(keys, rho):
        def batch(key):
            x, noise = jax.random.normal(key, (2, PAIRS, DIMENSION), jnp.float64)
            s = gaussian_log_ratio(x, rho * x + jnp.sqrt(1 - rho**2) * noise, rho)
            off = ~jnp.eye(PAIRS, dtype=bool)
            return {
                "infonce": estimators.infonce(s),
                "nwj": estimators.nwj(1 + s),
                "dv": estimators.donsker_varadhan(s),
                "smile": estimators.smile(s, clip=5.0),
                "partition": jnp.sum(jnp.where(off, jnp.exp(s), 0)) / (PAIRS * (PAIRS - 1)),
                "joint": jnp.mean(jnp.diagonal(s)),
            }

        return jax.lax.map(batch, keys, batch_size=20)

    return run


@functools.cache
def gaussian_batches(nats):
    rho = math.sqrt(-math.expm1(-2 * nats / DIMENSION))
    keys = jax.random.split(jax.random.key(round(10 * nats)), BATCHES)
    return jax.tree.map(np.asarray, compiled_batches()(keys, rho))


@pytest.mark.parametrize("nats", TABLE)
def test_table(nats):
    """Each of the two means has an error of sd/sqrt(500), and the table is rounded to .01.

    Not so for NWJ above 4 nats: its true deviation is about e^I/64, which no 500 batches show.
    """
    found = gaussian_batches(nats)
    for name, (mean, deviation) in zip(("infonce", "nwj", "dv", "smile"), TABLE[nats], strict=True):
        values = found[name]
        if name == "nwj" and nats > 4:
            assert abs(values.mean() - mean) < deviation
        else:
            assert abs(values.mean() - mean) < 4 * deviation * math.sqrt(2 / BATCHES) + 0.005, name
            assert values.std() == pytest.approx(deviation, rel=0.2, abs=0.006), name
    assert found["infonce"].max() <= math.log(PAIRS)


def test_ranking_and_growth():
    previous = 0
    for nats in TABLE:
        found = gaussian_batches(nats)
        mean = {name: values.mean() for name, values in found.items()}
        if nats >= 4:
            assert mean["infonce"] < nats < mean["dv"] < mean["smile"]
        assert found["dv"].std() > previous
        previous = found["dv"].std()


@pytest.mark.parametrize("nats", [0.5, 2, 4])
def test_closed_forms(nats):
    """With u = e^s and rho^2 = r: E u^2 = (1 - r)^-d = e^(2 I), and E u_ij u_ji = (1 - r^2)^-d.

    Given x, or y, the mean of u is 1, so no other two pairs are correlated: the partition has
    mean 1 and variance (E u^2 + E u_ij u_ji - 2)/(n (n - 1)). The diagonal has mean I and
    variance d r/n. Above .5 nats the tail of u^2 is too heavy for its variance to show.
    """
    found = gaussian_batches(nats)
    r = -math.expm1(-2 * nats / DIMENSION)
    pairs = PAIRS * (PAIRS - 1)
    variance = (math.expm1(2 * nats) + (1 - r**2) ** -DIMENSION - 1) / pairs
    assert variance > math.expm1(nats) / pairs
    assert abs(found["partition"].mean() - 1) < 4 * math.sqrt(variance / BATCHES)
    if nats == 0.5:
        assert found["partition"].var() == pytest.approx(variance, rel=0.15)
    deviation = math.sqrt(DIMENSION * r / PAIRS)
    assert abs(found["joint"].mean() - nats) < 4 * deviation / math.sqrt(BATCHES)
    assert found["joint"].std() == pytest.approx(deviation, rel=0.1)


# ------------------------------------------------------------------------- bounds of divergences


def pair_of_categoricals():
    counts_p, counts_q = np.array([5, 1, 4, 2]), np.array([2, 3, 3, 4])
    return (
        counts_p,
        counts_q,
        jnp.log(jnp.asarray(counts_p / 12)),
        jnp.log(jnp.asarray(counts_q / 12)),
    )


@pytest.mark.parametrize(("row", "parameters"), GENERATORS)
def test_f_divergence_bounds(row, parameters):
    """On samples in the exact proportions the best critic gives the divergence, any other less."""
    counts_p, counts_q, log_p, log_q = pair_of_categoricals()
    generator = generators.get(row, **parameters)
    exact = dv.f_divergence(generator, log_p, log_q)

    def on_samples(bound, critic):
        p_scores = jnp.asarray(np.repeat(np.asarray(critic), counts_p))
        q_scores = jnp.asarray(np.repeat(np.asarray(critic), counts_q))
        return bound(generator, p_scores, q_scores)

    t = log_p - log_q
    close(on_samples(estimators.log_ratio_bound, t), exact, 1e-14)
    close(on_samples(estimators.f_divergence_bound, generator.slope(t)), exact, 1e-13)
    for seed in range(3):
        other = t + random_scores(4, seed=seed, scale=0.5)
        value = on_samples(estimators.log_ratio_bound, other)
        # Total variation sees the signs of a critic only.
        assert value < exact + (1e-15 if row == "total_variation" else 0)
        slope = generator.slope(other)
        close(on_samples(estimators.f_divergence_bound, slope), value, 1e-12)


def test_kl_bounds():
    counts_p, counts_q, log_p, log_q = pair_of_categoricals()
    exact = dv.kl(log_p, log_q)

    def scores(critic):
        return tuple(np.repeat(np.asarray(critic), counts) for counts in (counts_p, counts_q))

    t = log_p - log_q
    close(estimators.kl_donsker_varadhan(*scores(t)), exact, 1e-14)
    close(estimators.kl_donsker_varadhan(*scores(t + 3)), exact, 1e-14)
    for seed in range(3):
        other = t + random_scores(4, seed=seed)
        tighter = estimators.kl_donsker_varadhan(*scores(other))
        looser = estimators.f_divergence_bound(generators.kl(), *scores(other))
        p_scores, q_scores = scores(other)
        close(looser, p_scores.mean() - np.mean(np.expm1(q_scores)), 1e-14)
        assert looser < tighter < exact


def test_mutual_information_as_a_divergence():
    f = random_scores(5, 5)
    joint = jnp.diagonal(f)
    product = f[~np.eye(5, dtype=bool)]
    close(estimators.kl_donsker_varadhan(joint, product), estimators.donsker_varadhan(f), 1e-14)
    bound = estimators.f_divergence_bound(generators.kl(), joint - 1, product - 1)
    close(bound, estimators.nwj(f), 1e-14)


def test_jensen_shannon_bound_is_the_loss_of_a_classifier():
    p_scores, q_scores = random_scores(7), random_scores(9, seed=1)
    loss = jnp.mean(jax.nn.softplus(-p_scores)) + jnp.mean(jax.nn.softplus(q_scores))
    bound = estimators.log_ratio_bound(generators.jensen_shannon(0.5), p_scores, q_scores)
    close(bound, math.log(2) - loss / 2, 1e-14)


def test_critics_far_out():
    """In float32 the slope of 30 rounds to that of infinity, where the conjugate is infinite."""
    generator = generators.jensen_shannon(0.5)
    p_scores, q_scores = jnp.float32([30.0, 40.0]), jnp.float32([30.0, -40.0])
    found = estimators.log_ratio_bound(generator, p_scores, q_scores)
    assert found == pytest.approx(math.log(2) - 30 / 4, rel=1e-6)
    slopes = generator.slope(p_scores), generator.slope(q_scores)
    assert estimators.f_divergence_bound(generator, *slopes) == -jnp.inf
    # Beyond f'(inf) = 1 the bound is -inf, and so it is for a critic that gives q infinite odds.
    beyond = estimators.f_divergence_bound(generators.reverse_kl(), jnp.ones(2), 1.5 * jnp.ones(2))
    assert beyond == -jnp.inf
    zeros = estimators.log_ratio_bound(generators.kl(), jnp.zeros(2), jnp.array([0.0, -jnp.inf]))
    close(zeros, 0.5, 1e-15)
    infinite = estimators.log_ratio_bound(generators.kl(), jnp.zeros(2), jnp.array([0.0, jnp.inf]))
    assert infinite == -jnp.inf


def test_large_scores():
    f = jnp.float32([[900.0, 850.0], [-900.0, 880.0]])
    close(estimators.donsker_varadhan(f), 890 - 850 + math.log(2), 1e-6)
    close(estimators.infonce(f), math.log(2) + (0 - 0) / 2, 1e-6)
    close(estimators.tuba(f, 850.0), 1 + 40 - 0.5, 1e-6)
    assert estimators.nwj(f) == -jnp.inf
    for estimate in (estimators.donsker_varadhan, estimators.infonce, estimators.smile):
        assert jnp.all(jnp.isfinite(jax.jit(jax.grad(estimate))(f)))
    zero = f.at[0, 1].set(-jnp.inf)
    gradient = jax.jit(jax.grad(estimators.donsker_varadhan))(zero)
    assert jnp.all(jnp.isfinite(gradient))


def test_half_precision_in_float32_out():
    f = random_scores(4, 4)
    for estimate in map(jax.jit, CALLS.values()):
        exact = estimate(f.astype(jnp.bfloat16).astype(jnp.float32))
        found = estimate(f.astype(jnp.bfloat16))
        assert found.dtype == jnp.float32
        close(found, exact, 1e-6)
        assert jax.eval_shape(estimate, f).dtype == jnp.float64


# ------------------------------------------------------------------------------- transformations

CALLS = {
    "donsker_varadhan": estimators.donsker_varadhan,
    "nwj": estimators.nwj,
    "tuba": lambda f: estimators.tuba(f, f[..., 0]),
    "infonce": estimators.infonce,
    "smile": functools.partial(estimators.smile, clip=1.0),
    "interpolated": lambda f: estimators.interpolated(f, 0.5, share=0.3),
    "kl_donsker_varadhan": lambda f: estimators.kl_donsker_varadhan(f[..., 0], f[..., 0, 1:]),
    "f_divergence_bound": lambda f: estimators.f_divergence_bound(
        generators.alpha(1.5), f[..., 0], f[..., 0, 1:]
    ),
    "log_ratio_bound": lambda f: estimators.log_ratio_bound(
        generators.jensen_shannon(), f[..., 0], f[..., 0, 1:]
    ),
}
# Those of the last two that take a batch average over its last axis alone.
BATCHED = {
    name: call
    for name, call in CALLS.items()
    if name not in ("kl_donsker_varadhan", "f_divergence_bound", "log_ratio_bound")
}


@functools.cache
def transformed():
    """Scores, and what each call makes of them: eagerly, jitted, vmapped, pmapped, its tangent."""
    f = random_scores(8, 4, 4)
    every = jax.jit(lambda x: {name: call(x) for name, call in CALLS.items()})
    tangents = jax.jit(lambda x, dx: jax.jvp(every, (x,), (dx,))[1])
    eager = {name: jnp.stack([call(x) for x in f]) for name, call in CALLS.items()}
    mapped = jax.jit(jax.vmap(every))(f), jax.pmap(every)(f)
    return f, eager, every(f[0]), mapped, tangents(f[0], f[1])


@pytest.mark.parametrize("name", CALLS)
def test_jit_vmap_and_pmap_agree(name):
    f, eager, jitted, mapped, tangents = transformed()
    call, eager, direction, step = CALLS[name], eager[name], f[1], 1e-6
    for found in mapped:
        close(found[name], eager, 1e-14)
    close(jitted[name], eager[0], 1e-14)
    if name in BATCHED:
        close(call(f), eager, 1e-14)
        close(call(f.reshape(2, 4, 4, 4)), eager.reshape(2, 4), 1e-14)
    moved = [call(f[0] + s * direction) for s in (step, -step)]
    close(tangents[name], (moved[0] - moved[1]) / (2 * step), 1e-7)


def test_batches_of_critic_values():
    f = random_scores(3, 5, 6)
    for bound in (
        estimators.kl_donsker_varadhan,
        functools.partial(estimators.log_ratio_bound, generators.kl()),
    ):
        found = jax.jit(bound)(f, f[..., :4])
        assert found.shape == (3, 5)
        close(found[1, 2], jax.jit(bound)(f[1, 2], f[1, 2, :4]), 1e-15)


# ------------------------------------------------------------------------------------- refusals


def test_refusals():
    f = jnp.zeros((3, 3))
    for name in BATCHED:
        refused(ValueError, ["scores", "(3, 4)"], lambda c=CALLS[name]: c(jnp.zeros((3, 4))))
        refused(ValueError, ["scores", "(1, 1)"], lambda c=CALLS[name]: c(jnp.zeros((1, 1))))
        refused(TypeError, ["scores", "int"], lambda c=CALLS[name]: c(jnp.zeros((3, 3), int)))
    refused(ValueError, ["log_baseline", "(2,)"], lambda: estimators.tuba(f, jnp.zeros(2)))
    refused(
        ValueError,
        ["log_baseline", "(2,)"],
        lambda: estimators.interpolated(f, jnp.zeros(2), share=0.5),
    )
    for clip in (0.0, -1.0, jnp.nan):
        refused(ValueError, ["clip", "positive"], lambda c=clip: estimators.smile(f, clip=c))
    for share in (-0.1, 1.1):
        refused(
            ValueError,
            ["share", "0 to 1"],
            lambda a=share: estimators.interpolated(f, 0.0, share=a),
        )
    kl = generators.kl()
    for bound in (
        estimators.kl_donsker_varadhan,
        functools.partial(estimators.f_divergence_bound, kl),
        functools.partial(estimators.log_ratio_bound, kl),
    ):
        refused(ValueError, ["p_scores", "()"], lambda b=bound: b(jnp.array(0.0), jnp.zeros(2)))
        refused(ValueError, ["q_scores", "(0,)"], lambda b=bound: b(jnp.zeros(2), jnp.zeros(0)))
        refused(TypeError, ["q_scores"], lambda b=bound: b(jnp.zeros(2), jnp.zeros(2, int)))
        refused(
            ValueError,
            ["p_scores and q_scores", "(2, 3)", "(3, 3)"],
            lambda b=bound: b(jnp.zeros((2, 3)), jnp.zeros((3, 3))),
        )
