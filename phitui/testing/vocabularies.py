"""Tiny tokenizers in the two kinds Phi checkpoints come with, written without any tokenizer library.

Both are built from one list of words: every prefix of a word becomes a piece, so that the words encode to few tokens.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

WORDS = (
    "the", "capital", "of", "France", "is", "Paris", "What", "Hello", "world", "You", "are", "a", "helpful",
    "assistant", "user", "and", "in", "model", "answer", "question",
)  # fmt: skip
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,?!'-:;/()"
PHI3_SPECIALS = (
    "<|endoftext|>", "<|assistant|>", "<|placeholder1|>", "<|placeholder2|>", "<|system|>", "<|end|>",
    "<|placeholder3|>", "<|user|>",
)  # fmt: skip
BPE_SPECIALS = ("<|endoftext|>", "<|assistant|>", "<|end|>", "<|user|>", "<|system|>")

_SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
SPLITS = {
    "dbrx": _SHORT + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "gpt-4o": (
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+" + _SHORT + r"?"
        r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*" + _SHORT + r"?"
        r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
}
"""How Phi-4 ("dbrx", the regular expression of cl100k) and Phi-4-mini ("gpt-4o", that of o200k) split text, by
llama.cpp's name (openai/tiktoken, tiktoken_ext/openai_public.py)."""
ACROSS = (
    "12", "123", "1234", "12345", "Ġ1", "Ġ12", "Ġ123", "00", "0000", "a1", "1a", "ĠĠ", "ĠĠĠĠ", "ĊĊ", "ĊĊĊ", "ĠĊ", "ĊĠ",
    ".Ċ", "..", "...", "....", ").Ċ", "/Ċ", "./", "'s", "'S", "'ll", "'LL", "n't", "HelloW", "HelloWorld", "worldHe",
    "userA", "-the", ".the", "_a", "the's", "ĠðŁĺ", "Ã©a", "caf", "cafÃ©", "ï¼", "Ð¿Ñ", "Ġtheof",
)  # fmt: skip
"""Merges across the places where text is split: a wrong split shows. In the alphabet of byte-level BPE."""

PHI3_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'system' and message['content'] %}"
    "{{'<|system|>\n' + message['content'] + '<|end|>\n'}}{% elif message['role'] == 'user' %}"
    "{{'<|user|>\n' + message['content'] + '<|end|>\n'}}{% elif message['role'] == 'assistant' %}"
    "{{'<|assistant|>\n' + message['content'] + '<|end|>\n'}}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
PHI4_MINI_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% else %}{{ eos_token }}{% endif %}"
)


def write_sentencepiece(directory: Path) -> dict[str, int]:
    """Write tokenizer.model, tokenizer.json, tokenizer_config.json and added_tokens.json of a Phi-3 kind.

    Returns special token text -> id. As in Phi-3, the markers strip whitespace to their right.
    """
    pieces = list(_sentencepieces())
    (directory / "tokenizer.model").write_bytes(_sentencepiece_model(pieces))
    specials = {text: len(pieces) + place for place, text in enumerate(PHI3_SPECIALS)}
    ids = {"<unk>": 0, "<s>": 1, "</s>": 2, **specials}
    _write_json(directory / "added_tokens.json", specials)
    right_stripping = {"</s>", *specials} - {"<|endoftext|>"}
    added = [_added(ids[text], text, text in right_stripping, special=text != "</s>") for text in ids]
    _write_json(directory / "tokenizer.json", _sentencepiece_json(pieces, added))
    config = _tokenizer_config("LlamaTokenizer", added, PHI3_TEMPLATE)
    config |= {"bos_token": "<s>", "unk_token": "<unk>", "add_bos_token": False, "legacy": False}
    _write_json(directory / "tokenizer_config.json", config)
    return ids


def write_bpe(directory: Path, tokenizer_class: str = "GPT2Tokenizer", pre: str = "gpt-2") -> dict[str, int]:
    """Write tokenizer.json, tokenizer_config.json, vocab.json and merges.txt of a Phi-4-mini kind (byte-level BPE).

    Returns special token text -> id. One added token is not special ("<|tool|>"), one is normalized ("<tag>"). `pre`
    is llama.cpp's name of the pre-tokenizer, one of SPLITS or "gpt-2", which has a smaller vocabulary than the others.
    """
    alphabet = [_byte_characters()[byte] for byte in range(256)]
    words = [word for plain in WORDS for word in ("Ġ" + plain, plain)]
    merges = list(dict.fromkeys(_merges([*words, *(ACROSS if pre in SPLITS else ())])))
    vocabulary = {token: place for place, token in enumerate([*alphabet, *dict.fromkeys(a + b for a, b in merges)])}
    ids = {text: len(vocabulary) + place for place, text in enumerate(BPE_SPECIALS)}
    added = [_added(ids[text], text) for text in ids]
    added.append(_added(len(vocabulary) + len(ids), "<|tool|>"))
    added.append(_added(len(vocabulary) + len(ids) + 1, "<tag>", special=False, normalized=True))
    added.append(_added(len(vocabulary) + len(ids) + 2, "kept", special=False))
    _write_json(directory / "vocab.json", vocabulary)
    lines = ["#version: 0.2", *(f"{left} {right}" for left, right in merges)]
    (directory / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    _write_json(directory / "tokenizer.json", _bpe_json(vocabulary, merges, added, SPLITS.get(pre, "")))
    config = _tokenizer_config(tokenizer_class, added, PHI4_MINI_TEMPLATE)
    config |= {"bos_token": "<|endoftext|>", "unk_token": "<|endoftext|>", "add_prefix_space": False}
    _write_json(directory / "tokenizer_config.json", config)
    return ids


def _tokenizer_config(tokenizer_class: str, added: list[dict[str, Any]], template: str) -> dict[str, Any]:
    decoder = {str(token["id"]): {key: token[key] for key in token if key != "id"} for token in added}
    return {
        "tokenizer_class": tokenizer_class,
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "clean_up_tokenization_spaces": False,
        "model_max_length": 4096,
        "added_tokens_decoder": decoder,
        "chat_template": template,
    }


def _added(
    token: int, content: str, rstrip: bool = False, special: bool = True, normalized: bool = False
) -> dict[str, Any]:
    return {
        "id": token,
        "content": content,
        "single_word": False,
        "lstrip": False,
        "rstrip": rstrip,
        "normalized": normalized,
        "special": special,
    }


def _sentencepieces() -> Iterator[tuple[str, float, int]]:
    """(text, score, type) of every piece; types are sentencepiece's: 1 normal, 2 unknown, 3 control, 6 byte."""
    yield from (("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3))
    for byte in range(256):
        yield f"<0x{byte:02X}>", 0.0, 6
    words = [word for plain in WORDS for word in ("▁" + plain, plain)]
    prefixes = dict.fromkeys(word[:end] for word in words for end in range(2, len(word) + 1))
    for place, piece in enumerate([*prefixes, "▁", *LETTERS]):
        yield piece, -float(place), 1


def _sentencepiece_model(pieces: list[tuple[str, float, int]]) -> bytes:
    """A ModelProto (sentencepiece_model.proto): pieces = 1, trainer_spec = 2, normalizer_spec = 3."""
    out = b""
    for text, score, kind in pieces:
        piece = _text(1, text) + b"\x15" + struct.pack("<f", score) + _number(3, kind)
        out += _bytes(1, piece)
    trainer = _number(3, 2) + _number(4, len(pieces)) + _number(35, 1)
    trainer += _number(40, 0) + _number(41, 1) + _number(42, 2) + _number(43, (1 << 64) - 1)
    normalizer = _text(1, "identity") + _number(3, 1) + _number(4, 0) + _number(5, 1)
    return out + _bytes(2, trainer) + _bytes(3, normalizer)


def _varint(value: int) -> bytes:
    out = b""
    while value > 0x7F:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def _text(field: int, value: str) -> bytes:
    return _bytes(field, value.encode())


def _sentencepiece_json(pieces: list[tuple[str, float, int]], added: list[dict[str, Any]]) -> dict[str, Any]:
    """The same tokenizer as Hugging Face converts it: BPE with byte fallback; merges in the order of their scores."""
    vocabulary = {text: place for place, (text, _, _) in enumerate(pieces)}
    merges = []
    for text, _, kind in pieces:
        if kind == 1:
            cuts = [(text[:cut], text[cut:]) for cut in range(1, len(text))]
            merges += sorted(cut for cut in cuts if cut[0] in vocabulary and cut[1] in vocabulary)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            ],
        },
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": _bpe_model(vocabulary, merges) | {"unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True},
    }


def _bpe_json(
    vocabulary: dict[str, int], merges: list[tuple[str, str]], added: list[dict[str, Any]], split: str
) -> dict[str, Any]:
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": not split}
    regex = {"type": "Split", "pattern": {"Regex": split}, "behavior": "Isolated", "invert": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [regex, level]} if split else level,
        "post_processor": None,
        "decoder": level,
        "model": _bpe_model(vocabulary, merges),
    }


def _bpe_model(vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> dict[str, Any]:
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": vocabulary,
        "merges": [list(merge) for merge in merges],
    }


def _merges(words: Iterable[str]) -> Iterator[tuple[str, str]]:
    for word in words:
        for end in range(1, len(word)):
            yield word[:end], word[end]


def _byte_characters() -> dict[int, str]:
    """byte -> the printable character GPT-2's byte-level BPE shows it as (openai/gpt-2, encoder.py)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + place) for place, byte in enumerate(others)}


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1), encoding="utf-8")
