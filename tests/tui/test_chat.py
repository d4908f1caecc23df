"""Chat: streaming, stopping, many turns, an engine that dies."""

from __future__ import annotations

from typing import Any

from textual.widgets import Markdown

from phitui.domain.chat import Sampling
from phitui.errors import ContextFull, DoesNotFit, InvalidFile
from phitui.tui.widgets.transcript import Answer, Question


async def ask(pilot: Any, text: str) -> None:
    await pilot.press(*["space" if c == " " else "question_mark" if c == "?" else c for c in text], "enter")


async def chatting(pilot: Any, data: Any) -> None:
    await pilot.press("4")
    await data.wait(pilot, lambda: pilot.app.screen.NAME == "chat" and pilot.app.screen.query("Composer"))
    await pilot.pause()


async def test_an_answer_streams_as_markdown_with_its_figures(held: Any, door: Any, data: Any) -> None:
    async with held.run_test(size=(100, 30)) as pilot:
        await chatting(pilot, data)
        await ask(pilot, "capital?")
        await data.wait(pilot, lambda: "24.0 tokens/s" in data.shown(held))
        text = data.shown(held)
        assert "The capital of France is Paris." in text
        assert "**" not in text
        assert "• one" in text
        assert "context 60/4096" in text
        assert ("open_chat", str(data.gguf.path), {}) in door.calls


async def test_many_turns_load_once_and_keep_the_conversation(held: Any, door: Any, data: Any) -> None:
    async with held.run_test(size=(100, 30)) as pilot:
        await chatting(pilot, data)
        for number in (1, 2, 3):
            await ask(pilot, f"q{number}")
            await data.wait(pilot, lambda number=number: len(door.chat.messages) == 2 * number)
            await data.wait(pilot, lambda: not held.screen.talk.busy)
        assert door.chat.asked == ["q1", "q2", "q3"]
        assert len([call for call in door.calls if call[0] == "open_chat"]) == 1
        assert len(held.screen.query(Question)) == len(held.screen.query(Answer)) == 3
        await pilot.press("ctrl+n")
        await data.wait(pilot, lambda: not held.screen.query(Question))
        assert door.chat.messages == []


async def test_escape_stops_the_answer_at_once(held: Any, door: Any, data: Any) -> None:
    door.chat = data.chat([f"word{n} " for n in range(2000)], slow=True)
    async with held.run_test(size=(100, 30)) as pilot:
        await chatting(pilot, data)
        await ask(pilot, "go")
        await data.wait(pilot, lambda: "word3" in data.shown(held))
        await pilot.press("escape")
        await data.wait(pilot, lambda: "stopped" in data.shown(held))
        assert not held.screen.talk.busy
        assert "word3" in data.shown(held)


async def test_a_dead_engine_is_explained_and_r_starts_it_again(held: Any, door: Any, data: Any) -> None:
    async with held.run_test(size=(100, 30)) as pilot:
        await chatting(pilot, data)
        await ask(pilot, "first")
        await data.wait(pilot, lambda: len(door.chat.messages) == 2)
        door.chat.script = ["half an ans", data.engine_error()]
        await ask(pilot, "second")
        await data.wait(pilot, lambda: "the engine died (signal 9)" in data.shown(held))
        text = data.shown(held)
        assert "half an ans" in text
        assert "last line" in text
        assert "phitui doctor" in text
        assert "Traceback" not in text
        assert "r restart" in text.splitlines()[-1]
        door.chat.script = ["whole again"]
        await pilot.press("r")
        await data.wait(pilot, lambda: "whole again" in data.shown(held))
        await data.wait(pilot, lambda: len(door.chat.messages) == 4)
        assert door.chat.restarted == 1
        assert door.chat.asked == ["first", "second", "second"]
        assert "the engine died" not in data.shown(held)


async def test_w_goes_on_without_the_worker_that_took_the_engine_with_it(held: Any, door: Any, data: Any) -> None:
    async with held.run_test(size=(100, 30)) as pilot:
        await chatting(pilot, data)
        await ask(pilot, "first")
        await data.wait(pilot, lambda: len(door.chat.messages) == 2)
        assert "without the worker" not in data.shown(held)
        door.chat.script, door.chat.lost = ["half", data.engine_error()], ("box:50052",)
        await ask(pilot, "second")
        await data.wait(pilot, lambda: "w does so without box:50052" in data.shown(held))
        door.chat.script = ["whole again"]
        await pilot.press("w")
        await data.wait(pilot, lambda: "whole again" in data.shown(held))
        assert door.chat.without == ("box:50052",)
        door.chat.lost = ()
        door.chat.script = [data.engine_error()]
        await ask(pilot, "third")
        await data.wait(pilot, lambda: "the engine died (signal 9)" in data.shown(held))
        await pilot.press("w")  # not a key now
        door.chat.script = ["once more"]
        await pilot.press("r")
        await data.wait(pilot, lambda: "once more" in data.shown(held))
        assert door.chat.without == ()
        assert door.chat.restarted == 2


async def test_workers_that_are_left_out_are_named(held: Any, door: Any, data: Any) -> None:
    from types import SimpleNamespace

    async with held.run_test(size=(100, 30)) as pilot:
        await chatting(pilot, data)
        door.chat.plan = SimpleNamespace(left_out=("planned without the RPC worker box:50052",))
        await ask(pilot, "first")
        await data.wait(pilot, lambda: len(door.chat.messages) == 2)
        await data.wait(pilot, lambda: any("box:50052" in note.message for note in held._notifications))


async def test_a_model_that_does_not_fit_is_said_with_the_way_out(held: Any, door: Any, data: Any) -> None:
    async with held.run_test(size=(100, 30)) as pilot:
        await chatting(pilot, data)
        door.refuse = DoesNotFit("it needs 9 GiB of 4 GiB", "take fewer layers under 3 Plan")
        await ask(pilot, "hello")
        await data.wait(pilot, lambda: "take fewer layers" in data.shown(held))
        await pilot.press("r")
        await data.wait(pilot, lambda: "Paris" in data.shown(held))


async def test_a_model_that_does_not_fit_can_be_loaded_all_the_same(held: Any, door: Any, data: Any) -> None:
    async with held.run_test(size=(100, 30)) as pilot:
        await chatting(pilot, data)
        door.refuse = DoesNotFit("it needs 9 GiB of 4 GiB", "take fewer layers under 3 Plan")
        await ask(pilot, "hello")
        await data.wait(pilot, lambda: "L loads it all the same" in data.shown(held))
        await pilot.press("L")
        await data.wait(pilot, lambda: "Paris" in data.shown(held))
        assert ("open_chat", str(data.gguf.path), {"force": True}) in door.calls


async def test_a_full_context_is_a_choice(held: Any, door: Any, data: Any) -> None:
    door.chat = data.chat(["x"])
    async with held.run_test(size=(100, 30)) as pilot:
        await chatting(pilot, data)
        await said(pilot, door, data, "one", "two")
        door.chat.script = [ContextFull("the conversation has 5000 tokens; the context holds 4096", "begin anew")]
        await said(pilot, door, data, "three")
        await data.wait(pilot, lambda: "the context is full" in data.shown(held))
        assert "r restart" not in data.shown(held).splitlines()[-1]
        door.chat.script, door.chat.alive = ["there is room"], True
        await pilot.press("d")
        await data.wait(pilot, lambda: "1 oldest left out" in data.shown(held))
        assert [message.content for message in door.chat.messages] == ["two", "x", "three", "there is room"]
        assert door.chat.restarted == 0
        assert kept(door) == [["one", "x", "two", "x", "three", "there is room"]]
        await pilot.press("i", "ctrl+e", "ctrl+e")
        await said(pilot, door, data, "!")
        assert [message.content for message in door.chat.messages] == ["two!", "there is room"]


async def test_system_prompt_and_sampling_are_set_kept_and_restored(held: Any, door: Any, data: Any) -> None:
    door.chat = data.chat(["x"])
    async with held.run_test(size=(100, 40)) as pilot:
        await chatting(pilot, data)
        await pilot.press("ctrl+s")
        await data.wait(pilot, lambda: "from the next question on" in data.shown(held))
        await pilot.press(*"brief", "down", "2", ".", "x", "enter")
        await data.wait(pilot, lambda: "--temp is a float, not" in data.shown(held))
        await pilot.press("backspace", "5", "enter")
        await data.wait(pilot, lambda: "--temp 2.5 --system brief" in data.shown(held))
        await said(pilot, door, data, "one")
        assert (door.chat.sampling, door.chat.system) == (Sampling(temperature=2.5), "brief")
        assert door.saved_chats("")[0].settings == {"temperature": 2.5, "system": "brief"}
        await pilot.press("escape", "y")
        await data.wait(pilot, lambda: "--temp 2.5 --system brief -p one" in held.clipboard)
        held.screen.talk.manner = {}
        await pilot.press("ctrl+o")
        await data.wait(pilot, lambda: "last used" in data.shown(held))
        await pilot.press("enter")
        await data.wait(pilot, lambda: held.screen.talk.manner == {"temperature": 2.5, "system": "brief"})


async def test_whatever_an_engine_raises_leaves_the_app_running(held: Any, door: Any, data: Any) -> None:
    door.chat = data.chat([ValueError("surprise")])
    async with held.run_test(size=(120, 30)) as pilot:
        await chatting(pilot, data)
        await ask(pilot, "hello")
        await data.wait(pilot, lambda: "unexpected error: ValueError: surprise" in data.shown(held))
        assert list((door.context.paths.state / "crashes").iterdir())


async def test_model_output_is_neither_markup_nor_terminal_commands(held: Any, door: Any, data: Any) -> None:
    door.chat = data.chat(["\x1b[2J\x1b]52;c;AAAA\x07 [bold]x[/] <b>tag</b> <think> [l](https://e.org) é 漢 👍🏽 سلام"])
    async with held.run_test(size=(100, 30)) as pilot:
        await chatting(pilot, data)
        await ask(pilot, "hi")
        await data.wait(pilot, lambda: "24.0 tokens/s" in data.shown(held))
        text = data.shown(held)
        assert "\x1b" not in text
        assert "[bold]x[/]" in text
        assert "<b>tag</b> <think>" in text
        assert "漢" in text
        assert not held.screen.query_one(Answer)._open_links


async def test_the_conversation_goes_on_with_another_model(held: Any, door: Any, data: Any) -> None:
    from phitui.tui.state import Hand

    async with held.run_test(size=(100, 30)) as pilot:
        await chatting(pilot, data)
        await ask(pilot, "one")
        await data.wait(pilot, lambda: len(door.chat.messages) == 2)
        await data.wait(pilot, lambda: not held.screen.talk.busy)
        first, door.chat = door.chat, data.chat(["other"])
        held.take(Hand("/models/other.gguf", "other.gguf", "gguf"))
        await pilot.pause()
        await ask(pilot, "two")
        await data.wait(pilot, lambda: len(door.chat.messages) == 4)
        assert first.closed
        assert door.chat.messages[0].content == "one"


async def test_plan_settings_are_what_is_loaded(held: Any, door: Any, data: Any) -> None:
    async with held.run_test(size=(100, 30)) as pilot:
        held.settings = {"layers": 7, "context": 8192}
        await chatting(pilot, data)
        await ask(pilot, "x")
        await data.wait(pilot, lambda: any(call[0] == "open_chat" for call in door.calls))
        assert ("open_chat", str(data.gguf.path), {"layers": 7, "context": 8192}) in door.calls
        await data.wait(pilot, lambda: not held.screen.talk.busy)
        await pilot.press("escape", "y")
        await data.wait(pilot, lambda: "--ctx 8192" in held.clipboard)
        await pilot.press("Y")
        await data.wait(pilot, lambda: "Paris" in held.clipboard)


async def test_no_model_and_a_checkpoint_say_what_to_do(app: Any, data: Any) -> None:
    from phitui.tui.state import Hand

    async with app.run_test() as pilot:
        await pilot.press("4")
        await data.wait(pilot, lambda: "Pick a GGUF under 1 Models" in data.shown(app))
        app.take(Hand.of(data.checkpoint))
        await data.wait(pilot, lambda: "make one under 2 Build" in data.shown(app))


async def test_a_long_answer_is_followed_unless_the_person_scrolls(held: Any, door: Any, data: Any) -> None:
    door.chat = data.chat([f"line {n}\n\n" for n in range(60)])
    async with held.run_test(size=(80, 24)) as pilot:
        await chatting(pilot, data)
        await ask(pilot, "long")
        await data.wait(pilot, lambda: "line 59" in data.shown(held))
        await pilot.press("escape", "home")
        await data.wait(pilot, lambda: "long" in data.shown(held))
        await ask_again(pilot, held, data)


async def ask_again(pilot: Any, held: Any, data: Any) -> None:
    """A new question brings the end into sight again."""
    await pilot.press("enter")
    await ask(pilot, "more")
    await data.wait(pilot, lambda: len(held.screen.query(Markdown)) == 2)
    await data.wait(pilot, lambda: data.shown(held).count("line 59") == 1 and "line 0" not in data.shown(held))


async def test_a_big_paste_stays_in_the_message_line(held: Any, data: Any) -> None:
    from textual import events

    async with held.run_test(size=(80, 24)) as pilot:
        await chatting(pilot, data)
        held.screen.query_one("Composer").post_message(events.Paste("زیبا İstanbul 漢字 👍\n" * 10_000))
        await data.wait(pilot, lambda: held.screen.query_one("Composer").document.line_count > 10_000)
        assert held.screen.query_one("Composer").size.height <= 6


async def test_a_thought_is_folded_to_one_line_and_unfolds(held: Any, door: Any, data: Any) -> None:
    door.chat = data.chat(["<thi", "nk>\nFrance. Its capital", " is known.\n</thi", "nk>\n\n**Paris**."])
    async with held.run_test(size=(80, 24)) as pilot:
        await chatting(pilot, data)
        await ask(pilot, "capital?")
        await data.wait(pilot, lambda: "thought for" in data.shown(held) and "tokens/s" in data.shown(held))
        assert "Paris." in data.shown(held)
        assert "Its capital" not in data.shown(held) and "think>" not in data.shown(held)
        await pilot.press("ctrl+t")
        await data.wait(pilot, lambda: "France. Its capital is known." in data.shown(held))
        await pilot.press("ctrl+t")
        await data.wait(pilot, lambda: "Its capital" not in data.shown(held))
        await pilot.press("escape", "Y")
        await data.wait(pilot, lambda: held.clipboard == "**Paris**.")


async def test_an_answer_stopped_while_it_thinks_shows_the_thought(held: Any, door: Any, data: Any) -> None:
    door.chat = data.chat(["<think>hm ", *[f"word{n} " for n in range(2000)]], slow=True)
    async with held.run_test(size=(80, 24)) as pilot:
        await chatting(pilot, data)
        await ask(pilot, "go")
        await data.wait(pilot, lambda: "thinking …" in data.shown(held) and "word3" in data.shown(held))
        await pilot.press("escape")
        await data.wait(pilot, lambda: "thought for" in data.shown(held))


async def said(pilot: Any, door: Any, data: Any, *questions: str) -> None:
    """Ask these, one after the other."""
    for question in questions:
        before = len(door.chat.asked)
        await ask(pilot, question)
        await data.wait(pilot, lambda before=before: len(door.chat.asked) > before and not pilot.app.screen.talk.busy)
        await pilot.pause()


def kept(door: Any) -> list[list[str]]:
    """The texts of all saved conversations, the last used first."""
    return [[turn.content for turn in door.saved_chat(chat.id)[1]] for chat in door.saved_chats("")]


async def test_a_conversation_is_saved_found_and_continued(held: Any, door: Any, data: Any) -> None:
    door.chat = data.chat(["Paris"])
    async with held.run_test(size=(100, 30)) as pilot:
        await chatting(pilot, data)
        await said(pilot, door, data, "capital", "again")
        assert kept(door) == [["capital", "Paris", "again", "Paris"]]
        await pilot.press("ctrl+n")
        await data.wait(pilot, lambda: not held.screen.query(Question))
        await said(pilot, door, data, "other")
        assert kept(door) == [["other", "Paris"], ["capital", "Paris", "again", "Paris"]]
        await pilot.press("ctrl+o")
        await data.wait(pilot, lambda: "saved conversations" in data.shown(held) and "capital" in data.shown(held))
        await pilot.press(*"again")
        await data.wait(pilot, lambda: "other" not in data.shown(held))
        await pilot.press("enter")
        await data.wait(pilot, lambda: len(held.screen.query(Question)) == 2)
        assert [message.content for message in door.chat.messages] == ["capital", "Paris", "again", "Paris"]
        await said(pilot, door, data, "more")
        assert kept(door)[0] == ["capital", "Paris", "again", "Paris", "more", "Paris"]


async def test_an_earlier_question_is_edited_and_the_old_branch_stays(held: Any, door: Any, data: Any) -> None:
    door.chat = data.chat(["x"])
    async with held.run_test(size=(100, 30)) as pilot:
        await chatting(pilot, data)
        await said(pilot, door, data, "one", "two", "three")
        await pilot.press("ctrl+e", "ctrl+e")
        await data.wait(pilot, lambda: "question 2 again" in data.shown(held))
        await said(pilot, door, data, "!")
        assert door.chat.asked[-1] == "two!"
        assert [question.text for question in held.screen.query(Question)] == ["one", "two!"]
        assert kept(door) == [["one", "x", "two!", "x"]]
        assert door.saved_chats("")[0].turns == 8
        await pilot.press("ctrl+e", "escape")
        await data.wait(pilot, lambda: "again: enter" not in data.shown(held))
        assert held.screen.query_one("Composer").text == ""


async def test_another_answer_to_the_same_question(held: Any, door: Any, data: Any) -> None:
    door.chat = data.chat(["first try"])
    async with held.run_test(size=(100, 30)) as pilot:
        await chatting(pilot, data)
        await said(pilot, door, data, "one")
        door.chat.script = ["second try"]
        await pilot.press("ctrl+r")
        await data.wait(pilot, lambda: "second try" in data.shown(held) and not held.screen.talk.busy)
        assert "first try" not in data.shown(held)
        assert kept(door) == [["one", "second try"]] and door.saved_chats("first")[0].turns == 3


async def test_a_question_without_an_answer_is_not_counted(held: Any, door: Any, data: Any) -> None:
    door.chat = data.chat([data.engine_error()])
    async with held.run_test(size=(100, 30)) as pilot:
        await chatting(pilot, data)
        await said(pilot, door, data, "lost")
        door.chat.script = ["x"]
        await pilot.press("i")
        await said(pilot, door, data, "one", "two")
        await pilot.press("ctrl+e", "ctrl+e")
        await said(pilot, door, data, "!")
        assert door.chat.asked[-1] == "one!"
        assert kept(door)[0] == ["one!", "x"]


async def test_saved_conversations_are_renamed_exported_and_deleted(
    held: Any, door: Any, data: Any, tmp_path: Any
) -> None:
    async with held.run_test(size=(80, 24)) as pilot:
        await chatting(pilot, data)
        await said(pilot, door, data, "one")
        await pilot.press("ctrl+o")
        await data.wait(pilot, lambda: "last used" in data.shown(held))
        await pilot.press("ctrl+r")
        await data.wait(pilot, lambda: "new title" in data.shown(held))
        await pilot.press("end", *"2x", "enter")
        await data.wait(pilot, lambda: door.saved_chats("")[0].title == "one2x")
        await pilot.press("ctrl+x")
        await data.wait(pilot, lambda: "Write it to" in data.shown(held))
        held.screen.query_one("Input").value = str(tmp_path / "talk.md")
        await pilot.press("enter")
        await data.wait(pilot, (tmp_path / "talk.md").exists)
        assert "## You\n\none" in (tmp_path / "talk.md").read_text()
        await data.wait(pilot, lambda: held.screen.id is None and "saved conversations" in data.shown(held))
        await pilot.press("ctrl+d")
        await data.wait(pilot, lambda: "gone for good" in data.shown(held))
        await pilot.press("enter")
        await data.wait(pilot, lambda: not door.saved_chats(""))


async def test_a_broken_file_is_not_called_an_engine_that_stopped(held: Any, door: Any, data: Any) -> None:
    async with held.run_test(size=(80, 24)) as pilot:
        await chatting(pilot, data)
        door.refuse = InvalidFile("the file is cut", "download it again")
        await ask(pilot, "hello")
        await data.wait(pilot, lambda: "the file is cut" in data.shown(held))
        assert "no answer · r tries again" in data.shown(held)
        assert "engine stopped" not in data.shown(held) and "starts it again" not in data.shown(held)
