"""Targets by hand with NumPy and SciPy; limits; a two-state process that has to be learned."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from jdiv.mdp import deep
from tests.checks import refused

DISCOUNT = 0.9
RNG = np.random.default_rng(0)
Q, Q_NEXT, LOGITS, PREVIOUS = RNG.normal(size=(4, 6, 3)) * 2
ACTION, REWARD = np.array([0, 1, 2, 0, 1, 2], np.int32), RNG.normal(size=6)
# Two of the moves end their episode. Others may have been cut: targets go on there.
TERMINATED = np.array([False, True, False, False, True, False])
BATCH = deep.Transition(np.zeros((6, 1)), ACTION, REWARD, TERMINATED, np.zeros((6, 1)))

# Weight, temperature, floor: entropy alone, KL alone, both; floors that act, one that does not.
SOFT = np.array([[0.0, 0.5, -1.0], [1.0, 2.0, -0.5], [0.9, 0.03, -1.0], [0.5, 1.0, -10.0]])
# At temperature 0: DQN, advantage learning with and without the floor.
HARD = np.array([[0.0, 0.0, -1.0], [0.9, 0.0, -1.0], [0.5, 0.0, -100.0]])


def of_action(x):
    return x[np.arange(6), ACTION]


def plus_discounted(value):
    return REWARD + DISCOUNT * np.where(TERMINATED, 0, value)


def hypers(table, **others):
    weight, temperature, floor = table.T
    hyper = deep.Hyperparameters(weight, temperature, floor=floor, **others)
    return jax.tree.map(lambda x: np.broadcast_to(x, len(table)), hyper)


@functools.cache
def compiled(target):
    """Over a leading axis of hyper-parameters, with `[batch, actions]` arrays."""
    one = lambda hyper, arrays: target(hyper, BATCH, *arrays, discount=DISCOUNT)
    return jax.jit(jax.vmap(one, in_axes=(0, None)))


def munchausen(table):
    return compiled(deep.munchausen_target)(hypers(table), (Q, Q_NEXT))


def tsallis(table, index):
    # The table has the temperatures of the entmax convention.
    table = table / np.array([1.0, index, 1.0])
    return compiled(deep.tsallis_target)(hypers(table, index=index), (Q, Q_NEXT))


def entropy(policy):
    return special.entr(policy).sum(-1)


def test_munchausen_target_is_its_formula():
    wanted = []
    for weight, temperature, floor in SOFT:
        log_pi, log_next = (special.log_softmax(q / temperature, axis=-1) for q in (Q, Q_NEXT))
        bonus = np.clip(temperature * of_action(log_pi), floor, 1.0)
        value = (np.exp(log_next) * (Q_NEXT - temperature * log_next)).sum(-1)
        wanted.append(plus_discounted(value) + weight * bonus)
    np.testing.assert_allclose(munchausen(SOFT), wanted, rtol=1e-12)


@pytest.mark.parametrize("target", [munchausen, lambda table: tsallis(table, 2.0)])
def test_without_temperature_it_is_dqn_or_advantage_learning(target):
    bonus = of_action(Q) - Q.max(-1)
    wanted = [
        plus_discounted(Q_NEXT.max(-1)) + weight * np.maximum(bonus, floor)
        for weight, _, floor in HARD
    ]
    np.testing.assert_allclose(target(HARD), wanted, rtol=1e-12)
    # And no jump on the way there.
    cold = HARD + np.array([0.0, 1e-6, 0.0])
    np.testing.assert_allclose(target(cold), wanted, atol=1e-5)


def sparsemax(scores):
    """By trying every size of the support."""
    policies = np.zeros_like(scores)
    for policy, score in zip(policies, scores, strict=True):
        ranked = np.sort(score)[::-1]
        for size in range(1, len(score) + 1):
            threshold = (ranked[:size].sum() - 1) / size
            if ranked[size - 1] > threshold:
                policy[:] = np.maximum(score - threshold, 0)
    return policies


def test_tsallis_target_is_its_formula_with_sparsemax():
    wanted = []
    for weight, temperature, floor in SOFT:
        here, after = (sparsemax(q / temperature) for q in (Q, Q_NEXT))
        bonus = np.maximum(of_action(Q) - (here * Q).sum(-1), floor)
        value = (after * Q_NEXT).sum(-1) + temperature / 2 * (1 - (after**2).sum(-1))
        wanted.append(plus_discounted(value) + weight * bonus)
    np.testing.assert_allclose(tsallis(SOFT, 2.0), wanted, rtol=1e-9)


def test_tsallis_target_with_index_one_is_the_soft_one():
    """The same value; the bonus is q - <pi, q>, not q - v: they differ by T H(pi)."""
    soft = SOFT * [1.0, 1.0, 100.0]
    weight, temperature, _ = soft.T[..., None]
    policy = special.softmax(Q[None] / temperature[..., None], axis=-1)
    more = weight * temperature * entropy(policy)
    np.testing.assert_allclose(tsallis(soft, 1.0), munchausen(soft) + more, rtol=1e-8)


def test_mirror_target_is_its_formula():
    policy, previous = special.softmax(LOGITS, axis=-1), special.softmax(PREVIOUS, axis=-1)
    divergence = special.rel_entr(policy, previous).sum(-1)
    table = np.concatenate([SOFT, HARD])
    for evaluation in (0.0, 1.0):
        paid = evaluation * table[:, 1, None]
        kl, bonus = paid * table[:, 0, None], paid * (1 - table[:, 0, None])
        value = (policy * Q_NEXT).sum(-1) - kl * divergence + bonus * entropy(policy)
        hyper = hypers(table, evaluation=evaluation)
        out = compiled(deep.mirror_target)(hyper, (LOGITS, PREVIOUS, Q_NEXT))
        np.testing.assert_allclose(out, plus_discounted(value), rtol=1e-12)


def test_dual_averaging_has_the_policies_of_mirror_descent():
    """`pi_(k+1) ~ pi_k^weight exp(q_k / T)` from the uniform policy, by averages of the q."""
    weight, temperature = np.array([[1.0, 2.0], [0.8, 0.5], [0.0, 0.7]]).T
    one = lambda weight, t, number: deep.averaging_schedule(deep.Hyperparameters(weight, t), number)
    averaging = jax.jit(jax.vmap(one, in_axes=(0, 0, None)))
    h, log_pi = np.zeros((3, 6, 3)), np.zeros((3, 6, 3))
    for number in range(5):
        q = RNG.normal(size=(6, 3))
        keep, add, scale, before = (
            np.asarray(x)[:, None, None] for x in averaging(weight, temperature, np.int32(number))
        )
        if number:
            np.testing.assert_allclose(special.log_softmax(h / before, -1), log_pi, atol=1e-12)
        h = keep * h + add * q
        log_pi = weight[:, None, None] * log_pi + q / temperature[:, None, None]
        log_pi = special.log_softmax(log_pi, -1)
        np.testing.assert_allclose(special.log_softmax(h / scale, -1), log_pi, atol=1e-12)


# ---------------------------------------------------------------------------------------- training


def moves_to(place, action):
    """Two places: from 0 action 1 leads to 1 for nothing, where action 0 pays 1 for staying."""
    following = jnp.where(place == 0, action, 1 - action)
    return following, jnp.where(action == 1, 0.0, jnp.where(place == 0, 0.1, 1.0))


def two_places(length=10):
    """Cut after ten moves: at best a return of 9; 1 for who stays at 0; 2.6 at random."""

    def seen(place):
        return jax.nn.one_hot(place, 2)

    def reset(key):
        return seen(jnp.int32(0)), (jnp.int32(0), jnp.int32(0))

    def step(key, state, action):
        place, time = state
        place, reward = moves_to(place, action)
        cut = time + 1 == length
        following = jnp.where(cut, 0, place), jnp.where(cut, 0, time + 1)
        moved = deep.TimeStep(seen(following[0]), reward, jnp.bool_(False), cut, seen(place))
        return moved, following

    return deep.Environment(reset, step, features=2, actions=2)


STEPS = 400


def training(method):
    settings = deep.Settings(
        method=deep.METHODS[method], hidden=(16,), environments=4,
        capacity=256, batch=16, target_every=10, learning_rate=1e-2, discount=0.9, exploration=0.1,
    )  # fmt: skip

    def train(weight, temperature):
        key = jax.random.key(1)
        hyper = deep.Hyperparameters(weight, temperature)
        step = functools.partial(deep.step, settings, two_places(), hyper)
        state = deep.init(settings, two_places(), key)
        return jax.lax.scan(step, state, jax.random.split(key, STEPS))

    return train


WEIGHTS, TEMPERATURES = np.array([0.0, 0.5, 0.9, 0.0]), np.array([0.0, 0.0, 0.1, 0.1])


@pytest.mark.parametrize("method", deep.METHODS)
def test_training_finds_the_way_round_the_small_reward(method):
    """With all coefficients, 0 included, where dual averaging's temperature is 0 as well."""
    state, metrics = jax.jit(jax.vmap(training(method)))(WEIGHTS, TEMPERATURES)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((state.params, metrics)))
    assert np.asarray(metrics["score"])[:, -50:].mean(1).min() > 5
    np.testing.assert_array_equal(state.episodes, STEPS // 10)

    # The buffer holds the last moves, with where they led to before the reset.
    replay = jax.tree.map(np.asarray, state.replay)
    following, reward = moves_to(replay.observation.argmax(-1), replay.action)
    np.testing.assert_array_equal(replay.final.argmax(-1), following)
    np.testing.assert_allclose(replay.reward, reward)
    np.testing.assert_array_equal(replay.final.sum(-1), 1)

    if method == "munchausen":
        lane = jax.jit(training(method))(WEIGHTS[2], TEMPERATURES[2])
        for one, all_lanes in zip(
            jax.tree.leaves(lane), jax.tree.leaves((state, metrics)), strict=True
        ):
            np.testing.assert_allclose(one, all_lanes[2], rtol=1e-6, atol=1e-9)


def test_gymnax_environments_tell_the_end_from_the_cut():
    pytest.importorskip("gymnax")
    environment = deep.from_gymnax("CartPole-v1")
    assert (environment.features, environment.actions) == (4, 2)

    def step(carry, key):
        moved, state = environment.step(key, carry[1], jnp.int32(1))
        return (moved.observation, state), moved

    start = environment.reset(jax.random.key(0))
    start = jax.tree.map(lambda x: jax.lax.convert_element_type(x, jnp.asarray(x).dtype), start)
    _, moved = jax.jit(lambda: jax.lax.scan(step, start, jax.random.split(jax.random.key(1), 40)))()
    over = np.abs(np.asarray(moved.final)[:, 2]) > 12 * 2 * np.pi / 360
    np.testing.assert_array_equal(moved.terminated, over)
    assert over.sum() >= 3
    assert not np.asarray(moved.truncated).any()
    assert np.abs(np.asarray(moved.observation)[over]).max() < 0.05
    np.testing.assert_array_equal(moved.observation[~over], moved.final[~over])


def test_wrong_settings_are_refused():
    start = lambda **wrong: deep.init(deep.Settings(**wrong), two_places(), jax.random.key(0))
    refused(TypeError, ["method", "METHODS", "'dqn'"], lambda: start(method="dqn"))
    refused(ValueError, ["capacity", "100", "8"], lambda: start(capacity=100))
