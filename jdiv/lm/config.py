"""The shape of a transformer: from ten thousand parameters to billions, by these numbers alone."""

from __future__ import annotations

import dataclasses
from typing import Literal

from jdiv import checks

ACTIVATIONS = "silu", "gelu", "gelu_tanh"


@dataclasses.dataclass(frozen=True)
class Config:
    """The shape of a transformer.

    Fields:
        vocabulary: Tokens there are.
        width: Of the hidden states.
        layers: Blocks of attention and MLP.
        heads: Queries' heads.
        key_heads: Heads of keys and values, which divide the queries' among them.
        head_width: Numbers of a head.
        hidden: Inner width of the MLP.
        longest: Positions a sequence may have; learned positions have no more.
        norm: "rms", or "layer" with mean and bias.
        norm_epsilon: What norms add to the variance.
        norm_offset: What is added to a norm's scale: 1 for Gemma, which stores the rest.
        rotary_base: Base of the rotary angles; None for learned positions.
        gated: Whether the MLP has a gate.
        activation: One of `ACTIVATIONS`.
        attention_bias: Whether queries, keys and values have biases.
        other_biases: Whether the other products have biases.
        query_key_norm: Whether each query and key is normed.
        post_norms: Whether the outputs of attention and MLP are normed, too.
        query_scale: Factor of the products of queries and keys; None for `head_width**-0.5`.
        attention_cap: The soft cap of these products, or None.
        logit_cap: The soft cap of the logits, or None.
        windows: How far back each layer looks; None for a layer that looks at everything, and in
            place of the tuple if all do.
        embedding_scale: Factor of the embeddings.
        tied: Whether the head is the embedding.
        scores: Numbers that a reward model gives in place of logits; 0 for a language model.
    """

    vocabulary: int
    width: int
    layers: int
    heads: int
    key_heads: int
    head_width: int
    hidden: int
    longest: int = 2048
    norm: Literal["rms", "layer"] = "rms"
    norm_epsilon: float = 1e-5
    norm_offset: float = 0.0
    rotary_base: float | None = 10_000.0
    gated: bool = True
    activation: str = "silu"
    attention_bias: bool = False
    other_biases: bool = False
    query_key_norm: bool = False
    post_norms: bool = False
    query_scale: float | None = None
    attention_cap: float | None = None
    logit_cap: float | None = None
    windows: tuple[int | None, ...] | None = None
    embedding_scale: float = 1.0
    tied: bool = True
    scores: int = 0

    def __post_init__(self) -> None:
        """Refuses sizes that do not fit together."""
        for name in ("vocabulary", "width", "layers", "heads", "key_heads", "head_width", "hidden"):
            checks.whole(name, getattr(self, name), 1, 2**31, "at least 1")
        checks.whole("scores", self.scores, 0, 2**31, "at least 0")
        checks.known("activation", self.activation, ACTIVATIONS)
        checks.known("norm", self.norm, ("rms", "layer"))
        if self.heads % self.key_heads:
            raise ValueError(f"key_heads must divide heads, got {self.key_heads} for {self.heads}")
        if self.rotary_base is not None and self.head_width % 2:
            raise ValueError(f"head_width must be even for rotary positions, got {self.head_width}")
        if self.windows is not None and len(self.windows) != self.layers:
            raise ValueError(
                f"windows must have one entry a layer, got {len(self.windows)} for {self.layers}"
            )
