"""Strict settings for every test: eight simulated devices, double precision, no silent casts."""

import gc
import importlib.metadata
import os
import pathlib
import sys

import chex
import jax
import numpy as np
import pytest

from jdiv import parallel

# Most of the time goes into compiling. XLA's older code generator is faster at it; jaxlib 0.11 does
# not have it, and an unknown flag ends the process. Experiments may ask for more: XLA_FLAGS would
# not let them.
FLAGS = ["cpu_parallel_codegen_split_count=1"]
if importlib.metadata.version("jaxlib").startswith("0.10."):
    FLAGS.append("cpu_use_fusion_emitters=false")
os.environ.setdefault("XLA_FLAGS", " ".join(f"--xla_{flag}" for flag in FLAGS))
jax.config.update("jax_disable_most_optimizations", True)

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


@pytest.fixture(scope="session")
def forget():
    """Drops the programs that there are, if they take much memory."""

    def forget():
        if resident() > ENOUGH:
            jax.clear_caches()
            gc.collect()

    return forget


@pytest.fixture(autouse=True, scope="module")
def forget_programs(forget):
    """Programs of earlier files are not needed any more."""
    yield
    forget()


@pytest.fixture(autouse=True)
def double_precision():
    """Tests compare in float64; what is about float32 says so with its arrays."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(autouse=True)
def same_draws(request, monkeypatch):
    """A test draws the same numbers alone as after others: RNG of its file begins anew."""
    rng = getattr(getattr(request, "module", None), "RNG", None)
    if rng is not None:
        entropy = rng.bit_generator.seed_seq.entropy
        monkeypatch.setattr(request.module, "RNG", np.random.default_rng(entropy))


@pytest.fixture
def same_everywhere():
    """Asserts that f of `[8, ...]` arrays is the same eagerly, jitted, and vmapped and pmapped.

    f maps over the leading axis by itself; pmap over four devices and vmap over two places on each
    take it away. The jitted f is what they transform: it is traced once. Many functions in one f
    cost less than one at a time.
    """

    def check(f, *arrays, rtol=1e-12):
        eager, jitted = f(*arrays), jax.jit(f)
        mapped = jax.pmap(jax.vmap(jitted), devices=jax.local_devices()[:4])
        shared = mapped(*(np.asarray(x).reshape(4, 2, *x.shape[1:]) for x in arrays))
        shared = jax.tree.map(lambda x: np.asarray(x).reshape(8, *x.shape[2:]), shared)
        for transformed in (jitted(*arrays), shared):
            chex.assert_trees_all_close(transformed, eager, rtol=rtol, atol=rtol)

    return check
