"""The report of two made-up runs: whole, self-contained, and legible on every screen."""

import base64
import html
import html.parser
import io
import itertools
import json
import os
import re
import shutil
import subprocess
import urllib.parse

import pytest
from PIL import Image

from experiments.lab import claim_cards, files, records, report
from experiments.lab import html as words

CHROMIUM = shutil.which("chromium")
WORD = "an_unbroken_word_" * 12
AWKWARD = "a <b>bold</b> & \"quoted\" 'claim' </style><script>alert(1)</script>"


def png(width, height, colour):
    file = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(file, "PNG")
    return file.getvalue()


def claim(name, **changes):
    entry = {
        "name": name,
        "source": "Wang, Kulkarni and Verdu 2009, equation 5",
        "statement": f"The estimate of {name} is within four standard errors.",
        "published": 0.472,
        "reference": None,
        "measured": 0.4718264,
        "bound": [0.44, 0.5],
        "verdict": "supported",
        "reruns": [{"override": {"direction": "reverse"}, "measured": 9.1, "verdict": "refuted"}],
        "wrong": [{"arguments": {"k": 3}, "measured": 9.1, "verdict": "refuted"}],
    }
    return entry | changes


CLAIMS = {
    "estimation/two_words": [
        claim("simple"),
        claim("wide", measured=[[0.1 * i, 2e-9 * i] for i in range(40)], bound=[None, [4.0, 1.0]]),
        claim("few", measured=[0.5, -0.25, None], bound=[0.0, None], verdict="refuted"),
        claim("zero", measured=0.0, bound=[0.0, 0.0], published=None),
    ],
    "alignment/" + WORD: [
        claim(AWKWARD, statement=AWKWARD + WORD, source=WORD, bound=[None, 0.5]),
        claim(
            "toothless",
            reruns=[
                {"override": {"reference": WORD}, "measured": [0.1] * 9, "verdict": "supported"},
                {"override": {"sweep.seed": [0, 1]}, "measured": None, "verdict": "refuted"},
            ],
            wrong=[],
        ),
        claim("without", reruns=[], wrong=[]),
        claim(
            "untested",
            reruns=[],
            wrong=[],
            verdict="not tested",
            measured=None,
            bound=[None, None],
            reason="axis beta lacks 0.5",
        ),
    ],
}
FIGURES = {"bias_by_dimension": (1500, 900), "tall": (400, 1200), "small": (120, 90)}


def make_run(folder, experiment, claims):
    """A run's folder as the engine leaves it."""
    config = {
        "experiment": experiment,
        "scale": "quick",
        "precision": "float64",
        "sweep": {"shift": [0.0, 1.0, 2.0], "seed": list(range(64)), "generator": ["kl", WORD]},
        "zipped": [],
        "network": {"activation": AWKWARD, "widths": list(range(100))},
    } | {f"field_{i}": i / 7 for i in range(40)}
    environment = {
        "command": f"python -m experiments.run --config=configs/{experiment}.py --workdir={WORD}",
        "started": "2026-01-02T03:04:05+00:00",
        "seconds": {"compile": 1.5, "run": 63.25, "total": 70.0},
        "devices": {"platform": "cpu", "kind": "cpu", "count": 2, "processes": 1},
        "versions": {"python": "3.11.7", "jax": "0.10.2"},
        "commit": None,
        "sweep": {"points": 384, "programs": 2},
        "raised": ["figures raised KeyError: 'beta' <here>"],
    }
    (folder / "figures").mkdir(parents=True)
    for name, value in (("config", config), ("environment", environment), ("claims", claims)):
        records.Folder(folder).write(name, value)
    for name, size in FIGURES.items():
        (folder / "figures" / f"{name}.png").write_bytes(png(*size, "#0072b2"))
    (folder / "figures" / "tall.pdf").write_bytes(b"%PDF")
    captions = {name: f"What `{name}` shows: {AWKWARD} {WORD}" for name in FIGURES}
    records.Folder(folder / "figures").write("captions", captions)
    return folder


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The text of a report about both runs."""
    root = tmp_path_factory.mktemp("runs")
    folders = [
        make_run(root / str(number), name, claims)
        for number, (name, claims) in enumerate(CLAIMS.items())
    ]
    path = report.write(root, folders)
    assert path == root / "report.html"
    assert sorted(p.name for p in root.iterdir()) == ["0", "1", "report.html"]
    return path.read_text(encoding="utf-8")


# ---------------------------------------------------------------------------------- the markup


class Reader(html.parser.HTMLParser):
    """Tags that do not match, and everything that the tests ask about."""

    def __init__(self, page):
        super().__init__()
        self.open, self.unbalanced, self.seen, self.text = [], [], [], []
        self.feed(page)
        self.close()
        self.unbalanced += self.open

    def handle_starttag(self, tag, attributes):
        self.seen.append((tag, dict(attributes)))
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.unbalanced.append(tag)

    def handle_data(self, data):
        if "style" not in self.open:
            self.text.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.seen if name == tag]

    @property
    def words(self):
        return " ".join("".join(self.text).split())


def test_tags_are_balanced_and_names_are_unique(page):
    reader = Reader(page)
    assert not reader.unbalanced
    ids = [attributes["id"] for _, attributes in reader.seen if "id" in attributes]
    assert len(ids) == len(set(ids))
    inside = {link["href"] for link in reader.all("a") if link["href"].startswith("#")}
    assert inside
    assert {link.removeprefix("#") for link in inside} <= set(ids)
    assert Reader("<p><b>cut</p>").unbalanced


def test_nothing_is_outside_of_the_page(page):
    reader = Reader(page)
    tags = {tag for tag, _ in reader.seen}
    assert tags.isdisjoint({"link", "iframe", "object", "form", "base"})
    assert reader.all("script") == [{}]
    assert not re.search(r"fetch|import|https?:", report.SCRIPT.read_text(encoding="utf-8"))
    assert all(image["src"].startswith("data:image/png;base64,") for image in reader.all("img"))
    assert not re.search(r"url\(|@import", "".join(re.findall("<style>.*?</style>", page, re.S)))
    assert not any(name.startswith("on") for _, attributes in reader.seen for name in attributes)


def test_it_holds_every_claim_and_every_figure(page):
    reader = Reader(page)
    for experiment, claims in CLAIMS.items():
        for entry in claims:
            assert page.count(f'id="{report.anchor("claim", experiment, entry["name"])}"') == 1
            assert " ".join(entry["statement"].split()) in reader.words
        for name, size in FIGURES.items():
            assert page.count(f'id="{report.anchor("figure", experiment, name)}"') == 1
            large = base64.b64encode(png(*size, "#0072b2")).decode()
            assert large in page
    assert len(reader.all("figure")) == len(reader.all("figcaption")) == 6
    assert len(reader.all("img")) == 12


def test_what_does_not_hold_comes_first_and_is_all_there(page):
    reader = Reader(page)
    sections = [a["id"] for tag, a in reader.seen if tag == "section" and "id" in a]
    assert sections[0] == "problems"
    problems = {id for _, a in reader.seen if (id := a.get("id", "")).startswith("problem-")}
    assert len(problems) == 3
    for what in ("few", "toothless", "without"):
        assert any(name.endswith(what) for name in problems)
    assert "1 claim was not tested." in reader.words
    assert "axis beta lacks 0.5" in reader.words
    assert "1 claim is refuted; 1 control does not refute; 1 claim has no control" in reader.words
    assert reader.words.count("does not refute the claim") == 2
    assert "1 of 2 does not refute" in reader.words
    assert "1 rerun and 1 wrong reading refute" in reader.words


def test_a_report_without_problems_says_so(tmp_path):
    folder = make_run(tmp_path / "run", "estimation/good", [claim("simple")])
    page = Reader(report.write(tmp_path, [folder]).read_text(encoding="utf-8"))
    assert "Every claim is supported, and every control refutes its claim." in page.words
    assert "What does not hold" not in page.words


def test_a_report_about_nothing_is_a_page(tmp_path):
    page = Reader(report.write(tmp_path / "new", []).read_text(encoding="utf-8"))
    assert not page.unbalanced
    assert "Every claim is supported" not in page.words


def test_text_is_escaped(page):
    assert "<b>bold" not in page
    assert "alert(1)</script>" not in page
    assert AWKWARD in Reader(page).words


def test_headings_are_in_order(page):
    levels = [int(tag[1]) for tag, _ in Reader(page).seen if re.fullmatch("h[1-6]", tag)]
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))


def test_an_experiment_says_what_it_is_and_how_it_was_run(page):
    words = Reader(page).words
    for part in (
        "compiling 1.5 s, running 1 min 3 s", "2 cpu devices, 1 process",
        "384 points in 2 compiled programs", "jax 0.10.2",
        "seed 0, 1, 2, …, 63 (64)", "quick scale, float64", "network.widths = 0, 1",
        "2 min 20 s", "figures raised KeyError: 'beta' <here>",
    ):  # fmt: skip
        assert part in words
    assert "table" in report.purpose("estimation/atlas")
    assert report.purpose("estimation/unknown") == ""


def plain(page):
    return Reader(page).words


def test_numbers_have_four_digits():
    shown = [0.123456, -1234.56, 1e-12, 250000.0, 0.0, -3, None, 6.02e23]
    assert [words.number(x) for x in shown] == [
        "0.1235", "−1235", "1 × 10<sup>−12</sup>", "250000", "0", "−3", "not finite",
        "6.02 × 10<sup>23</sup>",
    ]  # fmt: skip
    assert plain(words.numbers([[0.5, 0.25]])) == "0.5, 0.25"
    assert plain(words.numbers([[0.5, None]] * 4)) == "8 numbers, 0.5 to 0.5, 4 not finite"


@pytest.mark.parametrize(
    ("low", "high", "expected", "said"),
    [
        ([None, None], 0.5, None, "at most 0.5"),
        (0.0, 0.0, None, "exactly 0"),
        (-0.5, 0.25, None, "−0.5 to 0.25"),
        (-0.5, 0.5, None, "within 0.5 of 0"),
        (
            [4.0, None, None, None],
            [None, -4.0, -4.0, -4.0],
            None,
            "at least 4; at most −4 (3 times)",
        ),
        ([None, 1.0], [None, 2.0], None, "any; 1 to 2"),
        (None, None, None, "any"),
        ([0.49, 0.69, 0.9], [0.51, 0.71, 1.1], [0.5, 0.7, 1.0], "each within 0.01 to 0.1 of it"),
        ([[0.49, 0.69], [0.49, 0.69]], [[0.51, 0.71]] * 2, [0.5, 0.7], "within 0.01 of it"),
        ([0.49, 0.69], [0.52, 0.71], [0.5, 0.7], "0.49 to 0.52; 0.69 to 0.71"),
        ([1.0, 3.0], [1.0, 3.0], [1.0, 3.0], "exactly it"),
        (1.499995, 1.500005, None, "1.5 ± 5 × 10−6"),
        ([None] * 7, list(range(7)), None, "each at most a number of its own, 0 to 6"),
        (list(range(7)), list(range(1, 8)), None, "each in an interval of its own, 0 to 7"),
    ],
)
def test_bounds_are_said_in_words(low, high, expected, said):
    assert plain(words.bound(low, high, {"it": expected})) == said


def test_a_comma_stays_with_its_number():
    assert not re.search(r"</span>,", words.numbers([1e-9, 2e-9, 3.0]))


def test_links_are_to_the_files_that_are_there(tmp_path):
    folder = make_run(tmp_path / "runs" / "mdp" / "a b", "mdp/maze", [claim("simple")])
    (folder / "results.nc").write_bytes(b"")
    page = Reader(report.write(tmp_path / "runs", [folder]).read_text(encoding="utf-8"))
    links = {link["href"] for link in page.all("a") if not link["href"].startswith("#")}
    assert {"mdp/a%20b/results.nc", "mdp/a%20b/config.json", "mdp/a%20b/figures/tall.pdf"} <= links
    assert "mdp/a%20b/metrics.jsonl" not in links
    assert sum(link.endswith("s/mdp/maze.py") for link in links) == 2
    for link in links:
        assert (tmp_path / "runs" / urllib.parse.unquote(link)).exists(), link
    cited = prose_links("Table 1 of arXiv:2003.14089, and (2007.14430)")
    assert cited == [f"https://arxiv.org/abs/{paper}" for paper in ("2003.14089", "2007.14430")]


def prose_links(value):
    return [link["href"] for link in Reader(words.prose(value)).all("a")]


def test_filters_find_every_claim_and_what_is_about_it(page):
    reader = Reader(page)
    kinds = dict.fromkeys(claim_cards.KINDS, 0)
    for claims in CLAIMS.values():
        for entry in claims:
            kinds[claim_cards.kind(entry)] += 1
    assert kinds == {"supported": 4, "refuted": 1, "not tested": 1, "no control": 2}
    options = [option["value"] for option in reader.all("option")]
    assert options == ["", "estimation", "alignment", "", *map(claim_cards.value, kinds)]
    rows = [row["data-verdicts"] for row in reader.all("tr") if "data-verdicts" in row]
    for kind, count in kinds.items():
        assert rows.count(claim_cards.value(kind)) == count
    of_area = {a["data-area"]: a["data-verdicts"] for a in reader.all("tbody") if "data-area" in a}
    assert of_area == {
        "estimation": "supported refuted", "alignment": "supported not-tested no-control",
    }  # fmt: skip


# --------------------------------------------------------------------------------- in a browser

INSPECT = r"""
function inspect(frame) {
  const page = frame.contentDocument, view = frame.contentWindow, found = [];
  for (const details of page.querySelectorAll("details")) details.open = true;
  const root = page.documentElement;
  if (root.scrollWidth > root.clientWidth)
    found.push(`page is ${root.scrollWidth} wide in ${root.clientWidth}`);
  for (const image of page.images)
    if (!image.complete || image.naturalWidth === 0) found.push(`broken image ${image.alt}`);
  const style = (element) => view.getComputedStyle(element);
  const scrolls = (element) => ["auto", "scroll"].includes(style(element).overflowX);
  const within = (element, test) => {
    for (let e = element; e; e = e.parentElement) if (test(e)) return e;
  };
  const images = page.images.length;
  page.querySelector(".enlarge")?.click();
  if (page.querySelector(".enlarge") && !page.querySelector("dialog[open] img"))
    found.push("a click enlarges nothing");
  page.querySelector("dialog")?.close();
  const select = page.querySelectorAll("select")[1];
  if (select) {
    select.value = "refuted";
    select.dispatchEvent(new Event("change", {bubbles: true}));
    if (page.querySelector("#filters output").value !== "1 claim") found.push("filters fail");
    select.value = "";
    select.dispatchEvent(new Event("change", {bubbles: true}));
  }
  const hidden = (e) => style(e).clipPath !== "none" || style(e).display === "none";
  for (const element of page.body.querySelectorAll("*"))
    if (element.clientWidth > 0 && element.scrollWidth > element.clientWidth + 1
        && !scrolls(element) && !within(element, hidden))
      found.push(`overflowing ${element.tagName} ${element.textContent.trim().slice(0, 40)}`);
  const channel = (x) => (x /= 255) <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4;
  const rgb = (colour) => colour.match(/[\d.]+/g).map(Number);
  const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  const opaque = (e) => (rgb(style(e).backgroundColor)[3] ?? 1) === 1;
  const texts = page.createTreeWalker(page.body, NodeFilter.SHOW_TEXT);
  for (let node; (node = texts.nextNode()); ) {
    const parent = node.parentElement, ground = within(parent, opaque);
    if (!node.data.trim() || ["STYLE", "SCRIPT", "OPTION"].includes(parent.tagName)) continue;
    const behind = ground ? style(ground).backgroundColor : "rgb(255, 255, 255)";
    const [high, low] = [style(parent).color, behind]
      .map((colour) => light(rgb(colour))).sort((a, b) => b - a);
    const contrast = (high + 0.05) / (low + 0.05);
    if (contrast < 4.5) found.push(`contrast ${contrast.toFixed(1)} of ${node.data.trim()}`);
    const range = page.createRange();
    range.selectNodeContents(node);
    const right = Math.max(0, ...[...range.getClientRects()].map((box) => box.right));
    if (right > root.clientWidth + 1 && !within(parent, scrolls) && !within(parent, hidden))
      found.push(`text leaves the page: ${node.data.trim().slice(0, 40)}`);
  }
  const dark = view.matchMedia("(prefers-color-scheme: dark)").matches;
  return {width: view.innerWidth, dark, images, found};
}
addEventListener("load", () => {
  const results = [...document.querySelectorAll("iframe")].map(inspect);
  document.getElementById("results").textContent = JSON.stringify(results);
});
"""


def browse(page, folder, *, dark):
    """What a browser finds wrong with the page, on a phone and on a desk.

    A page around it looks into frames of the two widths, clicks and filters.
    """
    frames = "".join(
        f'<iframe style="width:{width}px;height:{height}px;border:0" srcdoc="{html.escape(page)}">'
        "</iframe>"
        for width, height in ((390, 844), (1280, 900))
    )
    around = folder / "around.html"
    around.write_text(
        f'<!DOCTYPE html><meta charset="utf-8"><pre id="results"></pre>{frames}'
        f"<script>{INSPECT}</script>",
        encoding="utf-8",
    )
    done = subprocess.run(
        [
            CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic",
            "--no-first-run", "--disable-background-networking", "--disable-component-update",
            "--disable-sync", f"--user-data-dir={folder / 'profile'}", "--window-size=1400,1000",
            f"--blink-settings=preferredColorScheme={0 if dark else 1}",
            "--enable-logging=stderr", "--dump-dom", around.as_uri(),
        ],
        capture_output=True, text=True, timeout=60, check=True,
        env={**os.environ, "HOME": str(folder)},
    )  # fmt: skip
    found = re.search(r'<pre id="results">(.*?)</pre>', done.stdout, re.S)
    console = [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
    return json.loads(html.unescape(found[1])), console


needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="needs Chromium: apt-get install chromium"
)


@needs_chromium
@pytest.mark.parametrize("dark", [False, True])
def test_a_browser_finds_nothing_wrong(page, tmp_path, dark):
    results, console = browse(page, tmp_path, dark=dark)
    assert console == []
    assert [result["width"] for result in results] == [390, 1280]
    for result in results:
        assert result["dark"] == dark
        assert result["images"] == 12
        assert result["found"] == []


@needs_chromium
def test_the_browser_finds_what_is_wrong(tmp_path):
    broken = f"""<!DOCTYPE html><html><body style="background: white">
        <img alt="cut" src="data:image/png;base64,AAAA">
        <p style="width: 5rem">{WORD}</p><p style="color: #aaaaaa">faint</p>
        <script>undefined_function()</script></body></html>"""
    results, console = browse(broken, tmp_path, dark=False)
    assert any("undefined_function" in line for line in console)
    for result in results:
        found = " | ".join(result["found"])
        for what in ("broken image cut", "overflowing P an_unbroken", "contrast 2.3 of faint"):
            assert what in found
    assert "page is" in " ".join(results[0]["found"])


def test_a_run_whose_claims_are_damaged_has_no_report(tmp_path):
    folder = make_run(tmp_path / "run", *next(iter(CLAIMS.items())))
    (folder / "claims.json").write_text("[]")
    with pytest.raises(files.Damaged, match=r"claims\.json is damaged"):
        report.write(tmp_path, [folder])
