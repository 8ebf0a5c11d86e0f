"""Aligns a language model with a reward: your own, or SmolLM2 with a lexicon of pleasant words.

    python -m experiments.run --config=configs/lm/align.py

A minute on two cores, for a few steps: enough to see that nothing is wrong. Your own:

    python -m experiments.run --config=configs/lm/align.py:full --config.model=DIR \\
        --config.data=prompts.jsonl --config.method=grpo --config.reward=my_module.my_reward

DIR is a folder of Hugging Face or a .gguf file, a line of the data is `{"prompt": ...}`, a reward
is a function `(prompt, answer) -> number` or the folder of a reward model. `models/` of the run's
folder then has the aligned model and samples before and after. The full scale is sized for one
accelerator.
"""

from ml_collections import ConfigDict

from configs import defaults


def get_config(scale: str = "quick") -> ConfigDict:
    """Learning rate and beta were chosen for SmolLM2 in a few hundred steps. The smoke scale has a
    random model of 64 words.
    """
    config = defaults.get_config("lm/align", scale)
    config.precision = "float32"
    steps = {"smoke": 3, "quick": 2, "full": 200}[scale]
    config.training = defaults.training(
        steps, record_every=1, checkpoint_every={"smoke": 1, "quick": 2, "full": 20}[scale]
    )
    config.training.checkpoints = 1
    # "smollm2", a folder, a .gguf file, or "random".
    config.model = "random" if scale == "smoke" else "smollm2"
    # A file of lines {"prompt": ...}; empty for a few that are there.
    config.data = ""
    # A few answers have as many pleasant words, often none, and move nothing then; two are hardly
    # ever of one length.
    config.reward = f"jdiv.lm.rewards.{'lexicon' if scale == 'full' else 'length'}"
    # grpo, kl_rl, dpo, kto, and of any row f_dpo, f_dpg and distill.
    config.method = "kl_rl"
    # The model that distill learns from, named as the other; the row is D(model, teacher).
    config.teacher = ""
    config.generator = "kl"
    config.beta = 0.1
    config.learning_rate = 1e-3 if scale == "smoke" else 1e-5
    # 0 trains all tensors; otherwise factors of this rank, times alpha / rank (lm.lora).
    config.lora_rank = 0
    config.lora_alpha = 16.0
    config.temperature = 1.0
    # Of a step: prompts, answers to each, their tokens.
    config.prompts = {"smoke": 4, "quick": 2, "full": 16}[scale]
    config.group = {"smoke": 4, "quick": 2, "full": 8}[scale]
    config.tokens = {"smoke": 6, "quick": 12, "full": 64}[scale]
    config.sweep = ConfigDict({"seed": (0,)})
    return config
