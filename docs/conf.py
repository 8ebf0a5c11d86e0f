"""Sphinx: pages by hand in MyST, and pages that are written from code and results at each build."""

import ast
import inspect
import os
import pathlib
import re
import sys
import textwrap
from collections import _tuplegetter

from docutils import nodes
from docutils.parsers.rst import roles
from sphinx.addnodes import pending_xref

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
os.environ |= {"PYTHONPATH": str(HERE.parent), "JAX_PLATFORMS": "cpu"}  # Of notebooks.

from docs.generate import site  # noqa: E402

project = "jdiv"
author = "The jdiv authors"
copyright = "The jdiv authors"
extensions = ["myst_nb", "sphinx.ext.autodoc"]
exclude_patterns = ["_build", "_data", "**.part.md", "generate"]
# Two classes of one name: an annotation is not linked to either.
suppress_warnings = ["ref.python"]

html_theme = "sphinx_book_theme"
html_title = "jdiv"
html_static_path = ["_static"]
html_css_files = ["jdiv.css"]
html_copy_source = False
html_show_copyright = False
html_theme_options = {
    "show_navbar_depth": 1,
    "show_toc_level": 2,
    "use_download_button": False,
    "use_fullscreen_button": False,
    "home_page_in_toc": False,
    # Pages with the widest tables have the room of it.
    "secondary_sidebar_items": {
        pages: ["page-toc"]
        for pages in ("index", "concepts", "tutorials/*", "results/[!i]*", "api/*")
    },
}

myst_enable_extensions = ["colon_fence", "deflist", "attrs_inline"]
myst_heading_anchors = 3
nb_execution_mode = "force"
nb_execution_timeout = 120
nb_execution_raise_on_error = True
nb_execution_show_tb = True
nb_merge_streams = True

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # Signatures are shown as written, see below.
toc_object_entries_show_parents = "hide"
add_module_names = False
default_role = "formula"


def formula(name, rawtext, text, lineno, inliner, options=None, content=()):
    """What stands in backticks: a link where it is a name of jdiv, code where it is a formula."""
    code = nodes.literal(rawtext, text, classes=["code"])
    if not re.fullmatch(r"[A-Za-z_][\w.]*(\(\))?", text):
        return [code], []
    env = inliner.document.settings.env
    link = pending_xref(
        rawtext, code, refdomain="py", reftype="obj", reftarget=text.removesuffix("()"),
        refdoc=env.docname, refexplicit=False, refwarn=False,
    )  # fmt: skip
    link["py:module"], link["py:class"] = env.ref_context.get("py:module"), None
    return [link], []


def signature(app, what, name, obj, options, shown, returned):
    """The signature as it is written, `log_probs: PerToken`, and not what the names stand for."""
    if what not in ("function", "method"):
        return ("", returned) if what == "class" and issubclass(obj, tuple) else None
    try:
        source = textwrap.dedent(inspect.getsource(inspect.unwrap(obj)))
        definition = ast.parse(source).body[0]
    except (OSError, TypeError, SyntaxError):
        return None
    if not isinstance(definition, ast.FunctionDef):
        return None
    arguments = definition.args
    if what == "method":
        del (arguments.posonlyargs or arguments.args)[:1]
    result = definition.returns and ast.unparse(definition.returns)
    return f"({ast.unparse(arguments)})", result


def fields(lines):
    """The section `Fields:` of a class as a list of definitions."""
    if "Fields:" not in lines:
        return lines
    start = lines.index("Fields:")
    found = lines[:start]
    for line in lines[start + 1 :]:
        name = re.match(r" {4}(\w+): (.*)", line)
        found += ["", f"``{name[1]}``", f"    {name[2]}"] if name else [line[4:]]
    return found


def no_field(app, what, name, obj, skip, options):
    """Fields are described in the docstring of their class."""
    return True if isinstance(obj, _tuplegetter) else None


def docstring(app, what, name, obj, options, lines):
    """Bars of prose are no markup, numbers on arXiv are links, a tag begins a paragraph."""
    lines[:] = fields(lines)
    found = []
    for line in lines:
        pieces = re.split(r"(``.*?``|`[^`]*`)", line)
        for number in range(0, len(pieces), 2):
            prose = re.sub(r"(?<!\\)\|", r"\\|", pieces[number])
            link = r"`arXiv:\1 <https://arxiv.org/abs/\1>`__"
            pieces[number] = re.sub(r"arXiv:(\d{4}\.\d{4,5})", link, prose)
        if line.startswith(("Reference:", "Reconstructed:")):
            found.append("")
            pieces[0] = re.sub(r"^(\w+):", r"*\1:*", pieces[0])
        found.append("".join(pieces))
    lines[:] = found


def setup(app):
    """Writes the generated pages, then Sphinx finds them."""
    roles.register_local_role("formula", formula)
    site.write(HERE)
    app.connect("autodoc-process-signature", signature)
    app.connect("autodoc-process-docstring", docstring)
    app.connect("autodoc-skip-member", no_field)
