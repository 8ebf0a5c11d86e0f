import functools
import itertools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize
from scipy.special import lambertw

from jdiv import generators
from jdiv.alignment import margins, preference
from tests.checks import refused

ROWS = json.loads(
    (pathlib.Path(__file__).parents[1] / "data" / "preference_losses.json").read_text()
)["rows"]
ANSWERS = ("chosen", "rejected", "ref_chosen", "ref_rejected")


# ---------------------------------------------------------------------------------------------- TRL

# TRL's score over ours: its Jensen-Shannon is twice this one. Its alpha is 1 minus the paper's,
# which is the exponent of the table.
SCORES = {
    "reverse_kl": (generators.kl, 1),
    "forward_kl": (generators.reverse_kl, 1),
    "js_divergence": (generators.jensen_shannon, 2),
    "alpha_divergence": (lambda: generators.alpha(0.3), 1),
}


def ours(row, pair, beta):
    """TRL's loss per pair; its IPO and sigmoid_norm divide by the completion length n, 2 here."""
    name, generator = row["loss"], SCORES[row["divergence"]][0]()
    factor = SCORES[row["divergence"]][1]
    n = row["completion_length"]
    lengths = (jnp.full_like(pair[0], n),) * 2
    plain = isinstance(generator, generators.KL)
    beta = beta * factor
    smoothing = {"label_smoothing": row["label_smoothing"]}
    if name == "ipo":
        if plain:
            return preference.ipo(*pair, beta=beta, lengths=lengths)
        of_sum = preference.ipo(*pair, beta=beta / n, generator=generator)
        return (factor / n) ** 2 * of_sum
    if name == "sigmoid_norm":
        if plain:
            return preference.sigmoid_norm(*pair, beta=beta, lengths=lengths)
        return preference.f_dpo(*pair, beta=beta / n, generator=generator)
    losses = {
        "sigmoid": preference.f_dpo,
        "hinge": preference.slic,
        "exo_pair": functools.partial(preference.exo, **smoothing),
        "robust": functools.partial(preference.robust, **smoothing),
        "nca_pair": preference.nca,
        "bco_pair": preference.bco,
        "sppo_hard": preference.sppo_hard,
        "aot": functools.partial(preference.aot, **smoothing),
        "aot_unpaired": functools.partial(preference.aot_unpaired, **smoothing),
        "apo_zero": preference.apo_zero,
        "apo_down": preference.apo_down,
        "discopop": functools.partial(preference.discopop, temperature=row["discopop_tau"]),
    }
    return losses[name](*pair, beta=beta, generator=generator)


@functools.cache
def against_trl():
    """Value and gradients of all rows; rows that differ in numbers only are one batch."""
    key = lambda i: tuple(ROWS[i][name] for name in ("loss", "divergence", "dtype"))
    groups = [list(group) for _, group in itertools.groupby(range(len(ROWS)), key)]
    stacked = [
        {
            name: jnp.asarray([ROWS[i][name] for i in group], ROWS[group[0]]["dtype"])
            for name in (*ANSWERS, "beta")
        }
        for group in groups
    ]

    def compute(stacked):
        found = {}
        for group, batch in zip(groups, stacked, strict=True):

            def value(chosen, rejected, rest, row=ROWS[group[0]]):
                pair = chosen, rejected, rest["ref_chosen"], rest["ref_rejected"]
                return jnp.mean(ours(row, pair, rest["beta"]))

            of = jax.vmap(jax.value_and_grad(value, (0, 1)))
            value_, (by_chosen, by_rejected) = of(batch["chosen"], batch["rejected"], batch)
            for k, i in enumerate(group):
                found[i] = value_[k], by_chosen[k], by_rejected[k]
        return found

    return jax.tree.map(np.asarray, jax.jit(compute)(stacked))


def test_the_rows_are_all_of_trl():
    assert len(ROWS) == 70
    assert len({row["loss"] for row in ROWS}) == 14
    assert len({row["divergence"] for row in ROWS}) == 4


@pytest.mark.parametrize("i", range(len(ROWS)))
def test_trl(i):
    row, (value, by_chosen, by_rejected) = ROWS[i], against_trl()[i]
    assert str(value.dtype) == row["dtype"]
    tolerance = {"float64": 1e-12, "float32": 1e-5}[row["dtype"]]
    np.testing.assert_allclose(value, row["value"], rtol=tolerance)
    for found, name in ((by_chosen, "grad_chosen"), (by_rejected, "grad_rejected")):
        np.testing.assert_allclose(found, row[name], rtol=tolerance, atol=tolerance)


# --------------------------------------------------------------------------------------- identities


@functools.cache
def pair(dtype="float64"):
    rng = np.random.default_rng(0)
    return tuple(jnp.asarray(x, dtype) for x in -3 * rng.uniform(size=(4, 7)))


def test_identities():
    b = 0.4
    kl = {"beta": b, "generator": generators.kl()}
    dpo = preference.dpo(*pair(), beta=b)
    chosen, rejected, ref_chosen, ref_rejected = pair()
    w, l = chosen - ref_chosen, rejected - ref_rejected
    equal = functools.partial(np.testing.assert_allclose, rtol=1e-12)
    equal(dpo, np.logaddexp(0, -b * (w - l)))
    equal(preference.f_dpo(*pair(), **kl), dpo)
    equal(preference.f_dpo(*pair(), beta=b, generator=generators.alpha(1.0)), dpo)
    equal(preference.f_dpo(*pair(), beta=b / 2, generator=generators.tsallis(2.0)),
          preference.f_dpo(*pair(), beta=b, generator=generators.alpha(2.0)))  # fmt: skip
    equal(preference.h_dpo(*pair(), beta=b, alpha=1.0), dpo)
    equal(preference.h_dpo(*pair(), beta=b, alpha=0.7),
          np.logaddexp(0, b * (ref_chosen - ref_rejected - 0.7 * (chosen - rejected))))  # fmt: skip
    equal(preference.robust(*pair(), beta=b, label_smoothing=0.0), dpo)
    equal(preference.dpo(*pair(), beta=b, label_smoothing=0.2),
          0.8 * np.logaddexp(0, -b * (w - l)) + 0.2 * np.logaddexp(0, b * (w - l)))  # fmt: skip
    equal(preference.ipo(*pair(), beta=b), (w - l - 1 / (2 * b)) ** 2)
    equal(preference.slic(*pair(), beta=b), np.maximum(0, 1 - b * (w - l)))
    ones = (jnp.ones(7),) * 2
    equal(preference.sigmoid_norm(*pair(), beta=b, lengths=ones), dpo)
    equal(preference.ipo(*pair(), beta=b, lengths=ones), preference.ipo(*pair(), beta=b))
    equal(preference.rpo(*pair(), beta=b, coefficient=0.3), dpo - 0.3 * chosen)
    equal(preference.sft(chosen), -chosen)
    equal(preference.bco(*pair(), beta=b, shift=0.2),
          np.logaddexp(0, 0.2 - b * w) + np.logaddexp(0, b * l - 0.2))  # fmt: skip
    # One pair to sort: nothing to align.
    alone = [x[:, None] for x in pair()]
    for loss in (preference.aot, preference.aot_unpaired):
        equal(loss(*alone, beta=b)[:, 0], dpo)
    reward = preference.implicit_reward(chosen, ref_chosen, beta=b)
    equal(reward, b * w)
    # A shift of all margins by a constant leaves alone what a difference is a function of.
    shifted = chosen + 1, rejected + 1, ref_chosen, ref_rejected
    equal(preference.dpo(*shifted, beta=b), dpo)
    assert np.abs(preference.nca(*shifted, beta=b) - preference.nca(*pair(), beta=b)).max() > 0.1


def test_a_number_for_each_pair_and_half_precision():
    betas = jnp.linspace(0.1, 0.7, 7)
    each = [preference.dpo(*(x[i] for x in pair()), beta=float(betas[i])) for i in range(7)]
    np.testing.assert_allclose(preference.dpo(*pair(), beta=betas), each, rtol=1e-12)
    half = pair("bfloat16")
    found = preference.f_dpo(*half, beta=0.4, generator=generators.jensen_shannon())
    assert found.dtype == jnp.float32
    wide = [x.astype(jnp.float64) for x in half]
    expected = preference.f_dpo(*wide, beta=0.4, generator=generators.jensen_shannon())
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_the_same_everywhere(same_everywhere):
    rng = np.random.default_rng(1)
    arrays = [jnp.asarray(-3 * rng.uniform(size=(8, 3))) for _ in range(4)]
    loss = functools.partial(preference.f_dpo, beta=0.3, generator=generators.reverse_kl())
    same_everywhere(loss, *arrays)


# ------------------------------------------------------------------------------------- extremes

LOSSES = {
    "f_dpo": preference.f_dpo,
    "ipo": preference.ipo,
    "slic": preference.slic,
    "exo": functools.partial(preference.exo, label_smoothing=0.1),
    "discopop": preference.discopop,
    "savage": functools.partial(preference.f_dpo, margin=margins.savage),
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_extreme_log_ratios(dtype):
    """No NaN for any log-ratio, and gradients are finite where losses are: 0 where pairs are fitted
    beyond what a float can hold, large where they are far off."""
    size = {"float32": (80.0, 200.0, 3e4), "float64": (80.0, 800.0, 3e5)}[dtype]
    extremes = jnp.asarray([s * x for x in size for s in (-1, 1)] + [0.0], dtype)
    t_w, t_l = (x.ravel() for x in jnp.meshgrid(extremes, extremes))
    rows = {name: generators.get(name) for name in ("kl", "reverse_kl", "jensen_shannon")}
    rows |= {"alpha": generators.alpha(0.7), "chi2": generators.pearson_chi2()}
    rows |= {"chi2_kl": generators.chi2_kl()}

    keys = [("f_dpo", of) for of in rows] + [(name, "reverse_kl") for name in LOSSES]

    def compute(t_w, t_l):
        zero = jnp.zeros_like(t_w)

        def total(w, l, name, of):
            loss = LOSSES[name](w, l, zero, zero, beta=0.1, generator=rows[of])
            return jnp.sum(loss), loss

        return [jax.value_and_grad(total, (0, 1), has_aux=True)(t_w, t_l, *key) for key in keys]

    found = jax.jit(compute)(t_w, t_l)
    for key, ((_, loss), gradients) in zip(keys, found, strict=True):
        assert not np.isnan(loss).any(), key
        for gradient, sign in zip(gradients, (-1, 1), strict=True):
            assert np.isfinite(gradient)[np.isfinite(loss)].all(), key
            assert not np.isnan(gradient).any(), key
            if key[0] in ("f_dpo", "slic", "savage"):
                assert (sign * gradient >= -1e-7).all(), key  # the rounding of slopes
        if key == ("f_dpo", "kl"):
            x = 0.1 * (t_w - t_l)
            np.testing.assert_allclose(loss, np.logaddexp(0, -x), rtol=1e-5)
            np.testing.assert_allclose(gradients[0], -0.1 * np.exp(-np.logaddexp(0, x)), rtol=1e-4)
        if key == ("f_dpo", "reverse_kl"):
            ahead = np.asarray((t_w >= -80) & (t_l <= -100))
            assert (loss[ahead] == 0).all()
            assert (gradients[1][ahead] == 0).all()
            assert (gradients[0][np.asarray((t_w == -80) & (t_l >= 0))] < -1e33).all()
            behind = np.asarray((t_w < -750) & (t_l >= -80))
            assert (loss[behind] == np.inf).all()


# ------------------------------------------------------------------------------- HyPO, SFT, chi2-PO


def test_hypo_has_the_gradient_of_the_kl():
    """By enumeration of all draws of three from three answers."""
    log_ref = jnp.log(jnp.array([0.2, 0.5, 0.3]))
    logits = jnp.array([0.3, -0.4, 0.9])
    draws = jnp.array(list(itertools.product(range(3), repeat=3)))
    zero = jnp.zeros(len(draws))

    def sampled(logits):
        log_pi = jax.nn.log_softmax(logits)
        weights = jax.lax.stop_gradient(jnp.exp(jnp.sum(log_pi[draws], axis=-1)))
        loss = preference.hypo(zero, zero, zero, zero, log_pi[draws], log_ref[draws], beta=1.0,
                               coefficient=0.7)  # fmt: skip
        return jnp.sum(weights * loss)

    def exact(logits):
        log_pi = jax.nn.log_softmax(logits)
        return 0.7 * jnp.sum(jnp.exp(log_pi) * (log_pi - log_ref)) + jnp.log(2.0)

    for found, expected in zip(
        jax.jit(jax.value_and_grad(sampled))(logits), jax.value_and_grad(exact)(logits), strict=True
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("name", ["kl", "reverse_kl", "pearson_chi2", "jensen_shannon"])
def test_f_sft_has_its_minimum_at_the_data(name):
    """Data and reference are lists of answers here, each as often as its probability says."""
    data, ref = np.array([6, 3, 1]), np.array([2, 3, 5])
    of_data, of_ref = np.repeat(np.arange(3), data), np.repeat(np.arange(3), ref)
    log_ref = jnp.log(ref / 10)

    def loss(log_pi):
        return preference.f_sft(
            log_pi[of_data], log_ref[of_data], log_pi[of_ref], log_ref[of_ref],
            generator=generators.get(name),
        )  # fmt: skip

    at = jnp.log(data / 10)
    by_logits = jax.jit(jax.value_and_grad(lambda x: loss(jax.nn.log_softmax(x))))
    value, gradient = by_logits(at)
    np.testing.assert_allclose(gradient, 0, atol=1e-12)
    assert by_logits(at + jnp.array([0.1, -0.2, 0.1]))[0] > value
    u = data / ref
    f = {
        "kl": u * np.log(u), "reverse_kl": -np.log(u), "pearson_chi2": (u - 1) ** 2,
        "jensen_shannon": (u * np.log(2 * u / (1 + u)) + np.log(2 / (1 + u))) / 2,
    }[name]  # fmt: skip
    assert value == pytest.approx(-np.sum(ref / 10 * f))  # minus D(data‖ref)
    if name == "kl":
        away = jax.nn.log_softmax(jnp.array([0.5, 0.0, -1.0]))
        gap = jax.grad(lambda x: loss(jax.nn.log_softmax(x)))(away)
        of_sft = jax.grad(lambda x: jnp.mean(preference.sft(jax.nn.log_softmax(x)[of_data])))(away)
        np.testing.assert_allclose(gap, of_sft, atol=1e-12)


def test_the_link_of_chi2_po():
    s = np.array([-1e4, -745.0, -40.0, -1.0, 0.0, 0.5, 1.0, 3.0, 40.0, 710.0, 1e6, 1e300])
    for gamma in (1.0, 0.3, 5.0):
        log_z = np.asarray(generators.log_inverse_link(jnp.asarray(s), gamma=gamma))
        assert np.isfinite(log_z).all()
        np.testing.assert_allclose(np.exp(log_z) + gamma * log_z, s, rtol=1e-12, atol=1e-14)
    middle = s[3:9]
    log_z = generators.log_inverse_link(jnp.asarray(middle))
    np.testing.assert_allclose(np.exp(log_z), lambertw(np.exp(middle)).real, rtol=1e-14)
    slope = jax.jit(jax.vmap(jax.grad(generators.log_inverse_link)))(jnp.asarray(s))
    z = np.exp(np.asarray(generators.log_inverse_link(jnp.asarray(s))))
    np.testing.assert_allclose(slope, 1 / (1 + z), rtol=1e-12)


def test_the_row_of_chi2_po():
    """f, f' and what follows from them, at u from e^-6 to e^6."""
    row, gamma = generators.chi2_kl(0.6), 0.6
    t = np.linspace(-6, 6, 41)
    u = np.exp(t)
    f = (u - 1) ** 2 / 2 + gamma * (u * t - u + 1)
    zero = jnp.zeros_like(t)
    near = functools.partial(np.testing.assert_allclose, rtol=1e-12, atol=1e-12)
    near(row.value(jnp.asarray(t)), f)
    near(row.slope(jnp.asarray(t)), u - 1 + gamma * t)
    near(row.perspective_q(jnp.asarray(t), zero, jnp.asarray(t)), f - u * (u - 1 + gamma * t))
    near(row.customary(jnp.asarray(t), zero, jnp.asarray(t)), f + u - 1)
    near(row.inverse_slope(jnp.asarray(u - 1 + gamma * t)), t)
    step = 1e-9
    moved = row.shift(jnp.asarray(t), jnp.full_like(t, step)) - t
    np.testing.assert_allclose(moved, step / (u + gamma), rtol=1e-4, atol=1e-15)
    assert float(row.value(jnp.array(-jnp.inf))) == 1.1


chi2_po_policy = jax.jit(preference.chi2_po_policy)
# The five answers of the sheet; the temperature, lambda and the optimum.
REF, REWARD = np.array([0.05, 0.15, 0.2, 0.25, 0.35]), np.array([1, 0.2, -0.5, 0.3, -1.0])


@pytest.mark.parametrize(
    ("beta", "normalizer", "policy"),
    [
        (0.5, -0.693615, (0.12396, 0.21446, 0.14364, 0.38734, 0.13059)),
        (0.1, 0.061423, (0.36931, 0.18028, 0.00073, 0.44968, 0.00001)),
    ],
)
def test_the_policy_of_chi2_po(beta, normalizer, policy):
    best = chi2_po_policy(jnp.asarray(REWARD), jnp.log(REF), beta=jnp.asarray(beta))
    found = np.exp(best.log_policy)
    np.testing.assert_allclose(found, policy, atol=5.1e-6)
    assert float(best.normalizer) - beta == pytest.approx(normalizer, abs=5.1e-7)
    assert float(best.residual) < 1e-14
    assert bool(best.converged)
    link = found / REF + np.log(found / REF)
    assert np.ptp(REWARD - beta * link) < 1e-14
    # A generic solver of one unknown, on z + log z.
    root = optimize.brentq(
        lambda x: np.sum(REF * lambertw(np.exp((REWARD - x) / beta)).real) - 1, -3, 3, xtol=1e-15
    )
    assert float(best.normalizer) - beta == pytest.approx(root, abs=1e-12)


def test_chi2_po_clips():
    t = jnp.array([-100.0, -1.0, 0.0, 1.0, 3.0, 100.0, 1000.0])
    zero = jnp.zeros_like(t)

    def loss(t):
        values = preference.chi2_po(t, zero, zero, zero, beta=0.5, r_max=1.0)
        return jnp.sum(values), values

    (_, values), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(t)
    with np.errstate(over="ignore"):
        x = np.clip(0.5 * (np.exp(t) - 1 + t), -2, 2)
    np.testing.assert_allclose(values, np.logaddexp(0, -x), rtol=1e-14)
    inside = np.abs(x) < 2
    expected = np.where(inside, -0.5 * (np.exp(np.minimum(t, 9)) + 1) / (1 + np.exp(x)), 0)
    np.testing.assert_allclose(gradient, expected, rtol=1e-13)
    open_ended = preference.chi2_po(t[:4], *[zero[:4]] * 3, beta=0.5)
    np.testing.assert_allclose(
        open_ended, np.logaddexp(0, -0.5 * (np.exp(t[:4]) - 1 + t[:4])), rtol=1e-14
    )


def test_smoothed_dpo_fits_the_flipped_labels():
    """All pairs of three answers: its minimum has the odds of labels that are wrong in one of ten,
    and the mean of its losses is that of DPO under these labels."""
    log_ref, reward, flip = np.log([0.2, 0.5, 0.3]), np.array([1.0, -0.5, 0.2]), 0.1
    first, second = np.nonzero(~np.eye(3, dtype=bool))
    win = 1 / (1 + np.exp(reward[second] - reward[first]))
    flipped = (1 - flip) * win + flip * (1 - win)

    def mean_loss(log_pi, label_smoothing, weight):
        pair = (x[i] for x in (log_pi, jnp.asarray(log_ref)) for i in (first, second))
        return jnp.sum(weight * preference.dpo(*pair, beta=0.5, label_smoothing=label_smoothing))

    both = jax.jit(lambda x: (mean_loss(x, flip, win), mean_loss(x, 0.0, flipped)))
    for at in np.random.default_rng(2).normal(size=(5, 3)):
        smoothed, relabeled = both(at)
        assert smoothed == pytest.approx(float(relabeled), rel=1e-13)
    # For two answers the fit is exact: logit of the flipped probability.
    x = np.log(flipped[0] / (1 - flipped[0]))
    zero = jnp.zeros(())

    @jax.jit
    @jax.grad
    def slope(t):
        losses = (preference.dpo(s * t, zero, zero, zero, beta=1.0, label_smoothing=flip)
                  for s in (1, -1))  # fmt: skip
        return sum(w * loss for w, loss in zip((win[0], 1 - win[0]), losses, strict=True))

    assert abs(slope(jnp.asarray(x))) < 1e-15


def test_h_dpo_is_fitted_by_its_optimum():
    """All pairs with Bradley-Terry labels, at the tilted power of the reference: gradient 0."""
    ref, reward = jnp.array([0.1, 0.2, 0.3, 0.4]), jnp.array([1, 0, 0.5, -0.5])
    table = {
        0.5: (0.42901, 0.03143, 0.52254, 0.01701),
        1.0: (0.38858, 0.10518, 0.42885, 0.07739),
        2.0: (0.33145, 0.17244, 0.34820, 0.14791),
    }
    win = jax.nn.sigmoid(reward[:, None] - reward[None, :])
    log_ref = jnp.log(ref)

    @jax.jit
    def gradient(logits, alpha):
        def loss(logits):
            log_pi = jax.nn.log_softmax(logits)
            w, l, ref_w, ref_l = jnp.broadcast_arrays(
                log_pi[:, None], log_pi[None, :], log_ref[:, None], log_ref[None, :]
            )
            return jnp.sum(win * preference.h_dpo(w, l, ref_w, ref_l, beta=0.5, alpha=alpha))

        return jax.grad(loss)(logits)

    for alpha, policy in table.items():
        optimum = log_ref / alpha + reward / (alpha * 0.5)
        np.testing.assert_allclose(jax.nn.softmax(optimum), policy, atol=5.1e-6)
        np.testing.assert_allclose(gradient(optimum, jnp.asarray(alpha)), 0, atol=1e-14)


# ----------------------------------------------------------------------------------------- refusals


def test_refusals():
    a = jnp.zeros(3)
    four = (a,) * 4
    f_dpo, tv = preference.f_dpo, generators.total_variation()
    one = (jnp.ones(3),) * 2
    kl, fkl = generators.kl(), generators.reverse_kl()
    for error, words, call in (
        (TypeError, ("total_variation", "inverse"), lambda: f_dpo(*four, beta=1.0, generator=tv)),
        (TypeError, ("generator", "row"), lambda: f_dpo(*four, beta=1.0, generator="kl")),
        (TypeError, ("generator", "row"), lambda: preference.nca(*four, beta=1.0, generator="kl")),
        (ValueError, ("beta", "positive"), lambda: preference.dpo(*four, beta=0.0)),
        (ValueError, ("beta", "(3,)"), lambda: preference.dpo(*four, beta=jnp.ones(2))),
        (ValueError, ("rejected", "(2,)"), lambda: preference.dpo(a, a[:2], a, a, beta=1.0)),
        (TypeError, ("chosen", "int"), lambda: preference.dpo(jnp.arange(3), a, a, a, beta=1.0)),
        (ValueError, ("alpha",), lambda: preference.h_dpo(*four, beta=1.0, alpha=-1.0)),
        (ValueError, ("label_smoothing",), lambda: margins.robust(0.5)),
        (ValueError, ("label_smoothing",), lambda: margins.exo(-0.1)),
        (ValueError, ("temperature",), lambda: margins.discopop(0.0)),
        (ValueError, ("gamma",), lambda: generators.chi2_kl(0.0)),
        (ValueError, ("gamma",), lambda: preference.chi2_po(*four, beta=1.0, gamma=-1.0)),
        (ValueError, ("r_max",), lambda: preference.chi2_po(*four, beta=1.0, r_max=0.0)),
        (ValueError, ("lengths", "positive"),
         lambda: preference.ipo(*four, beta=1.0, lengths=(one[0], 0 * one[0]))),
        (ValueError, ("lengths_of_rejected",),
         lambda: preference.sigmoid_norm(*four, beta=1.0, lengths=(one[0], jnp.ones(2)))),
        (ValueError, ("sampled", "'n'"),
         lambda: preference.hypo(*four, a, a, beta=1.0, coefficient=1.0)),
        (ValueError, ("chosen", "axis"), lambda: preference.aot(*(a[0],) * 4, beta=1.0)),
        (TypeError, ("normalizer", "length", "reverse_kl"),
         lambda: preference.ipo(*four, beta=1.0, generator=fkl, lengths=one)),
        (TypeError, ("normalizer", "length"),
         lambda: preference.sigmoid_norm(*four, beta=1.0, generator=fkl, lengths=one)),
    ):  # fmt: skip
        refused(error, words, call)
    for name in ("nca", "bco", "sppo_hard", "apo_zero", "apo_down", "aot", "aot_unpaired"):
        loss = getattr(preference, name)
        refused(
            TypeError,
            ("generator", name, "normalizer", "difference"),
            functools.partial(loss, *four, beta=1.0, generator=fkl),
        )
        assert loss(*four, beta=1.0, generator=kl).shape == (3,)


def test_gradients_where_the_derivative_of_a_slope_overflows():
    """Single precision: a finite loss has a finite gradient, 0 where the loss is."""
    single = np.float32
    at = {
        "neyman_chi2": np.linspace(-44.5, -43, 16),
        "pearson_chi2": np.linspace(85, 89, 16),
        "alpha": np.linspace(43, 45, 16),
    }
    rows = generators.neyman_chi2(), generators.pearson_chi2(), generators.alpha(3.0)

    @jax.jit
    def losses(at):
        def of(t, row, better):
            zero = jnp.zeros_like(t)
            pair = (t, zero, zero, zero) if better else (zero, t, zero, zero)
            return preference.f_dpo(*pair, beta=0.1, generator=row)

        both = jax.vmap(jax.value_and_grad(of), (0, None, None))
        return [[both(t, row, better) for better in (True, False)]
                for t, row in zip(at, rows, strict=True)]  # fmt: skip

    seen = 0
    for pair in losses([x.astype(single) for x in at.values()]):
        for loss, slope in pair:
            finite = np.isfinite(loss)
            assert np.isfinite(slope[finite]).all()
            np.testing.assert_array_equal(slope[loss == 0], 0)
            seen += finite.sum()
    assert seen > 60
