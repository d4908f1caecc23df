"""Terminals that cannot show Unicode: everything painted is mapped to ASCII in one place."""

from __future__ import annotations

import os
from collections.abc import Mapping

from rich.cells import cell_len
from rich.segment import Segment
from textual.color import Color
from textual.filter import LineFilter

_TABLE = str.maketrans(
    {
        **dict.fromkeys("─━╌┄═╍▔▁▂▃▄▅▆▇▀", "-"),
        **dict.fromkeys("│┃║▌▐▏▎▍▋▊▉┆╎", "|"),
        **dict.fromkeys("┌┐└┘├┤┬┴┼╭╮╰╯┏┓┗┛╔╗╚╝▖▗▘▝╸╺", "+"),
        **dict.fromkeys("█■▰", "#"),
        "▓": "=",
        "▒": ":",
        **dict.fromkeys("░▱", "."),
        **dict.fromkeys("●◉⬤", "o"),
        **dict.fromkeys("○◌·", "."),
        **dict.fromkeys("•▪‣⭑◦", "*"),
        **dict.fromkeys("›▸▶❯→⏵", ">"),
        **dict.fromkeys("‹◂←", "<"),
        **dict.fromkeys("‘’", "'"),
        **dict.fromkeys("“”", '"'),
        **dict.fromkeys("–—", "-"),
        **dict.fromkeys("✓✔", "+"),
        **dict.fromkeys("✗✘×", "x"),
        **dict.fromkeys("▲↑⭘", "^"),
        **dict.fromkeys("▼↓▾", "v"),
        "…": ".",
        "≤": "<",
        "≥": ">",
        "⏎": "<",
        "\u00a0": " ",
    }
)


def ascii_only(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether this terminal's locale says that it shows ASCII only.

    Python itself turns LC_CTYPE of the C locale into C.UTF-8, so that value says nothing when LANG says C. A locale
    that is not set at all (containers, services) is taken for UTF-8, as almost every terminal is today.
    """
    forced = environ.get("PHITUI_ASCII")
    if forced is not None:
        return forced not in ("", "0")
    ctype = environ.get("LC_CTYPE", "")
    if ctype.upper().replace("-", "") == "C.UTF8":
        ctype = ""
    locale = environ.get("LC_ALL") or ctype or environ.get("LANG") or ""
    return bool(locale) and "UTF8" not in locale.upper().replace("-", "")


def to_ascii(text: str) -> str:
    """`text` in ASCII, every character as wide as before."""
    if text.isascii():
        return text
    mapped = text.translate(_TABLE)
    if mapped.isascii():
        return mapped
    return "".join(character if character.isascii() else "?" * cell_len(character) for character in mapped)


class AsciiFilter(LineFilter):
    """Maps what is about to be painted to ASCII."""

    def apply(self, segments: list[Segment], background: Color) -> list[Segment]:
        return [
            segment if segment.text.isascii() else Segment(to_ascii(segment.text), segment.style, segment.control)
            for segment in segments
        ]
