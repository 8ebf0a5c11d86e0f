"""What several test files share."""

import pytest

from jdiv import generators

PARAMETERS = {
    name: {key: known.example for key, known in make.parameters().items()}
    for name, make in generators.TABLE.items()
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
