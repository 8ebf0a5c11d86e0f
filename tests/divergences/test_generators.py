"""Each row of the table against its definition at 60 digits: value, slope, inverse, conjugate."""

import functools
import inspect

import chex
import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest

from jdiv import divergences as dv
from jdiv import estimators, generators, regularized
from jdiv.divergences.generator import Generator, row
from tests.checks import PARAMETERS

# The customary generators, as their papers write them.
CUSTOMARY = {
    "kl": lambda u: u * mp.log(u),
    "reverse_kl": lambda u: -mp.log(u),
    "jeffreys": lambda u: (u - 1) * mp.log(u),
    "jensen_shannon": lambda u, weight: (
        weight * u * mp.log(u) - (weight * u + 1 - weight) * mp.log(weight * u + 1 - weight)
    ),
    "skew_kl": lambda u, skew: u * mp.log(u / ((1 - skew) * u + skew)),
    "total_variation": lambda u: abs(u - 1) / 2,
    "squared_hellinger": lambda u: 1 - mp.sqrt(u),
    "pearson_chi2": lambda u: (u - 1) ** 2,
    "neyman_chi2": lambda u: (u - 1) ** 2 / u,
    "le_cam": lambda u: (u - 1) ** 2 / (2 * (u + 1)),
    "alpha": lambda u, alpha: (u**alpha - alpha * u + alpha - 1) / (alpha * (alpha - 1)),
    "tsallis": lambda u, index: (u**index - u) / (index - 1),
    "chi2_kl": lambda u, gamma: (u**2 - 1) / 2 + gamma * (u * mp.log(u) - u + 1),
}
SMOOTH = [name for name in CUSTOMARY if name != "total_variation"]
POINTS = [-6.0, -1.5, -1e-3, -1e-8, 0.0, 1e-8, 1e-3, 0.4, 2.0, 8.0]


def both(name):
    exact = {key: mp.mpf(value) for key, value in PARAMETERS[name].items()}
    return generators.get(name, **PARAMETERS[name]), functools.partial(CUSTOMARY[name], **exact)


def test_the_table_is_covered():
    assert set(CUSTOMARY) == set(generators.TABLE)


@pytest.mark.parametrize("name", CUSTOMARY)
def test_value_is_the_centred_generator(name):
    row, f = both(name)
    with mp.workdps(60):
        for t in POINTS:
            u = mp.e ** mp.mpf(t)
            centred = f(u) - mp.mpf(row.slope_at_one) * (u - 1)
            np.testing.assert_allclose(
                row.value(jnp.float64(t)), float(centred), rtol=1e-13, atol=1e-300
            )


@pytest.mark.parametrize("name", SMOOTH)
def test_slopes_and_curvature(name):
    row, f = both(name)
    with mp.workdps(60):
        assert abs(mp.diff(f, 1) - row.slope_at_one) < 1e-15
        for t in POINTS:
            u = mp.e ** mp.mpf(t)
            slope = mp.diff(f, u) - mp.mpf(row.slope_at_one)
            np.testing.assert_allclose(
                row.slope(jnp.float64(t)), float(slope), rtol=1e-12, atol=1e-15
            )
            curvature = mp.diff(f, u, 2) * u
            np.testing.assert_allclose(
                jax.grad(row.slope)(t), float(curvature), rtol=1e-10, atol=1e-15
            )
            by_log_q = f(u) - mp.mpf(row.slope_at_one) * (u - 1) - u * slope
            zero = jnp.float64(0)
            ours = row.perspective_q(jnp.float64(t), zero, jnp.float64(t))
            np.testing.assert_allclose(ours, float(by_log_q), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("name", SMOOTH)
def test_inverse_slope_inverts(name):
    row, _ = both(name)
    t = jnp.array(POINTS)
    np.testing.assert_allclose(row.inverse_slope(row.slope(t)), t, rtol=1e-8, atol=1e-13)
    if jnp.isfinite(row.slope_at_infinity):
        above = jnp.asarray(row.slope_at_infinity) + 1e-3
        assert row.inverse_slope(above) == jnp.inf
    if jnp.isfinite(row.slope_at_zero):
        assert row.inverse_slope(jnp.asarray(row.slope_at_zero) - 1e-3) == -jnp.inf


@pytest.mark.parametrize(
    "name", [n for n in SMOOTH if np.isfinite(generators.get(n).slope_at_infinity)]
)
@pytest.mark.parametrize("start", [0.0, 3.0, 20.0, 60.0])
def test_shift_keeps_its_accuracy_where_the_slope_saturates(name, start):
    """From t = 60 a slope that ends at a finite value no longer changes in float64; shift does."""
    row, f = both(name)
    with mp.workdps(120):
        for target in (-2.0, 0.5, start - 0.75, start - 5.0):
            if target > start:
                continue
            step = mp.diff(f, mp.e ** mp.mpf(target)) - mp.diff(f, mp.e ** mp.mpf(start))
            ours = row.shift(jnp.float64(start), jnp.float64(float(step)))
            np.testing.assert_allclose(ours, target, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", CUSTOMARY)
def test_conjugate_is_the_maximum(name):
    """`f*(s) = max_u (s u - f(u))` by a search over u, and Fenchel-Young's inequality."""
    row, _ = both(name)
    low = max(float(row.slope_at_zero), -4.0)
    high = min(float(row.slope_at_infinity), 2.0)
    grid = np.exp(np.append(np.linspace(-40, 12, 200_001), 0.0))
    log_grid = jnp.array(np.log(grid))
    f_of_grid = np.asarray(row.value(log_grid))
    for s in np.linspace(low, high, 9)[1:-1]:
        conjugate = float(row.conjugate(jnp.float64(s)))
        best = np.max(s * grid - f_of_grid)
        np.testing.assert_allclose(conjugate, best, rtol=1e-6, atol=1e-6)
        assert conjugate >= best - 1e-12 * abs(best)


@pytest.mark.parametrize("name", CUSTOMARY)
def test_ends(name):
    """f(0), f'(0) and f'(inf) are what the formulas tend to; a conjugate ends where they say."""
    row, f = both(name)
    with mp.workdps(120):
        tiny, huge = mp.mpf(10) ** -40, mp.mpf(10) ** 40
        centred = lambda u: f(u) - mp.mpf(row.slope_at_one) * (u - 1)
        at_zero, at_infinity = centred(tiny), centred(huge) / huge
        slope_at_zero = (centred(2 * tiny) - centred(tiny)) / tiny
    for ours, limit in (
        (row.at_zero, at_zero), (row.slope_at_infinity, at_infinity),
        (row.slope_at_zero, slope_at_zero),
    ):  # fmt: skip
        if np.isinf(ours):
            assert float(limit) * np.sign(ours) > 20
        else:
            np.testing.assert_allclose(ours, float(limit), rtol=1e-9)
    minus_inf, inf = jnp.float64(-jnp.inf), jnp.float64(jnp.inf)
    assert row.value(minus_inf) == row.at_zero
    assert row.slope(minus_inf) == row.slope_at_zero
    assert row.slope(inf) == row.slope_at_infinity
    if np.isfinite(row.slope_at_infinity):
        assert row.conjugate(jnp.float64(row.slope_at_infinity) + 0.1) == jnp.inf
    if np.isfinite(row.slope_at_zero):
        assert row.conjugate(jnp.float64(row.slope_at_zero) - 0.1) == -row.at_zero


def test_weights_of_score_distillation():
    """`f'' u^2` of each row; a public port has 1/(4 sqrt u) for Hellinger, which is not it."""
    u = 2.5
    h = {
        name: float(jax.grad(generators.get(name).slope)(jnp.log(u)) * u)
        for name in ("kl", "reverse_kl", "jeffreys", "squared_hellinger")
    }
    expected = {"kl": u, "reverse_kl": 1, "jeffreys": u + 1, "squared_hellinger": u**0.5 / 4}
    for name, value in expected.items():
        np.testing.assert_allclose(h[name], value, rtol=1e-12)
    assert abs(h["squared_hellinger"] - 1 / (4 * u**0.5)) > 0.1


def test_rows_are_pytrees_of_their_parameters():
    row = generators.get("alpha", alpha=0.3)
    assert jax.tree.leaves(row) == [0.3]
    doubled = jax.tree.map(lambda x: 2 * x, row)
    assert doubled.alpha == 0.6
    assert jax.tree.leaves(generators.Power(0.3, 2.0)) == [0.3, 2.0]
    swept = jax.vmap(lambda a: generators.get("alpha", alpha=a).slope(jnp.float64(0.5)))(
        jnp.arange(3.0)
    )
    np.testing.assert_allclose(swept, [1 - np.exp(-0.5), 0.5, np.expm1(0.5)], rtol=1e-14)


def test_a_row_maps_over_its_own_parameters():
    """The row is the argument: vmap over its leaves, and their gradient."""
    t, rows = jnp.float64(0.5), generators.alpha(jnp.arange(3.0))
    swept = jax.vmap(lambda row: row.slope(t))(rows)
    np.testing.assert_allclose(swept, [1 - np.exp(-0.5), 0.5, np.expm1(0.5)], rtol=1e-14)
    by_row = jax.grad(lambda row: row.slope(t))(generators.tsallis(2.0))
    assert isinstance(by_row, generators.Tsallis)
    np.testing.assert_allclose(
        by_row.index, jax.grad(lambda k: generators.tsallis(k).slope(t))(2.0), rtol=1e-14
    )


def per_row():
    """Rows with a parameter for each of three pairs, and the row of each pair alone."""
    values = {"alpha": (-0.5, 0.5, 3.0), "index": (0.1, 0.5, 3.0)}
    for make in generators.TABLE.values():
        for parameter in make.parameters():
            three = values.get(parameter, (0.1, 0.5, 0.9))
            yield make(**{parameter: three}), [make(**{parameter: x}) for x in three]
    summed = lambda w, a: generators.weighted_sum(
        ((w, generators.alpha(a)), (0.3, generators.kl()))
    )
    yield summed(0.5, (0.1, 0.5, 3.0)), [summed(0.5, a) for a in (0.1, 0.5, 3.0)]
    yield summed((0.5, 1.0, 2.0), 0.5), [summed(w, 0.5) for w in (0.5, 1.0, 2.0)]
    yield (
        generators.Power(np.array([0.3, 0.5, 2.0])),
        [generators.Power(a) for a in (0.3, 0.5, 2.0)],
    )


def test_parameters_are_for_rows_and_never_for_categories():
    """With as many rows as categories; the row is also what vmap maps over."""
    p, q = np.random.default_rng(3).normal(size=(2, 3, 3))
    cases = list(per_row())

    @jax.jit
    def of(p, q):
        alone = [
            jnp.stack([dv.f_divergence(row, *x) for row, *x in zip(rows, p, q, strict=True)])
            for _, rows in cases
        ]
        together = [dv.f_divergence(row, p, q) for row, _ in cases]
        of_columns = [dv.f_divergence(row, p.T, q.T, axis=0) for row, _ in cases]
        mapped = [jax.vmap(dv.f_divergence)(row, p, q) for row, _ in cases]
        return alone, together, of_columns, mapped

    alone, *others = of(p, q)
    for other in others:
        chex.assert_trees_all_close(other, alone, rtol=1e-12)
    for f, name in ((dv.renyi, "alpha"), (dv.bregman, "alpha"), (dv.alpha, "alpha"),
                    (dv.jensen_shannon, "weight"), (dv.skew_kl, "skew")):  # fmt: skip
        for shape in ((2,), (3, 1), (3, 3)):
            with pytest.raises(ValueError, match=f"^{name} must be a number or of shape"):
                f(p, q, **{name: np.full(shape, 0.5)})
    twice = generators.weighted_sum(((np.ones(2), generators.kl()), (1.0, generators.kl())))
    with pytest.raises(ValueError, match=r"^weights\[0\] must be a number or of shape \(3,\)"):
        dv.f_divergence(twice, p, q)


def test_parameters_out_of_range_are_nan_where_they_are_traced():
    """Made of a traced number, and changed as a tree on the way into a program."""
    p, q = np.random.default_rng(3).normal(size=(2, 3))
    out = [(name, key, known.low - 0.5) for name, make in generators.TABLE.items()
           for key, known in make.parameters().items() if np.isfinite(known.low)]  # fmt: skip
    values = [jnp.float64(low) for *_, low in out]

    @jax.jit
    def of(values, rows):
        made = [
            generators.get(x, **{key: low}) for (x, key, _), low in zip(out, values, strict=True)
        ]
        weight = generators.weighted_sum(((values[0], generators.kl()), (1.0, generators.kl())))
        return [dv.f_divergence(row, p, q) for row in (*made, *rows, weight)]

    rows = [generators.get(name) for name, *_ in out]
    wrong = [
        jax.tree.map(lambda _, low=low: low, row) for row, low in zip(rows, values, strict=True)
    ]
    assert np.all(np.isnan(of(values, wrong)))
    assert len(out) >= 4


def test_a_sweep_over_alpha_is_traced_once():
    p, q = jnp.array([1.0, 0.0, -1.0]), jnp.zeros(3)

    @jax.jit
    @chex.assert_max_traces(n=1)
    def divergence(a):
        return dv.alpha(p, q, alpha=a)

    found = [divergence(a) for a in jnp.linspace(0.0, 2.0, 5)]
    chex.assert_trees_all_close(found[0], dv.reverse_kl(p, q), rtol=1e-13)
    chex.assert_trees_all_close(found[-1], dv.pearson_chi2(p, q) / 2, rtol=1e-13)


@pytest.mark.parametrize("name", CUSTOMARY)
def test_all_follows_from_the_class(name):
    """Name, factory, public function, its signature and its documentation; ranges and examples."""
    make, function = generators.TABLE[name], getattr(dv, name)
    assert getattr(generators, name) is make
    assert make.name == function.__name__ == name
    expected = ["p_logits", "q_logits", *make.parameters(), "axis", "where"]
    assert list(inspect.signature(function).parameters) == expected
    for section in ("Shapes:", "Range:", ">>> ", "Reference:"):
        assert section in function.__doc__
    for parameter, known in make.parameters().items():
        assert known.low < known.default < known.high
        assert known.low < known.example < known.high
        if np.isfinite(known.low):
            with pytest.raises(ValueError, match=f"^{parameter} must be {known.allowed}, got"):
                make(**{parameter: known.low})


@row
class Halved(Generator):
    """Half of Pearson's chi2, as a user would write it: not in the table."""

    at_zero, slope_at_zero, slope_at_infinity = 0.5, -1.0, jnp.inf

    def perspective(self, log_p, log_q, t):
        return jnp.exp(log_q) * jnp.expm1(t) ** 2 / 2

    def perspective_p(self, log_p, log_q, t):
        return jnp.exp(log_p) * jnp.expm1(t)

    def perspective_q(self, log_p, log_q, t):
        return self.perspective(log_p, log_q, t) - self.perspective_p(log_p, log_q, t)

    def shift(self, t, step):
        above = jnp.exp(t) + step > 0
        return jnp.where(above, jnp.log(jnp.where(above, jnp.exp(t) + step, 1)), -jnp.inf)


def test_a_row_of_a_user_needs_no_registration():
    own, known = Halved(), generators.alpha(2.0)
    p, q = jnp.array([1.0, 0.0, -1.0]), jnp.array([0.0, 0.5, 0.0])
    both = lambda f: [jax.jit(f)(row) for row in (own, known)]
    for f in (
        lambda row: dv.f_divergence(row, p, q),
        lambda row: jax.grad(lambda x: dv.f_divergence(row, x, q))(p),
        lambda row: estimators.centered_from_p(row, p, q),
        lambda row: estimators.f_divergence_bound(row, p, q),
        lambda row: regularized.greedy(p, q, 0.7, generator=row).log_policy,
        lambda row: regularized.greedy_between(p, q, -q, 0.7, 0.2, generator=row).value,
    ):
        chex.assert_trees_all_close(*both(f), rtol=1e-10)
    assert own.name == "halved"
    assert "halved" not in generators.TABLE


@row
class OwnLeCam(Generator):
    """Le Cam's divergence by its f alone."""

    scale: float = 1.0

    at_zero, slope_at_zero, slope_at_infinity = 0.5, -1.5, 0.5

    def f(self, u):
        return self.scale * (u - 1) ** 2 / (2 * (u + 1))


@row
class OwnHellinger(Generator):
    """Squared Hellinger by its perspective alone."""

    at_zero, slope_at_zero, slope_at_infinity = 0.5, -jnp.inf, 0.5

    def perspective(self, log_p, log_q, t):
        return (jnp.exp(log_p / 2) - jnp.exp(log_q / 2)) ** 2 / 2


def test_a_row_from_f_alone():
    """Values, gradients, slope, shift and greedy of rows that say nothing but f or perspective."""
    ends = {"at_zero": 1.0, "slope_at_zero": -jnp.inf, "slope_at_infinity": 0.0}
    of_function = generators.from_f(lambda u: 1 - jnp.sqrt(u), **ends)
    own = of_function, OwnLeCam(), OwnHellinger()
    known = [getattr(generators, x)() for x in ("squared_hellinger", "le_cam", "squared_hellinger")]
    p, q = np.random.default_rng(2).normal(size=(2, 5))
    p, q, near = np.append(p, -np.inf), np.append(q, 1.0), np.append(p, 0.0) + 1e-7 * np.arange(6)
    t = jnp.array([-9.0, -0.7, -0.3, 1e-6, 0.2, 3.0, 9.0])

    @jax.jit
    def of(rows):
        def one(row):
            f = lambda p, q: dv.f_divergence(row, p, q)
            by_p, by_q = jax.grad(f, (0, 1))(p, q)
            return f(p, q), by_p, by_q, row.slope(t), row.shift(t, jnp.flip(t) / 40)

        best = regularized.greedy(near, q, 0.3, generator=rows[1])
        by_scale = jax.value_and_grad(lambda row: dv.f_divergence(row, p[:5], q[:5]))(rows[1])
        nearby = [dv.f_divergence(row, near, jnp.append(p[:5], 0.0)) for row in rows[:2]]
        return list(map(one, rows)), best.log_policy, nearby, jax.tree.leaves(by_scale)

    found, expected = of(own), of(known)
    chex.assert_trees_all_close(found[:2], expected[:2], rtol=1e-9, atol=1e-12)
    chex.assert_trees_all_close(found[2], expected[2], rtol=1e-9)
    np.testing.assert_allclose(*found[3], rtol=1e-12)
    with pytest.raises(ValueError, match=r"^f\(1\) must be 0 for FromF, got "):
        generators.from_f(jnp.sqrt, **ends)


def test_sums_of_rows_with_bounded_slopes():
    """pearson + neyman: chi2 both ways; and le_cam + neyman, whose slopes end above."""
    chi2, bounded = (
        generators.weighted_sum(((1.0, generators.neyman_chi2()), (0.5, generators.get(name))))
        for name in ("pearson_chi2", "le_cam")
    )
    values, ref = np.random.default_rng(4).normal(size=(2, 5))
    t = jnp.array([-60.0, -5.0, 0.0, 5.0, 60.0])

    @jax.jit
    def of():
        best = regularized.greedy(4 * values, ref, 0.3, generator=chi2)
        slope = chi2.slope(best.log_policy - jax.nn.log_softmax(ref))
        out = slope - (4 * values - best.normalizer) / 0.3, best.residual
        back = [one.shift(t, one.rise(t, 0.9 * t)) for one in (chi2, bounded)]
        return *out, back, bounded.shift(t, jnp.array([0.0, 0.0, jnp.nan, 10.0, 10.0]))

    gap, residual, back, ends = of()
    np.testing.assert_allclose(gap, 0, atol=1e-8)
    assert residual < 1e-12
    for found in back:
        np.testing.assert_allclose(found, 0.9 * t, atol=1e-9)
    np.testing.assert_allclose(ends, [-60.0, -5.0, np.nan, np.inf, np.inf], rtol=1e-14)


def test_what_slopes_lack_to_their_ends():
    """`rest_p` and `rest_q`: the derivatives without f'(inf) and f(0), where these are finite."""
    log_q, t = (
        jnp.linspace(-3.0, 0.0, 9),
        jnp.array([-4.0, -2.0, -1.0, -0.1, 0.0, 0.1, 1.0, 2.0, 4.0]),
    )

    @jax.jit
    def of():
        out = {}
        for name in CUSTOMARY:
            row, _ = both(name)
            pairs = zip(
                (row.rest_p, row.rest_q),
                (Generator.rest_p, Generator.rest_q),
                (row.slope_at_infinity, row.at_zero),
                strict=True,
            )
            out[name] = [
                (end, ours(log_q + t, log_q, t), plain(row, log_q + t, log_q, t))
                for ours, plain, end in pairs
            ]
        return out

    finite = 0
    for name, found in of().items():
        for end, ours, plain in found:
            if np.isfinite(end):
                finite += 1
                np.testing.assert_allclose(ours, plain, rtol=1e-9, atol=1e-14, err_msg=name)
    assert finite == 18


def test_shifts_far_out_in_float32():
    """From log-ratios of 100 on, steps from 1e-30 to 1e30: against float64."""
    t = np.array([-100, -60, -20, -1, 0, 1, 20, 48, 60, 100], np.float32)
    sizes = 10.0 ** np.array([-30, -20, -10, -2, 0, 2, 10, 20, 30])
    t, step = (x.ravel() for x in np.meshgrid(t, np.append(sizes, -sizes).astype(np.float32)))

    @jax.jit
    def of(t, step):
        return {x: generators.get(x).astype(t.dtype).shift(t, step) for x in SMOOTH}

    doubled = np.float64(t), np.float64(step)
    single, double = (jax.tree.map(np.asarray, of(*x)) for x in ((t, step), doubled))
    nearby = of(doubled[0], doubled[1] * (1 + 1e-5))  # where the step leads next to an end
    for name in SMOOTH:
        size = np.maximum(1, np.abs(double[name]))
        with np.errstate(invalid="ignore"):  # of infinities
            off = np.abs(single[name] - double[name]) / size
            moved = np.abs(nearby[name] - double[name]) / size
        inside = np.isfinite(double[name]) & (moved < 1e-3)
        assert np.max(off[inside]) < 1e-5, name
        ends = np.isinf(double[name]) & (nearby[name] == double[name])
        np.testing.assert_array_equal(single[name][ends], double[name][ends])
        assert np.sum(inside | ends) > 150


def test_same_under_every_transformation(same_everywhere):
    rows = {name: both(name)[0] for name in CUSTOMARY}

    def outputs(t, s):
        return {
            name: (row.value(t), row.slope(t), row.inverse_slope(s), row.conjugate(s))
            for name, row in rows.items()
        }

    t, s = jnp.linspace(-3, 3, 16).reshape(8, 2), jnp.linspace(-1.3, 0.3, 16).reshape(8, 2)
    same_everywhere(outputs, t, s)


def test_refusals():
    class Expo2(Generator):
        rate: float = 2.0

    with pytest.raises(TypeError, match=r"^Expo2 must be decorated with @row of jdiv"):
        Expo2()
    with pytest.raises(
        ValueError,
        match=r"^generator: no 'hellinger'; did you mean squared_hellinger\?$",
    ):
        generators.get("hellinger")
    with pytest.raises(ValueError, match=r"^generator: no 'xyz'; known are kl, reverse_kl, "):
        generators.get("xyz")
    with pytest.raises(TypeError, match=r"^beta is not a parameter of alpha: it takes alpha$"):
        generators.get("alpha", beta=1.0)
    with pytest.raises(TypeError, match=r"^alpha is not a parameter of kl: it takes none$"):
        generators.get("kl", alpha=1.0)
    with pytest.raises(ValueError, match=r"^weight must be between 0 and 1, exclusive, got 1\.5$"):
        generators.get("jensen_shannon", weight=1.5)


def test_shifts_beyond_the_range_of_exponentials_have_derivatives():
    t, step = jnp.float32(-200), jnp.float32(0.5)
    by_alpha = jax.grad(lambda alpha: generators.alpha(alpha).shift(t, step))(jnp.float32(2))
    np.testing.assert_allclose(by_alpha, 1 + np.log(2), rtol=1e-5)  # of log(c step)/c at c = 1
    by_t, by_step = jax.grad(generators.le_cam().shift, (0, 1))(jnp.float32(100), jnp.float32(0))
    assert by_t == 1
    assert not jnp.isnan(by_step)
    assert generators.alpha(1.0).shift(jnp.float32(-jnp.inf), jnp.float32(0)) == -jnp.inf
