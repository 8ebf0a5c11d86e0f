"""Claims as HTML: a card with everything, a row with what counts, and what became of each."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from experiments.lab.claims import controls
from experiments.lab.html import (
    FEW,
    bound,
    count,
    fields,
    fits,
    number,
    numbers,
    prose,
    spread,
    text,
    words,
)

Entry = Mapping[str, Any]
"""A claim of claims.json."""

SUPPORTED, REFUTED, UNTESTED = "supported", "refuted", "not tested"
UNCONTROLLED = "no control"
"""Supported, but nothing that was tried could refute it."""
KINDS = (SUPPORTED, REFUTED, UNTESTED, UNCONTROLLED)


def failing(claim: Entry) -> list[Entry]:
    """The controls that do not refute the claim."""
    return [control for control in controls(claim) if control["verdict"] != REFUTED]


def kind(claim: Entry) -> str:
    """Which of `KINDS` a claim is."""
    if claim["verdict"] == SUPPORTED and (failing(claim) or not controls(claim)):
        return UNCONTROLLED
    return claim["verdict"]


def problem(claim: Entry) -> bool:
    """Whether it is refuted, or no control can refute it."""
    return kind(claim) in (REFUTED, UNCONTROLLED)


def attributes(area: str, claims: Iterable[Entry]) -> str:
    """What the filters look at: an element about these claims is shown if one of them is asked for.

    >>> claim = {"verdict": "refuted", "reruns": [], "wrong": []}
    >>> attributes("mdp", [claim, claim])
    ' data-area="mdp" data-verdicts="refuted"'
    """
    found = " ".join(value(each) for each in KINDS if each in set(map(kind, claims)))
    return f' data-area="{text(area)}" data-verdicts="{found}"'


def value(kind: str) -> str:
    """A kind as one word."""
    return kind.replace(" ", "-")


LOOKS = {True: ("good", "✓"), False: ("bad", "✗"), None: ("open", "○")}


def mark(good: bool | None, label: str) -> str:
    """A verdict: a sign, a word, a color; None is neither good nor bad."""
    look, sign = LOOKS[good]
    return f'<span class="{look}"><span aria-hidden="true">{sign}</span> {label}</span>'


def look(claim: Entry) -> str:
    """`good`, `bad` or `open`."""
    return LOOKS[None if kind(claim) == UNTESTED else not problem(claim)][0]


def verdict(claim: Entry) -> str:
    """`✓ supported`."""
    good = {SUPPORTED: True, UNTESTED: None}.get(claim["verdict"], False)
    return mark(good, text(claim["verdict"]))


def standing(claim: Entry) -> str:
    """Verdict and controls together: what is supported and cannot be refuted does not stand."""
    if kind(claim) != UNCONTROLLED:
        return verdict(claim)
    why = "a control does not refute it" if controls(claim) else "it has no control"
    return mark(False, f"{text(claim['verdict'])}, but {why}")


def controls_in_short(claim: Entry) -> str:
    """`✓ 2 reruns and 1 wrong reading refute`."""
    every, bad = len(controls(claim)), len(failing(claim))
    if kind(claim) == UNTESTED:
        return ""
    if not every:
        return mark(False, "no control")
    if bad:
        return mark(False, f"{bad} of {every} {'does' if bad == 1 else 'do'} not refute")
    kinds = (("rerun", len(claim["reruns"])), ("wrong reading", len(claim["wrong"])))
    said = " and ".join(count(number, kind) for kind, number in kinds if number)
    return mark(True, f"{said} {'refutes' if every == 1 else 'refute'}")


def beside(claim: Entry) -> dict[str, Any]:
    """The numbers that the bound may be about, by what the bound calls them."""
    several = isinstance(claim["published"], list)
    published = f"the published number{'s' * several}"
    return {published: claim["published"], "the reference": claim["reference"]}


def expected(claim: Entry) -> str:
    """Bound, and published or reference numbers where there are any."""
    lines = [bound(*claim["bound"], beside(claim))]
    for name in ("published", "reference"):
        if claim[name] is not None:
            lines.append(f"<small>{name.capitalize()}: {numbers(claim[name])}</small>")
    return "<br>".join(lines)


# ---------------------------------------------------------------------------------------- cards


def card(claim: Entry, area: str, level: int, where: str) -> str:
    """A claim in full: statement, numbers, controls. `where` is its id."""
    said = f"<p>{prose(claim['statement'])} <cite>{prose(claim['source'])}</cite></p>"
    heading = f"<h{level}>{text(words(claim['name']))} {standing(claim)}</h{level}>"
    opened = (
        f'<article class="claim is-{look(claim)}" id="{where}"{attributes(area, [claim])}>\n'
        f"{heading}\n{said}"
    )
    if kind(claim) == UNTESTED:
        return f"\n{opened}\n<p>Not tested: {prose(claim['reason'])}.</p>\n</article>"
    cells = [
        ("Measured", numbers(claim["measured"])),
        ("Must be", bound(*claim["bound"], beside(claim))),
    ]
    for name in ("Published", "Reference"):
        if claim[name.lower()] is not None:
            cells.append((name, numbers(claim[name.lower()])))
    shown = "".join(f"<div><dt>{name}</dt><dd>{cell}</dd></div>" for name, cell in cells)
    return f"""
{opened}
<dl class="numbers">{shown}</dl>
{element_table(claim)}
{controls_list(claim)}
</article>"""


def controls_list(claim: Entry) -> str:
    """Each control with what it measured; one that does not refute is as loud as a refutation."""
    if not controls(claim):
        return f"<p>{mark(False, 'no control can refute the claim')}</p>"
    items = []
    for control in controls(claim):
        good = control["verdict"] == REFUTED
        says = "refutes the claim" if good else "<strong>does not refute the claim</strong>"
        how, changed = (
            ("Run anew with", control["override"])
            if "override" in control
            else ("Read with", control["arguments"])
        )
        override = "; ".join(f"{name} = {value}" for name, value in fields(changed))
        items.append(
            f"<li>{mark(good, '')}{how} <code>{text(override)}</code> it {says}"
            f" (measured: {numbers(control['measured'])}).</li>"
        )
    return f'<ul class="controls">{"".join(items)}</ul>'


def element_table(claim: Entry) -> str:
    """Of a claim about many numbers every one, with its own bound."""
    measured = np.asarray(claim["measured"], dtype=object)
    if measured.size <= FEW:
        return ""
    columns = {
        name: spread(numbers, measured.shape)
        for name, numbers in (
            ("Published", claim["published"]),
            ("Reference", claim["reference"]),
            ("Measured", claim["measured"]),
            ("Lowest", claim["bound"][0]),
            ("Highest", claim["bound"][1]),
        )
        if fits(numbers, measured.shape)
    }
    rows = []
    for number_of, place in enumerate(np.ndindex(measured.shape)):
        here = {name: column[number_of] for name, column in columns.items()}
        inside = _within(here.get("Lowest"), here["Measured"], here.get("Highest"))
        cells = [", ".join(map(str, place)), *map(_or_open, here.values())]
        cells.append(mark(inside, "inside" if inside else "outside"))
        rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    head = "".join(f'<th scope="col">{name}</th>' for name in ("Place", *columns, "Bound"))
    return f"""
<details><summary>All {measured.size} numbers</summary>
<div class="scroll" tabindex="0" role="region" aria-label="All numbers of the claim">
<table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div></details>"""


def _within(low: float | None, value: float | None, high: float | None) -> bool:
    if value is None:
        return False
    return (low is None or low <= value) and (high is None or value <= high)


def _or_open(value: float | None) -> str:
    return "" if value is None else number(value)


# ----------------------------------------------------------------------------------------- rows

COLUMNS = ("Claim", "Measured", "Must be", "Verdict")


def row(claim: Entry, area: str, where: str) -> str:
    """A claim in short; `where` is the id of its card."""
    name = f'<a href="#{where}">{text(words(claim["name"]))}</a>'
    untested = kind(claim) == UNTESTED
    controlled = controls_in_short(claim)
    cells = (
        f"{name}<br><small>{prose(claim['source'])}</small>",
        "" if untested else numbers(claim["measured"]),
        prose(claim["reason"]) if untested else expected(claim),
        verdict(claim) + (f"<br><small>{controlled}</small>" if controlled else ""),
    )
    cells = "".join(
        f'<td role="cell" data-label="{name}"><div>{cell}</div></td>'
        for name, cell in zip(COLUMNS, cells, strict=True)
    )
    return f'<tr role="row" class="is-{look(claim)}"{attributes(area, [claim])}>{cells}</tr>'


def summary(claims: list[Entry]) -> str:
    """`✓ 6 of 7 claims, 1 not tested`."""
    if not claims:
        return "no claims"
    found = Counter(map(kind, claims))
    tested = len(claims) - found[UNTESTED]
    left = f", {found[UNTESTED]} not tested" if found[UNTESTED] else ""
    if not tested:
        return mark(None, f"{count(len(claims), 'claim')} not tested")
    bad = found[REFUTED] + found[UNCONTROLLED]
    return mark(not bad, f"{found[SUPPORTED]} of {count(tested, 'claim')}{left}")
