"""Random pairs of logits in float32 against float64: every row, Renyi, Bregman, Cauchy-Schwarz.

    python -m tests.search.divergences --problems=20000 --seed=0

Offsets up to 1e4, spreads and distances from 1e-8 to 1e4, zeros, ties, parameters of their whole
range. The inputs are float32 numbers, and the truth is the library's float64 value of the same
numbers, of which a sample is recomputed in mpmath. Where the truth is between 1e-30 (the masses of
smaller ones underflow) and 1e37 (the parts of larger ones overflow) the value has to be within 1e-4
of it, below within 1e-34, and above it has to be as large or infinite. A gradient has to be within
1e-4 of its largest component, next to the rounding of the value that it is a difference of, or of
what the value lacks to its largest. Total variation has no gradient where p = q in a category and
is left out there.
"""

import argparse
import functools

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np

from jdiv import divergences as dv
from jdiv import generators
from tests import high_precision

CATEGORIES = 6
TOLERANCE = 1e-4
SMALLEST, LARGEST = 1e-30, 1e37
ROUNDING = 32 * float(np.finfo(np.float32).eps)

OTHERS = {"renyi": "alpha", "bregman": "alpha", "bhattacharyya": None, "cauchy_schwarz": None}
NAMES = {**{name: next(iter(make.parameters()), None) for name, make in generators.TABLE.items()},
         **OTHERS}  # fmt: skip


def problems(count: int, seed: int) -> tuple[np.ndarray, np.ndarray, dict]:
    """Pairs of logits `[count, CATEGORIES]` in float32, and parameters by name."""
    rng = np.random.default_rng(seed)
    power = lambda low, high: 10.0 ** rng.uniform(low, high, (count, 1))
    normal = lambda: rng.normal(size=(count, CATEGORIES))
    offset = lambda: rng.choice([-1, 0, 1, 1], (count, 1)) * power(-2, 4)
    p = power(-8, 4) * normal()
    near = rng.random((count, 1)) < 0.5
    q = np.where(near, p + power(-8, 2) * normal(), power(-8, 4) * normal())
    p, q = p + offset(), q + offset()
    tied = rng.random(count) < 0.1
    p[tied, 1], q[tied, 1] = p[tied, 0], q[tied, 0]
    for x, share in ((p, 0.03), (q, 0.01)):
        x[:, 1:][rng.random((count, CATEGORIES - 1)) < share] = -np.inf
    unit = rng.uniform(-7, 7, count)
    parameters = {
        "weight": np.where(unit < 0, 10**unit / 2, 1 - 10**-unit / 2),
        "alpha": rng.choice([0.3, 0.5, 0.9, 1.0, 1.001, 1.7, 2.0, 3.0], count),
        "gamma": power(-3, 2)[:, 0],
    }
    parameters |= {"skew": parameters["weight"], "index": parameters["alpha"]}
    single = {name: x.astype(np.float32) for name, x in parameters.items()}
    single["weight"] = single["skew"] = np.clip(single["weight"], 1e-7, 1 - 2.0**-24)
    return p.astype(np.float32), q.astype(np.float32), single


@functools.cache
def compiled(name: str):
    """Values and gradients of a batch, as one program for each precision."""

    def of(p, q, parameter):
        given = {NAMES[name]: parameter} if NAMES[name] else {}
        value, pullback = jax.vjp(lambda p, q: getattr(dv, name)(p, q, **given), p, q)
        return value, *pullback(jnp.ones_like(value))

    return jax.jit(of)


def evaluate(name: str, p, q, parameters: dict, dtype) -> list[np.ndarray]:
    """Value and gradients in this precision, as float64."""
    with jax.enable_x64(True):
        cast = lambda x: jnp.asarray(np.asarray(x, dtype))
        parameter = cast(parameters.get(NAMES[name], np.zeros(len(p))))
        return [np.asarray(x, np.float64) for x in compiled(name)(cast(p), cast(q), parameter)]


def errors(name: str, p, q, parameters: dict) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Errors of values and of gradients `[count]`, and the float64 values."""
    single = evaluate(name, p, q, parameters, np.float32)
    double = evaluate(name, p, q, parameters, np.float64)
    value = _value_error(single[0], double[0])
    largest = _largest(name, parameters)
    with np.errstate(invalid="ignore"):
        # What a value lacks is known to a rounding of the largest one, in float64.
        lacking = largest - double[0] + largest * np.finfo(np.float64).eps
        size = np.minimum(double[0], lacking)
    each = [_gradient_error(*x, size) for x in zip(single[1:], double[1:], strict=True)]
    counts = (double[0] < LARGEST) & (name != "total_variation")
    return value, np.where(counts, np.maximum(*each), 0), double[0]


def _largest(name: str, parameters: dict) -> np.ndarray:
    """The divergence of pairs with nothing in common, which may be infinite."""
    if name in OTHERS:
        return np.inf
    with jax.enable_x64(True):
        given = {NAMES[name]: np.float64(parameters[NAMES[name]])} if NAMES[name] else {}
        row = generators.get(name, **given)
        return np.asarray(row.at_zero) + np.asarray(row.slope_at_infinity)


def _value_error(found, truth):
    """Relative where the truth is representable; else whether it is infinite or tiny, too."""
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        error = abs(found - truth) / np.maximum(truth, SMALLEST)
        error = np.where(truth > LARGEST, np.where(found > LARGEST / 2, 0, np.inf), error)
    return np.where(np.isnan(error), np.inf, error)


def _gradient_error(found, truth, size):
    """The largest error of a component, relative to the largest component and some rounding."""
    scale = np.max(np.abs(truth), axis=-1)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        error = np.max(np.abs(found - truth), axis=-1)
        error /= np.maximum(scale, SMALLEST) + size * ROUNDING / TOLERANCE
    return np.where(scale > LARGEST, 0, np.where(np.isnan(error), np.inf, error))


def exact(name: str, p, q, parameters: dict) -> mp.mpf:
    """The value of one pair in mpmath."""
    rows = [high_precision.softmax([None if np.isinf(z) else float(z) for z in x]) for x in (p, q)]
    given = {}
    if NAMES[name]:
        value = float(parameters[NAMES[name]])
        given = {NAMES[name]: value if value not in (0.0, 1.0) else value + mp.mpf(10) ** -60}
    # Categories that neither has count nothing; a zero of q alone has no negative power.
    rows = zip(*((x, y) for x, y in zip(*rows, strict=True) if x or y), strict=True)
    try:
        return high_precision.divergence(name, *map(list, rows), **given)
    except ZeroDivisionError:
        return mp.inf


def check_double(name: str, p, q, parameters: dict, truth: np.ndarray) -> float:
    """The largest relative error of float64 values against mpmath."""
    worst = 0.0
    with mp.workdps(200):
        for i in range(len(p)):
            value = exact(name, p[i], q[i], {k: x[i] for k, x in parameters.items()})
            if value > 1e300 or value < 1e-60:
                continue
            worst = max(worst, float(abs(truth[i] - value) / value))
    return worst


def search(count: int, seed: int, sample: int, names=tuple(NAMES)) -> dict[str, tuple]:
    """For each name: the largest errors of value, gradient and float64, and where they are."""
    p, q, parameters = problems(count, seed)
    found = {}
    for name in names:
        value, gradient, truth = errors(name, p, q, parameters)
        few = {k: x[:sample] for k, x in parameters.items()}
        double = check_double(name, p[:sample], q[:sample], few, truth)
        found[name] = value, gradient, double
    return found


def main() -> None:
    """Prints the largest errors of each name."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--problems", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sample", type=int, default=100, help="pairs for mpmath")
    parser.add_argument("--names", default=",".join(NAMES))
    parser.add_argument("--show", type=int, default=0, help="of the worst, so many")
    options = parser.parse_args()
    p, q, parameters = problems(options.problems, options.seed)
    names = options.names.split(",")
    for name, (value, gradient, double) in search(
        options.problems, options.seed, options.sample, names
    ).items():
        print(f"{name:18} value {value.max():.1e} ({np.sum(value > TOLERANCE)} above), gradient "
              f"{gradient.max():.1e} ({np.sum(gradient > TOLERANCE)}), float64 {double:.1e}",
              flush=True)  # fmt: skip
        for error in (value, gradient):
            for i in np.argsort(-error)[: options.show]:
                if error[i] > TOLERANCE:
                    given = parameters[NAMES[name]][i] if NAMES[name] else None
                    print("   ", error[i], p[i].tolist(), q[i].tolist(), given)


if __name__ == "__main__":
    main()
