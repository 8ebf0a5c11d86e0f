"""Losses of a transformer against their formulas on all logits; a step against its parts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jdiv import checkpoints, generators, lm, parallel
from jdiv.lm import train
from jdiv.lm.config import Config
from jdiv.lm.model import Transformer
from jdiv.policy import clipped, tokens

CONFIG = Config(vocabulary=13, width=8, layers=1, heads=2, key_heads=1, head_width=4, hidden=8)
BATCH, LENGTH = 8, 6


def text(seed):
    """Rows whose answers have very different numbers of tokens."""
    tokens = np.random.default_rng(seed).integers(0, 13, (BATCH, LENGTH)).astype(np.int32)
    begin = np.array([1, 5, 2, 5, 3, 4, 5, 1])[:, None]
    return train.Text(tokens, np.arange(LENGTH)[None] >= begin)


def numbers(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def batches():
    """A batch of each kind."""
    one, other = text(0), text(1)
    rollouts = train.Rollouts(
        one,
        numbers(4, BATCH, LENGTH - 1) / 3 - 2.6,
        numbers(5, BATCH, LENGTH - 1) - 2,
        numbers(6, BATCH),
    )
    return {
        "sft": one,
        "f_dpo": train.Pairs(one, other, numbers(2, BATCH) - 9, numbers(3, BATCH) - 9),
        "grpo": rollouts,
        "gspo": rollouts,
        "kto": train.Judged(
            one, numbers(10, BATCH) - 8, numbers(11, BATCH) > 0, np.full(BATCH, 0.4, np.float32)
        ),
        "f_dpg": train.Targets(
            one, numbers(7, BATCH) - 8, numbers(8, BATCH) - 8, numbers(9, BATCH)
        ),
        "distill": one,
    }


@functools.cache
def models():
    return tuple(Transformer.random(CONFIG, jax.random.key(i)) for i in (0, 1))


LOSSES = {
    "sft": train.sft,
    "f_dpo": functools.partial(train.f_dpo, beta=0.3),
    "grpo": functools.partial(train.grpo, coefficient=0.1),
    "gspo": functools.partial(
        train.grpo, surrogate=clipped.gspo, average=tokens.sequence_mean, coefficient=0.1
    ),
    "kto": functools.partial(train.kto, beta=0.3),
    "f_dpg": functools.partial(train.f_dpg, generator=generators.reverse_kl()),
    "distill": lambda model, batch: train.distill(
        model, batch, models()[1], generator=generators.kl()
    ),
}


def answers(log_p, batch):
    """Log-probabilities of given tokens, 0 where masked, by NumPy."""
    at = np.take_along_axis(log_p, batch.tokens[:, 1:, None], axis=-1)[..., 0]
    return np.where(batch.mask[:, 1:], at, 0)


def written_out(laws):
    """The losses by NumPy in double precision; `laws(tokens, which)` are log-probabilities."""
    of, one = batches(), text(0)
    mask = one.mask[:, 1:]
    mean = lambda x: x[mask].mean()
    log_p = answers(laws(one.tokens, 0), one)
    pairs, rollouts, targets = of["f_dpo"], of["grpo"], of["f_dpg"]
    chosen, rejected = log_p.sum(-1), answers(laws(text(1).tokens, 0), text(1)).sum(-1)
    x = 0.3 * (chosen - pairs.ref_chosen - rejected + pairs.ref_rejected)
    ratio, gain = np.exp(log_p - rollouts.old_log_probs), rollouts.advantages[:, None]
    surrogate = np.minimum(ratio * gain, np.clip(ratio, 0.8, 1.2) * gain)
    by_row = lambda x: np.where(mask, x, 0).sum(-1) / mask.sum(-1)
    whole = np.exp(by_row(log_p - rollouts.old_log_probs))
    gain = rollouts.advantages
    of_rows = np.minimum(whole * gain, np.clip(whole, 1 - 3e-4, 1 + 4e-4) * gain)
    t = rollouts.ref_log_probs - log_p
    judged = of["kto"]
    gain_of = 0.3 * (chosen - judged.ref_log_probs - 0.4)
    # KL(target, pi): its generator -log u has f' = -1/u, the pseudo-reward is target / pi.
    reward = np.exp(targets.log_target - chosen) - targets.baseline
    p, q = laws(one.tokens, 0), laws(one.tokens, 1)
    return {
        "sft": -mean(log_p),
        "f_dpo": np.log1p(np.exp(-x)).mean(),
        "grpo": mean(-surrogate + 0.1 * (np.exp(t) - 1 - t)),
        "gspo": (-of_rows + 0.1 * by_row(np.exp(t) - 1 - t)).mean(),
        "kto": (1 / (1 + np.exp(np.where(judged.desirable, gain_of, -gain_of)))).mean(),
        "f_dpg": (-np.exp(chosen - targets.log_proposal) * reward * chosen).mean(),
        "distill": mean((np.exp(p) * (p - q)).sum(-1)),
    }


def test_losses_are_their_formulas_on_all_logits():
    @jax.jit
    def everything(model, other):
        tokens = jnp.stack([text(0).tokens, text(1).tokens])
        laws = [[jax.nn.log_softmax(lm.logits(m, t)) for m in (model, other)] for t in tokens]
        return {k: LOSSES[k](model, batch)[0] for k, batch in batches().items()}, laws

    found, laws = everything(*models())
    first = text(0).tokens
    wanted = written_out(
        lambda tokens, which: np.asarray(
            laws[0 if np.array_equal(tokens, first) else 1][which], np.float64
        )[:, :-1]
    )
    for name, value in found.items():
        np.testing.assert_allclose(value, wanted[name], rtol=2e-5, err_msg=name)


OPTIMIZER = optax.sgd(0.5)


def one_update(name, **options):
    return functools.partial(
        train.update, loss=LOSSES[name], config=CONFIG, optimizer=OPTIMIZER, **options
    )


@pytest.mark.parametrize("name", ["grpo", "gspo"])
def test_parts_of_a_batch_add_up_to_the_batch(name):
    state, batch = train.begin(models()[0], OPTIMIZER), batches()[name]
    whole, metrics = jax.jit(one_update(name))(state, batch)
    parts, same = jax.jit(one_update(name, count=4))(state, batch)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), whole, parts)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), metrics, same)
    assert max(np.abs(whole.tensors[k] - x).max() for k, x in state.tensors.items()) > 1e-3


def places(state):
    """Where in the devices' memory the arrays of a state lie."""
    shards = [shard for x in jax.tree.leaves(state) for shard in x.addressable_shards]
    return sorted((shard.device.id, shard.data.unsafe_buffer_pointer()) for shard in shards)


def test_all_devices_make_the_curve_of_one_and_the_batch_alone_is_sent(monkeypatch):
    """Transfers are counted: two arrays of a batch a step. The state lies in the same bytes after
    each step, so nothing of it is sent or copied; at first it lies in NumPy's, which stay NumPy's.
    """
    assert jax.local_device_count() > 1
    batch, sent, divide = batches()["sft"], [], parallel._divide
    alone, on_one = train.begin(models()[0], OPTIMIZER), jax.jit(one_update("sft"))
    state = parallel.replicate(alone)
    each = jax.tree.leaves(state)[0].sharding
    put = lambda x: sent.append(x.nbytes) or jax.device_put(divide(x), each)
    monkeypatch.setattr(parallel, "_divide", put)
    on_all = parallel.on_replicas(one_update("sft", axis_name=parallel.BATCH))
    curve, at = [], []
    for _ in range(3):
        before = jax.tree.leaves(state)
        with jax.transfer_guard("disallow"):  # but those that are asked for, as in `put`
            state, metrics = on_all(state, batch)
        assert all(x.is_deleted() for x in before)
        curve.append(metrics["loss"])
        at.append(places(state))
    assert at[0] == at[1] == at[2]
    assert sent == 3 * [batch.tokens.nbytes, batch.mask.nbytes]
    for loss in curve:
        alone, metrics = on_one(alone, batch)
        np.testing.assert_allclose(loss, metrics["loss"], atol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
        parallel.of_first_device(state), alone,
    )  # fmt: skip
    with pytest.raises(RuntimeError, match="Disallowed"), jax.transfer_guard("disallow"):
        on_all(jax.tree.map(np.asarray, state), batch)


LARGE = Config(vocabulary=49_152, width=8, layers=1, heads=1, key_heads=1, head_width=8, hidden=8)
TILED = {
    "sft": train.sft,
    "f_dpo": functools.partial(train.f_dpo, beta=0.1),
    "grpo": functools.partial(train.grpo, coefficient=0.1),
    "kl_rl": functools.partial(train.kl_rl, coefficient=0.1),
    "f_dpg": functools.partial(train.f_dpg, generator=generators.kl()),
    "kto": functools.partial(train.kto, beta=0.1),
    "distill": functools.partial(train.distill, generator=generators.jensen_shannon()),
}


@pytest.mark.parametrize("name", TILED)
def test_no_logits_of_all_tokens_are_alive(name):
    """512 tokens of 49,152 words would be 100 MB; the program has a fraction beside its arrays."""
    optimizer, key = optax.adamw(1e-3), jax.random.key(0)
    model = lambda key: Transformer.random(LARGE, key, jnp.float32)
    state = jax.eval_shape(lambda key: train.begin(model(key), optimizer), key)
    length = 64 if name == "f_dpo" else 128  # of pairs there are two
    array = lambda dtype, *shape: jax.ShapeDtypeStruct((4, *shape), dtype)
    text = train.Text(array("int32", length), array("bool", length))
    row, later = array("float32"), array("float32", length - 1)
    batch = {
        **dict.fromkeys(("sft", "distill"), text),
        **dict.fromkeys(("grpo", "kl_rl"), train.Rollouts(text, later, later, row)),
        "f_dpo": train.Pairs(text, text, row, row),
        "f_dpg": train.Targets(text, row, row, row),
        "kto": train.Judged(text, row, array("bool"), row),
    }[name]
    other = {"other": jax.eval_shape(model, key)} if name == "distill" else {}

    def step(state, batch, other):
        loss = functools.partial(TILED[name], tile=32, **other)
        return train.update(state, batch, loss, config=LARGE, optimizer=optimizer)

    compiled = jax.jit(step, donate_argnums=0).lower(state, batch, other).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 4 * 512 * 49_152 / 2


def test_every_place_of_a_kl_has_the_exact_gradient():
    """The mean over all answers of two tokens against the derivative of `E[r] - beta KL` itself."""
    config = Config(vocabulary=3, width=4, layers=1, heads=1, key_heads=1, head_width=4, hidden=4)
    model, other = (Transformer.random(config, jax.random.key(i)) for i in (3, 4))
    tokens = np.array([(0, i, j) for i in range(3) for j in range(3)], np.int32)
    answers = train.Text(tokens, np.arange(3)[None] >= np.array([[1]] * 9))
    rewards = numbers(0, 9)

    @jax.jit
    def gradients(tensors, other):
        ref = train.log_probs(other, answers)

        def exact(tensors):
            log_p = train.log_probs(Transformer(config, tensors), answers).sum(-1)
            return -jnp.exp(log_p) @ (rewards - 0.4 * (log_p - ref.sum(-1)))

        def sampled(tensors, penalty):
            model = Transformer(config, tensors)
            p = jnp.exp(jax.lax.stop_gradient(train.log_probs(model, answers).sum(-1)))
            rollouts = train.Rollouts(answers, ref, ref, rewards)
            rows = jax.tree.map(lambda x: jnp.asarray(x)[:, None], rollouts)
            one = functools.partial(train.kl_rl, model, coefficient=0.4, penalty=penalty)
            return p @ jax.vmap(lambda row: one(row)[0])(rows)

        places = ("rewards", "tokens", "sequences")
        return jax.grad(exact)(tensors), [jax.grad(sampled)(tensors, place) for place in places]

    exact, found = gradients({name: x[...] for name, x in model.tensors.items()}, other)
    for one in found:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), one, exact)


def test_a_restored_state_goes_on_bit_by_bit(tmp_path):
    optimizer = optax.adamw(1e-2)
    step = jax.jit(
        functools.partial(train.update, loss=train.sft, config=CONFIG, optimizer=optimizer)
    )
    start, batch = train.begin(models()[0], optimizer), batches()["sft"]
    half = step(step(start, batch)[0], batch)[0]
    checkpoints.save(tmp_path, 2, train.saved(half), keep=1)
    count, arrays = checkpoints.restore(tmp_path)
    again = train.restored(start, arrays)
    whole, resumed = (step(step(state, batch)[0], batch)[0] for state in (half, again))
    jax.tree.map(np.testing.assert_array_equal, whole, resumed)
    assert int(resumed.count) == count + 2
    with pytest.raises(ValueError, match=r"not of this state: count"):
        train.restored(start, {name: x for name, x in arrays.items() if name != "count"})


def test_half_precision_computes_and_single_precision_remembers():
    """Updates smaller than what bfloat16 can tell apart are kept."""
    state, batch = train.begin(models()[0], OPTIMIZER), batches()["sft"]
    half, metrics = jax.jit(one_update("sft", dtype=jnp.bfloat16))(state, batch)
    whole, exact = jax.jit(one_update("sft"))(state, batch)
    assert {x.dtype for x in half.tensors.values()} == {jnp.dtype("float32")}
    np.testing.assert_allclose(metrics["loss"], exact["loss"], rtol=0.02)
    assert float(metrics["loss"]) != float(exact["loss"])
    for name, x in state.tensors.items():
        a, b = (np.asarray(after.tensors[name] - x) for after in (half, whole))
        assert np.linalg.norm(a - b) < 0.1 * np.linalg.norm(b), name
