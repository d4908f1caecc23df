"""A fake engine: scripted answers, and every way in which native code goes wrong. It runs in a real engine process.

    from phitui.testing.engine import install
    install(tmp_path / "site")          # then put that folder on PYTHONPATH (and sys.path) and use the engine "fake"

The "model" is any file; if its text starts with "load ", the rest is a command below, done while loading. The last
message of a conversation is the command:

    say TEXT         answers TEXT, a word at a time          slow N      N numbers, one every 20 ms, until stopped
    count            the number of messages it was given     pieces A|B  the pieces A and B
    abort, segv      dies as a failed assert, a bad pointer  exit N      ends itself with that code
    hang             sleeps and ignores stop()               hang-gil    the same, keeping the interpreter's lock
    print            prints to descriptors 1 and 2           garbage     writes nonsense into the protocol
    error TEXT       a PhituiError                           raise TEXT  a ValueError
    pid              answers its process id
"""

from __future__ import annotations

import ctypes
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from phitui.api import (
    Availability,
    ChatStats,
    Chunk,
    Engine,
    EngineSettings,
    FinishReason,
    Message,
    PhituiError,
    Sampling,
    Session,
    SessionInfo,
    TextChunk,
    hookimpl,
)

FOREVER = 600
"""Seconds that "hang" sleeps: longer than any test waits, short enough to leave nothing behind for good."""


class FakeSession:
    """Does what the last message says."""

    def __init__(self, model: Path, settings: EngineSettings) -> None:
        self.info = SessionInfo(model.name, "fake", settings.context, "phi-3", 3, min(settings.layers, 3), 0.0)
        self._stopped = threading.Event()

    def stream(self, messages: Sequence[Message], sampling: Sampling) -> Iterator[Chunk]:
        """The scripted answer, cut to `sampling.max_tokens` pieces."""
        self._stopped.clear()
        return self._answer(messages, sampling)

    def _answer(self, messages: Sequence[Message], sampling: Sampling) -> Iterator[Chunk]:
        began = time.perf_counter()
        count = 0
        reason: FinishReason = "stop"
        for piece in _pieces(messages):
            if self._stopped.is_set() or count == sampling.max_tokens:
                reason = "cancelled" if self._stopped.is_set() else "length"
                break
            count += 1
            yield TextChunk(piece)
        seconds = time.perf_counter() - began
        prompt = sum(len(message.content.split()) for message in messages)
        yield ChatStats(reason, prompt, prompt, count, 0.001, seconds, self.info.context, prompt + count)

    def stop(self) -> None:
        self._stopped.set()

    def close(self) -> None:
        """Nothing to free."""


def _pieces(messages: Sequence[Message]) -> Iterator[str]:
    """The pieces of the answer; the ways to fail are done on the way."""
    command, _, rest = messages[-1].content.partition(" ")
    if command == "say":
        yield from (word if at == 0 else f" {word}" for at, word in enumerate(rest.split(" ")))
    elif command == "slow":
        for number in range(int(rest)):
            yield f"{number} "
            time.sleep(0.02)
    elif command == "count":
        yield str(len(messages))
    elif command == "pieces":
        yield from rest.split("|")
    elif command == "pid":
        yield str(os.getpid())
    else:
        yield "before "
        do(command, rest)
        yield "after"


def do(command: str, rest: str = "") -> None:
    """Fail in the given way; return if it is none of them."""
    ways: dict[str, Callable[[], object]] = {
        "abort": os.abort,
        "segv": lambda: os.kill(os.getpid(), signal.SIGSEGV),
        "exit": lambda: os._exit(int(rest)),
        "hang": lambda: time.sleep(FOREVER),
        "hang-gil": lambda: ctypes.PyDLL(None).sleep(FOREVER),
        "print": _print,
        "garbage": _garbage,
        "error": lambda: _raise(PhituiError(rest, "a hint")),
        "raise": lambda: _raise(ValueError(rest)),
    }
    if command in ways:
        ways[command]()


def _print() -> None:
    os.write(1, b"native words on descriptor 1\n")
    os.write(2, b"native words on descriptor 2\n")
    print("python's own words", flush=True)  # noqa: T201  (that is the point)


def _garbage() -> None:
    """Write into every descriptor that is open for writing, the protocol's among them."""
    for descriptor in range(3, 256):
        try:
            os.write(descriptor, b"GGML_ASSERT(false) failed\n")
        except OSError:
            continue


def _raise(error: Exception) -> None:
    raise error


class FakeEngine:
    """An engine without a model."""

    name = "fake"
    title = "Fake engine for tests"

    def available(self) -> Availability:
        return Availability()

    def open(self, model: Path, settings: EngineSettings, progress: Callable[[float], None]) -> Session:
        """ "Load" the file: see the module's text for what may stand in it."""
        progress(0.0)
        command, _, rest = _script(model).partition(" ")
        if command == "load":
            way, _, argument = rest.strip().partition(" ")
            do(way, argument)
        progress(1.0)
        return FakeSession(model, settings)


def _script(model: Path) -> str:
    with model.open("rb") as stream:
        return stream.read(200).decode("utf-8", "replace")


@hookimpl
def phitui_engines() -> Iterable[Engine]:
    return [FakeEngine()]


def install(site: Path) -> Path:
    """Make the fake engine a plugin for whoever has `site` on the Python path, as pip would. Returns `site`."""
    info = site / "phitui_fake_engine-1.0.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: phitui-fake-engine\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[phitui.plugins]\nfake-engine = phitui.testing.engine\n")
    return site
