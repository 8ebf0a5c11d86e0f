"""Strict settings for every test: eight simulated devices, double precision, no silent casts."""

import importlib.metadata
import os
import pathlib

import chex
import jax
import pytest

from jdiv import parallel

# Most of the time goes into compiling. XLA's older code generator is faster at it; jaxlib 0.11 does
# not have it, and an unknown flag ends the process.
FLAGS = ["backend_optimization_level=0", "llvm_disable_expensive_passes=true",
         "cpu_parallel_codegen_split_count=1"]  # fmt: skip
if importlib.metadata.version("jaxlib").startswith("0.10."):
    FLAGS.append("cpu_use_fusion_emitters=false")
os.environ.setdefault("XLA_FLAGS", " ".join(f"--xla_{flag}" for flag in FLAGS))

# A second run on the same machine finds its programs compiled.
CACHE = pathlib.Path(__file__).parents[1] / ".cache" / "jax"
jax.config.update("jax_compilation_cache_dir", str(CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_platforms", "cpu")
parallel.divide_cpu(8)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")


@pytest.fixture(autouse=True)
def double_precision():
    """Tests compare in float64; what is about float32 says so with its arrays."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def same_everywhere():
    """Asserts that f of `[8, ...]` arrays is the same eagerly, jitted, vmapped and pmapped.

    f maps over the leading axis by itself; vmap and pmap take it away. What vmap makes of f is
    compiled as one program: eagerly each operation of it would be one.
    """

    def check(f, *arrays, rtol=1e-12):
        eager = f(*arrays)
        for transformed in (jax.jit(f), jax.jit(jax.vmap(f)), jax.pmap(f)):
            chex.assert_trees_all_close(transformed(*arrays), eager, rtol=rtol, atol=rtol)

    return check
