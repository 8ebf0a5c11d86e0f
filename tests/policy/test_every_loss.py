"""What every loss of tokens has to withstand, all of them in one program."""

import functools
import importlib
import inspect
import pkgutil
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jdiv.policy
from jdiv import generators
from jdiv.policy import regularized_gradient
from jdiv.policy.awr import awr
from jdiv.policy.clipped import (
    cispo,
    dro,
    dual_clip,
    gmpo,
    gspo,
    importance,
    luspo,
    off_policy_masked,
    ppo_clip,
    reinforce,
    sapo,
    vespo,
)
from jdiv.policy.dppo import binary_divergence, dppo
from jdiv.policy.mpo import m_step_loss
from jdiv.policy.ppo import ppo_kl
from jdiv.policy.recipes.anchored_policy_optimization import anchored_policy_optimization
from jdiv.policy.recipes.dmpo import dmpo_target
from jdiv.policy.recipes.entropy_mechanism import clip_cov, kl_cov
from jdiv.policy.recipes.gtpo import gtpo
from jdiv.policy.recipes.haepo import haepo
from jdiv.policy.recipes.lp_reg import lp_reg
from jdiv.policy.recipes.tpo import group_forward_kl
from jdiv.policy.tokens import TokenLoss, sequence_mean, token_mean
from tests.checks import refused

ROWS, LENGTH = 8, 5


def batch():
    """Answers with log-ratios of 80 both ways, NaN where masked, an empty one, no advantage."""
    rng = np.random.default_rng(0)
    log_probs = np.log(rng.uniform(0.05, 1, (ROWS, LENGTH)))
    old = log_probs + rng.normal(size=log_probs.shape) / 4
    mask = rng.random(log_probs.shape) < 0.8
    mask[:, 0] = True
    advantages = rng.normal(size=ROWS)
    old[0, 0], old[1, 0], log_probs[1, 0] = log_probs[0, 0] - 80, log_probs[1, 0], -80.0
    old[2, 0], old[3, 0], log_probs[3, 0] = log_probs[2, 0] - 80, log_probs[3, 0], -80.0
    advantages[:4] = 1.0, 1.0, -1.0, -1.0
    mask[4], advantages[5] = False, 0.0
    log_probs[~mask], old[~mask] = np.nan, np.nan
    return [jnp.asarray(x, jnp.float32) for x in (log_probs, old, advantages)] + [jnp.asarray(mask)]


def rows(f, **options):
    """RPG's losses with two of the rows."""
    return {
        f"{f.__name__} {name}": functools.partial(
            f, coefficient=0.1, generator=generators.get(name), **options
        )
        for name in ("kl", "reverse_kl")
    }


LOSSES = {
    "ppo_clip": ppo_clip,
    "gspo": gspo,
    "luspo": luspo,
    "gmpo": gmpo,
    "sapo": sapo,
    "sapo by sequence": functools.partial(sapo, by_sequence=True),
    "dro": dro,
    "importance": functools.partial(importance, ceiling=50.0),
    "off_policy_masked": off_policy_masked,
    "dppo": lambda new, old, a, mask: dppo(
        new,
        old,
        a,
        mask,
        binary_divergence(new, old, generator=generators.total_variation()),
        threshold=0.1,
    ),
    "vespo": vespo,
    "cispo by sequence": functools.partial(cispo, high=2.0, by_sequence=True),
    "cispo": lambda new, old, a, mask: cispo(new, old, a, mask, high=2.0),
    "reinforce": lambda new, old, a, mask: reinforce(new, a, mask),
    "ppo_kl": lambda new, old, a, mask: ppo_kl(new, old, a, mask, coefficient=0.1),
    "awr": lambda new, old, a, mask: awr(new, a, mask, temperature=0.5),
    **rows(regularized_gradient.rpg),
    **rows(regularized_gradient.rpg_reinforce, total=1.7),
    "dual_clip": dual_clip,
    **rows(regularized_gradient.rpg_reinforce_clip),
    "kl_cov": functools.partial(kl_cov, share=0.2),
    "clip_cov": lambda new, old, a, mask: clip_cov(
        new, old, a, mask, jax.random.key(0), share=0.2, lowest=0.0
    ),
    "lp_reg": lambda new, old, a, mask: lp_reg(new, old, old, a, mask, share=0.2),
    "gtpo": lambda new, old, a, mask: gtpo(
        new, old, -old, a, jnp.ones_like(new), mask, initial_entropy=1.0
    ),
    "anchored_policy_optimization": lambda new, old, a, mask: anchored_policy_optimization(
        new, old, 0.5 * old, 0.5 * old, a, mask
    ),
}


@jax.jit
def losses_and_gradients(log_probs, old, advantages, mask):
    def both(loss):
        whole = lambda x: jnp.sum(loss(x, old, advantages, mask).loss)
        return loss(log_probs, old, advantages, mask).loss, jax.grad(whole)(log_probs)

    return {name: both(loss) for name, loss in LOSSES.items()}


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_finite_and_silent_where_masked(dtype):
    *arrays, mask = batch()
    arrays = [x.astype(dtype) for x in arrays]
    for name, (loss, gradient) in losses_and_gradients(*arrays, mask).items():
        assert loss.dtype == jnp.float32, name
        assert gradient.dtype == dtype, name
        gradient = gradient.astype(jnp.float32)
        assert np.isfinite(loss).all(), name
        assert np.isfinite(gradient).all(), name
        assert not np.asarray(loss)[~mask].any(), name
        assert not np.asarray(gradient)[~mask].any(), name


def test_a_batch_of_batches_is_each_of_them():
    *arrays, mask = batch()
    other = [x[::-1] for x in (*arrays, mask)]
    stacked = [jnp.stack(pair) for pair in zip((*arrays, mask), other, strict=True)]
    together = jax.jit(jax.vmap(losses_and_gradients))(*stacked)
    for i, single in enumerate(((*arrays, mask), other)):
        for name, expected in losses_and_gradients(*single).items():
            for ours, theirs in zip(together[name], expected, strict=True):
                scale = 1 + np.abs(theirs).max()
                np.testing.assert_allclose(ours[i] / scale, theirs / scale, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("name", ["kl_cov", "lp_reg"])
def test_statistics_of_the_batch_are_those_of_all_devices(name):
    *arrays, mask = batch()
    whole = LOSSES[name](*arrays, mask).loss
    if name == "kl_cov":
        loss = functools.partial(kl_cov, share=0.2, axis_name="devices")
    else:

        def loss(new, old, a, mask):
            return lp_reg(new, old, old, a, mask, share=0.2, axis_name="devices")

    divided = [x.reshape(4, ROWS // 4, *x.shape[1:]) for x in (*arrays, mask)]
    parts = jax.pmap(lambda *x: loss(*x).loss, axis_name="devices")(*divided)
    scale = 1 + np.abs(whole).max()
    np.testing.assert_allclose(parts.reshape(whole.shape) / scale, whole / scale, atol=1e-6)


def test_extremes_and_masks_in_double_precision_with_diagnostics():
    losses = {
        "ppo_kl": lambda x, old, a, m: ppo_kl(x, old, a, m, coefficient=0.5),
        "awr": lambda x, old, a, m: awr(x, a, m, temperature=0.01),
    }
    log_probs = np.array([[-0.1, -80.1, np.nan, -1.0], [np.nan] * 4, [-90.0, -1e-9, -5.0, -3.0]])
    old = np.array([[-80.1, -0.1, -1.0, np.nan], [-1.0] * 4, [-1.0, -81.0, -5.0, -3.0]])
    mask = np.array([[True, True, False, False], [False] * 4, [True] * 4])
    advantages = np.array([300.0, np.nan, -1.0])

    @jax.jit
    def both(x, a):
        def of(loss):
            value = lambda x: jnp.sum(loss(x, jnp.asarray(old, x.dtype), a, mask).loss)
            return loss(x, jnp.asarray(old, x.dtype), a, mask), jax.grad(value)(x)

        return {name: of(loss) for name, loss in losses.items()}

    for dtype in (np.float64, jnp.bfloat16):
        found = both(jnp.asarray(log_probs, dtype), jnp.asarray(advantages, dtype))
        for name, ((values, aux), gradient) in found.items():
            assert values.dtype == (np.float64 if dtype == np.float64 else np.float32), name
            for x in (values, gradient.astype(values.dtype), *aux):
                assert np.isfinite(x).all(), name
                assert (np.asarray(x)[~mask] == 0).all(), name
            assert np.abs(gradient).max() > 0, name


def public_functions():
    """Every public function of the package by its full name."""
    for found in pkgutil.walk_packages(jdiv.policy.__path__, "jdiv.policy."):
        module = importlib.import_module(found.name)
        for name, function in inspect.getmembers(module, inspect.isfunction):
            if not name.startswith("_") and function.__module__ == found.name:
                yield f"{found.name}.{name}", function


def test_token_losses_are_per_token_and_all_here():
    """A loss that is to be summed, or is per state or group, has a type that no average takes."""
    declared = {
        name.rsplit(".", 1)[1]
        for name, function in public_functions()
        if typing.get_origin(inspect.signature(function, eval_str=True).return_annotation)
        is TokenLoss
    }
    assert declared - {"clipped_surrogate", "scored"} == {name.split()[0] for name in LOSSES}
    *arrays, mask = batch()
    for name, (loss, _) in losses_and_gradients(*arrays, mask).items():
        assert loss.shape == mask.shape, name
        assert sequence_mean(loss, mask).shape == ()


def test_losses_that_are_no_averages_of_tokens():
    log_probs, rewards = jnp.log(jnp.array([0.2, 0.3, 0.5])), jnp.array([1.0, 0.0, 2.0])
    every = jnp.full(3, True)
    trajectories = haepo(log_probs, log_probs, rewards)
    assert not hasattr(trajectories, "loss")
    assert float(trajectories.terms.sum()) == pytest.approx(-1.2)  # the sum is the objective
    assert float(token_mean(trajectories.terms, every)) == pytest.approx(-0.4)  # the mean is not
    # A group's and a state's are one number each: an average over tokens refuses them.
    groups = group_forward_kl(log_probs, dmpo_target(rewards, temperature=1.0))
    states = m_step_loss(log_probs, rewards, log_probs, coefficient=1.0)
    assert groups.shape == states.loss.shape == ()
    for found in (groups, states.loss):
        refused(ValueError, ["x", "mask", "(3,)"], lambda x=found: token_mean(x, every))
