import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np

from jdiv.alignment import averaging
from tests.checks import refused

mp.mp.dps = 60


def precise_slerp(a, b, share):
    """With sixty digits; the angle by its cosine."""
    a, b = ([mp.mpf(float(x)) for x in v] for v in (a, b))
    share = mp.mpf(float(share))
    length = [mp.sqrt(mp.fsum(x * x for x in v)) for v in (a, b)]
    omega = mp.acos(mp.fsum(x * y for x, y in zip(a, b, strict=True)) / length[0] / length[1])
    of_a, of_b = (mp.sin(s * omega) / mp.sin(omega) for s in (1 - share, share))
    return np.array([float(of_a * x + of_b * y) for x, y in zip(a, b, strict=True)])


def test_slerp_to_all_digits():
    """Random pairs, nearly parallel ones and nearly antiparallel ones; shares beyond the ends."""
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 12, 6))
    for i, sign in ((0, 1), (1, 1), (2, -1), (3, -1)):
        b[i] = sign * 1.7 * a[i] + (1e-9, 1e-3, 1e-2, 1e-3)[i] * b[i]
    share = rng.uniform(-0.2, 1.2, size=12)
    got = jax.jit(jax.vmap(averaging.slerp))(a, b, share)
    expected = np.stack([precise_slerp(*x) for x in zip(a, b, share, strict=True)])
    np.testing.assert_allclose(got, expected, rtol=1e-11, atol=1e-12)
    single = jax.vmap(averaging.slerp)(*(jnp.float32(x) for x in (a[4:], b[4:], share[4:])))
    np.testing.assert_allclose(single, expected[4:], rtol=1e-4, atol=1e-5)


def test_slerp_keeps_the_length_and_the_line_does_not():
    shares = np.linspace(0, 1, 11)
    for degrees, factor in ((90, 0.7071), (60, 0.8660), (30, 0.9659)):
        w = np.radians(degrees)
        a, b = np.array([1.0, 0, 0]), np.array([np.cos(w), np.sin(w), 0])
        np.testing.assert_allclose(averaging.angle(a, b), w, rtol=1e-15)
        arc = jax.vmap(averaging.slerp, (None, None, 0))(a, b, shares)
        np.testing.assert_allclose(np.linalg.norm(arc, axis=1), 1, rtol=1e-14)
        line = np.linalg.norm(averaging.interpolate(a, b, 0.5))
        np.testing.assert_allclose(line, factor, atol=5e-5)
        np.testing.assert_allclose(line, np.sqrt(1 - 2 * (1 - np.cos(w)) / 4), rtol=1e-14)


def test_slerp_of_special_vectors():
    a = np.array([[1.0, -2, 0.5], [3, 0, 1]])
    zero = np.zeros_like(a)
    for b in (a, 2 * a, 0.3 * a, zero):
        np.testing.assert_allclose(averaging.slerp(a, b, 0.25), 0.75 * a + 0.25 * b, rtol=1e-14)
    for share, expected in ((0.0, a), (1.0, -a)):
        np.testing.assert_array_equal(averaging.slerp(a, -a, share), expected)
    for b in (-a, -0.37 * a):
        assert np.isnan(averaging.slerp(a, b, 0.5)).all()
    np.testing.assert_array_equal(averaging.slerp(zero, zero, 0.5), zero)
    assert averaging.angle(a, zero) == 0
    np.testing.assert_allclose(averaging.angle(a, -a), np.pi)
    tiny = 1e-9 * np.array([[0, 0, 1.0], [0, 1, 0]])
    across = np.linalg.norm(tiny - a * (a * tiny).sum() / (a**2).sum()) / np.linalg.norm(a)
    np.testing.assert_allclose(averaging.angle(a, a + tiny), across, rtol=1e-6)


def models(count, seed=0):
    rng = np.random.default_rng(seed)
    draw = lambda *shape: {"w": rng.normal(size=(*shape, 3, 2)), "b": rng.normal(size=(*shape, 4))}
    return draw(), draw(count)


def test_merge_is_per_leaf_and_keeps_the_length():
    start, stacked = models(4)
    equal = {  # task vectors of length 2 in every leaf
        name: start[name]
        + 2
        * (x := stacked[name] - start[name])
        / np.linalg.norm(x.reshape(4, -1), axis=1).reshape(4, *[1] * (x.ndim - 1))
        for name in start
    }
    merged = jax.jit(averaging.merge)(start, equal)
    for name in start:
        np.testing.assert_allclose(np.linalg.norm(merged[name] - start[name]), 2, rtol=1e-13)
        tasks = (equal[name] - start[name]).reshape(4, -1)
        by_hand = tasks[0]
        for m in (2, 3, 4):
            by_hand = precise_slerp(by_hand, tasks[m - 1], 1 / m)
        np.testing.assert_allclose((merged[name] - start[name]).ravel(), by_hand, atol=1e-12)
    alone = averaging.merge(start, {name: x[:1] for name, x in equal.items()})
    for name in start:
        np.testing.assert_allclose(alone[name], equal[name][0], rtol=1e-14)


def test_averages(same_everywhere):
    start, stacked = models(2)
    halfway = averaging.average(stacked)
    for name in start:
        np.testing.assert_allclose(halfway[name], stacked[name].mean(axis=0), rtol=1e-14)
        ends = [averaging.interpolate(start, halfway, s)[name] for s in (0.0, 1.0)]
        np.testing.assert_allclose(ends, [start[name], halfway[name]], rtol=1e-14)
    # An exponential moving average is interpolation at every step.
    path = np.random.default_rng(3).normal(size=(50, 4))
    follow = lambda anchor, x: (averaging.interpolate(anchor, x, 0.1), None)
    anchor, _ = jax.lax.scan(follow, jnp.zeros(4), jnp.asarray(path))
    weights = 0.1 * 0.9 ** np.arange(50)[::-1]
    np.testing.assert_allclose(anchor, weights @ path, rtol=1e-12)
    half = {"w": jnp.ones((2, 3), jnp.bfloat16)}
    assert averaging.average(half)["w"].dtype == jnp.bfloat16
    rng = np.random.default_rng(4)
    same_everywhere(
        lambda a, b: {"merged": a + b},
        rng.normal(size=(8, 2, 3)),
        rng.normal(size=(8, 2, 3)),
    )


def test_warp_is_its_three_steps():
    start, target = models(1)[0], jax.tree.map(jnp.asarray, models(3)[1])

    def train(model, key):
        """Part of the way to one of three targets, with noise."""
        end = jax.tree.map(lambda x: x[jax.random.randint(key, (), 0, 3)], target)
        return averaging.interpolate(model, end, jax.random.uniform(key, (), jnp.float64))

    keys = jax.random.split(jax.random.key(0), (3, 2))
    last, merged = jax.jit(lambda start: averaging.warp(train, start, keys, share=0.3))(start)
    model = start
    for i in range(3):
        trained = [train(model, keys[i, m]) for m in range(2)]
        both = {name: np.stack([x[name] for x in trained]) for name in start}
        joined = averaging.merge(model, both)
        model = {name: 0.7 * model[name] + 0.3 * joined[name] for name in start}
        for name in start:
            np.testing.assert_allclose(merged[name][i], joined[name], rtol=1e-9)
    for name in start:
        np.testing.assert_allclose(last[name], model[name], rtol=1e-9)


def test_refusals():
    refused(
        ValueError, ["start", "end"], lambda: averaging.interpolate(np.ones(2), np.ones(3), 0.5)
    )
    refused(ValueError, ["a", "b"], lambda: averaging.slerp(np.ones(2), np.ones(3), 0.5))
    refused(TypeError, ["leaf"], lambda: averaging.average({"step": np.arange(3)}))
    refused(ValueError, ["models", "[M, ...]"], lambda: averaging.merge(np.ones(2), np.ones(2)))


def test_angles_of_vectors_of_any_size():
    """Single precision, whose squares of 1e-30 and of 1e30 are no floats."""
    a, b = jnp.eye(2, dtype=jnp.float32) * jnp.float32(1e-30)
    for scale in (1.0, 1e30, 1e15):
        np.testing.assert_allclose(averaging.angle(a * scale, 1e30 * b), np.pi / 2, rtol=1e-6)
    assert averaging.angle(0 * a, b) == 0
