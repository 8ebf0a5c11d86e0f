"""What several test files share."""

import contextlib

import jaxtyping
import pytest

from jdiv import generators

PARAMETERS = {
    name: {key: known.example for key, known in make.parameters().items()}
    for name, make in generators.TABLE.items()
}
"""Every row of the table, with a value for its parameter that is no special case."""


@contextlib.contextmanager
def raises(error, match=None):
    """`pytest.raises` of the library's own refusals: annotations are not checked before them."""
    checked = not jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        with pytest.raises(error, match=match) as caught:
            yield caught
    finally:
        jaxtyping.config.update("jaxtyping_disable", not checked)


def refused(error, words, call):
    """Asserts that the call is refused in one line that has all of the words."""
    with raises(error) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message
