import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from jdiv import generators
from jdiv.alignment import q_sharp
from tests.checks import refused

# A graph in no particular order, with a shared child, a missing action and random returns.
CHILDREN = np.array(
    [[-1, -1, -1], [4, 0, 2], [-1, -1, -1], [1, 6, 5], [5, 2, -1], [-1, -1, -1], [0, 4, 2]]
)
ROOT, DEPTH = 3, 3
SUPPORT = np.array([-0.5, 0.2, 1.0])
RNG = np.random.default_rng(0)
REFERENCE = RNG.dirichlet(np.ones(3), 7)
REFERENCE[4] = (0.3, 0.7, 0.0)
RETURNS = RNG.dirichlet(np.ones(3), 7)
with np.errstate(divide="ignore"):
    LOG_REF, LOG_RETURNS = np.log(REFERENCE), np.log(RETURNS)


def paths(node):
    """Every way down: probability under the reference, first action, end."""
    if (CHILDREN[node] < 0).all():
        yield 1.0, None, node
        return
    for action, child in enumerate(CHILDREN[node]):
        if child >= 0:
            for probability, _, end in paths(child):
                yield REFERENCE[node, action] * probability, action, end


def test_laws_and_values_by_enumeration_of_paths():
    eta = 0.4
    law = q_sharp.return_laws(CHILDREN, LOG_REF, LOG_RETURNS, depth=DEPTH)
    np.testing.assert_allclose(np.exp(law).sum(axis=1), 1, rtol=1e-14)
    q = q_sharp.q_values(CHILDREN, law, SUPPORT, eta)
    policy = np.exp(q_sharp.optimal_policy(q, LOG_REF, eta))
    for node in range(7):
        expected, tilted = np.zeros(3), np.zeros(3)
        for probability, action, end in paths(node):
            expected += probability * RETURNS[end]
            if action is not None:
                tilted[action] += probability * (RETURNS[end] @ np.exp(SUPPORT / eta))
        np.testing.assert_allclose(np.exp(law[node]), expected, rtol=1e-13)
        if tilted.any():
            np.testing.assert_allclose(policy[node], tilted / tilted.sum(), rtol=1e-12)
    assert (np.asarray(q)[CHILDREN < 0] == -np.inf).all()


def test_fitted_laws_are_shares_and_tend_to_those_of_the_recursion():
    """Rollouts by NumPy from every node, as often as it says; padding and nodes not seen."""
    rng = np.random.default_rng(1)
    visited, outcomes = [], []
    for _ in range(20_000):
        node, way = rng.integers(7), []
        while (CHILDREN[node] >= 0).any():
            way.append(node)
            share = REFERENCE[node] * (CHILDREN[node] >= 0)
            node = CHILDREN[node, rng.choice(3, p=share / share.sum())]
        way.append(node)
        visited += way
        outcomes += [rng.choice(3, p=RETURNS[node])] * len(way)
    law = q_sharp.return_laws(CHILDREN, LOG_REF, LOG_RETURNS, depth=DEPTH)
    data = np.array([*visited, -1, -1]), np.array([*outcomes, 0, 2])
    fitted = np.exp(q_sharp.fit_return_laws(*data, np.zeros(3), nodes=7))
    counts = np.zeros((7, 3))
    np.add.at(counts, (visited, outcomes), 1)
    np.testing.assert_allclose(fitted, counts / counts.sum(axis=1, keepdims=True), rtol=1e-12)
    np.testing.assert_allclose(fitted, np.exp(law), atol=0.03)
    prior = np.array([0.5, 0.0, 1.5])
    more = np.exp(q_sharp.fit_return_laws(*data, prior, nodes=8))
    expected = (counts + prior) / (counts + prior).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(more[:7], expected, rtol=1e-12)
    np.testing.assert_allclose(more[7], prior / 2)
    assert np.isnan(q_sharp.fit_return_laws(*data, np.zeros(3), nodes=8)[7]).all()


def test_expected_returns_by_enumeration_and_as_the_limit_of_large_beta():
    law = q_sharp.return_laws(CHILDREN, LOG_REF, LOG_RETURNS, depth=DEPTH)
    mean = np.asarray(q_sharp.expected_returns(CHILDREN, law, SUPPORT))
    for node in range(7):
        for action, child in enumerate(CHILDREN[node]):
            expected = sum(p * RETURNS[end] @ SUPPORT for p, _, end in paths(child))
            assert mean[node, action] == pytest.approx(expected if child >= 0 else -np.inf)
    at_large_beta = q_sharp.q_values(CHILDREN, law, SUPPORT, 1e6)
    np.testing.assert_allclose(mean, at_large_beta, atol=1e-6)


def test_ends_out_of_reach_are_refused_or_nan():
    """Too small a depth and a cycle: by law and by value."""
    cycle = CHILDREN.copy()
    cycle[CHILDREN[ROOT].max(), 0] = ROOT
    both = (
        functools.partial(q_sharp.return_laws, log_returns=LOG_RETURNS),
        functools.partial(
            q_sharp.regularized_values, returns=np.ones(7), beta=1.0, generator=generators.kl()
        ),
    )

    @functools.partial(jax.jit, static_argnames="depth")
    def traced(children, depth):
        return [jax.tree.leaves(f(children, LOG_REF, depth=depth))[0] for f in both]

    for f, good in zip(both, traced(CHILDREN, DEPTH), strict=True):
        assert not np.isnan(good).any()
        refused(
            ValueError, ["depth", str(DEPTH), "got 1"], lambda f=f: f(CHILDREN, LOG_REF, depth=1)
        )
        refused(ValueError, ["children", "cycles"], lambda f=f: f(cycle, LOG_REF, depth=9))
    for found in (*traced(CHILDREN, DEPTH - 1), *traced(cycle, 9), *traced(CHILDREN + 7, DEPTH)):
        assert np.isnan(found[ROOT]).all()


def test_the_recursion_agrees_with_the_law_for_kl_and_with_a_grid_for_another_row():
    eta, returns = 0.4, np.array([0.3, 0, 1.0, 0, 0, -0.5, 0])
    end = jax.nn.one_hot(np.searchsorted([-0.5, 0.3, 1.0], returns), 3)
    with np.errstate(divide="ignore"):
        law = q_sharp.return_laws(CHILDREN, LOG_REF, np.log(end), depth=DEPTH)
    by_law = q_sharp.q_values(CHILDREN, law, np.array([-0.5, 0.3, 1.0]), eta)
    by_recursion = jax.jit(
        lambda: q_sharp.regularized_values(
            CHILDREN, LOG_REF, returns, eta, generator=generators.kl(), depth=DEPTH
        )
    )()
    np.testing.assert_allclose(by_recursion.q, by_law, rtol=1e-12)

    children = np.array([[1, 2], [-1, -1], [3, 4], [-1, -1], [-1, -1]])
    ref, returns = np.array([0.3, 0.7]), np.array([0, 0.4, 0, 1.0, -1.0])
    values = jax.jit(
        lambda: q_sharp.regularized_values(
            children, jnp.log(jnp.broadcast_to(ref, (5, 2))), returns, 2.0,
            generator=generators.pearson_chi2(), depth=2,
        )
    )()  # fmt: skip
    p = np.linspace(0, 1, 100001)
    penalty = 2.0 * ((p - 0.3) ** 2 / 0.3 + (p - 0.3) ** 2 / 0.7)
    inner = np.max(p - (1 - p) - penalty)
    outer = np.max(0.4 * p + inner * (1 - p) - penalty)
    np.testing.assert_allclose(values.value[jnp.array([0, 2])], [outer, inner], atol=1e-9)


@pytest.mark.parametrize("length", [1, 3])
def test_star_graphs_of_every_depth_have_one_number(length):
    degree = 3
    arms = 1 + np.arange(degree * length).reshape(degree, length)
    children = np.full((1 + degree * length, degree), -1)
    children[0] = arms[:, 0]
    children[arms[:, :-1]] = arms[:, 1:, None]
    right = np.zeros(len(children))
    right[arms[0, -1]] = 1
    with np.errstate(divide="ignore"):
        log_returns = np.log(np.stack([1 - right, right], axis=1))
    uniform = np.zeros(children.shape)

    @jax.jit
    def first(eta):
        law = q_sharp.return_laws(children, uniform, log_returns, depth=length)
        q = q_sharp.q_values(children, law, np.array([0.0, 1.0]), eta)
        return jnp.exp(q_sharp.optimal_policy(q, uniform, eta)[0, 0])

    for eta in (1.0, 0.1):
        expected = special.expit(1 / eta - np.log(degree - 1))
        assert first(eta) == pytest.approx(expected, rel=1e-12)


def test_wrong_input_is_refused():
    laws, values = q_sharp.return_laws, q_sharp.q_values
    law = laws(CHILDREN, LOG_REF, LOG_RETURNS, depth=DEPTH)
    far, floats = np.where(CHILDREN == 6, 7, CHILDREN), CHILDREN.astype(float)
    none = np.full((7, 3), -np.inf)
    refused(ValueError, ("children", "7"), lambda: laws(far, LOG_REF, LOG_RETURNS, depth=3))
    refused(TypeError, ("children",), lambda: laws(floats, LOG_REF, LOG_RETURNS, depth=3))
    refused(
        ValueError, ("children", "ref_logits"),
        lambda: laws(CHILDREN, LOG_REF[:2], LOG_RETURNS, depth=3),
    )  # fmt: skip
    refused(ValueError, ("ref_logits",), lambda: laws(CHILDREN, none, LOG_RETURNS, depth=3))
    refused(
        ValueError, ("log_returns", "7"), lambda: laws(CHILDREN, LOG_REF, LOG_RETURNS[0], depth=3)
    )
    refused(ValueError, ("beta",), lambda: values(CHILDREN, law, SUPPORT, 0.0))
    refused(ValueError, ("support",), lambda: values(CHILDREN, law, SUPPORT[:2], 1.0))
    fit = functools.partial(q_sharp.fit_return_laws, nodes=7)
    two, prior = np.array([0, 1]), np.ones(3)
    refused(TypeError, ("visited", "float"), lambda: fit(two * 1.0, two, prior))
    refused(ValueError, ("visited", "6"), lambda: fit(two + 6, two, prior))
    refused(ValueError, ("outcomes", "2"), lambda: fit(two, two + 2, prior))
    refused(ValueError, ("outcomes", "0"), lambda: fit(two, two - 1, prior))
    refused(ValueError, ("visited", "outcomes"), lambda: fit(two, two[:1], prior))
    refused(ValueError, ("prior",), lambda: fit(two, two, -prior))
    refused(ValueError, ("[n]", "[m]"), lambda: fit(two, two, np.ones((7, 3))))
