"""Plan: sliders, what fits, why, and that chat gets what is set here."""

from __future__ import annotations

from typing import Any

from phitui.tui.widgets.dial import AutoDial, Dial


async def test_plan_follows_the_keys_and_then_asks_the_engine(held: Any, door: Any, data: Any) -> None:
    async with held.run_test(size=(100, 30)) as pilot:
        await pilot.press("3")
        await data.wait(pilot, lambda: "automatic: 25 / 33" in data.shown(held))
        await data.wait(pilot, lambda: "compute measured" in data.shown(held))
        await pilot.press("end")
        await data.wait(pilot, lambda: "33 / 33" in data.shown(held))
        assert held.settings["layers"] == 33
        await pilot.press("down", "right")
        await data.wait(pilot, lambda: "long factors" in data.shown(held))
        await data.wait(
            pilot, lambda: any(call[0] == "plan" and call[2].get("layers") == 33 and call[3] for call in door.calls)
        )
        await pilot.press("f")
        await data.wait(pilot, lambda: "automatic" in data.shown(held))
        await pilot.press("y")
        await data.wait(pilot, lambda: held.clipboard.startswith(f"phitui plan {data.gguf.path}"))


async def test_holding_a_key_asks_the_engine_once(held: Any, door: Any, data: Any) -> None:
    async with held.run_test(size=(100, 30)) as pilot:
        await pilot.press("3")
        await data.wait(pilot, lambda: "compute measured" in data.shown(held))
        door.calls.clear()
        await pilot.press(*["left"] * 20)
        await data.wait(pilot, lambda: "5 / 33" in data.shown(held))
        await data.wait(pilot, lambda: "compute measured" in data.shown(held))
        assert len([call for call in door.calls if call[0] == "plan" and call[3]]) <= 2


async def test_a_plan_that_does_not_fit_is_marked(held: Any, data: Any) -> None:
    async with held.run_test(size=(100, 30)) as pilot:
        await pilot.press("3")
        await data.wait(pilot, lambda: "✓ fits" in data.shown(held))
        await pilot.press("end", "down", "end")
        await data.wait(pilot, lambda: "✗ does not fit" in data.shown(held))
        assert "CUDA0 is short of memory" in data.shown(held)


async def test_plan_of_a_checkpoint_says_what_to_do(checkpoint: Any, data: Any) -> None:
    async with checkpoint.run_test() as pilot:
        await pilot.press("3")
        await data.wait(pilot, lambda: "make one of this checkpoint under 2 Build" in data.shown(checkpoint))


async def planned(pilot: Any, data: Any) -> None:
    await pilot.press("3")
    await data.wait(pilot, lambda: "65536" in data.shown(pilot.app))


async def test_a_slow_first_answer_still_sets_the_sliders(held: Any, door: Any, data: Any) -> None:
    door.plan_seconds = 0.5  # longer than the pause before the engine is asked
    async with held.run_test(size=(100, 30)) as pilot:
        await planned(pilot, data)
        assert len(held.screen.query_one("#layers", Dial).stops) == 35


async def test_a_step_from_automatic_starts_where_that_came_to(held: Any, data: Any) -> None:
    async with held.run_test(size=(100, 30)) as pilot:
        await planned(pilot, data)
        await pilot.press("right")
        await data.wait(pilot, lambda: "26 / 33" in data.shown(held))
        await pilot.press("backspace", "left")
        await data.wait(pilot, lambda: "24 / 33" in data.shown(held))
        await pilot.press("f")
        await data.wait(pilot, lambda: "automatic: 25 / 33" in data.shown(held))
        assert "layers" not in held.settings


async def test_most_context_and_the_two_sides_of_longrope(held: Any, data: Any) -> None:
    async with held.run_test(size=(100, 30)) as pilot:
        await planned(pilot, data)
        assert "short factors" in data.shown(held)
        await pilot.press("F")
        await data.wait(pilot, lambda: "20480  long factors" in data.shown(held))
        assert held.settings["context"] == 20480
        await pilot.press("s")
        await data.wait(pilot, lambda: "4096  short factors" in data.shown(held))
        await pilot.press("s")
        await data.wait(pilot, lambda: "20480  long factors" in data.shown(held))


async def test_speed_and_tradeoffs_are_shown(held: Any, data: Any) -> None:
    async with held.run_test(size=(100, 40)) as pilot:
        await planned(pilot, data)
        await data.wait(pilot, lambda: "33/33 layers" in data.shown(held))
        text = data.shown(held)
        assert "31.0 tokens/s (12 min ago)" in text
        assert "most context " in text and "65536" in text


async def test_why_explains_every_number(held: Any, data: Any) -> None:
    async with held.run_test(size=(120, 40)) as pilot:
        await planned(pilot, data)
        await pilot.press("w")
        await data.wait(pilot, lambda: "why these numbers" in data.shown(held))
        text = data.shown(held)
        for words in ("layers  25 of 33", "context  4096 tokens", "KV cache  exact", "compute  measured", "CUDA0  "):
            assert words in text
        await pilot.press("escape")
        await data.wait(pilot, lambda: "why these numbers" not in data.shown(held))


async def test_experts_have_a_slider_only_where_there_are_experts(held: Any, door: Any, data: Any) -> None:
    door.expert_layers = 32
    async with held.run_test(size=(100, 30)) as pilot:
        await planned(pilot, data)
        assert "automatic: 32 / 32 layers in RAM" in data.shown(held)
        held.screen.query_one("#n_cpu_moe", AutoDial).focus()
        await pilot.press("left")
        await data.wait(pilot, lambda: "31 / 32 layers in RAM" in data.shown(held))
        assert held.settings["n_cpu_moe"] == 31
        await pilot.press("y")
        await data.wait(pilot, lambda: "--n-cpu-moe 31" in held.clipboard)


async def test_a_dense_model_has_no_slider_for_experts(held: Any, data: Any) -> None:
    async with held.run_test(size=(100, 30)) as pilot:
        await planned(pilot, data)
        assert "experts" not in data.shown(held) and "split" not in data.shown(held)


async def test_all_options_are_a_form_and_reach_the_plan(held: Any, door: Any, data: Any) -> None:
    async with held.run_test(size=(80, 24)) as pilot:
        await planned(pilot, data)
        await pilot.press("a")
        await data.wait(pilot, lambda: "how to load it" in data.shown(held))
        held.screen.query_one("#option-ubatch").value = "99999999999999999999x"
        await pilot.press("enter")
        await data.wait(pilot, lambda: "--ubatch is a int" in data.shown(held))
        held.screen.query_one("#option-ubatch").value = "256"
        await pilot.press("enter")
        await data.wait(pilot, lambda: held.settings.get("ubatch") == 256)
        await data.wait(pilot, lambda: any(call[0] == "plan" and call[2].get("ubatch") == 256 for call in door.calls))
        await pilot.press("y")
        await data.wait(pilot, lambda: "--ubatch 256" in held.clipboard)
        await pilot.press("a")
        await data.wait(pilot, lambda: "how to load it" in data.shown(held))
        assert held.screen.query_one("#option-ubatch").value == "256"
        await pilot.press("escape")


async def test_exports_take_over_what_was_planned(held: Any, door: Any, data: Any) -> None:
    async with held.run_test(size=(120, 40)) as pilot:
        await pilot.press("5")
        await data.wait(pilot, lambda: "FROM /models" in data.shown(held))
        assert "num_ctx" not in data.shown(held).split("FROM")[1]
        await planned(pilot, data)
        await pilot.press("5")
        await data.wait(pilot, lambda: "PARAMETER num_ctx 4096" in data.shown(held))
        await pilot.press("3", "down", "right")
        await data.wait(pilot, lambda: held.planned is not None and held.planned.context > 4096)
        await pilot.press("5")
        await data.wait(pilot, lambda: f"PARAMETER num_ctx {held.planned.context}" in data.shown(held))


async def test_a_form_filled_in_from_the_plan_did_not_change(held: Any, door: Any, data: Any) -> None:
    async with held.run_test(size=(120, 40)) as pilot:
        await planned(pilot, data)
        await pilot.press("5")
        await data.wait(pilot, lambda: "PARAMETER num_ctx 4096" in data.shown(held))
        await pilot.pause(0.6)
        assert len([call for call in door.calls if call[0] == "preview"]) == 1
