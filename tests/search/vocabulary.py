"""Divergences from hidden states against the plain function on all logits, every row, any size.

    python -m tests.search.vocabulary [--sizes=1,7,211,3000,49152,50257] [--only=kl,...]

Each problem has eleven tokens: random ones, masses below e^-104 on both sides, low
temperatures, masked ones with NaN; columns that do not exist, with NaN; and, from two categories
on, exact zeros by a bias of -inf. Hidden states and heads are multiples of 1/8, so that products
are exact and what differs is the divergence alone. In single precision values agree to 1e-6 and
gradients to 1e-5, with tiles of four tokens, which do not divide eleven.
"""

import argparse
import functools

import jax
import jax.numpy as jnp
import numpy as np

from jdiv import divergences as dv
from jdiv import generators
from jdiv.divergences import vocabulary
from tests.checks import PARAMETERS

TOKENS, WIDTH, TILE = 11, 4, 4
LARGEST = 1e30
TEMPERATURES = np.array([1, 1, 1, 1, 0.05, 0.05, 0.05, 1, 1, 1, 2.0])
PADDED = 3
"""Columns beyond the vocabulary."""


def problem(size: int, seed: int) -> dict[str, np.ndarray]:
    """Arrays of a problem with this vocabulary, in single precision."""
    rng = np.random.default_rng(seed)
    eighths = lambda *shape: rng.integers(-16, 17, shape) / 8
    hidden, ref_hidden = eighths(TOKENS, WIDTH), eighths(TOKENS, WIDTH)
    head = eighths(size + PADDED, WIDTH)
    ref_head = head + eighths(size + PADDED, WIDTH) / 4
    hidden[2:4] *= 32  # logits of a few hundred
    ref_hidden[2:4] = hidden[2:4] + 1
    hidden[9] = np.nan
    ref_hidden[9] = np.inf
    where = np.arange(size + PADDED) < size
    head[size:], ref_head[size:] = np.nan, 7
    bias = np.zeros(size + PADDED)
    bias[1 : size - 1 : 5] = -np.inf
    singles = dict(hidden=hidden, ref_hidden=ref_hidden, head=head, ref_head=ref_head, bias=bias,
                   temperature=TEMPERATURES)  # fmt: skip
    singles = {name: x.astype(np.float32) for name, x in singles.items()}
    return {**singles, "where": where, "mask": np.arange(TOKENS) != 9}


def sides(given: dict) -> tuple[vocabulary.FromHidden, vocabulary.FromHidden]:
    """The model and the reference; zeros are common to both."""
    p = vocabulary.FromHidden(
        given["hidden"], given["head"], given["bias"], 30.0, given["temperature"]
    )
    q = vocabulary.FromHidden(
        given["ref_hidden"], given["ref_head"], given["bias"], None, given["temperature"]
    )
    return p, q


def plain(generator: dv.Generator, given: dict) -> jax.Array:
    """By the function on logits, which are all there."""
    mask, where = given["mask"], given["where"]
    logits = []
    for side in sides(given):
        hidden = jnp.where(mask[:, None], side.hidden, 0)
        head = jnp.where(where[:, None], side.head, 0)
        z = jnp.matmul(hidden, head.T, precision="highest") + side.bias[None]
        zero = z == -jnp.inf
        z = jnp.where(zero, 0, z)
        z = z if side.soft_cap is None else side.soft_cap * jnp.tanh(z / side.soft_cap)
        logits.append(jnp.where(zero, -jnp.inf, z / side.temperature[:, None]))
    return dv.f_divergence(generator, *logits, where=mask[:, None] & where[None])


def tiled(generator: dv.Generator, given: dict) -> jax.Array:
    """A tile of tokens at a time."""
    p, q = sides(given)
    return vocabulary.divergence(
        generator, p, q, mask=given["mask"], where=given["where"], tile=TILE
    )


DIFFERENTIATED = "hidden", "ref_hidden", "head", "ref_head", "temperature"


@functools.cache
def compiled(name: str):
    """Values, and gradients of a weighted sum of them, both ways; the row's parameters traced.

    Tokens at which the divergence overflows in single precision are masked, too.
    """

    @jax.jit
    def both(parameters, given):
        finite = plain(generators.get(name, **parameters), given) < LARGEST

        def result(f):
            def total(parameters, some):
                generator = generators.get(name, **parameters)
                values = f(generator, given | some | {"mask": given["mask"] & finite})
                return jnp.sum(values * jnp.linspace(1, 2, TOKENS, dtype=values.dtype)), values

            some = {key: given[key] for key in DIFFERENTIATED}
            return jax.grad(total, (0, 1), has_aux=True)(parameters, some)

        return result(plain), result(tiled)

    return both


def distances(name: str, size: int, seed: int = 0) -> tuple[float, float]:
    """How far values and gradients are apart at most, relative to themselves or to 1."""
    parameters = {key: np.float32(x) for key, x in PARAMETERS[name].items()}
    (gradients, values), (other_gradients, other_values) = jax.tree.map(
        np.asarray, compiled(name)(parameters, problem(size, seed))
    )
    assert np.all(np.isfinite(values))
    assert values[9] == other_values[9] == 0
    value = np.max(np.abs(values - other_values) / np.maximum(values, 1))
    gradient = 0.0
    for a, b in zip(jax.tree.leaves(gradients), jax.tree.leaves(other_gradients), strict=True):
        assert np.all(np.isfinite(a))
        gradient = max(gradient, np.max(np.abs(a - b)) / max(np.max(np.abs(a)), 1e-3))
    return float(value), float(gradient)


def main() -> None:
    """Prints the distances of every row and size; exit code 1 if one is too far."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default="1,7,211,3000,49152,50257")
    parser.add_argument("--only", default=",".join(generators.TABLE))
    arguments = parser.parse_args()
    wrong = []
    for name in arguments.only.split(","):
        for size in map(int, arguments.sizes.split(",")):
            value, gradient = distances(name, size)
            print(f"{name} {size}: values {value:.1e}, gradients {gradient:.1e}", flush=True)
            if not (value <= 1e-6 and gradient <= 1e-5):
                wrong.append(f"{name} {size}")
    if wrong:
        raise SystemExit(f"too far: {', '.join(wrong)}")


if __name__ == "__main__":
    main()
