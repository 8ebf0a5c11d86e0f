"""Folders that `lm.save` writes, read by `transformers`: the same logits, all architectures.

    python -m tests.search.checkpoints [--only=llama,qwen2,...]

Needs torch and transformers beside the extra `lm`. For each architecture its checkpoint of
tests/data, loaded and saved again, and a model before training of the same shape, in single
precision: the largest difference of any logit is at most 1e-4, and of the scores of a reward model
made of the checkpoint. In half precision the tensors that `transformers` reads are compared bit by
bit.
"""

import argparse
import pathlib
import tempfile

import jax
import jax.numpy as jnp
import numpy as np

from jdiv import lm
from jdiv.lm import reward_model, train
from jdiv.lm.model import Transformer

CHECKPOINTS = pathlib.Path(__file__).parents[1] / "data" / "checkpoints"
LARGEST = 1e-4
SHAPE = 3, 24
LOGITS = jax.jit(lm.logits)


def read(folder: str, kind: str = "AutoModelForCausalLM"):
    """The model that `transformers` makes of a folder; it says if a tensor was of no use."""
    import transformers

    model, report = getattr(transformers, kind).from_pretrained(
        folder, dtype="auto", output_loading_info=True
    )
    wrong = {name: found for name, found in report.items() if found}
    if wrong:
        raise SystemExit(f"{folder}: transformers reports {wrong}")
    return model.eval()


def distance(model: Transformer, architecture: str) -> float:
    """The largest difference of the logits of some tokens, and how large logits are."""
    import torch

    tokens = np.random.default_rng(0).integers(0, model.config.vocabulary, SHAPE)
    with tempfile.TemporaryDirectory() as folder:
        lm.save(model, folder, architecture=architecture)
        with torch.no_grad():
            theirs = read(folder)(torch.from_numpy(tokens)).logits.numpy()
    return float(np.max(np.abs(np.asarray(LOGITS(model, tokens.astype(np.int32))) - theirs)))


def scores_apart(model: Transformer, architecture: str) -> float:
    """The largest difference of the scores of a reward model; a row at a time, without padding."""
    import torch

    made = reward_model.begin(model, jax.random.key(1))
    # Token 0 fills up rows of Gemma 2: `transformers` looks for the last one that is another.
    tokens = np.random.default_rng(0).integers(1, model.config.vocabulary, SHAPE)
    text = train.Text(tokens.astype(np.int32), np.ones(SHAPE, bool))
    with tempfile.TemporaryDirectory() as folder:
        lm.save(made, folder, architecture=architecture)
        judge = read(folder, "AutoModelForSequenceClassification")
        with torch.no_grad():
            theirs = [judge(torch.from_numpy(row[None])).logits.item() for row in tokens]
    return float(np.max(np.abs(np.asarray(reward_model.scores(made, text)) - theirs)))


def half(path: pathlib.Path) -> bool:
    """Whether tensors in bfloat16 arrive as they were."""
    import torch

    model, _ = lm.load(path, dtype=jnp.bfloat16)
    with tempfile.TemporaryDirectory() as folder:
        lm.save(model, folder, architecture=path.name)
        theirs = read(folder).get_input_embeddings().weight.detach()
    ours = np.asarray(model.tensors["embedding"][...].astype(jnp.float32))
    return theirs.dtype == torch.bfloat16 and np.array_equal(theirs.float().numpy(), ours)


def main() -> None:
    """Prints the differences; exit code 1 if one is too large."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = sorted(path.name for path in CHECKPOINTS.iterdir())
    parser.add_argument("--only", default=",".join(names))
    failed = []
    for name in parser.parse_args().only.split(","):
        stored, _ = lm.load(CHECKPOINTS / name)
        fresh = Transformer.random(stored.config, jax.random.key(0))
        apart = [distance(model, name) for model in (stored, fresh)]
        apart.append(scores_apart(stored, name))
        same = half(CHECKPOINTS / name)
        print(
            f"{name}: logits {apart[0]:.1e} apart, before training {apart[1]:.1e}, scores"
            f" {apart[2]:.1e}; bfloat16 {'the same' if same else 'differs'}",
            flush=True,
        )
        if not (max(apart) <= LARGEST and same):
            failed.append(name)
    if failed:
        raise SystemExit(f"wrong: {', '.join(failed)}")


if __name__ == "__main__":
    main()
