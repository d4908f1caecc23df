"""Text in a column whose continuation lines are indented, so that labels stay readable at any width."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from textual.content import Content
from textual.events import Resize
from textual.widgets import Static

from phitui.tui.text import harmless, styled


@dataclass(frozen=True)
class Hang:
    """A label and what belongs to it; what does not fit goes on below the text, not below the label."""

    label: Content
    text: Content

    def wrap(self, width: int) -> list[Content]:
        indent = self.label.cell_length
        wrapped = self.text.wrap(max(8, width - indent)) or [Content("")]
        return [self.label + wrapped[0], *[Content(" " * indent) + line for line in wrapped[1:]]]


Part = Content | Hang | str


def facts(rows: Iterable[tuple[str, str]], width: int = 12) -> list[Part]:
    """Labels, muted and aligned, with their values; rows without a value are left out."""
    return [Hang(styled(label.ljust(width), "$muted"), styled(value)) for label, value in rows if value]


def bullet(mark: str, text: str, style: str = "", mark_style: str = "") -> Hang:
    """A mark and a text that hangs behind it."""
    return Hang(styled(f"{mark} ", mark_style or style), styled(text, style))


class Page(Static):
    """Shows parts below each other. Strings are made harmless; nothing is read as markup."""

    DEFAULT_CSS = """
    Page { height: auto; }
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(markup=False, **kwargs)
        self._parts: list[Part] = []
        self._shown: tuple[int, list[Part]] | None = None

    def show(self, parts: Iterable[Part]) -> None:
        self._parts = list(parts)
        self._layout_text()

    def on_resize(self, event: Resize) -> None:
        self._layout_text()

    def _layout_text(self) -> None:
        width = self.size.width
        if not width or self._shown == (width, self._parts):
            return
        self._shown = (width, self._parts)
        lines: list[Content] = []
        for part in self._parts:
            if isinstance(part, Hang):
                lines += part.wrap(width)
            else:
                lines.append(part if isinstance(part, Content) else Content(harmless(part)))
        self.update(Content("\n").join(lines))
