"""One loaded model: answers stream token by token, and a next turn evaluates only what is new."""

from __future__ import annotations

import contextlib
import ctypes
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import llama_cpp
import llama_cpp.llama_cpp as lib

from phitui.api import (
    ChatStats,
    Chunk,
    ContextFull,
    EngineError,
    EngineSettings,
    FinishReason,
    Message,
    NativeLog,
    PhituiError,
    Sampling,
    SessionInfo,
    TextChunk,
    format_named,
    render_chat,
)
from phitui_llamacpp import native
from phitui_llamacpp.buffers import BufferLog, free_memory, private_memory
from phitui_llamacpp.pieces import Pieces
from phitui_llamacpp.prompt import fallback_template
from phitui_llamacpp.vocabulary import Vocabulary

_ABORTED = 2  # llama_decode: the abort callback said so


@dataclass
class _Answer:
    """What is known of the running answer. Times are from time.perf_counter."""

    prompt_tokens: int
    began: float
    evaluated: int = 0
    prefilled: float = 0.0
    ended: float = 0.0
    count: int = 0
    reason: FinishReason = "cancelled"
    text: list[str] = field(default_factory=list)
    exact: bool = False
    """Whether `text` is that of all generated tokens in the cache: the next turn can go on from there."""

    def stats(self, context: int, used: int) -> ChatStats:
        return ChatStats(
            finish_reason=self.reason,
            prompt_tokens=self.prompt_tokens,
            evaluated_tokens=self.evaluated,
            completion_tokens=self.count,
            prompt_seconds=round(self.prefilled - self.began, 6),
            decode_seconds=round(max(0.0, self.ended - self.prefilled), 6),
            context=context,
            context_used=used,
        )


class LlamaSession:
    """A model and its context. `stream` runs in one thread; `stop` may come from another."""

    def __init__(self, path: Path, settings: EngineSettings, progress: Callable[[float], None]) -> None:
        began = time.perf_counter()
        buffers = BufferLog()
        self._log = NativeLog(lib, buffers)
        self._switch = native.Switch()
        self._model: Any = native.load_model(path, settings, progress, self._log)
        trained = lib.llama_model_n_ctx_train(self._model)
        limit = trained * (1 if settings.kv_unified else settings.parallel)
        wanted = min(settings.context, limit) if trained > 0 else settings.context
        self._context: Any = native.make_context(self._model, settings, wanted, self._switch, self._log)
        self._memory = lib.llama_get_memory(self._context)
        self._batch = int(lib.llama_n_batch(self._context))
        self._vocabulary = Vocabulary(self._model)
        self._template = self._vocabulary.template
        self._tokens: list[int] = []
        """The tokens whose keys and values are in the cache, in order."""
        self._said = ""
        """The text of those tokens, special ones included; empty where it is not known exactly."""
        with contextlib.suppress(PhituiError):  # compiled now, so the first answer comes sooner; ask shows its faults
            self._render([{"role": "user", "content": "Hello"}])
        self._log.listen = None
        self.info = self._describe(path, settings, trained, time.perf_counter() - began)
        self.info.details["memory"] = {
            "buffers": buffers.rows(),
            "free": free_memory(*native.ggml_libraries()),
            "private": private_memory(),
        }

    def _describe(self, path: Path, settings: EngineSettings, trained: int, seconds: float) -> SessionInfo:
        total = lib.llama_model_n_layer(self._model) + 1
        wanted = total if settings.layers < 0 else min(settings.layers, total)
        context = int(lib.llama_n_ctx_seq(self._context))
        notes = []
        if settings.context > trained > 0 and settings.parallel == 1:
            notes.append(
                f"the context is {trained}, the most this model was trained for ({settings.context} was asked)"
            )
        if not self._template:
            notes.append(f"the file has no chat template; the {self._vocabulary.chat_format} format is used")
        return SessionInfo(
            model=path.name,
            architecture=self._metadata("general.architecture"),
            context=context,
            chat_format=self._vocabulary.chat_format,
            layers_total=total,
            layers_offloaded=wanted if native.has_gpu() else 0,
            load_seconds=round(seconds, 3),
            details={
                "name": self._metadata("general.name"),
                "library": f"llama-cpp-python {llama_cpp.__version__}",
                "threads": int(lib.llama_n_threads(self._context)),
                "kv_type": settings.kv_type,
                "context_trained": int(trained),
                "system": lib.llama_print_system_info().decode("utf-8", "replace").strip(),
                "notes": notes,
            },
        )

    def _metadata(self, key: str) -> str:
        buffer = ctypes.create_string_buffer(512)
        count = lib.llama_model_meta_val_str(self._model, key.encode(), buffer, len(buffer))
        return buffer.value.decode("utf-8", "replace") if count >= 0 else ""

    def stream(self, messages: Sequence[Message], sampling: Sampling) -> Iterator[Chunk]:
        """Answer the last message. Raises PhituiError where the template or the context cannot take it."""
        self._switch.set(False)
        return self._answer([message.as_dict() for message in messages], sampling)

    def stop(self) -> None:
        """End the running answer: between two operations of the graph on the CPU, else after the current batch."""
        self._switch.set(True)

    def close(self) -> None:
        """Free the model and its memory."""
        if self._context:
            lib.llama_free(self._context)
            lib.llama_model_free(self._model)
            self._context = self._model = None

    def _answer(self, messages: list[dict[str, str]], sampling: Sampling) -> Iterator[Chunk]:
        began = time.perf_counter()
        text = self._render(messages)
        tokens = self._prompt(text)
        answer = _Answer(len(tokens), began)
        reused = self._reuse(tokens)
        sampled = native.sampler(sampling, self._vocabulary.size, _seed(sampling))
        try:
            if sampling.repeat_penalty != 1.0:
                for token in tokens[-native.PENALTY_WINDOW :]:
                    lib.llama_sampler_accept(sampled, token)
            complete = self._evaluate(tokens[reused:])
            answer.evaluated = len(self._tokens) - reused
            answer.prefilled = answer.ended = time.perf_counter()
            if complete:
                yield from self._decode(answer, sampled, sampling)
                self._said = text + "".join(answer.text) if answer.exact else ""
        finally:
            lib.llama_sampler_free(sampled)
        yield answer.stats(self.info.context, len(self._tokens))

    def _render(self, messages: list[dict[str, str]]) -> str:
        template = self._template or fallback_template(self._vocabulary.chat_format)
        return render_chat(template, messages, bos=self._vocabulary.bos, eos=self._vocabulary.eos)

    def _prompt(self, text: str) -> list[int]:
        """Tokens of a rendered conversation, those already evaluated kept as they are where the text goes on from them.

        The tokens that a model generates need not be the ones its text is tokenized to, so a conversation that is
        tokenized anew could lose its cached answers. Raises PhituiError if the context cannot hold it.
        """
        tokens: list[int] = []
        if self._said and text.startswith(self._said):
            rest = self._vocabulary.tokenize(text[len(self._said) :], start=False)
            if rest and self._vocabulary.is_special(rest[0]):  # else a token might reach over the seam
                tokens = [*self._tokens, *rest]
        tokens = tokens or self._vocabulary.tokenize(text)
        if not tokens:
            raise EngineError("the chat template makes nothing of this conversation", "say something")
        if len(tokens) >= self.info.context:
            raise ContextFull(
                f"the conversation has {len(tokens)} tokens; the context holds {self.info.context}",
                f"begin anew, or load the model with a larger context ({self.info.details['context_trained']} at most)",
            )
        return tokens

    def _reuse(self, tokens: list[int]) -> int:
        """Cut the cache back to what it shares with `tokens`. The number of tokens that are reused."""
        shared = 0
        limit = min(len(tokens) - 1, len(self._tokens))  # the last one is evaluated again: its logits are needed
        while shared < limit and tokens[shared] == self._tokens[shared]:
            shared += 1
        self._truncate(shared)
        return len(self._tokens)

    def _truncate(self, count: int) -> None:
        """Keep the first `count` tokens in the cache; none, where a model's memory cannot be cut."""
        self._said = ""
        if not lib.llama_memory_seq_rm(self._memory, 0, count, -1):
            lib.llama_memory_clear(self._memory, True)
            count = 0
        del self._tokens[count:]

    def _evaluate(self, tokens: list[int]) -> bool:
        """Evaluate tokens after those in the cache. False if stopped meanwhile: the cache then keeps what was done."""
        for start in range(0, len(tokens), self._batch):
            part = tokens[start : start + self._batch]
            array = (lib.llama_token * len(part))(*part)
            code = lib.llama_decode(self._context, lib.llama_batch_get_one(array, len(part)))
            if code == _ABORTED or (code == 0 and self._switch.on):
                self._settle(part)
                return False
            if code != 0:
                self._settle(part)
                raise EngineError(
                    f"llama.cpp cannot evaluate the prompt (code {code}): {self._log.why()}",
                    "use a smaller context or fewer layers",
                )
            self._tokens += part
        return True

    def _settle(self, part: list[int]) -> None:
        """After an abort: count the tokens of `part` that came into the cache, and cut off what is beyond."""
        last = lib.llama_memory_seq_pos_max(self._memory, 0)
        self._tokens += part[: max(0, last + 1 - len(self._tokens))]
        self._truncate(len(self._tokens))

    def _decode(self, answer: _Answer, sampled: Any, sampling: Sampling) -> Iterator[Chunk]:
        """Generate until the model ends, a stop text comes, or a limit is reached."""
        pieces = Pieces((*format_named(self._vocabulary.chat_format).stops, *sampling.stop))
        limit = self.info.context - len(self._tokens)
        limit = limit if sampling.max_tokens is None else min(limit, sampling.max_tokens)
        array = (lib.llama_token * 1)()
        batch = lib.llama_batch_get_one(array, 1)
        reason: FinishReason | None = None
        answer.exact = True
        while reason is None and answer.count < limit:
            token = lib.llama_sampler_sample(sampled, self._context, -1)
            if self._switch.on or self._vocabulary.ends(token):
                reason = "cancelled" if self._switch.on else "stop"
                break
            answer.count += 1
            text = pieces.feed(self._vocabulary.piece(token))
            if not answer.text:
                text = text.removeprefix(" ")  # SentencePiece begins every text with a space
            if text:
                answer.text.append(text)
                yield TextChunk(text)
            if pieces.stopped:
                reason, answer.exact = "stop", False
                break
            array[0] = token
            reason = self._next(token, batch)
            answer.exact = reason is None
        answer.reason = reason or "length"
        answer.ended = time.perf_counter()
        rest = pieces.finish()
        if rest:
            answer.text.append(rest)
            yield TextChunk(rest)

    def _next(self, token: int, batch: Any) -> FinishReason | None:
        """Evaluate one generated token; "cancelled" if stopped meanwhile."""
        code = lib.llama_decode(self._context, batch)
        if code == _ABORTED:
            self._settle([])
            return "cancelled"
        if code != 0:
            raise EngineError(f"llama.cpp cannot go on (code {code}): {self._log.why()}", "use a smaller context")
        self._tokens.append(token)
        return None


def _seed(sampling: Sampling) -> int:
    return secrets.randbits(32) if sampling.seed is None else sampling.seed & 0xFFFFFFFF
