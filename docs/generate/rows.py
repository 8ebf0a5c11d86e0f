"""The table of rows, from the rows."""

import inspect

from docs.generate import markdown
from jdiv import divergences as dv
from jdiv import generators

ENDS = {"alpha": 0.5, "tsallis": 0.5}
"""The parameter of the rows whose ends depend on it."""


def table() -> str:
    """Name, parameter, and what happens at the ends."""
    rows = []
    for name in generators.TABLE:
        given = {}
        if name in ENDS:
            given[next(iter(inspect.signature(getattr(generators, name)).parameters))] = ENDS[name]
        row = generators.get(name, **given)
        said = inspect.getdoc(getattr(dv, name)) or ""
        shown = "".join(f" ({key}={value:g})" for key, value in given.items())
        rows.append((
            f"{{py:obj}}`{name} <jdiv.divergences.categorical.{name}>`{shown}",
            markdown.prose(said.split("\n\n")[0]),
            *(
                markdown.number(float(x), 4)
                for x in (row.at_zero, row.slope_at_zero, row.slope_at_infinity)
            ),
        ))  # fmt: skip
    return markdown.table(("row", "what it is", "f(0)", "f'(0)", "f'(∞)"), rows, classes="names")
