"""Divergences in JAX, as pure functions: exact, estimated, regularized with and minimized.

`from jdiv import divergences as dv, generators` is where most begin. A package is imported when it
is first used: `import jdiv` costs no more than `import jax`.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jdiv import (
        alignment,
        bandits,
        checkpoints,
        checks,
        decoding,
        distillation,
        divergences,
        estimators,
        games,
        lm,
        mdp,
        numerics,
        parallel,
        policy,
        regularized,
        roots,
        testing,
        types,
        unlearning,
    )
    from jdiv.divergences import generators

__version__ = "0.1.0"

__all__ = [
    "alignment",
    "bandits",
    "checkpoints",
    "checks",
    "decoding",
    "distillation",
    "divergences",
    "estimators",
    "games",
    "generators",
    "lm",
    "mdp",
    "numerics",
    "parallel",
    "policy",
    "regularized",
    "roots",
    "testing",
    "types",
    "unlearning",
]


def __getattr__(name: str) -> ModuleType:
    """The packages, at first use."""
    if name in __all__:
        return importlib.import_module(f"jdiv.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
