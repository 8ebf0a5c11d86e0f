"""Small pieces of MyST Markdown."""

import pathlib
import re
from collections.abc import Collection, Iterable, Mapping, Sequence


def save(path: pathlib.Path, text: str) -> None:
    """Writes the file unless it holds the same already, so that Sphinx reads only what changed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.read_text() != text:
        path.write_text(text)


def save_all(folder: pathlib.Path, pages: Mapping[str, str], *, keep: Collection[str] = ()) -> None:
    """Writes the pages by name into the folder; others are removed, but for those to keep."""
    for name, text in pages.items():
        save(folder / name, text)
    for old in folder.glob("*.md"):
        if old.name not in pages and old.name not in keep:
            old.unlink()


def table(header: Sequence[str], rows: Iterable[Sequence[str]], *, classes: str = "") -> str:
    """A table of inline Markdown in a frame that scrolls where it is too wide."""
    lines = [f"| {' | '.join(cells)} |" for cells in [header, ["---"] * len(header), *rows]]
    return "\n".join([f"::::{{container}} wide {classes}".rstrip(), "", *lines, "::::"])


def toctree(pages: Iterable[str], *, hidden: bool = False, depth: int = 1) -> str:
    """Links to pages, also in the sidebar."""
    options = [f":maxdepth: {depth}"] + [":hidden:"] * hidden
    return "\n".join(["```{toctree}", *options, "", *pages, "```", ""])


def prose(text: str) -> str:
    """A docstring's sentence in a table's cell: backticks are code, nothing else is markup.

    >>> prose("`|x|` of x*y")
    '`\\\\|x\\\\|` of x\\\\*y'
    """
    pieces = re.split(r"(`+[^`]+`+)", " ".join(text.split()))
    pieces[::2] = [re.sub(r"([*_\[\]<>$~^{}])", r"\\\1", piece) for piece in pieces[::2]]
    return "".join(pieces).replace("|", r"\|")


def rst(text: str) -> str:
    """A block of reStructuredText, as docstrings are."""
    return f"````{{eval-rst}}\n{text}\n````"


def number(value: float | None, digits: int = 3) -> str:
    """A number with some digits; very small ones are written as powers.

    >>> number(0.54512), number(0.0), number(3.1e-17), number(None), number(float("inf"))
    ('0.545', '0', '3e-17', 'n/a', '∞')
    """
    if value is None or value != value:
        return "n/a" if value is None else "NaN"
    if abs(value) == float("inf"):
        return "∞" if value > 0 else "-∞"
    if value != 0 and (abs(value) < 1e-3 or abs(value) >= 1e5):
        return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")
    return (
        f"{value:.{digits}g}" if abs(value) >= 1 else f"{value:.{digits}f}".rstrip("0").rstrip(".")
    )
