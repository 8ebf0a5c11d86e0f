import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdiv.alignment import unpaired
from tests.checks import refused


def test_unpaired_losses_are_those_of_trl():
    """Value and gradient of their mean, from TRL's own code; the reference takes the opposite."""
    data = pathlib.Path(__file__).parents[1] / "data" / "unpaired_losses.json"
    rows = json.loads(data.read_text())

    @jax.jit
    def all_of(shift):
        def of(row, log_probs, ref):
            desirable = np.array(row["desirable"])
            weights = row["desirable_weight"], row["undesirable_weight"]
            given = {"beta": row["beta"], "weights": weights}
            if row["loss"] == "kto":
                return unpaired.kto(log_probs, ref, desirable, row["kl"], **given).mean()
            return unpaired.apo_zero_unpaired(log_probs, ref, desirable, **given).mean()

        return [
            jax.value_and_grad(of, argnums=(1, 2))(row, shift + np.array(row["log_ratios"]), shift)
            for row in rows
        ]

    for row, (value, grads) in zip(rows, all_of(-30 - np.arange(6.0)), strict=True):
        assert float(value) == pytest.approx(row["value"], rel=1e-12)
        np.testing.assert_allclose(grads[0], row["grad"], rtol=1e-11)
        np.testing.assert_allclose(grads[1], -np.array(row["grad"]), rtol=1e-11)
    assert {row["loss"] for row in rows} == {"kto", "apo_zero_unpaired"}


def test_the_baseline_of_kto():
    """A constant, 0 below 0; the mismatched one is a mean cut off at 0."""
    t, ref = np.array([0.4, -1.0]), np.zeros(2)
    loss = lambda kl: unpaired.kto(t, ref, np.array([1, 0]), kl, beta=2.0).sum()
    value, slope = jax.vmap(jax.value_and_grad(loss))(jnp.array([-3.0, 0.0, 1.0]))
    assert value[0] == value[1] != value[2]
    np.testing.assert_array_equal(slope, 0)
    np.testing.assert_allclose(
        value[2], 1 / (1 + np.exp(-2 * 0.6)) + 1 / (1 + np.exp(2 * 2.0)), rtol=1e-12
    )
    baseline = jax.jit(unpaired.mismatched_kl)
    assert float(baseline(t + 1, ref)) == pytest.approx(0.7)
    assert float(baseline(t, ref)) == 0
    assert np.isnan(baseline(t * np.nan, ref))
    refused(TypeError, ["desirable"], lambda: unpaired.kto(t, ref, t, 0.0, beta=1.0))
    refused(ValueError, ["desirable"], lambda: unpaired.kto(t, ref, np.ones(3, bool), 0.0, beta=1))
