"""Every experiment at smoke scale on 1, 2, 3 and 8 devices: are the numbers the same?

    python -m tests.search.devices [--only=area,area/name] [--devices=1,2,3,8] [--into=DIR]

Prints for each experiment and count of devices how far the numbers are from those of the first
count. Two numbers are as far apart as their absolute or their relative difference is, whichever is
smaller. Exit code 1 if any are more than 1e-6 apart, which the experiments in `MAY_DIFFER` may be,
or if any claim has another verdict. Neither controls nor figures are made. With a folder what was
computed before is kept there.
"""

import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Mapping

import numpy as np
from absl import flags

from experiments import reproduce
from experiments.lab import commands, engine, records, settings
from experiments.lab.job import from_config
from experiments.lab.progress import Progress

CLOSE = 1e-6
CLAIMS = "claims"
MAY_DIFFER = {
    "estimation/cauchy_schwarz": "a loss on its way, in float32; no claim is about it",
    "estimation/mutual_information": "critics in float32 learn chaotically",
    "mdp/tomato": "the wrong reading of the bound divides by masses that are rounding",
    "policy/entropy_mechanism": "runs in float32 carry their rounding on",
    "mdp/cartpole": "deep networks choose what they learn from, which is chaotic",
}
"""Experiments whose numbers depend on the devices, and why; their docstrings say more."""


Arrays = Mapping[str, np.ndarray]


def distance(a: Arrays, b: Arrays) -> tuple[float, str]:
    """How far the numbers of two results are apart at most, and in which array.

    >>> a = {"x": np.array([1e-9, 1e9]), "y": np.array([0, np.nan])}
    >>> distance(a, a), distance(a, a | {"x": np.array([2e-9, 1e9 + 1])})
    ((0.0, ''), (1e-09, 'x'))
    """
    assert set(a) == set(b)
    found = {name: _apart(a[name], b[name]) for name in a if name != CLAIMS}
    name = max(found, key=found.get)
    return found[name], name if found[name] else ""


def _apart(a: np.ndarray, b: np.ndarray) -> float:
    if a.dtype.kind not in "fiub":
        return 0.0 if np.array_equal(a, b) else np.inf
    a, b = a.astype(np.float64), b.astype(np.float64)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    with np.errstate(invalid="ignore", divide="ignore"):
        difference = np.abs(a - b)
        least = np.minimum(difference, difference / np.maximum(np.abs(a), np.abs(b)))
    apart = np.where(same, 0.0, np.where(np.isfinite(a) & np.isfinite(b), least, np.inf))
    return float(apart.max(initial=0.0))


def compute(names: list[str], count: int, folder: pathlib.Path) -> None:
    """The results of these experiments on so many devices, into a folder."""
    commands.use_cpu(count)
    for name in names:
        target = folder / f"{count}" / f"{name.replace('/', '-')}.npz"
        if target.exists():
            continue
        with tempfile.TemporaryDirectory() as work:
            config = settings.load(f"configs/{name}.py:smoke")
            job = from_config(config, pathlib.Path(work))
            found = engine.compute(job, Progress(name))
        target.parent.mkdir(parents=True, exist_ok=True)
        arrays = {name: found[name].values for name in found.data_vars}
        verdicts = [claim(found, config).supported for claim in job.claims]
        np.savez(target, **arrays, **{CLAIMS: verdicts})
        print(f"{count} devices: {name}", file=sys.stderr, flush=True)


def main() -> int:
    """The command line."""
    values = flags.FlagValues()
    flags.DEFINE_list("only", [], "Areas, or experiments as area/name.", flag_values=values)
    flags.DEFINE_list("devices", ["1", "2", "3", "8"], "Counts.", flag_values=values)
    flags.DEFINE_string("into", None, "Folder for the results.", flag_values=values)
    flags.DEFINE_bool("compute", False, "Computes for one count, here.", flag_values=values)
    values(sys.argv)
    counts = [int(count) for count in values.devices]
    paths = [path.relative_to(records.ROOT / "configs") for path in reproduce.chosen(values.only)]
    names = [path.with_suffix("").as_posix() for path in paths]
    if values.compute:
        compute(names, counts[0], pathlib.Path(values.into))
        return 0
    folder = pathlib.Path(values.into or tempfile.mkdtemp())
    for count in counts:
        command = [sys.executable, "-m", "tests.search.devices", "--compute", f"--into={folder}"]
        chosen = [f"--devices={count}", f"--only={','.join(values.only)}"]
        subprocess.run([*command, *chosen], check=True)
    return table(names, counts, folder)


def table(names: list[str], counts: list[int], folder: pathlib.Path) -> int:
    """Prints a row for each experiment; 1 if some numbers are too far apart."""
    print("| experiment | " + " | ".join(f"{count} devices" for count in counts[1:]) + " |")
    print("|---" * len(counts) + "|")
    different = []
    for name in names:
        first, *others = (
            dict(np.load(folder / f"{count}" / f"{name.replace('/', '-')}.npz")) for count in counts
        )
        found = [distance(first, other) for other in others]
        cells = (f"{far:.1e} ({where})" if far else "same bits" for far, where in found)
        print(f"| {name} | " + " | ".join(cells) + " |")
        apart = max(far for far, _ in found) > CLOSE and name not in MAY_DIFFER
        if apart or any((first[CLAIMS] != other[CLAIMS]).any() for other in others):
            different.append(name)
    print(f"more than {CLOSE} apart, or other verdicts: {', '.join(different) or 'none'}")
    for name in sorted(set(names) & set(MAY_DIFFER)):
        print(f"{name} may be: {MAY_DIFFER[name]}")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
