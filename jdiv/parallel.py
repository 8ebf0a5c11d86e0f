"""Devices and hosts: the only file that knows of pmap and of collectives.

Points of a sweep are independent: every host computes its share on its own devices, and what comes
out is gathered as NumPy arrays, which any host may save. Training on batches divides each batch
over all devices of all hosts and averages the gradients.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array
from jax.experimental import multihost_utils

BATCH = "batch"
"""Name of the axis over which `over_batches` averages."""

_FORCED = "xla_force_host_platform_device_count"
_LEVEL = "xla_backend_optimization_level"
_RUNS_FAST = {_LEVEL: 2}  # 3 takes up to twice as long to compile and runs no faster
_COMPILES_FAST = {
    _LEVEL: 0,
    "xla_llvm_disable_expensive_passes": True,
    "xla_cpu_parallel_codegen_split_count": 1,
}
if jax.__version_info__ < (0, 11):  # later there is no other code generator
    _COMPILES_FAST["xla_cpu_use_fusion_emitters"] = False


def divide_cpu(devices: int) -> None:
    """Divides this host's CPU into so many devices. Has to come before anything touches one.

    XLA's linear solvers wait in its thread pool for others of its threads. With no more threads
    than waiting solvers, as one device on two cores can have them, all wait for ever; NPROC is
    where XLA reads the number of threads. The solvers themselves are OpenBLAS's, whose own threads
    only compete with those. What the user has set is kept: `jax_num_cpu_devices`, also as
    JAX_NUM_CPU_DEVICES, a device count in XLA_FLAGS, NPROC and OPENBLAS_NUM_THREADS.
    """
    wanted = cpu_devices_set()
    if wanted is None:
        jax.config.update("jax_num_cpu_devices", devices)
    threads = (os.cpu_count() or 1) + 4 * (wanted or devices)
    os.environ.setdefault("NPROC", str(threads))
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def cpu_devices_set() -> int | None:
    """Into how many devices the user, or an earlier `divide_cpu`, divided the CPU; None if not."""
    if jax.config.jax_num_cpu_devices >= 0:
        return jax.config.jax_num_cpu_devices
    found = re.findall(_FORCED + r"=(\d+)", os.environ.get("XLA_FLAGS", ""))
    return int(found[-1]) if found else None


def connect(
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    timeout: int = 40,
) -> None:
    """Makes this process one of many; on TPU pods and Slurm the arguments are found by JAX.

    Has to come before anything else that touches a device. A process that does not come within
    `timeout` seconds, or gives no sign of life for as long, ends all of them.
    """
    jax.distributed.initialize(
        coordinator_address,
        num_processes,
        process_id,
        initialization_timeout=timeout,
        heartbeat_timeout_seconds=timeout,
        shutdown_timeout_seconds=timeout,
    )


def host() -> int:
    """This process's number; host 0 writes. Before `connect` every process is the first of one."""
    return jax.process_index() if jax.distributed.is_initialized() else 0


def hosts() -> int:
    """How many processes there are."""
    return jax.process_count() if jax.distributed.is_initialized() else 1


# ------------------------------------------------------------------------------- points of a sweep


def devices_for(points: int) -> int:
    """How many devices of this host are used for so many points of all hosts: all, or one a point
    on a single host."""
    return jax.local_device_count() if hosts() > 1 else min(jax.local_device_count(), points)


class Program(NamedTuple):
    """A compiled program, and shapes and types of what it returns.

    Fields:
        call: The program, on arrays like those that it was compiled for.
        outputs: Shapes and types of what it returns, a pytree.
    """

    call: Callable[..., Any]
    outputs: Any


def compile_points(
    f: Callable, *arguments: Any, shared: int = 0, optimized: bool = True
) -> Program:
    """Compiles f of one point for `[devices, lanes, ...]` points on this host's first devices.

    `arguments` are examples with these leading axes; the last `shared` of them are the same for all
    points and have none. The program is called with arrays of just these shapes. On a CPU one that
    is not `optimized` is compiled in a quarter of the time and runs up to five times as long.
    """
    in_axes = (0,) * (len(arguments) - shared) + (None,) * shared
    count = len(jax.tree.leaves(arguments[0])[0])
    devices = jax.local_devices()[:count]
    mapped = jax.pmap(jax.vmap(f, in_axes=in_axes), in_axes=in_axes, devices=devices)
    options = {}
    if devices[0].platform == "cpu" and _LEVEL not in os.environ.get("XLA_FLAGS", ""):
        options = _RUNS_FAST if optimized else _COMPILES_FAST
    lowered = mapped.lower(*arguments)
    return Program(lowered.compile(compiler_options=options), lowered.out_info)


def memory(program: Any) -> int:
    """Bytes that a compiled program needs on one device: what goes in, out, and in between."""
    use = program.memory_analysis()
    sizes = (use.argument_size_in_bytes, use.output_size_in_bytes, use.temp_size_in_bytes)
    return sum(sizes)


def share(tree: Any, devices: int, lanes: int) -> Any:
    """Of `[hosts * devices * lanes, ...]` points this host's, as `[devices, lanes, ...]`.

    A batch that is too short is padded with its last point.
    """
    start, count = host() * devices * lanes, devices * lanes

    def of_leaf(x: np.ndarray) -> np.ndarray:
        places = np.minimum(np.arange(start, start + count), len(x) - 1)
        return x[places].reshape(devices, lanes, *x.shape[1:])

    return jax.tree.map(of_leaf, tree)


def gather(tree: Any) -> Any:
    """From `[devices, lanes, ...]` on every host to NumPy arrays of all points."""
    local = jax.tree.map(lambda x: np.asarray(x).reshape(-1, *x.shape[2:]), tree)
    if hosts() == 1:
        return local
    everyone = multihost_utils.process_allgather(local)
    return jax.tree.map(lambda x: np.asarray(x).reshape(-1, *x.shape[2:]), everyone)


def from_first_host(tree: Any) -> Any:
    """Host 0's arrays on every host; the others pass arrays of the same shapes."""
    if hosts() == 1:
        return tree
    return jax.tree.map(np.asarray, multihost_utils.broadcast_one_to_all(tree))


def on_any_host(flag: bool) -> bool:
    """Whether the flag is set on at least one host; all of them have to ask."""
    return any(from_all_hosts(flag))


def from_all_hosts(x: Any) -> np.ndarray:
    """`[hosts, ...]` the arrays or numbers that the hosts have, of one shape; all have to ask."""
    if hosts() == 1:
        return np.asarray(x)[None]
    return np.asarray(multihost_utils.process_allgather(np.asarray(x)))


# ---------------------------------------------------------------------------------------- batches


def mean_grads(grads: Any, axis_name: str | None = BATCH) -> Any:
    """The mean over devices of gradients of a loss that each device took of its own part.

    `mean_grads(grad(loss))` is right under pmap; `grad` of an averaged loss is not, its result is
    not averaged. Without an axis name nothing is done.
    """
    return grads if axis_name is None else jax.lax.pmean(grads, axis_name)


def mean_over(x: Any, axis_name: str | None = BATCH) -> Any:
    """The mean over devices of what each found of its own part; without an axis name x itself."""
    return x if axis_name is None else jax.lax.pmean(x, axis_name)


def max_over(x: Any, axis_name: str | None = BATCH) -> Any:
    """The maximum over devices, a constant; without an axis name x itself."""
    x = jax.lax.stop_gradient(x)
    return x if axis_name is None else jax.lax.pmax(x, axis_name)


def sum_over(x: Any, axis_name: str | None = BATCH) -> Any:
    """The sum over devices of what each found of its own part; without an axis name x itself.

    Under pmap the derivative of a sum reaches each device as the sum of all devices' derivatives,
    so `mean_grads(grad(loss))` is right also for losses that take a sum or mean over devices.
    """
    return x if axis_name is None else jax.lax.psum(x, axis_name)


def over_batches(step: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """`step(state, batch)` with the leading axis of the batch divided over all devices.

    `step` sees its part of the batch and has to average what depends on it with
    `mean_grads(..., BATCH)`; the state is the same on every device, and so is what comes out. On
    many hosts each passes its own part of the batch.

    >>> def step(weight, x):
    ...     return weight - 0.1 * mean_grads(jax.grad(lambda w: (w * x).mean())(weight))
    >>> float(over_batches(step)(1.0, np.arange(jax.local_device_count(), dtype=np.float32))) < 1.0
    True
    """
    mapped = jax.pmap(step, axis_name=BATCH, in_axes=(None, 0), out_axes=None)

    def divided(state: Any, batch: Any) -> Any:
        return mapped(state, jax.tree.map(_divide, batch))

    return divided


def replicate(tree: Any) -> Any:
    """A copy of the arrays on each of this host's devices, for `on_replicas`."""
    devices = jax.local_devices()
    mesh = jax.sharding.Mesh(np.array(devices), (BATCH,))
    each = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(BATCH))
    copies = lambda x: np.broadcast_to(np.asarray(x), (len(devices), *np.shape(x)))
    return jax.tree.map(lambda x: jax.device_put(copies(x), each), tree)


def of_first_device(tree: Any) -> Any:
    """The arrays of a replicated tree as NumPy's, from one device, to be saved."""
    return jax.tree.map(lambda x: np.asarray(x.addressable_shards[0].data)[0], tree)


def on_replicas(step: Callable[..., tuple[Any, Any]]) -> Callable[..., Any]:
    """`step(state, batch, *fixed) -> state, metrics` of a state that stays where it was replicated.

    Its memory is given to the state that comes out, so nothing of it is sent or copied. The batch
    is divided over all devices, as by `over_batches`; the metrics are to be the same on each. What
    is `fixed` was replicated like the state and is kept as it is.
    """
    mapped = jax.pmap(step, axis_name=BATCH, in_axes=0, out_axes=(0, None), donate_argnums=0)

    def divided(state: Any, batch: Any, *fixed: Any) -> Any:
        return mapped(state, jax.tree.map(_divide, batch), *fixed)

    return divided


def _divide(x: Array) -> Array:
    """`[batch, ...]` as `[devices, batch / devices, ...]`."""
    count = jax.local_device_count()
    if x.shape[0] % count:
        raise ValueError(f"batch must be a multiple of the {count} devices, got {x.shape[0]}")
    return x.reshape(count, -1, *x.shape[1:])
