"""Chat: messages, sampling, chat formats with their stop texts, and what streams back from an engine."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, Literal

from phitui.domain.load import LoadOptions
from phitui.domain.options import option

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

    temperature: float = option(0.7, flag="--temp", minimum=0, help="0 takes the likeliest token.")
    top_p: float = option(0.95, minimum=0, maximum=1, help="Of the likeliest tokens, those that make up this part.")
    top_k: int = option(40, minimum=0, help="The likeliest tokens to choose from; 0 for all.")
    min_p: float = option(0.05, minimum=0, maximum=1, help="Tokens at least this likely beside the likeliest.")
    repeat_penalty: float = option(1.0, minimum=0.01, help="Above 1: less of what was said already.")
    seed: int | None = option(None, minimum=0, maximum=2**32 - 1, help="Makes an answer repeatable.")
    max_tokens: int | None = option(None, minimum=1, help="Longest answer.")
    stop: tuple[str, ...] = option((), help="Text that ends an answer. Repeatable.")


@dataclass(frozen=True)
class Manner(Sampling):
    """How a conversation is held: what the model is told first, and how its tokens are picked."""

    system: str = option("", help="System prompt: what the model is told before everything else.")

    @property
    def sampling(self) -> Sampling:
        """The part that an engine is given with every question."""
        return Sampling(**{field.name: getattr(self, field.name) for field in fields(Sampling)})


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
