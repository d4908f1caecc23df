"""The engine's child process and its client, with a fake engine in a real process."""

from __future__ import annotations

import itertools
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from phitui.actions.chat import Chat
from phitui.domain.chat import ChatStats, EngineSettings, Message, Sampling, TextChunk
from phitui.engine import client, remains
from phitui.engine.client import EngineProcess
from phitui.errors import Cancelled, EngineError, InvalidFile, PhituiError, UsageError
from phitui.testing.engine import install

Make = Callable[..., EngineProcess]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """EngineProcess factory on the fake engine; everything is closed at the end."""
    monkeypatch.setenv("PYTHONPATH", str(install(tmp_path / "site")))
    monkeypatch.setenv("PHITUI_PLUGINS", "fake-engine")
    made: list[EngineProcess] = []

    def factory(script: str = "", engine: str = "fake") -> EngineProcess:
        model = tmp_path / "model.gguf"
        model.write_text(script)
        made.append(EngineProcess(engine, model, EngineSettings(context=99), tmp_path / "logs"))
        return made[-1]

    yield factory
    for process in made:
        process.close(0)


def ask(process: EngineProcess, text: str, **sampling: object) -> tuple[str, ChatStats]:
    chunks = list(process.stream([Message("user", text)], Sampling(**sampling)))  # type: ignore[arg-type]
    assert isinstance(chunks[-1], ChatStats)
    return "".join(chunk.text for chunk in chunks if isinstance(chunk, TextChunk)), chunks[-1]


def test_start_ask_close(make: Make) -> None:
    process = make()
    with pytest.raises(EngineError, match="not started"):
        _ = process.info
    parts: list[float] = []
    info = process.start(parts.append)
    assert (info.model, info.context, info.architecture) == ("model.gguf", 99, "fake")
    assert parts == sorted(parts)
    assert process.alive and process.pid
    text, stats = ask(process, "say one two three")
    assert text == "one two three"
    assert (stats.finish_reason, stats.completion_tokens) == ("stop", 3)
    assert ask(process, "say one two three", max_tokens=2)[1].finish_reason == "length"
    pid = process.pid
    process.close()
    assert not process.alive
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    process.close()


def test_it_is_another_process_in_its_own_group(make: Make) -> None:
    process = make()
    process.start()
    pid = int(ask(process, "pid")[0])
    assert pid == process.pid != os.getpid()
    assert os.getpgid(pid) == pid
    assert os.getsid(pid) == pid


def test_whole_characters_of_any_script(make: Make) -> None:
    process = make()
    process.start()
    text = "سلام|Güneş|👩‍👩‍👧‍👦|\u2028|\x1b[2J|\udc80"
    assert ask(process, f"pieces {text}")[0] == text.replace("|", "")


def test_prints_go_to_the_log(make: Make) -> None:
    process = make()
    process.start()
    assert ask(process, "print")[0] == "before after"
    for line in ("descriptor 1", "descriptor 2", "python's own words"):
        assert line in process.log_tail()
    assert process.log is not None
    assert stat.S_IMODE(process.log.stat().st_mode) == 0o600
    assert stat.S_IMODE(process.log.parent.stat().st_mode) == 0o700


def test_only_some_logs_are_kept(tmp_path: Path) -> None:
    for _ in range(remains.KEPT_LOGS + 5):
        remains.new_log(tmp_path / "logs", "fake")
    assert len(list((tmp_path / "logs").iterdir())) == remains.KEPT_LOGS


def test_stop_from_another_thread(make: Make) -> None:
    process = make()
    process.start()
    process.stop()  # nothing runs: nothing happens
    stream = process.stream([Message("user", "slow 500")], Sampling())
    assert isinstance(next(stream), TextChunk)
    began = time.monotonic()
    threading.Thread(target=process.stop).start()
    stats = list(stream)[-1]
    assert isinstance(stats, ChatStats)
    assert stats.finish_reason == "cancelled"
    assert time.monotonic() - began < client.STOP_PATIENCE + 1
    assert ask(process, "say still here")[0] == "still here"


def test_stop_before_the_first_chunk(make: Make) -> None:
    process = make()
    process.start()
    stream = process.stream([Message("user", "slow 500")], Sampling())
    process.stop()
    chunks = list(stream)
    assert isinstance(chunks[-1], ChatStats)
    assert chunks[-1].finish_reason == "cancelled"
    assert len(chunks) < 100


def test_leaving_the_loop_stops_the_answer(make: Make) -> None:
    process = make()
    process.start()
    stream = process.stream([Message("user", "slow 500")], Sampling())
    next(stream)
    began = time.monotonic()
    stream.close()
    assert time.monotonic() - began < client.STOP_PATIENCE + 1
    assert ask(process, "say next")[0] == "next"


def test_one_answer_at_a_time(make: Make) -> None:
    process = make()
    process.start()
    stream = process.stream([Message("user", "slow 500")], Sampling())
    next(stream)
    with pytest.raises(EngineError, match="already"):
        process.stream([Message("user", "say no")], Sampling())
    stream.close()


def test_an_untouched_iterator_blocks_nothing(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    process = make()
    process.start()
    forgotten = process.stream([Message("user", "say no")], Sampling())
    assert ask(process, "say yes")[0] == "yes"
    with pytest.raises(EngineError, match="since"):
        next(forgotten)
    monkeypatch.setattr(client, "STOP_PATIENCE", 0.05)
    late = process.stream([Message("user", "slow 100")], Sampling())
    process.stop()
    time.sleep(0.1)
    monkeypatch.setattr(client, "STOP_PATIENCE", 2)
    assert isinstance(list(late)[-1], ChatStats)  # the patience counts from when it was asked


def test_the_last_chunk_frees_the_engine(make: Make) -> None:
    process = make()
    process.start()
    stream = process.stream([Message("user", "say one")], Sampling())
    while not isinstance(next(stream), ChatStats):
        pass
    assert ask(process, "say two")[0] == "two"  # though `stream` was never exhausted


@pytest.mark.parametrize(("command", "kind", "words"), [("error", PhituiError, "oh"), ("raise", EngineError, "oh")])
def test_an_error_leaves_the_engine_alive(make: Make, command: str, kind: type, words: str) -> None:
    process = make()
    process.start()
    with pytest.raises(kind, match=words) as caught:
        ask(process, f"{command} oh no")
    assert caught.value.hint
    if command == "raise":
        assert "ValueError: oh no" in caught.value.log_tail
    assert process.alive
    assert ask(process, "say fine")[0] == "fine"


def test_errors_keep_their_kind() -> None:
    from phitui.engine import protocol

    for error in (InvalidFile("a", "b"), UsageError("a", "b")):
        again = protocol.error_of(protocol.error_message(None, error))
        assert type(again) is type(error)
        assert (again.message, again.hint) == ("a", "b")
    for kind in ("Cancelled", "Exception", "os", "", "annotations"):
        assert type(protocol.error_of({"kind": kind, "message": "a"})) is PhituiError


def test_unknown_engine(make: Make) -> None:
    with pytest.raises(UsageError, match="no engine is named 'other'"):
        make(engine="other").start()


def test_cancel_while_loading(make: Make) -> None:
    process = make("load hang")

    def cancel(part: float) -> None:
        raise Cancelled

    began = time.monotonic()
    with pytest.raises(Cancelled):
        process.start(cancel)
    assert time.monotonic() - began < 20
    assert not process.alive


def test_close_while_loading_from_another_thread(make: Make) -> None:
    process = make("load hang")
    timer = threading.Timer(0.5, process.close, [0])
    timer.start()
    with pytest.raises(Cancelled):
        process.start()


def test_asking_what_is_not_running(make: Make) -> None:
    process = make()
    with pytest.raises(EngineError, match="not running"):
        process.stream([Message("user", "say no")], Sampling())
    process.start()
    process.close()
    with pytest.raises(EngineError, match="not running"):
        process.stream([Message("user", "say no")], Sampling())
    process.restart()
    assert ask(process, "say yes")[0] == "yes"


def test_close_while_answering(make: Make) -> None:
    process = make()
    process.start()
    stream = process.stream([Message("user", "slow 500")], Sampling())
    next(stream)
    threading.Timer(0.1, process.close, [0]).start()
    with pytest.raises(Cancelled):
        list(stream)


def test_chat_keeps_messages(make: Make) -> None:
    process = make()
    process.start()
    chat = Chat(process, system="Be kind.")
    list(chat.ask("say one"))
    assert "".join(c.text for c in chat.ask("count") if isinstance(c, TextChunk)) == "4"
    assert [m.content for m in chat.messages] == ["Be kind.", "say one", "one", "count", "4"]
    chat.reset()
    assert [m.role for m in chat.messages] == ["system"]


def test_chat_keeps_what_was_shown_of_a_stopped_answer(make: Make) -> None:
    process = make()
    process.start()
    chat = Chat(process)
    answer = chat.ask("slow 500")
    shown = "".join(chunk.text for chunk in itertools.islice(answer, 3) if isinstance(chunk, TextChunk))
    chat.stop()
    shown += "".join(chunk.text for chunk in answer if isinstance(chunk, TextChunk))
    assert chat.messages == [Message("user", "slow 500"), Message("assistant", shown)]
    answer = chat.ask("slow 500")
    next(answer)
    answer.close()  # type: ignore[attr-defined]
    assert chat.messages[-2:] == [Message("user", "slow 500"), Message("assistant", "0 ")]


def test_chat_takes_back_a_question_without_an_answer(make: Make) -> None:
    process = make()
    process.start()
    chat = Chat(process)
    with pytest.raises(PhituiError):
        list(chat.ask("error no"))
    assert chat.messages == []
