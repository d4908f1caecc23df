"""A model in llama.cpp that reads text and lets its matrix products be watched. Only a job's process imports this."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import llama_cpp.llama_cpp as lib

from phitui.api import EngineError, NativeLog

BATCH = 512
"""Tokens evaluated at once, at most: what llama.cpp computes in one piece anyway."""


class Watch(Protocol):
    """Looks at the graph of a decode while it is computed."""

    def begin(self) -> None:
        """A new graph comes."""

    def __call__(self, node: int, ask: bool) -> bool:
        """With `ask`, whether to call again once this node (its address) is computed; then, whether to compute on."""
        ...


class Model:
    """A loaded model with a context for one sequence. A method raises what its callbacks raised."""

    def __init__(
        self, path: Path, context: int, threads: int, layers: int, watch: Watch, check: Callable[[], None]
    ) -> None:
        self._log = NativeLog(lib)
        self._failure: BaseException | None = None
        self._watch = watch
        self._check = check
        self._callback = lib.ggml_backend_sched_eval_callback(self._observe)
        lib.llama_backend_init()
        self._model: Any = self._load(path, layers)
        self._vocab = lib.llama_model_get_vocab(self._model)
        # As many pieces as needed, all of nearly the same length: llama.cpp passes over pieces of less than 16 tokens.
        self._piece = -(-context // -(-context // BATCH))
        self._context: Any = self._make_context(context, threads)
        self._batch = lib.llama_batch_init(self._piece, 0, 1)
        self.trained = int(lib.llama_model_n_ctx_train(self._model))

    def _load(self, path: Path, layers: int) -> Any:
        def report(_part: float, _data: Any) -> bool:
            return self._guarded(self._check)

        parameters = lib.llama_model_default_params()
        parameters.n_gpu_layers = layers
        parameters.progress_callback = callback = lib.llama_progress_callback(report)
        model = lib.llama_model_load_from_file(os.fsencode(path), parameters)
        del callback
        self._raise()
        if not model:
            raise EngineError(
                f"llama.cpp cannot load {path.name}: {self._log.why()}",
                "phitui inspect shows what the file holds; if memory is short, try fewer --layers",
            )
        return model

    def _make_context(self, context: int, threads: int) -> Any:
        parameters = lib.llama_context_default_params()
        parameters.n_ctx = context
        parameters.n_batch = parameters.n_ubatch = self._piece
        parameters.n_seq_max = 1
        parameters.n_threads = parameters.n_threads_batch = threads
        parameters.no_perf = True
        parameters.cb_eval = self._callback
        made = lib.llama_init_from_model(self._model, parameters)
        if not made:
            raise EngineError(
                f"llama.cpp cannot make a context of {context} tokens: {self._log.why()}",
                "try a smaller --ctx or fewer --layers",
            )
        return made

    def _observe(self, node: int, ask: bool, _data: Any) -> bool:
        if self._failure is not None:
            return False
        try:
            return self._watch(node, ask)
        except BaseException as error:  # native code is above us: it is raised once that has returned
            self._failure = error
            return False

    def _guarded(self, call: Callable[[], None]) -> bool:
        try:
            call()
        except BaseException as error:
            self._failure = error
            return False
        return True

    def _raise(self) -> None:
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def tokens(self, text: bytes, special: bool) -> list[int]:
        """The tokens of a UTF-8 text, with the model's own first and last tokens; `special` ones may be spelled out."""
        room = len(text) + 8
        buffer = (lib.llama_token * room)()
        count = lib.llama_tokenize(self._vocab, text, len(text), buffer, room, True, special)
        if count < 0:
            raise EngineError("llama.cpp cannot make tokens of the text", "is it plain UTF-8 text?")
        return list(buffer[:count])

    def read(self, tokens: Sequence[int]) -> None:
        """Evaluate one chunk from an empty cache. Its first token becomes BOS where the model wants one."""
        tokens = list(tokens)
        if lib.llama_vocab_get_add_bos(self._vocab):
            tokens[0] = int(lib.llama_vocab_bos(self._vocab))
        lib.llama_memory_clear(lib.llama_get_memory(self._context), True)
        for start in range(0, len(tokens), self._piece):
            self._decode(tokens[start : start + self._piece], start)

    def _decode(self, tokens: Sequence[int], position: int) -> None:
        batch = self._batch
        for index, token in enumerate(tokens):
            batch.token[index] = token
            batch.pos[index] = position + index
            batch.n_seq_id[index] = 1
            batch.seq_id[index][0] = 0
            batch.logits[index] = True  # else the last layer is computed for the last token only
        batch.n_tokens = len(tokens)
        self._watch.begin()
        code = lib.llama_decode(self._context, batch)
        lib.llama_synchronize(self._context)
        self._raise()
        if code:
            raise EngineError(
                f"llama.cpp cannot evaluate the text (code {code}): {self._log.why()}", "try a smaller --ctx"
            )

    def close(self) -> None:
        """Free the model and its memory."""
        lib.llama_batch_free(self._batch)
        lib.llama_free(self._context)
        lib.llama_model_free(self._model)
