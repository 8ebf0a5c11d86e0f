import json

import numpy as np
import pytest
import xarray as xr

from experiments.lab import claims
from experiments.lab.claims import Finding, at_least, at_most, claim, equals, together, within


@claim(source="A paper, table 1", published=0.3, reruns=({"sign": -1.0},), wrong=({"factor": -1},))
def a_name(results, config, factor=1):
    """It
    is so."""
    return at_least(config, factor * results)


def recorded(found):
    return claims.record(a_name, found, [found], [found])


@pytest.mark.parametrize(
    ("measured", "bound", "supported"),
    [
        (0.5, {"low": 0, "high": 1}, True),
        (1.0, {"low": 0, "high": 1}, True),
        (1.1, {"high": 1}, False),
        (-np.inf, {"high": 1}, True),
        (np.nan, {}, False),
        ([0.1, 0.9], {"low": [0, 0.8], "high": 1}, True),
        ([0.1, 0.7], {"low": [0, 0.8], "high": 1}, False),
        ([0.1, np.nan], {"low": 0}, False),
        (True, {"low": 1}, True),
    ],
)
def test_a_claim_holds_within_its_bound(measured, bound, supported):
    assert Finding(measured, **bound).supported is supported
    record = recorded(Finding(measured, **bound))
    assert record["verdict"] == ("supported" if supported else "refuted")
    assert json.loads(json.dumps(record, allow_nan=False)) == record


def test_a_claim_is_its_function():
    assert (a_name.name, a_name.statement) == ("a_name", "It is so.")
    assert a_name(2.0, 1).supported
    assert not a_name(2.0, 1, factor=-1).supported
    record = claims.record(a_name, a_name(2.0, 1), [a_name(0.0, 1)], [a_name(2.0, 1, factor=-1)])
    assert record["reruns"] == [{"override": {"sign": -1.0}, "measured": 0, "verdict": "refuted"}]
    assert record["wrong"] == [{"arguments": {"factor": -1}, "measured": -2, "verdict": "refuted"}]
    assert claims.sound(record)
    assert not claims.sound(record | {"reruns": [], "wrong": []})
    assert not claims.sound(recorded(Finding(1.0)))


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (lambda: claim(source="x"), "needs a control"),
        (lambda: claim(source="x", wrong=({"other": 1},))(lambda results: 1), "lacks"),
        (lambda: claim(source="x", reruns=({"a": 1},))(lambda results: 1), "docstring"),
    ],
)
def test_a_claim_without_control_or_statement_is_refused(made, words):
    with pytest.raises(TypeError, match=words):
        made()


def test_bounds():
    assert equals((1.25, 2.0), (1.2549, 1.9951), decimals=2).supported
    assert not equals((1.25, 2.0), (1.2549, 1.9949), decimals=2).supported
    assert equals(1.0, 1.1, tolerance=0.11).supported
    both = together(at_most(1, [0.5, 0.7]), at_least((2, 3), (2, 4)))
    np.testing.assert_array_equal(both.measured, [0.5, 0.7, 2, 4])
    assert both.supported
    assert not together(at_most(1, [0.5, 0.7]), at_least((2, 3), (2, 2))).supported


def test_within_standard_errors_of_the_difference_of_two_means():
    chance = np.random.default_rng(0)
    inside = []
    for _ in range(400):
        draws = xr.DataArray(chance.normal(size=(16, 3)), dims=("seed", "case"))
        reference = chance.normal(size=(4, 3)).mean(axis=0)
        inside.append(within(reference, draws, errors=2, behind=4).supported)
    # Three independent cases, each within two standard errors with Student's t of 15 degrees.
    assert 0.75 < np.mean(inside) < 0.9
    exact = within(0.0, draws, errors=2)
    error = draws.std("seed", ddof=1) / 4
    np.testing.assert_allclose(exact.high, 2 * error)
    np.testing.assert_allclose(within(0.0, draws, errors=2, rounding=0.5).low, -2 * error - 0.5)


def test_what_is_shown():
    few = recorded(Finding([0.25, 1e-7], low=0, high=[0.5, np.inf]))
    assert claims.shown(few) == "[0.25, 1e-07] (bound: 0 to [0.5, none]; published: 0.3)"
    many = recorded(Finding(np.arange(100.0), low=0)) | {"published": None, "reference": 2.0}
    assert claims.shown(many) == "100 numbers from 0 to 99 (bound: at least 0; reference: 2)"
