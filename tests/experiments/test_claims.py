import json

import numpy as np
import pytest

from experiments.lab import claims


def claim(measured, **bound):
    return claims.Claim("a-name", "A paper, table 1", "It is so.", measured, **bound)


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
    assert claim(measured, **bound).supported is supported
    record = claims.record(claim(measured, **bound), [])
    assert record["verdict"] == ("supported" if supported else "refuted")
    assert json.loads(json.dumps(record, allow_nan=False)) == record


def test_what_is_shown():
    few = claims.record(claim([0.25, 1e-7], low=0, high=[0.5, np.inf])._replace(published=0.3), [])
    assert claims.shown(few) == "[0.25, 1e-07] (bound: 0 to [0.5, none]; published: 0.3)"
    many = claims.record(claim(np.arange(100.0), low=0), [])
    assert claims.shown(many) == "100 numbers from 0 to 99 (bound: at least 0)"
