"""What several test files share."""

import pytest

PARAMETERS = {
    "kl": {},
    "reverse_kl": {},
    "jeffreys": {},
    "jensen_shannon": {"weight": 0.3},
    "skew_kl": {"skew": 0.2},
    "total_variation": {},
    "squared_hellinger": {},
    "pearson_chi2": {},
    "neyman_chi2": {},
    "le_cam": {},
    "alpha": {"alpha": 0.7},
    "tsallis": {"index": 1.6},
}
"""Every row of the table, with a value for its parameter that is no special case."""


def refused(error, words, call):
    """Asserts that the call is refused in one line that has all of the words."""
    with pytest.raises(error) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message
