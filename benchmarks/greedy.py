"""Regularized greedy policies of every row, over a log-softmax and against a scalar solver.

    python -m benchmarks.greedy

With KL the policy is a softmax, which every other row is measured by: it does what a log-softmax
does, and has to find its normalizer. SciPy finds it row by row with brentq, in double precision,
for the rows of which the inverse of f' is a formula.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from benchmarks import measure, table
from benchmarks.table import Contestant, Row

SIZES = ((1024, 1000), (64, 50_000))
SOLVED = (128, 1000)
"""What SciPy is given."""
TEMPERATURE = 0.5


def problem(rows: int, actions: int) -> tuple[np.ndarray, np.ndarray]:
    """Values of the actions and logits of the reference."""
    rng = np.random.default_rng(0)
    return tuple(rng.standard_normal((2, rows, actions), dtype=np.float32))


def in_jax(name: str, values: Any, ref_logits: Any) -> Contestant:
    """The policy and its value of a row of the table, with its parameters as they are."""
    from jdiv import generators, regularized

    def f(values, ref_logits):
        best = regularized.greedy(values, ref_logits, TEMPERATURE, generator=generators.get(name))
        return best.log_policy, best.value

    return table.compiled(name, "regularized.greedy", f, (values, ref_logits))


def log_softmax(values: Any, ref_logits: Any) -> Contestant:
    """The policy of KL, and its value, as one writes them."""
    import jax

    def f(values, ref_logits):
        logits = jax.nn.log_softmax(ref_logits) + values / TEMPERATURE
        return jax.nn.log_softmax(logits), TEMPERATURE * jax.nn.logsumexp(logits, axis=-1)

    return table.compiled("log-softmax", "jax.nn.log_softmax", f, (values, ref_logits))


# ------------------------------------------------------------------------------------------- SciPy


def inverse_slopes() -> dict[str, tuple[Callable, float]]:
    """`u` with `f'(u) = y`, up to a shift of y, and the least upper bound of y."""
    from scipy.special import lambertw

    def jeffreys(y: np.ndarray) -> np.ndarray:
        # e^(1-y) is too large for a number where y is far below.
        x = 1 - y
        w = lambertw(np.exp(np.minimum(x, 500))).real
        for _ in range(4):
            w = np.where(x > 500, x - np.log(np.maximum(w, 1)), w)
        return 1 / w

    with_formula = {
        "kl": (np.exp, np.inf),
        "reverse_kl": (lambda y: -1 / y, 0.0),
        "jeffreys": (jeffreys, np.inf),
        "jensen_shannon": (lambda y: np.exp(2 * y) / (2 - np.exp(2 * y)), np.log(2) / 2),
        "squared_hellinger": (lambda y: 0.25 / y**2, 0.0),
        "pearson_chi2": (lambda y: np.maximum(0, y / 2), np.inf),
        "neyman_chi2": (lambda y: 1 / np.sqrt(1 - y), 1.0),
        "le_cam": (
            lambda y: np.maximum(0, np.sqrt(2 / (0.5 - np.minimum(y, 0.499999999999))) - 1),
            0.5,
        ),
    }
    return with_formula


def by_brentq(name: str, values: np.ndarray, ref_logits: np.ndarray) -> Contestant:
    """The policies of the rows, one after the other."""
    from scipy.optimize import brentq
    from scipy.special import softmax

    inverse, bound = inverse_slopes()[name]
    values, ref = values.astype(np.float64), softmax(ref_logits.astype(np.float64), axis=-1)

    def policy(values: np.ndarray, ref: np.ndarray) -> np.ndarray:
        scaled = values / TEMPERATURE
        at = lambda normalizer: ref * inverse(scaled - normalizer)
        excess = lambda normalizer: at(normalizer).sum() - 1
        # Below the lowest normalizer f' has no inverse; a step above it there is too much mass.
        low = scaled.max() - (bound if np.isfinite(bound) else 700.0)
        low += 1e-9 * max(1.0, abs(low))
        high = low + 1.0
        while excess(high) > 0:
            high += high - low
        return at(brentq(excess, low, high, xtol=1e-13, rtol=1e-14))

    call = lambda: np.stack([policy(*row) for row in zip(values, ref, strict=True)])
    return Contestant("scipy", "optimize.brentq on the normalizer", call, lambda p: [p])


# -------------------------------------------------------------------------------------------- rows


def rows() -> Iterator[Row]:
    """Every row over log-softmax at each size, then against SciPy."""
    import jax.numpy as jnp

    from jdiv import generators

    for size in SIZES:
        arrays = [jnp.asarray(x) for x in problem(*size)]
        base = log_softmax(*arrays)
        kl = in_jax("kl", *arrays)
        assert measure.difference(kl.call(), base.call()) < 1e-5
        for name in generators.TABLE:
            one = kl if name == "kl" else in_jax(name, *arrays)
            pair = table.compare(
                "greedy, policy and value", f"{size[0]} x {size[1]}", "float32",
                [base._replace(numbers=None), one._replace(numbers=None)], budget=2.5,
            )  # fmt: skip
            yield from (row for row in pair if name == "kl" or row.implementation == name)
    values, ref_logits = problem(*SOLVED)
    for name in inverse_slopes():
        own = in_jax(name, jnp.asarray(values), jnp.asarray(ref_logits))
        own = own._replace(
            name="jdiv", numbers=lambda best: [np.exp(np.asarray(best[0], np.float64))]
        )
        yield from table.compare(
            f"greedy of {name}", f"{SOLVED[0]} x {SOLVED[1]}", "float32, scipy float64",
            [own, *table.peers(functools.partial(by_brentq, name, values, ref_logits))], budget=2.0,
        )  # fmt: skip


if __name__ == "__main__":
    table.show(rows())
