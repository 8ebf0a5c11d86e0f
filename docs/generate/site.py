"""All generated pages; `conf.py` calls `write` at the start of each build."""

import pathlib
import shutil

from docs.generate import api, benchmarks, markdown, pages, papers, results, uses


def write(folder: pathlib.Path) -> None:
    """Writes them below the folder of the documentation's sources."""
    records = results.read()
    api.write(folder / "api")
    results.write(folder / "results", records)
    markdown.save(folder / "papers.md", papers.page(records))
    markdown.save(folder / "uses.md", uses.page(records))
    pages.write(folder / "_generated")
    benchmarks.write(folder / "_generated")
    notebook = folder / "tutorials" / "quickstart.ipynb"
    shutil.copyfile(folder.parent / "examples" / "quickstart.ipynb", notebook)
