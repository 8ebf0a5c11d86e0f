"""What this machine can do: bytes moved, exponentials and matrix products, each in a second.

    python -m benchmarks.bounds

No program that reads a logit, takes its exponential and writes a gradient is faster than these.
"""

from collections.abc import Callable, Iterator
from typing import Any

from benchmarks import table
from benchmarks.measure import interleaved, quantiles
from benchmarks.table import Row

ELEMENTS, TERMS, WIDTH = 1 << 25, 8, 3072


def exponentials(x: Any) -> Any:
    """So many of each number, independent of each other, in one fused loop."""
    import jax.numpy as jnp

    return sum(jnp.exp(x * (1 + number / TERMS)) for number in range(TERMS))


def in_place(x: Any) -> Callable[[], Any]:
    """Adds 1 to the numbers where they are: to write into fresh memory is to wait for pages."""
    import jax

    add = jax.jit(lambda x: x + 1, donate_argnums=0)
    held = [x]

    def call() -> None:
        held[0] = jax.block_until_ready(add(held[0]))

    return call


def rows() -> Iterator[Row]:
    """Rates by the least time of several."""
    import jax.numpy as jnp

    x = jnp.linspace(0.0, 1.0, ELEMENTS)
    short, square = x[: ELEMENTS // 8], x[: WIDTH**2].reshape(WIDTH, WIDTH)
    terms = table.compiled("XLA", "", exponentials, (short,)).call
    product = table.compiled("XLA", "", lambda x: x @ x, (square,)).call
    elsewhere = table.compiled("XLA", "", lambda x: x + 1, (x,)).call
    measured = (
        ("bandwidth", f"{ELEMENTS} numbers", "x + 1, in place", "bytes/s", 8 * x.size,
         in_place(x.copy())),
        ("fresh memory", f"{ELEMENTS} numbers", "x + 1, into new memory", "bytes/s",
         8 * x.size, elsewhere),
        ("exponentials", f"{len(short)} numbers", f"{TERMS} of each", "exp/s",
         TERMS * len(short), terms),
        ("matrix products", f"{WIDTH} x {WIDTH}", "x @ x", "flop/s", 2 * WIDTH**3, product),
    )  # fmt: skip
    for *_, call in measured:
        call()
    seconds = interleaved({name: call for name, *_, call in measured})
    for name, size, ran, unit, count, _ in measured:
        found = quantiles(seconds[name])
        yield Row(
            name, size, "float32", "XLA", ran, len(seconds[name]), *found,
            rate=count / found.least, unit=unit,
        )  # fmt: skip


if __name__ == "__main__":
    table.show(rows())
