import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdiv import parallel
from tests.checks import refused


def loss(weight, x):
    return jnp.mean(weight * x**2)


def test_mean_gradients_are_those_of_the_whole_batch():
    x = np.arange(16.0)

    def step(weight, x):
        return weight - parallel.mean_grads(jax.grad(loss)(weight, x))

    assert parallel.over_batches(step)(1.0, x) == pytest.approx(1 - np.mean(x**2))


def test_the_gradient_of_an_averaged_loss_would_be_wrong():
    """Why `mean_grads` exists: every device keeps its own gradient, and nothing says so."""

    def step(weight, x):
        averaged = lambda weight: jax.lax.pmean(loss(weight, x), parallel.BATCH)
        return weight - jax.grad(averaged)(weight)

    x = np.arange(16.0)
    assert parallel.over_batches(step)(1.0, x) == pytest.approx(1 - np.mean(x[:2] ** 2))


def test_a_batch_that_does_not_divide_is_refused():
    divided = parallel.over_batches(lambda state, batch: state)
    refused(ValueError, ["batch", "8 devices", "9"], lambda: divided(0, np.ones(9)))


@pytest.mark.parametrize("count", [1, 5, 24])
def test_points_come_back_in_order_whatever_the_padding(count):
    lanes = 3
    labels = {"x": np.arange(count) * 1.5, "v": np.arange(2.0 * count).reshape(count, 2)}
    devices = parallel.devices_for(count)
    assert devices == min(count, 8)
    shared = parallel.share(labels, devices, lanes)
    program = parallel.compile_points(
        lambda point, factor: {"sum": (point["x"] + point["v"].sum()) * factor},
        shared,
        np.float64(2),
        shared=1,
    )
    result = parallel.gather(program.call(shared, np.float64(2)))["sum"]
    assert len(result) == lanes * devices
    np.testing.assert_allclose(result[:count], 2 * (labels["x"] + labels["v"].sum(axis=1)))


def test_memory_grows_with_what_a_program_holds():
    def need(size):
        program = parallel.compile_points(
            lambda x: jnp.sort(jnp.sin(x + jnp.arange(1.0 * size))),
            parallel.share(np.ones(8), 8, 1),
        )
        return parallel.memory(program.call)

    assert need(100_000) - need(1_000) >= 99_000 * 8


def test_one_host_decides_alone():
    assert not parallel.on_any_host(False)


def test_solvers_on_several_devices_do_not_wait_for_each_other():
    """With as many threads as XLA takes by itself this hangs on two cores."""
    program = """
import jax, jax.numpy as jnp
from jdiv import parallel
parallel.divide_cpu(2)
def f(x):
    solve = lambda x, _: (jnp.linalg.solve(jnp.eye(20) + x / 40, x[0])[:, None] + 0 * x, None)
    return jax.lax.scan(solve, x, length=200)[0].sum()
print(jax.pmap(jax.vmap(f))(jnp.ones((2, 32, 20, 20))).shape)
"""
    run = [sys.executable, "-c", program]
    environment = {name: value for name, value in os.environ.items() if name != "NPROC"}
    done = subprocess.run(
        run, capture_output=True, text=True, timeout=120, check=True, env=environment
    )
    assert done.stdout == "(2, 32)\n"
