"""Value and gradient of KL and Jensen-Shannon of installed libraries where numerics usually fail.

    python -m docs.generate.edges

writes docs/_data/edges.json. It needs the packages named in `PACKAGES` in one environment; the
page is made from the file, without them. Every function gets two vectors of logits, in the way its
documentation suggests, and is differentiated by both.
"""

import importlib.metadata
import json
import os
import pathlib
import platform
import warnings
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

DATA = pathlib.Path(__file__).parents[1] / "_data" / "edges.json"
PACKAGES = ("jax", "optax", "distrax", "rlax", "tfp-nightly", "numpyro", "ott-jax", "keras",
            "torch", "torchmetrics", "trl", "liger_kernel", "scipy")  # fmt: skip
INF = np.inf


class Case(NamedTuple):
    """Two vectors of logits."""

    p: np.ndarray
    q: np.ndarray
    dtype: str = "float32"


def logs(*numbers: float) -> np.ndarray:
    """Logarithms, -inf of 0."""
    with np.errstate(divide="ignore"):
        return np.log(np.array(numbers))


def cases() -> dict[str, Case]:
    """All cases by name."""
    rng = np.random.default_rng(0)
    wide = 3 * rng.standard_normal(32_000)
    return {
        "zero_of_p": Case(logs(0.5, 0.5, 0), logs(0.25, 0.5, 0.25)),
        "zero_of_q": Case(logs(0.25, 0.5, 0.25), logs(0.5, 0.5, 0)),
        "zero_of_both": Case(logs(0.5, 0.5, 0), logs(0.25, 0.75, 0)),
        "close": Case(wide, wide + 1e-3 * rng.standard_normal(32_000)),
        "bfloat16": Case(wide, wide + 0.05 * rng.standard_normal(32_000), "bfloat16"),
        "bfloat16_equal": Case(*[3 * rng.standard_normal(250_000)] * 2, "bfloat16"),
    }


# ------------------------------------------------------------------------------- what is right


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """In NumPy."""
    shifted = logits - logits.max()
    return shifted - np.log(np.exp(shifted).sum())


def true(name: str, p: np.ndarray, q: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """Value and gradients by both logits in long double, by the formulas with 0 log 0 = 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        log_p, log_q = (log_softmax(x.astype(np.longdouble)) for x in (p, q))
        p, q = np.exp(log_p), np.exp(log_q)

        def kl(p: np.ndarray, q: np.ndarray, score: np.ndarray) -> tuple:
            value = np.where(p > 0, p * score, 0).sum()
            return value, np.where(p > 0, p * (score - value), 0), q - p

        if name == "kl":
            return kl(p, q, np.where(p > 0, log_p - log_q, 0))
        mixture = (p + q) / 2
        to_p = np.where(p > 0, np.log(p / mixture), 0)
        to_q = np.where(q > 0, np.log(q / mixture), 0)
        first, second = (p * to_p).sum(), (q * to_q).sum()
        return ((first + second) / 2, p * (to_p - first) / 2, q * (to_q - second) / 2)


# ------------------------------------------------------------------------------- the libraries


def jax_functions() -> dict[str, dict[tuple[str, str], Callable]]:
    """Functions of `(p_logits, q_logits)` in JAX by divergence, library and call."""
    import distrax
    import jax
    import keras
    import numpyro.distributions as npd
    import optax
    import rlax
    from jax.scipy import special
    from ott.math import utils
    from tensorflow_probability.substrates import jax as tfp

    from jdiv import divergences as dv

    log, soft = jax.nn.log_softmax, jax.nn.softmax
    tfd = tfp.distributions
    kl = {
        ("jdiv", "dv.kl(p, q)"): dv.kl,
        ("JAX", "scipy.special.rel_entr"): lambda p, q: special.rel_entr(soft(p), soft(q)).sum(),
        ("JAX", "scipy.special.kl_div"): lambda p, q: special.kl_div(soft(p), soft(q)).sum(),
        ("optax", "losses.kl_divergence"): lambda p, q: optax.losses.kl_divergence(log(q), soft(p)),
        ("optax", "losses.kl_divergence_with_log_targets"): (
            lambda p, q: optax.losses.kl_divergence_with_log_targets(log(q), log(p))
        ),
        ("distrax", "Categorical(logits=)"): (
            lambda p, q: distrax.Categorical(p).kl_divergence(distrax.Categorical(q))
        ),
        ("distrax", "Categorical(probs=)"): (
            lambda p, q: distrax.Categorical(probs=soft(p)).kl_divergence(
                distrax.Categorical(probs=soft(q))
            )
        ),
        ("rlax", "categorical_kl_divergence"): rlax.categorical_kl_divergence,
        ("TFP on JAX", "Categorical(logits=)"): (
            lambda p, q: tfd.kl_divergence(tfd.Categorical(p), tfd.Categorical(q))
        ),
        ("NumPyro", "Categorical(probs=)"): (
            lambda p, q: npd.kl_divergence(
                npd.Categorical(probs=soft(p)), npd.Categorical(probs=soft(q))
            )
        ),
        ("OTT", "math.utils.kl"): lambda p, q: utils.kl(soft(p), soft(q)),
        ("Keras on JAX", "losses.kl_divergence"): (
            lambda p, q: keras.losses.kl_divergence(soft(p), soft(q))
        ),
    }  # fmt: skip
    return {"kl": kl, "js": {("jdiv", "dv.jensen_shannon(p, q)"): dv.jensen_shannon}}


def torch_functions() -> dict[str, dict[tuple[str, str], Callable]]:
    """The same in PyTorch."""
    import torch
    import torchmetrics.functional as metrics
    from liger_kernel.chunked_loss.jsd_loss import LigerFusedLinearJSDFunction as Liger
    from torch import distributions as td
    from torch.nn import functional as F
    from trl.experimental.gkd import GKDTrainer

    def log(x: torch.Tensor) -> torch.Tensor:
        return F.log_softmax(x, dim=-1)

    def soft(x: torch.Tensor) -> torch.Tensor:
        return F.softmax(x, dim=-1)

    def generalized(p: torch.Tensor, q: torch.Tensor, beta: float) -> torch.Tensor:
        # The student's logits come first; at beta = 0 this is KL(teacher‖student).
        return GKDTrainer.generalized_jsd_loss(q[None, None], p[None, None], beta=beta)

    def liger(p: torch.Tensor, q: torch.Tensor, beta: float) -> torch.Tensor:
        return Liger.distillation_loss_fn(q[None], p[None], beta=beta).sum()

    kl = {
        ("PyTorch", "nn.functional.kl_div"): lambda p, q: F.kl_div(
            log(q), soft(p), reduction="sum"
        ),
        ("PyTorch", "nn.functional.kl_div(log_target=True)"): (
            lambda p, q: F.kl_div(log(q), log(p), reduction="sum", log_target=True)
        ),
        ("PyTorch", "distributions.kl_divergence"): (
            lambda p, q: td.kl_divergence(td.Categorical(logits=p), td.Categorical(logits=q))
        ),
        ("TorchMetrics", "kl_divergence"): (
            lambda p, q: metrics.kl_divergence(soft(p)[None], soft(q)[None])
        ),
        ("TorchMetrics", "kl_divergence(log_prob=True)"): (
            lambda p, q: metrics.kl_divergence(log(p)[None], log(q)[None], log_prob=True)
        ),
        ("TRL", "generalized_jsd_loss(beta=0)"): lambda p, q: generalized(p, q, 0),
        ("Liger", "distillation_loss_fn(beta=0)"): lambda p, q: liger(p, q, 0),
    }
    js = {
        ("TRL", "generalized_jsd_loss(beta=0.5)"): lambda p, q: generalized(p, q, 0.5),
        ("Liger", "distillation_loss_fn(beta=0.5)"): lambda p, q: liger(p, q, 0.5),
    }
    return {"kl": kl, "js": js}


def scipy_functions() -> dict[str, dict[tuple[str, str], Callable]]:
    """Values only."""
    from scipy import spatial, special, stats

    def soft(x: np.ndarray) -> np.ndarray:
        return special.softmax(x)

    return {
        "kl": {
            ("SciPy", "special.rel_entr"): lambda p, q: special.rel_entr(soft(p), soft(q)).sum(),
            ("SciPy", "stats.entropy"): lambda p, q: stats.entropy(soft(p), soft(q)),
        },
        "js": {
            ("SciPy", "spatial.distance.jensenshannon²"): (
                lambda p, q: spatial.distance.jensenshannon(soft(p), soft(q)) ** 2
            )
        },
    }


# --------------------------------------------------------------------------------------- running


def by_jax(f: Callable, case: Case) -> tuple:
    """Value and both gradients, jitted."""
    import jax
    import jax.numpy as jnp

    both = jax.jit(jax.value_and_grad(f, argnums=(0, 1)))
    value, (by_p, by_q) = both(*(jnp.asarray(x, case.dtype) for x in (case.p, case.q)))
    return float(value), np.asarray(by_p, np.float64), np.asarray(by_q, np.float64)


def by_torch(f: Callable, case: Case) -> tuple:
    """Value and both gradients."""
    import torch

    dtype = getattr(torch, case.dtype)
    p, q = (torch.tensor(x, dtype=dtype).requires_grad_() for x in (case.p, case.q))
    value = f(p, q)
    value.backward()
    return float(value), p.grad.double().numpy(), q.grad.double().numpy()


def by_scipy(f: Callable, case: Case) -> tuple:
    """The value in float32, where the numbers are float32's."""
    if case.dtype != "float32":
        raise TypeError("no bfloat16")
    return float(f(case.p.astype(np.float32), case.q.astype(np.float32))), None, None


def error(found: np.ndarray | None, right: np.ndarray) -> float | str | None:
    """Relative error of a gradient, "NaN" if it holds one, None if there is none."""
    if found is None:
        return None
    if not np.all(np.isfinite(found)):
        return "NaN"
    size = float(np.linalg.norm(right.astype(np.float64)))
    distance = float(np.linalg.norm(found - right.astype(np.float64)))
    return distance / size if size else distance


def seen(name: str, run: Callable, f: Callable, case: Case) -> dict:
    """What came out, as JSON has it."""
    import ml_dtypes

    dtype = ml_dtypes.bfloat16 if case.dtype == "bfloat16" else np.float32
    rounded = [x.astype(dtype).astype(np.float64) for x in (case.p, case.q)]
    value, by_p, by_q = true(name, *rounded)
    try:
        found, found_p, found_q = run(f, case)
    except (TypeError, ValueError, RuntimeError) as problem:
        return {"refused": type(problem).__name__}
    finite = bool(np.isfinite(value))
    return {
        "value": found if np.isfinite(found) else str(found),
        "true": float(value) if finite else "inf",
        "by_p": error(found_p, by_p) if finite else None,
        "by_q": error(found_q, by_q) if finite else None,
    }


def computed() -> dict:
    """Everything on the page."""
    from jdiv import divergences

    del divergences  # Fails here if the library is not at hand, and not in the middle.
    found = {"kl": [], "js": []}
    for run, functions in (
        (by_jax, jax_functions()), (by_torch, torch_functions()), (by_scipy, scipy_functions())
    ):  # fmt: skip
        for name, rows in functions.items():
            for (library, call), f in rows.items():
                outcomes = {key: seen(name, run, f, case) for key, case in cases().items()}
                found[name].append({"library": library, "call": call, "cases": outcomes})
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    return found | {"versions": versions | {"python": platform.python_version()}}


if __name__ == "__main__":
    os.environ |= {"KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        numbers = computed()
    DATA.write_text(json.dumps(numbers, indent=1, ensure_ascii=False) + "\n")
