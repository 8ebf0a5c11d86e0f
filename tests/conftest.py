"""Strict settings for every test: eight simulated devices, double precision, no silent casts."""

import gc
import importlib.metadata
import os
import pathlib
import sys

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
# Where each operation of a program was written costs time to note, and nothing here reads it.
jax.config.update("jax_include_full_tracebacks_in_locations", False)

ENOUGH = 1200  # MB


def resident():
    """Megabytes of this process; 0 where the system does not say."""
    if not sys.platform.startswith("linux"):
        return 0
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def pytest_collection_finish(session):
    """What is imported stays: the garbage collector need not look at it, nor look that often."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


@pytest.fixture(autouse=True, scope="module")
def forget_programs():
    """Programs of earlier files are dropped when they take much memory."""
    yield
    if resident() > ENOUGH:
        jax.clear_caches()
        gc.collect()


@pytest.fixture(autouse=True)
def double_precision():
    """Tests compare in float64; what is about float32 says so with its arrays."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def same_everywhere():
    """Asserts that f of `[8, ...]` arrays is the same eagerly, jitted, vmapped and pmapped.

    f maps over the leading axis by itself; vmap and pmap take it away. What vmap makes of f is
    compiled as one program: eagerly each operation of it would be one. The jitted f is what vmap
    and pmap transform: f is traced once. Many functions in one f cost less than one at a time.
    """

    def check(f, *arrays, rtol=1e-12):
        eager, jitted = f(*arrays), jax.jit(f)
        for transformed in (jitted, jax.jit(jax.vmap(jitted)), jax.pmap(jitted)):
            chex.assert_trees_all_close(transformed(*arrays), eager, rtol=rtol, atol=rtol)

    return check
