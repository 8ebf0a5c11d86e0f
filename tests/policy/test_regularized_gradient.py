import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

from jdiv import generators
from jdiv.policy import regularized_gradient as rpg
from jdiv.policy.clipped import dual_clip, ppo_clip, reinforce
from tests.checks import PARAMETERS, refused

ACTIONS, BETA, TOTAL = 7, 0.3, 1.7
RNG = np.random.default_rng(0)
LOGITS, REWARDS = RNG.normal(size=ACTIONS), RNG.normal(size=ACTIONS)
OLD = np.log(RNG.dirichlet(np.ones(ACTIONS)))
ALL = np.full(ACTIONS, True)
FORMS = {
    "differentiable": rpg.rpg,
    "reinforce": rpg.rpg_reinforce,
    "open clip": functools.partial(
        rpg.rpg_reinforce_clip, low=1.0, high=jnp.inf, ceiling=jnp.inf
    ),
}  # fmt: skip
EIGHT = {
    "FKL": ("reverse_kl", None, lambda w, r: w * r + BETA),
    "UFKL": ("reverse_kl", TOTAL, lambda w, r: TOTAL * (w * r - BETA * (w - 1))),
    "RKL": ("kl", None, lambda w, r: w * (r - BETA * (np.log(w) + 1))),
    "URKL": ("kl", TOTAL, lambda w, r: TOTAL * w * (r - BETA * np.log(w))),
}
"""Generator, normalizer and published weight of grad log pi."""


def row(name):
    return generators.get(name, **PARAMETERS[name])


def measure(total):
    """Logarithms of the old weights, which sum to `total`."""
    return OLD if total is None else OLD + np.log(total)


def softmax(logits):
    return np.exp(logits) / np.exp(logits).sum()


def divergence(name, p, q):
    """By formula, q of any mass; None where only the table has one."""
    u = p / q
    if name == "kl":
        return np.sum(p * np.log(u) - p + q)
    if name == "reverse_kl":
        return np.sum(q * np.log(1 / u) - q + p)
    return np.sum(q * np.asarray(row(name).value(jnp.log(u))))


@functools.cache
def gradients():
    """Expected gradients by generator, normalizer and form."""

    def of(name, total, form):
        def loss(logits):
            log_p = jax.nn.log_softmax(logits)
            found = FORMS[form](
                log_p, measure(total), REWARDS, ALL,
                coefficient=BETA, generator=row(name), total=total,
            )  # fmt: skip
            return jnp.exp(OLD) @ found.loss

        return jax.grad(loss)(LOGITS)

    found = jax.jit(lambda: [of(*key) for key in cases()])()
    return dict(zip(cases(), map(np.asarray, found), strict=True))


def cases():
    """All of KL; of the others each form with one normalizer, and the first with both."""
    every = [
        (name, total, form) for name in PARAMETERS for total in (None, TOTAL) for form in FORMS
    ]
    skipped = ((None, "reinforce"), (TOTAL, "open clip"))
    return [case for case in every if case[0] in ("kl", "reverse_kl") or case[1:] not in skipped]


@pytest.mark.parametrize("name", EIGHT)
def test_eight_losses(name):
    generator, total, weight = EIGHT[name]
    p = softmax(LOGITS)
    w = p / np.exp(measure(total))
    expected = (np.exp(OLD) * weight(w, REWARDS)) @ (np.eye(ACTIONS) - p)
    for form in FORMS:
        found = gradients()[generator, total, form]
        np.testing.assert_allclose(-found, expected, atol=1e-15)


@pytest.mark.parametrize("name", PARAMETERS)
def test_every_generator_against_differences_of_the_objective(name):
    found = gradients()
    for total in (None, TOTAL):
        q = np.exp(measure(total))

        def objective(logits, q=q):
            p = softmax(logits)
            return p @ REWARDS - BETA * divergence(name, p, q)

        step = 1e-5 * np.eye(ACTIONS)
        expected = [(objective(LOGITS + h) - objective(LOGITS - h)) / 2e-5 for h in step]
        for case in cases():
            if case[:2] == (name, total):
                np.testing.assert_allclose(-found[case], expected, atol=1e-9)


def test_forms_agree_sample_by_sample_and_values_by_a_constant():
    log_p = np.log(softmax(LOGITS))
    w = np.exp(log_p - OLD)
    values = {
        "FKL": -w * REWARDS - BETA * log_p,
        "UFKL": TOTAL * (-w / TOTAL * REWARDS + BETA * (w / TOTAL - np.log(w / TOTAL) - 1)),
        "RKL": w * (-REWARDS + BETA * np.log(w)),
        "URKL": w * (-REWARDS + BETA * (np.log(w / TOTAL) - 1)),
    }
    for name, (generator, total, weight) in EIGHT.items():
        arguments = log_p, measure(total), REWARDS, ALL
        options = {"coefficient": BETA, "generator": row(generator), "total": total}
        for form in FORMS.values():
            loss = functools.partial(form, **options)
            slope = jax.grad(lambda *x, loss=loss: jnp.sum(loss(*x).loss))(*arguments)
            np.testing.assert_allclose(-slope, weight(np.exp(log_p - arguments[1]), REWARDS))
        difference = rpg.rpg(*arguments, **options).loss - values[name]
        if name == "FKL":
            difference = difference - BETA * OLD  # log w has it and log pi has not
        assert np.ptp(difference) < 1e-13 * np.abs(w).max()


def test_evidence_is_the_divergence():
    p = softmax(LOGITS)
    for name in ("kl", "reverse_kl", "alpha"):
        for total in (None, TOTAL):
            found = rpg.rpg(
                np.log(p), measure(total), REWARDS, ALL,
                coefficient=BETA, generator=row(name), total=total,
            )  # fmt: skip
            expected = divergence(name, p, np.exp(measure(total)))
            np.testing.assert_allclose(np.exp(OLD) @ found.aux.divergence, expected)
            np.testing.assert_allclose(found.aux.ratio, p / np.exp(measure(total)))


def test_optima_are_stationary():
    """RKL: `old e^(R/beta)`; FKL: `beta old/(nu - R)`, nu by bisection."""
    old = np.exp(OLD)
    tilted = OLD + REWARDS / BETA
    nu = optimize.brentq(
        lambda nu: np.sum(BETA * old / (nu - REWARDS)) - 1, REWARDS.max() + 1e-9, 99.0, xtol=1e-14
    )
    for generator, optimum in (("kl", tilted), ("reverse_kl", np.log(BETA * old / (nu - REWARDS)))):

        def loss(logits, generator=generator):
            log_p = jax.nn.log_softmax(logits)
            found = rpg.rpg(log_p, OLD, REWARDS, ALL, coefficient=BETA, generator=row(generator))
            return jnp.exp(OLD) @ found.loss  # fmt: skip

        np.testing.assert_allclose(jax.grad(loss)(optimum), 0, atol=1e-12)
        assert np.abs(jax.grad(loss)(LOGITS)).max() > 0.01


def test_parents():
    """Without a coefficient: importance-weighted REINFORCE; without a step REINFORCE itself."""
    log_p = np.log(softmax(LOGITS))
    options = {"coefficient": 0.0, "generator": row("kl")}
    plain = reinforce(OLD, REWARDS, ALL).loss
    np.testing.assert_allclose(rpg.rpg_reinforce(OLD, OLD, REWARDS, ALL, **options).loss, plain)
    weighted = rpg.rpg(log_p, OLD, REWARDS, ALL, **options).loss
    np.testing.assert_allclose(weighted, -np.exp(log_p - OLD) * REWARDS)
    # The divergence has no gradient where the policies are the same.
    gradient = jax.grad(
        lambda x: jnp.exp(OLD) @ rpg.rpg(
            jax.nn.log_softmax(x), OLD, 0 * REWARDS, ALL, coefficient=1.0, generator=row("kl")
        ).loss
    )(OLD)  # fmt: skip
    np.testing.assert_allclose(gradient, 0, atol=1e-16)


# ------------------------------------------------------------------------------------------- clips

RATIOS = np.array([0.1, 0.75, 0.85, 1.0, 1.2, 1.35, 2.5, 3.5, 40.0])
GRID = tuple(x.ravel() for x in np.meshgrid(np.log(RATIOS), [-1.3, -0.2, 0.0, 0.4, 2.0]))
LOG_OLD = RNG.uniform(-9, -6, GRID[0].shape)  # so that pi < 1
EVERYWHERE = np.full(GRID[0].shape, True)


@functools.cache
def clipped():
    """Values and derivatives by log pi of the clipped losses."""

    def of(loss):
        return lambda x: (lambda found: (jnp.sum(found.loss), found))(loss(x))

    def everything(x):
        losses = {}
        for name, (generator, total, _) in EIGHT.items():
            losses[name] = lambda x, generator=generator, total=total: rpg.rpg_reinforce_clip(
                x, LOG_OLD, GRID[1], EVERYWHERE,
                coefficient=BETA, generator=row(generator), total=total,
            )  # fmt: skip
        return {name: jax.grad(of(loss), has_aux=True)(x) for name, loss in losses.items()}

    found = jax.jit(everything)(LOG_OLD + GRID[0])
    return jax.tree.map(np.asarray, found)


def algorithm_2(w, a, log_p, weight, low=0.2, high=0.28, ceiling=3.0):
    """Of one sample the value and whether it has a gradient, as the algorithm is written."""
    surprise, penalty = -log_p, weight - w * a
    psi = (a + penalty / w) * surprise
    if psi >= 0:
        return (psi * w, True) if w < 1 + high else (psi * (1 + high), False)
    if w <= 1 - low:
        return psi * (1 - low), False
    if w < ceiling:
        return psi * w, True
    return a * surprise * ceiling + penalty * surprise, False


@pytest.mark.parametrize("name", EIGHT)
def test_reinforce_clip_is_algorithm_2(name):
    _, total, weight = EIGHT[name]
    gradient, found = clipped()[name]
    seen = set()
    for i, (log_w, a) in enumerate(zip(*GRID, strict=True)):
        scale = total or 1
        w, log_p = np.exp(log_w), LOG_OLD[i] + log_w
        value, moves = algorithm_2(w, a, log_p, weight(w, a) / scale)
        np.testing.assert_allclose(found.loss[i], scale * value, rtol=1e-10, atol=1e-13)
        np.testing.assert_allclose(gradient[i], -weight(w, a) if moves else 0, rtol=1e-10)
        assert found.aux.clipped[i] == (not moves)
        seen.add((moves, w > 1, value > 0))
    assert len(seen) >= 6


def test_regularized_advantages_are_the_weights():
    log_p = LOG_OLD + GRID[0]
    w, a = np.exp(GRID[0]), GRID[1]
    for generator, total, weight in EIGHT.values():
        found = rpg.regularized_advantages(
            log_p, LOG_OLD, a, EVERYWHERE,
            coefficient=BETA, generator=row(generator), normalized=total is None,
        )  # fmt: skip
        np.testing.assert_allclose(w * found, weight(w, a) / (total or 1), rtol=1e-9, atol=1e-12)
    # As constants of a clipped loss they leave its gradient that of the objective.
    log_policy = np.log(softmax(LOGITS))
    found = rpg.regularized_advantages(
        log_policy, OLD, REWARDS, ALL, coefficient=BETA, generator=row("kl")
    )

    def loss(logits):
        log_p = jax.nn.log_softmax(logits)
        return jnp.exp(OLD) @ ppo_clip(log_p, OLD, found, ALL, low=1.0, high=jnp.inf).loss

    expected = gradients()["kl", None, "differentiable"]
    np.testing.assert_allclose(jax.grad(loss)(LOGITS), expected, atol=1e-15)


# ---------------------------------------------------------------------------------- what goes in


def test_extremes_and_masks():
    far = np.array([[80.0, -80.0, 0.0, np.nan], [np.inf, np.nan, np.nan, -np.inf]], np.float32)
    mask = np.array([[True, True, True, False], [False] * 4])
    old = np.where(mask, -100, np.nan).astype(np.float32)
    losses = (*FORMS.values(), rpg.rpg_reinforce_clip)

    def everything(x):
        rewards = jnp.array([-1.0, 1.0], jnp.float32)
        values = [
            loss(x, old, rewards, mask, coefficient=0.1, generator=row(name), total=total).loss
            for loss in losses
            for name in ("kl", "reverse_kl")
            for total in (None, 1.7)
        ]
        values.append(dual_clip(x, old, rewards, mask).loss)
        return jnp.stack(values)

    new = far - np.float32(100)
    values, slopes = jax.jit(
        lambda x: (everything(x), jax.jacrev(lambda x: everything(x).sum(axis=(1, 2)))(x))
    )(new)
    assert values.dtype == jnp.float32
    for found in (values, slopes):
        assert np.isfinite(found).all()
        assert (np.asarray(found)[:, ~mask] == 0).all()
    half = jnp.full((2, 4), -1.0, jnp.bfloat16)
    found = rpg.rpg(
        half, half, jnp.ones(2, jnp.bfloat16), mask, coefficient=0.1, generator=row("kl")
    )
    assert found.loss.dtype == jnp.float32


def test_refusals():
    ones, mask = jnp.ones((2, 3)), jnp.full((2, 3), True)
    options = {"coefficient": 0.1, "generator": row("kl")}
    refused(ValueError, ("rewards",), lambda: rpg.rpg(ones, ones, ones[:, :2], mask, **options))
    refused(
        ValueError, ("old_log_probs",),
        lambda: rpg.rpg_reinforce(ones, ones[:, :2], ones, mask, **options),
    )  # fmt: skip
    refused(TypeError, ("mask",), lambda: rpg.rpg(ones, ones, ones, ones, **options))
