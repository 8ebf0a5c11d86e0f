"""The measuring of benchmarks, their file and its page; no other library and no measurement."""

import doctest
import importlib.metadata

import numpy as np
import pytest

from benchmarks import audit, figure, measure, run_all, table
from benchmarks.table import Contestant, Row
from docs.generate import benchmarks as page


class Clock:
    """Time passes only where somebody works."""

    def __init__(self):
        self.now, self.order = 0.0, []

    def __call__(self):
        return self.now

    def working(self, name, *seconds):
        """A call that takes these seconds, one after the other and again."""
        count = 0

        def call():
            nonlocal count
            self.now += seconds[count % len(seconds)]
            self.order.append(name)
            count += 1
            return np.ones(2)

        return call


def test_contestants_take_turns_there_and_back():
    clock = Clock()
    calls = {"a": clock.working("a", 1.0), "b": clock.working("b", 2.0)}
    seconds = measure.interleaved(calls, rounds=3, once={"a": 1.0, "b": 2.0}, clock=clock)
    assert seconds == {"a": [1.0] * 3, "b": [2.0] * 3}
    assert "".join(clock.order) == "abbaab"


def test_a_budget_ends_all_but_the_fewest_rounds():
    clock = Clock()
    options = {"once": {"a": 5.0}, "clock": clock, "rounds": 9}
    for budget, rounds in ((0.0, 3), (16.0, 4), (1e9, 9)):
        calls = {"a": clock.working("a", 5.0)}
        assert len(measure.interleaved(calls, budget=budget, **options)["a"]) == rounds


def test_short_calls_are_repeated_and_their_mean_is_taken():
    clock = Clock()
    calls = {"a": clock.working("a", 0.001, 0.003)}
    seconds = measure.interleaved(calls, rounds=2, short=0.02, clock=clock)
    # The first call, which says how often, took 1 ms: then twenty in each round.
    assert len(clock.order) == 1 + 2 * 20
    np.testing.assert_allclose(seconds["a"], 0.002, rtol=1e-12)


def test_examples_of_the_harness():
    for module in (measure, table):
        assert doctest.testmod(module).failed == 0


def test_ratios_are_taken_within_rounds():
    """A machine that is ten times slower in one round is so for both."""
    slow = np.array([1.0, 10.0, 1.0])
    assert measure.ratios(3 * slow, slow) == (3.0, 3.0, 3.0)


def test_what_is_not_finite_is_no_agreement():
    assert measure.difference([np.array([1.0, np.nan])], [np.ones(2)]) == np.inf
    assert measure.difference([np.zeros(2)], [np.zeros(2)]) == 0
    with pytest.raises(ValueError, match="shapes differ"):
        measure.difference([np.ones(1)], [np.ones(2)])


def contestant(name, value=1.0, **given):
    return Contestant(name, "a sum", lambda: [np.full(2, value)], list, **given)


def test_a_contestant_that_is_wrong_ends_the_comparison_or_is_said_to_be():
    options = {"rounds": 1, "fewest": 1, "short": 0.0}
    with pytest.raises(AssertionError, match=r"KL 2 float32: other is 5.0e-01 from jdiv"):
        list(table.compare("KL", "2", "float32", [contestant("jdiv"), contestant("other", 1.5)]))
    told = contestant("other", 1.5, tolerance=0.6)
    own, other = table.compare("KL", "2", "bfloat16", [contestant("jdiv"), told], **options)
    assert (own.note, own.difference, own.ratio) == ("", None, 1.0)
    assert (other.note, other.difference) == ("wrong by 50 %", 0.5)


def test_a_peer_that_is_missing_is_named(capsys):
    def there():
        return contestant("jdiv")

    def absent():
        import no_such_library

        return no_such_library

    assert [one.name for one in table.peers(there, absent)] == ["jdiv"]
    assert "no_such_library" in capsys.readouterr().out


# ---------------------------------------------------------------------------------- file and page

RATES = {"bandwidth": (2e10, "bytes/s"), "fresh memory": (8e9, "bytes/s"),
         "exponentials": (1e9, "exp/s"), "matrix products": (1e11, "flop/s")}  # fmt: skip


def row(benchmark, implementation, ratio, size=page.SMALL, **given):
    found = {
        "dtype": "float32", "ran": "f(p | q)", "runs": 9, "min_s": 0.1, "median_s": 0.2,
        "p90_s": 0.3, "ratio_min": ratio, "ratio": ratio, "ratio_p10": round(0.9 * ratio, 2),
        "ratio_p90": round(1.1 * ratio, 2),
    }  # fmt: skip
    return Row(benchmark, size, implementation=implementation, **{**found, **given})


def rows():
    kl, hidden = "KL, value and gradient", "Jensen-Shannon from hidden states, value and gradient"
    bounds = [
        Row(name, "n", "float32", "XLA", "x", 9, 1.0, 1.0, 1.0, rate=rate, unit=unit)
        for name, (rate, unit) in RATES.items()
    ]
    return [
        *bounds,
        row(kl, "jdiv", 1.0, exponentials=2e8, moved_bytes=1e9, compiled_bytes=5_000_000),
        row(kl, "torch", 3.5),
        row(kl, "optax", 0.5, note="wrong by 4 %"),
        row(hidden, "jdiv", 1.0, operations=2e10, compiled_bytes=100),
        row(hidden, "plain JAX", 1.2, compiled_bytes=401),
        row("every row, value and gradient", "kl", 1.0),
        row("every row, value and gradient", "le_cam", 1.4),
        row("greedy, policy and value", "log-softmax", 1.0, size="8 x 2"),
        row("greedy, policy and value", "kl", 2.0, size="8 x 2"),
        row("greedy, policy and value", "jeffreys", 16.0, size="9 x 3"),
        row("deep Q-learning", "jdiv", 1.0, rate=1e6, unit="moves/s"),
        row("deep Q-learning", "stable-baselines3", 51.0),
        row("value iteration", "quantecon", 1.3, size="5 states"),
        row("value iteration", "quantecon", 0.8, size="9 states"),
    ]


@pytest.fixture
def file(tmp_path):
    where = {"machine": "a CPU", "cores": 2, "memory_gb": 8, "date": "2026-11-28",
             "versions": "jdiv 0; torch not installed"}  # fmt: skip
    table.save(table.bounded(rows()), tmp_path / "cpu.csv", where)
    return tmp_path / "cpu.csv"


def test_the_file_has_its_columns_and_is_read_as_it_was_written(file):
    header = file.read_text().splitlines()[0].split(",")
    assert tuple(header) == table.COLUMNS
    assert header[:5] == ["machine", "cores", "memory_gb", "date", "versions"]
    where, found = table.load(file)
    assert where["date"] == "2026-11-28"
    assert found == table.bounded(rows())


def test_bounds_are_the_slowest_of_what_has_to_be_done():
    found = {row.implementation: row for row in table.bounded(rows())}
    assert (found["jdiv"].bound_s, found["jdiv"].bound_by) == (None, "")
    kl, hidden = (row for row in table.bounded(rows()) if row.bound_by)
    assert (kl.bound_s, kl.bound_by) == (0.2, "exp")
    assert (hidden.bound_s, hidden.bound_by) == (0.2, "matrix products")


def test_the_file_of_the_page_is_one_of_a_machine():
    where, found = table.load()
    assert int(where["cores"]) >= 1
    assert where["machine"]
    assert {row.benchmark for row in found} >= set(RATES)
    assert (table.FILE.with_suffix(".png")).stat().st_size < 500_000


def test_the_page_says_what_was_reached_and_what_was_not(file, tmp_path):
    page.write(tmp_path, file)
    rows_over_kl = "slowest row: its time over KL's"
    steps = "slowest greedy step: its time over a log-softmax's"
    targets = (tmp_path / "benchmarks_targets.part.md").read_text().splitlines()
    lines = [line for line in targets if line.startswith("| ")]
    said = {line.split(" | ")[0].strip("| ").split("<br>")[0]: line for line in lines}
    assert "<br>three to seven Newton steps" in said[steps]
    assert "<br>" not in said[rows_over_kl]
    for what, words in {
        "KL: torch's time over jdiv's": "reached",
        "KL: optax's time over jdiv's": "missed",
        "from hidden states: plain JAX's memory over jdiv's": "reached",
        "from hidden states: TRL's time over jdiv's": "not measured",
        rows_over_kl: '`le_cam` | <span class="good">reached',
        steps: '`jeffreys` | <span class="bad">',
        "value iteration, worse size: QuantEcon's time over jdiv's": "missed",
        "deep Q-learning: moves a second over stable-baselines3's": "reached",
    }.items():
        assert words in said[what], what
    logits = (tmp_path / "benchmarks_logits.part.md").read_text()
    assert "3.5 (3.1 to 3.9)" in logits
    assert "wrong by 4 %" in logits
    assert r"f(p \| q)" in logits
    assert "200\u202fms, exp" in logits
    assert "a CPU, 2 cores, 8 GB" in (tmp_path / "benchmarks_where.part.md").read_text()
    assert len(page.PARTS) + 2 == len(list(tmp_path.glob("*.part.md")))


def test_every_comparison_stands_in_one_table_of_the_page():
    for found in table.load()[1]:
        places = [name for name, belongs in page.PARTS.items() if belongs(found.benchmark)]
        assert len(places) == (0 if found.benchmark in RATES else 1), found.benchmark


def test_the_figure_draws_every_other_library():
    shown = figure.draw(rows())
    others, steps = shown.axes
    assert len(others.get_yticks()) == 5
    assert [label.get_text() for label in steps.get_yticklabels()] == ["kl", "jeffreys"]
    assert all(axis.get_xlabel() for axis in shown.axes)


def test_the_audit_keeps_what_it_cannot_run(tmp_path, monkeypatch, capsys):
    """Where no trainer is installed the file stays as it was, byte by byte."""

    def missing(package):
        raise importlib.metadata.PackageNotFoundError(package)

    monkeypatch.setattr(audit.importlib.metadata, "version", missing)
    file = tmp_path / "audit.json"
    file.write_text(audit.FILE.read_text())
    monkeypatch.setattr("sys.argv", ["audit", "--only=verl,tunix", f"--into={file}"])
    assert audit.main() == 0
    assert file.read_text() == audit.FILE.read_text()
    assert "verl is not installed here" in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", ["audit", "--only=ver"])
    assert audit.main() == 2
    assert "got ver" in capsys.readouterr().err
    assert audit.rounded({"a": [1e-9, float("nan"), -1e-9]}) == {"a": [0.0, None, 0.0]}


def test_unknown_benchmarks_are_refused(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["run_all", "--only=greedy,greed"])
    assert run_all.main() == 2
    assert "greed" in capsys.readouterr().err
