"""Text to tokens and back, through the `tokenizers` package, and the template of a chat."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import tokenizers

CONTROL, OWN = 3, 4
"""Types of tokens in GGUF files that are never made of text, and that stand apart from it."""


class Tokenizer:
    """A tokenizer with the ids that begin and end a sequence, and the template of a chat.

    Fields:
        inner: The tokenizer of the `tokenizers` package.
        begin: The id that begins a sequence, or None.
        end: The id that ends one, or None.
        chat_template: A Jinja template, or None.
    """

    def __init__(
        self,
        inner: tokenizers.Tokenizer,
        begin: int | None = None,
        end: int | None = None,
        chat_template: str | None = None,
    ) -> None:
        """A tokenizer of these parts."""
        self.inner, self.begin, self.end = inner, begin, end
        self.chat_template = chat_template

    @classmethod
    def from_folder(cls, folder: pathlib.Path) -> Tokenizer:
        """Of a folder with tokenizer.json, and maybe tokenizer_config.json."""
        import tokenizers

        inner = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        settings = folder / "tokenizer_config.json"
        known = json.loads(settings.read_text(encoding="utf-8")) if settings.is_file() else {}

        def token(name):
            given = known.get(f"{name}_token")
            text = given["content"] if isinstance(given, Mapping) else given
            return None if text is None else inner.token_to_id(text)

        return cls(inner, token("bos"), token("eos"), known.get("chat_template"))

    @classmethod
    def from_gguf(cls, kept: Mapping[str, Any]) -> Tokenizer:
        """Of the metadata of a GGUF file: byte-level BPE."""
        from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

        model, before = kept["tokenizer.ggml.model"], kept["tokenizer.ggml.pre"]
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
        split = {
            "gpt-2": byte_level,
            "smollm": pre_tokenizers.Sequence(
                [pre_tokenizers.Digits(individual_digits=True), byte_level]
            ),
        }
        if model != "gpt2" or before not in split:
            raise ValueError(
                f"tokenizer {model!r} with {before!r} is not known, only 'gpt2' with"
                f" {' or '.join(map(repr, split))}"
            )
        words = kept["tokenizer.ggml.tokens"]
        merges = [tuple(pair.split(" ", 1)) for pair in kept["tokenizer.ggml.merges"]]
        inner = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, merges))
        inner.pre_tokenizer, inner.decoder = split[before], decoders.ByteLevel()
        for word, kind in zip(words, kept["tokenizer.ggml.token_type"], strict=True):
            if kind in (CONTROL, OWN):
                token = AddedToken(word, normalized=False, special=kind == CONTROL)
                (inner.add_special_tokens if kind == CONTROL else inner.add_tokens)([token])
        return cls(
            inner,
            kept.get("tokenizer.ggml.bos_token_id"),
            kept.get("tokenizer.ggml.eos_token_id"),
            kept.get("tokenizer.chat_template"),
        )

    def encode(self, text: str) -> list[int]:
        """The ids of a text; names of special tokens in it are these tokens."""
        return self.inner.encode(text, add_special_tokens=False).ids

    def decode(self, tokens: Sequence[int], *, special: bool = False) -> str:
        """The text of ids, with or without the special ones."""
        return self.inner.decode([int(i) for i in tokens], skip_special_tokens=not special)

    def chat(self, messages: Sequence[Mapping[str, str]], *, answer: bool = True) -> str:
        """The text of a chat by the template; with `answer` the next turn is the model's.

        A message has a role and a content.
        """
        if self.chat_template is None:
            raise ValueError("this tokenizer has no chat template")
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        word = lambda i: "" if i is None else self.inner.id_to_token(i)
        return environment.from_string(self.chat_template).render(
            messages=list(messages),
            add_generation_prompt=answer,
            bos_token=word(self.begin),
            eos_token=word(self.end),
        )

    def ids(self) -> dict[str, int]:
        """What config.json says of the ids that begin and end a sequence."""
        known = {"bos_token_id": self.begin, "eos_token_id": self.end}
        return {name: i for name, i in known.items() if i is not None}

    def save(self, folder: pathlib.Path) -> None:
        """Writes tokenizer.json and tokenizer_config.json."""
        self.inner.save(str(folder / "tokenizer.json"))
        word = lambda i: None if i is None else self.inner.id_to_token(i)
        settings = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": word(self.begin),
            "eos_token": word(self.end),
            "chat_template": self.chat_template,
        }
        settings = {name: x for name, x in settings.items() if x is not None}
        text = json.dumps(settings, indent=2, ensure_ascii=False)
        (folder / "tokenizer_config.json").write_text(text + "\n", encoding="utf-8")
