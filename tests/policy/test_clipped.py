import functools

import jax
import jax.numpy as jnp
import numpy as np

from jdiv.policy.clipped import (
    TABLE,
    cispo,
    dual_clip,
    gspo,
    luspo,
    off_policy_mask,
    ppo_clip,
    reinforce,
    vespo,
)
from jdiv.policy.tokens import constant_mean, sequence_mean
from tests.checks import refused

RNG = np.random.default_rng(0)
N, T = 16, 5
OLD = RNG.normal(size=(N, T)) - 2
NEW = OLD + 0.4 * RNG.normal(size=(N, T))
MASK = np.arange(T) < RNG.integers(0, T + 1, N)[:, None]
MASK[:3] = [[False] * T, [True] * T, [True] + [False] * (T - 1)]
ADVANTAGES = RNG.normal(size=N)
LOSSES = {
    "ppo": ppo_clip,
    "higher": functools.partial(ppo_clip, high=0.28),
    "gspo": functools.partial(gspo, low=0.1, high=0.1),
    "cispo": functools.partial(cispo, low=0.1, high=0.2),
    "open": functools.partial(cispo, high=jnp.inf),
    "reinforce": lambda new, old, advantages, mask: reinforce(new, advantages, mask),
}


def hidden(x, with_=np.nan):
    """What a caller might have behind the end."""
    return np.where(MASK, x, with_)


@functools.cache
def evaluated():
    """Of every loss the values, the evidence, and the gradient of the sum."""

    def of(loss):
        def total(new):
            found = loss(new, hidden(OLD, np.inf), ADVANTAGES, MASK)
            return jnp.sum(found.loss), found

        return jax.grad(total, has_aux=True)(hidden(NEW))

    found = jax.jit(lambda: {name: of(loss) for name, loss in LOSSES.items()})()
    return jax.tree.map(np.asarray, found)


def ppo(w, a, low, high):
    return -np.minimum(w * a, np.clip(w, 1 - low, 1 + high) * a)


def slope(f, w):
    """Of `f(w)` by log w."""
    return (f(w * np.exp(1e-6)) - f(w * np.exp(-1e-6))) / 2e-6


def test_losses_per_token():
    w, a = np.exp(NEW - OLD), np.broadcast_to(ADVANTAGES[:, None], MASK.shape)
    clipped = {
        "ppo": ((a > 0) & (w > 1.2)) | ((a < 0) & (w < 0.8)),
        "higher": ((a > 0) & (w > 1.28)) | ((a < 0) & (w < 0.8)),
        "cispo": (w > 1.2) | (w < 0.9),
        "open": np.zeros_like(MASK),
        "reinforce": np.zeros_like(MASK),
    }
    expected = {
        "ppo": (ppo(w, a, 0.2, 0.2), slope(lambda w: ppo(w, a, 0.2, 0.2), w)),
        "higher": (ppo(w, a, 0.2, 0.28), slope(lambda w: ppo(w, a, 0.2, 0.28), w)),
        "cispo": (-np.clip(w, 0.9, 1.2) * a * NEW, -np.clip(w, 0.9, 1.2) * a),
        "open": (-w * a * NEW, -w * a),
        "reinforce": (-a * NEW, -a),
    }
    for name, (loss, by_log_prob) in expected.items():
        gradient, found = evaluated()[name]
        np.testing.assert_allclose(found.loss, np.where(MASK, loss, 0), rtol=1e-12)
        np.testing.assert_allclose(gradient, np.where(MASK, by_log_prob, 0), rtol=1e-6)
        np.testing.assert_array_equal(found.aux.clipped, clipped[name] & MASK)
        if name != "reinforce":
            np.testing.assert_allclose(found.aux.ratio, np.where(MASK, w, 0))
    assert clipped["ppo"][MASK].sum() > 3


def test_gspo_is_the_loss_of_sequences():
    gradient, found = evaluated()["gspo"]
    length = np.maximum(MASK.sum(axis=1), 1)
    s = np.exp(np.where(MASK, NEW - OLD, 0).sum(axis=1) / length)
    loss = ppo(s, ADVANTAGES, 0.1, 0.1)
    by_mean = slope(lambda s: ppo(s, ADVANTAGES, 0.1, 0.1), s)
    np.testing.assert_allclose(found.loss, np.where(MASK, loss[:, None], 0))
    # Each token has the whole slope, and an average over the sequence divides by its length.
    np.testing.assert_allclose(gradient, np.where(MASK, by_mean[:, None], 0), rtol=1e-6, atol=1e-12)
    averaged = sequence_mean(found.loss, MASK)
    np.testing.assert_allclose(averaged, loss[MASK.any(axis=1)].mean())
    # One token: PPO.
    one = MASK.sum(axis=1) == 1
    there = functools.partial(gspo, low=0.2, high=0.2)
    single = there(hidden(NEW)[one], hidden(OLD)[one], ADVANTAGES[one], MASK[one])
    np.testing.assert_allclose(single.loss, evaluated()["ppo"][1].loss[one])


def test_without_a_step_all_have_the_policy_gradient():
    def gradients(new):
        old = jax.lax.stop_gradient(new)
        return {
            name: jax.grad(lambda x, loss=loss: jnp.sum(loss(x, old, ADVANTAGES, MASK).loss))(new)
            for name, loss in LOSSES.items()
        }

    for gradient in jax.jit(gradients)(hidden(NEW)).values():
        np.testing.assert_allclose(gradient, np.where(MASK, -ADVANTAGES[:, None], 0), rtol=1e-14)


def test_extreme_ratios_and_half_precision():
    old = jnp.full((3, 5), -310, jnp.float32)
    new = old + jnp.array([80, -80, 300, -300, 0], jnp.float32)[None]
    advantages = jnp.array([1, 0, -1], jnp.float32)
    # Nothing bounds a ratio of e^300 whose advantage is negative.
    mask = jnp.full((3, 5), True).at[2, 2].set(False)

    @jax.jit
    def of(new):
        def both(loss):
            value = loss(new, old, advantages, mask).loss
            return value, jax.grad(lambda x: jnp.sum(loss(x, old, advantages, mask).loss))(new)

        return {name: both(LOSSES[name]) for name in ("ppo", "gspo", "cispo")}

    for name, (loss, gradient) in of(new).items():
        assert np.isfinite(gradient).all(), name
        assert np.isfinite(loss).all(), name
        assert loss.dtype == jnp.float32
        assert (gradient[1] == 0).all()
    half = jnp.array([[-1.0, -2.0]], jnp.bfloat16)
    found = ppo_clip(half, half + 0.5, jnp.ones(1, jnp.bfloat16), jnp.full((1, 2), True))
    assert found.loss.dtype == jnp.float32
    np.testing.assert_allclose(found.loss, -np.exp(np.float32(-0.5)) * np.ones((1, 2)), rtol=1e-6)


RATIOS = np.array([0.1, 0.75, 0.85, 1.0, 1.2, 1.35, 2.5, 3.5, 40.0])
GRID = tuple(x.ravel() for x in np.meshgrid(np.log(RATIOS), [-1.3, -0.2, 0.0, 0.4, 2.0]))


def test_dual_clip():
    old, every = np.linspace(-9, -6, GRID[0].size), np.full(GRID[0].shape, True)
    losses = {
        "dual": dual_clip,
        "no ceiling": functools.partial(dual_clip, ceiling=jnp.inf),
        "ppo": functools.partial(ppo_clip, high=0.28),
    }

    def of(loss, x):
        found = loss(x, old, GRID[1], every)
        return jnp.sum(found.loss), found

    found = jax.jit(
        lambda x: {name: jax.grad(functools.partial(of, loss), has_aux=True)(x)
                   for name, loss in losses.items()}
    )(old + GRID[0])  # fmt: skip
    w, a = np.exp(GRID[0]), GRID[1]
    bounded = np.maximum(-w * a, -np.clip(w, 0.8, 1.28) * a)
    expected = np.where(a >= 0, bounded, np.minimum(bounded, -3 * a))
    gradient, dual = found["dual"]
    np.testing.assert_allclose(dual.loss, expected)
    moves = np.isclose(expected, -w * a, rtol=1e-12, atol=0) & (a != 0)
    np.testing.assert_allclose(gradient, np.where(moves, -w * a, 0))
    np.testing.assert_array_equal(dual.aux.clipped, ~moves & (a != 0))
    np.testing.assert_allclose(found["no ceiling"][1].loss, found["ppo"][1].loss)
    np.testing.assert_allclose(found["no ceiling"][0], found["ppo"][0])


def test_refusals():
    ones, mask = jnp.ones((2, 3)), jnp.full((2, 3), True)
    refused(TypeError, ("mask", "boolean"), lambda: ppo_clip(ones, ones, ones, ones))
    refused(TypeError, ("mask", "boolean"), lambda: dual_clip(ones, ones, ones, ones))
    refused(ValueError, ("log_probs", "mask"), lambda: reinforce(ones, ones, mask[:, :2]))
    refused(ValueError, ("advantages",), lambda: reinforce(ones, ones[:1], mask))


def test_stale_sequences_are_dropped_where_they_were_bad():
    keep = np.asarray(off_policy_mask(hidden(NEW), hidden(OLD), ADVANTAGES, MASK, threshold=0.1))
    for i in range(N):
        gone = np.mean((OLD - NEW)[i, MASK[i]]) if MASK[i].any() else 0
        assert (keep[i] == (MASK[i] & (ADVANTAGES[i] >= 0 or gone <= 0.1))).all()
    assert 0 < np.sum(MASK & ~keep) < np.sum(MASK)
    call = functools.partial(off_policy_mask, NEW, OLD, ADVANTAGES, MASK, threshold=-0.1)
    refused(ValueError, ("threshold", "negative"), call)


def test_vespo_of_ratios_near_nothing_and_far_beyond():
    """The weight is w^k e^(l (1 - w)) also where w leaves the floats, and 0 in their limits."""
    old = np.array([[-1.0], [-60.0], [-800.0], [-1.0], [-1.0]])
    new = np.array([[-1.0], [-1.0], [-1.0], [-400.0], [-np.inf]])
    for gain, k, l in ((1.0, 2.0, 3.0), (-1.0, 3.0, 2.0)):
        loss = vespo(new, old, np.full(5, gain), np.ones((5, 1), bool)).loss
        expected = [gain, 0, 0, gain * 400 * np.exp(k * -399 + l), 0]
        np.testing.assert_allclose(loss[:, 0], expected, rtol=1e-12)


def independent(log_ratio, advantages, mask):
    """The weights by their formulas, of NumPy, sequence by sequence."""
    found = {name: np.zeros(mask.shape) for name in TABLE}
    for i in range(len(mask)):
        l, a = log_ratio[i][mask[i]], advantages[i][mask[i]]
        w, whole, n = np.exp(l), np.exp(l.sum()), max(len(l), 1)
        s = np.full(l.shape, np.exp(l.sum() / n))
        ppo = lambda w, low, high, a=a: np.where(
            ((a > 0) & (w > 1 + high)) | ((a < 0) & (w < 1 - low)), 0, w * a
        )
        falling = lambda w, most, x, a=a: np.where((a < 0) & (w > most), 0, x)
        t, k, fall = (np.where(a > 0, *pair) for pair in ((1, 1.05), (2, 3), (3, 2)))
        bounded = np.where(a > 0, np.minimum(l, 0.4), np.maximum(l, -0.4))
        stale = (a < 0) & (-l.sum() / n > 0.1)
        gspo = ppo(s, 3e-4, 4e-4)
        of_row = {
            "reinforce": a,
            "importance": whole * a,
            "truncated": min(whole, 2) * a,
            "ppo": ppo(w, 0.2, 0.2),
            "dual_clip": falling(w, 3, ppo(w, 0.2, 0.28)),
            "two_sided": falling(w, 4, ppo(w, 0.2, 0.2)),
            "cispo": np.minimum(w, 3) * a,
            "sapo": w / np.cosh(t * (w - 1) / 2) ** 2 * a,
            "dro": a - 0.1 * l,
            "awr": np.minimum(np.exp(a), 20),
            "gspo": gspo,
            "luspo": len(l) * gspo,
            "gmpo": np.where(bounded == l, np.exp(bounded.sum() / n), 0) * a,
            "vespo": whole**k * np.exp(fall * (1 - whole)) * a,
            "off_policy_mask": np.where(stale, 0, ppo(w, 0.2, 0.2)),
        }
        for name, x in of_row.items():
            found[name][i][mask[i]] = x
    return found


def test_every_row_is_its_formula_and_the_slope_of_its_loss():
    new = OLD + np.where(np.arange(N)[:, None] < 8, 1, 3) * (NEW - OLD)
    gains = np.broadcast_to(3 * ADVANTAGES[:, None], MASK.shape)

    @jax.jit
    def both(new):
        def of(row):
            summed = lambda x: jnp.sum(row.loss(x, hidden(OLD, np.inf), hidden(gains), MASK).loss)
            weight = row.weight(new - hidden(OLD, np.inf), hidden(gains), MASK)
            return weight, jax.grad(summed)(new)

        return {name: of(row) for name, row in TABLE.items()}

    expected = independent(new - OLD, gains, MASK)
    for name, (weight, gradient) in both(hidden(new)).items():
        np.testing.assert_allclose(weight, expected[name], rtol=1e-12, err_msg=name)
        np.testing.assert_allclose(gradient, -weight, rtol=1e-12, atol=1e-15, err_msg=name)
    assert (expected["gmpo"][MASK] == 0).any()
    assert (expected["off_policy_mask"] != expected["ppo"]).any()
    alone = {name for name, row in TABLE.items() if row.by == "token"}
    assert alone == {"reinforce", "ppo", "dual_clip", "two_sided", "cispo", "sapo", "dro", "awr"}


def test_ratios_beyond_the_floats():
    """Weights, and the slopes of losses, at ratios 0, e^50 and inf, of either sign and of no
    advantage, in answers of one token; nothing is NaN."""
    new = np.repeat([-np.inf, -1.0, -1.0], 3)[:, None]
    old = np.repeat([-1.0, -51.0, -901.0], 3)[:, None]
    gains, one = np.tile([1.0, -1.0, 0.0], 3)[:, None], np.ones((9, 1), bool)

    @jax.jit
    def both(new):
        def of(row):
            summed = lambda x: jnp.sum(row.loss(x, old, gains, one).loss)
            return row.weight(new - old, gains, one), jax.grad(summed)(new)

        return {name: of(row) for name, row in TABLE.items()}

    found = {name: [np.asarray(x).reshape(3, 3) for x in pair] for name, pair in both(new).items()}
    far = {"reinforce": 1, "cispo": 3, "truncated": 2}
    none = ("sapo", "vespo", "dual_clip", "two_sided")
    for name, (weight, slope) in found.items():
        np.testing.assert_allclose(slope, -weight, rtol=1e-12, err_msg=name)
        if name in ("awr", "dro"):
            continue
        assert (weight[:, 2] == 0).all(), name
        assert (weight[0] == 0).all() or name == "reinforce", name
        if name in none:
            assert (weight[1:] == 0).all(), name
        elif name in far:
            np.testing.assert_array_equal(weight[1:, :2], [[far[name], -far[name]]] * 2)
        else:
            top = np.exp(50.0) if name == "importance" else 0
            np.testing.assert_allclose(weight[1, :2], [top, -np.exp(50.0)], rtol=1e-12)
            assert weight[2, 1] == -np.inf, name
    np.testing.assert_allclose(found["dro"][0][1], [1 - 5, -1 - 5, -5])
    np.testing.assert_allclose(found["awr"][0], np.tile(np.exp([1.0, -1.0, 0.0]), (3, 1)))


def test_luspo_is_gspo_that_is_summed_over_its_tokens():
    found = luspo(hidden(NEW), hidden(OLD), ADVANTAGES, MASK, low=0.1, high=0.1).loss
    summed = constant_mean(evaluated()["gspo"][1].loss, MASK, 1.0)
    np.testing.assert_allclose(sequence_mean(found, MASK), summed)
