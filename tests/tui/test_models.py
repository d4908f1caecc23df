"""Models: one list, filter, details, taking in hand, opening a path."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from phitui.errors import InvalidFile
from phitui.tui.widgets.table import Table


async def test_enter_takes_a_gguf_in_hand(app: Any, data: Any) -> None:
    async with app.run_test() as pilot:
        await data.wait(pilot, lambda: "Phi-4-mini.Q4_K_M.gguf" in data.shown(app))
        await pilot.press("down", "enter")
        await data.wait(pilot, lambda: app.hand is not None)
        assert (app.hand.path, app.hand.kind) == (str(data.gguf.path), "gguf")
        assert app.screen.NAME == "models"


async def test_enter_on_a_checkpoint_goes_to_build(app: Any, data: Any) -> None:
    async with app.run_test() as pilot:
        await data.wait(pilot, lambda: "Phi-4-mini/" in data.shown(app))
        await pilot.press("enter")
        await data.wait(pilot, lambda: app.screen.NAME == "build")
        assert app.hand.kind == "checkpoint"


async def test_letters_go_to_the_other_places_with_the_model(app: Any, data: Any) -> None:
    for key, place in (("c", "chat"), ("p", "plan"), ("e", "export")):
        async with type(app)(app.door.context, app.door).run_test() as pilot:
            await data.wait(pilot, lambda pilot=pilot: "Q4_K_M.gguf" in data.shown(pilot.app))
            await pilot.press("down", key)
            await data.wait(pilot, lambda pilot=pilot, place=place: place == pilot.app.screen.NAME)
            assert pilot.app.hand.path == str(data.gguf.path)


async def test_filter_narrows_while_it_is_typed(app: Any, data: Any) -> None:
    async with app.run_test() as pilot:
        await data.wait(pilot, lambda: "Phi-3-small" in data.shown(app))
        await pilot.press("slash", *"q4 mini")
        await data.wait(pilot, lambda: "Phi-3-small" not in data.shown(app))
        assert [row.key for row in app.screen.query_one(Table).rows if not row.heading] == [f"file:{data.gguf.path}"]
        await pilot.press("enter", "enter")
        await data.wait(pilot, lambda: app.hand is not None)
        await pilot.press("escape")
        await data.wait(pilot, lambda: "Phi-3-small" in data.shown(app))


async def test_filter_that_matches_nothing_says_so(app: Any, data: Any) -> None:
    async with app.run_test() as pilot:
        await data.wait(pilot, lambda: "Phi-3-small" in data.shown(app))
        await pilot.press("slash", *"zzz")
        await data.wait(pilot, lambda: "nothing matches “zzz”" in data.shown(app))


async def test_first_run_says_what_to_do(app: Any, door: Any, data: Any) -> None:
    door.artifacts = []
    async with app.run_test(size=(80, 24)) as pilot:
        await data.wait(pilot, lambda: "phitui demo" in data.shown(app))
        text = data.shown(app)
        assert "phitui pull" in text
        assert "open a file or checkpoint" in text


async def test_verdict_of_a_known_model(app: Any, data: Any) -> None:
    async with app.run_test(size=(120, 40)) as pilot:
        await data.wait(pilot, lambda: "Phi-3-small" in data.shown(app))
        await pilot.press("end")
        await data.wait(pilot, lambda: "not convertible: blocksparse" in data.shown(app))


async def test_download_asks_first(app: Any, door: Any, data: Any) -> None:
    async with app.run_test() as pilot:
        await data.wait(pilot, lambda: "Phi-4-mini-instruct" in data.shown(app))
        await pilot.press("down", "down", "enter")
        await data.wait(pilot, lambda: "download?" in data.shown(app))
        assert not [call for call in door.calls if call[0] == "pull"]
        await pilot.press("enter")
        await data.wait(pilot, lambda: ("pull", "microsoft/Phi-4-mini-instruct") in door.calls)


async def test_open_any_path(app: Any, data: Any, tmp_path: Path) -> None:
    file = tmp_path / "mine.gguf"
    file.write_bytes(b"GGUF")
    async with app.run_test() as pilot:
        await pilot.press("o", *str(file).replace("/", "/"))
        await pilot.press("enter")
        await data.wait(pilot, lambda: app.hand is not None)
        assert (app.hand.name, app.hand.scheme) == ("mine.gguf", "Q4_K_M")


async def test_a_file_that_cannot_be_read_is_explained_in_place(app: Any, door: Any, data: Any) -> None:
    door.refuse = InvalidFile("the file is truncated", "download it again")
    async with app.run_test(size=(120, 40)) as pilot:
        await data.wait(pilot, lambda: "download it again" in data.shown(app))


async def test_names_are_neither_markup_nor_terminal_commands(app: Any, door: Any, data: Any) -> None:
    evil = "[bold red]x[/] \x1b[31mred\x1b]0;title\x07 [@click=app.exit]go[/]"
    door.artifacts = [dataclasses.replace(data.gguf, name=evil)]
    async with app.run_test(size=(120, 40)) as pilot:
        await data.wait(pilot, lambda: "[bold red]x[/]" in data.shown(app))
        await pilot.press("enter")
        await data.wait(pilot, lambda: app.hand is not None)
        text = data.shown(app)
        assert "\x1b" not in text
        assert "\x07" not in text
        assert "\\x1b[31mred" in text


async def test_a_thousand_models_are_one_screen_of_work(app: Any, door: Any, data: Any) -> None:
    door.artifacts = [dataclasses.replace(data.gguf, name=f"m{n}.gguf", path=Path(f"/m/{n}.gguf")) for n in range(1000)]
    async with app.run_test() as pilot:
        await data.wait(pilot, lambda: "on this machine (1000)" in data.shown(app))
        table = app.screen.query_one(Table)
        drawn = []
        table._line = lambda *arguments, original=table._line: drawn.append(1) or original(*arguments)
        await pilot.press("end")
        await data.wait(pilot, lambda: "Phi-3-small" in data.shown(app))
        await pilot.press("home")
        await data.wait(pilot, lambda: "m0.gguf" in data.shown(app))
        assert table.current == "file:/m/0.gguf"
        assert len(drawn) < 500


async def test_copies_the_equivalent_command(app: Any, data: Any) -> None:
    async with app.run_test() as pilot:
        await data.wait(pilot, lambda: "Q4_K_M.gguf" in data.shown(app))
        await pilot.press("down", "y")
        await data.wait(pilot, lambda: app.clipboard)
        assert app.clipboard == f"phitui inspect {data.gguf.path}"


async def test_a_model_is_removed_only_after_a_question(held: Any, door: Any, data: Any) -> None:
    async with held.run_test(size=(80, 24)) as pilot:
        await data.wait(pilot, lambda: "Q4_K_M.gguf" in data.shown(held))
        held.screen.query_one(Table).action_edge(-1)
        await pilot.press("down", "d")
        await data.wait(pilot, lambda: "remove this model?" in data.shown(held))
        assert "2 files, 1.00 GiB, gone for good" in data.shown(held)
        await pilot.press("escape", "d")
        await data.wait(pilot, lambda: "remove this model?" in data.shown(held))
        assert not [call for call in door.calls if call[0] == "remove_model"]
        await pilot.press("enter")
        await data.wait(pilot, lambda: ("remove_model", str(data.gguf.path)) in door.calls)
        await data.wait(pilot, lambda: held.hand is None and "Q4_K_M.gguf" not in data.shown(held))


async def test_a_model_is_renamed(held: Any, door: Any, data: Any) -> None:
    async with held.run_test(size=(80, 24)) as pilot:
        await data.wait(pilot, lambda: "Q4_K_M.gguf" in data.shown(held))
        held.screen.query_one(Table).action_edge(-1)
        await pilot.press("down", "R")
        await data.wait(pilot, lambda: "The new name:" in data.shown(held))
        await pilot.press("end", *"2", "enter")
        await data.wait(pilot, lambda: ("rename_model", str(data.gguf.path), f"{data.gguf.name}2") in door.calls)
        await data.wait(pilot, lambda: held.hand.name == f"{data.gguf.name}2")
