"""SentencePiece pieces from a tokenizer.json, for checkpoints without tokenizer.model (Phi-3-vision, fine-tunes).

A tokenizer.json that was converted from SentencePiece keeps the pieces and their ids but not their scores. In a BPE
model of SentencePiece a score says only when a piece is merged. In the vocabulary of Llama and Phi-3 the scores are
0, -1, -2, ... in the order of ids, but for runs of spaces, which are merged last. The list of merges tells whether that
holds for this one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from phitui.api import Checkpoint, InvalidFile
from phitui_convert.vocabulary import TokenType

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_SPACES = re.compile(r"▁+")
_LAST = -1e9
"""The score of runs of spaces in Llama's tokenizer.model."""


def is_sentencepiece(fast: Mapping[str, Any] | None) -> bool:
    """Whether a tokenizer.json holds a BPE model with byte fallback, which is what SentencePiece is converted to."""
    model = (fast or {}).get("model")
    return isinstance(model, Mapping) and model.get("type") == "BPE" and bool(model.get("byte_fallback"))


def rebuild(checkpoint: Checkpoint, fast: Mapping[str, Any]) -> list[tuple[str, float, TokenType]]:
    """(text, score, type) of every piece in the order of ids. Raises InvalidFile."""
    model = fast["model"]
    vocabulary, merges = model.get("vocab"), model.get("merges")
    if not isinstance(vocabulary, Mapping) or not isinstance(merges, list) or not merges:
        raise InvalidFile(f"{checkpoint.directory}: tokenizer.json has no vocabulary or no merges")
    by_id = {number: text for text, number in vocabulary.items()}
    if set(by_id) != set(range(len(vocabulary))):
        raise InvalidFile(f"{checkpoint.directory}: tokenizer.json: the ids are not 0 to {len(vocabulary) - 1}")
    added = {entry.get("content") for entry in fast.get("added_tokens") or [] if isinstance(entry, Mapping)}
    texts = [by_id[number] for number in range(len(by_id))]
    kinds = [_kind(text, model.get("unk_token"), added) for text in texts]
    normal = [number for number, kind in enumerate(kinds) if kind is TokenType.NORMAL]
    scores = dict.fromkeys(range(len(texts)), 0.0)
    scores |= {number: -float(place) for place, number in enumerate(_order(checkpoint, normal, vocabulary, merges))}
    scores |= {number: _LAST for number in normal if _SPACES.fullmatch(texts[number])}
    return [(text, scores[number], kinds[number]) for number, text in enumerate(texts)]


def _kind(text: str, unknown: Any, added: set[Any]) -> TokenType:
    if text == unknown:
        return TokenType.UNKNOWN
    if text in added:
        return TokenType.CONTROL
    return TokenType.BYTE if _BYTE.fullmatch(text) else TokenType.NORMAL


def _order(checkpoint: Checkpoint, normal: list[int], vocabulary: Mapping[str, int], merges: list[Any]) -> list[int]:
    """Ids of normal pieces, those that are merged first in front."""
    made: dict[int, None] = {}
    for merge in merges:
        pair = merge.split(" ") if isinstance(merge, str) else merge
        number = vocabulary.get("".join(pair)) if isinstance(pair, list) and len(pair) == 2 else None
        if number is None:
            raise InvalidFile(f"{checkpoint.directory}: tokenizer.json: the merge {merge!r} makes no piece")
        if not _SPACES.fullmatch("".join(pair)):
            made[number] = None
    if list(made) == sorted(made):
        return normal
    return [*made, *(number for number in normal if number not in made)]
