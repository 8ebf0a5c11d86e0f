"""What the files of known architectures call things: sizes in config.json, and tensors.

An architecture is added here: how its config.json reads as a `Config` and back, and the name of
each tensor of `weights.tensors` in its files.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from jdiv import checks
from jdiv.lm.config import Config


class Source(NamedTuple):
    """Where a tensor lies in a file.

    Fields:
        name: Its name there; {} stands for the layer.
        transposed: Whether it is stored `[in, out]`.
        part: Which one it is, of how many that are stored as one along the outputs.
    """

    name: str
    transposed: bool = False
    part: tuple[int, int] = (0, 1)


class Architecture(NamedTuple):
    """How a kind of model is stored.

    Fields:
        read: config.json to the shape of a transformer.
        write: The way back, but for what tells the architecture and the scores.
        model_class: The name of its class in config.json.
        score_class: The same of a model that has scores in place of logits.
        sources: The tensors by our names.
    """

    read: Callable[[Mapping[str, Any]], Config]
    write: Callable[[Config], dict[str, Any]]
    model_class: str
    score_class: str
    sources: dict[str, Source]


# ---------------------------------------------------------------------------- Llama and its like

_LAYER = "model.layers.{}."
_PRODUCTS = {
    "query": "self_attn.q_proj", "key": "self_attn.k_proj", "value": "self_attn.v_proj",
    "output": "self_attn.o_proj", "gate": "mlp.gate_proj", "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}  # fmt: skip
_LLAMA = {
    "embedding": Source("model.embed_tokens.weight"),
    "norm": Source("model.norm.weight"),
    "head": Source("lm_head.weight"),
    "score": Source("score.weight"),
    "attention_norm": Source(_LAYER + "input_layernorm.weight"),
    "mlp_norm": Source(_LAYER + "post_attention_layernorm.weight"),
    "query_norm": Source(_LAYER + "self_attn.q_norm.weight"),
    "key_norm": Source(_LAYER + "self_attn.k_norm.weight"),
    **{name: Source(f"{_LAYER}{file}.weight") for name, file in _PRODUCTS.items()},
    **{f"{name}_bias": Source(f"{_LAYER}{file}.bias") for name, file in _PRODUCTS.items()},
}
_GEMMA2 = _LLAMA | {
    "attention_post_norm": Source(_LAYER + "post_attention_layernorm.weight"),
    "mlp_norm": Source(_LAYER + "pre_feedforward_layernorm.weight"),
    "mlp_post_norm": Source(_LAYER + "post_feedforward_layernorm.weight"),
}
_SIZES = {
    "vocabulary": "vocab_size",
    "width": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "key_heads": "num_key_value_heads",
    "head_width": "head_dim",
    "hidden": "intermediate_size",
    "longest": "max_position_embeddings",
    "norm_epsilon": "rms_norm_eps",
    "tied": "tie_word_embeddings",
}
_ACTIVATIONS = {
    "silu": "silu", "gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh",
}  # fmt: skip


def _activation(given: Mapping[str, Any], name: str) -> str:
    checks.known(name, given[name], _ACTIVATIONS)
    return _ACTIVATIONS[given[name]]


def _file_activation(config: Config) -> str:
    """The name of an activation in files; the newest of two."""
    return {ours: theirs for theirs, ours in _ACTIVATIONS.items()}[config.activation]


def _rotary_base(given: Mapping[str, Any]) -> float:
    """The base of the angles; scaled angles are refused."""
    known = given.get("rope_parameters") or given.get("rope_scaling") or {}
    kind = known.get("rope_type", known.get("type", "default"))
    if kind != "default":
        raise ValueError(f"config.json: rope_type {kind!r} is not known, only 'default'")
    return float(known.get("rope_theta", given.get("rope_theta", 10_000.0)))


def _windows(given: Mapping[str, Any], sliding: list[bool]) -> tuple[int | None, ...] | None:
    """How far back the layers look, by the list of their types or by the architecture's rule."""
    types = given.get("layer_types")
    if types is not None:
        sliding = [kind == "sliding_attention" for kind in types]
    if not any(sliding):
        return None
    return tuple(given["sliding_window"] if one else None for one in sliding)


def _read_llama(given: Mapping[str, Any], **own: Any) -> Config:
    """A config.json of Llama's kind."""
    sizes = {ours: given[theirs] for ours, theirs in _SIZES.items() if theirs in given}
    sizes.setdefault("key_heads", sizes["heads"])
    if sizes.get("head_width") is None:
        sizes["head_width"] = sizes["width"] // sizes["heads"]
    for name in ("attention_bias", "mlp_bias"):
        if given.get(name):
            raise ValueError(f"config.json: {name} is not known for this kind, only false")
    known = {
        "rotary_base": _rotary_base(given),
        "tied": False,
        "activation": _activation(given, "hidden_act") if "hidden_act" in given else "silu",
    }
    return Config(**{**known, **sizes, **own})


def _write_llama(config: Config) -> dict[str, Any]:
    return {
        **{theirs: getattr(config, ours) for ours, theirs in _SIZES.items()},
        "hidden_act": _file_activation(config),
        "attention_bias": False,
        "rope_theta": config.rotary_base,
        "rope_parameters": {"rope_theta": config.rotary_base, "rope_type": "default"},
    }


def _read_qwen(given: Mapping[str, Any], **own: Any) -> Config:
    first = given.get("max_window_layers", 0)
    used = bool(given.get("use_sliding_window", False))
    windows = _windows(given, [used and i >= first for i in range(given["num_hidden_layers"])])
    return _read_llama(given, windows=windows, **own)


def _write_qwen(config: Config) -> dict[str, Any]:
    return (
        _write_llama(config)
        | _write_windows(config)
        | {"use_sliding_window": config.windows is not None}
    )


def _write_windows(config: Config) -> dict[str, Any]:
    windows = config.windows or (None,) * config.layers
    kinds = ["full_attention" if w is None else "sliding_attention" for w in windows]
    width = next((w for w in windows if w is not None), None)
    return {"layer_types": kinds, "sliding_window": width}


def _read_gemma2(given: Mapping[str, Any]) -> Config:
    layers = given["num_hidden_layers"]
    return _read_llama(
        {"tie_word_embeddings": True, **given},
        windows=_windows(given, [i % 2 == 0 for i in range(layers)]),
        norm_offset=1.0,
        post_norms=True,
        activation=_activation(given, "hidden_activation"),
        query_scale=given["query_pre_attn_scalar"] ** -0.5,
        attention_cap=given["attn_logit_softcapping"],
        logit_cap=given["final_logit_softcapping"],
        embedding_scale=given["hidden_size"] ** 0.5,
    )


def _write_gemma2(config: Config) -> dict[str, Any]:
    scale = config.head_width**-0.5 if config.query_scale is None else config.query_scale
    return (
        _write_llama(config)
        | _write_windows(config)
        | {
            "hidden_activation": _file_activation(config),
            "query_pre_attn_scalar": round(scale**-2),  # a whole number to `transformers`
            "attn_logit_softcapping": config.attention_cap,
            "final_logit_softcapping": config.logit_cap,
        }
    )


# ------------------------------------------------------------------------------------------- GPT-2

_BLOCK = "transformer.h.{}."
_JOINT = {"query": 0, "key": 1, "value": 2}
_GPT2_PRODUCTS = {"output": "attn.c_proj", "up": "mlp.c_fc", "down": "mlp.c_proj"}
_GPT2_NORMS = {"attention_norm": _BLOCK + "ln_1", "mlp_norm": _BLOCK + "ln_2",
               "norm": "transformer.ln_f"}  # fmt: skip
_GPT2 = {
    "embedding": Source("transformer.wte.weight"),
    "positions": Source("transformer.wpe.weight"),
    "head": Source("lm_head.weight"),
    "score": Source("score.weight"),
    **{name: Source(f"{file}.weight") for name, file in _GPT2_NORMS.items()},
    **{f"{name}_bias": Source(f"{file}.bias") for name, file in _GPT2_NORMS.items()},
    **{k: Source(_BLOCK + "attn.c_attn.weight", True, (i, 3)) for k, i in _JOINT.items()},
    **{f"{k}_bias": Source(_BLOCK + "attn.c_attn.bias", False, (i, 3)) for k, i in _JOINT.items()},
    **{k: Source(f"{_BLOCK}{file}.weight", True) for k, file in _GPT2_PRODUCTS.items()},
    **{f"{k}_bias": Source(f"{_BLOCK}{file}.bias") for k, file in _GPT2_PRODUCTS.items()},
}


def _read_gpt2(given: Mapping[str, Any]) -> Config:
    width, heads = given["n_embd"], given["n_head"]
    for name in ("scale_attn_by_inverse_layer_idx", "add_cross_attention"):
        if given.get(name):
            raise ValueError(f"config.json: {name} is not known, only false")
    return Config(
        vocabulary=given["vocab_size"],
        width=width,
        layers=given["n_layer"],
        heads=heads,
        key_heads=heads,
        head_width=width // heads,
        hidden=given.get("n_inner") or 4 * width,
        longest=given["n_positions"],
        norm="layer",
        norm_epsilon=given["layer_norm_epsilon"],
        rotary_base=None,
        gated=False,
        activation=_activation(given, "activation_function"),
        attention_bias=True,
        other_biases=True,
        tied=given.get("tie_word_embeddings", True),
    )


def _write_gpt2(config: Config) -> dict[str, Any]:
    return {
        "vocab_size": config.vocabulary,
        "n_embd": config.width,
        "n_layer": config.layers,
        "n_head": config.heads,
        "n_inner": config.hidden,
        "n_positions": config.longest,
        "layer_norm_epsilon": config.norm_epsilon,
        "activation_function": "gelu_new",
        "tie_word_embeddings": config.tied,
    }


ARCHITECTURES: dict[str, Architecture] = {
    name: Architecture(read, write, f"{kind}{model_class}", f"{kind}ForSequenceClassification", of)
    for name, kind, model_class, read, write, of in (
        ("llama", "Llama", "ForCausalLM", _read_llama, _write_llama, _LLAMA),
        ("qwen2", "Qwen2", "ForCausalLM", functools.partial(_read_qwen, attention_bias=True),
         _write_qwen, _LLAMA),
        ("qwen3", "Qwen3", "ForCausalLM", functools.partial(_read_qwen, query_key_norm=True),
         _write_qwen, _LLAMA),
        ("gemma2", "Gemma2", "ForCausalLM", _read_gemma2, _write_gemma2, _GEMMA2),
        ("gpt2", "GPT2", "LMHeadModel", _read_gpt2, _write_gpt2, _GPT2),
    )
}  # fmt: skip
"""The architectures by the `model_type` of their config.json."""


def read(given: Mapping[str, Any]) -> Config:
    """The shape that a config.json tells, of a model with logits or with scores."""
    checks.known("config.json: model_type", given.get("model_type", "nothing"), ARCHITECTURES)
    kind = ARCHITECTURES[given["model_type"]]
    config = kind.read(given)
    if kind.score_class not in (given.get("architectures") or ()):
        return config
    # `transformers` leaves out the labels where there are two.
    return dataclasses.replace(config, scores=len(given.get("id2label", (0, 1))))


def written(name: str, config: Config) -> dict[str, Any]:
    """A config.json of this architecture."""
    kind = ARCHITECTURES[name]
    labels = {str(i): f"LABEL_{i}" for i in range(config.scores)}
    return {
        "architectures": [kind.score_class if config.scores else kind.model_class],
        "model_type": name,
        **({"id2label": labels} if labels else {}),
        **({"label2id": {label: int(i) for i, label in labels.items()}} if labels else {}),
        **kind.write(config),
    }
