"""Alignment of a language model with a reward: any method, any row, any model, by one command.

A step samples answers, asks the reward, which is a Python function, and makes one update of
`lm.train`. What is shown is not only what the method sees: the true KL to the reference,
Rao-Blackwellized (`divergences.sequence`) with its standard error, stands beside the estimators k1,
k2 and k3 of the same answers. At the quick scale a few steps show that nothing is wrong; results
are what the full scale is for.
"""

from __future__ import annotations

import functools
import json
import pathlib
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
import xarray as xr
from jax import Array
from ml_collections import ConfigDict

from experiments.lab import models
from experiments.lab.axes import count, labels, non_negative, one_of, positive, seeds
from experiments.lab.claims import Finding, at_least, at_most, claim
from experiments.lab.files import Refused
from experiments.lab.plots import GREY, MARKERS, Picture, legend_above, panels, style
from jdiv import generators, parallel
from jdiv.estimators import monte_carlo
from jdiv.policy import advantages

if TYPE_CHECKING:
    import optax
    from jax.typing import ArrayLike
    from matplotlib.figure import Figure

    from jdiv.lm import Tokenizer, Transformer, train

ONE_AT_A_TIME = True
METHODS = ("grpo", "kl_rl", "dpo", "f_dpo", "kto", "f_dpg", "distill")
AXES = {"seed": seeds}
FIELDS = {
    "model": labels,
    "teacher": labels,
    "data": labels,
    "reward": labels,
    "method": one_of(METHODS),
    "generator": one_of(tuple(generators.TABLE)),
    "beta": positive,
    "learning_rate": non_negative,
    "lora_rank": non_negative,
    "lora_alpha": positive,
    "temperature": positive,
    "prompts": count,
    "group": count,
    "tokens": count,
}
STILL = {"learning_rate": 0.0, "temperature": 1.5}
"""The policy stays where it is, and answers are those of another law: a rerun for both claims."""
PROMPTS = pathlib.Path(__file__).with_name("prompts.jsonl")


def validate(config: ConfigDict, point: dict) -> None:
    """Refuses a reward, a file or a model that is not there, groups of one answer, and a teacher
    of a method that has none or none of one that has."""
    from jdiv.lm import data, rewards

    if config.group < 2:
        raise ValueError(f"config.group must be at least 2, got {config.group}")
    rewards.found(config.reward)
    if config.data and not pathlib.Path(config.data).is_file():
        raise ValueError(f"config.data: {config.data} does not exist")
    data.read_prompts(config.data or PROMPTS)
    if bool(config.teacher) != (config.method == "distill"):
        raise ValueError(
            "config.teacher is the model that config.method=distill learns from, and of no other"
            f" method, got {config.teacher!r} for {config.method}"
        )
    if config.method == "dpo" and config.generator != "kl":
        raise ValueError(
            f"config.method=dpo has the row kl, config.method=f_dpo any, got {config.generator}"
        )
    for name in ("model", *(["teacher"] if config.teacher else [])):
        models.anywhere.refuse(f"config.{name}", config[name])


# ------------------------------------------------------------------------------------ the programs


class Programs(NamedTuple):
    """The reference, its tokenizer, the prompts as tokens, and what is compiled.

    `whole` makes the model of what is trained; `fixed` are tensors that an update needs beside it,
    of the reference below low-rank factors and of a teacher, on every device. Temperature and
    learning rate are arguments: a control with others has the same programs.
    """

    ref: Transformer
    tokenizer: Tokenizer
    texts: tuple[str, ...]
    prompts: np.ndarray
    mask: np.ndarray
    generate: Any
    score: Any
    whole: Any
    update: Any
    fixed: dict[str, dict[str, Array]]


def programs(config: ConfigDict) -> Programs:
    """All of a run, made once for what it depends on."""
    names = ("model", "teacher", "data", "method", "generator", "beta", "lora_rank", "lora_alpha",
             "tokens")  # fmt: skip
    return _programs(ConfigDict({name: config[name] for name in names}).to_json_best_effort())


@functools.lru_cache(maxsize=2)
def _programs(fields: str) -> Programs:
    from jdiv import lm
    from jdiv.lm import data as lines
    from jdiv.lm import lora

    config = ConfigDict(json.loads(fields))
    ref, tokenizer = models.load(config.model)
    texts = tuple(line["prompt"] for line in lines.read_prompts(config.data or PROMPTS))
    prompts, mask = _padded([_asked(tokenizer, text) for text in texts])
    whole = functools.partial(lora.merged, alpha=config.lora_alpha) if config.lora_rank else (
        lambda ref, tensors: lm.Transformer(ref.config, tensors))  # fmt: skip
    fixed = {"ref": _tensors(ref)} if config.lora_rank else {}
    teacher = None
    if config.teacher:
        teacher, other = models.load(config.teacher, seed=1)
        if tokenizer.inner.get_vocab() != other.inner.get_vocab() or (
            teacher.config.vocabulary != ref.config.vocabulary
        ):
            raise Refused(
                "config.teacher must have the vocabulary of config.model, token for token"
            )
        fixed["teacher"] = _tensors(teacher)
    update = _update(config, ref, teacher, whole)
    stop = () if tokenizer.end is None else (tokenizer.end,)
    generate = functools.partial(lm.generate, max_tokens=config.tokens, stop=stop)
    return Programs(
        ref, tokenizer, texts, prompts, mask, jax.jit(generate), jax.jit(_scores), jax.jit(whole),
        parallel.on_replicas(update), parallel.replicate(fixed),
    )  # fmt: skip


def _optimizer(learning_rate: ArrayLike) -> optax.GradientTransformation:
    """AdamW, whose state does not depend on the rate."""
    import optax

    return optax.chain(optax.adamw(1.0), optax.scale(learning_rate))


def _update(config: ConfigDict, ref: Transformer, teacher: Transformer | None, whole):
    """One update of the method, `(state, batch, fixed) -> state, metrics`."""
    from jdiv import lm
    from jdiv.lm import train

    row, beta = generators.get(config.generator), config.beta

    def update(state, batch, fixed):
        loss = {
            "grpo": functools.partial(train.grpo, coefficient=beta),
            "kl_rl": functools.partial(train.kl_rl, coefficient=beta),
            "dpo": functools.partial(train.f_dpo, beta=beta),
            "f_dpo": functools.partial(train.f_dpo, beta=beta, generator=row),
            "kto": functools.partial(train.kto, beta=beta),
            "f_dpg": functools.partial(train.f_dpg, generator=row),
            "distill": functools.partial(train.distill, generator=row),
        }[config.method]
        if teacher is not None:
            loss = functools.partial(loss, other=lm.Transformer(teacher.config, fixed["teacher"]))
        made = None
        if config.lora_rank:
            made = functools.partial(whole, lm.Transformer(ref.config, fixed["ref"]))
        return train.update(
            state, batch, loss, config=ref.config, optimizer=_optimizer(fixed["learning_rate"]),
            whole=made, axis_name=parallel.BATCH,
        )  # fmt: skip

    return update


def _tensors(model: Transformer) -> dict[str, Array]:
    return {name: x[...] for name, x in model.tensors.items()}


def _scores(model: Transformer, ref: Transformer, text: train.Text) -> dict[str, Array]:
    """Log-probabilities of both, and the true KL of each answer given its prefixes."""
    from jdiv.divergences import sequence, vocabulary
    from jdiv.lm import scoring

    place, mask = (text.tokens, text.positions, text.segments), text.mask[:, 1:]
    p, q = (scoring.next_tokens(m, *place) for m in (model, ref))
    log_p, log_q = (vocabulary.log_probs(x, text.tokens[:, 1:], mask=mask) for x in (p, q))
    return {
        "log_probs": log_p,
        "ref_log_probs": log_q,
        "kl": sequence.rao_blackwellized(generators.kl(), p, q, mask=mask),
        "entropy": vocabulary.entropy(p, mask=mask).sum(-1),
    }


def _asked(tokenizer: Tokenizer, text: str) -> list[int]:
    """A prompt as the chat's first turn, or as it is where there is no template."""
    chat = [{"role": "user", "content": text}]
    return tokenizer.encode(tokenizer.chat(chat) if tokenizer.chat_template else text)


def _padded(rows: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    """`[rows, longest]` tokens and a mask, filled up in front."""
    longest = max(map(len, rows))
    tokens = np.zeros((len(rows), longest), np.int32)
    for row, ids in zip(tokens, rows, strict=True):
        row[longest - len(ids) :] = ids
    lengths = np.array([[len(ids)] for ids in rows])
    return tokens, np.arange(longest)[None] >= longest - lengths


# --------------------------------------------------------------------------------------- training


def init(config: ConfigDict, point: dict, key: Array) -> train.State:
    """What is trained and the optimizer's first state, on every device: the reference's tensors,
    or factors of a low rank beside them."""
    from jdiv.lm import lora, train

    # Not known before there are devices.
    pairs = config.method in ("dpo", "f_dpo")
    batch = config.prompts if pairs else config.prompts * config.group
    devices = parallel.hosts() * jax.local_device_count()
    if batch % devices:
        what = "config.prompts" if pairs else "config.prompts * config.group"
        raise Refused(f"{what} must be a multiple of the {devices} devices, got {batch}")
    made = programs(config)
    optimizer = _optimizer(config.learning_rate)
    if not config.lora_rank:
        return parallel.replicate(train.begin(made.ref, optimizer))
    most = min(min(shape[1:]) for shape in lora.adapted(made.ref.config).values())
    if config.lora_rank > most:
        raise Refused(f"config.lora_rank must be at most {most}, got {config.lora_rank}")
    factors = lora.begin(made.ref, key, rank=config.lora_rank)
    return parallel.replicate(train.begin(factors, optimizer))


def step(
    config: ConfigDict, point: dict, state: train.State, key: Array
) -> tuple[train.State, dict[str, np.ndarray]]:
    """Answers of the present model, what they are worth, one update; measured before it."""
    made, model = programs(config), _model(config, state)
    choose, draw = jax.random.split(key)
    rows = np.asarray(jax.random.randint(choose, (config.prompts,), 0, len(made.texts)))
    share = _share(config)
    mine = slice(parallel.host() * share, (parallel.host() + 1) * share)
    rows = np.repeat(rows, config.group)[mine]
    keys = jax.random.split(draw, config.prompts * config.group)[mine]
    text, samples, reward = _answers(config, model, rows, keys)
    scores = jax.tree.map(np.asarray, made.score(model, made.ref, text))
    fixed = made.fixed | parallel.replicate({"learning_rate": np.float32(config.learning_rate)})
    state, metrics = made.update(state, _batch(config, text, scores, reward), fixed)
    mask = np.asarray(text.mask[:, 1:])
    log_p, log_q = (scores[name].sum(1) for name in ("log_probs", "ref_log_probs"))
    at = np.asarray(samples.log_probs)[np.asarray(samples.mask)]
    each = {
        "reward": reward,
        "kl": scores["kl"],
        "entropy": scores["entropy"],
        "length": mask.sum(1),
        **{name: np.asarray(getattr(monte_carlo, f"kl_{name}")(log_p, log_q))
           for name in ("k1", "k2", "k3")},
    }  # fmt: skip
    each = {name: parallel.from_all_hosts(x.astype(np.float32)).ravel() for name, x in each.items()}
    found = {name: x.mean() for name, x in each.items()}
    errors = {f"{name}_error": each[name].std(ddof=1) / len(each[name]) ** 0.5
              for name in ("reward", "kl", "k1", "k3")}  # fmt: skip
    apart = np.abs(at - scores["log_probs"][mask]).max(initial=0)
    return state, found | errors | {
        "loss": np.asarray(metrics["loss"]),
        "sampler_apart": parallel.from_all_hosts(apart).max(),
    }


def _share(config: ConfigDict) -> int:
    """How many of a step's answers are this host's."""
    return config.prompts * config.group // parallel.hosts()


def _model(config: ConfigDict, state: train.State) -> Transformer:
    """The model of this host's first device."""
    made = programs(config)
    here = {name: x.addressable_shards[0].data[0] for name, x in state.tensors.items()}
    return made.whole(made.ref, here)


def _answers(config: ConfigDict, model: Transformer, rows: np.ndarray, keys: Array):
    """Prompts with sampled answers as text to train on, the samples, and their rewards."""
    from jdiv.lm import rewards, train

    made = programs(config)
    prompts, real = made.prompts[rows], made.mask[rows]
    temperature = np.float32(config.temperature)
    samples = made.generate(model, prompts, keys, mask=real, temperature=temperature)
    samples = jax.tree.map(np.asarray, samples)
    there = np.concatenate([real, samples.mask], axis=1)
    text = train.Text(
        tokens=np.concatenate([prompts, samples.tokens], axis=1),
        mask=np.concatenate([np.zeros_like(real), samples.mask], axis=1),
        positions=np.maximum(there.cumsum(axis=1) - 1, 0).astype(np.int32),
        segments=np.where(there, 0, 1).astype(np.int32),
    )
    judge = rewards.found(config.reward)
    said = [made.tokenizer.decode(row[here])
            for row, here in zip(samples.tokens, samples.mask, strict=True)]  # fmt: skip
    worth = [judge(made.texts[row], answer) for row, answer in zip(rows, said, strict=True)]
    return text, samples, np.array(worth, np.float32)


def _batch(config: ConfigDict, text: train.Text, scores: dict, reward: np.ndarray):
    """What the loss of the method takes."""
    from jdiv.lm import train

    if config.method == "distill":
        return text
    old, ref = scores["log_probs"], scores["ref_log_probs"]
    groups = reward.reshape(-1, config.group)
    if config.method == "grpo":
        gain = advantages.grpo_advantages(groups)
        return train.Rollouts(text, old, ref, np.asarray(gain).ravel())
    if config.method == "kl_rl":
        gain = groups - advantages.mean_of_others(groups)
        return train.Rollouts(text, old, ref, np.asarray(gain).ravel())
    log_p, log_q = old.sum(1), ref.sum(1)
    if config.method == "kto":
        # Better than its group is desirable; the baseline is the KL that it is meant to be.
        desirable = (groups > groups.mean(axis=1, keepdims=True)).ravel()
        kl = parallel.from_all_hosts(scores["kl"].mean()).mean()
        return train.Judged(text, log_q, desirable, np.full_like(log_q, kl))
    if config.method == "f_dpg":
        # Of exp(r / beta) under the reference, by the group's own answers.
        log_ratio = (log_q - log_p + reward / config.beta).reshape(groups.shape)
        log_z = jax.nn.logsumexp(log_ratio, axis=1, keepdims=True) - np.log(config.group)
        target = log_q + reward / config.beta - np.repeat(np.asarray(log_z)[:, 0], config.group)
        return train.Targets(text, log_p, target, np.zeros_like(log_p))
    first = np.arange(len(groups)) * config.group
    best, worst = first + groups.argmax(1), first + groups.argmin(1)
    of = lambda rows: jax.tree.map(lambda x: x[rows], text)
    return train.Pairs(of(best), of(worst), log_q[best], log_q[worst])


def keep(config: ConfigDict, point: dict, state: train.State, folder: pathlib.Path) -> None:
    """The aligned model as a folder of Hugging Face, and samples before and after."""
    from jdiv import lm

    made, model = programs(config), _model(config, state)
    rows = np.arange(min(len(made.texts), 16))
    keys = jax.random.split(jax.random.key(point["seed"]), len(rows))
    lines = [{"prompt": made.texts[row]} for row in rows]
    for first in range(0, len(rows), _share(config)):
        # As many at once as in a step, whose program there is; the last one again where few are.
        here = np.minimum(np.arange(first, first + _share(config)), len(rows) - 1)
        for name, which in (("before", made.ref), ("after", model)):
            _, samples, worth = _answers(config, which, rows[here], keys[here])
            said = zip(samples.tokens, samples.mask, worth, strict=True)
            for line, (tokens, mask, reward) in zip(lines[first:], said, strict=False):
                line[name] = made.tokenizer.decode(tokens[mask])
                line[f"reward_{name}"] = float(reward)
    written = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    (folder / "samples.jsonl").write_text(written, encoding="utf-8")
    lm.save(model, folder / "model", made.tokenizer)


# ----------------------------------------------------------------------------------------- figures


def figures(config: ConfigDict, results: xr.Dataset) -> dict[str, Picture | str]:
    """Reward against KL over training, and every estimator of KL."""
    said = (
        f"{config.method}, {config.generator}, beta {config.beta:g}: mean over"
        f" {config.prompts * config.group} answers a step."
    )
    return {
        "frontier": Picture(
            _frontier(results),
            f"{said} Reward, with its standard error, against the true KL to the reference; the"
            " colour is the step.",
        ),
        "kl": Picture(
            _estimators(results),
            f"{said} The KL to the reference, Rao-Blackwellized with its standard error, and the"
            " estimators of the same answers.",
        ),
    }


def _frontier(results: xr.Dataset) -> Figure:
    figure, axis = panels(1)
    for number, seed in enumerate(results.seed.values):
        here = results.sel(seed=seed)
        axis.errorbar(here.kl, here.reward, here.reward_error, fmt="none", ecolor=GREY, zorder=1)
        look = {"marker": MARKERS[number % len(MARKERS)], "label": f"seed {seed}"}
        points = axis.scatter(here.kl, here.reward, c=here.step, cmap="viridis", **look)
    axis.locator_params(axis="x", nbins=5)
    figure.colorbar(points, label="steps")
    axis.set(xlabel="KL(policy‖reference) (nats per answer)", ylabel="reward (per answer)")
    if results.seed.size > 1:
        legend_above(figure, axis, columns=4)
    return figure


def _estimators(results: xr.Dataset) -> Figure:
    figure, axis = panels(1)
    mean = results.mean("seed")
    for number, name in enumerate(("kl", "k1", "k2", "k3")):
        label = "true, given prefixes" if name == "kl" else name
        axis.plot(results.step, mean[name], label=label, **style(number))
    low, high = mean.kl - mean.kl_error, mean.kl + mean.kl_error
    axis.fill_between(results.step, low, high, color=style(0)["color"], alpha=0.2, lw=0)
    axis.set(xlabel="steps", ylabel="KL(policy‖reference) (nats per answer)")
    legend_above(figure, axis, columns=4)
    return figure


# ------------------------------------------------------------------------------------------ claims


@claim(
    source="Definition of training",
    reruns=(STILL,),
    wrong=({"step": 0},),
)
def an_update_moves_the_policy(results: xr.Dataset, step: int = -1) -> Finding:
    """After the last step but one the true KL to the reference is positive; before the first update
    it is 0, exactly."""
    return at_least(1e-9, results.kl.isel(step=step).min())


@claim(source="Definition of sampling", reruns=(STILL,))
def answers_have_the_probabilities_of_the_model(results: xr.Dataset) -> Finding:
    """The sampler's log-probabilities of its tokens are those that scoring finds: the largest
    difference. At another temperature the answers are another law's."""
    return at_most(1e-3, results.sampler_apart.max())
