"""The report: one HTML page, with nothing outside of it, that holds all figures and claims."""

import ast
import base64
import html
import io
import json
import math
import pathlib
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from experiments.lab import records

FEW = 6
"""As many numbers are listed in a line; of more there is the range, and a table."""
THUMBNAIL = (480, 360)


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


# ------------------------------------------------------------------------------------- text


def text(value: Any) -> str:
    """Escaped for an element or an attribute."""
    return html.escape(str(value))


def prose(value: str) -> str:
    """Escaped, with what stands in backticks as code."""
    return re.sub(r"`+([^`]+)`+", r"<code>\1</code>", text(value))


UPPER = ("kl", "js", "tv", "dpo", "ipo", "ppo", "mdp", "dro", "gio", "jax")
WRITTEN = {name: name.upper() for name in UPPER} | {"chi2": "χ²", "knn": "k-NN"}
WRITTEN |= {name: name for name in ("bfloat16", "float32", "float64")}


def words(name: str) -> str:
    """A name as a title.

    >>> words("nearest_neighbours"), words("reverse-kl-seeks-modes")
    ('Nearest neighbours', 'Reverse KL seeks modes')
    """
    first, *others = [WRITTEN.get(word, word) for word in re.split(r"[_ -]+", name)]
    return " ".join(
        [first if first in WRITTEN.values() else first[:1].upper() + first[1:], *others]
    )


def anchor(*names: str) -> str:
    """An id.

    >>> anchor("claim", "estimation/atlas", "a <b>")
    'claim-estimation-atlas-a-b'
    """
    return re.sub(r"\W+", "-", "-".join(names)).strip("-")


def count(number: int, noun: str) -> str:
    """`1 claim`, `2 claims`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def duration(seconds: float) -> str:
    """A time as one says it.

    >>> duration(0.42), duration(63.2), duration(3723)
    ('0.4 s', '1 min 3 s', '1 h 2 min')
    """
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, left = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {left} s"


# ---------------------------------------------------------------------------------- numbers


def number(value: float | None) -> str:
    """Four significant digits, whole numbers in full; JSON has null for infinity and NaN.

    >>> number(-0.123456), number(250000.0), number(1.5e-9)
    ('−0.1235', '250000', '1.5 × 10<sup>−9</sup>')
    """
    if value is None:
        return "not finite"
    if float(value).is_integer() and abs(value) < 1e6:
        return f"{value:.0f}".replace("-", "−")
    digits, _, power = f"{value:.4g}".replace("-", "−").partition("e")
    if not power:
        return digits
    return f"{digits} × 10<sup>{power[0].strip('+')}{power[1:].lstrip('0')}</sup>"


def unbroken(value: float | None) -> str:
    """A number that stays on one line."""
    return f'<span class="n">{number(value)}</span>'


def flat(value: Any) -> list[float | None]:
    """The numbers of a nested list, or of one number."""
    return [x for item in value for x in flat(item)] if isinstance(value, list) else [value]


def numbers(value: Any) -> str:
    """A number, a few of them, or how many there are and their range."""
    every = flat(value)
    if len(every) <= FEW:
        return ", ".join(map(unbroken, every))
    finite = [x for x in every if x is not None]
    if not finite:
        return f"{len(every)} numbers, none finite"
    span = f"{unbroken(min(finite))} to {unbroken(max(finite))}"
    lost = f", {len(every) - len(finite)} not finite" if len(finite) < len(every) else ""
    return f"{len(every)} numbers, {span}{lost}"


def bound(low: Any, high: Any) -> str:
    """The bound in words; an end that is open is null."""
    open_low, open_high = (all(x is None for x in flat(end)) for end in (low, high))
    if open_low and open_high:
        return "any number"
    if open_high:
        return f"at least {numbers(low)}"
    if open_low:
        return f"at most {numbers(high)}"
    if low == high:
        return f"exactly {numbers(low)}"
    if len(flat(low)) == len(flat(high)) == 1:
        return f"{numbers(low)} to {numbers(high)}"
    return f"from {numbers(low)}<br>to {numbers(high)}"


def sequence(values: list[Any]) -> str:
    """Labels of an axis; of many the first and the last."""
    shown = [value if isinstance(value, str) else json.dumps(value) for value in values]
    return ", ".join(shown if len(shown) <= 8 else [*shown[:3], "…", shown[-1]])


def fields(config: Mapping[str, Any], path: str = "") -> Iterable[tuple[str, str]]:
    """`(dotted path, value)` of every field, as one would write it on the command line."""
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from fields(value, f"{path}{name}.")
        elif isinstance(value, list):
            yield path + name, ", ".join(map(str, value))
        else:
            yield path + name, str(value)


# ----------------------------------------------------------------------------------- verdicts


def failing(claim: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The controls that do not refute the claim."""
    return [control for control in claim["controls"] if control["verdict"] != "refuted"]


def refuted(claim: Mapping[str, Any]) -> bool:
    """Whether the claim does not hold."""
    return claim["verdict"] != "supported"


def problem(claim: Mapping[str, Any]) -> bool:
    """Whether it is refuted, or no control can refute it."""
    return refuted(claim) or bool(failing(claim)) or not claim["controls"]


def mark(good: bool, label: str) -> str:
    """A verdict: a sign, a word, a colour."""
    kind, sign = ("good", "✓") if good else ("bad", "✗")
    return f'<span class="{kind}"><span aria-hidden="true">{sign}</span> {label}</span>'


def verdict(claim: Mapping[str, Any]) -> str:
    """`✓ supported`."""
    return mark(not refuted(claim), text(claim["verdict"]))


def standing(claim: Mapping[str, Any]) -> str:
    """Verdict and controls together: what is supported and cannot be refuted does not stand."""
    if refuted(claim) or not problem(claim):
        return verdict(claim)
    why = "a control does not refute it" if claim["controls"] else "it has no control"
    return mark(False, f"{text(claim['verdict'])}, but {why}")


def controls_in_short(claim: Mapping[str, Any]) -> str:
    """`✓ 2 of 2 refute`."""
    every, bad = len(claim["controls"]), len(failing(claim))
    if not every:
        return mark(False, "no control")
    if bad:
        return mark(False, f"{bad} of {every} {'does' if bad == 1 else 'do'} not refute")
    return mark(True, f"{every} of {every} refute")


# -------------------------------------------------------------------------------------- claims


def claim_card(run: Run, claim: Mapping[str, Any], level: int, where: str) -> str:
    """A claim in full: statement, numbers, controls. `where` is its id."""
    low, high = claim["bound"]
    published = claim["published"]
    cells = [("Measured", numbers(claim["measured"])), ("Bound", bound(low, high))]
    cells.append(("Published", "—" if published is None else numbers(published)))
    shown = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in cells)
    kind = "bad" if problem(claim) else "good"
    return f"""
<article class="claim is-{kind}" id="{where}">
<h{level}>{text(words(claim["name"]))} {standing(claim)}</h{level}>
<p>{prose(claim["statement"])} <cite>{prose(claim["source"])}</cite></p>
<dl class="numbers">{shown}</dl>
{element_table(claim)}
{controls(claim)}
</article>"""


def controls(claim: Mapping[str, Any]) -> str:
    """Each override with what it measured; one that does not refute is as loud as a refutation."""
    if not claim["controls"]:
        return f"<p>{mark(False, 'no control can refute the claim')}</p>"
    items = []
    for control in claim["controls"]:
        good = control["verdict"] == "refuted"
        says = "refutes the claim" if good else "<strong>does not refute the claim</strong>"
        override = "; ".join(f"{name} = {value}" for name, value in fields(control["override"]))
        items.append(
            f"<li>{mark(good, '')}The control <code>{text(override)}</code> {says}"
            f" (measured: {numbers(control['measured'])}).</li>"
        )
    return f'<ul class="controls">{"".join(items)}</ul>'


def element_table(claim: Mapping[str, Any]) -> str:
    """Of a claim about many numbers every one, with its own bound."""
    measured = np.asarray(claim["measured"], dtype=object)
    if measured.size <= FEW:
        return ""
    low, high, published = (
        np.broadcast_to(np.asarray(value, dtype=object), measured.shape)
        if _fits(value, measured.shape)
        else np.full(measured.shape, None)
        for value in (*claim["bound"], claim["published"])
    )
    rows = []
    for place, value in np.ndenumerate(measured):
        inside = value is not None and _within(low[place], value, high[place])
        cells = [", ".join(str(i) for i in place), _or_open(published[place]), number(value)]
        cells += [_or_open(low[place]), _or_open(high[place])]
        cells.append(mark(inside, "inside" if inside else "outside"))
        rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    names = ("Place", "Published", "Measured", "Lowest", "Highest", "Bound")
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


def _or_open(value: float | None) -> str:
    return "—" if value is None else number(value)


def claims_table(runs: list[Run]) -> str:
    """Every claim in one table; on a narrow screen each is a card."""
    columns = ("Claim", "Source", "Published", "Measured", "Bound", "Verdict", "Controls")
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
    published = claim["published"]
    cells = (
        f'<a href="#{where}">{text(words(claim["name"]))}</a>',
        prose(claim["source"]),
        "—" if published is None else numbers(published),
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
    processes = count(found["processes"], "process").replace("processs", "processes")
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
    without = sum(not claim["controls"] for claim in claims)
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
        ("Failing controls", bad + without, not bad + without),
        ("Time", duration(seconds), True),
    )
    cells = "".join(
        f'<div class="{"" if good else "bad"}"><dt>{name}</dt><dd>{value}</dd></div>'
        for name, value, good in totals
    )
    return f"""
<header><h1>Divergences in JAX: what was measured</h1>
<p class="purpose">Every experiment of this repository, with its figures, its claims beside the
published numbers, and the controls that have to refute each claim.</p>
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
<style>{STYLE}</style>
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


STYLE = """
:root {
  color-scheme: light dark;
  --paper: #ffffff; --raised: #f6f5f2; --ink: #1c1c1a; --quiet: #5b5a55; --line: #dcdad4;
  --link: #0b4f8a; --good: #17663a; --bad: #a8201a; --bad-paper: #fbeeec;
  --serif: Charter, "Bitstream Charter", "Iowan Old Style", "Source Serif 4", Georgia, serif;
  --sans: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  --mono: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace;
}
@media screen and (prefers-color-scheme: dark) {
  :root {
    --paper: #15171a; --raised: #1e2125; --ink: #e6e4df; --quiet: #a9a8a2; --line: #383b40;
    --link: #8fc1f0; --good: #7ccf9b; --bad: #ff9a8f; --bad-paper: #2c1c1b;
  }
}
@media print { :root { color-scheme: light; } }

* { box-sizing: border-box; }
html { scroll-padding-top: 1rem; -webkit-text-size-adjust: 100%; }
body {
  margin: 0 auto; padding: 0 1.25rem 6rem; max-width: 70rem;
  background: var(--paper); color: var(--ink);
  font: 1.0625rem/1.55 var(--serif); overflow-wrap: anywhere;
}
p, ul, ol, dl, figure, table, pre, details, blockquote { margin: 0 0 1rem; }
p, figcaption { max-width: 42rem; }
a { color: var(--link); text-decoration-thickness: 1px; text-underline-offset: .18em; }
a:hover { text-decoration-thickness: 2px; }
:focus-visible { outline: 2px solid var(--link); outline-offset: 3px; }
code, pre { font: .85em/1.5 var(--mono); }
small, cite, figcaption, th, dt, summary, .of { font-family: var(--sans); }
small, cite { font-size: .8125rem; color: var(--quiet); }
cite { display: block; font-style: normal; }
sup { font-size: .72em; line-height: 0; }

h1, h2, h3, h4, h5 { line-height: 1.2; font-weight: 600; text-wrap: balance; }
h1 { margin: 3.5rem 0 .75rem; font-size: clamp(1.9rem, 1.2rem + 3vw, 2.9rem); }
h1, h2 { letter-spacing: -.012em; }
h2 { margin: 4.5rem 0 1.25rem; font-size: 1.75rem; }
h3 { margin: 3.25rem 0 .5rem; font-size: 1.4rem; }
h4, dt, th { color: var(--quiet); }
h4 { margin: 2.25rem 0 .85rem; font: 600 .8125rem/1.2 var(--sans); letter-spacing: .03em; }
h5, .claim h3 { margin: 0 0 .35rem; font-size: 1.0625rem; }

.purpose { color: var(--quiet); font-size: 1.125rem; }
.lead { margin: 1.75rem 0; font-size: 1.25rem; }
.lead a { color: var(--bad); }
.good { color: var(--good); }
.bad { color: var(--bad); }
.good, .bad { font-family: var(--sans); font-size: .92em; font-weight: 600; }
:is(h3, h5) .good, :is(h3, h5) .bad { font-size: .8125rem; margin-left: .4em; }

.totals, .numbers { display: flex; flex-wrap: wrap; font-variant-numeric: tabular-nums; }
.totals { gap: 1rem 2.75rem; padding: 1.1rem 0; border-block: 1px solid var(--line); }
dt { font-size: .8125rem; }
dd { margin: 0; }
.totals dd { font-size: 1.75rem; line-height: 1.25; }
.totals .bad { font: inherit; }
.totals .bad dt { color: var(--bad); }
.totals .bad dd { font-weight: 700; }

.contents, .contents ul, .gallery, .controls { padding: 0; list-style: none; }
.contents { columns: 20rem; column-gap: 3rem; }
.contents > li { break-inside: avoid; margin-bottom: 1.1rem; }
.contents ul { margin: .2rem 0 0; }
.contents ul li { padding: .16rem 0; }
.contents small { white-space: nowrap; }

.gallery {
  display: grid; grid-template-columns: repeat(auto-fill, minmax(min(14rem, 100%), 1fr));
  gap: 1.5rem 1.25rem;
}
.gallery a { display: block; color: inherit; text-decoration: none; }
.gallery img { width: 100%; aspect-ratio: 4 / 3; object-fit: contain; }
.gallery span { display: block; margin-top: .4rem; font: .8125rem/1.35 var(--sans); }
.gallery a:hover span { text-decoration: underline; }

img { display: block; max-width: 100%; height: auto; }
figure img, .gallery img {
  padding: .5rem; background: #ffffff; border: 1px solid var(--line); border-radius: 3px;
}
figure { margin: 0 0 2.25rem; max-width: 56rem; scroll-margin-top: 1rem; }
figcaption { margin-top: .6rem; font-size: .875rem; line-height: 1.45; color: var(--quiet); }
figcaption b { color: var(--ink); }

table { width: 100%; border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .5rem .9rem .5rem 0; text-align: left; vertical-align: top; }
th { font-size: .8125rem; font-weight: 600; }
td { font-size: .9375rem; line-height: 1.4; border-top: 1px solid var(--line); }
table.claims { table-layout: fixed; }
.claims th:first-child { width: 25%; }
.claims th:nth-child(2) { width: 17%; }
.claims tbody th { padding-top: 1.6rem; font: 600 1.0625rem/1.3 var(--serif); }
.claims tbody th a { color: var(--ink); }
.claims tr.is-bad td { background: var(--bad-paper); }
.claims tr.is-bad td:first-child { box-shadow: inset 3px 0 var(--bad); padding-left: .75rem; }
.n { white-space: nowrap; }
td .good, small .good { font-weight: 400; }
.scroll { overflow-x: auto; }
.scroll td, .scroll th { white-space: nowrap; }
.scroll table { width: auto; }

.claim {
  margin: 0 0 1.5rem; padding: .15rem 0 .15rem 1rem; border-left: 3px solid var(--good);
}
.claim.is-bad {
  padding: .9rem 1rem; border-left-color: var(--bad); background: var(--bad-paper);
}
.claim > :last-child { margin-bottom: 0; }
.numbers { gap: .5rem 2.25rem; margin-bottom: .6rem; }
.controls { font-size: .9375rem; }
.controls li { padding: .1rem 0 .1rem 1.3rem; text-indent: -1.3rem; }
.controls code { text-indent: 0; }
.of { margin: 1.5rem 0 .35rem; font-size: .8125rem; }

.facts { display: grid; gap: .45rem 1.5rem; }
.facts > div { display: grid; grid-template-columns: 6rem minmax(0, 1fr); gap: 0 1rem; }
.facts dt { padding-top: .2rem; }
.facts dd { font-size: .9375rem; }
summary { font-size: .875rem; color: var(--link); cursor: pointer; }
pre {
  margin: .75rem 0 0; padding: .9rem 1rem; background: var(--raised); border-radius: 3px;
  white-space: pre-wrap; overflow-wrap: anywhere;
}
.experiment { padding-bottom: 1rem; }
.experiment + .experiment { border-top: 1px solid var(--line); }

@media (max-width: 56rem) {
  table.claims, .claims tbody, .claims tr, .claims td, .claims tbody th { display: block; }
  .claims thead {
    position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%);
  }
  .claims tr:not(:first-child) {
    margin-bottom: .9rem; padding: .6rem 0; border-top: 1px solid var(--line);
  }
  .claims tbody th, .claims th:first-child { width: auto; }
  .claims td {
    display: grid; grid-template-columns: 6rem minmax(0, 1fr); gap: 0 1rem;
    padding: .15rem 0; border: 0;
  }
  .claims td::before {
    content: attr(data-label); font: .8125rem/1.6 var(--sans); color: var(--quiet);
  }
  .claims tr.is-bad { padding: .75rem; background: var(--bad-paper); }
  .claims tr.is-bad { border-left: 3px solid var(--bad); }
  .claims tr.is-bad td, .claims tr.is-bad td:first-child {
    background: none; box-shadow: none; padding-left: 0;
  }
}
@media (max-width: 40rem) {
  body { font-size: 1rem; }
  h1 { margin-top: 2rem; }
  h2 { margin-top: 3.25rem; }
  .totals { gap: .9rem 2rem; }
  .totals dd { font-size: 1.4rem; }
  .gallery { grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 1rem; }
  .facts > div { grid-template-columns: minmax(0, 1fr); }
}
@media print {
  body { max-width: none; padding: 0; font-size: 10pt; }
  h2, h3, h4, h5 { break-after: avoid; }
  figure, .claim, tr, .gallery li { break-inside: avoid; }
  figure img { max-height: 16cm; width: auto; }
  a { color: inherit; text-decoration: none; }
  details::details-content { content-visibility: visible; display: block; }
}
"""
