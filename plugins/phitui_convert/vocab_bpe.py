"""Byte-level BPE vocabularies (Phi-4, Phi-4-mini): tokenizer.json, read the way transformers' AutoTokenizer does.

convert_hf_to_gguf.py asks AutoTokenizer. For Phi-3 checkpoints that is tokenizer.json itself, with the flags of
tokenizer_config.json laid over it and named special tokens (bos_token, ...) added where they are missing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from phitui.api import Checkpoint, InvalidFile, Value
from phitui_convert import pretokenizer
from phitui_convert.added import from_config
from phitui_convert.vocabulary import TokenType, Vocabulary, tokens

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


def read(
    checkpoint: Checkpoint, fast: Mapping[str, Any], config: Mapping[str, Any], vocabulary: int, pre_tokenizer: str
) -> Vocabulary:
    """The vocabulary's keys. `pre_tokenizer` overrides the recognized one. Raises InvalidFile or UnsupportedModel."""
    tokenizer = _load(checkpoint, config)
    known = tokenizer.get_vocab(with_added_tokens=True)
    highest = max(known.values(), default=-1)
    if highest >= vocabulary:
        raise InvalidFile(
            f"{checkpoint.directory}: the tokenizer has a token with id {highest}, "
            f"but config.json says vocab_size {vocabulary}",
            "config.json and the tokenizer do not belong together",
        )
    pre = pre_tokenizer or pretokenizer.recognize(checkpoint, fast, tokenizer)
    texts, types = _lists(tokenizer, known, vocabulary)
    values = {
        "tokenizer.ggml.model": Value.string("gpt2"),
        "tokenizer.ggml.pre": Value.string(pre),
        **tokens(texts, types),
    }
    return Vocabulary("gpt2", values)


def _load(checkpoint: Checkpoint, config: Mapping[str, Any]) -> Tokenizer:
    from tokenizers import AddedToken, Tokenizer

    path = checkpoint.path("tokenizer.json")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception for whatever is wrong with the file
        raise InvalidFile(f"{path}: {error}", "download the checkpoint again") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    listed = sorted(from_config(checkpoint, config), key=lambda token: token.id)
    tokenizer.add_tokens(
        [
            AddedToken(
                token.content,
                single_word=token.single_word,
                lstrip=token.lstrip,
                rstrip=token.rstrip,
                normalized=token.normalized,
                special=token.special,
            )
            for token in listed
        ]
    )
    present = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    missing = dict.fromkeys(text for text in map(_text, _named(config)) if text and text not in present)
    tokenizer.add_tokens([AddedToken(text, special=True, normalized=False) for text in missing])
    return tokenizer


def _named(config: Mapping[str, Any]) -> list[Any]:
    more = config.get("additional_special_tokens") or config.get("extra_special_tokens") or []
    return [*(config.get(key) for key in _NAMED), *(more if isinstance(more, list) else [])]


def _text(token: Any) -> str:
    text = token.get("content") if isinstance(token, Mapping) else token
    return text if isinstance(text, str) else ""


def _lists(tokenizer: Tokenizer, known: Mapping[str, int], vocabulary: int) -> tuple[list[str], list[TokenType]]:
    """Text and type of every id. Ids without a token, up to the size of the embeddings, become unused "[PADn]"."""
    added = tokenizer.get_added_tokens_decoder()
    contents = {token.content for token in added.values()}
    by_id = {token: text for text, token in known.items()}
    texts, types = [], []
    for token in range(vocabulary):
        text = by_id.get(token)
        if text is None:
            text, kind = f"[PAD{token}]", TokenType.UNUSED
        elif text not in contents:
            kind = TokenType.NORMAL
        else:
            entry = added.get(token)
            if entry is None or not entry.normalized:
                # llama.cpp matches these texts as they stand, so they are written the way they come back from the model
                text = tokenizer.decode(tokenizer.encode(text, add_special_tokens=False).ids, skip_special_tokens=False)
            if (entry is not None and entry.special) or _looks_special(text):
                kind = TokenType.CONTROL
            else:
                text, kind = text.replace("▁", " "), TokenType.USER_DEFINED
        texts.append(text)
        types.append(kind)
    return texts, types


def _looks_special(text: str) -> bool:
    """Markers that some models forget to flag as special (the rule of convert_hf_to_gguf.py)."""
    if text in ("<pad>", "<mask>", "<2mass>", "[@BOS@]"):
        return True
    pairs = (("<|", "|>"), ("<｜", "｜>"), ("<unused", ">"))
    return any(text.startswith(start) and text.endswith(end) for start, end in pairs)
