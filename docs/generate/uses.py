"""Which experiments use a function of the library, read from the code without importing it.

An experiment uses what its file names, and what that names in turn: functions, classes and tables
of modules; a table uses what a decorator puts into it. What is only found at run time, by `getattr`
or by a name in a config, is not seen.
"""

import ast
import functools
from collections.abc import Collection, Iterator

from docs.generate import markdown, results, source

PACKAGES = (
    "jdiv.divergences", "jdiv.estimators", "jdiv.bandits", "jdiv.policy", "jdiv.alignment",
    "jdiv.games", "jdiv.unlearning", "jdiv.decoding",
)  # fmt: skip
"""Of which every public function is in an experiment with claims."""
DEFINITION = ast.FunctionDef | ast.ClassDef


class Module:
    """A parsed file: what its names stand for.

    Attributes:
        tree: Its syntax.
        defined: Statement by name, of functions, classes and assignments at the top.
        imported: Dotted path by name.
    """

    def __init__(self, name: str) -> None:
        self.tree = ast.parse(source.file_of(name).read_text(encoding="utf-8"))
        self.defined, self.imported = {}, {}
        for node in self.tree.body:
            if isinstance(node, DEFINITION):
                self.defined[node.name] = node
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                for target in getattr(node, "targets", None) or [node.target]:
                    names = [x.id for x in ast.walk(target) if isinstance(x, ast.Name)]
                    self.defined |= dict.fromkeys(names, node)
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    path = alias.name if alias.asname else alias.name.partition(".")[0]
                    self.imported[alias.asname or path] = path
            elif isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    self.imported[alias.asname or alias.name] = f"{node.module}.{alias.name}"


@functools.cache
def module(name: str) -> Module | None:
    """The module of this name, None if there is none here."""
    here = name.partition(".")[0] in ("jdiv", "experiments")
    return Module(name) if here and source.file_of(name).exists() else None


def named(node: ast.AST) -> str:
    """`a.b.c` of a name or of attributes of one, else nothing."""
    if isinstance(node, ast.Attribute):
        return f"{named(node.value)}.{node.attr}" if named(node.value) else ""
    return node.id if isinstance(node, ast.Name) else ""


@functools.cache
def meant(path: str) -> tuple[str, str] | None:
    """Module and name that a dotted path leads to, through packages that import it from others."""
    parts = path.split(".")
    for count in range(len(parts), 0, -1):
        name, rest = ".".join(parts[:count]), parts[count:]
        if (found := module(name)) is None:
            continue
        if not rest:
            return None
        if rest[0] in found.defined:
            return name, rest[0]
        # A module that imports one of its own name stands for that.
        own = found.imported.get(parts[count - 1])
        other = found.imported.get(rest[0]) or (own and f"{own}.{rest[0]}")
        return meant(".".join([other, *rest[1:]])) if other else None
    return None


@functools.cache
def uses(of: tuple[str, str]) -> frozenset[tuple[str, str]]:
    """What a definition names: definitions of its own module and of others."""
    name, here = of[0], module(of[0])
    found = set()
    for node in ast.walk(here.defined[of[1]]):
        first, _, rest = named(node).partition(".")
        if first in here.defined:
            found.add((name, first))
        elif first in here.imported:
            path = ".".join(filter(None, (here.imported[first], rest)))
            found.add(meant(path))
    return frozenset(found - {None} | registered(of))


def registered(table: tuple[str, str]) -> set[tuple[str, str]]:
    """What decorators of the same module put into a table: all that they decorate."""
    name, here = table[0], module(table[0])
    if isinstance(here.defined[table[1]], DEFINITION):
        return set()
    mentions = lambda node: table[1] in {named(x) for x in ast.walk(node)}
    fill = {x.name for x in here.defined.values() if isinstance(x, DEFINITION) and mentions(x)}
    return {
        (name, x.name)
        for x in here.defined.values()
        if isinstance(x, DEFINITION) and fill & {named(by) for by in x.decorator_list}
    }


def reached(experiment: str) -> set[tuple[str, str]]:
    """All that an experiment uses, directly or through others."""
    waiting = [(experiment, name) for name in module(experiment).defined]
    found = set()
    while waiting:
        if (of := waiting.pop()) not in found:
            found.add(of)
            waiting += uses(of)
    return found


@functools.cache
def by_function() -> dict[tuple[str, str], list[str]]:
    """The experiments with claims that use a definition, by module and name."""
    found = {}
    for name in source.modules("experiments"):
        if "claim" in module(name).imported and not name.startswith("experiments.lab"):
            for of in reached(name):
                found.setdefault(of, []).append(name.partition(".")[2].replace(".", "/"))
    return found


def public(package: str) -> Iterator[tuple[str, str]]:
    """Module and name of every public function of a package."""
    for name in source.modules(package):
        for item in source.items(name):
            if item.kind == "function":
                yield name, item.name


def unused() -> list[str]:
    """Public functions of PACKAGES that no experiment with claims uses."""
    known = by_function()
    every = [of for package in PACKAGES for of in public(package)]
    return [".".join(of) for of in every if of not in known]


def page(records: Collection[str]) -> str:
    """A table for each package: functions, and the experiments whose claims rest on them.

    Experiments with a record have a link to it.
    """
    known, lines = by_function(), [HEAD]
    for package in PACKAGES:
        rows = []
        for of in public(package):
            name = ".".join(of).removeprefix(f"{package}.")
            links = [
                f"[{x}](results/{x.partition('/')[0]}.md#{results.anchor(x)})"
                if x in records
                else f"`{x}`"
                for x in known.get(of, [])
            ]
            rows.append((f"{{py:obj}}`{name} <{'.'.join(of)}>`", ", ".join(links) or "–"))
        lines += [f"## {package}", "", markdown.table(("function", "experiments"), rows), ""]
    return "\n".join(lines)


HEAD = """# Functions and claims

Which experiments use a function, directly or through other functions of the library: their claims
fail if it is wrong. The table is read from the code, and a test refuses a function without an
experiment.
"""
