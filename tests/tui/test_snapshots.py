"""How every place looks at 80x24 and at 120x40. Update with: pytest tests/tui/test_snapshots.py --snapshot-update"""

from __future__ import annotations

from typing import Any

import pytest

from phitui.tui.state import Hand

SIZES = [(80, 24), (120, 40)]
SETTLED = {
    "models": "Phi-3-small",
    "build": "vision left out",
    "plan": "65536",
    "chat": "24.0 tokens/s",
    "export": "FROM /models",
    "jobs": "blk.8.ffn_up",
    "machine": "plugins",
}


@pytest.fixture(autouse=True)
def steady(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")
    monkeypatch.setenv("COLORTERM", "truecolor")
    monkeypatch.setenv("TEXTUAL_ANIMATIONS", "none")


def visit(place: str, data: Any) -> Any:
    """Go to a place and wait until it has settled."""

    async def run(pilot: Any) -> None:
        app = pilot.app
        if place == "build":
            app.take(Hand.of(data.checkpoint))
        app.action_place(place)
        await data.wait(pilot, lambda: place == app.screen.NAME)
        await data.wait(pilot, lambda: app.jobs and app.devices)
        if place == "chat":
            await pilot.press(*"Capital", "enter")
        settled = SETTLED[place]
        if place == "machine":
            settled = "no such hardware" if app.size.height > 30 else "devices"
        await data.wait(pilot, lambda: settled in data.shown(app))
        app.screen.set_focus(None) if place == "chat" else None
        await pilot.pause()

    return run


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
@pytest.mark.parametrize("place", list(SETTLED))
def test_place(place: str, size: tuple[int, int], held: Any, data: Any, snap_compare: Any) -> None:
    assert snap_compare(held, terminal_size=size, run_before=visit(place, data))


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_first_run(size: tuple[int, int], app: Any, door: Any, data: Any, snap_compare: Any) -> None:
    door.artifacts, door.found_jobs = [], []

    async def run(pilot: Any) -> None:
        await data.wait(pilot, lambda: "phitui demo" in data.shown(pilot.app) and pilot.app.devices)
        await pilot.pause()

    assert snap_compare(app, terminal_size=size, run_before=run)


def test_dead_engine(held: Any, door: Any, data: Any, snap_compare: Any) -> None:
    door.chat = data.chat(["Half an ans", data.engine_error()])

    async def run(pilot: Any) -> None:
        await pilot.press("4")
        await data.wait(pilot, lambda: pilot.app.screen.NAME == "chat" and pilot.app.devices and pilot.app.jobs)
        await pilot.press(*"Why", "enter")
        await data.wait(pilot, lambda: "signal 9" in data.shown(pilot.app))
        await pilot.pause()

    assert snap_compare(held, terminal_size=(80, 24), run_before=run)


def test_help(held: Any, data: Any, snap_compare: Any) -> None:
    async def run(pilot: Any) -> None:
        await visit("jobs", data)(pilot)
        await pilot.press("question_mark")
        await data.wait(
            pilot, lambda: "the seven places" in data.shown(pilot.app) or "journal" in data.shown(pilot.app)
        )
        await pilot.pause()

    assert snap_compare(held, terminal_size=(80, 24), run_before=run)


def test_ascii(context: Any, door: Any, data: Any, snap_compare: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from phitui.tui.app import PhituiApp

    monkeypatch.setenv("PHITUI_ASCII", "1")
    app = PhituiApp(context, door)
    app.set_reactive(PhituiApp.hand, Hand.of(data.gguf))
    assert snap_compare(app, terminal_size=(80, 24), run_before=visit("plan", data))
