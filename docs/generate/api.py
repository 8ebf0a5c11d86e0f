"""Pages of the API, by noun: one for each group with all names, one for each module."""

import pathlib

from docs.generate import markdown, source

GROUPS = {
    "divergences": ("Divergences", ["jdiv.divergences"]),
    "estimators": ("Estimators", ["jdiv.estimators"]),
    "planning": ("Planning", ["jdiv.regularized", "jdiv.mdp"]),
    "bandits": ("Bandits", ["jdiv.bandits"]),
    "policy": ("Policy", ["jdiv.policy"]),
    "alignment": ("Alignment", ["jdiv.alignment"]),
    "games": ("Games", ["jdiv.games"]),
    "distillation": ("Distillation", ["jdiv.distillation"]),
    "decoding": ("Decoding", ["jdiv.decoding"]),
    "unlearning": ("Unlearning", ["jdiv.unlearning"]),
    "lm": ("Language models", ["jdiv.lm"]),
    "foundations": (
        "Foundations",
        ["jdiv.types", "jdiv.checks", "jdiv.numerics", "jdiv.roots", "jdiv.parallel",
         "jdiv.checkpoints", "jdiv.sweeps", "jdiv.testing"],
    ),
    "experiments": ("Experiments", ["experiments.lab"]),
}  # fmt: skip


def write(folder: pathlib.Path) -> None:
    """Writes `index.md`, a page for each group and one for each module."""
    groups, pages, covered = {}, {}, set()
    for stem, (title, packages) in GROUPS.items():
        found = [module for package in packages for module in source.modules(package)]
        if found:
            groups[stem], covered = title, covered | set(found)
            pages[f"{stem}.md"] = group(title, packages, found)
            pages |= {f"{module}.md": page(module) for module in found}
    missing = set(source.modules("jdiv")) - covered - {"jdiv.generators"}  # a short name
    if missing:
        raise ValueError(f"in no group of docs/generate/api.py: {', '.join(sorted(missing))}")
    markdown.save_all(folder, {"index.md": index(groups), **pages})


def index(groups: dict[str, str]) -> str:
    """The groups."""
    return "\n".join([
        "# API by noun", "",
        "One page for each subject, with every public name and its first line; from there each"
        " module has a page of its own.", "",
        markdown.toctree(groups),
    ])  # fmt: skip


def group(title: str, packages: list[str], modules: list[str]) -> str:
    """A table of all names of these modules."""
    lines = [f"# {title}", ""]
    if len(packages) == 1 and source.file_of(packages[0]).exists():
        introduction = source.items(packages[0])[0].docstring
        lines += [markdown.rst(introduction), ""]
    for module in modules:
        first, *others = source.items(module)
        lines += [f"## [{module}]({module}.md)", "", markdown.prose(first.summary), ""]
        rows = [
            (f"{{py:obj}}`{item.name} <{item.path}>`", markdown.prose(item.summary))
            for item in others
            if item.kind != "method"
        ]
        if rows:
            lines += [markdown.table(("name", "what it is"), rows, classes="names"), ""]
    within = packages[0] + "." if len(packages) == 1 else "jdiv."
    entries = [f"{module.removeprefix(within)} <{module}>" for module in modules]
    return "\n".join([*lines, markdown.toctree(entries, hidden=True)])


def page(module: str) -> str:
    """Everything public in one module."""
    body = f".. automodule:: {module}\n   :members:\n"
    return f"# {module}\n\n```{{eval-rst}}\n{body}```\n"
