"""What has to be settled before pytest collects anything."""

import pytest

# The package is imported before pytest collects doctests, so that each module exists once.
import jdiv.divergences
import jdiv.regularized  # noqa: F401

collect_ignore = ["jdiv/generators.py"]
"""Another name of a module, in whose place pytest would put an empty one."""


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config):
    """With `-n` the tests of one file go to one worker, which compiles what they share once."""
    if getattr(config.option, "numprocesses", None) and config.option.dist == "no":
        config.option.dist = "loadfile"
