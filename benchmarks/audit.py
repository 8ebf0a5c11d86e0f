"""Which gradient the KL terms and policy losses of public trainers have, by enumeration.

    make audit
    python -m benchmarks.audit [--only=trl,polgrad] [--into=benchmarks/results/audit.json]

Every case of `benchmarks.trainers` is a loss of `jdiv.testing`: the expected gradient is a sum over
all batches of two answers of up to three tokens, from samples of the policy itself, of an older
policy and of one that is far away. Trainers that are not installed are named, and what the file has
of them is kept: Tunix has pins of its own, so `make audit` runs it in an environment of its own
after the others, which share one. Six digits are written; some trainers compute in float32.
"""

import argparse
import functools
import importlib.metadata
import json
import pathlib
import sys
import time
import warnings

import numpy as np

from benchmarks import trainers
from jdiv import testing

FILE = pathlib.Path(__file__).parent / "results" / "audit.json"
LAGS = {"own": 0.0, "older": 0.5, "far": 1.5}
"""Standard deviations of the sampled policy's logits around the policy's."""
ASKED = {trainers.KL: testing.kl, trainers.POLICY: testing.negative_reward}


def where_nothing_is_to_change(kind: str) -> testing.Problem:
    """The policy is the reference, or all answers have the same reward, 1."""
    own = testing.draw()
    if kind == trainers.KL:
        return own._replace(ref_logits=own.logits)
    return own._replace(rewards=np.ones_like(own.rewards))


def audited(case: trainers.Case, differentiate: testing.Differentiate) -> dict:
    """A row of the file."""
    report = functools.partial(
        testing.gradient_report, case.loss, ASKED[case.kind], differentiate=differentiate
    )
    row = {"function": case.function, "option": case.option, "kind": case.kind}
    row |= {"average": case.average, "default": case.default}
    for name, lag in LAGS.items():
        found = report(problem=testing.draw(lag=lag))
        row[name] = {
            "message": found.message,
            "cosine": {match.name: match.cosine for match in found.matches},
            "error": {match.name: match.error for match in found.matches},
            "gradient": found.gradient.ravel().tolist(),
            "leak": found.leak,
        }
    still = report(problem=where_nothing_is_to_change(case.kind))
    return row | {"length": still.length}


def of_trainer(name: str) -> dict:
    """All rows of a trainer, in this environment."""
    trainer = trainers.ALL[name]
    differentiate = testing.by_jax
    if trainer.torch:
        import torch

        differentiate = testing.by_torch(torch)
    rows = []
    for case in trainer.cases():
        rows.append(audited(case, differentiate))
        print(f"{name} {case.function}({case.option}): {rows[-1]['own']['message']}", flush=True)
    return {
        "version": importlib.metadata.version(trainer.package),
        "rows": rows,
        "left_out": [list(x) for x in trainer.left_out],
    }


def rounded(value: object) -> object:
    """Six digits after the point; NaN is None."""
    if isinstance(value, dict):
        return {key: rounded(x) for key, x in value.items()}
    if isinstance(value, list):
        return [rounded(x) for x in value]
    if isinstance(value, float):
        return None if value != value else round(value, 6) + 0.0
    return value


def written(found: dict) -> str:
    """JSON with a row on each line."""
    parts = []
    for name, trainer in found.items():
        rows = ",\n  ".join(json.dumps(row, ensure_ascii=False) for row in trainer["rows"])
        rest = {key: x for key, x in trainer.items() if key != "rows"}
        parts.append(f' "{name}": {json.dumps(rest)[:-1]}, "rows": [\n  {rows}\n ]}}')
    return "{\n" + ",\n".join(parts) + "\n}\n"


def main() -> int:
    """Runs what is installed, and keeps the rest of the file; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.audit", description=__doc__)
    parser.add_argument("--only", default=",".join(trainers.ALL))
    parser.add_argument("--into", type=pathlib.Path, default=FILE)
    asked = parser.parse_args()
    names = asked.only.split(",")
    if unknown := sorted(set(names) - set(trainers.ALL)):
        print(f"--only takes {', '.join(trainers.ALL)}, got {', '.join(unknown)}", file=sys.stderr)
        return 2
    found = json.loads(asked.into.read_text()) if asked.into.exists() else {}
    start = time.perf_counter()
    for name in names:
        try:
            importlib.metadata.version(trainers.ALL[name].package)
        except importlib.metadata.PackageNotFoundError:
            print(f"{name} is not installed here; what the file has of it is kept")
            continue
        found[name] = rounded(of_trainer(name))
    found = {name: found[name] for name in trainers.ALL if name in found}
    asked.into.write_text(written(found))
    count = sum(len(trainer["rows"]) for trainer in found.values())
    print(f"{count} rows in {asked.into}, {time.perf_counter() - start:.0f} s")
    return 0


if __name__ == "__main__":
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sys.exit(main())
