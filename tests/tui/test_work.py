"""Build, Jobs, Export, Plan and Machine: what a person does there, by keys."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from phitui.errors import NotMeasured, OutputExists, Unavailable, UsageError
from phitui.tui.widgets.table import Table


# build ----------------------------------------------------------------------------------------------------------------
async def test_build_shows_exact_sizes_and_starts_a_job(checkpoint: Any, door: Any, data: Any) -> None:
    async with checkpoint.run_test(size=(120, 40)) as pilot:
        await pilot.press("2")
        await data.wait(pilot, lambda: "needs imatrix" in data.shown(checkpoint))
        text = data.shown(checkpoint)
        assert "2.32 GiB" in text
        assert "KLD 0.041 ±0.002" in text and "31.4" in text and "reference" in text
        assert checkpoint.screen.query_one(Table).current == "Q4_K_M"
        await data.wait(pilot, lambda: "Q4_K → Q5_0" in data.shown(checkpoint))
        await pilot.press("enter")
        await data.wait(pilot, lambda: ("build", str(data.checkpoint.path), "Q4_K_M", "", False) in door.calls)
        await data.wait(
            pilot, lambda: "30 %" in data.shown(checkpoint) and "85.8 MiB/s, 21 s left" in data.shown(checkpoint)
        )


async def test_a_finished_build_is_taken_in_hand(checkpoint: Any, door: Any, data: Any) -> None:
    door.found_jobs = [data.running]
    async with checkpoint.run_test(size=(120, 40)) as pilot:
        await pilot.press("2")
        await data.wait(pilot, lambda: "left" in data.shown(checkpoint))
        checkpoint.screen._job = "a1"
        door.found_jobs = [
            data.job("a1", "done", result={"path": "/models/new.gguf", "size": 2**30, "scheme": "Q4_K_M"})
        ]
        checkpoint.read_jobs()
        await data.wait(pilot, lambda: "t takes it in hand" in data.shown(checkpoint))
        await pilot.press("t")
        await data.wait(pilot, lambda: checkpoint.hand.path == "/models/new.gguf")


async def test_a_refused_build_is_said(checkpoint: Any, door: Any, data: Any) -> None:
    async with checkpoint.run_test(size=(120, 40), notifications=True) as pilot:
        await pilot.press("2")
        await data.wait(pilot, lambda: "Q4_K → Q5_0" in data.shown(checkpoint))
        door.refuse = UsageError("it needs an importance matrix", "give one with --imatrix")
        await pilot.press("end", "b")
        await data.wait(pilot, lambda: "give one with --imatrix" in data.shown(checkpoint))


async def test_an_existing_file_is_replaced_only_after_a_question(checkpoint: Any, door: Any, data: Any) -> None:
    async with checkpoint.run_test(size=(120, 40)) as pilot:
        await pilot.press("2")
        await data.wait(pilot, lambda: "Q4_K → Q5_0" in data.shown(checkpoint))
        door.refuse = OutputExists("/models/x.gguf exists already", "choose another")
        await pilot.press("b")
        await data.wait(pilot, lambda: "replace the file?" in data.shown(checkpoint))
        await pilot.press("escape")
        await data.wait(pilot, lambda: "replace the file?" not in data.shown(checkpoint))
        assert not [call for call in door.calls if call[0] == "build" and call[-1]]
        door.refuse = OutputExists("/models/x.gguf exists already", "choose another")
        await pilot.press("b")
        await data.wait(pilot, lambda: "replace the file?" in data.shown(checkpoint))
        await pilot.press("enter")
        await data.wait(pilot, lambda: [call for call in door.calls if call[0] == "build" and call[-1]])


async def test_the_best_scheme_is_chosen_or_measured_first(checkpoint: Any, door: Any, data: Any) -> None:
    async with checkpoint.run_test(size=(80, 24)) as pilot:
        await pilot.press("2")
        await data.wait(pilot, lambda: "KLD 0.041 ±0.002" in data.shown(checkpoint))
        door.refuse = NotMeasured("nothing was measured yet", "phitui build ... --measure")
        await pilot.press("m")
        await data.wait(pilot, lambda: "largest file" in data.shown(checkpoint))
        await pilot.press("backspace", "5", "enter")
        await data.wait(pilot, lambda: "measure first?" in data.shown(checkpoint))
        await pilot.press("enter")
        path = str(data.checkpoint.path)
        await data.wait(pilot, lambda: ("best", path, "0.05", True) in door.calls)
        assert ("best", path, "0.05", False) in door.calls


async def test_new_figures_show_by_themselves(checkpoint: Any, door: Any, data: Any) -> None:
    door.found_jobs = [data.job("e5", "running", kind="eval")]
    async with checkpoint.run_test(size=(80, 24)) as pilot:
        await pilot.press("2")
        await data.wait(pilot, lambda: "KLD 0.041 ±0.002" in data.shown(checkpoint))
        before = len([call for call in door.calls if call[0] == "schemes"])
        door.found_jobs = [data.job("e5", "done", kind="eval")]
        checkpoint.read_jobs()
        await data.wait(pilot, lambda: len([call for call in door.calls if call[0] == "schemes"]) == before + 1)
        assert checkpoint.screen.query_one(Table).current == "Q4_K_M"


async def test_build_without_a_model_says_what_to_do(app: Any, data: Any) -> None:
    async with app.run_test() as pilot:
        await pilot.press("2")
        await data.wait(pilot, lambda: "under 1 Models" in data.shown(app))


# jobs -----------------------------------------------------------------------------------------------------------------
async def test_jobs_of_any_phitui_are_listed_and_cancelled(app: Any, door: Any, data: Any) -> None:
    async with app.run_test(size=(120, 40)) as pilot:
        await pilot.press("6")
        await data.wait(pilot, lambda: "blk.8.ffn_up.weight" in data.shown(app))
        text = data.shown(app)
        assert "● running" in text and "✓ done" in text and "✗ failed" in text
        await pilot.press("x")
        await data.wait(pilot, lambda: ("cancel", "a1") in door.calls)


async def test_a_failed_job_says_why_and_resumes(app: Any, door: Any, data: Any) -> None:
    async with app.run_test(size=(120, 40)) as pilot:
        await pilot.press("6")
        await data.wait(pilot, lambda: "✗ failed" in data.shown(app))
        await pilot.press("end")
        await data.wait(pilot, lambda: "the disk is full" in data.shown(app))
        await pilot.press("r")
        await data.wait(pilot, lambda: ("resume", "c3") in door.calls)
        await pilot.press("d")
        await data.wait(pilot, lambda: "remove this job?" in data.shown(app))
        await pilot.press("enter")
        await data.wait(pilot, lambda: ("remove", "c3") in door.calls)


async def test_a_second_app_shows_the_same_jobs(app: Any, door: Any, data: Any) -> None:
    """Reattaching is reading the journal: nothing else has to be known."""
    other = type(app)(door.context, door)
    for one in (app, other):
        async with one.run_test() as pilot:
            await pilot.press("6")
            await data.wait(pilot, lambda one=one: "● running" in data.shown(one))


async def test_keys_that_do_not_fit_the_job_do_nothing(app: Any, door: Any, data: Any) -> None:
    door.found_jobs = []
    async with app.run_test() as pilot:
        await pilot.press("6")
        await data.wait(pilot, lambda: "No jobs yet" in data.shown(app))
        await pilot.press("x", "r", "t", "d", "l", "enter")
        assert app.is_running


# export ---------------------------------------------------------------------------------------------------------------
async def test_the_form_shapes_the_preview_and_the_export(held: Any, door: Any, data: Any) -> None:
    async with held.run_test(size=(120, 40)) as pilot:
        await pilot.press("5")
        await data.wait(pilot, lambda: "FROM /models" in data.shown(held))
        await pilot.press("tab", *"phi")
        await data.wait(pilot, lambda: "PARAMETER name phi" in data.shown(held))
        await pilot.press("down", *"8192", "down", "right", "down", "right")
        await data.wait(pilot, lambda: "PARAMETER format phi-3" in data.shown(held))
        assert "PARAMETER quiet True" in data.shown(held)
        await pilot.press("escape", "y")
        await data.wait(pilot, lambda: "--num-ctx 8192" in held.clipboard)
        assert "--quiet" in held.clipboard
        await pilot.press("w")
        await data.wait(pilot, lambda: "✓ written" in data.shown(held))
        call = next(call for call in door.calls if call[0] == "export")
        assert call[4] == {"name": "phi", "num_ctx": "8192", "quiet": True, "format": "phi-3"}
        await pilot.press("y")
        await data.wait(pilot, lambda: held.clipboard == "ollama create phi -f Modelfile")


async def test_an_option_that_is_refused_is_said_in_place(held: Any, door: Any, data: Any) -> None:
    async with held.run_test(size=(120, 40)) as pilot:
        await pilot.press("5")
        await data.wait(pilot, lambda: "FROM /models" in data.shown(held))
        door.refuse = UsageError("--num-ctx is a int, not 'x'", "a number")
        await pilot.press("tab", "down", "x")
        await data.wait(pilot, lambda: "--num-ctx is a int" in data.shown(held))
        await pilot.press("backspace", "9")
        await data.wait(pilot, lambda: "PARAMETER num_ctx 9" in data.shown(held))


async def test_existing_files_are_replaced_only_after_a_question(held: Any, door: Any, data: Any) -> None:
    async with held.run_test(size=(120, 40)) as pilot:
        await pilot.press("5")
        await data.wait(pilot, lambda: "FROM /models" in data.shown(held))
        door.refuse = OutputExists("/exports/Modelfile is there already", "--overwrite")
        await pilot.press("w")
        await data.wait(pilot, lambda: "replace the files?" in data.shown(held))
        await pilot.press("enter")
        await data.wait(pilot, lambda: any(call[0] == "export" and call[-1] for call in door.calls))


async def test_the_directory_can_be_chosen(held: Any, door: Any, data: Any, tmp_path: Path) -> None:
    async with held.run_test(size=(120, 40)) as pilot:
        await pilot.press("5")
        await data.wait(pilot, lambda: "FROM /models" in data.shown(held))
        await pilot.press("o", "ctrl+u", *str(tmp_path / "out"), "enter")
        await data.wait(
            pilot, lambda: any(call[0] == "preview" and call[3] == str(tmp_path / "out") for call in door.calls)
        )


async def test_advanced_options_are_folded(held: Any, data: Any) -> None:
    async with held.run_test(size=(120, 40)) as pilot:
        await pilot.press("5")
        await data.wait(pilot, lambda: "num ctx" in data.shown(held))
        assert " stop " not in data.shown(held)
        await pilot.press("a")
        await data.wait(pilot, lambda: " stop " in data.shown(held))


# machine --------------------------------------------------------------------------------------------------------------
async def test_machine_shows_problems_with_their_fix_and_broken_plugins(app: Any, data: Any) -> None:
    async with app.run_test(size=(120, 60)) as pilot:
        await pilot.press("7")
        await data.wait(pilot, lambda: "RTX 4070, 12.0 GiB" in data.shown(app))
        text = data.shown(app)
        assert "pip install llama-cpp-python" in text
        assert "needs first: CUDA 12's libraries" in text
        assert "· vulkaninfo gave no answer" in text
        assert "reads 41.5 GB/s (measured)" in text
        assert "not compiled in, hardware is here" in text
        assert "SyntaxError: bad" in text
        assert "Traceback" not in text
        await pilot.press("d")
        await data.wait(pilot, lambda: "Traceback: here" in data.shown(app))
        await pilot.press("y")
        await data.wait(pilot, lambda: app.clipboard.startswith("pip install llama-cpp-python"))


async def test_machine_mends_what_it_found_after_a_question(app: Any, door: Any, data: Any) -> None:
    async with app.run_test(size=(80, 24), notifications=True) as pilot:
        await pilot.press("7")
        await data.wait(pilot, lambda: "RTX 4070" in data.shown(app))
        await pilot.press("y")
        await data.wait(pilot, lambda: app.clipboard == door.findings[0]["do"])
        await pilot.press("f")
        await data.wait(pilot, lambda: "run it as a job" in data.shown(app))
        assert "(a wheel)" in data.shown(app)
        await pilot.press("escape")
        await pilot.press("f")
        await data.wait(pilot, lambda: "run it as a job" in data.shown(app))
        assert not any(call[0] == "start_remedy" for call in door.calls)
        await pilot.press("enter")
        await data.wait(pilot, lambda: ("start_remedy", door.found_remedy) in door.calls)
        await data.wait(pilot, lambda: "install llama-cpp-python for CUDA" in data.shown(app))


async def test_machine_says_what_cannot_be_mended_here(app: Any, door: Any, data: Any) -> None:
    async with app.run_test(size=(80, 24), notifications=True) as pilot:
        await pilot.press("7")
        await data.wait(pilot, lambda: "RTX 4070" in data.shown(app))
        door.refuse = Unavailable("CUDA needs first: a compiler", "install that, then: pip install ...")
        await pilot.press("f")
        await data.wait(pilot, lambda: "CUDA needs first: a compiler" in data.shown(app))
        await pilot.press("escape")
        door.found_remedy = None
        await pilot.press("f")
        await data.wait(pilot, lambda: "nothing to install" in data.shown(app))


async def test_machine_measures_the_memory(app: Any, door: Any, data: Any) -> None:
    async with app.run_test(size=(80, 24)) as pilot:
        await pilot.press("7")
        await data.wait(pilot, lambda: "RTX 4070" in data.shown(app))
        await pilot.press("b")
        await data.wait(pilot, lambda: ("bandwidth",) in door.calls and "RTX 4070" in data.shown(app))
        assert any("CUDA0 could not be measured" in note.message for note in app._notifications)
        await pilot.press("r")
        await data.wait(pilot, lambda: ("doctor", True) in door.calls and "RTX 4070" in data.shown(app))


async def test_the_usual_scheme_is_in_sight_in_a_long_list(checkpoint: Any, door: Any, data: Any) -> None:
    few = door.schemes("x")
    many = [dataclasses.replace(few[0], scheme=dataclasses.replace(few[0].scheme, name=f"S{n}")) for n in range(14)]
    door.schemes = lambda source: [*many, *few]
    async with checkpoint.run_test(size=(80, 24)) as pilot:
        await pilot.press("2")
        await data.wait(pilot, lambda: "› Q4_K_M" in data.shown(checkpoint))
