"""The report: one HTML page, with nothing outside of it, that holds all figures and claims."""

import ast
import base64
import io
import itertools
import os
import pathlib
import urllib.parse
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from experiments.lab import claim_cards as cards
from experiments.lab import records
from experiments.lab.claim_cards import mark
from experiments.lab.claims import controls
from experiments.lab.html import anchor, count, duration, fields, prose, sequence, text, words

THUMBNAIL = (480, 360)
STYLE = pathlib.Path(__file__).with_name("report.css")
SCRIPT = pathlib.Path(__file__).with_name("report.js")


class Figure(NamedTuple):
    """A figure of a run; `links` are its files by what they are called, as the page sees them."""

    name: str
    caption: str
    png: bytes
    links: Mapping[str, str]


class Run(NamedTuple):
    """What a run's folder holds; `links` are its files and its source by their names."""

    config: Mapping[str, Any]
    environment: Mapping[str, Any]
    claims: list[cards.Entry]
    figures: list[Figure]
    links: Mapping[str, str]

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
    records.write_text(path, page(read(runs, folder)))
    return path


def read(folders: Iterable[pathlib.Path], start: pathlib.Path) -> list[Run]:
    """The runs, those of an area together, areas in the order in which they first appear.

    Links are from the folder `start`, where the page is.
    """
    runs = []
    for folder in folders:
        config, environment, claims = (
            records.Folder(folder).read(name) for name in ("config", "environment", "claims")
        )
        links = linked([folder / name for name in FILES], start)
        links |= sources(config["experiment"], start)
        figures = _figures(folder, start)
        runs.append(Run(config, environment or {}, claims or [], figures, links))
    areas = [run.area for run in runs]
    return sorted(runs, key=lambda run: areas.index(run.area))


FILES = ("results.nc", "claims.json", "config.json", "environment.json", "metrics.jsonl")


def _figures(folder: pathlib.Path, start: pathlib.Path) -> list[Figure]:
    captions = records.Folder(folder / "figures").read("captions") or {}
    found = []
    for name, caption in captions.items():
        stem = folder / "figures" / name
        files = [stem.with_name(f"{name}.{kind}") for kind in ("png", "pdf")]
        found.append(Figure(name, caption, files[0].read_bytes(), linked(files, start)))
    return found


def linked(files: Iterable[pathlib.Path], start: pathlib.Path) -> dict[str, str]:
    """Addresses by file name, of the files that are there."""
    return {file.name: address(file, start) for file in files if file.exists()}


def sources(experiment: str, start: pathlib.Path) -> dict[str, str]:
    """Addresses of config and source of an experiment of this repository, by their paths.

    A page in a bucket has no way to them.
    """
    if "://" in os.fspath(start):
        return {}
    paths = [f"{kind}/{experiment}.py" for kind in ("configs", "experiments")]
    there = {path: records.ROOT / path for path in paths}
    return {path: address(file, start) for path, file in there.items() if file.is_file()}


def address(path: pathlib.Path, start: pathlib.Path) -> str:
    """The relative address of a file for a page in the folder `start`."""
    return urllib.parse.quote(
        os.path.relpath(os.fspath(path), os.fspath(start)).replace(os.sep, "/")
    )


# -------------------------------------------------------------------------------------- claims


def claims_table(runs: list[Run]) -> str:
    """Every claim in one table; on a narrow screen each is a card."""
    head = "".join(f'<th role="columnheader" scope="col">{name}</th>' for name in cards.COLUMNS)
    groups = []
    for run in runs:
        if not run.claims:
            continue
        rows = "".join(
            cards.row(claim, run.area, anchor("claim", run.experiment, claim["name"]))
            for claim in run.claims
        )
        groups.append(
            f'<tbody role="rowgroup"{cards.attributes(run.area, run.claims)}><tr role="row">'
            f'<th role="rowheader" scope="rowgroup" colspan="{len(cards.COLUMNS)}">'
            f'<a href="#{anchor(run.experiment)}">{text(run.title)}</a>'
            f" <small>{text(words(run.area))}</small></th></tr>{rows}</tbody>"
        )
    return f"""
<section id="claims"><h2>All claims</h2>
<table class="claims" role="table"><thead role="rowgroup"><tr role="row">{head}</tr></thead>
{"".join(groups)}</table></section>"""


def problems(runs: list[Run]) -> str:
    """The claims that do not stand, first of all."""
    found = [
        f'<p class="of"{cards.attributes(run.area, [claim])}>'
        f'<a href="#{anchor(run.experiment)}">{text(run.title)}</a></p>'
        + cards.card(claim, run.area, 3, anchor("problem", run.experiment, claim["name"]))
        for run in runs
        for claim in run.claims
        if cards.problem(claim)
    ]
    if not found:
        return ""
    return f"""
<section id="problems"><h2>What does not hold</h2>
<p>Claims that are refuted, and claims that a control should refute and does not.</p>
{"".join(found)}</section>"""


# ------------------------------------------------------------------------------------- figures


def picture(png: bytes, alt: str) -> str:
    """An image within the page, with its size so that nothing moves while it loads."""
    width, height = Image.open(io.BytesIO(png)).size
    data = base64.b64encode(png).decode()
    return (
        f'<img src="data:image/png;base64,{data}" alt="{text(alt)}"'
        f' width="{width}" height="{height}" style="--pixels: {width}">'
    )


def thumbnail(png: bytes) -> bytes:
    """A small copy; of panels side by side, which would be too small to read, the first."""
    image = Image.open(io.BytesIO(png)).convert("RGB")
    if image.width > 1.9 * image.height:
        image = image.crop((0, 0, first_panel(image), image.height))
    image.thumbnail(THUMBNAIL, Image.Resampling.LANCZOS)
    small = io.BytesIO()
    image.quantize(128).save(small, "PNG", optimize=True)
    return small.getvalue()


def first_panel(image: Image.Image) -> int:
    """Where the first panel ends: the middle of the widest white gap near a width of 4 to 3."""
    usual = image.height * THUMBNAIL[0] // THUMBNAIL[1]
    white = np.asarray(image.convert("L")).min(axis=0) > 250
    near = itertools.groupby(range(usual // 2, min(usual * 5 // 4, image.width)), white.item)
    gaps = [list(columns) for blank, columns in near if blank]
    return int(np.mean(max(gaps, key=len))) if gaps else usual


def gallery(runs: list[Run]) -> str:
    """Every figure, small, linked to where it is large, area by area."""
    blocks = []
    for area, members in by_area(runs).items():
        items = [
            f"<li{cards.attributes(area, run.claims)}>"
            f'<a href="#{anchor("figure", run.experiment, figure.name)}">'
            + picture(thumbnail(figure.png), "")
            + f"<span>{named(run, figure)}</span></a></li>"
            for run in members
            for figure in run.figures
        ]
        if items:
            shown = cards.attributes(area, [claim for run in members for claim in run.claims])
            blocks.append(
                f'<h3{shown}>{text(words(area))}</h3><ul class="gallery"{shown}>'
                f"{''.join(items)}</ul>"
            )
    if not blocks:
        return ""
    return f"""
<section id="gallery"><h2>Gallery</h2>{"".join(blocks)}</section>"""


def named(run: Run, figure: Figure) -> str:
    """Experiment and figure, once if they are called the same."""
    own = words(figure.name)
    return f"<b>{text(run.title)}</b>" + ("" if own == run.title else f"<br>{text(own)}")


def figure_block(run: Run, figure: Figure) -> str:
    """A figure with its caption and its files; a click on it enlarges it, or opens its file."""
    alt = f"{run.title}: {words(figure.name).lower()}"
    image = picture(figure.png, alt)
    if f"{figure.name}.png" in figure.links:
        image = f'<a class="enlarge" href="{figure.links[f"{figure.name}.png"]}">{image}</a>'
    files = " · ".join(
        f'<a href="{link}">{text(name.rpartition(".")[2].upper())}</a>'
        for name, link in figure.links.items()
    )
    return f"""
<figure id="{anchor("figure", run.experiment, figure.name)}">{image}
<figcaption><b>{text(words(figure.name))}.</b> {prose(figure.caption)} {files}</figcaption>
</figure>"""


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
    found += [("Raised", mark(False, text(error))) for error in made.get("raised", [])]
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
    files = [f'<a href="{link}">{text(name)}</a>' for name, link in run.links.items()]
    found.append(("Files", " · ".join(files)))
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
        every = "".join(
            cards.card(claim, run.area, 5, anchor("claim", run.experiment, claim["name"]))
            for claim in run.claims
        )
        parts.append(f"<h4>Claims</h4>{every}")
    known = "".join(f"<div><dt>{key}</dt><dd>{value}</dd></div>" for key, value in facts(run))
    config = "\n".join(f"{text(path)} = {text(value)}" for path, value in fields(run.config))
    return f"""
<section class="experiment" id="{name}"{cards.attributes(run.area, run.claims)}>
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
    shown = cards.attributes(area, [claim for run in runs for claim in run.claims])
    name = anchor("area", area)
    return f'<section id="{name}"{shown}><h2>{text(words(area))}</h2>{blocks}</section>'


def contents(runs: list[Run]) -> str:
    """Areas and their experiments, each with how its claims fared."""
    areas = []
    for area, members in by_area(runs).items():
        items = [
            f'<li><a href="#{anchor(run.experiment)}">{text(run.title)}</a>'
            f" <small>{cards.summary(run.claims)}</small></li>"
            for run in members
        ]
        title = f'<a href="#{anchor("area", area)}">{text(words(area))}</a>'
        areas.append(f"<li><b>{title}</b><ul>{''.join(items)}</ul></li>")
    return f"""
<nav aria-labelledby="contents"><h2 id="contents">Contents</h2>
<ul class="contents">{"".join(areas)}</ul></nav>"""


def bar(runs: list[Run]) -> str:
    """What stays at the top of the window: ways back, and the filters, which the script shows."""
    claims = [claim for run in runs for claim in run.claims]
    found = Counter(map(cards.kind, claims))
    verdicts = [(cards.value(kind), f"{kind} ({found[kind]})") for kind in cards.KINDS]
    areas = [(area, words(area)) for area in by_area(runs)]
    choices = "".join(
        f'<label>{name} <select><option value="">all</option>'
        + "".join(f'<option value="{text(key)}">{text(label)}</option>' for key, label in options)
        + "</select></label>"
        for name, options in (("Area", areas), ("Verdict", verdicts))
    )
    ways = "".join(
        f'<a href="#{target}">{target.capitalize()}</a>'
        for target in ("contents", *["gallery"] * any(run.figures for run in runs), "claims")
    )
    return f"""
<nav class="bar" aria-label="Page">{ways}
<span id="filters" hidden>{choices} <output>{count(len(claims), "claim")}</output></span></nav>"""


# ----------------------------------------------------------------------------------- the page


def lead(claims: list[cards.Entry]) -> str:
    """What came out, in a sentence."""
    found = Counter(map(cards.kind, claims))
    false = found[cards.REFUTED]
    bad = sum(len(cards.failing(claim)) for claim in claims)
    tested = [claim for claim in claims if cards.kind(claim) != cards.UNTESTED]
    without = sum(not controls(claim) for claim in tested)
    troubles = [
        f"{count(false, 'claim')} {'is' if false == 1 else 'are'} refuted" * bool(false),
        f"{count(bad, 'control')} {'does' if bad == 1 else 'do'} not refute" * bool(bad),
        f"{count(without, 'claim')} {'has' if without == 1 else 'have'} no control" * bool(without),
    ]
    said = "; ".join(filter(None, troubles))
    left = len(claims) - len(tested)
    rest = f" {count(left, 'claim')} {'was' if left == 1 else 'were'} not tested." * bool(left)
    if said:
        return f'<a href="#problems">{mark(False, said)}</a>{rest}'
    if not tested:
        return rest.strip()
    which = "Every claim that was tested" if left else "Every claim"
    return mark(True, f"{which} is supported, and every control refutes its claim.") + rest


def header(runs: list[Run]) -> str:
    """The title, what came out in a sentence, and the totals."""
    claims = [claim for run in runs for claim in run.claims]
    verdicts = Counter(claim["verdict"] for claim in claims)
    false, left = verdicts[cards.REFUTED], verdicts[cards.UNTESTED]
    bad = sum(len(cards.failing(claim)) or not controls(claim) for claim in claims) - left
    seconds = sum(run.environment.get("seconds", {}).get("total", 0) for run in runs)
    totals = (
        ("Experiments", len(runs), True),
        ("Claims supported", verdicts[cards.SUPPORTED], True),
        ("Claims refuted", false, not false),
        *[("Claims not tested", left, True)] * bool(left),
        ("Claims with reruns", sum(bool(claim["reruns"]) for claim in claims), True),
        ("Reruns", sum(len(claim["reruns"]) for claim in claims), True),
        ("Wrong readings", sum(len(claim["wrong"]) for claim in claims), True),
        ("Failing controls", bad, not bad),
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
<p class="lead">{lead(claims)}</p>
<dl class="totals">{cells}</dl></header>"""


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
{bar(runs)}
{header(runs)}
<main>
{problems(runs)}
{contents(runs)}
{gallery(runs)}
{claims_table(runs)}
{areas}
</main>
<dialog aria-label="Enlarged figure"></dialog>
<script>{SCRIPT.read_text(encoding="utf-8")}</script>
</body>
</html>
"""
