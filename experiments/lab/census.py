"""What each experiment claims and how it is controlled, counted.

    python -m experiments.lab.census

Prints for each experiment its lines, its claims, how many of them are run anew by a control and how
many are only read in a wrong way, and how many stand beside published and reference numbers.
"""

import importlib
from collections.abc import Iterator
from typing import NamedTuple

from experiments.lab import commands, records
from experiments.lab.claims import claims_of


class Count(NamedTuple):
    """The numbers of one experiment."""

    experiment: str
    lines: int
    claims: int
    rerun: int
    reread: int
    published: int
    reference: int


def census() -> Iterator[Count]:
    """The numbers of every experiment, by area and name."""
    for path in commands.configs():
        stem = path.relative_to(records.ROOT / "configs").with_suffix("").as_posix()
        file = records.ROOT / "experiments" / f"{stem}.py"
        claims = claims_of(importlib.import_module(f"experiments.{stem.replace('/', '.')}"))
        yield Count(
            stem,
            len(file.read_text(encoding="utf-8").splitlines()),
            len(claims),
            sum(bool(claim.reruns) for claim in claims),
            sum(not claim.reruns for claim in claims),
            sum(claim.published is not None for claim in claims),
            sum(claim.reference is not None for claim in claims),
        )


def main() -> None:
    """Prints the table and its sums."""
    counts = list(census())
    totals = [sum(column) for column in list(zip(*counts, strict=True))[1:]]
    print(f"{'experiment':36}" + "".join(f"{name:>11}" for name in Count._fields[1:]))
    for name, *numbers in [*counts, ("all", *totals)]:
        print(f"{name:36}" + "".join(f"{number:>11}" for number in numbers))


if __name__ == "__main__":
    main()
