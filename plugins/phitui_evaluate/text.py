"""The text that is evaluated: a file, or the short one that comes with phitui."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from phitui.api import InvalidFile, PhituiError

OWN = Path(__file__).with_name("evaluation.txt")
LIMIT = 64 << 20
"""Bytes of text that are taken. Ten times as much as would keep a small model busy for a day."""


@dataclass(frozen=True)
class Text:
    """UTF-8 text without its last newline, as llama-perplexity reads it; `digest` is the SHA-256 of these bytes."""

    name: str
    data: bytes

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.data).hexdigest()


def read(path: Path | None) -> Text:
    """The text of that file, or phitui's own. Raises InvalidFile for what is not UTF-8 text."""
    path = path or OWN
    try:
        with path.open("rb") as file:
            data = file.read(LIMIT + 1)
    except OSError as error:
        raise PhituiError(f"cannot read {path}: {error.strerror}", "give a text file with --text FILE") from None
    if len(data) > LIMIT:
        raise InvalidFile(f"{path} is over {LIMIT >> 20} MiB", "a few hundred KiB of text are enough")
    if data[:4] == b"GGUF" or b"\0" in data:
        raise InvalidFile(f"{path} is not a text", "give a plain UTF-8 text file with --text FILE")
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidFile(f"{path} is not UTF-8 at byte {error.start}", "convert it to UTF-8 first") from None
    return Text("phitui's own" if path == OWN else path.name, data.removesuffix(b"\n"))
