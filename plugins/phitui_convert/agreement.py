"""Do the tokenizer files of a checkpoint belong together? Transformers takes one of them and does not look at the rest;
a converter that mixes them would give tokens the wrong ids, and every answer would be noise.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from phitui.api import Checkpoint, InvalidFile
from phitui_convert import pieces
from phitui_convert.added import from_config, from_json

_WAY = "copy all tokenizer files from one revision of the model they came with"


def check_added(checkpoint: Checkpoint, config: Mapping[str, Any], fast: Mapping[str, Any], listed: bool) -> None:
    """Raise InvalidFile if two files give an added token different ids, or an id different tokens.

    added_tokens.json counts if it is `listed`: only SentencePiece vocabularies are made with it.
    """
    texts: dict[int, tuple[str, str]] = {}
    ids: dict[str, tuple[int, str]] = {}
    for file, token, text in _added(checkpoint, config, fast, listed):
        known, where = texts.setdefault(token, (text, file))
        if known != text and where != file:
            raise _contradiction(
                checkpoint, f"{where} says that token {token} is {known!r}, {file} that it is {text!r}"
            )
        number, where = ids.setdefault(text, (token, file))
        if number != token and where != file:
            raise _contradiction(checkpoint, f"{where} gives {text!r} the id {number}, {file} gives it {token}")


def check_pieces(checkpoint: Checkpoint, fast: Mapping[str, Any], texts: list[str]) -> None:
    """Raise InvalidFile if tokenizer.json is not the same vocabulary as tokenizer.model, whose pieces `texts` are."""
    if not fast:
        return
    if not pieces.is_sentencepiece(fast):
        raise _contradiction(checkpoint, "tokenizer.model is a SentencePiece model, and tokenizer.json is not")
    vocabulary = fast["model"].get("vocab")
    if not isinstance(vocabulary, Mapping):
        return
    for token, text in enumerate(texts):
        other = vocabulary.get(text, token)
        if other != token:
            raise _contradiction(
                checkpoint, f"tokenizer.model gives {text!r} the id {token}, tokenizer.json gives it {other!r}"
            )


def _added(
    checkpoint: Checkpoint, config: Mapping[str, Any], fast: Mapping[str, Any], listed: bool
) -> Iterator[tuple[str, int, str]]:
    """(file, id, text) of all added tokens."""
    for text, token in (checkpoint.json("added_tokens.json") or {}).items() if listed else ():
        if isinstance(token, int):
            yield "added_tokens.json", token, text
    for entry in from_config(checkpoint, config):
        yield "tokenizer_config.json", entry.id, entry.content
    for entry in from_json(checkpoint, fast):
        yield "tokenizer.json", entry.id, entry.content


def _contradiction(checkpoint: Checkpoint, text: str) -> InvalidFile:
    return InvalidFile(f"{checkpoint.directory}: its tokenizer files contradict each other: {text}", _WAY)
