"""Names of models in Ollama: [HOST/][NAMESPACE/]MODEL[:TAG] (Ollama's types/model/name.go)."""

from __future__ import annotations

import re

from phitui.api import UsageError

_MODEL = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}"
_NAMESPACE = r"[A-Za-z0-9_][A-Za-z0-9_-]{0,79}"
_HOST = r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,349}"
_NAME = re.compile(rf"(?:(?:{_HOST}/)?{_NAMESPACE}/)?{_MODEL}(?::{_MODEL})?")


def checked(name: str) -> str:
    """The name itself. Raises UsageError for one that Ollama refuses, with one that it takes."""
    if _NAME.fullmatch(name):
        return name
    raise UsageError(
        f"{name!r} is no name for a model in Ollama",
        f"[NAMESPACE/]NAME[:TAG] of letters, digits, '_', '-' and '.', each up to 80 long; for example: {made(name)}",
    )


def made(text: str, tag: str = "") -> str:
    """A valid name made of any text: what is not allowed becomes "-"."""
    name = _part(text.rpartition("/")[2]) or "model"
    tag = _part(tag)
    return f"{name}:{tag}" if tag else name


def _part(text: str) -> str:
    return re.sub(r"[^a-z0-9_.]+", "-", text.lower()).strip("-.")[:80].rstrip("-.")
