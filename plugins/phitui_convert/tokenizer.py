"""Which tokenizer a checkpoint has, and all of its keys.

convert_hf_to_gguf.py goes by `tokenizer_class` alone: "GPT2Tokenizer" is BPE, everything else needs tokenizer.model.
Fine-tunes often save another class and only a tokenizer.json, so what is really there decides here, in this order:
the class GPT2Tokenizer, a tokenizer.model, a tokenizer.json that was converted from one, a tokenizer.json that holds a
byte-level BPE.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from phitui.api import Checkpoint, InvalidFile, UnsupportedModel
from phitui_convert import agreement, pieces, special, vocab_bpe, vocab_spm
from phitui_convert.vocabulary import Vocabulary

_BPE_CLASSES = ("GPT2Tokenizer", "GPT2TokenizerFast")


def read(checkpoint: Checkpoint, vocabulary: int, pre_tokenizer: str = "") -> Vocabulary:
    """The tokenizer's keys for a model of `vocabulary` tokens. Raises InvalidFile or UnsupportedModel."""
    config = checkpoint.json("tokenizer_config.json") or {}
    fast = checkpoint.json("tokenizer.json")
    whole = checkpoint.path("tokenizer.model") is not None or pieces.is_sentencepiece(fast)
    bpe = config.get("tokenizer_class") in _BPE_CLASSES or not whole
    agreement.check_added(checkpoint, config, fast or {}, listed=not bpe)
    if bpe:
        found = vocab_bpe.read(checkpoint, _byte_level(checkpoint, fast), config, vocabulary, pre_tokenizer)
        limit = None
    else:
        found = vocab_spm.read(checkpoint, fast or {}, config, vocabulary)
        limit = vocabulary
    values = found.values | special.read(checkpoint, fast, config, merges=found.model == "gpt2", limit=limit)
    return Vocabulary(found.model, values, found.strips, found.notes)


def _byte_level(checkpoint: Checkpoint, fast: dict[str, Any] | None) -> dict[str, Any]:
    """The tokenizer.json, which must hold a byte-level BPE. Raises InvalidFile or UnsupportedModel."""
    if fast is None and checkpoint.path("tokenizer.model") is not None:
        raise InvalidFile(
            f"{checkpoint.directory}: tokenizer_config.json says GPT2Tokenizer, but there is a tokenizer.model and no "
            "tokenizer.json, which that class needs",
            "copy all tokenizer files of the base model into the directory",
        )
    if fast is None:
        raise InvalidFile(
            f"{checkpoint.directory}: has neither tokenizer.model nor tokenizer.json",
            "copy the tokenizer files of the base model into the directory",
        )
    model = fast.get("model")
    kind = model.get("type") if isinstance(model, Mapping) else None
    if not isinstance(model, Mapping) or kind != "BPE":
        raise UnsupportedModel(f"{checkpoint.directory}: tokenizer.json holds a {kind!r} tokenizer, not BPE")
    if model.get("byte_fallback") or not _mentions_byte_level(fast):
        raise UnsupportedModel(
            f"{checkpoint.directory}: tokenizer.json holds a BPE that is not byte-level; there is no tokenizer.model",
            "copy the tokenizer files of the base model into the directory",
        )
    return fast


def _mentions_byte_level(fast: Mapping[str, Any]) -> bool:
    return any(_has_type(fast.get(key), "ByteLevel") for key in ("pre_tokenizer", "decoder"))


def _has_type(part: Any, kind: str) -> bool:
    if isinstance(part, Mapping):
        return part.get("type") == kind or any(_has_type(value, kind) for value in part.values())
    return isinstance(part, list) and any(_has_type(item, kind) for item in part)
