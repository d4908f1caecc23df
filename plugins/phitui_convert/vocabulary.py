"""What the tokenizer readers return."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum

from phitui.api import Value, ValueType


class TokenType(IntEnum):
    """llama.cpp's token types (llama.h, llama_token_type)."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer as keys. `model` is "llama" (SentencePiece) or "gpt2" (byte-level BPE).

    `strips`: chat markers eat the whitespace to their right.
    """

    model: str
    values: dict[str, Value]
    strips: bool = False
    notes: tuple[str, ...] = field(default=())


def tokens(texts: list[str], types: list[TokenType]) -> dict[str, Value]:
    """The two lists every vocabulary has."""
    return {
        "tokenizer.ggml.tokens": Value.array(ValueType.STRING, texts),
        "tokenizer.ggml.token_type": Value.array(ValueType.INT32, [int(kind) for kind in types]),
    }
