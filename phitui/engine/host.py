"""The engine's child process: `python -m phitui.engine.host --log FILE [--lifeline FD]`.

phitui.engine.client starts it. Native code lives and dies here. Before any of it is loaded, the protocol moves to
descriptors of its own, and 0, 1 and 2 become /dev/null and the log file: nothing that llama.cpp or a plugin prints can
reach the protocol or a terminal.
A reader thread takes `stop` while an answer is generated, and ends the process when the parent is gone.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import faulthandler
import fcntl
import os
import queue
import signal
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

from phitui.domain.chat import TextChunk
from phitui.domain.offers import Session
from phitui.engine import protocol
from phitui.errors import EngineError, PhituiError

PROGRESS_EVERY = 0.05
"""Seconds between two progress messages."""
TEXT_EVERY = 0.04
"""Seconds of text per message: waking the reader for every token costs a fast model several per cent of its speed."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve one model until the input ends."""
    parser = argparse.ArgumentParser(prog="phitui.engine.host")
    parser.add_argument("--log", required=True, type=Path)
    parser.add_argument("--lifeline", type=int)
    options = parser.parse_args(arguments)
    requests, answers = _take_descriptors(options.log)
    os.environ["GGML_NO_BACKTRACE"] = "1"  # or a failed assert would start a debugger first
    faulthandler.enable()
    if options.lifeline is not None:
        _die_with(options.lifeline)
    return Host(requests, answers).serve()


def _take_descriptors(log: Path) -> tuple[BinaryIO, BinaryIO]:
    """Move the protocol away from 0 and 1; put /dev/null, the log and the log in place of 0, 1 and 2."""
    requests = os.fdopen(fcntl.fcntl(0, fcntl.F_DUPFD_CLOEXEC, 100), "rb")
    answers = os.fdopen(fcntl.fcntl(1, fcntl.F_DUPFD_CLOEXEC, 100), "wb", buffering=0)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    for extra in (descriptor, nothing):
        os.close(extra)
    return requests, answers


def _die_with(lifeline: int) -> None:
    """Have the kernel end this process when the other end of the pipe `lifeline` closes, whatever is running here.

    The parent holds that end and never writes. Its death raises SIGIO, whose default action ends the process: this
    works even while a native function keeps the interpreter's lock, where no thread of ours could look.
    (PR_SET_PDEATHSIG would fire as soon as the *thread* that started us ends.)
    """
    with contextlib.suppress(OSError, AttributeError):  # the reader thread sees the end of input too
        signal.signal(signal.SIGIO, signal.SIG_DFL)
        fcntl.fcntl(lifeline, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC | os.O_NONBLOCK)
        if os.read(lifeline, 1) == b"":  # it was gone before we listened
            os._exit(1)


class Host:
    """Serves the protocol on two files."""

    def __init__(self, requests: BinaryIO, answers: BinaryIO) -> None:
        self._requests = requests
        self._answers = answers
        self._inbox: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._session: Session | None = None
        self._running: int | None = None
        self._stopped: set[int] = set()

    def serve(self) -> int:
        """Open what the first line asks for, then answer until "close". The exit code."""
        threading.Thread(target=self._read, name="requests", daemon=True).start()
        try:
            session = self._open(self._inbox.get())
        except BaseException as error:
            self._send(protocol.error_message(None, _expected(error)))
            return 1
        with self._lock:
            self._session = session
        self._send({"event": "ready", "info": dataclasses.asdict(session.info)})
        while (message := self._inbox.get()).get("op") != "close":
            if message.get("op") == "ask":
                self._answer(session, message)
        session.close()
        return 0

    def _open(self, message: dict[str, Any]) -> Session:
        from phitui import plugins

        engine = plugins.named(plugins.load().engines, message["engine"], "engine")
        last = 0.0

        def progress(part: float) -> None:
            nonlocal last
            now = time.monotonic()
            if now - last >= PROGRESS_EVERY or part >= 1:
                last = now
                self._send({"event": "progress", "part": round(part, 4)})

        return engine.open(Path(message["model"]), protocol.settings_of(message), progress)

    def _answer(self, session: Session, message: dict[str, Any]) -> None:
        number = message["id"]
        held, sent = "", 0.0
        try:
            stream = session.stream(protocol.messages_of(message), protocol.sampling_of(message))
            with self._lock:
                self._running = number
                if number in self._stopped:
                    session.stop()
            for chunk in stream:
                if isinstance(chunk, TextChunk):
                    held += chunk.text
                    if time.monotonic() - sent >= TEXT_EVERY:
                        self._text(number, held)
                        held, sent = "", time.monotonic()
                    if number in self._stopped:  # a stop that the session missed because it had only just begun
                        session.stop()
                    continue
                self._text(number, held)
                held = ""
                self._send({"event": "done", "id": number, "stats": dataclasses.asdict(chunk)})
        except Exception as error:
            self._text(number, held)
            self._send(protocol.error_message(number, _expected(error)))
        finally:
            with self._lock:
                self._running = None
                self._stopped.discard(number)

    def _text(self, number: int, text: str) -> None:
        if text:
            self._send({"event": "text", "id": number, "text": text})

    def _read(self) -> None:
        """Take requests as they come. When the parent is gone, so are we, and all that we started."""
        for line in self._requests:
            try:
                message = protocol.decode(line)
            except protocol.ProtocolError:
                continue
            if message.get("op") == "stop":
                self._stop(message["id"])
            else:
                self._inbox.put(message)
            if message.get("op") == "close":
                return
        _end()

    def _stop(self, number: int) -> None:
        with self._lock:
            self._stopped.add(number)
            if self._running == number and self._session is not None:
                self._session.stop()

    def _send(self, message: dict[str, Any]) -> None:
        data = memoryview(protocol.encode(message))
        try:
            while data:
                data = data[self._answers.write(data) :]
        except (BrokenPipeError, OSError):
            _end()


def _end() -> None:
    """End this process group (our own session, see the client) without waiting for native threads."""
    if os.getpgrp() == os.getpid():
        os.killpg(os.getpgrp(), signal.SIGKILL)
    os._exit(1)


def _expected(error: BaseException) -> PhituiError:
    """The error to report; the traceback of an unexpected one goes to the log."""
    if isinstance(error, PhituiError):
        return error
    traceback.print_exception(error, file=sys.stderr)
    return EngineError(f"the engine failed: {type(error).__name__}: {error}", "the details are in its log")


if __name__ == "__main__":
    code = main()
    sys.stderr.flush()
    os._exit(code)  # no native destructors: they are known to abort at exit
