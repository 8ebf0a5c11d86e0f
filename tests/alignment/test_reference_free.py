import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

from jdiv.alignment import margins, preference, reference_free
from tests.checks import refused

ROWS = json.loads(
    (pathlib.Path(__file__).parents[1] / "data" / "reference_free_losses.json").read_text()
)


def ours(row, chosen, rejected):
    """TRL's loss per pair; it has the mean over tokens already, and minus ORPO's second term."""
    beta, margin = row["beta"], margins.label_smoothed(row["label_smoothing"])
    lengths = jnp.ones_like(chosen), jnp.ones_like(chosen)
    if row["loss"] == "orpo":
        loss = reference_free.orpo(chosen, rejected, lengths=lengths, coefficient=beta)
        return preference.sft(chosen) - loss
    if row["loss"] == "simpo":
        options = {"lengths": lengths, "beta": beta, "gamma": row["gamma"], "margin": margin}
        if row["alpha"]:
            return reference_free.alpha_po(chosen, rejected, alpha=row["alpha"], **options)
        return reference_free.simpo(chosen, rejected, **options)
    plain = functools.partial(reference_free.cpo, chosen, rejected, coefficient=0.0)
    if row["loss"] == "ipo":
        return plain(beta=2 * beta, margin=margins.squared) / (2 * beta) ** 2
    return plain(beta=beta, margin={"hinge": margins.hinge, "sigmoid": margin}[row["loss"]])


def test_reference_free_losses_are_those_of_trl():
    """Value and gradients of their means, from TRL's own code; ORPO's is in single precision."""

    @jax.jit
    def all_of(pairs):
        mean = lambda *pair, row: jnp.mean(ours(row, *pair))
        of = lambda row, pair: jax.value_and_grad(functools.partial(mean, row=row), (0, 1))(*pair)
        return [of(row, pair) for row, pair in zip(ROWS, pairs, strict=True)]

    pairs = [(np.array(row["chosen"]), np.array(row["rejected"])) for row in ROWS]
    for row, (value, gradients) in zip(ROWS, all_of(pairs), strict=True):
        tolerance = {"float64": 1e-12, "float32": 1e-6}[row["dtype"]]
        assert float(value) == pytest.approx(row["value"], rel=tolerance)
        for found, name in zip(gradients, ("grad_chosen", "grad_rejected"), strict=True):
            np.testing.assert_allclose(found, row[name], rtol=tolerance, atol=tolerance)
    assert len(ROWS) == 14
    assert {row["loss"] for row in ROWS} == {"sigmoid", "simpo", "hinge", "ipo", "orpo"}


# ------------------------------------------------------------------------------------- by formulas

NAMES = ("cpo", "simpo", "alpha_po", "alpha_po below 0", "alpha_po at 0", "orpo")


def losses(chosen, rejected, lengths):
    """All of them with numbers that are no special case, in the order of NAMES."""
    shaped = functools.partial(
        reference_free.alpha_po, chosen, rejected, lengths=lengths, beta=1.7, gamma=0.4
    )
    return jnp.stack([
        reference_free.cpo(chosen, rejected, beta=0.6, coefficient=0.3),
        reference_free.simpo(chosen, rejected, lengths=lengths, beta=1.7, gamma=0.4),
        *(shaped(alpha=alpha) for alpha in (0.3, -0.8, 0.0)),
        reference_free.orpo(chosen, rejected, lengths=lengths, coefficient=0.7),
    ])  # fmt: skip


def by_hand(w, l, n, m):
    """The formulas of the docstrings in NumPy: value, and derivatives by both log-probabilities."""
    sigmoid, softplus = (lambda x: 1 / (1 + np.exp(-x))), (lambda x: np.logaddexp(0, x))
    p, q = np.exp(w / n), np.exp(l / m)
    x = 0.6 * (w - l)
    found = [(softplus(-x) - 0.3 * w, -0.6 * sigmoid(-x) - 0.3, 0.6 * sigmoid(-x))]
    for a in (0.0, 0.3, -0.8, 0.0):
        reward = lambda p, a=a: (1 - p**-a) / a if a else np.log(p)
        x = 1.7 * (reward(p) - reward(q)) - 0.4
        pull = 1.7 * sigmoid(-x)
        found.append((softplus(-x), -pull * p**-a / n, pull * q**-a / m))
    total = p * (1 - q) + q * (1 - p)
    odds = np.log(total) - np.log(p) - np.log1p(-q)
    found.append((0.7 * odds - w / n, -0.7 * q / total / n - 1 / n,
                  0.7 * q * (1 - p) / (total * (1 - q)) / m))  # fmt: skip
    return [np.array(x) for x in zip(*found, strict=True)]


def test_values_and_gradients():
    """Against the formulas, and these against differences in double precision."""
    rng = np.random.default_rng(0)
    w, l = -6 * rng.uniform(size=(2, 9))
    n, m = rng.integers(1, 9, size=(2, 9)).astype(float)
    value, by_w, by_l = by_hand(w, l, n, m)
    h = 1e-6
    for found, (dw, dl) in ((by_w, (h, 0)), (by_l, (0, h))):
        ends = [by_hand(w + s * dw, l + s * dl, n, m)[0] for s in (1, -1)]
        np.testing.assert_allclose(found, (ends[0] - ends[1]) / (2 * h), rtol=1e-6, atol=1e-9)

    each = jax.jit(jax.vmap(lambda w, l, n, m: (
        losses(w, l, (n, m)), *jax.jacrev(losses, (0, 1))(w, l, (n, m)))))  # fmt: skip
    found, *slopes = (x.T for x in each(w, l, n, m))
    np.testing.assert_allclose(found, value, rtol=1e-12)
    for slope, expected in zip(slopes, (by_w, by_l), strict=True):
        np.testing.assert_allclose(slope, expected, rtol=1e-11)
    half = each(*(jnp.asarray(x, jnp.bfloat16) for x in (w, l, n, m)))
    assert half[0].dtype == jnp.float32
    wide = by_hand(*(np.asarray(jnp.asarray(x, jnp.bfloat16), float) for x in (w, l, n, m)))
    np.testing.assert_allclose(half[0].T, wide[0], rtol=1e-5)


def test_extremes():
    """Certain and impossible answers: limits, and no NaN; gradients of the odds stay exact."""
    inf = np.inf
    w = np.array([0.0, 0.0, -inf, -inf, 0.0, -1e-300, -1.0, -1.0, -800.0, -1e-12])
    l = np.array([-1.0, -inf, -1.0, -inf, 0.0, -1e-300, 0.0, -inf, -900.0, -2e-12])
    one = jnp.ones_like(w)

    @jax.jit
    def run(w, l):
        def total(w, l):
            found = losses(w, l, (one, one))
            odds = reference_free.orpo(w, l, lengths=(one, one), coefficient=1.0)
            none = reference_free.cpo(w, l, beta=1.0, coefficient=0.0)
            return jnp.sum(odds), (found, odds, none)

        return jax.value_and_grad(total, (0, 1), has_aux=True)(w, l)

    (_, (found, odds, none)), (by_w, by_l) = jax.tree.map(np.asarray, run(w, l))
    assert not np.isnan(found).any()
    assert not np.isnan(none).any()
    far = (w == -inf) & (l != -inf) | (l == 0) & (w != 0)
    np.testing.assert_array_equal(np.isinf(odds), far | (w == -inf))
    np.testing.assert_array_equal(none[[1, 2, 3, 4]], [0, inf, np.log(2), np.log(2)])
    # The term of odds is what is left without the likelihood, of which the derivative is -1.
    e = np.exp(1.0)
    known = [0, 1, 5, 6, 7, 8, 9]
    expected = [-1 / (e - 1), 0, -5e299, -1 / (1 - 1 / e), 0, -np.exp(-100), -1e12 / 3]
    np.testing.assert_allclose(by_w[known] + 1, expected, rtol=1e-12, atol=1e-15)
    expected = [0, 0, 5e299, inf, 0, np.exp(-100), 1e12 / 6]
    np.testing.assert_allclose(by_l[known], expected, rtol=1e-12, atol=1e-60)
    # An impossible answer has a finite reward below alpha 0.
    assert np.isfinite(found[NAMES.index("alpha_po below 0")]).all()


# -------------------------------------------------------------------------------------- minimizers

REWARDS = np.array([1.0, -0.5, 0.2, 0.6])
LENGTHS = np.array([1.0, 2.0, 3.0, 5.0])
FIRST, SECOND = (x.ravel() for x in np.indices((4, 4)))
WIN = 1 / (1 + np.exp(REWARDS[SECOND] - REWARDS[FIRST]))


def closed_forms():
    """The minimizers of the module's table, at beta .5, gamma 0 and alpha .3, in NumPy."""
    log_p = {
        "cpo": lambda c: REWARDS / 0.5 + c,
        "simpo": lambda c: (REWARDS / 0.5 + c) * LENGTHS,
        "alpha_po": lambda c: -np.log(1 - 0.3 * (REWARDS / 0.5 + c)) / 0.3 * LENGTHS,
        "orpo": lambda c: -np.logaddexp(0, -REWARDS - c) * LENGTHS,
    }
    excess = lambda c, of: np.exp(of(c)).sum() - 1
    return np.stack([of(optimize.brentq(excess, -40, 1.3, args=(of,))) for of in log_p.values()])


def test_minimizers_are_those_of_the_table():
    """All pairs, preferred by Bradley-Terry: the mean gradient is 0 there, and nowhere else."""
    lengths = LENGTHS[FIRST], LENGTHS[SECOND]

    def mean_losses(logits):
        log_pi = jax.nn.log_softmax(logits)
        pair = log_pi[FIRST], log_pi[SECOND]
        options = {"lengths": lengths, "beta": 0.5, "gamma": 0.0}
        odds = reference_free.orpo(*pair, lengths=lengths, coefficient=1.0)
        return jnp.stack([
            WIN @ reference_free.cpo(*pair, beta=0.5, coefficient=0.0),
            WIN @ reference_free.simpo(*pair, **options),
            WIN @ reference_free.alpha_po(*pair, alpha=0.3, **options),
            WIN @ (odds - preference.sft(pair[0] / lengths[0])),
        ])  # fmt: skip

    found = jax.jit(jax.vmap(jax.jacrev(mean_losses)))(jnp.asarray(closed_forms()))
    steep = np.abs(found).max(axis=-1)
    np.testing.assert_allclose(np.diag(steep), 0, atol=1e-13)
    assert (steep[~np.eye(4, dtype=bool)] > 1e-2).all()


def test_the_bonus_of_xpo_is_a_pull_from_the_reference():
    """By enumeration of all pairs and of what the reference samples."""
    log_ref = jnp.log(jnp.array([0.4, 0.3, 0.2, 0.1]))

    @jax.jit
    def gradients(logits):
        def mean(logits, bonus):
            log_pi = jax.nn.log_softmax(logits)
            pair = [x[i] for x in (log_pi, log_ref) for i in (FIRST, SECOND)]
            loss = lambda y: preference.xpo(
                *pair, jnp.broadcast_to(log_pi[y], pair[0].shape), beta=0.5, coefficient=0.3
            )
            if not bonus:
                return WIN @ preference.dpo(*pair, beta=0.5)
            return WIN @ sum(jnp.exp(log_ref[y]) * loss(y) for y in range(4))

        return [jax.grad(mean)(logits, bonus) for bonus in (True, False)]

    with_bonus, without = map(np.asarray, gradients(jnp.array([0.3, -0.2, 0.9, 0.0])))
    logits = np.array([0.3, -0.2, 0.9, 0.0])
    pi = np.exp(logits) / np.exp(logits).sum()
    expected = 0.3 * (np.exp(log_ref) - pi) * WIN.sum()
    np.testing.assert_allclose(with_bonus - without, expected, atol=1e-14)


def test_refusals():
    a = jnp.full(3, -1.0)
    one, pair = (jnp.ones(3),) * 2, (a, a)
    simpo = functools.partial(reference_free.simpo, *pair, beta=1.0, gamma=0.0)
    orpo = functools.partial(reference_free.orpo, lengths=one, coefficient=1.0)
    for words, call in (
        (("beta",), lambda: reference_free.cpo(*pair, beta=0.0)),
        (("coefficient",), lambda: reference_free.cpo(*pair, beta=1.0, coefficient=-1.0)),
        (("rejected", "(2,)"), lambda: reference_free.cpo(a, a[:2], beta=1.0)),
        (("lengths",), lambda: simpo(lengths=(one[0], 0 * one[0]))),
        (("lengths_of_rejected",), lambda: simpo(lengths=(one[0], jnp.ones(2)))),
        (("gamma",),
         lambda: reference_free.simpo(*pair, lengths=one, beta=1.0, gamma=-0.1)),
        (("alpha",), lambda: reference_free.alpha_po(
            *pair, lengths=one, beta=1.0, gamma=0.0, alpha=jnp.inf)),
        (("chosen", "at most 0"), lambda: orpo(-a, a)),
        (("rejected", "at most 0"), lambda: orpo(a, -a)),
        (("sampled", "(2,)"), lambda: preference.xpo(
            *pair, *pair, a[:2], beta=1.0, coefficient=1.0)),
    ):  # fmt: skip
        refused(ValueError, words, call)
