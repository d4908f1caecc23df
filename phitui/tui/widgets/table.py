"""A list with aligned columns, headings between rows and a cursor: light, virtual, keyboard first.

Only the visible lines are ever rendered, so thousands of rows cost nothing. The cursor is a mark and not only a
colour, so that it can be seen on a monochrome terminal.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from textual.binding import Binding
from textual.content import Content
from textual.events import Blur, Click, Focus, Resize
from textual.geometry import Region, Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.strip import Strip
from textual.style import Style
from textual.visual import Visual

from phitui.tui.text import styled


@dataclass(frozen=True)
class Column:
    """`width` None takes what is left; the column is hidden in tables narrower than `above` cells."""

    title: str
    width: int | None = None
    right: bool = False
    above: int = 0


@dataclass(frozen=True)
class Row:
    """`cells` are text (shown harmless) or Content. A heading has one cell and cannot be picked."""

    key: str
    cells: tuple[str | Content, ...]
    heading: bool = False
    style: str = ""


class Table(ScrollView, can_focus=True):
    """Posts Highlighted when the cursor moves and Selected on Enter or a second click."""

    ALLOW_SELECT = False
    BINDINGS: ClassVar = [
        Binding("up,k", "move(-1)", "move; also down, page keys, home, end", show=False),
        Binding("down,j", "move(1)", show=False),
        Binding("pageup", "page(-1)", show=False),
        Binding("pagedown", "page(1)", show=False),
        Binding("home", "edge(-1)", show=False),
        Binding("end", "edge(1)", show=False),
        Binding("enter", "select", "select", show=False),
    ]
    COMPONENT_CLASSES: ClassVar[set[str]] = {"table--title", "table--heading", "table--cursor"}
    DEFAULT_CSS = """
    Table {
        height: 1fr;
        overflow-x: hidden;
        overflow-y: auto;
        scrollbar-size-vertical: 1;
        background: $background;
        & > .table--title { color: $muted; }
        & > .table--heading { color: $primary; text-style: bold; }
        & > .table--cursor { background: $block-cursor-blurred-background; color: $block-cursor-blurred-foreground; }
        &:focus > .table--cursor { background: $block-cursor-background; color: $block-cursor-foreground; }
    }
    """

    class Highlighted(Message):
        """The cursor stands on another row (key "" if there is none)."""

        def __init__(self, table: Table, key: str) -> None:
            super().__init__()
            self.table = table
            self.key = key

        @property
        def control(self) -> Table:
            return self.table

    class Selected(Highlighted):
        """Enter was pressed on a row, or the row under the cursor was clicked."""

    def __init__(self, columns: Sequence[Column], empty: Content | str = "", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.columns = tuple(columns)
        self.rows: list[Row] = []
        self.empty = empty
        self.cursor = -1

    @property
    def titled(self) -> int:
        """1 if there is a title line, else 0."""
        return int(any(column.title for column in self.columns))

    @property
    def current(self) -> str:
        """Key of the row under the cursor, or ""."""
        return self.rows[self.cursor].key if 0 <= self.cursor < len(self.rows) else ""

    def show(self, rows: Iterable[Row], empty: Content | str | None = None) -> None:
        """Replace the rows; the cursor stays on its key if that is still there."""
        before = self.current
        self.rows = list(rows)
        if empty is not None:
            self.empty = empty
        keys = [row.key if not row.heading else None for row in self.rows]
        if before and before in keys:
            self.cursor = keys.index(before)
        else:
            self.cursor = self._allowed(max(0, min(self.cursor, len(self.rows) - 1)), 1)
        self.virtual_size = Size(self.size.width, len(self.rows) + self.titled)
        self.refresh()
        if self.current != before:
            self.post_message(self.Highlighted(self, self.current))

    def move_to(self, key: str) -> None:
        """Put the cursor on a row, if it is there."""
        for index, row in enumerate(self.rows):
            if row.key == key and not row.heading:
                self._go(index)
                self.call_after_refresh(self._reveal)  # rows that came just now cannot be scrolled to yet

    def _allowed(self, index: int, direction: int) -> int:
        """The nearest row that can be picked, first in `direction`; -1 if there is none."""
        for step in (direction, -direction):
            at = index
            while 0 <= at < len(self.rows):
                if not self.rows[at].heading:
                    return at
                at += step
        return -1

    def _go(self, index: int) -> None:
        index = self._allowed(max(0, min(index, len(self.rows) - 1)), 1 if index >= self.cursor else -1)
        if index < 0 or index == self.cursor:
            return
        self._refresh_row(self.cursor)
        self.cursor = index
        self._refresh_row(index)
        self._reveal()
        self.post_message(self.Highlighted(self, self.current))

    def _reveal(self) -> None:
        height = max(1, self.size.height - self.titled)
        first = self.cursor - 1 if self.cursor and self.rows[self.cursor - 1].heading else self.cursor
        top = self.scroll_offset.y
        if first < top:
            self.scroll_to(y=first, animate=False, immediate=True)
        elif self.cursor >= top + height:
            self.scroll_to(y=self.cursor - height + 1, animate=False, immediate=True)

    def _refresh_row(self, index: int) -> None:
        y = index - self.scroll_offset.y + self.titled
        if 0 <= y < self.size.height:
            self.refresh(Region(0, y, self.size.width, 1))

    def on_resize(self, event: Resize) -> None:
        self.virtual_size = Size(self.size.width, len(self.rows) + self.titled)
        if self.cursor >= 0:
            self._reveal()

    def on_focus(self, event: Focus) -> None:
        self._refresh_row(self.cursor)

    def on_blur(self, event: Blur) -> None:
        self._refresh_row(self.cursor)

    def on_click(self, event: Click) -> None:
        index = event.y + self.scroll_offset.y - self.titled
        if event.y < self.titled or not 0 <= index < len(self.rows) or self.rows[index].heading:
            return
        if index == self.cursor:
            self.action_select()
        else:
            self._go(index)

    def action_move(self, by: int) -> None:
        self._go(self.cursor + by)

    def action_page(self, pages: int) -> None:
        self._go(self.cursor + pages * max(1, self.size.height - 2))

    def action_edge(self, side: int) -> None:
        self._go(0 if side < 0 else len(self.rows) - 1)

    def action_select(self) -> None:
        if self.current:
            self.post_message(self.Selected(self, self.current))

    # painting --------------------------------------------------------------------------------------------------------
    def render_line(self, y: int) -> Strip:
        width = self.size.width
        if self.titled and y == 0 and self.rows:
            cells = tuple(column.title for column in self.columns)
            return self._strip(self._line("  ", cells, width), width, "table--title")
        index = y + self.scroll_offset.y - self.titled
        if not self.rows:
            return self._empty_line(y, width)
        if not 0 <= index < len(self.rows):
            return Strip.blank(width, self.visual_style.rich_style)
        row = self.rows[index]
        if row.heading:
            return self._strip(Content(" ") + self._cell(row.cells[0], ""), width, "table--heading")
        mark = "› " if index == self.cursor else "  "
        return self._strip(
            self._line(mark, row.cells, width, row.style), width, "table--cursor" if index == self.cursor else ""
        )

    def _empty_line(self, y: int, width: int) -> Strip:
        empty = self.empty if isinstance(self.empty, Content) else styled(self.empty, "$muted")
        wrapped = empty.wrap(max(1, width - 4))
        if 0 < y <= len(wrapped):
            return self._strip(Content("  ") + wrapped[y - 1], width, "")
        return Strip.blank(width, self.visual_style.rich_style)

    def _strip(self, content: Content, width: int, component: str) -> Strip:
        style: Style = self.visual_style
        if component:
            style = style + self.get_visual_style(component)
        strips = Visual.to_strips(self, content.truncate(width), width, 1, style, pad=True)
        return strips[0].adjust_cell_length(width, style.rich_style)

    def _line(self, mark: str, cells: Sequence[str | Content], width: int, style: str = "") -> Content:
        shown = [(c, cell) for c, cell in zip(self.columns, cells, strict=False) if width >= c.above]
        fixed = sum(column.width or 0 for column, _ in shown)
        flexible = sum(1 for column, _ in shown if column.width is None) or 1
        left = max(4, (width - len(mark) - 1 - fixed - 2 * (len(shown) - 1)) // flexible)
        parts = [Content(mark)]
        for number, (column, cell) in enumerate(shown):
            room = left if column.width is None else column.width
            content = self._cell(cell, style).truncate(room, ellipsis=True)
            space = room - content.cell_length
            parts.append(content.pad_left(space) if column.right else content + " " * space)
            if number < len(shown) - 1:
                parts.append(Content("  "))
        return Content("").join(parts)

    @staticmethod
    def _cell(cell: str | Content, style: str) -> Content:
        return cell if isinstance(cell, Content) else styled(cell, style)
