"""All generated pages; `conf.py` calls `write` at the start of each build."""

import pathlib

from docs.generate import api


def write(folder: pathlib.Path) -> None:
    """Writes them below the folder of the documentation's sources."""
    api.write(folder / "api")
