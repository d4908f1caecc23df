"""Talks to an engine in a child process of its own (phitui.engine.host): native code may crash there, not here."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import IO, Any

from phitui.domain.chat import Chunk, EngineSettings, Message, Sampling, SessionInfo, TextChunk
from phitui.engine import protocol, workers
from phitui.engine.remains import death, new_log, tail
from phitui.errors import Cancelled, EngineError

STOP_PATIENCE = 2.0
"""Seconds an answer may go on after stop(); then the child is ended."""
CLOSE_PATIENCE = 1.0
_TICK = 0.1

Progress = Callable[[float], None]


class EngineProcess:
    """One model in one child process. A Session, but for `start` and `restart`.

    `stream` and `start` belong to one thread at a time; `stop` and `close` may be called from any thread at any time.
    """

    def __init__(self, engine: str, model: Path, settings: EngineSettings, logs: Path) -> None:
        self.engine = engine
        self.model = model
        self.settings = settings
        self.log: Path | None = None
        self.lost: tuple[workers.Worker, ...] = ()
        """The RPC workers that did not answer any more when the child had died."""
        self._logs = logs
        self._info: SessionInfo | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._lifeline: int | None = None
        self._inbox: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._write_lock = threading.Lock()
        self._state_lock = threading.Lock()
        self._number = 0
        self._running: int | None = None
        self._asked = False
        self._stop_deadline: float | None = None
        self._closed = False

    @property
    def info(self) -> SessionInfo:
        """What is loaded. Raises EngineError before start()."""
        if self._info is None:
            raise EngineError("the engine is not started")
        return self._info

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None and not self._closed

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def start(self, progress: Progress | None = None) -> SessionInfo:
        """Load the model. `progress` is called often, with the part loaded (0 to 1), also while nothing moves.

        To cancel, raise Cancelled in `progress`, or call close(). Raises EngineError (or what the engine raised).
        """
        self._closed = False
        self._settle()
        self._spawn()
        self._send(protocol.open_message(self.engine, str(self.model), self.settings))
        part = 0.0
        try:
            while True:
                message = self._next() or {}
                if message.get("event") == "ready":
                    self._info = protocol.info_of(message)
                    self.lost = ()
                    workers.hold(self.settings.rpc)
                    return self._info
                if message.get("event") == "error":
                    raise protocol.error_of(message, self.log_tail())
                part = message.get("part", part)
                if progress:
                    progress(part)
        except BaseException:
            self.close(0)
            raise

    def restart(self, progress: Progress | None = None) -> SessionInfo:
        """End the child, whatever state it is in, and load the model in a new one."""
        self.close()
        return self.start(progress)

    def stream(self, messages: Sequence[Message], sampling: Sampling) -> Generator[Chunk, None, None]:
        """Answer the last message. Leaving the iterator early stops the answer.

        Raises EngineError when the child dies, speaks nonsense or does not obey stop(): call restart() then.
        """
        if self._process is None:
            raise EngineError("the engine is not running", "restart it to go on", self.log_tail())
        with self._state_lock:
            if self._asked:  # an iterator that nobody ever touched does not count
                raise EngineError("the engine is answering already", "stop that answer first")
            self._number += 1
            number = self._running = self._number
            self._stop_deadline = None
        return self._stream(number, protocol.ask_message(number, list(messages), sampling))

    def _stream(self, number: int, request: dict[str, Any]) -> Generator[Chunk, None, None]:
        finished = False
        with self._state_lock:
            if self._running != number or self._asked:
                raise EngineError("another question was asked since", "ask this one again")
            self._asked = True
            if self._stop_deadline is not None:  # stopped before it was asked: the patience begins now
                self._stop_deadline = time.monotonic() + STOP_PATIENCE
        try:
            self._send(request)
            while not finished:
                message = self._next()
                if message is None or message.get("id") not in (number, None):
                    continue
                if message["event"] == "text":
                    yield TextChunk(message["text"])
                    continue
                finished = True
                self._settle()
                if message["event"] == "error":
                    raise protocol.error_of(message, self.log_tail())
                yield protocol.stats_of(message)
        except (GeneratorExit, KeyboardInterrupt):
            if not finished:
                self._abandon(number)
            raise
        finally:
            if not finished:
                self._settle()

    def _settle(self) -> None:
        """The answer is over: the next question may come, even if nobody takes the last chunk."""
        with self._state_lock:
            self._asked, self._running, self._stop_deadline = False, None, None

    def _abandon(self, number: int) -> None:
        """The caller lost interest: stop the answer and take what is left of it."""
        with contextlib.suppress(EngineError, Cancelled):
            self.stop()
            while True:
                message = self._next()
                if message and message.get("id") == number and message["event"] in ("done", "error"):
                    return

    def stop(self) -> None:
        """End the running answer at once; nothing happens if there is none. Its last chunk says "cancelled"."""
        with self._state_lock:
            number = self._running
            if number is None or self._stop_deadline is not None:
                return
            self._stop_deadline = time.monotonic() + STOP_PATIENCE
        with contextlib.suppress(EngineError, Cancelled):
            self._send({"op": "stop", "id": number}, STOP_PATIENCE)

    def close(self, patience: float = CLOSE_PATIENCE) -> None:
        """End the child: asked first, after `patience` seconds killed. A start() or stream() under way is Cancelled."""
        with self._state_lock:
            self._closed = True
            process, lifeline = self._process, self._lifeline
            self._process = self._lifeline = None
        if process is None:
            return
        if patience > 0 and process.poll() is None:
            with contextlib.suppress(EngineError, subprocess.TimeoutExpired):
                self._write(process, {"op": "close"}, patience)
                process.wait(patience)
        _kill(process)
        with contextlib.suppress(OSError):
            _pipe(process.stdin).close()
        if lifeline is not None:
            os.close(lifeline)
        workers.let_go(self.settings.rpc)
        self._inbox.put(None)

    def log_tail(self) -> str:
        """The last lines that the child wrote, for people."""
        return tail(self.log) if self.log else ""

    def _spawn(self) -> None:
        try:
            self.log = new_log(self._logs, self.engine)
        except OSError as error:
            raise EngineError(
                f"the engine's log cannot be written in {self._logs}: {error.strerror}",
                "make that a writable directory, or set PHITUI_HOME to another one",
            ) from None
        reading, writing = os.pipe()
        command = [sys.executable, "-P", "-m", "phitui.engine.host", "--log", str(self.log), "--lifeline", str(reading)]
        try:
            with self.log.open("ab") as errors:  # for what goes wrong before the child has moved its descriptors
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    pass_fds=(reading,),
                    start_new_session=True,
                    env=os.environ | {"GGML_NO_BACKTRACE": "1", "PYTHONUNBUFFERED": "1"},
                )
        except OSError as error:
            os.close(writing)
            raise EngineError(f"cannot start the engine's process: {error.strerror}") from None
        finally:
            os.close(reading)
        inbox: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._process, self._lifeline, self._inbox = process, writing, inbox
        threading.Thread(target=_pump, args=(process, inbox), name="engine answers", daemon=True).start()

    def _send(self, message: dict[str, Any], patience: float = -1) -> None:
        process = self._process
        if process is None:
            raise Cancelled
        self._write(process, message, patience)

    def _write(self, process: subprocess.Popen[bytes], message: dict[str, Any], patience: float) -> None:
        """Send a message. A child that takes nothing for `patience` seconds is ended, which frees others that wait."""
        if not self._write_lock.acquire(timeout=patience):
            _kill(process)
            raise self._death(process)
        try:
            _pipe(process.stdin).write(protocol.encode(message))
            _pipe(process.stdin).flush()
        except (OSError, ValueError):
            raise self._death(process) from None
        finally:
            self._write_lock.release()

    def _next(self) -> dict[str, Any] | None:
        """The next message, or None after a tick without one. Raises EngineError if there will be none."""
        process = self._process
        if process is None or self._closed:
            raise Cancelled
        try:
            message = self._inbox.get(timeout=_TICK)
        except queue.Empty:
            if self._stop_deadline is not None and time.monotonic() > self._stop_deadline:
                _kill(process)
                what = f"the engine did not stop within {STOP_PATIENCE:.0f} s and was ended"
                raise self._ended(what, "restart it to go on; the messages so far are kept") from None
            return None
        if message is None:
            if self._closed:
                raise Cancelled
            raise self._death(process)
        if message.get("event") == "garbage":
            _kill(process)
            raise EngineError(
                f"the engine sent something that is not a message: {message['line']}",
                "restart it to go on; the messages so far are kept",
                self.log_tail(),
            )
        return message

    def _death(self, process: subprocess.Popen[bytes]) -> EngineError:
        """Why the child is gone, as an error with its last words."""
        try:
            code = process.wait(CLOSE_PATIENCE)
        except subprocess.TimeoutExpired:
            _kill(process)
            return EngineError("the engine closed its connection and was ended", "restart it to go on", self.log_tail())
        reason, hint = death(code)
        return self._ended(f"the engine died: {reason}", hint)

    def _ended(self, what: str, hint: str) -> EngineError:
        """The error for a child that is gone. Workers that do not answer any more are named: they took it with them."""
        self.lost = tuple(lost := workers.blame(self.settings.rpc))
        if lost:
            who, hint = workers.accusation(lost)
            return EngineError(f"{who}. So {what}", hint, tail(self.log, 3) if self.log else "")
        return EngineError(what, hint, self.log_tail())


def _pump(process: subprocess.Popen[bytes], inbox: queue.SimpleQueue[dict[str, Any] | None]) -> None:
    """Move messages from the child to the inbox; None marks the end."""
    answers = _pipe(process.stdout)
    with contextlib.suppress(OSError, ValueError), answers:
        for line in answers:
            try:
                inbox.put(protocol.decode(line))
            except protocol.ProtocolError as error:
                inbox.put({"event": "garbage", "line": str(error)})
    inbox.put(None)


def _pipe(stream: IO[bytes] | None) -> IO[bytes]:
    assert stream is not None
    return stream


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End the child and everything it started: it leads its own process group."""
    if process.poll() is None:
        with contextlib.suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(CLOSE_PATIENCE)
