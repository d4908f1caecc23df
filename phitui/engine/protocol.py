"""What the engine's child process and its client say to each other: one JSON object a line, in both directions.

To the child, on its standard input:

    {"op": "open", "engine": NAME, "model": PATH, "settings": {...EngineSettings}}     always the first line
    {"op": "ask", "id": N, "messages": [{"role", "content"}], "sampling": {...Sampling}}
    {"op": "stop", "id": N}      answered by the "done" of that answer; may come while it is being generated
    {"op": "close"}              end of input means the same

From the child, on what was its standard output (see phitui.engine.host):

    {"event": "progress", "part": 0.42}
    {"event": "ready", "info": {...SessionInfo}}
    {"event": "text", "id": N, "text": "whole characters"}
    {"event": "done", "id": N, "stats": {...ChatStats}}
    {"event": "error", "id": N or null, "kind": NAME, "message": "...", "hint": "..."}   the child lives on if id is set

An answer is any number of "text" and then one "done" or one "error". `kind` is the class in phitui.errors.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from phitui import errors
from phitui.domain.chat import ChatStats, EngineSettings, Message, Sampling, SessionInfo
from phitui.errors import EngineError, PhituiError


class ProtocolError(Exception):
    """A line that is not a message."""


def encode(message: Mapping[str, Any]) -> bytes:
    """One message as a line. ASCII only, so that no byte of it can be cut inside a character."""
    return json.dumps(message, separators=(",", ":"), default=str).encode("ascii") + b"\n"


def decode(line: bytes) -> dict[str, Any]:
    """One line as a message. Raises ProtocolError."""
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        raise ProtocolError(repr(line[:200])) from None
    if not isinstance(message, dict) or not ("op" in message or "event" in message):
        raise ProtocolError(repr(line[:200]))
    return message


def open_message(engine: str, model: str, settings: EngineSettings) -> dict[str, Any]:
    return {"op": "open", "engine": engine, "model": model, "settings": dataclasses.asdict(settings)}


def ask_message(number: int, messages: list[Message], sampling: Sampling) -> dict[str, Any]:
    return {
        "op": "ask",
        "id": number,
        "messages": [message.as_dict() for message in messages],
        "sampling": dataclasses.asdict(sampling),
    }


def error_message(number: int | None, error: PhituiError) -> dict[str, Any]:
    kind = type(error).__name__
    return {"event": "error", "id": number, "kind": kind, "message": error.message, "hint": error.hint}


def settings_of(message: Mapping[str, Any]) -> EngineSettings:
    values = dict(message["settings"])
    lists = {name: tuple(values.get(name, ())) for name in ("rpc", "tensor_split")}
    return EngineSettings(**(values | lists))


def sampling_of(message: Mapping[str, Any]) -> Sampling:
    values = dict(message["sampling"])
    return Sampling(**(values | {"stop": tuple(values.get("stop", ()))}))


def messages_of(message: Mapping[str, Any]) -> list[Message]:
    return [Message(item["role"], item["content"]) for item in message["messages"]]


def info_of(message: Mapping[str, Any]) -> SessionInfo:
    return SessionInfo(**message["info"])


def stats_of(message: Mapping[str, Any]) -> ChatStats:
    return ChatStats(**message["stats"])


def error_of(message: Mapping[str, Any], log_tail: str = "") -> PhituiError:
    """The exception that an "error" message stands for; only phitui's own classes are ever made."""
    text, hint = str(message.get("message", "")), str(message.get("hint", ""))
    kind = getattr(errors, str(message.get("kind", "")), None)
    if kind is EngineError:
        return EngineError(text, hint, log_tail)
    if isinstance(kind, type) and issubclass(kind, PhituiError) and kind is not errors.Cancelled:
        return kind(text, hint)
    return PhituiError(text, hint)
