import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdiv import checks
from tests.checks import refused


def test_masks_are_booleans_or_integers_0_and_1():
    assert checks.as_mask("mask", np.array([1, 0])).tolist() == [True, False]
    assert checks.as_mask("mask", [True, False]).tolist() == [True, False]
    assert jax.jit(lambda x: checks.as_mask("mask", x))(np.array([1, 0])).tolist() == [True, False]
    refused(ValueError, ["mask", "0 and 1", "2"], lambda: checks.as_mask("mask", np.array([1, 2])))
    refused(ValueError, ["mask", "-1"], lambda: checks.as_mask("mask", np.array([-1])))
    for other in (np.ones(2), "yes", None):
        refused(TypeError, ["mask", "boolean"], lambda other=other: checks.as_mask("mask", other))


def test_rewards_are_numbers_booleans_or_integers_0_and_1():
    for given, dtype in (
        (np.array([1, 0]), np.float64),
        (np.array([1.0, 0.0], np.float32), np.float32),
        ([True, False], np.float64),
        (jnp.array([1, 0], jnp.bfloat16), np.float32),
    ):
        found = checks.as_rewards("rewards", given)
        assert found.dtype == dtype
        assert found.tolist() == [1, 0]
    assert checks.as_rewards("rewards", np.array([1]), np.float32).dtype == np.float32
    traced = jax.jit(lambda x: checks.as_rewards("rewards", x))(np.array([1, 0, 3]))
    np.testing.assert_array_equal(traced, [1, 0, np.nan])
    refused(ValueError, ["rewards", "3"], lambda: checks.as_rewards("rewards", np.array([1, 3])))
    refused(TypeError, ["rewards", "got a"], lambda: checks.as_rewards("rewards", "a"))
    refused(TypeError, ["rewards", "complex"], lambda: checks.as_rewards("rewards", np.array([1j])))


def test_what_is_no_array_is_refused_by_its_name():
    for other in ("three", None, {}, [1.0, "three"], ["three" * 100]):
        refused(TypeError, ["values"], lambda other=other: checks.as_float("values", other))
        refused(ValueError, ["step_size"], lambda other=other: checks.positive("step_size", other))


def test_traced_parameters_out_of_range_are_nan():
    @jax.jit
    def every(x, whole):
        return (
            checks.positive("x", x), checks.not_negative("x", x), checks.finite("x", x),
            checks.in_range("x", x, 0, 1, "from 0 to 1", closed="both"),
            checks.in_range("x", 0.5, 0, x, "below x"), checks.positive("whole", whole),
        )  # fmt: skip

    nan = np.nan
    for x, expected in ((0.75, [0.75, 0.75, 0.75, 0.75, 0.5]), (0.0, [nan, 0, 0, 0, nan]),
                        (-1.0, [nan, nan, -1, nan, nan]), (np.inf, [nan, nan, nan, nan, 0.5]),
                        (nan, [nan] * 5)):  # fmt: skip
        np.testing.assert_array_equal(every(x, 2), [*expected, 2])
    assert np.isnan(every(0.5, -2)[-1])
    refused(ValueError, ["x", "positive", "-1.0"], lambda: checks.positive("x", -np.ones((9, 9))))
    refused(ValueError, ["x", "finite"], lambda: checks.finite("x", nan))
    refused(ValueError, ["x", "negative"], lambda: checks.not_negative("x", -0.5))
    assert checks.positive("x", jnp.bfloat16(0.5)) == 0.5


def test_parameters_are_for_rows_and_never_for_categories():
    rows = np.zeros((3, 3), np.float32)
    assert checks.per_row("x", 2.0, rows).shape == ()
    assert checks.positive("x", np.ones(3), rows=rows).shape == (3, 1)
    assert checks.per_row("x", np.ones(3), rows).dtype == np.float32
    for shape, given in (((3, 4), 4), ((4, 3), 3), ((3,), 3), ((2, 3), (2, 3))):
        refused(ValueError, ["x must be a number", str(given)], lambda s=shape, g=given: (
            checks.per_row("x", np.ones(g), np.zeros(s))))  # fmt: skip
    refused(TypeError, ["x", "number", "k3"], lambda: checks.per_row("x", "k3", rows))


def test_distributions_are_normalized():
    policy = np.array([[0.25, 0.75], [1.0, 0.0]])
    with np.errstate(divide="ignore"):
        log_policy = np.log(policy)
    both = lambda p, log_p: (checks.probabilities("p", p), checks.log_probabilities("log_p", log_p))
    for f in (both, jax.jit(both)):
        np.testing.assert_array_equal(f(policy, log_policy), (policy, log_policy))
    wrong = np.array([[0.25, 0.8], [1.5, -0.5]])
    found = jax.jit(both)(wrong, log_policy + np.array([[0.0], [0.1]]))
    np.testing.assert_array_equal(np.isnan(found), [[[True] * 2] * 2, [[False] * 2, [True] * 2]])
    refused(ValueError, ["p", "1.05"], lambda: checks.probabilities("p", wrong))
    refused(ValueError, ["p", "-0.5"], lambda: checks.probabilities("p", wrong[1]))
    refused(ValueError, ["p", "nan"], lambda: checks.probabilities("p", np.array([np.nan, 1.0])))
    refused(ValueError, ["log_p", "normalized"], lambda: checks.log_probabilities("log_p", policy))
    refused(ValueError, ["p", "scalar"], lambda: checks.probabilities("p", 1.0))


def test_where_may_hold_integers():
    p, q = np.zeros((2, 3)), np.ones((2, 3))
    for where in (np.array([1, 1, 0]), np.array([True, True, False])):
        found = checks.logits_pair(p, q, -1, where)
        assert np.isneginf(found[0]).sum() == 2
    refused(ValueError, ["where", "(2, 3)", "(2,)"], lambda: (
        checks.logits_pair(p, q, -1, np.array([1, 0]))))  # fmt: skip
    with pytest.raises(ValueError, match="where must be 0 and 1"):
        checks.logits_pair(p, q, -1, np.array([1, 2, 0]))
