"""Saved conversations: recording, exporting, and the command line."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from phitui.__main__ import main
from phitui.actions import history
from phitui.actions.context import Context
from phitui.domain.chat import ChatStats, Chunk, TextChunk
from phitui.errors import EngineError, OutputExists, UsageError


def stats(reason: Any = "stop") -> ChatStats:
    return ChatStats(reason, 5, 5, 2, 0.1, 0.5, 4096, 7)


def answer(*texts: str, end: ChatStats | Exception | None = None) -> Iterator[Chunk]:
    yield from map(TextChunk, texts)
    if isinstance(end, Exception):
        raise end
    if end is not None:
        yield end


def said(context: Context, chat: str) -> list[tuple[str, str, bool]]:
    return [(turn.role, turn.content, turn.complete) for turn in history.get_chat(context, chat)[1]]


@pytest.fixture
def recorder(context: Context) -> history.Recorder:
    return history.Recorder(context, "/models/phi.gguf", {"system": "be short"})


def test_a_conversation_is_saved_and_goes_on_later(context: Context, recorder: history.Recorder) -> None:
    assert [type(chunk).__name__ for chunk in recorder.record("capital?", answer("Par", "is", end=stats()))] == [
        "TextChunk",
        "TextChunk",
        "ChatStats",
    ]
    later = history.Recorder(context, "/models/other.gguf", chat=recorder.chat)
    list(later.record("and Italy?", answer("Rome", end=stats())))
    assert said(context, recorder.chat) == [
        ("user", "capital?", True),
        ("assistant", "Paris", True),
        ("user", "and Italy?", True),
        ("assistant", "Rome", True),
    ]
    found, turns = history.get_chat(context, recorder.chat)
    assert (found.title, found.settings["system"]) == ("capital?", "be short")
    assert (turns[1].model, turns[3].model) == ("/models/phi.gguf", "/models/other.gguf")
    assert turns[1].stats["completion_tokens"] == 2
    assert [message.content for message in history.messages_of(turns)][-1] == "Rome"


def test_what_came_before_a_crash_or_a_stop_stays(context: Context, recorder: history.Recorder) -> None:
    with pytest.raises(EngineError):
        list(recorder.record("one", answer("half an", end=EngineError("it died"))))
    assert said(context, recorder.chat)[-1] == ("assistant", "half an", False)
    list(recorder.record("two", answer("stopped he", end=stats("cancelled"))))
    assert said(context, recorder.chat)[-1] == ("assistant", "stopped he", False)
    left = recorder.record("three", answer("a", "b", end=stats()))
    next(left)
    left.close()  # type: ignore[attr-defined]
    assert said(context, recorder.chat)[-1] == ("assistant", "a", False)


def test_a_question_without_an_answer_is_taken_back(context: Context, recorder: history.Recorder) -> None:
    list(recorder.record("one", answer("1", end=stats())))
    with pytest.raises(EngineError):
        list(recorder.record("two", answer(end=EngineError("it died at once"))))
    assert [content for _, content, _ in said(context, recorder.chat)] == ["one", "1"]
    list(recorder.record("two", answer("2", end=stats())))
    assert [content for _, content, _ in said(context, recorder.chat)] == ["one", "1", "two", "2"]


def test_another_answer_becomes_a_branch(context: Context, recorder: history.Recorder) -> None:
    list(recorder.record("one", answer("1", end=stats())))
    list(recorder.record("two", answer("2", end=stats())))
    recorder.rewind(1)
    list(recorder.record("zwei", answer("II", end=stats())))
    assert [content for _, content, _ in said(context, recorder.chat)] == ["one", "1", "zwei", "II"]
    assert history.list_chats(context)[0].turns == 6


def test_the_same_question_again_is_one_turn_with_two_answers(context: Context, recorder: history.Recorder) -> None:
    list(recorder.record("one", answer("1", end=stats())))
    recorder.rewind(0)
    list(recorder.record("one", answer("eins", end=stats())))
    assert [content for _, content, _ in said(context, recorder.chat)] == ["one", "eins"]
    assert history.list_chats(context)[0].turns == 3
    recorder.rewind(0)
    with pytest.raises(EngineError):
        list(recorder.record("one", answer(end=EngineError("it died at once"))))
    assert history.list_chats(context)[0].turns == 3


def test_answers_of_several_threads(context: Context, recorder: history.Recorder) -> None:
    for number in range(3):
        worker = threading.Thread(target=lambda n=number: list(recorder.record(f"q{n}", answer(f"a{n}", end=stats()))))
        worker.start()
        worker.join()
    assert recorder.trouble == ""
    assert [content for _, content, _ in said(context, recorder.chat)] == ["q0", "a0", "q1", "a1", "q2", "a2"]


def test_a_store_that_fails_never_stops_a_conversation(context: Context, recorder: history.Recorder) -> None:
    (context.paths.data / "chats.db").mkdir(parents=True)
    assert len(list(recorder.record("one", answer("1", end=stats())))) == 2
    assert "not saved" in recorder.trouble
    assert len(list(recorder.record("two", answer("2", end=stats())))) == 2


@pytest.mark.parametrize(
    ("question", "title"),
    [
        ("  \n\n capital  of\tFrance? \n more", "capital of France?"),
        ("word " * 30, "word word word word word word word word word word word word …"),
        ("x" * 80, "x" * 60 + " …"),
        ("", "conversation"),
    ],
)
def test_titles(question: str, title: str) -> None:
    assert history.title_of(question) == title


def test_markdown_and_json(context: Context, recorder: history.Recorder, tmp_path: Path) -> None:
    list(recorder.record("why?", answer("<think>\nhm\n\nso\n</think>\n\nBecause.", end=stats())))
    list(recorder.record("more", answer("half", end=stats("cancelled"))))
    path = history.export_chat(context, recorder.chat, tmp_path / "a" / "chat.md")
    text = path.read_text()
    assert text.startswith("# why?\n\nphi.gguf · ")
    assert "## System\n\nbe short" in text and "## You\n\nwhy?" in text
    assert "## phi\n\n> hm\n>\n> so\n\nBecause.\n" in text
    assert text.endswith("half …\n\n*(stopped)*\n")
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(OutputExists):
        history.export_chat(context, recorder.chat, path)
    document = json.loads(history.export_chat(context, recorder.chat, tmp_path / "chat.json").read_text())
    assert next(turn["content"] for turn in document["messages"]) == "why?"


def test_the_command_line(
    context: Context, recorder: history.Recorder, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["chats"]) == 0
    assert "no conversation yet" in capsys.readouterr().out
    list(recorder.record("evil \x1b[2J title", answer("needle", end=stats())))
    chat = recorder.chat
    assert main(["chats", "--search", "NEEDLE"]) == 0
    shown = capsys.readouterr().out
    assert chat in shown and "\x1b" not in shown
    assert main(["chats", "--search", "nothing of it", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"chats": []}
    assert main(["chats", "rename", chat[:5], " A  better\ntitle "]) == 0
    assert "A better title" in capsys.readouterr().out
    assert main(["chats", "show", chat]) == 0
    assert "## You" in capsys.readouterr().out
    assert main(["chats", "export", chat, "--out", str(tmp_path / "x.md"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["path"] == str(tmp_path / "x.md")
    assert main(["chats", "export", chat, "--out", str(tmp_path / "x.md")]) == 2
    assert main(["chats", "delete", chat]) == 0
    assert main(["chats", "show", chat]) == 2
    with pytest.raises(UsageError, match="title"):
        history.rename_chat(context, chat, "  ")
