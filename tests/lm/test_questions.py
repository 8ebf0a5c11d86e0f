import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdiv.lm import questions, tabular
from jdiv.policy import clipped, tokens
from jdiv.policy.advantages import grpo_advantages
from tests.checks import refused

QUESTIONS, LONGEST = 3, 3
SHAPE = tabular.table_shape(LONGEST)
SEQUENCES = tabular.enumerate_sequences(SHAPE)
COUNT = len(SEQUENCES.lengths)


def drawn(seed=0):
    """Logits of policy, older policy and reference, and what is right."""
    rng = np.random.default_rng(seed)
    tables = rng.normal(size=(3, QUESTIONS, *SHAPE))
    right = (rng.random((QUESTIONS, COUNT)) < 0.4).astype(float)
    return *tables, right


def softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def laws(logits):
    """Probabilities of all sequences, token by token in NumPy."""
    p = softmax(logits)
    found = np.ones((len(logits), COUNT))
    for row, n in enumerate(SEQUENCES.lengths):
        for place in range(n):
            found[:, row] *= p[:, SEQUENCES.prefixes[row, place], SEQUENCES.tokens[row, place]]
    return found


def test_measures_are_sums_over_all_answers():
    policy, _, ref, right = drawn()
    right[0] = SEQUENCES.lengths  # any reward
    p, q = laws(policy), laws(ref)
    with jax.enable_x64():
        found = questions.measures(*map(jnp.asarray, (policy, ref, right)))
    expected = (
        (p * right).sum(1), -(p * np.log(p)).sum(1), (p * np.log(p / q)).sum(1),
        p @ SEQUENCES.lengths,
    )  # fmt: skip
    for x, y in zip(found, expected, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-12)


def test_pass_at_k_is_one_less_that_all_fail():
    accuracy = np.array([0.0, 1e-12, 0.01, 0.5, 1.0])
    with jax.enable_x64():
        found = questions.pass_at_k(accuracy, 5)
    np.testing.assert_allclose(found[2:], 1 - (1 - accuracy[2:]) ** 5, rtol=1e-13)
    np.testing.assert_allclose(found[:2], 5 * accuracy[:2], rtol=1e-10)
    refused(ValueError, ["accuracy", "1.5"], lambda: questions.pass_at_k(jnp.array([1.5]), 2))


def test_answers_are_drawn_with_their_probabilities_and_never_without():
    policy, *_ = drawn()
    policy[0, 0] = [0.0, -np.inf, 0.0]  # no answer of the first question begins with 1
    size = 20_000
    answers = jax.jit(questions.draw, static_argnums=1)(policy, size, jax.random.key(1))
    found = np.stack([np.bincount(x, minlength=COUNT) for x in np.asarray(answers)]) / size
    p = laws(policy)
    assert (found[p == 0] == 0).all()
    assert found.shape[1] == COUNT
    assert (np.abs(found - p) < 5 * np.sqrt(p * (1 - p) / size) + 1e-12).all()


def test_a_batch_is_what_the_three_policies_say_of_its_answers():
    policy, old, ref, right = drawn()
    answers = np.array([[0, 3, 14], [7, 7, 1], [2, 9, 10]])
    with jax.enable_x64():
        found = questions.batch(policy, old, ref, right, answers)
    whole = jax.tree.map(np.asarray, found)
    rows = np.arange(QUESTIONS)[:, None]
    for own, every, logits in (
        (whole.log_probs, whole.logits, policy), (whole.old_log_probs, whole.old_logits, old),
        (whole.ref_log_probs, whole.ref_logits, ref),
    ):  # fmt: skip
        np.testing.assert_allclose(own.sum(-1), np.log(laws(logits)[rows, answers]), rtol=1e-12)
        assert (own[~whole.mask] == 0).all()
        np.testing.assert_allclose(np.exp(every).sum(-1), 1, rtol=1e-12)
        at = np.take_along_axis(every, whole.tokens[..., None], axis=-1)[..., 0]
        assert (at[whole.mask] == own[whole.mask]).all()
    assert (whole.rewards == right[rows, answers]).all()
    assert (whole.mask.sum(-1) == SEQUENCES.lengths[answers]).all()
    np.testing.assert_allclose(np.exp(whole.tables), softmax(policy), rtol=1e-12)


def test_the_gradient_of_all_answers_by_their_probability_is_that_of_the_reward():
    policy, old, ref, right = drawn()
    answers = np.tile(np.arange(COUNT), (QUESTIONS, 1))

    @jax.jit
    def gradients(policy):
        def loss(logits):
            found = questions.batch(logits, old, ref, right, answers)
            each = jnp.exp(found.old_log_probs.sum(-1))
            ratio = jnp.exp(found.log_probs.sum(-1) - found.old_log_probs.sum(-1))
            return jnp.sum(each * ratio * found.rewards)

        exact = lambda x: questions.measures(x, ref, right).accuracy.sum()
        return jax.grad(loss)(policy), jax.grad(exact)(policy)

    with jax.enable_x64():
        found, expected = gradients(jnp.asarray(policy))
    np.testing.assert_allclose(found, expected, atol=1e-14)


def counted(batch, state):
    """GRPO's loss; the state counts the steps and looks at the old log-probabilities."""
    each = clipped.ppo_clip(
        batch.log_probs, batch.old_log_probs, grpo_advantages(batch.rewards), batch.mask
    ).loss
    flat = (-1, LONGEST)
    loss = tokens.sequence_mean(each.reshape(flat), batch.mask.reshape(flat))
    off = jnp.max(jnp.abs(batch.log_probs - batch.old_log_probs))
    return loss, (state[0] + 1, state[1].at[state[0] % 3].max(jax.lax.stop_gradient(off)))


@pytest.fixture(scope="module")
def training():
    """40 steps of three inner ones, for two keys at once; the first question has an exact zero."""
    policy, _, ref, right = drawn()
    policy[0, 0, 1] = -np.inf

    @jax.jit
    def run(keys):
        state = jnp.zeros((), jnp.int32), jnp.zeros(3)
        one = lambda key: questions.train(
            counted, policy, ref, right, key, steps=40, size=8, step_size=3.0, inner=3, state=state
        )
        return jax.vmap(one)(keys)

    with jax.enable_x64():
        return jax.tree.map(np.asarray, run(jax.random.split(jax.random.key(0), 2)))


def test_training_finds_the_right_answers_and_measures_before_each_step(training):
    policy, _, _, right = drawn()
    policy[0, 0, 1] = -np.inf
    accuracy = training.measures.accuracy
    assert accuracy.shape == (2, 40, QUESTIONS)
    np.testing.assert_allclose(accuracy[:, 0], np.tile((laws(policy) * right).sum(1), (2, 1)))
    assert (accuracy[:, -1] > 0.9).all()
    assert not (accuracy[0, 1:] == accuracy[1, 1:]).any()
    last = np.stack([(laws(x) * right).sum(1) for x in training.logits])
    assert (np.abs(last - accuracy[:, -1]) < 0.05).all()
    assert (training.logits[:, 0, 0, 1] == -np.inf).all()
    assert all(np.isfinite(x).all() for x in training.measures)


def test_the_state_goes_through_all_steps_and_the_first_is_on_policy_to_the_last_digit(training):
    steps, off = training.state
    assert (steps == 120).all()
    assert (off[:, 0] == 0).all()
    assert (off[:, 1:] > 1e-3).all()


def test_a_step_is_the_gradient_by_finite_differences():
    policy, _, ref, right = drawn()
    key, h = jax.random.key(3), 1e-6
    plain = lambda batch, state: (-jnp.sum(batch.log_probs * batch.rewards[..., None]), state)

    @jax.jit
    def both(logits):
        step = questions.train(plain, logits, ref, right, key, steps=1, size=4, step_size=0.5)
        answers = questions.draw(logits, 4, jax.random.split(jax.random.split(key, 1)[0])[0])
        return step.logits, answers

    with jax.enable_x64():
        moved, answers = both(jnp.asarray(policy))
        answers = np.asarray(answers)
    rows = np.arange(QUESTIONS)[:, None]
    loss = lambda x: -(np.log(laws(x)[rows, answers]) * right[rows, answers]).sum()
    expected = np.zeros(policy.shape)
    for place in np.ndindex(policy.shape):
        change = np.zeros(policy.shape)
        change[place] = h
        expected[place] = (loss(policy + change) - loss(policy - change)) / (2 * h)
    np.testing.assert_allclose(moved, policy - 0.5 * expected, atol=1e-8)


def test_wrong_use_is_refused_by_name():
    policy, _, ref, right = drawn()
    key, given = jax.random.key(0), {"steps": 2, "size": 2, "step_size": 1.0}
    for wrong, words in (
        ({"steps": 0}, ["steps", "0"]), ({"size": 0}, ["size"]), ({"inner": 1.5}, ["inner"]),
        ({"step_size": np.nan}, ["step_size"]),
    ):  # fmt: skip
        call = lambda wrong=wrong: questions.train(
            counted, policy, ref, right, key, **given | wrong
        )
        refused((ValueError, TypeError), words, call)
    refused(ValueError, ["right", "sequences"], lambda: questions.measures(policy, ref, right[:2]))
    refused(ValueError, ["logits"], lambda: questions.measures(policy, ref[:2], right))
