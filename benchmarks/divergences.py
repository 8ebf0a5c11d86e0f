"""Value and gradient of divergences from two arrays of logits, by the logits of p.

    python -m benchmarks.divergences

The value is the mean over rows of logits. All of JAX is compiled, PyTorch is eager as trainers run
it. bfloat16 goes in as it is: jdiv widens it, what others do with it is compared with jdiv.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from benchmarks import measure, table
from benchmarks.table import Contestant, Row

SIZES = ((1024, 32_000), (256, 128_256))
EVERY_ROW = SIZES[0]
AGREE, HALF, CHECKED = 1e-3, 0.5, 8
"""Largest differences from jdiv in float32, and in bfloat16, where they are written down."""


def logits(rows: int, vocabulary: int) -> tuple[np.ndarray, np.ndarray]:
    """A teacher, and a student that is not far from it."""
    rng = np.random.default_rng(0)
    q = 3 * rng.standard_normal((rows, vocabulary), dtype=np.float32)
    return q + 0.5 * rng.standard_normal((rows, vocabulary), dtype=np.float32), q


def work(rows: int, vocabulary: int, width: int) -> dict[str, float]:
    """At least: both logits are read and a gradient written, an exponential is taken of each."""
    count = rows * vocabulary
    return {"moved_bytes": 3.0 * width * count, "exponentials": 2.0 * count}


# ------------------------------------------------------------------------------- the plain forms


def plain_kl(p: Any, q: Any) -> Any:
    """KL(p‖q) as one writes it."""
    from jax.nn import log_softmax, softmax

    return (softmax(p) * (log_softmax(p) - log_softmax(q))).sum(-1)


def plain_js(p: Any, q: Any) -> Any:
    """Jensen-Shannon by the logarithm of the mixture."""
    import jax.numpy as jnp
    from jax.nn import log_softmax

    log_p, log_q = log_softmax(p), log_softmax(q)
    log_m = jnp.logaddexp(log_p, log_q) - jnp.log(jnp.asarray(2, log_p.dtype))
    return (jnp.exp(log_p) * (log_p - log_m) + jnp.exp(log_q) * (log_q - log_m)).sum(-1) / 2


def check(f: Callable, plain: Callable, p: Any, q: Any) -> None:
    """Asserts jdiv's value and gradient of a few rows against a form in double precision."""
    import jax

    graded = lambda g: jax.jit(jax.value_and_grad(lambda p, q: g(p, q).mean()))
    few = p[:CHECKED], q[:CHECKED]
    found = graded(f)(*few)
    with jax.enable_x64(True):
        expected = graded(plain)(*(np.asarray(x, np.float64) for x in few))
    # A gradient in bfloat16 is rounded to 8 bits at its end.
    tolerance = 1e-5 if p.dtype == np.float32 else 4e-3
    assert measure.difference(found, expected) < tolerance, (f, p.dtype)


# ------------------------------------------------------------------------------------ contestants


def in_jax(name: str, ran: str, f: Callable, p: Any, q: Any) -> Contestant:
    """Value and gradient of the mean of `f(p, q)`, compiled."""
    import jax
    import jax.numpy as jnp

    mean = lambda p, q: jnp.mean(f(p, q))
    tolerance = AGREE if p.dtype == np.float32 else HALF
    return table.compiled(name, ran, jax.value_and_grad(mean), (p, q), tolerance=tolerance)


def in_torch(name: str, ran: str, f: Callable, p: Any, q: Any) -> Contestant:
    """Value and gradient of the scalar `f(p, q)`, eager."""
    import torch

    p, q = (torch.from_numpy(np.array(x, np.float32)).to(_torch_type(x)) for x in (p, q))

    def call() -> tuple[Any, Any]:
        leaf = p.detach().requires_grad_()
        value = f(leaf, q)
        value.backward()
        return value.detach(), leaf.grad

    ran = f"{ran}, eager, {torch.get_num_threads()} threads"
    tolerance = AGREE if p.dtype == torch.float32 else HALF
    return Contestant(name, ran, call, _of_torch, tolerance=tolerance)


def _torch_type(x: Any) -> Any:
    import torch

    return getattr(torch, str(x.dtype))


def _of_torch(result: Any) -> list[np.ndarray]:
    return [x.float().numpy() for x in result]


def kl(p: Any, q: Any) -> list[Contestant]:
    """KL(p‖q), as each library's documentation has it."""
    from jax.nn import log_softmax

    from jdiv import divergences as dv

    def optax() -> Contestant:
        from optax import losses

        f = lambda p, q: losses.kl_divergence_with_log_targets(log_softmax(q), log_softmax(p))
        return in_jax("optax", "losses.kl_divergence_with_log_targets", f, p, q)

    def distrax() -> Contestant:
        import distrax as peer

        f = lambda p, q: peer.Categorical(p).kl_divergence(peer.Categorical(q))
        return in_jax("distrax", "Categorical(logits).kl_divergence", f, p, q)

    def torch() -> Contestant:
        from torch.nn import functional as F

        def f(p, q):
            log_p, log_q = F.log_softmax(p, dim=-1), F.log_softmax(q, dim=-1)
            return F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)

        return in_torch("torch", "nn.functional.kl_div(log_target=True)", f, p, q)

    return [
        in_jax("jdiv", "divergences.kl", dv.kl, p, q),
        in_jax("plain JAX", "softmax(p) * (log_softmax(p) - log_softmax(q))", plain_kl, p, q),
        *table.peers(optax, distrax, torch),
    ]


def jensen_shannon(p: Any, q: Any) -> list[Contestant]:
    """`KL(p‖m)/2 + KL(q‖m)/2` with the mixture m, by logarithms and through probabilities."""
    import jax.numpy as jnp
    from jax.nn import softmax

    from jdiv import divergences as dv

    def by_probabilities(p, q):
        p, q = softmax(p), softmax(q)
        m = (p + q) / 2
        return (p * jnp.log(p / m) + q * jnp.log(q / m)).sum(-1) / 2

    def trl() -> Contestant:
        from trl.experimental.gkd import GKDTrainer

        f = lambda p, q: GKDTrainer.generalized_jsd_loss(p, q, beta=0.5)
        return in_torch("TRL", "GKDTrainer.generalized_jsd_loss", f, p, q)

    return [
        in_jax("jdiv", "divergences.jensen_shannon", dv.jensen_shannon, p, q),
        in_jax("plain JAX", "log-softmax, logaddexp", plain_js, p, q),
        in_jax("plain JAX, probabilities", "softmax, log(p / m)", by_probabilities, p, q),
        *table.peers(trl),
    ]


# ------------------------------------------------------------------------------------------- rows


def rows() -> Iterator[Row]:
    """KL and Jensen-Shannon beside peers, then every row of the table beside KL."""
    import jax.numpy as jnp

    from jdiv import divergences as dv

    for size in SIZES:
        for dtype in ("float32", "bfloat16"):
            p, q = (jnp.asarray(x, dtype) for x in logits(*size))
            check(dv.kl, plain_kl, p, q)
            check(dv.jensen_shannon, plain_js, p, q)
            of = functools.partial(
                table.compare,
                size=f"{size[0]} x {size[1]}", dtype=dtype, work=work(*size, p.dtype.itemsize),
            )  # fmt: skip
            yield from of("KL, value and gradient", contestants=kl(p, q))
            yield from of("Jensen-Shannon, value and gradient", contestants=jensen_shannon(p, q))
    yield from every_row()


def every_row() -> Iterator[Row]:
    """Each divergence of the table in one comparison, KL first."""
    import jax.numpy as jnp

    from jdiv.divergences import categorical

    p, q = (jnp.asarray(x) for x in logits(*EVERY_ROW))
    names = ["kl", *(name for name in categorical.TABLE if name != "kl")]
    for name in names:
        check(categorical.TABLE[name], categorical.TABLE[name], p, q)
    contestants = [
        in_jax(name, f"divergences.{name}", categorical.TABLE[name], p, q)._replace(numbers=None)
        for name in names
    ]
    yield from table.compare(
        "every row, value and gradient", f"{EVERY_ROW[0]} x {EVERY_ROW[1]}", "float32",
        contestants, work=work(*EVERY_ROW, 4), budget=60.0,
    )  # fmt: skip


if __name__ == "__main__":
    table.show(rows())
