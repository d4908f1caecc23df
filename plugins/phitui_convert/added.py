"""Added tokens, as tokenizer_config.json (`added_tokens_decoder`) and tokenizer.json (`added_tokens`) list them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from phitui.api import Checkpoint, InvalidFile


@dataclass(frozen=True)
class AddedToken:
    """A token that is matched in the text before the model splits it. Flags are Hugging Face's."""

    id: int
    content: str
    special: bool
    normalized: bool
    lstrip: bool
    rstrip: bool
    single_word: bool


def from_config(checkpoint: Checkpoint, config: Mapping[str, Any]) -> Iterator[AddedToken]:
    """Those of tokenizer_config.json, in its order. Raises InvalidFile."""
    decoder = config.get("added_tokens_decoder") or {}
    if not isinstance(decoder, Mapping):
        raise InvalidFile(f"{checkpoint.directory}: tokenizer_config.json: added_tokens_decoder is not an object")
    for token, entry in decoder.items():
        yield _token(checkpoint, "tokenizer_config.json", token, entry)


def from_json(checkpoint: Checkpoint, fast: Mapping[str, Any]) -> Iterator[AddedToken]:
    """Those of tokenizer.json, in its order. Raises InvalidFile."""
    listed = fast.get("added_tokens") or []
    if not isinstance(listed, list):
        raise InvalidFile(f"{checkpoint.directory}: tokenizer.json: added_tokens is not a list")
    for entry in listed:
        yield _token(checkpoint, "tokenizer.json", entry.get("id") if isinstance(entry, Mapping) else None, entry)


def _token(checkpoint: Checkpoint, file: str, token: Any, entry: Any) -> AddedToken:
    number = int(token) if str(token).isdecimal() else None
    if number is None or not isinstance(entry, Mapping) or not isinstance(entry.get("content"), str):
        raise InvalidFile(f"{checkpoint.directory}: {file}: added token {token!r} has no usable id and content")
    special = bool(entry.get("special"))
    return AddedToken(
        number,
        entry["content"],
        special,
        bool(entry.get("normalized", not special)),
        bool(entry.get("lstrip")),
        bool(entry.get("rstrip")),
        bool(entry.get("single_word")),
    )
