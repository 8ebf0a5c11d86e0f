"""What README and documentation say: code runs, files exist, numbers are those of the code."""

import ast
import json
import pathlib
import pydoc
import re

import jax
import numpy as np
import pytest
import yaml

import jdiv
from benchmarks import trainers
from docs.generate import audit, edges, kl_terms, papers, results, source
from jdiv import divergences as dv
from jdiv import testing
from jdiv.alignment import preference
from jdiv.policy import clipped

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "docs" / "tutorials").glob("*.md")),
    ROOT / "docs" / "results" / "index.md",
]
WRITTEN = [path for path in PAGES if path.name not in ("papers.md", "uses.md")]
"""The rest is generated."""


def name_of(path):
    return str(path.relative_to(ROOT))


def blocks(path):
    """Python code of a page."""
    return re.findall(r"^```python\n(.*?)^```", path.read_text(), re.M | re.S)


@pytest.mark.parametrize("path", [p for p in WRITTEN if blocks(p)], ids=name_of)
def test_code_runs(path):
    names = {"__name__": "page"}
    with (
        jax.enable_x64(False),
        jax.numpy_rank_promotion("allow"),
        jax.numpy_dtype_promotion("standard"),
    ):
        for block in blocks(path):
            exec(compile(block, name_of(path), "exec"), names)


@pytest.mark.parametrize("path", WRITTEN, ids=name_of)
def test_links_are_to_files(path):
    text = re.sub(r"```.*?```", "", path.read_text(), flags=re.S)
    for target in re.findall(r"\]\(([^)#\s]+)", text) + re.findall(r"literalinclude\} (\S+)", text):
        if target.startswith("http"):
            continue
        made = target.startswith(("results/", "../results/", "tutorials/quickstart")) or target in (
            "papers.md", "uses.md", "api/index.md",
        )  # fmt: skip
        assert made or (path.parent / target).exists(), target


def test_commands_name_configs_that_exist():
    for path in WRITTEN:
        for config in re.findall(r"--config=(configs/[\w/]+\.py)", path.read_text()):
            assert (ROOT / config).exists(), (path, config)


def test_readme_is_a_first_page():
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 120
    assert any(line.startswith("![") for line in lines[:8])
    assert "make test" in (ROOT / ".ci" / "run").read_text()


def test_no_line_of_a_page_is_longer_than_code():
    """Of prose; tables and code have lines of their own."""
    for path in WRITTEN:
        text = re.sub(r"```.*?```", "", path.read_text(), flags=re.S)
        for line in text.splitlines():
            assert len(line) <= 110 or line.startswith(("|", "!", "-")), (path, line)


def test_citation():
    found = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert found["version"] == jdiv.__version__
    assert found["authors"] == [{"name": "The jdiv authors"}]


# ------------------------------------------------------------------------------ generated pages


def test_kl_terms_are_those_of_the_code():
    """Ends of descents take long and are claims of an experiment: of them only the published."""
    there = json.loads(kl_terms.DATA.read_text())
    found = kl_terms.by_name(kl_terms.audited(*kl_terms.drawn()))
    assert set(found) == set(there["terms"])
    for name, numbers in found.items():
        for key, number in kl_terms.shortened(numbers).items():
            kept = there["terms"][name][key]
            if number is None:
                assert kept is None, (name, key)
            else:
                np.testing.assert_allclose(number, kept, rtol=1e-5, atol=1e-9, err_msg=name + key)
    ends = there["terms"]["loss, averaged over each sequence, k1"]
    assert ends["last_length"] == pytest.approx(2.997, abs=6e-4)
    assert ends["last_kl"] == pytest.approx(3.686, abs=6e-4)


def test_every_loss_of_a_trainer_stands_in_a_table():
    found = audit.read()
    assert list(found) == list(trainers.ALL)
    lines = audit.table("KL term").splitlines() + audit.table("policy loss").splitlines()
    functions = [line for line in lines if line.startswith("| ") and "`" in line]
    assert len(functions) == sum(len(trainer["rows"]) for trainer in found.values())
    stars = sum(row["default"] for trainer in found.values() for row in trainer["rows"])
    assert sum(" ★ |" in line for line in functions) == stars
    # What the rows say they are follows from their gradients.
    exact = testing.kl(testing.draw()).ravel()
    for row in (row for trainer in found.values() for row in trainer["rows"]):
        gradient = np.array(row["own"]["gradient"])
        near = np.linalg.norm(gradient - exact) < 1e-4
        assert near == (row["own"]["message"] == "The gradient of KL(pi‖ref).")


def test_edges_has_the_library_as_it_is():
    there = json.loads(edges.DATA.read_text())
    with jax.enable_x64(False):
        for name, function in (("kl", dv.kl), ("js", dv.jensen_shannon)):
            (row,) = (row for row in there[name] if row["library"] == "jdiv")
            for case, of in edges.cases().items():
                found = edges.seen(name, edges.by_jax, function, of)
                assert float(found["value"]) == pytest.approx(float(found["true"]), rel=1e-6)
                kept = row["cases"][case]
                assert float(found["value"]) == pytest.approx(float(kept["value"]), rel=1e-5)
                assert found["by_p"] is None or max(found["by_p"], found["by_q"]) < 4e-3


def test_results_are_of_all_experiments_and_small():
    records = results.read()
    configs = {str(p.relative_to(ROOT / "configs"))[:-3] for p in (ROOT / "configs").glob("*/*.py")}
    configs = {name for name in configs if not name.endswith("__init__")}
    assert set(records) == configs
    assert set(results.findings()) == configs
    folder = results.DATA / "results"
    assert sum(p.stat().st_size for p in folder.rglob("*.webp")) < 2e6
    for name, record in records.items():
        assert all(set(claim) == results.FIELDS for claim in record["claims"]), name
        assert results.supported(record)[0] == len(record["claims"]), name
        for figure in record["figures"]:
            assert (folder / name / f"{figure}.webp").exists()


def test_results_refuse_claims_of_another_form(tmp_path):
    folder = tmp_path / "area" / "name"
    folder.mkdir(parents=True)
    for name in ("config", "environment"):
        (folder / f"{name}.json").write_text("{}")
    (folder / "claims.json").write_text('[{"name": "a"}]')
    with pytest.raises(ValueError, match="a claim has the fields"):
        results.take(tmp_path, tmp_path / "data")


def test_papers_lists_every_reference():
    page = papers.page(results.read())
    for item in papers.everything():
        for identifier in papers.ARXIV.findall(item.docstring):
            if item.module.startswith("jdiv"):
                assert identifier in page, (item.path, identifier)


def test_every_public_item_has_a_first_line():
    for module in source.modules("jdiv"):
        for item in source.items(module):
            assert item.summary, item.path


def test_every_field_is_described_where_help_shows_it():
    """A string below a field is seen by nobody who calls `help`."""
    missing = []
    for module in source.modules("jdiv"):
        for node in ast.walk(ast.parse(source.file_of(module).read_text())):
            if not isinstance(node, ast.ClassDef) or node.name.startswith("_"):
                continue
            if "NamedTuple" not in [base.id for base in node.bases if isinstance(base, ast.Name)]:
                continue
            _, section = (ast.get_docstring(node) + "\nFields:").split("\nFields:\n", 1)
            described = re.findall(r"^ {4}(\w+): ", section, re.M)
            there = [field.target.id for field in node.body if isinstance(field, ast.AnnAssign)]
            missing += [] if described == there else [f"{module}.{node.name}"]
    assert missing == []


@pytest.mark.parametrize("function", [dv.alpha, dv.kl, preference.f_dpo, clipped.ppo_clip])
def test_help_shows_names_of_types(function):
    shown = pydoc.plain(pydoc.render_doc(function))
    assert "Union" not in shown
    assert len(shown.splitlines()[2]) < 300
