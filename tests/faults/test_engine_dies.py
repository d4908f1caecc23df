"""The engine's process dies, hangs or raves: the caller gets the reason, and the chat goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from phitui.actions.chat import Chat
from phitui.domain.chat import EngineSettings, Message, Sampling, TextChunk
from phitui.engine import client
from phitui.engine.client import EngineProcess
from phitui.errors import Cancelled, EngineError, PhituiError
from phitui.testing.engine import install


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    site = install(tmp_path / "site")
    monkeypatch.setenv("PYTHONPATH", str(site))
    monkeypatch.setenv("PHITUI_PLUGINS", "fake-engine")
    (tmp_path / "model.gguf").write_text("")
    return site


@pytest.fixture
def chat(site: Path, tmp_path: Path) -> Iterator[Chat]:
    process = EngineProcess("fake", tmp_path / "model.gguf", EngineSettings(), tmp_path / "logs")
    process.start()
    yield Chat(process)
    process.close(0)


def text_of(chat: Chat, question: str) -> str:
    return "".join(chunk.text for chunk in chat.ask(question) if isinstance(chunk, TextChunk))


def gone(pid: int) -> bool:
    """Whether the process has ended (a zombie has)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] in "ZX"
    except OSError:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        return False


def test_killed_mid_answer_then_the_same_chat_goes_on(chat: Chat) -> None:
    assert text_of(chat, "say hello") == "hello"
    answer = chat.ask("slow 1000")
    next(answer)
    assert chat.process.pid
    os.kill(chat.process.pid, signal.SIGKILL)
    with pytest.raises(EngineError, match="SIGKILL") as caught:
        list(answer)
    assert "restart" in caught.value.hint
    assert not chat.alive
    assert [m.content for m in chat.messages] == ["say hello", "hello"]
    with pytest.raises(EngineError, match="SIGKILL"):
        list(chat.ask("say again"))
    chat.restart()
    assert chat.alive
    assert text_of(chat, "count") == "3"


@pytest.mark.parametrize(
    ("command", "words"), [("abort", "SIGABRT"), ("segv", "SIGSEGV"), ("exit 7", "code 7"), ("exit 0", "code 0")]
)
def test_death(chat: Chat, command: str, words: str) -> None:
    shown = []
    with pytest.raises(EngineError, match=words) as caught:
        for chunk in chat.ask(command):
            shown.append(chunk)
    assert shown == [TextChunk("before ")]
    if command in ("abort", "segv"):
        assert "Fatal Python error" in caught.value.log_tail  # the last log lines say where
    chat.restart()
    assert text_of(chat, "say alive") == "alive"


@pytest.mark.parametrize("command", ["hang", "hang-gil"])
def test_a_hanging_engine_is_ended_by_stop(chat: Chat, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "STOP_PATIENCE", 0.4)
    answer = chat.ask(command)
    assert next(answer) == TextChunk("before ")
    chat.stop()
    pid = chat.process.pid
    assert pid
    with pytest.raises(EngineError, match="did not stop"):
        list(answer)
    assert gone(pid)
    chat.restart()
    assert text_of(chat, "say alive") == "alive"


def test_garbage_in_the_protocol(chat: Chat) -> None:
    with pytest.raises(EngineError, match="GGML_ASSERT"):
        list(chat.ask("garbage"))
    assert not chat.alive
    chat.restart()
    assert text_of(chat, "say alive") == "alive"


@pytest.mark.parametrize("way", ["abort", "exit 3", "garbage", "error no", "raise no"])
def test_death_while_loading(site: Path, tmp_path: Path, way: str) -> None:
    (tmp_path / "model.gguf").write_text(f"load {way}")
    process = EngineProcess("fake", tmp_path / "model.gguf", EngineSettings(), tmp_path / "logs")
    with pytest.raises(PhituiError) as caught:
        process.start()
    assert caught.value.hint
    assert not process.alive


def test_the_log_folder_cannot_be_made(site: Path, tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("a file")
    with pytest.raises(EngineError, match="log"):
        EngineProcess("fake", tmp_path / "model.gguf", EngineSettings(), tmp_path / "logs").start()


PARENT = """
import sys, time
from pathlib import Path
from phitui.domain.chat import EngineSettings, Message, Sampling
from phitui.engine.client import EngineProcess
process = EngineProcess("fake", Path(sys.argv[1]), EngineSettings(), Path(sys.argv[2]))
import threading
loaded = threading.Thread(target=process.start)  # the thread that started it ends: the child must live on
loaded.start(); loaded.join()
stream = process.stream([Message("user", sys.argv[3])], Sampling())
next(stream)
print(process.pid, flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("command", ["slow 100000", "hang", "hang-gil"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_child_dies_with_its_parent(
    site: Path, tmp_path: Path, wait_until: Callable[..., None], command: str, number: int
) -> None:
    if command == "hang-gil" and sys.platform != "linux":
        pytest.skip("only Linux ends a process that keeps the interpreter's lock")
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path / "model.gguf"), str(tmp_path / "logs"), command],
        stdout=subprocess.PIPE,
    )
    assert parent.stdout
    pid = int(parent.stdout.readline())
    assert not gone(pid)
    parent.send_signal(number)
    parent.wait()
    parent.stdout.close()
    wait_until(lambda: gone(pid), 15)


def test_a_child_that_does_not_close_is_killed(chat: Chat) -> None:
    answer = chat.ask("hang-gil")
    next(answer)
    pid = chat.process.pid
    assert pid
    began = time.monotonic()
    closing = threading.Thread(target=chat.process.close, args=(0.3,))
    closing.start()
    with pytest.raises((Cancelled, EngineError)):
        list(answer)
    closing.join()
    assert time.monotonic() - began < 10
    assert gone(pid)


def test_a_question_that_the_engine_does_not_take(
    chat: Chat, monkeypatch: pytest.MonkeyPatch, wait_until: Callable[..., None]
) -> None:
    """Its pipe is full and it is stuck: neither stop() nor close() may hang with it."""
    monkeypatch.setattr(client, "STOP_PATIENCE", 0.3)
    assert chat.process.pid
    os.kill(chat.process.pid, signal.SIGSTOP)
    errors: list[BaseException] = []

    def ask() -> None:
        try:
            list(chat.ask("say " + "x" * 1_000_000))
        except EngineError as error:
            errors.append(error)

    asking = threading.Thread(target=ask)
    asking.start()
    wait_until(chat.process._write_lock.locked, 10)  # it writes more than a pipe can hold, and nobody reads
    began = time.monotonic()
    chat.stop()
    asking.join(10)
    assert time.monotonic() - began < 10
    assert errors and "SIGKILL" in str(errors[0])
    chat.restart()
    assert text_of(chat, "say alive") == "alive"


def test_a_dead_engine_says_so_at_once(chat: Chat) -> None:
    assert chat.process.pid
    os.kill(chat.process.pid, signal.SIGKILL)
    with pytest.raises(EngineError, match="died"):
        list(chat.process.stream([Message("user", "say no")], Sampling()))
