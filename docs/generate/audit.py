"""Tables of the page on trainers, from benchmarks/results/audit.json."""

import json
import pathlib
import re
from typing import Any

from docs.generate import markdown

FILE = pathlib.Path(__file__).parents[2] / "benchmarks" / "results" / "audit.json"
NAMES = {"trl": "TRL", "openrlhf": "OpenRLHF", "tunix": "Tunix"}
ASKED = {"KL term": "KL(pi‖ref)", "policy loss": "-E[reward]"}
HEADERS = {"KL term": ("cosine to ∇KL(π‖ref)", "π = ref"),
           "policy loss": ("cosine to −∇E[reward]", "equal rewards")}  # fmt: skip


def read() -> dict[str, Any]:
    """Trainers by name: version, rows, what was left out."""
    return json.loads(FILE.read_text())


def named(trainer: str) -> str:
    """As the trainer writes itself."""
    return NAMES.get(trainer, trainer)


def symbols(objective: str) -> str:
    """An objective of a message as the page writes it.

    >>> symbols("KL(pi‖ref) of each next token, the tokens before held fixed")
    'each token’s KL(π‖ref)'
    """
    objective = objective.replace("pi", "π").replace("-", "−")
    each = " of each next token, the tokens before held fixed"
    return f"each token’s {objective.removesuffix(each)}" if each in objective else objective


def follows(message: str) -> str:
    """What the expected gradient is, in a few words.

    >>> follows("The gradient of KL(pi‖ref).")
    '∇ of KL(π‖ref)'
    >>> follows("0.3333 times the gradient of -E[reward].")
    '0.333 ∇ of −E[reward]'
    >>> follows("No gradient: those of the samples cancel, as E[grad log pi] = 0.")
    '0'
    """
    if message.startswith("No gradient"):
        return "0"
    exact = re.match(
        r"(?:The|(-?[\d.]+) times the) gradient of (.+?)(?:, the other|;|\.$)", message
    )
    if exact:
        factor = f"{float(exact[1]):.3g} " if exact[1] else ""
        return f"{factor}∇ of {symbols(exact[2])}"
    nearest = re.search(r"The nearest known is that of (.+), cosine (-?[\d.]+)\.$", message)
    return f"near ∇ of {symbols(nearest[1])}, cosine {nearest[2]}"


def cell(value: float | None) -> str:
    """Three digits; a cosine is none where there is no gradient."""
    return "–" if value is None else f"{value:.3f}"


def table(kind: str) -> str:
    """Every function and option of every trainer."""
    cosine, still = HEADERS[kind]
    lines, asked = [], ASKED[kind]
    for trainer, found in read().items():
        first = f"**{named(trainer)}** {found['version']}"
        for row in (row for row in found["rows"] if row["kind"] == kind):
            own, exact = row["own"], follows(row["own"]["message"])
            if exact == f"∇ of {symbols(asked)}":
                exact = f'<span class="good">{exact}</span>'
            push = "0" if abs(row["length"]) < 1e-5 else f"{row['length']:+.3f}"
            called = f"`{row['function']}` " + markdown.prose(row["option"])
            lines.append((
                first, called.strip() + " ★" * row["default"], row["average"], exact,
                cell(own["cosine"][asked]), cell(own["error"][asked]),
                cell(row["older"]["cosine"][asked]), push,
            ))  # fmt: skip
            first = ""
    header = (
        "trainer", "function and option", "average", "expected gradient", cosine, "relative error",
        "cosine, older samples", f"push on length at {still}",
    )  # fmt: skip
    return markdown.table(header, lines, classes="audit")


def left_out() -> str:
    """What else there is, and why it is not in the tables."""
    return "\n".join(
        f"- {named(trainer)}: {what}: {reason}."
        for trainer, found in read().items()
        for what, reason in found["left_out"]
    )


def versions() -> str:
    """What ran, and how much of it."""
    found = read()
    count = sum(len(trainer["rows"]) for trainer in found.values())
    names = ", ".join(f"{named(name)} {trainer['version']}" for name, trainer in found.items())
    return f"{count} functions and options of {names}."


def parts() -> dict[str, str]:
    """What the page includes."""
    return {
        "audit_kl": table("KL term"),
        "audit_policy": table("policy loss"),
        "audit_left_out": left_out(),
        "audit_versions": versions(),
    }
