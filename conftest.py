"""What has to be settled before pytest collects anything."""

import pathlib

import pytest

# The package is imported before pytest collects doctests, so that each module exists once.
import jdiv.divergences
import jdiv.regularized  # noqa: F401

ROOT = pathlib.Path(__file__).parent
collect_ignore = ["jdiv/generators.py"]
"""Another name of a module, in whose place pytest would put an empty one."""
ONE_BY_ONE = ROOT / "tests" / "experiments" / "smoke.py"
"""The file whose tests share no programs: each goes to any worker."""


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config):
    """With `-n` the tests of one group go to one worker, which compiles what they share once."""
    if getattr(config.option, "numprocesses", None) and config.option.dist == "no":
        config.option.dist = "loadgroup"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    """Groups: a file of tests, all doctests together."""
    if not config.pluginmanager.hasplugin("xdist"):
        return
    for item in items:
        if item.path != ONE_BY_ONE:
            of_file = item.path.is_relative_to(ROOT / "tests")
            group = item.path.relative_to(ROOT).as_posix() if of_file else "doctests"
            item.add_marker(pytest.mark.xdist_group(group))
