"""Text that came from a model or a file, made safe to show on a terminal."""

from __future__ import annotations

_HIDDEN = (
    *range(0x00, 0x09),  # C0 without tab and newline: ESC starts every terminal command
    *range(0x0B, 0x20),
    *range(0x7F, 0xA0),  # DEL and C1: 0x9B alone is a terminal command in some terminals
    *range(0x202A, 0x202F),  # bidirectional embeddings and overrides: they reorder what stands beside them
    *range(0x2066, 0x206A),  # bidirectional isolates
)
_TABLE = dict.fromkeys(_HIDDEN)


def visible(text: str) -> str:
    """`text` without control characters (but newline and tab) and without bidirectional overrides.

    Joiners and direction marks stay: Persian, Arabic, Hebrew and emoji need them. Works piece by piece on a stream.
    """
    return text.translate(_TABLE)
