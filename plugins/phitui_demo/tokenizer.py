"""The tokenizer of a GGUF (GPT-2 style byte-level BPE) as Hugging Face files."""

from __future__ import annotations

import json
from typing import Any

from phitui.api import Header

CONTROL = 3
"""GGUF's token type of special tokens."""


def tokenizer_files(header: Header) -> dict[str, str]:
    """File name -> content: tokenizer.json, tokenizer_config.json, generation_config.json."""
    tokens: list[str] = header.get("tokenizer.ggml.tokens")
    types: list[int] = header.get("tokenizer.ggml.token_type")
    special = [index for index, kind in enumerate(types) if kind == CONTROL]
    added = [_added(index, tokens[index]) for index in special]
    return {
        "tokenizer.json": json.dumps(
            _tokenizer(tokens, header.get("tokenizer.ggml.merges"), added), ensure_ascii=False
        ),
        "tokenizer_config.json": json.dumps(_settings(header, tokens, added), indent=1, ensure_ascii=False),
        "generation_config.json": json.dumps(
            {f"{name}_token_id": _special_id(header, name) for name in ("bos", "eos")}
        ),
    }


def _special_id(header: Header, name: str) -> int:
    value: int = header.get(f"tokenizer.ggml.{name}_token_id")
    return value


def _added(index: int, text: str) -> dict[str, Any]:
    return {
        "id": index,
        "content": text,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": True,
    }


def _tokenizer(tokens: list[str], merges: list[str], added: list[dict[str, Any]]) -> dict[str, Any]:
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level],
        },
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: index for index, token in enumerate(tokens)},
            "merges": [merge.split(" ") for merge in merges],
        },
    }


def _settings(header: Header, tokens: list[str], added: list[dict[str, Any]]) -> dict[str, Any]:
    decoder = {str(token["id"]): {k: v for k, v in token.items() if k != "id"} for token in added}
    return {
        "tokenizer_class": "GPT2Tokenizer",
        "add_prefix_space": False,
        "bos_token": tokens[_special_id(header, "bos")],
        "eos_token": tokens[_special_id(header, "eos")],
        "pad_token": tokens[_special_id(header, "padding")],
        "unk_token": tokens[_special_id(header, "unknown")],
        "model_max_length": header.get("llama.context_length"),
        "clean_up_tokenization_spaces": False,
        "chat_template": header.get("tokenizer.chat_template"),
        "added_tokens_decoder": decoder,
    }
