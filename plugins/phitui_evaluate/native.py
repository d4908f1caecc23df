"""A model in llama.cpp: tokens, logits and speed. Only the worker process imports this."""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import llama_cpp.llama_cpp as lib

from phitui.api import EngineError, NativeLog

BATCH = 512
"""Tokens evaluated at once. It bounds the memory for logits, and is what llama.cpp computes in one piece anyway."""


@dataclass(frozen=True)
class Setup:
    """What a worker loads: `context` tokens of one text, logits for at most `outputs` of them at once."""

    model: str
    context: int
    outputs: int
    threads: int
    layers: int


class Model:
    """A loaded model and a context for one sequence of tokens."""

    def __init__(self, setup: Setup, progress: Callable[[float], None]) -> None:
        self._log = NativeLog(lib)
        lib.llama_backend_init()
        self._model: Any = self._load(Path(setup.model), setup.layers, progress)
        self._vocab = lib.llama_model_get_vocab(self._model)
        self._context: Any = self._make_context(setup)
        self._memory = lib.llama_get_memory(self._context)
        self._batch = lib.llama_batch_init(BATCH, 0, 1)
        self.vocabulary = int(lib.llama_vocab_n_tokens(self._vocab))
        self.trained = int(lib.llama_model_n_ctx_train(self._model))
        self.bos = int(lib.llama_vocab_bos(self._vocab)) if lib.llama_vocab_get_add_bos(self._vocab) else None
        """The token that begins every chunk; None if this model has none."""

    def _load(self, path: Path, layers: int, progress: Callable[[float], None]) -> Any:
        def report(part: float, _data: Any) -> bool:
            progress(part)
            return True

        parameters = lib.llama_model_default_params()
        parameters.n_gpu_layers = layers
        parameters.progress_callback = callback = lib.llama_progress_callback(report)
        model = lib.llama_model_load_from_file(os.fsencode(path), parameters)
        del callback
        if not model:
            raise EngineError(
                f"llama.cpp cannot load {path.name}: {self._log.why()}",
                "phitui inspect shows what the file holds; if memory is short, try fewer --layers",
            )
        return model

    def _make_context(self, setup: Setup) -> Any:
        parameters = lib.llama_context_default_params()
        parameters.n_ctx = setup.context
        parameters.n_batch = parameters.n_ubatch = BATCH
        parameters.n_seq_max = 1
        parameters.n_outputs_max = (
            setup.outputs
        )  # a compute buffer for fewer rows of logits: 200 MiB less at 200k tokens
        parameters.n_threads = parameters.n_threads_batch = setup.threads
        parameters.no_perf = True
        made = lib.llama_init_from_model(self._model, parameters)
        if not made:
            raise EngineError(
                f"llama.cpp cannot make a context of {setup.context} tokens: {self._log.why()}",
                "try a smaller --ctx or fewer --layers",
            )
        return made

    def tokens(self, text: bytes) -> list[int]:
        """The tokens of a UTF-8 text: with the model's first and last ones, special tokens taken as plain text."""
        room = len(text) + 8
        buffer = (lib.llama_token * room)()
        count = lib.llama_tokenize(self._vocab, text, len(text), buffer, room, True, False)
        if count < 0:
            raise EngineError("llama.cpp cannot make tokens of the text", "is it plain UTF-8 text?")
        return list(buffer[:count])

    def clear(self) -> None:
        """Forget all tokens."""
        lib.llama_memory_clear(self._memory, True)

    def decode(self, tokens: Sequence[int], position: int, outputs: range) -> int:
        """Evaluate up to BATCH tokens that come at `position`; returns how many rows of logits there are.

        `outputs` are the positions for which logits are wanted.
        """
        batch = self._batch
        rows = 0
        for index, token in enumerate(tokens):
            wanted = position + index in outputs
            batch.token[index] = token
            batch.pos[index] = position + index
            batch.n_seq_id[index] = 1
            batch.seq_id[index][0] = 0
            batch.logits[index] = wanted
            rows += wanted
        batch.n_tokens = len(tokens)
        code = lib.llama_decode(self._context, batch)
        if code:
            raise EngineError(
                f"llama.cpp cannot evaluate the text (code {code}): {self._log.why()}", "try a smaller --ctx"
            )
        lib.llama_synchronize(self._context)
        return rows

    def logits(self, rows: int) -> memoryview:
        """The float32 logits of the last decode, row by row, as bytes. Valid until the next one; nothing is copied."""
        pointer = lib.llama_get_logits(self._context)
        values = (ctypes.c_float * (rows * self.vocabulary)).from_address(ctypes.addressof(pointer.contents))
        return memoryview(values).cast("B")

    def speed(self, tokens: Sequence[int], prompt: int, decode: int, patience: float) -> dict[str, float]:
        """Tokens per second: a prompt of which only the last token has logits, then single tokens from an empty cache.

        The same work as llama-bench's pp and tg. Decoding ends early after `patience` seconds.
        """
        self._timed(tokens[:1], patience)
        prompts = [self._prompt(tokens[:prompt]) for _ in range(2)]
        self.clear()
        done, seconds = self._timed(tokens[:decode], patience)
        return {"prompt_tokens_per_s": prompt / min(prompts), "decode_tokens_per_s": done / seconds}

    def _prompt(self, tokens: Sequence[int]) -> float:
        self.clear()
        began = time.perf_counter()
        for start in range(0, len(tokens), BATCH):
            self.decode(tokens[start : start + BATCH], start, range(len(tokens) - 1, len(tokens)))
        return time.perf_counter() - began

    def _timed(self, tokens: Sequence[int], patience: float) -> tuple[int, float]:
        self.clear()
        began = time.perf_counter()
        done = 0
        for position, token in enumerate(tokens):
            self.decode([token], position, range(position, position + 1))
            done += 1
            if time.perf_counter() - began > patience:
                break
        return done, time.perf_counter() - began
