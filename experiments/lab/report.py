"""The report: one HTML page, with nothing outside of it, that holds all figures and claims."""

import ast
import base64
import io
import math
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from experiments.lab import records
from experiments.lab.claims import controls
from experiments.lab.html import (
    FEW,
    anchor,
    bound,
    count,
    duration,
    fields,
    number,
    numbers,
    prose,
    sequence,
    text,
    words,
)

THUMBNAIL = (480, 360)
STYLE = pathlib.Path(__file__).with_name("report.css")


class Figure(NamedTuple):
    """A figure of a run."""

    name: str
    caption: str
    png: bytes


class Run(NamedTuple):
    """What a run's folder holds."""

    config: Mapping[str, Any]
    environment: Mapping[str, Any]
    claims: list[Mapping[str, Any]]
    figures: list[Figure]

    @property
    def experiment(self) -> str:
        """`area/name`."""
        return self.config["experiment"]

    @property
    def area(self) -> str:
        """The part before the slash."""
        return self.experiment.partition("/")[0]

    @property
    def title(self) -> str:
        """The name in words."""
        return words(self.experiment.partition("/")[2])


def write(folder: pathlib.Path, runs: list[pathlib.Path]) -> pathlib.Path:
    """Writes `report.html` about these run folders into `folder`; the path of the page."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "report.html"
    records.write_text(path, page(read(runs)))
    return path


def read(folders: Iterable[pathlib.Path]) -> list[Run]:
    """The runs, those of an area together, areas in the order in which they first appear."""
    runs = []
    for folder in folders:
        config, environment, claims = (
            records.read_json(folder / f"{name}.json")
            for name in ("config", "environment", "claims")
        )
        runs.append(Run(config, environment or {}, claims or [], _figures(folder)))
    areas = [run.area for run in runs]
    return sorted(runs, key=lambda run: areas.index(run.area))


def _figures(folder: pathlib.Path) -> list[Figure]:
    captions = records.read_json(folder / "figures" / "captions.json") or {}
    return [
        Figure(name, caption, (folder / "figures" / f"{name}.png").read_bytes())
        for name, caption in captions.items()
    ]


# ----------------------------------------------------------------------------------- verdicts


def failing(claim: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The controls that do not refute the claim."""
    return [control for control in controls(claim) if control["verdict"] != "refuted"]


def refuted(claim: Mapping[str, Any]) -> bool:
    """Whether the claim does not hold."""
    return claim["verdict"] != "supported"


def problem(claim: Mapping[str, Any]) -> bool:
    """Whether it is refuted, or no control can refute it."""
    return refuted(claim) or bool(failing(claim)) or not controls(claim)


def mark(good: bool, label: str) -> str:
    """A verdict: a sign, a word, a color."""
    kind, sign = ("good", "✓") if good else ("bad", "✗")
    return f'<span class="{kind}"><span aria-hidden="true">{sign}</span> {label}</span>'


def verdict(claim: Mapping[str, Any]) -> str:
    """`✓ supported`."""
    return mark(not refuted(claim), text(claim["verdict"]))


def standing(claim: Mapping[str, Any]) -> str:
    """Verdict and controls together: what is supported and cannot be refuted does not stand."""
    if refuted(claim) or not problem(claim):
        return verdict(claim)
    why = "a control does not refute it" if controls(claim) else "it has no control"
    return mark(False, f"{text(claim['verdict'])}, but {why}")


def controls_in_short(claim: Mapping[str, Any]) -> str:
    """`✓ 2 reruns and 1 wrong reading refute`."""
    every, bad = len(controls(claim)), len(failing(claim))
    if not every:
        return mark(False, "no control")
    if bad:
        return mark(False, f"{bad} of {every} {'does' if bad == 1 else 'do'} not refute")
    kinds = (("rerun", len(claim["reruns"])), ("wrong reading", len(claim["wrong"])))
    return mark(True, " and ".join(count(number, kind) for kind, number in kinds if number))


# -------------------------------------------------------------------------------------- claims


def claim_card(run: Run, claim: Mapping[str, Any], level: int, where: str) -> str:
    """A claim in full: statement, numbers, controls. `where` is its id."""
    low, high = claim["bound"]
    cells = [("Measured", numbers(claim["measured"])), ("Bound", bound(low, high))]
    cells += [(name, _or_none(claim[name.lower()])) for name in ("Published", "Reference")]
    shown = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in cells)
    kind = "bad" if problem(claim) else "good"
    return f"""
<article class="claim is-{kind}" id="{where}">
<h{level}>{text(words(claim["name"]))} {standing(claim)}</h{level}>
<p>{prose(claim["statement"])} <cite>{prose(claim["source"])}</cite></p>
<dl class="numbers">{shown}</dl>
{element_table(claim)}
{controls_list(claim)}
</article>"""


def controls_list(claim: Mapping[str, Any]) -> str:
    """Each control with what it measured; one that does not refute is as loud as a refutation."""
    if not controls(claim):
        return f"<p>{mark(False, 'no control can refute the claim')}</p>"
    items = []
    for control in controls(claim):
        good = control["verdict"] == "refuted"
        says = "refutes the claim" if good else "<strong>does not refute the claim</strong>"
        kind, changed = (
            ("Run anew with", control["override"])
            if "override" in control
            else ("Read with", control["arguments"])
        )
        override = "; ".join(f"{name} = {value}" for name, value in fields(changed))
        items.append(
            f"<li>{mark(good, '')}{kind} <code>{text(override)}</code> it {says}"
            f" (measured: {numbers(control['measured'])}).</li>"
        )
    return f'<ul class="controls">{"".join(items)}</ul>'


def element_table(claim: Mapping[str, Any]) -> str:
    """Of a claim about many numbers every one, with its own bound."""
    measured = np.asarray(claim["measured"], dtype=object)
    if measured.size <= FEW:
        return ""
    low, high, published, reference = (
        np.broadcast_to(np.asarray(value, dtype=object), measured.shape)
        if _fits(value, measured.shape)
        else np.full(measured.shape, None)
        for value in (*claim["bound"], claim["published"], claim["reference"])
    )
    rows = []
    for place, value in np.ndenumerate(measured):
        inside = value is not None and _within(low[place], value, high[place])
        beside = [_or_open(published[place]), _or_open(reference[place])]
        cells = [", ".join(str(i) for i in place), *beside, number(value)]
        cells += [_or_open(low[place]), _or_open(high[place])]
        cells.append(mark(inside, "inside" if inside else "outside"))
        rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    names = ("Place", "Published", "Reference", "Measured", "Lowest", "Highest", "Bound")
    head = "".join(f'<th scope="col">{name}</th>' for name in names)
    return f"""
<details><summary>All {measured.size} numbers</summary>
<div class="scroll" tabindex="0" role="region" aria-label="All numbers of the claim">
<table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div></details>"""


def _fits(value: Any, shape: tuple[int, ...]) -> bool:
    try:
        np.broadcast_to(np.asarray(value, dtype=object), shape)
    except ValueError:
        return False
    return True


def _within(low: float | None, value: float, high: float | None) -> bool:
    return (-math.inf if low is None else low) <= value <= (math.inf if high is None else high)


def _or_none(value: Any) -> str:
    return "—" if value is None else numbers(value)


def _or_open(value: float | None) -> str:
    return "—" if value is None else number(value)


def claims_table(runs: list[Run]) -> str:
    """Every claim in one table; on a narrow screen each is a card."""
    columns = ("Claim", "Source", "Published", "Reference", "Measured", "Bound", "Verdict",
               "Controls")  # fmt: skip
    head = "".join(f'<th role="columnheader" scope="col">{name}</th>' for name in columns)
    groups = []
    for run in runs:
        if not run.claims:
            continue
        rows = "".join(claims_row(run, claim, columns) for claim in run.claims)
        groups.append(
            f'<tbody role="rowgroup"><tr role="row"><th role="rowheader" scope="rowgroup"'
            f' colspan="{len(columns)}"><a href="#{anchor(run.experiment)}">{text(run.title)}</a>'
            f" <small>{text(words(run.area))}</small></th></tr>{rows}</tbody>"
        )
    return f"""
<section id="claims"><h2>All claims</h2>
<table class="claims" role="table"><thead role="rowgroup"><tr role="row">{head}</tr></thead>
{"".join(groups)}</table></section>"""


def claims_row(run: Run, claim: Mapping[str, Any], columns: tuple[str, ...]) -> str:
    """A claim in short."""
    where = anchor("claim", run.experiment, claim["name"])
    cells = (
        f'<a href="#{where}">{text(words(claim["name"]))}</a>',
        prose(claim["source"]),
        _or_none(claim["published"]),
        _or_none(claim["reference"]),
        numbers(claim["measured"]),
        bound(*claim["bound"]),
        verdict(claim),
        controls_in_short(claim),
    )
    cells = "".join(
        f'<td role="cell" data-label="{name}"><div>{cell}</div></td>'
        for name, cell in zip(columns, cells, strict=True)
    )
    return f'<tr role="row" class="is-{"bad" if problem(claim) else "good"}">{cells}</tr>'


def problems(runs: list[Run]) -> str:
    """The claims that do not stand, first of all."""
    cards = [
        f'<p class="of"><a href="#{anchor(run.experiment)}">{text(run.title)}</a></p>'
        + claim_card(run, claim, 3, anchor("problem", run.experiment, claim["name"]))
        for run in runs
        for claim in run.claims
        if problem(claim)
    ]
    if not cards:
        return ""
    return f"""
<section id="problems"><h2>What does not hold</h2>
<p>Claims that are refuted, and claims that a control should refute and does not.</p>
{"".join(cards)}</section>"""


# ------------------------------------------------------------------------------------- figures


def picture(png: bytes, alt: str) -> str:
    """An image within the page, with its size so that nothing moves while it loads."""
    width, height = Image.open(io.BytesIO(png)).size
    data = base64.b64encode(png).decode()
    return (
        f'<img src="data:image/png;base64,{data}" alt="{text(alt)}"'
        f' width="{width}" height="{height}">'
    )


def thumbnail(png: bytes) -> bytes:
    """A small copy."""
    image = Image.open(io.BytesIO(png)).convert("RGB")
    image.thumbnail(THUMBNAIL, Image.Resampling.LANCZOS)
    small = io.BytesIO()
    image.quantize(128).save(small, "PNG", optimize=True)
    return small.getvalue()


def gallery(runs: list[Run]) -> str:
    """Every figure, small, linked to where it is large."""
    items = [
        f'<li><a href="#{anchor("figure", run.experiment, figure.name)}">'
        + picture(thumbnail(figure.png), "")
        + f"<span><b>{text(run.title)}</b><br>{text(words(figure.name))}</span></a></li>"
        for run in runs
        for figure in run.figures
    ]
    if not items:
        return ""
    return f"""
<section id="gallery"><h2>Gallery</h2><ul class="gallery">{"".join(items)}</ul></section>"""


def figure_block(run: Run, figure: Figure) -> str:
    """A figure with its caption."""
    alt = f"{run.title}: {words(figure.name).lower()}"
    return f"""
<figure id="{anchor("figure", run.experiment, figure.name)}">{picture(figure.png, alt)}
<figcaption><b>{text(words(figure.name))}.</b> {prose(figure.caption)}</figcaption></figure>"""


# --------------------------------------------------------------------------------- experiments


def purpose(experiment: str) -> str:
    """The first paragraph of the config's docstring, read without running the file."""
    path = records.ROOT / "configs" / f"{experiment}.py"
    if not path.is_file():
        return ""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return " ".join(docstring.partition("\n\n")[0].split())


def facts(run: Run) -> list[tuple[str, str]]:
    """How it was run: `(name, HTML)`; what is not known is left out."""
    config, made = run.config, run.environment
    found = [("Command", f"<code>{text(made['command'])}</code>")] if "command" in made else []
    axes = [
        f"<code>{text(name)}</code> {text(sequence(values))} <small>({len(values)})</small>"
        for name, values in config.get("sweep", {}).items()
    ]
    if "sweep" in made:
        points, programs = made["sweep"]["points"], made["sweep"]["programs"]
        axes.append(f"{count(points, 'point')} in {count(programs, 'compiled program')}")
    found.append(("Sweep", "<br>".join(axes)))
    if "seconds" in made:
        total, compiling, running = (made["seconds"][name] for name in ("total", "compile", "run"))
        parts = f"compiling {duration(compiling)}, running {duration(running)}"
        found.append(("Time", f"{duration(total)}: {parts}"))
    if "devices" in made:
        found.append(("Devices", text(devices(made["devices"]))))
    scale = f"{config.get('scale', 'unknown')} scale, {config.get('precision', 'unknown')}"
    found.append(("Numbers", text(scale)))
    if "versions" in made:
        versions = ", ".join(f"{name} {version}" for name, version in made["versions"].items())
        found.append(("Versions", text(versions)))
    found.append(("Commit", f"<code>{text(made.get('commit') or 'unknown')}</code>"))
    if "started" in made:
        found.append(("Started", f"<time>{text(made['started'])}</time>"))
    return [(name, value) for name, value in found if value]


def devices(found: Mapping[str, Any]) -> str:
    """`2 cpu devices, 1 process`."""
    kind = f" ({found['kind']})" if found["kind"] != found["platform"] else ""
    processes = count(found["processes"], "process")
    return f"{count(found['count'], found['platform'] + ' device')}{kind}, {processes}"


def experiment_block(run: Run) -> str:
    """Everything about one experiment."""
    name = anchor(run.experiment)
    parts = []
    if run.figures:
        figures = "".join(figure_block(run, figure) for figure in run.figures)
        parts.append(f"<h4>Figures</h4>{figures}")
    if run.claims:
        cards = "".join(
            claim_card(run, claim, 5, anchor("claim", run.experiment, claim["name"]))
            for claim in run.claims
        )
        parts.append(f"<h4>Claims</h4>{cards}")
    known = "".join(f"<div><dt>{key}</dt><dd>{value}</dd></div>" for key, value in facts(run))
    config = "\n".join(f"{text(path)} = {text(value)}" for path, value in fields(run.config))
    return f"""
<section class="experiment" id="{name}">
<h3>{text(run.title)}</h3>
<p class="purpose">{prose(purpose(run.experiment))}</p>
{"".join(parts)}
<h4>How it was run</h4>
<dl class="facts">{known}</dl>
<details><summary>The whole config</summary><pre><code>{config}</code></pre></details>
</section>"""


def by_area(runs: list[Run]) -> dict[str, list[Run]]:
    """Runs by the area of their experiment."""
    areas: dict[str, list[Run]] = {}
    for run in runs:
        areas.setdefault(run.area, []).append(run)
    return areas


def area_block(area: str, runs: list[Run]) -> str:
    """The experiments of an area."""
    blocks = "".join(map(experiment_block, runs))
    return f'<section id="{anchor("area", area)}"><h2>{text(words(area))}</h2>{blocks}</section>'


def contents(runs: list[Run]) -> str:
    """Areas and their experiments, each with how its claims fared."""
    areas = []
    for area, members in by_area(runs).items():
        items = []
        for run in members:
            bad = sum(map(problem, run.claims))
            good = mark(not bad, f"{len(run.claims) - bad} of {count(len(run.claims), 'claim')}")
            items.append(
                f'<li><a href="#{anchor(run.experiment)}">{text(run.title)}</a> <small>'
                f"{good if run.claims else 'no claims'}</small></li>"
            )
        areas.append(f"<li><b>{text(words(area))}</b><ul>{''.join(items)}</ul></li>")
    return f"""
<nav aria-labelledby="contents"><h2 id="contents">Contents</h2>
<ul class="contents">{"".join(areas)}</ul></nav>"""


# ----------------------------------------------------------------------------------- the page


def header(runs: list[Run]) -> str:
    """The title, what came out in a sentence, and the totals."""
    claims = [claim for run in runs for claim in run.claims]
    false = sum(map(refuted, claims))
    bad = sum(len(failing(claim)) for claim in claims)
    without = sum(not controls(claim) for claim in claims)
    seconds = sum(run.environment.get("seconds", {}).get("total", 0) for run in runs)
    troubles = [
        f"{count(false, 'claim')} {'is' if false == 1 else 'are'} refuted" * bool(false),
        f"{count(bad, 'control')} {'does' if bad == 1 else 'do'} not refute" * bool(bad),
        f"{count(without, 'claim')} {'has' if without == 1 else 'have'} no control" * bool(without),
    ]
    lead = "; ".join(filter(None, troubles))
    lead = f'<a href="#problems">{mark(False, lead)}</a>' if lead else ALL_WELL * bool(claims)
    totals = (
        ("Experiments", len(runs), True),
        ("Claims supported", len(claims) - false, True),
        ("Claims refuted", false, not false),
        ("Claims with reruns", sum(bool(claim["reruns"]) for claim in claims), True),
        ("Reruns", sum(len(claim["reruns"]) for claim in claims), True),
        ("Wrong readings", sum(len(claim["wrong"]) for claim in claims), True),
        ("Failing controls", bad + without, not bad + without),
        ("Time", duration(seconds), True),
    )
    cells = "".join(
        f'<div class="{"" if good else "bad"}"><dt>{name}</dt><dd>{value}</dd></div>'
        for name, value, good in totals
    )
    return f"""
<header><h1>Divergences in JAX: what was measured</h1>
<p class="purpose">Every experiment of this repository, with its figures, its claims beside
published numbers (printed in the paper or by its code) and reference ones (recomputed
independently), and the controls that have to refute each claim: runs of the wrong thing, and wrong
readings of the right one.</p>
<p class="lead">{lead}</p>
<dl class="totals">{cells}</dl></header>"""


ALL_WELL = mark(True, "Every claim is supported, and every control refutes its claim.")


def page(runs: list[Run]) -> str:
    """The whole page."""
    areas = "".join(area_block(area, members) for area, members in by_area(runs).items())
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>jdiv: what was measured</title>
<style>{STYLE.read_text(encoding="utf-8")}</style>
</head>
<body>
{header(runs)}
<main>
{problems(runs)}
{contents(runs)}
{gallery(runs)}
{claims_table(runs)}
{areas}
</main>
</body>
</html>
"""
