"""Results of a run of all experiments: taken into docs/_data, and shown.

    python -m docs.generate.results runs

takes claims, conditions and small figures of every finished run below `runs` into
docs/_data/results; what was there before of these experiments is replaced, and what is of an
experiment without a config is removed. A line on each experiment is in docs/_data/findings.toml.
"""

import json
import pathlib
import re
import shutil
import sys
import tomllib
from typing import Any

from PIL import Image

from docs.generate import markdown
from experiments.lab import claim_cards, html

DATA = pathlib.Path(__file__).parents[1] / "_data"
WIDTH = 760
"""Pixels of a small figure."""
FIELDS = {"name", "source", "statement", "published", "reference", "measured", "bound", "verdict",
          "reruns", "wrong"}  # fmt: skip
AREAS = ("estimation", "bandits", "mdp", "policy", "alignment", "games", "distillation", "decoding",
         "lm")  # fmt: skip


# ------------------------------------------------------------------------------------ take in


def take(runs: pathlib.Path, into: pathlib.Path = DATA / "results") -> list[str]:
    """Takes what is below `runs` into the folder; the experiments that were there."""
    taken = []
    for file in sorted(runs.glob("*/*/claims.json")):
        folder = file.parent
        config, environment, claims = (
            json.loads((folder / f"{name}.json").read_text())
            for name in ("config", "environment", "claims")
        )
        for claim in claims:
            if set(claim) != FIELDS:
                raise ValueError(
                    f"{file}: a claim has the fields {', '.join(sorted(FIELDS))},"
                    f" got {', '.join(sorted(claim))}"
                )
        experiment = config["experiment"]
        target = into / experiment
        target.mkdir(parents=True, exist_ok=True)
        for old in target.iterdir():
            old.unlink()
        captions = json.loads((folder / "figures" / "captions.json").read_text())
        for name in captions:
            small(folder / "figures" / f"{name}.png", target / f"{name}.webp")
        record = {
            "experiment": experiment,
            "scale": config["scale"],
            "precision": config["precision"],
            **{key: environment.get(key) for key in ("started", "commit", "devices", "sweep")},
            "seconds": environment["seconds"]["total"],
            "versions": {key: environment["versions"][key] for key in ("python", "jax")},
            "figures": captions,
        }
        (target / "results.json").write_text(written(record, claims))
        taken.append(experiment)
    return taken


def written(record: dict[str, Any], claims: list[dict[str, Any]]) -> str:
    """A record as JSON with a line for each of its claims."""
    head = json.dumps(record, ensure_ascii=False)
    lines = ",\n".join(json.dumps(claim, ensure_ascii=False) for claim in claims)
    return f'{head[:-1]}, "claims": [\n{lines}\n]}}\n'


def prune(folder: pathlib.Path = DATA / "results") -> list[str]:
    """Removes records of experiments that have no config any more; their names."""
    configs = pathlib.Path(__file__).parents[2] / "configs"
    stale = [name for name in read(folder) if not (configs / f"{name}.py").exists()]
    for name in stale:
        shutil.rmtree(folder / name)
    return stale


def small(source: pathlib.Path, target: pathlib.Path) -> None:
    """A figure in few bytes."""
    with Image.open(source) as picture:
        picture = picture.convert("RGB")
        if picture.width > WIDTH:
            size = WIDTH, round(picture.height * WIDTH / picture.width)
            picture = picture.resize(size, Image.Resampling.LANCZOS)
        picture.save(target, "WEBP", quality=60, method=6)


# --------------------------------------------------------------------------------------- read


def read(folder: pathlib.Path = DATA / "results") -> dict[str, dict[str, Any]]:
    """Records by experiment, area by area."""
    found = {}
    for file in folder.glob("*/*/results.json"):
        record = json.loads(file.read_text())
        found[record["experiment"]] = record

    def place(name: str) -> tuple[int, str]:
        area = name.partition("/")[0]
        return (AREAS.index(area) if area in AREAS else len(AREAS), name)

    return dict(sorted(found.items(), key=lambda item: place(item[0])))


def controls(record: dict[str, Any], kind: str) -> tuple[int, int]:
    """Controls of a kind that refuted their claim, and how many there are."""
    verdicts = [one["verdict"] for claim in record["claims"] for one in claim[kind]]
    return verdicts.count("refuted"), len(verdicts)


def supported(record: dict[str, Any]) -> tuple[int, int]:
    """Claims that hold, and how many there are."""
    verdicts = [claim["verdict"] for claim in record["claims"]]
    return verdicts.count("supported"), len(verdicts)


def findings() -> dict[str, str]:
    """One line on each experiment."""
    return tomllib.loads((DATA / "findings.toml").read_text())


# --------------------------------------------------------------------------------------- show


def write(folder: pathlib.Path, records: dict[str, dict[str, Any]]) -> None:
    """Writes a page for each area, and the tables that the index includes."""
    areas = {}
    for name, record in records.items():
        areas.setdefault(name.partition("/")[0], {})[name] = record
    pages = {f"{area}.md": page(area, here) for area, here in areas.items()}
    parts = {
        "summary.part.md": summary(records),
        "areas.part.md": markdown.toctree(areas, hidden=True),
    }
    markdown.save_all(folder, pages | parts, keep=("index.md",))


def summary(records: dict[str, dict[str, Any]]) -> str:
    """Totals, and one row for each experiment."""
    rows = [
        (
            f"[{name}]({name.partition('/')[0]}.md#{anchor(name)})",
            findings().get(name, "").strip().replace("|", r"\|"),
            of(supported(record)), of(controls(record, "reruns")), of(controls(record, "wrong")),
        )
        for name, record in records.items()
    ]  # fmt: skip
    total = [
        sum(numbers) for numbers in zip(*(
            (*supported(r), *controls(r, "reruns"), *controls(r, "wrong"), r["seconds"])
            for r in records.values()
        ), strict=True)
    ]  # fmt: skip
    one = next(iter(records.values()))
    held, claims, reran, reruns, misread, wrong, seconds = total
    versions = sorted({f"JAX {r['versions']['jax']}" for r in records.values()})
    text = (
        f"{len(records)} experiments, {held} of {claims} claims supported. Of the controls, which"
        f" have to refute their claim, {reran} of {reruns} computed anew under a wrong setting do,"
        f" and {misread} of {wrong} that re-read the same results by a wrong formula. This is a run"
        f" at {one['scale']} scale of {one['started'][:10]} with {', '.join(versions)} on a CPU, "
        f"{seconds / 60:.0f} minutes of computing."
    )
    header = "experiment", "what came out", "claims", "reruns", "re-readings"
    return f"{text}\n\n{markdown.table(header, rows, classes='findings')}\n"


def of(counted: tuple[int, int]) -> str:
    """`5 of 6`, or a dash."""
    return f"{counted[0]}\u202fof\u202f{counted[1]}" if counted[1] else "–"


def page(area: str, records: dict[str, dict[str, Any]]) -> str:
    """One section for each experiment of an area."""
    title = {"mdp": "Planning", "lm": "Language models"}.get(area, area.capitalize())
    lines = [f"# {title}", ""]
    for name, record in records.items():
        lines += section(name, record)
    return "\n".join(lines)


def section(name: str, record: dict[str, Any]) -> list[str]:
    """Finding, command, figures and claims of an experiment."""
    lines = [f"({anchor(name)})=", f"## {html.words(name.partition('/')[2])}", ""]
    if name in findings():
        text = findings()[name].strip()
        lines += [text[:1].upper() + text[1:] + ".", ""]
    lines += [
        "```sh", f"python -m experiments.run --config=configs/{name}.py", "```", "",
        ", ".join([
            f"{of(supported(record))} claims supported",
            *(
                f"{of(controls(record, kind))} {word} refute"
                for kind, word in (("reruns", "reruns"), ("wrong", "re-readings"))
                if controls(record, kind)[1]
            ),
            f"{record['precision']}, {record['seconds']:.0f} s.",
        ]), "",
    ]  # fmt: skip
    for figure, caption in record["figures"].items():
        lines += [
            f":::{{figure}} ../_data/results/{name}/{figure}.webp",
            f":alt: {html.words(figure)} of {name}", ":width: 100%", "",
            markdown.prose(caption), ":::", "",
        ]  # fmt: skip
    rows = [
        (
            f"**{html.words(claim['name'])}.** {markdown.prose(claim['statement'])}"
            f"<br>*{linked(markdown.prose(claim['source']))}*",
            html.numbers(claim["measured"]), claim_cards.expected(claim), verdict(claim),
        )
        for claim in record["claims"]
    ]  # fmt: skip
    header = "claim", "measured", "must be", "verdict, controls"
    return [*lines, markdown.table(header, rows, classes="claims"), ""]


def linked(text: str) -> str:
    """Numbers on arXiv as links.

    >>> linked("Go et al. (arXiv:2302.08215)")
    'Go et al. ([arXiv:2302.08215](https://arxiv.org/abs/2302.08215))'
    """
    return re.sub(r"arXiv:(\d{4}\.\d{4,5})", r"[arXiv:\1](https://arxiv.org/abs/\1)", text)


def verdict(claim: dict[str, Any]) -> str:
    """The word, and the controls of the two kinds."""
    parts = [f"**{claim['verdict']}**"]
    for kind, word in (("reruns", "rerun"), ("wrong", "re-reading")):
        refuted, count = controls({"claims": [claim]}, kind)
        if count:
            verb = f"{word}s refute" if count > 1 else f"{word} refutes"
            parts.append(f"{refuted}\u202fof\u202f{count} {verb}")
    return "<br>".join(parts)


def anchor(name: str) -> str:
    """The label of an experiment's section."""
    return "result-" + re.sub(r"[^a-z0-9]+", "-", name)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    print("\n".join(take(pathlib.Path(sys.argv[1]))))
    for gone in prune():
        print(f"removed {gone}")
