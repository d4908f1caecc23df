"""A loaded model's vocabulary: text to tokens and back, special tokens, the chat template."""

from __future__ import annotations

import ctypes
from typing import Any

import llama_cpp.llama_cpp as lib

from phitui.api import CHAT_FORMATS, EngineError, chat_format, format_named

SHOWN = ("<think>", "</think>")
"""Control tokens that are part of an answer all the same: they mark the reasoning."""


class Vocabulary:
    """The vocabulary of one model. Plain calls into the library; nothing is cached but a few special tokens."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._vocab = lib.llama_model_get_vocab(model)
        self.size: int = lib.llama_vocab_n_tokens(self._vocab)
        self.bos = self._text(lib.llama_vocab_bos(self._vocab))
        self.eos = self._text(lib.llama_vocab_eos(self._vocab))
        self.adds_bos = bool(lib.llama_vocab_get_add_bos(self._vocab))
        self._buffer = ctypes.create_string_buffer(256)
        texts = {stop for item in CHAT_FORMATS for stop in item.stops} | {"<|im_sep|>"}
        special = {text: token for text in texts if (token := self.special(text)) is not None}
        self.chat_format = chat_format(set(special), self.size)
        stops = format_named(self.chat_format).stops
        self.stop_tokens = frozenset(special[stop] for stop in stops if stop in special)
        self._shown = frozenset(token for text in SHOWN if (token := self.special(text)) is not None)

    @property
    def template(self) -> str:
        """The model's own chat template; empty if it has none."""
        text = lib.llama_model_chat_template(self._model, None)
        return text.decode("utf-8", "replace") if text else ""

    def special(self, text: str) -> int | None:
        """The id of the special token with this text."""
        tokens = self._tokenize(text.encode(), False)
        return tokens[0] if len(tokens) == 1 and self._text(tokens[0]) == text else None

    def tokenize(self, text: str, *, start: bool = True) -> list[int]:
        """Tokens of a rendered prompt: special tokens are recognised in it, and no second BOS is added.

        `start` is false for text that goes on where other tokens end.
        """
        if start and self.adds_bos and self.bos and text.startswith(self.bos):
            text = text[len(self.bos) :]
        return self._tokenize(text.encode("utf-8", "replace"), start)

    def piece(self, token: int) -> bytes:
        """The bytes of one token; none for control tokens."""
        special = token in self._shown
        count = lib.llama_token_to_piece(self._vocab, token, self._buffer, len(self._buffer), 0, special)
        if count < 0:
            self._buffer = ctypes.create_string_buffer(-count)
            count = lib.llama_token_to_piece(self._vocab, token, self._buffer, len(self._buffer), 0, special)
        return self._buffer.raw[:count]

    def ends(self, token: int) -> bool:
        """Whether the token ends an answer."""
        return token in self.stop_tokens or bool(lib.llama_vocab_is_eog(self._vocab, token))

    def is_special(self, token: int) -> bool:
        """Whether text before and after the token is tokenized separately."""
        attributes = lib.llama_vocab_get_attr(self._vocab, token)
        return bool(attributes & (lib.LLAMA_TOKEN_ATTR_CONTROL | lib.LLAMA_TOKEN_ATTR_USER_DEFINED))

    def _text(self, token: int) -> str:
        text = lib.llama_vocab_get_text(self._vocab, token) if token >= 0 else None
        return text.decode("utf-8", "replace") if text else ""

    def _tokenize(self, data: bytes, add_special: bool) -> list[int]:
        room = len(data) + 8
        tokens = (lib.llama_token * room)()
        count = lib.llama_tokenize(self._vocab, data, len(data), tokens, room, add_special, True)
        if count < 0:
            raise EngineError("llama.cpp cannot tokenize this text", "the vocabulary of this file may be damaged")
        return list(tokens[:count])
