"""Text that comes from model files and configs, made safe to print."""

from __future__ import annotations

import unicodedata

_DIRECTION = {*range(0x202A, 0x202F), *range(0x2066, 0x206A)}
"""Embeddings, overrides and isolates of text direction: they can make a line read as another (Unicode TR 36)."""


def visible(text: str, keep: str = "") -> str:
    """`text` with what could move the cursor, ring, or reverse the line replaced by its code: ESC becomes \\x1b.

    Characters in `keep` (such as newline and tab) stay. Letters, marks and joiners of all scripts stay.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(char if char in keep or not _unsafe(char) else _code(char) for char in text)


def _unsafe(char: str) -> bool:
    return unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp") or ord(char) in _DIRECTION


def _code(char: str) -> str:
    number = ord(char)
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}"
