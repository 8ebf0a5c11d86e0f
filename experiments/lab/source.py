"""Hashes of code: of what makes the numbers of an experiment, and of what judges and draws them.

Numbers belong to `run`, or `init`, `step` and `finish`; to what these use of their module; to the
modules of the library that they import, and those that these import; and to the engine. Comments
and docstrings count for nothing. So a claim that was mended, a caption or a label of a figure
leaves the numbers what they are; they are judged and drawn anew.
"""

import ast
import functools
import hashlib
import importlib
import pathlib
from collections.abc import Callable, Iterable, Iterator
from types import ModuleType
from typing import NamedTuple

ROOT = pathlib.Path(__file__).parents[2]
LAB = ROOT / "experiments" / "lab"
MADE_BY = ("run", "init", "step", "finish", "AXES")
"""Names of an experiment's module that its numbers start from."""
ENGINE = tuple(LAB / f"{name}.py" for name in ("engine", "sweeps", "results"))
JUDGED_BY = tuple(LAB / f"{name}.py" for name in ("claims", "needs", "plots"))
"""Files of the lab behind all numbers, and behind all claims and figures."""


class Code(NamedTuple):
    """Two hashes."""

    numbers: str
    rest: str


def code(experiment: ModuleType) -> Code:
    """The hashes of an experiment."""
    if getattr(experiment, "__file__", None) is None:  # made in memory
        return Code(_digest([], _reachable(ENGINE, _counts)), "")
    file = pathlib.Path(experiment.__file__)
    made = list(_used(_parsed(file).body, MADE_BY))
    behind = _reachable([*_imports(made, file), *ENGINE], _counts)
    numbers = _digest(map(ast.unparse, made), behind - {file})
    beside = _reachable([*_imports(_parsed(file).body, file), *JUDGED_BY], _counts_for_the_rest)
    return Code(numbers, _digest([file.read_text(encoding="utf-8")], beside - {file}))


def _counts(file: pathlib.Path) -> bool:
    """Whether a file can change numbers: of what all experiments share only the engine can."""
    return file.parent not in (LAB, LAB.parent) or file in ENGINE


def _counts_for_the_rest(file: pathlib.Path) -> bool:
    return file.parent not in (LAB, LAB.parent) or file in JUDGED_BY


def _digest(texts: Iterable[str], files: Iterable[pathlib.Path]) -> str:
    digest = hashlib.sha256()
    for text in texts:
        digest.update(text.encode() + b"\0")
    for file in sorted(files):
        name = file.relative_to(ROOT).as_posix() if file.is_relative_to(ROOT) else file.name
        digest.update(f"{name}\0{_plain(file)}\0".encode())
    return digest.hexdigest()[:16]


# ------------------------------------------------------------------------------ what a file holds


@functools.cache
def _parsed(file: pathlib.Path) -> ast.Module:
    """The code of a file without docstrings."""
    return _Undocumented().visit(ast.parse(file.read_text(encoding="utf-8")))


class _Undocumented(ast.NodeTransformer):
    """Takes out what is evaluated for nothing: docstrings, also those below a name."""

    def visit_Expr(self, node: ast.Expr) -> ast.Expr | None:
        return None if isinstance(node.value, ast.Constant) else node


@functools.cache
def _plain(file: pathlib.Path) -> str:
    return ast.unparse(_parsed(file))


def _used(body: list[ast.stmt], start: Iterable[str]) -> Iterator[ast.stmt]:
    """The statements of a module that define these names, or what those use, in their order."""
    defines = [set(_defined(node)) for node in body]
    wanted, found = set(start), set()
    while new := {i for i, names in enumerate(defines) if names & wanted} - found:
        found |= new
        wanted |= {name.id for i in new for name in ast.walk(body[i]) if isinstance(name, ast.Name)}
    return (_trimmed(node, wanted) for i, node in enumerate(body) if i in found)


def _trimmed(node: ast.stmt, wanted: set[str]) -> ast.stmt:
    """The statement; of an import only these names."""
    if not isinstance(node, ast.Import | ast.ImportFrom):
        return node
    names = [alias for alias in node.names if _bound(alias) in wanted]
    if isinstance(node, ast.Import):
        return ast.Import(names)
    return ast.ImportFrom(node.module, names, node.level)


def _bound(alias: ast.alias) -> str:
    """The name that an import gives to what it imports."""
    return alias.asname or alias.name.partition(".")[0]


def _defined(node: ast.stmt) -> Iterator[str]:
    """Names that a statement of a module binds; those that it may only change count as well."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
        yield node.name
        return
    for part in ast.walk(node):
        if isinstance(part, ast.alias):
            yield _bound(part)
        elif isinstance(part, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
            yield part.name
        elif isinstance(part, ast.Name) and not _only_reads(node, part):
            yield part.id


def _only_reads(node: ast.stmt, part: ast.Name) -> bool:
    """Whether a name is on the right of an assignment to names, where nothing happens to it."""
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    plain = all(isinstance(target, ast.Name) for target in targets)
    assigns = isinstance(node, ast.Assign | ast.AnnAssign)
    return assigns and plain and isinstance(part.ctx, ast.Load)


# ---------------------------------------------------------------------------- what a file imports


def _reachable(
    files: Iterable[pathlib.Path], counts: Callable[[pathlib.Path], bool]
) -> set[pathlib.Path]:
    """Of these files, of all that they import, and so on, those that count."""
    found: set[pathlib.Path] = set()
    left = list(files)
    while left:
        file = left.pop()
        if file not in found and counts(file):
            found.add(file)
            left += _imported(file)
    return found


@functools.cache
def _imported(file: pathlib.Path) -> list[pathlib.Path]:
    return _imports(_parsed(file).body, file)


def _imports(nodes: Iterable[ast.AST], file: pathlib.Path) -> list[pathlib.Path]:
    """Files of this repository, or beside the file, that are imported in these statements."""
    found = []
    for part in (part for node in nodes for part in ast.walk(node)):
        if isinstance(part, ast.Import):
            for alias in part.names:
                found += _files_of(alias.name, file.parent)
                if alias.name == "jdiv":  # whatever is used of it, nothing is missed
                    found += (ROOT / "jdiv").rglob("*.py")
        elif isinstance(part, ast.ImportFrom) and part.module and not part.level:
            for alias in part.names:
                found += _files_of(f"{part.module}.{alias.name}", file.parent)
        elif isinstance(part, ast.Constant) and str(part.value).startswith("jdiv."):
            # A package may import one of its modules by its name, when it is first used.
            found += _files_of(part.value, file.parent)
    return found


def _files_of(name: str, beside: pathlib.Path) -> Iterator[pathlib.Path]:
    """The file of a module and those of the packages it is in; none of what is installed.

    `jdiv/__init__.py` is not among them: it names its packages and computes nothing.
    """
    parts = name.split(".")
    for root in dict.fromkeys((ROOT, beside)):
        for end in range(1, len(parts) + 1):
            path = root.joinpath(*parts[:end])
            for file in (path.with_suffix(".py"), path / "__init__.py"):
                if file.is_file() and file != ROOT / "jdiv" / "__init__.py":
                    yield file
    if parts[0] == "jdiv" and len(parts) == 2:  # one that the library knows by another name
        found = getattr(importlib.import_module("jdiv"), parts[1], None)
        if isinstance(found, ModuleType):
            yield pathlib.Path(found.__file__)
