"""A training step of DPO and one of GRPO beside TRL's, from the same weights on the same batch.

    python -m benchmarks.training

Forward, backward, clipping by the norm and AdamW of a transformer of Llama's type, in single
precision. Answers and the reference's log-probabilities are given to both, nothing is sampled. In
TRL the trainers' own `compute_loss` runs, with what they measure for their logs, then their own
optimizer. Loss and gradient norm of the first step must agree; each step goes on from the last.
"""

import functools
import tempfile
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from benchmarks import table
from benchmarks.table import Contestant, Row

ROWS, PROMPT, LENGTH = 8, 64, 256
BETA, RATE, NORM = 0.1, 1e-5, 1.0
SHAPES = {
    "4 layers of width 256, vocabulary 32000": dict(
        vocabulary=32_000, width=256, layers=4, heads=4, key_heads=2, head_width=64, hidden=704
    ),
    "6 layers of width 384, vocabulary 49152": dict(
        vocabulary=49_152, width=384, layers=6, heads=6, key_heads=3, head_width=64, hidden=1024
    ),
}


class Given(NamedTuple):
    """Numbers of a batch, the same for both libraries."""

    tokens: np.ndarray
    """`[rows, tokens]`; of DPO the first half is chosen, the other rejected."""
    ref_sums: np.ndarray
    """`[rows]` the reference's log-probabilities of the answers."""
    old_log_probs: np.ndarray
    """`[rows, tokens - 1]` of what sampled the answers, near the model's own."""
    ref_log_probs: np.ndarray
    """`[rows, tokens - 1]`"""
    advantages: np.ndarray
    """`[rows]`"""


def given(model: Any) -> Given:
    """Random answers, and what a policy and a reference near this model say of them."""
    import jax

    from jdiv import lm

    rng = np.random.default_rng(0)
    tokens = rng.integers(0, model.config.vocabulary, (ROWS, LENGTH)).astype(np.int32)
    log_p = np.asarray(jax.jit(lm.log_probs)(model, tokens))
    near = lambda: (log_p + 0.1 * rng.standard_normal(log_p.shape)).astype(np.float32)
    old, ref = near(), near()
    gains = rng.standard_normal(ROWS).astype(np.float32)
    return Given(tokens, ref[:, PROMPT - 1 :].sum(-1), old, ref, gains)


# ------------------------------------------------------------------------------------------- jdiv


def jdiv(model: Any, batch: Any, loss: Callable, name: str) -> Contestant:
    """`train.update` under jit, the state's memory given on."""
    import jax
    import jax.numpy as jnp
    import optax

    from jdiv.lm import train

    kept = optax.GradientTransformation(
        lambda _: jnp.zeros(()), lambda grads, *_: (grads, optax.global_norm(grads))
    )
    optimizer = optax.chain(
        kept, optax.clip_by_global_norm(NORM), optax.adamw(RATE, weight_decay=0)
    )
    step = functools.partial(train.update, loss=loss, config=model.config, optimizer=optimizer)
    held = [train.begin(model, optimizer)]
    batch = jax.tree.map(jnp.asarray, batch)
    program = jax.jit(step, donate_argnums=0).lower(held[0], batch).compile()
    use = program.memory_analysis()

    def call() -> tuple[float, float]:
        held[0], metrics = program(held[0], batch)
        return float(metrics["loss"]), float(held[0].optimizer[0])

    ran = f"lm.train.update of train.{name}, one program"
    memory = use.output_size_in_bytes + use.temp_size_in_bytes - use.alias_size_in_bytes
    return Contestant("jdiv", ran, call, list, memory=memory)


def dpo(model: Any, numbers: Given) -> Contestant:
    """Half the rows against the other half."""
    from jdiv.lm import train

    answers = np.broadcast_to(np.arange(LENGTH) >= PROMPT, numbers.tokens.shape)
    chosen, rejected = (
        train.Text(*half)
        for half in zip(np.split(numbers.tokens, 2), np.split(answers, 2), strict=True)
    )
    batch = train.Pairs(chosen, rejected, *np.split(numbers.ref_sums, 2))
    return jdiv(model, batch, functools.partial(train.f_dpo, beta=BETA), "f_dpo")


def grpo(model: Any, numbers: Given) -> Contestant:
    """Clipped, with a KL to the reference."""
    from jdiv.lm import train

    answers = np.broadcast_to(np.arange(LENGTH) >= PROMPT, numbers.tokens.shape)
    batch = train.Rollouts(
        train.Text(numbers.tokens, answers),
        numbers.old_log_probs, numbers.ref_log_probs, numbers.advantages,
    )  # fmt: skip
    return jdiv(model, batch, functools.partial(train.grpo, coefficient=BETA), "grpo")


# -------------------------------------------------------------------------------------------- TRL


def stepping(trainer: Any, inputs: dict) -> Contestant:
    """Steps of a trainer's own loss and optimizer."""
    import torch

    model, optimizer = trainer.model.train(), trainer.create_optimizer()
    inputs = {name: torch.from_numpy(x) for name, x in inputs.items()}

    def call() -> tuple[float, float]:
        loss = trainer.compute_loss(model, inputs)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), NORM)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item(), norm.item()

    ran = (
        f"{type(trainer).__name__}.compute_loss, backward, {type(optimizer).__name__},"
        f" {torch.get_num_threads()} threads"
    )
    return Contestant("TRL", ran, call, list)


def loaded(model: Any, folder: str) -> Any:
    """The same weights in transformers, and a tokenizer, which trainers ask for."""
    import tokenizers
    import transformers

    from jdiv import lm

    lm.save(model, folder, architecture="llama")
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="a", eos_token="b"
    )
    return transformers.AutoModelForCausalLM.from_pretrained(folder), tokenizer


def options(folder: str) -> dict[str, Any]:
    """What both trainers are told: the defaults but for what reaches out of the process."""
    return dict(
        output_dir=folder, report_to="none", use_cpu=True, bf16=False, learning_rate=RATE,
        max_grad_norm=NORM, gradient_checkpointing=False, beta=BETA,
    )  # fmt: skip


def in_dpo_trainer(model: Any, numbers: Given) -> Contestant:
    """`DPOTrainer`, the reference's log-probabilities computed before."""
    import datasets
    import trl

    pairs = datasets.Dataset.from_dict({"prompt": ["a"], "chosen": ["b"], "rejected": ["a"]})
    with tempfile.TemporaryDirectory() as folder:
        theirs, tokenizer = loaded(model, folder)
        config = trl.DPOConfig(precompute_ref_log_probs=True, **options(folder))
        trainer = trl.DPOTrainer(
            theirs, args=config, train_dataset=pairs, processing_class=tokenizer
        )
    chosen, rejected = np.split(numbers.ref_sums, 2)
    shape = numbers.tokens.shape
    answers = np.broadcast_to(np.arange(LENGTH) >= PROMPT, shape).astype(np.int64)
    return stepping(trainer, {
        "input_ids": numbers.tokens.astype(np.int64), "attention_mask": np.ones(shape, np.int64),
        "completion_mask": answers, "ref_chosen_logps": chosen, "ref_rejected_logps": rejected,
    })  # fmt: skip


def in_grpo_trainer(model: Any, numbers: Given) -> Contestant:
    """`GRPOTrainer` with its mean over all tokens."""
    import datasets
    import trl

    prompts = datasets.Dataset.from_dict({"prompt": ["a"] * ROWS})
    with tempfile.TemporaryDirectory() as folder:
        theirs, tokenizer = loaded(model, folder)
        config = trl.GRPOConfig(loss_type="bnpo", num_generations=ROWS, **options(folder))
        trainer = trl.GRPOTrainer(
            theirs, lambda completions, **_: [0.0] * len(completions), args=config,
            train_dataset=prompts, processing_class=tokenizer,
        )  # fmt: skip
    trainer.current_gradient_accumulation_steps = 1
    prompt, answer = numbers.tokens[:, :PROMPT], numbers.tokens[:, PROMPT:]
    return stepping(trainer, {
        "prompt_ids": prompt.astype(np.int64), "prompt_mask": np.ones(prompt.shape, np.int64),
        "completion_ids": answer.astype(np.int64),
        "completion_mask": np.ones(answer.shape, np.int64),
        "advantages": numbers.advantages,
        "old_per_token_logps": numbers.old_log_probs[:, PROMPT - 1 :],
        "ref_per_token_logps": numbers.ref_log_probs[:, PROMPT - 1 :],
    })  # fmt: skip


# -------------------------------------------------------------------------------------------- both


def rows() -> Iterator[Row]:
    """jdiv and TRL for each loss and size."""
    import jax

    from jdiv.lm.config import Config
    from jdiv.lm.model import Transformer

    for size, shape in SHAPES.items():
        model = Transformer.random(Config(**shape), jax.random.key(0))
        numbers = given(model)
        for name, own, trainer in (("DPO", dpo, in_dpo_trainer), ("GRPO", grpo, in_grpo_trainer)):
            yield from table.compare(
                f"{name} step", f"{ROWS} x {LENGTH} tokens, {size}", "float32",
                [own(model, numbers), *table.peers(functools.partial(trainer, model, numbers))],
                budget=60.0,
            )  # fmt: skip


if __name__ == "__main__":
    table.show(rows())
