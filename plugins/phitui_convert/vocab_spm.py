"""SentencePiece vocabularies (Phi-3, Phi-3.5): the pieces plus the added tokens of three files.

The pieces are those of tokenizer.model, or of tokenizer.json where a checkpoint has no other (see pieces.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from phitui.api import Checkpoint, InvalidFile, Value, ValueType
from phitui_convert import agreement, pieces
from phitui_convert.added import AddedToken, from_config, from_json
from phitui_convert.vocabulary import TokenType, Vocabulary, tokens

UNUSED_SCORE, ADDED_SCORE = -10000.0, -1000.0
_REBUILT = "there is no tokenizer.model: the vocabulary was rebuilt from tokenizer.json"


@dataclass
class _Lists:
    """Text, score and type of every token; ids that no file names stay "[PADn]"."""

    texts: list[str]
    scores: list[float]
    types: list[TokenType]

    def put(self, token: int, text: str, score: float, kind: TokenType) -> None:
        self.texts[token], self.scores[token], self.types[token] = text, score, kind


def read(checkpoint: Checkpoint, fast: Mapping[str, Any], config: Mapping[str, Any], vocabulary: int) -> Vocabulary:
    """The vocabulary's keys. Later files win: the pieces, added_tokens.json, tokenizer_config.json, `fast`.

    Raises InvalidFile.
    """
    lists = _Lists(
        [f"[PAD{token}]" for token in range(vocabulary)],
        [UNUSED_SCORE] * vocabulary,
        [TokenType.UNUSED] * vocabulary,
    )
    for token, (text, score, kind) in enumerate(_pieces(checkpoint, fast, vocabulary)):
        lists.put(token, text, score, kind)
    for text, token in (checkpoint.json("added_tokens.json") or {}).items():
        if isinstance(token, int) and 0 <= token < vocabulary:
            lists.put(token, text, ADDED_SCORE, TokenType.USER_DEFINED)
    added = [*from_config(checkpoint, config), *from_json(checkpoint, fast)]
    notes = () if checkpoint.path("tokenizer.model") else (_REBUILT,)
    for entry in added:
        if entry.id >= vocabulary:
            raise InvalidFile(
                f"{checkpoint.directory}: added token {entry.content!r} has id {entry.id}, "
                f"but config.json says vocab_size {vocabulary}"
            )
        kind = TokenType.CONTROL if entry.special else TokenType.USER_DEFINED
        lists.put(entry.id, entry.content, ADDED_SCORE, kind)
    values = {
        "tokenizer.ggml.model": Value.string("llama"),
        "tokenizer.ggml.pre": Value.string("default"),
        **tokens(lists.texts, lists.types),
        "tokenizer.ggml.scores": Value.array(ValueType.FLOAT32, lists.scores),
    }
    return Vocabulary("llama", values, strips=_strips(added), notes=notes)


def _strips(added: list[AddedToken]) -> bool:
    """Whether chat markers eat the whitespace after them. "</s>" alone does not say so."""
    markers = [token for token in added if token.content.startswith("<|") and token.content != "<|endoftext|>"]
    return any(token.rstrip for token in markers)


def _pieces(checkpoint: Checkpoint, fast: Mapping[str, Any], vocabulary: int) -> Iterable[tuple[str, float, TokenType]]:
    """(text, score, type) of the pieces. Raises InvalidFile."""
    path = checkpoint.path("tokenizer.model")
    found = list(_model_pieces(path) if path else pieces.rebuild(checkpoint, fast))
    if len(found) > vocabulary:
        name = path.name if path else "tokenizer.json"
        raise InvalidFile(
            f"{checkpoint.directory}: {name} has {len(found)} pieces, but config.json says vocab_size {vocabulary}"
        )
    if path:
        agreement.check_pieces(checkpoint, fast, [text for text, _, _ in found])
    return found


def _model_pieces(path: Path) -> Iterator[tuple[str, float, TokenType]]:
    from sentencepiece import SentencePieceProcessor

    model = SentencePieceProcessor()
    try:
        model.LoadFromFile(str(path))
    except (RuntimeError, OSError) as error:
        raise InvalidFile(f"{path}: is not a SentencePiece model: {error}", "download the checkpoint again") from None
    for token in range(model.vocab_size()):
        yield model.IdToPiece(token), model.GetScore(token), _kind(model, token)


def _kind(model: Any, token: int) -> TokenType:
    if model.IsUnknown(token):
        return TokenType.UNKNOWN
    if model.IsControl(token):
        return TokenType.CONTROL
    if model.IsUnused(token):
        return TokenType.UNUSED
    return TokenType.BYTE if model.IsByte(token) else TokenType.NORMAL
