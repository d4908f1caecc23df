"""Chat: messages, sampling, chat formats with their stop texts, and what streams back from an engine."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from phitui.domain.load import LoadOptions

Role = Literal["system", "user", "assistant"]
FinishReason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True)
class Message:
    role: Role
    content: str

    def as_dict(self) -> dict[str, str]:
        return {"role": self.role, "content": self.content}


@dataclass(frozen=True)
class Sampling:
    """How the next token is picked. `seed` None draws one; `max_tokens` None runs until a stop or a full context."""

    temperature: float = 0.7
    top_p: float = 0.95
    top_k: int = 40
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    seed: int | None = None
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class EngineSettings(LoadOptions):
    """How a model is loaded, with nothing left open but flash attention: what a plan comes to.

    `layers` -1 is all. `threads` None: all physical cores.
    """

    context: int = 4096
    layers: int = 0
    n_cpu_moe: int = 0
    threads: int | None = None


@dataclass(frozen=True)
class SessionInfo:
    """What was really loaded."""

    model: str
    architecture: str
    context: int
    chat_format: str
    layers_total: int
    layers_offloaded: int
    load_seconds: float
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TextChunk:
    """A piece of the answer: always whole characters."""

    text: str


@dataclass(frozen=True)
class ChatStats:
    """Figures of one answer. `evaluated_tokens` is what of the prompt was really evaluated (the rest was reused)."""

    finish_reason: FinishReason
    prompt_tokens: int
    evaluated_tokens: int
    completion_tokens: int
    prompt_seconds: float
    decode_seconds: float
    context: int
    context_used: int

    @property
    def decode_tokens_per_s(self) -> float:
        return self.completion_tokens / self.decode_seconds if self.decode_seconds > 0 else 0.0

    @property
    def prompt_tokens_per_s(self) -> float:
        return self.evaluated_tokens / self.prompt_seconds if self.prompt_seconds > 0 else 0.0


Chunk = TextChunk | ChatStats
"""A stream is any number of TextChunks and, last, one ChatStats."""


@dataclass(frozen=True)
class ChatFormat:
    """A family of prompts. `stops` end an answer; they come from the token texts of the format."""

    name: str
    title: str
    stops: tuple[str, ...]
    role_marker: str


CHAT_FORMATS: tuple[ChatFormat, ...] = (
    ChatFormat("phi-2", "phi-2 (Instruct/Output)", ("Instruct:", "<|endoftext|>"), ""),
    ChatFormat(
        "phi-3",
        "phi-3 / 3.5 / MoE",
        ("<|end|>", "<|user|>", "<|assistant|>", "<|system|>", "<|endoftext|>"),
        "<|user|>",
    ),
    ChatFormat("phi-4", "phi-4 (14B)", ("<|im_end|>", "<|im_start|>", "<|endoftext|>"), "<|im_sep|>"),
    ChatFormat("phi-4-mini", "phi-4-mini", ("<|end|>", "<|user|>", "<|assistant|>", "<|endoftext|>"), "<|user|>"),
    ChatFormat("chatml", "ChatML", ("<|im_end|>", "<|im_start|>", "<|endoftext|>"), "<|im_start|>"),
)

PHI4_MINI_VOCABULARY = 150_000
"""Phi-4-mini shares phi-3's markers but has a vocabulary of 200,064 tokens and no newlines in its template."""


def chat_format(tokens: set[str], vocabulary: int) -> str:
    """The chat format of a model by the texts of its special tokens, never by its name (facts: exports, section 8)."""
    if "<|im_sep|>" in tokens:
        return "phi-4"
    if "<|end|>" in tokens:
        return "phi-4-mini" if vocabulary > PHI4_MINI_VOCABULARY else "phi-3"
    if "<|im_start|>" in tokens and "<|im_end|>" in tokens:
        return "chatml"
    return "phi-2"


def format_named(name: str) -> ChatFormat:
    """The ChatFormat of that name; phi-2's for an unknown one."""
    return next((item for item in CHAT_FORMATS if item.name == name), CHAT_FORMATS[0])
