"""On-policy losses against enumerated gradients, NumPy formulas, and at their edges."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdiv import divergences as dv
from jdiv import estimators
from jdiv.distillation import on_policy
from jdiv.policy import clipped

RNG = np.random.default_rng(7)
N = 4
STUDENT, TEACHER, OTHER = RNG.normal(size=(3, 1, N)) * 1.5
# Two tokens of two: row 0 of the logits is the first token's, row 1 + a the second's after a.
PREFIX = RNG.normal(size=(3, 2))
PREFIX_TEACHER = RNG.normal(size=(3, 2))
TOKENS = np.array([(a, b) for a in range(2) for b in range(2)])
ROWS = np.array([(0, 1 + a) for a, _ in TOKENS])
TRUE = np.full((N, 1), True)


def softmax(x):
    p = np.exp(x - x.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True)


def gradient_of_kl(s, t, direction="reverse"):
    """By the logits of s, in NumPy."""
    s, t = softmax(s[0]), softmax(t[0])
    if direction == "forward":
        return s - t
    cost = np.log(s / t)
    return s * (cost - (s * cost).sum())


def exact_sequence_gradient():
    """Central differences of KL over both tokens."""

    def kl(x):
        p, q = (softmax(y)[ROWS, TOKENS].prod(axis=1) for y in (x, PREFIX_TEACHER))
        return (p * np.log(p / q)).sum()

    found = np.zeros_like(PREFIX)
    for place in np.ndindex(*PREFIX.shape):
        step = np.zeros_like(PREFIX)
        step[place] = 1e-5
        found[place] = (kl(PREFIX + step) - kl(PREFIX - step)) / 2e-5
    return found


def expected(loss, log_sampler=None):
    """The mean over all tokens of `loss(log-probabilities of them, [n, 1])`, samples held fixed."""

    def mean(logits):
        log_p = jax.nn.log_softmax(logits)[0][:, None]
        weight = jax.lax.stop_gradient(jnp.exp(log_p if log_sampler is None else log_sampler))
        return jnp.sum(weight * loss(log_p))

    return jax.grad(mean)


def log_of(logits):
    return jnp.asarray(np.log(softmax(logits[0])))[:, None]


def test_minillm_is_reverse_kl_of_sequences_whoever_samples():
    def mean(logits, share, **options):
        at = lambda x: jnp.asarray(x)[ROWS]
        loss = on_policy.minillm(
            at(logits), at(PREFIX_TEACHER), jnp.asarray(TOKENS), share=share, **options
        )
        log_law = on_policy.teacher_mixed(logits, PREFIX_TEACHER, share=share)
        law = jnp.exp(jnp.take_along_axis(at(log_law), TOKENS[..., None], -1)[..., 0].sum(-1))
        return jnp.sum(jax.lax.stop_gradient(law) * loss.sum(-1))

    @jax.jit
    def gradients(logits, shares):
        each = lambda **options: jax.vmap(
            lambda share: jax.grad(functools.partial(mean, **options))(logits, share)
        )(shares)
        return each(unbiased=True, normalized=False), each(normalized=False)

    unbiased, as_approximated = gradients(PREFIX, np.array([0.0, 0.2, 0.7]))
    exact = exact_sequence_gradient()
    np.testing.assert_allclose(unbiased, np.stack([exact] * 3), atol=1e-9)
    np.testing.assert_allclose(as_approximated[0], exact, atol=1e-9)
    assert np.abs(as_approximated[1] - exact).max() > 1e-3


def test_rewards_behind_a_token_are_averaged_and_masked():
    logits, teacher = RNG.normal(size=(2, 1, 5, N))
    tokens, mask = RNG.integers(0, N, (1, 5)), np.array([[True, True, False, True, True]])
    logits[0, 2] = np.nan
    found = {
        normalized: np.asarray(
            on_policy.minillm(logits, teacher, tokens, normalized=normalized, mask=mask)
        )[0]
        for normalized in (True, False)
    }
    s, t = softmax(logits[0]), softmax(teacher[0])
    places = [0, 1, 3, 4]
    kl = (s * np.log(s / t)).sum(-1)
    r = np.log(t / s)[np.arange(5), tokens[0]]
    for number, place in enumerate(places):
        later = [r[x] for x in places[number + 1 :]]
        np.testing.assert_allclose(found[False][place], kl[place] - sum(later), rtol=1e-12)
        mean = np.mean(later) if later else 0.0
        np.testing.assert_allclose(found[True][place], kl[place] - mean, rtol=1e-12)
    assert found[True][2] == found[False][2] == 0


def test_mean_gradients_of_single_tokens():
    teacher, ref, old = log_of(TEACHER), log_of(OTHER), log_of(OTHER)
    advantages = jnp.asarray(RNG.normal(size=(N, 1)))
    tokens = jnp.arange(N)
    rows = lambda x: jnp.broadcast_to(x, (N, N))

    def vopd(logits, **options):
        p = jax.lax.stop_gradient(jax.nn.softmax(logits[0]))
        return p @ on_policy.vopd(rows(logits), rows(jnp.asarray(TEACHER)), tokens, **options)

    @jax.jit
    def gradients(logits):
        kdrl = lambda k: expected(
            lambda x: on_policy.kdrl(
                x, jax.lax.stop_gradient(x), teacher, advantages, TRUE,
                coefficient=0.7, estimator=k,
            )
        )(logits) - expected(
            lambda x: clipped.ppo_clip(x, jax.lax.stop_gradient(x), advantages, TRUE).loss
        )(logits)  # fmt: skip
        opd = lambda scale: expected(lambda x: on_policy.g_opd(x, teacher, ref, TRUE, scale=scale))(
            logits
        )
        late = expected(
            lambda x: on_policy.importance_weighted(x, old, teacher, TRUE, ceiling=jnp.inf), old
        )(logits)
        best = on_policy.optimal_baseline(rows(logits), rows(jnp.asarray(TEACHER)))
        return (
            [kdrl(getattr(estimators, f"kl_k{i}")) / 0.7 for i in (1, 2, 3)],
            [opd(scale) for scale in (0.0, 0.5, 1.0, 2.0)],
            late,
            [jax.grad(functools.partial(vopd, **x))(logits)
             for x in ({}, {"top_k": 2}, {"baseline": best}, {"baseline": jnp.ones(N)})],
        )  # fmt: skip

    (k1, k2, k3), by_scale, late, with_baselines = gradients(jnp.asarray(STUDENT))
    reverse = gradient_of_kl(STUDENT, TEACHER)
    check = functools.partial(np.testing.assert_allclose, atol=1e-12)
    check(k1[0], 0)
    check(k2[0], reverse)
    check(k3[0], gradient_of_kl(STUDENT, TEACHER, "forward"))
    for scale, found in zip((0.0, 0.5, 1.0, 2.0), by_scale, strict=True):
        target = scale * np.log(softmax(TEACHER)) + (1 - scale) * np.log(softmax(OTHER))
        check(found[0], gradient_of_kl(STUDENT, target))
    check(late[0], reverse)
    for found in with_baselines:
        check(found[0], reverse)


def test_the_baselines_of_a_known_draw():
    """Variances of one sample's gradient: none, vOPD, the best number."""
    rng, table = np.random.default_rng(0), []
    for size in (10, 100):
        student = 2 * rng.normal(size=size)
        teacher = student + rng.normal(size=size)
        p, q = softmax(student), softmax(teacher)
        cost, square = np.log(p / q), 1 - 2 * p + (p**2).sum()
        best = float(on_policy.optimal_baseline(student, teacher))
        mean = p * (cost - p @ cost)

        def variance(b, p=p, cost=cost, square=square, mean=mean):
            return (p * (cost - b) ** 2 * square).sum() - (mean**2).sum()

        table.append([variance(b) for b in (0.0, p @ cost, best)])
        assert variance(best) < min(variance(best + 1e-3), variance(best - 1e-3))
    np.testing.assert_allclose(
        table, [[0.3990, 0.3687, 0.3648], [1.1445, 0.8758, 0.8757]], atol=6e-5
    )


def test_rlad_is_ppo_at_one_and_its_bounds_move_with_the_teacher():
    log_probs, old, teacher = np.log(RNG.uniform(0.05, 1, (3, 6, 5)))
    advantages, mask = RNG.normal(size=6), RNG.random((6, 5)) < 0.8
    both = jax.value_and_grad
    ours = lambda x, a: on_policy.rlad(x, old, teacher, advantages, mask, share=a)
    ppo = lambda x: clipped.ppo_clip(x, old, advantages, mask).loss
    anchored = lambda x: clipped.ppo_clip(x, 0.3 * old + 0.7 * teacher, advantages, mask).loss
    total = lambda f: lambda *x: f(*x).sum()
    found = jax.jit(jax.vmap(both(total(ours)), (None, 0)))(log_probs, np.array([1.0, 0.3]))
    expected_one, expected_other = (jax.jit(both(total(f)))(log_probs) for f in (ppo, anchored))
    for x, y in zip(found, expected_one, strict=True):
        np.testing.assert_array_equal(x[0], y)
    for x, y in zip(found, expected_other, strict=True):
        np.testing.assert_allclose(x[1], y, rtol=1e-12)
    sign = np.sign(np.asarray(found[1])) * np.sign(advantages)[None, :, None]
    assert (sign <= 0).all()
    assert (sign < 0).any()


def test_routes_and_regions():
    student, teacher = RNG.normal(size=(2, 4, N))
    crucial, wrong = np.array([[True, False, True, False], [False, True, True, False]])
    found = on_policy.routed(student, teacher, crucial, wrong, coefficient=0.5)
    s, t = softmax(student), softmax(teacher)
    reverse, forward = (s * np.log(s / t)).sum(-1), (t * np.log(t / s)).sum(-1)
    np.testing.assert_allclose(found, 0.5 * (crucial * forward + wrong * reverse), rtol=1e-12)
    # The minimum of the second stage is the geometric mean of teacher and reference.
    ref, c = RNG.normal(size=(4, N)), 0.5
    best = np.log(t) / (1 + c) + np.log(softmax(ref)) * c / (1 + c)
    region = lambda x: on_policy.extreme_region(x, teacher, ref, coefficient=c).sum()
    np.testing.assert_allclose(jax.grad(region)(jnp.asarray(best)), 0, atol=1e-14)
    log = lambda *x: jnp.log(jnp.array([x]))
    search = on_policy.extreme_region_search(
        log(0.9, 0.9, 0.01), log(0.01, 0.5, 0.9), jnp.array([[1.0, 1.0, -1.0]]), np.full((1, 3), 1)
    )
    np.testing.assert_allclose(search[0], [-10, -1.8, 0.01 / 0.9], rtol=1e-6)


def test_mixture_takes_rows_with_the_share():
    real, generated = {"x": jnp.zeros((4000, 2))}, {"x": jnp.ones((4000, 2))}
    take = lambda share: on_policy.mixture(real, generated, jax.random.key(0), share=share)["x"]
    assert not take(0.0).any()
    assert take(1.0).all()
    part = np.asarray(take(0.3))
    assert abs(part[:, 0].mean() - 0.3) < 4 * np.sqrt(0.21 / 4000)
    np.testing.assert_array_equal(part[:, 0], part[:, 1])


# Rows: ordinary, a zero of the teacher, of the student, the same on both, equal, far tails, all
# masked. The sampled token is 0.
EDGES = np.array([
    [[1.0, 2.0, 0.5], [0.0, 1.0, 0.0]],
    [[0.0, 1.0, -2.0], [1.0, -np.inf, 0.0]],
    [[0.0, -np.inf, 1.0], [0.0, 1.0, 2.0]],
    [[0.0, -np.inf, 1.0], [1.0, -np.inf, 0.0]],
    [[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]],
    [[0.0, -150.0, -120.0], [0.0, -110.0, -170.0]],
    [[np.nan] * 3, [np.nan] * 3],
])  # fmt: skip
COUNTS = np.arange(7) < 6


@jax.jit
def at_edges(student, teacher):
    tokens, all_ = jnp.zeros(7, int), jnp.full(7, True)
    cold = {"student_temperature": 0.05, "teacher_temperature": 0.05, "mask": COUNTS}
    each = {
        # Each row is a sequence of its own.
        "minillm": lambda s: on_policy.minillm(
            s[:, None], teacher[:, None], tokens[:, None], share=0.2, unbiased=True,
            **cold | {"mask": COUNTS[:, None]},
        )[:, 0],
        "vopd": lambda s: on_policy.vopd(s, teacher, tokens, **cold),
        "vopd_2": lambda s: on_policy.vopd(s, teacher, tokens, top_k=2, **cold),
        "forward": lambda s: on_policy.routed(s, teacher, all_, ~all_, **cold),
        "reverse": lambda s: on_policy.routed(s, teacher, ~all_, all_, **cold),
        "region": lambda s: on_policy.extreme_region(s, teacher, teacher, mask=COUNTS),
    }  # fmt: skip
    return {
        name: (f(student), jax.grad(lambda s, f=f: f(s).sum())(student)) for name, f in each.items()
    }


@pytest.mark.parametrize("dtype", [np.float64, np.float32, jnp.bfloat16])
def test_edges(dtype):
    student, teacher = (jnp.asarray(x, dtype) for x in EDGES.swapaxes(0, 1))
    found = at_edges(student, teacher)
    infinite = {"minillm": [1], "reverse": [1], "region": [1], "forward": [2]}
    for name, (value, gradient) in found.items():
        value, gradient = np.asarray(value, float), np.asarray(gradient, float)
        expected_inf = np.isin(np.arange(7), infinite.get(name, []))
        np.testing.assert_array_equal(np.isinf(value), expected_inf, err_msg=name)
        assert not np.isnan(value).any(), name
        assert np.isfinite(gradient[~expected_inf]).all(), name
        assert value[4] == value[6] == 0, name
        assert not gradient[6].any(), name
        assert np.abs(gradient[4]).max() < 1e-5, name
    if dtype == np.float64:
        value, gradient = found["reverse"]
        far = dv.kl(student[5] / 0.05, teacher[5] / 0.05)
        np.testing.assert_allclose(value[5], far, rtol=1e-12)


@jax.jit
def at_sampled_edges(log_probs, old, teacher, advantages, mask):
    losses = {
        "g_opd": lambda x: on_policy.g_opd(x, teacher, old, mask),
        "importance_weighted": lambda x: on_policy.importance_weighted(x, old, teacher, mask),
        "kdrl": lambda x: on_policy.kdrl(x, old, teacher, advantages, mask),
        "rlad": lambda x: on_policy.rlad(x, old, teacher, advantages, mask),
        "extreme_region_search": lambda x: on_policy.extreme_region_search(
            x, old, advantages, mask
        ),
    }
    return {
        name: (f(log_probs), jax.grad(lambda x, f=f: f(x).sum())(log_probs))
        for name, f in losses.items()
    }


@pytest.mark.parametrize("dtype", [np.float64, jnp.bfloat16])
def test_edges_of_sampled_tokens(dtype):
    # Ordinary, a teacher without mass, far tails of all, all equal, masked.
    log_probs = np.array([[-1.0, -1.0, -150.0, -1.0, np.nan]])
    old = np.array([[-1.5, -1.5, -130.0, -1.0, np.nan]])
    teacher = np.array([[-0.5, -np.inf, -120.0, -1.0, np.nan]])
    mask = np.array([[True] * 4 + [False]])
    found = at_sampled_edges(
        *(jnp.asarray(x, dtype) for x in (log_probs, old, teacher)), jnp.ones((1, 5), dtype), mask
    )
    for name, (value, gradient) in found.items():
        value, gradient = np.asarray(value[0], float), np.asarray(gradient[0], float)
        without_mass = name in ("g_opd", "importance_weighted", "kdrl")
        assert np.isinf(value[1]) == without_mass, name
        assert not np.isnan(value).any(), name
        assert not np.isnan(gradient).any(), name
        assert np.isfinite(np.delete(value, 1)).all(), name
        assert np.isfinite(np.delete(gradient, 1)).all(), name
        assert value[4] == gradient[4] == 0, name
    for name in ("g_opd", "importance_weighted"):
        assert not found[name][0][0, 3], name
        assert not found[name][1][0, 3], name
