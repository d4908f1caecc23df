"""Sends to the terminal only the cells that changed.

Textual repaints whole regions: when an answer grows by a word, every line of the transcript is written again, 8 KB over
a line that may be slow. The painter remembers what each cell shows and turns a partial update into the runs of cells
that differ. A full update is always written in full, so it heals whatever happened to the terminal.
"""

from __future__ import annotations

from collections.abc import Iterator

from rich.cells import cell_len
from rich.console import Console
from rich.segment import Segment
from rich.style import Style
from textual._compositor import ChopsUpdate, CompositorUpdate, LayoutUpdate
from textual.strip import Strip

Cell = tuple[str, Style | None]
"""What a cell shows. The text is "" where the character to the left of it reaches into this cell."""

NEVER: Cell = ("\0", None)
GAP = 7
"""Unchanged cells that are cheaper to write again than to jump over."""


class Painter:
    """The cells of the terminal as they were last painted."""

    def __init__(self) -> None:
        self._lines: dict[int, list[Cell]] = {}
        self._last: dict[int, dict[int, Strip]] = {}

    def forget(self) -> None:
        """The terminal may show anything now: write everything the next time."""
        self._lines.clear()
        self._last.clear()

    def lean(self, update: object) -> object:
        """The update to hand on in place of `update`. Nothing is remembered until it is really rendered."""
        return LeanUpdate(self, update) if isinstance(update, ChopsUpdate | LayoutUpdate) else update

    def full(self, update: LayoutUpdate, console: Console) -> str:
        """A full update, written as it is and remembered."""
        for y, strips in enumerate(update.strips, update.region.y):
            x = update.region.x
            for strip in strips:
                self._store(x, y, strip, _cells(strip))
                x += strip.cell_length
        return update.render_segments(console)

    def partial(self, update: ChopsUpdate, console: Console) -> str:
        """A partial update: the runs of cells that changed."""
        out: list[str] = []
        for x, y, strip in _pieces(update):
            if self._last.get(y, {}).get(x) is strip:
                continue
            cells = _cells(strip)
            for start, end in self._changed(x, y, cells):
                text = Strip(_segments(cells[start:end])).render(console)
                out.append(f"\x1b[{y + 1};{x + start + 1}H{text}")
            self._store(x, y, strip, cells)
        return "".join(out)

    def _store(self, x: int, y: int, strip: Strip, cells: list[Cell]) -> None:
        line = self._lines.setdefault(y, [])
        end = x + len(cells)
        if len(line) < end:
            line.extend([NEVER] * (end - len(line)))
        line[x:end] = cells
        strips = self._last.setdefault(y, {})
        for other in [at for at, old in strips.items() if at < end and x < at + old.cell_length]:
            del strips[other]
        strips[x] = strip

    def _changed(self, x: int, y: int, cells: list[Cell]) -> Iterator[tuple[int, int]]:
        """(start, end) of the runs of `cells` that the terminal does not show yet, whole characters only."""
        shown = self._lines.get(y, [])[x : x + len(cells)]
        shown.extend([NEVER] * (len(cells) - len(shown)))
        if shown == cells:
            return
        differ = [at for at, (old, new) in enumerate(zip(shown, cells, strict=True)) if old != new]
        start = end = differ[0]
        for at in differ:
            if at - end > GAP:
                yield _whole(cells, start, end)
                start = at
            end = at + 1
        yield _whole(cells, start, end)


class LeanUpdate(CompositorUpdate):
    """An update that is compared with the terminal only when it is written."""

    def __init__(self, painter: Painter, update: ChopsUpdate | LayoutUpdate) -> None:
        self._painter = painter
        self._update = update

    def render_segments(self, console: Console) -> str:
        if isinstance(self._update, LayoutUpdate):
            return self._painter.full(self._update, console)
        return self._painter.partial(self._update, console)


def _pieces(update: ChopsUpdate) -> Iterator[tuple[int, int, Strip]]:
    """(x, y, strip) of everything that a partial update paints, as ChopsUpdate.render_segments does."""
    for y, x1, x2 in update.spans:
        for end, (x, strip) in zip(update.chop_ends[y], update.chops[y].items(), strict=False):
            if strip is None or x > x2 or end <= x1:
                continue
            yield x, y, strip if x2 > x >= x1 and end <= x2 else strip.crop(0, min(end, x2) - x)


def _cells(strip: Strip) -> list[Cell]:
    """One entry per cell. Text whose characters do not simply stand side by side stays in one piece."""
    cells: list[Cell] = []
    for text, style, control in strip:
        if control:
            continue
        if text.isascii():
            cells += [(character, style) for character in text]
            continue
        widths = [cell_len(character) for character in text]
        if 0 in widths or sum(widths) != cell_len(text):
            cells += [(text, style), *[("", style)] * (cell_len(text) - 1)]
            continue
        for character, width in zip(text, widths, strict=True):
            cells.append((character, style))
            cells += [("", style)] * (width - 1)
    return cells


def _whole(cells: list[Cell], start: int, end: int) -> tuple[int, int]:
    """The run widened so that no character is cut."""
    while start > 0 and not cells[start][0]:
        start -= 1
    while end < len(cells) and not cells[end][0]:
        end += 1
    return start, end


def _segments(cells: list[Cell]) -> list[Segment]:
    """Cells as segments, neighbours of one style together."""
    segments: list[Segment] = []
    text, style = "", None
    for character, its_style in cells:
        if its_style != style:
            if text:
                segments.append(Segment(text, style))
            text, style = "", its_style
        text += character
    if text:
        segments.append(Segment(text, style))
    return segments
