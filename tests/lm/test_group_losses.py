"""The GRPO family against TRL's own code: values and gradients by every log-probability.

The rows of `tests/data/group_losses.json` are TRL 1.16's, in double precision. The model of a row
is the array of its log-probabilities.
"""

import functools
import itertools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from jdiv.lm import train
from jdiv.policy import clipped, kl_terms, tokens

FILE = pathlib.Path(__file__).parents[1] / "data" / "group_losses.json"
ROWS = json.loads(FILE.read_text())
ARRAYS = ("log_probs", "old_log_probs", "ref_log_probs", "advantages", "mask")
AVERAGES = {
    **dict.fromkeys(("dapo", "bnpo", "cispo", "vespo"), tokens.token_mean),
    **dict.fromkeys(("grpo", "sapo"), tokens.sequence_mean),
    "dr_grpo": functools.partial(tokens.constant_mean, length=5.0),
    "luspo": functools.partial(tokens.constant_mean, length=1.0),
}


def sequence_log_ratio(log_ratio, mask):
    """The mean over a sequence, for each of its tokens."""
    mean = jnp.sum(jnp.where(mask, log_ratio, 0), -1, keepdims=True)
    mean = mean / jnp.sum(mask, -1, keepdims=True).astype(mean.dtype)
    return jnp.broadcast_to(mean, log_ratio.shape)


def kind(row):
    keys = "delta" in row, "off_policy_mask_threshold" in row
    return row["loss_type"], row["level"], row["weighted_kl"], *keys


def surrogate(row, low, high):
    """TRL's: its largest ratio of CISPO is an excess over 1 here."""
    if row["loss_type"] == "sapo":
        return functools.partial(clipped.sapo, by_sequence=row["level"] == "sequence")
    if row["loss_type"] == "cispo":
        whole = row["level"] == "sequence"
        return functools.partial(clipped.cispo, high=high - 1, by_sequence=whole)
    if row["loss_type"] == "vespo":
        return clipped.vespo
    if "off_policy_mask_threshold" in row:
        threshold = row["off_policy_mask_threshold"]
        return functools.partial(clipped.off_policy_masked, threshold=threshold, low=low, high=high)
    if "delta" in row:
        return functools.partial(clipped.dual_clip, low=low, high=high, ceiling=row["delta"])
    of = clipped.gspo if row["level"] == "sequence" else clipped.ppo_clip
    return functools.partial(of, low=low, high=high)


def value_and_gradient(row, arrays, beta, low, high):
    """Of a row, and the metric "kl"."""
    log_probs, old, ref, advantages, mask = arrays
    first = lambda x: jnp.concatenate([x[:, :1], x], axis=1)  # a prompt of one token
    text = train.Text(first(mask).astype(jnp.int32), first(mask).at[:, 0].set(False))
    weight = None
    if row["weighted_kl"]:
        weight = kl_terms.token_log_ratio
        if row["level"] == "sequence":
            weight = functools.partial(sequence_log_ratio, mask=mask)
    loss = functools.partial(
        train.grpo,
        batch=train.Rollouts(text, old, ref, advantages),
        surrogate=surrogate(row, low, high),
        average=AVERAGES[row["loss_type"]],
        coefficient=beta,
        log_weight=weight,
    )
    return jax.value_and_grad(loss, has_aux=True)(log_probs)


def test_values_and_gradients_are_those_of_trl(monkeypatch):
    monkeypatch.setattr(train, "log_probs", lambda model, text, tile: model)
    groups = [list(rows) for _, rows in itertools.groupby(sorted(ROWS, key=kind), kind)]
    stacked = [
        tuple(
            [np.array([row[name] for row in rows], bool if name == "mask" else float)
             for name in ARRAYS]
            for rows in groups
        ),
        tuple([np.array([row[name] for row in rows]) for name in ("beta", "low", "high")]
              for rows in groups),
    ]  # fmt: skip

    @jax.jit
    def everything(arrays, numbers):
        return [
            jax.vmap(functools.partial(value_and_gradient, rows[0]))(of, *others)
            for rows, of, others in zip(groups, arrays, numbers, strict=True)
        ]

    for rows, ((value, metrics), grad) in zip(groups, everything(*stacked), strict=True):
        named = str(kind(rows[0]))
        np.testing.assert_allclose(value, [x["value"] for x in rows], atol=1e-12, err_msg=named)
        np.testing.assert_allclose(grad, [x["grad"] for x in rows], atol=1e-12, err_msg=named)
        by_token = AVERAGES[rows[0]["loss_type"]] is tokens.token_mean
        counts = [np.sum(x["mask"]) if by_token else len(x["mask"]) for x in rows]
        np.testing.assert_array_equal(metrics["weight"], counts)
    assert len(ROWS) == 50
    assert {row["loss_type"] for row in ROWS} == set(AVERAGES)
