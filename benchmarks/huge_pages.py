"""Divergences of logits once more, with memory in huge pages.

    GLIBC_TUNABLES=glibc.malloc.hugetlb=1 python -m benchmarks.huge_pages

Large results are written into memory that the process asks for anew, and Linux hands it out in
pages of four kilobytes: a good part of the time of those who write much. glibc asks for pages of
two megabytes where it is told to.
"""

from collections.abc import Iterator

from benchmarks import divergences, table
from benchmarks.table import Row

ENVIRONMENT = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
"""Read when the process starts."""


def rows() -> Iterator[Row]:
    """KL and Jensen-Shannon at the smaller size, in single precision."""
    import jax.numpy as jnp

    size = divergences.SIZES[0]
    p, q = (jnp.asarray(x) for x in divergences.logits(*size))
    compared = (
        ("KL, value and gradient", divergences.kl),
        ("Jensen-Shannon, value and gradient", divergences.jensen_shannon),
    )
    for name, contestants in compared:
        yield from table.compare(
            name, f"{size[0]} x {size[1]}, huge pages", "float32", contestants(p, q),
            work=divergences.work(*size, 4),
        )  # fmt: skip


if __name__ == "__main__":
    table.show(rows())
