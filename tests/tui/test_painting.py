"""What reaches the terminal: only changed cells, and in ASCII where the locale says so."""

from __future__ import annotations

import io
from typing import Any

import pyte
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console
from rich.segment import Segment
from rich.style import Style
from textual._compositor import ChopsUpdate, LayoutUpdate
from textual.geometry import Region
from textual.strip import Strip

from phitui.tui import format as show
from phitui.tui.glyphs import ascii_only, to_ascii
from phitui.tui.painter import LeanUpdate, Painter

WIDTH, HEIGHT = 24, 4
STYLES = (Style(), Style(color="red"), Style(bold=True))


def console() -> Console:
    return Console(file=io.StringIO(), width=WIDTH, height=HEIGHT, force_terminal=True, color_system="truecolor")


def strip(text: str, style: Style, width: int) -> Strip:
    """`text` cut or padded to `width` cells."""
    return Strip([Segment(text, style)]).adjust_cell_length(width, style)


@st.composite
def updates(draw: Any) -> list[tuple[int, int, int, str, Style]]:
    """(y, x, width, text, style) of pieces painted one after the other."""
    found = []
    for _ in range(draw(st.integers(1, 12))):
        x = draw(st.sampled_from([0, 6, 12]))
        width = draw(st.sampled_from([6, 12, WIDTH - x]))
        text = draw(st.text(alphabet="ab -é漢界─█", max_size=WIDTH))
        found.append((draw(st.integers(0, HEIGHT - 1)), x, min(width, WIDTH - x), text, draw(st.sampled_from(STYLES))))
    return found


@settings(max_examples=150, deadline=None)
@given(updates())
def test_the_terminal_shows_what_full_painting_would(pieces: list[tuple[int, int, int, str, Style]]) -> None:
    painter, target = Painter(), console()
    lean, plain = pyte.Screen(WIDTH, HEIGHT), pyte.Screen(WIDTH, HEIGHT)
    lean_stream, plain_stream = pyte.Stream(lean), pyte.Stream(plain)
    for y, x, width, text, style in pieces:
        painted = strip(text, style, width)
        chops: list[dict[int, Strip | None]] = [{} for _ in range(HEIGHT)]
        chops[y][x] = painted
        update = ChopsUpdate(chops, [(y, x, x + width)], [[x + width] for _ in range(HEIGHT)])
        lean_stream.feed(painter.lean(update).render_segments(target))  # type: ignore[attr-defined]
        plain_stream.feed(update.render_segments(target))
    overwritten = any("漢" in piece[3] or "界" in piece[3] for piece in pieces)
    if overwritten:  # terminals differ in what is left of a wide character that is half painted over
        return
    assert lean.display == plain.display
    assert {y: dict(line) for y, line in lean.buffer.items()} == {y: dict(line) for y, line in plain.buffer.items()}


def test_unchanged_cells_are_not_sent_again() -> None:
    painter, target = Painter(), console()
    line = "the quick brown fox jumps"[:WIDTH]
    full = LayoutUpdate([[strip(line, STYLES[0], WIDTH)]], Region(0, 0, WIDTH, 1))
    assert line in painter.lean(full).render_segments(target)  # type: ignore[attr-defined]

    def partial(text: str) -> str:
        update = ChopsUpdate([{0: strip(text, STYLES[0], WIDTH)}], [(0, 0, WIDTH)], [[WIDTH]])
        return painter.lean(update).render_segments(target)  # type: ignore[attr-defined, no-any-return]

    assert partial(line) == ""
    assert partial(line.replace("fox", "cat")) == "\x1b[1;17Hcat"
    painter.forget()
    assert line in partial(line)


def test_wide_characters_are_never_cut() -> None:
    painter, target = Painter(), console()

    def partial(text: str) -> str:
        update = ChopsUpdate([{0: strip(text, STYLES[0], WIDTH)}], [(0, 0, WIDTH)], [[WIDTH]])
        return painter.lean(update).render_segments(target)  # type: ignore[attr-defined, no-any-return]

    partial("漢字 abc")
    assert partial("漢界 abc") == "\x1b[1;3H界"
    partial("e\u0301a 👍🏽 x")
    assert "👍🏽 y" in partial("e\u0301a 👍🏽 y")


def test_other_renderables_pass_through() -> None:
    assert Painter().lean("text") == "text"
    assert isinstance(Painter().lean(LayoutUpdate([], Region(0, 0, 0, 0))), LeanUpdate)


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, False),
        ({"LANG": "en_US.UTF-8"}, False),
        ({"LANG": "C"}, True),
        ({"LANG": "C", "LC_CTYPE": "C.UTF-8"}, True),
        ({"LC_CTYPE": "C.UTF-8"}, False),
        ({"LANG": "C.UTF-8"}, False),
        ({"LC_ALL": "POSIX", "LANG": "de_DE.UTF-8"}, True),
        ({"LANG": "de_DE.ISO-8859-1"}, True),
        ({"LANG": "C", "PHITUI_ASCII": "0"}, False),
        ({"PHITUI_ASCII": "1"}, True),
    ],
)
def test_ascii_by_locale(environ: dict[str, str], expected: bool) -> None:
    assert ascii_only(environ) is expected


@given(st.text())
def test_ascii_keeps_the_width(text: str) -> None:
    mapped = to_ascii(text)
    assert mapped.isascii()
    if not any(cell_len(character) == 0 for character in text):
        assert len(mapped) == sum(cell_len(character) for character in text)


async def test_every_place_is_ascii_where_it_must_be(
    context: Any, door: Any, data: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from phitui.tui.app import PhituiApp
    from phitui.tui.state import Hand
    from phitui.tui.widgets.frame import PLACES

    monkeypatch.setenv("PHITUI_ASCII", "1")
    app = PhituiApp(context, door)
    app.set_reactive(PhituiApp.hand, Hand.of(data.gguf))
    async with app.run_test(size=(100, 30)) as pilot:
        for place in PLACES:
            app.action_place(place)
            await data.wait(pilot, lambda place=place: place == app.screen.NAME)
            for _ in range(10):
                await pilot.pause(0.02)
            assert data.shown(app).isascii(), place


def test_numbers_for_people() -> None:
    assert [show.size(n) for n in (None, 0, 999, 1536, 98_500_000, 2_491_874_272, 10**13)] == [
        "-", "0 B", "999 B", "1.50 KiB", "93.9 MiB", "2.32 GiB", "9313 GiB",
    ]  # fmt: skip
    assert [show.duration(s) for s in (None, -1, float("nan"), 4.4, 125, 4200)] == [
        "-", "-", "-", "4 s", "2 min 05 s", "1 h 10 min",
    ]  # fmt: skip
    assert [show.count(n) for n in (999, 134_515_008, 3_836_021_760, 14_700_000_000)] == ["999", "135M", "3.8B", "15B"]
    assert show.bar(0.5, 4) == "██░░"
    assert show.bar(7, 4) == "████"
