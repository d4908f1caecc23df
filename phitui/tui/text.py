"""Content for widgets: every string from outside is made harmless here, and none is read as markup."""

from __future__ import annotations

from collections.abc import Iterable

from textual.content import Content

from phitui.domain.text import visible


def harmless(text: str) -> str:
    """Untrusted text of many lines: control characters are shown as their codes, newlines and tabs stay."""
    return visible(text.replace("\r", ""), keep="\n\t")


def one_line(text: str) -> str:
    """Untrusted text on one line: newlines and tabs become spaces."""
    return harmless(text).replace("\n", " ").replace("\t", " ")


def styled(text: str, style: str = "") -> Content:
    """One line in a style made of theme variables, such as "$accent bold"."""
    return Content.styled(one_line(text), style)


def lines(parts: Iterable[Content | str]) -> Content:
    """Parts below each other; strings are made harmless."""
    return Content("\n").join([part if isinstance(part, Content) else Content(harmless(part)) for part in parts])
