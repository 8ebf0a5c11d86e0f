"""The page of papers, from the `Reference:` and `Reconstructed:` lines of docstrings."""

import pathlib
import re
import tomllib
from typing import Any

from docs.generate import markdown, results, source

DATA = pathlib.Path(__file__).parents[1] / "_data"
ARXIV = re.compile(r"arXiv:(\d{4}\.\d{4,5})")
PACKAGES = ("jdiv", "experiments")


def everything() -> list[source.Item]:
    """All modules, functions and classes with their docstrings."""
    found = [module for package in PACKAGES for module in source.modules(package)]
    return [item for module in found for item in source.items(module)]


def cited_by_experiments(records: dict[str, dict[str, Any]]) -> dict[str, list[str]]:
    """Experiments by arXiv id, from their docstrings and the sources of their claims."""
    found = {}
    for name, record in records.items():
        module = "experiments." + name.replace("/", ".")
        texts = [claim["source"] + claim["statement"] for claim in record["claims"]]
        if source.file_of(module).exists():
            texts += [source.file_of(module).read_text()]
        for identifier in sorted(set(ARXIV.findall(" ".join(texts)))):
            found.setdefault(identifier, []).append(name)
    return found


def entry(item: source.Item) -> str:
    """A link to the item."""
    name = item.path.removeprefix("jdiv.") if item.module.startswith("jdiv") else item.path
    if not item.name:
        kind, name = ("py:mod", name)
        return (
            f"{{{kind}}}`{name} <{item.path}>`" if item.module.startswith("jdiv") else f"`{name}`"
        )
    return f"{{py:obj}}`{name} <{item.path}>`" if item.module.startswith("jdiv") else f"`{name}`"


def page(records: dict[str, dict[str, Any]]) -> str:
    """Papers with arXiv numbers, others, and what was reconstructed."""
    titles = tomllib.loads((DATA / "titles.toml").read_text())
    items, experiments = everything(), cited_by_experiments(records)
    functions, others, names = {}, [], {}
    for item in items:
        references = source.tagged(item.docstring, "Reference")
        for reference in references:
            if not ARXIV.search(reference):
                others.append((reference, item))
        # A citation in running text counts too: every module says where it is from.
        for identifier in dict.fromkeys(ARXIV.findall(item.docstring)):
            if item.module.startswith("jdiv"):
                functions.setdefault(identifier, []).append(item)
            for reference in references:
                if identifier in reference:
                    names.setdefault(identifier, short_name(reference, identifier))
    lines = [HEAD, "## Papers on arXiv", ""]
    rows = []
    for identifier in sorted({*functions, *experiments}, reverse=True):
        title = titles.get(identifier) or names.get(identifier) or ""
        link = f"[{identifier}](https://arxiv.org/abs/{identifier})"
        verdicts = [
            f"[{name}](results/{name.partition('/')[0]}.md#{results.anchor(name)})"
            f" {results.of(results.supported(records[name]))}"
            for name in experiments.get(identifier, [])
        ]
        here = [entry(item) for item in functions.get(identifier, [])]
        rows.append((
            f"{markdown.prose(title)}<br>{link}" if title else link,
            "<br>".join(here) or "–", "<br>".join(verdicts) or "–",
        ))  # fmt: skip
    header = "paper", "in the library", "experiments, claims supported"
    lines += [markdown.table(header, rows, classes="papers"), "", "## Other sources", ""]
    merged = {}
    for reference, item in others:
        merged.setdefault(reference.split(",")[0].split(";")[0].rstrip("."), []).append(item)
    rows = [
        (markdown.prose(reference), "<br>".join(dict.fromkeys(entry(item) for item in found)))
        for reference, found in sorted(merged.items())
    ]
    lines += [markdown.table(("source", "where"), rows, classes="papers"), ""]
    rows = [
        (entry(item), markdown.prose(text))
        for item in items
        for text in source.tagged(item.docstring, "Reconstructed")
    ]
    lines += ["## Reconstructed", "", RECONSTRUCTED, ""]
    if rows:
        lines += [markdown.table(("where", "what is inferred"), rows, classes="papers"), ""]
    return "\n".join(lines)


def short_name(reference: str, identifier: str) -> str:
    """What a docstring calls the paper: the words before its number.

    >>> short_name("GRPO (Shao et al. 2024, arXiv:2402.03300), equation 3.", "2402.03300")
    'GRPO (Shao et al. 2024)'
    """
    before = reference.partition(f"arXiv:{identifier}")[0].split(";")[-1]
    before = before.rstrip(" (,")
    return before + ")" * (before.count("(") - before.count(")"))


HEAD = """# Papers

By number, newest first: what of a paper is in the library, and which experiments ask whether it
holds. It is made from the `Reference:` lines of docstrings and the sources of claims. An experiment
that cites a paper need not reproduce it; what was published, what is an independent recomputation
and what was measured is kept apart on the pages of [results](results/index.md).
"""
RECONSTRUCTED = """What was rebuilt from an abstract, from notes by others or from memory of the
paper, and what was inferred in doing so. The formulas are tested as they stand; that they are the
paper's is not known.
"""
