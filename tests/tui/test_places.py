"""Getting around: keys, palette, mouse, help, quitting."""

from __future__ import annotations

from typing import Any

import pytest

from phitui.tui.widgets.frame import PLACES


async def test_every_place_is_one_key_away(held: Any, data: Any) -> None:
    async with held.run_test(size=(80, 24)) as pilot:
        for number, place in enumerate(PLACES, 1):
            await pilot.press("escape", str(number)) if held.screen.NAME == "chat" else await pilot.press(str(number))
            await data.wait(pilot, lambda place=place: place == held.screen.NAME)
            await pilot.pause()
            text = data.shown(held)
            assert f"{number} {place.capitalize()}" in text
            assert "Phi-4-mini.Q4_K_M · 2.32 GiB" in text.splitlines()[0]
            assert "CUDA0 1.0/12 · RAM 11.0/32 GiB" in text.splitlines()[0]
            assert ("? help" if place != "chat" else "esc leave the line") in text.splitlines()[-1]


async def test_alt_digits_work_while_a_message_is_written(held: Any, data: Any) -> None:
    async with held.run_test(size=(80, 24)) as pilot:
        await pilot.press("4")
        await pilot.press("2", "alt+6")
        await data.wait(pilot, lambda: held.screen.NAME == "jobs")
        await pilot.press("4")
        await data.wait(pilot, lambda: held.screen.NAME == "chat")
        assert held.screen.query_one("Composer").text == "2"


async def test_tabs_and_keys_can_be_clicked(app: Any, data: Any) -> None:
    async with app.run_test(size=(80, 24)) as pilot:
        await pilot.click("Head", offset=(data.shown(app).splitlines()[1].index("Jobs"), 1))
        await data.wait(pilot, lambda: app.screen.NAME == "jobs")
        await pilot.click("KeyBar", offset=(data.shown(app).splitlines()[-1].index("help"), 0))
        await data.wait(pilot, lambda: "journal" in data.shown(app))


async def test_palette_lists_places_and_the_keys_of_the_place(app: Any) -> None:
    async with app.run_test():
        titles = [command.title for command in app.get_system_commands(app.screen)]
        assert {place.capitalize() for place in PLACES} <= set(titles)
        assert {"Filter", "Open path", "Copy command", "Quit"} <= set(titles)


@pytest.mark.parametrize("place", range(1, 8))
async def test_help_names_the_keys_of_the_place(held: Any, data: Any, place: int) -> None:
    async with held.run_test(size=(100, 50)) as pilot:
        await pilot.press(str(place), "escape", "question_mark")
        await data.wait(pilot, lambda: "the seven places" in data.shown(held))
        await pilot.press("escape")
        await data.wait(pilot, lambda: "the seven places" not in data.shown(held))


async def test_quitting_says_that_jobs_go_on(app: Any, data: Any) -> None:
    async with app.run_test() as pilot:
        await data.wait(pilot, lambda: app.jobs)
        await pilot.press("q")
        await data.wait(pilot, lambda: "will go on without the terminal" in data.shown(app))
        await pilot.press("escape")
        await data.wait(pilot, lambda: "will go on" not in data.shown(app))
        await pilot.press("q", "enter")
        await data.wait(pilot, lambda: not app.is_running)


async def test_quitting_without_jobs_asks_nothing(app: Any, door: Any, data: Any) -> None:
    door.found_jobs = [data.done]
    async with app.run_test() as pilot:
        await data.wait(pilot, lambda: app.jobs)
        await pilot.press("q")
        await data.wait(pilot, lambda: not app.is_running)


@pytest.mark.parametrize("size", [(40, 12), (20, 5), (60, 20), (200, 60)])
async def test_odd_sizes_break_nothing(held: Any, size: tuple[int, int]) -> None:
    async with held.run_test(size=size) as pilot:
        for place in PLACES:
            held.action_place(place)
            await pilot.pause()
            assert place == held.screen.NAME


async def test_a_job_that_ends_is_announced_and_the_library_read_again(app: Any, door: Any, data: Any) -> None:
    async with app.run_test() as pilot:
        await data.wait(pilot, lambda: app.jobs)
        door.found_jobs = [data.job("a1", "done", result={"path": "/models/x.gguf"}), data.done]
        app.read_jobs()
        await data.wait(pilot, lambda: app.library_version == 1)


async def test_the_model_in_hand_is_remembered(app: Any, door: Any, data: Any, tmp_path: Any) -> None:
    from phitui.tui.app import PhituiApp
    from phitui.tui.state import Hand

    file = tmp_path / "m.gguf"
    file.write_bytes(b"GGUF")
    async with app.run_test() as pilot:
        app.take(Hand.at(file))
        await data.wait(pilot, (app._state_file).exists)
    assert PhituiApp(door.context, door).hand.name == "m.gguf"
    file.unlink()
    assert PhituiApp(door.context, door).hand is None
    app._state_file.write_text("{ damaged")
    assert PhituiApp(door.context, door).hand is None


async def test_an_unknown_theme_is_said_not_fatal(app: Any, door: Any, data: Any) -> None:
    file = door.context.paths.config_file
    file.parent.mkdir(parents=True)
    file.write_text('theme = "pink"\n')
    async with app.run_test(notifications=True) as pilot:
        await data.wait(pilot, lambda: "there is no theme 'pink'" in data.shown(app))


def test_starting_imports_nothing_heavy() -> None:
    import subprocess
    import sys

    code = (
        "import sys, phitui.tui.app, phitui.tui.screens.models\n"
        "heavy = {'numpy', 'llama_cpp', 'huggingface_hub', 'gguf', 'markdown_it', 'pygments', 'click', 'httpx'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
