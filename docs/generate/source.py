"""What the pages know of the code, read without importing it: modules, names, docstrings."""

import ast
import pathlib
import re
from collections.abc import Iterator
from typing import NamedTuple

ROOT = pathlib.Path(__file__).parents[2]


class Item(NamedTuple):
    """A module, or a public function or class of one."""

    module: str
    """Dotted path."""
    name: str
    """Empty for the module itself."""
    docstring: str
    kind: str
    """`module`, `function` or `class`."""

    @property
    def path(self) -> str:
        """Dotted path of the item."""
        return f"{self.module}.{self.name}" if self.name else self.module

    @property
    def summary(self) -> str:
        """First sentence of the docstring."""
        return self.docstring.strip().split("\n\n")[0].replace("\n", " ")


def modules(package: str) -> Iterator[str]:
    """Dotted paths of the public modules of a package, or of the one module, in order."""
    path = ROOT.joinpath(*package.split("."))
    if not path.is_dir():
        yield from [package] if path.with_suffix(".py").exists() else []
        return
    for file in sorted(path.rglob("*.py")):
        parts = file.relative_to(ROOT).with_suffix("").parts
        if parts[-1] != "__init__" and not any(part.startswith("_") for part in parts):
            yield ".".join(parts)


def file_of(module: str) -> pathlib.Path:
    """The module's file."""
    path = ROOT.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def items(module: str) -> list[Item]:
    """The module and its public functions and classes, in the file's order."""
    tree = ast.parse(file_of(module).read_text())
    found = [Item(module, "", ast.get_docstring(tree) or "", "module")]
    for node in tree.body:
        if not isinstance(node, ast.FunctionDef | ast.ClassDef) or node.name.startswith("_"):
            continue
        kind = "class" if isinstance(node, ast.ClassDef) else "function"
        found.append(Item(module, node.name, ast.get_docstring(node) or "", kind))
        if kind == "class":
            found += [
                Item(module, f"{node.name}.{inner.name}", ast.get_docstring(inner) or "", "method")
                for inner in node.body
                if isinstance(inner, ast.FunctionDef) and not inner.name.startswith("_")
            ]
    return found


def tagged(docstring: str, tag: str) -> list[str]:
    """The paragraphs that begin with the tag, without it, each in one line.

    >>> tagged("A sum.\\n\\nReference: Euler,\\npage 3.\\nReconstructed: the sign.", "Reference")
    ['Euler, page 3.']
    """
    found = re.findall(rf"^{tag}: (.+?)(?=\n\s*\n|\n[A-Z][a-z]+: |\Z)", docstring, re.M | re.S)
    return [" ".join(text.split()) for text in found]
