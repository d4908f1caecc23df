"""Texts that tokenizers disagree about, and what the checkpoint's own tokenizer files make of them."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from phitui.engine.template import render_chat
from phitui.testing.checkpoints import write_checkpoint

CHAT = [
    {"role": "system", "content": "You are a helpful assistant."},
    {"role": "user", "content": "What is the capital of France?"},
    {"role": "assistant", "content": "Paris."},
    {"role": "user", "content": "  And\n\n of wörld? 😶\u200d🌫️ سلام çğış kept <tag> "},
]
TEXTS = (
    "Hello world",
    " leading and trailing ",
    "  ",
    "\n\n\n a \n b\r\n\r\n c\t\td \n",
    "1 12 123 1234 12345 123456 3.14 1,000,000 a1b2 ١٢٣ ½",
    "I'm you're he's THEY'LL don't 'S the's",
    "HelloWorld helloWorld HELLOworld cafe\u0301 café Ünïcödé ß Straße Ελληνικά Привет",
    "你好世界 こんにちは 한국어 ไทย हिन्दी",
    "😀 👩‍👩‍👧‍👦 🇫🇷 ✊🏽 😶‍🌫️",
    "./the...of ).\n/\n --- === !!! ?? _a -the",
    "<|user|>   \n  Hi<|end|><|endoftext|>\nfoo",
    "a<tag>b kept c<|tool|> d</s> e",
    "<|end|>",
    "<|user|>\n\n",
    "<|not a token|> <|user <s> </s> <unk> <0x0A>",
    "\u00a0\u2003\u200b\ufeff zero width",
    "def f(x):\n    return x ** 2  # the answer\n",
)
_PIECES = (
    " ", "  ", "\n", "\n\n", "\t", "the", "Paris", "Hello", "W", "orld", "1", "12", "345", ".", "...", "'s", "'LL", "é",
    "ß", "你", "🚀", "<|end|>", "<|user|>", "/", "-", "a", "Of", "?!", "\r\n", "France",
)  # fmt: skip
RANDOM = 60


@dataclass(frozen=True)
class Vocabulary:
    """A checkpoint with a tokenizer of one kind."""

    spec: dict[str, Any]
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def tokenizer(self) -> str:
        return str(self.spec.get("tokenizer", "spm"))

    def write(self, directory: Path) -> Path:
        return write_checkpoint(directory, **({"hidden": 32, "intermediate": 32, "layers": 1} | self.spec))


def _bpe(pre: str, **spec: Any) -> Vocabulary:
    return Vocabulary({"tokenizer": "bpe", "pre": pre, "vocabulary": 768} | spec, {"pre_tokenizer": pre})


VOCABULARIES: dict[str, Vocabulary] = {
    "Phi-3-mini": Vocabulary({}),
    "a-finetune": Vocabulary({}),
    "phi-2": _bpe("gpt-2", family="phi2", kv_heads=4),
    "Phi-4": _bpe("dbrx"),
    "Phi-4-mini": _bpe("gpt-4o"),
    "phi3-on-bpe": _bpe("gpt-4o"),
}
"""By the name of the checkpoint's directory, which becomes the model's name, which matters to llama.cpp."""


def texts(checkpoint: Path) -> list[str]:
    """Chats rendered with the checkpoint's own template, TEXTS, and random mixtures of what is difficult."""
    config = json.loads((checkpoint / "tokenizer_config.json").read_text(encoding="utf-8"))
    chats = [render_chat(config["chat_template"], chat, eos="<|endoftext|>") for chat in (CHAT, CHAT[1:2])]
    dice = random.Random(0)  # noqa: S311 - the same on every machine
    mixed = ["".join(dice.choices(_PIECES, k=dice.randint(1, 12))) for _ in range(RANDOM)]
    return [*chats, *TEXTS, *mixed]


def libraries(checkpoint: Path) -> dict[str, Callable[[str], list[int] | None]]:
    """By library: a function from text to ids, None where the library cannot say."""
    from tokenizers import Tokenizer

    fast = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    found: dict[str, Callable[[str], list[int] | None]] = {
        "tokenizers": lambda text: list(fast.encode(text, add_special_tokens=False).ids)
    }
    model = checkpoint / "tokenizer.model"
    if model.is_file():
        from sentencepiece import SentencePieceProcessor

        pieces = SentencePieceProcessor(model_file=str(model))
        added = [token.content for token in fast.get_added_tokens_decoder().values()]

        def plain(text: str) -> list[int] | None:
            """It knows nothing of tokens that were added to it."""
            return None if any(token in text for token in added) else list(pieces.encode(text))

        found["sentencepiece"] = plain
    return found
