"""Starts and watches the child process that serves: phitui_rpc.server, or a ggml-rpc-server that is installed here."""

from __future__ import annotations

import contextlib
import json
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any

from phitui.api import EngineError, PhituiError, Unavailable, UsageError, Worker, ask_workers
from phitui_rpc.library import INSTALL, has_rpc

PROGRAMS = ("ggml-rpc-server", "rpc-server")
"""llama.cpp's own worker; the second name is that of versions before 2026."""
START_SECONDS = 60.0
"""A GPU driver that wakes up, or a disk that is cold, needs its time."""
_TAIL = 12


@dataclass(frozen=True)
class Offer:
    """What is served, and where."""

    host: str
    port: int
    devices: tuple[str, ...]
    limits: tuple[int, ...]
    threads: int
    cache: str | None

    @property
    def endpoint(self) -> str:
        return f"{self.host}:{self.port}"


def program() -> str | None:
    """Path of llama.cpp's own worker, for machines whose llama-cpp-python has no RPC."""
    return next((found for name in PROGRAMS if (found := shutil.which(name))), None)


def command(offer: Offer) -> list[str]:
    """The command line of the child. Raises Unavailable where nothing here can serve."""
    threads = ["--threads", str(offer.threads)]
    if has_rpc():
        flags = [part for name in offer.devices for part in ("--device", name)]
        flags += [part for size in offer.limits for part in ("--mem", str(size))]
        flags += ["--cache-dir", offer.cache] if offer.cache else []
        module = [sys.executable, "-P", "-m", "phitui_rpc.server"]
        return [*module, "--host", offer.host, "--port", str(offer.port), *threads, *flags]
    found = program()
    if found is None:
        raise Unavailable("llama-cpp-python here was built without RPC", INSTALL)
    if offer.limits:
        raise UsageError(f"{found} knows no --mem", f"leave it away, or install what does: {INSTALL}")
    flags = ["--device", ",".join(offer.devices)] if offer.devices else []
    flags += ["--cache"] if offer.cache else []
    shim = [sys.executable, "-P", "-m", "phitui_rpc.shim"]
    return [*shim, found, "--host", offer.host, "--port", str(offer.port), *threads, *flags]


class Server:
    """The child. `start` waits until it answers; `lines` then yields what it prints, until it ends."""

    def __init__(self, offer: Offer) -> None:
        self.offer = offer
        self.devices: Sequence[Mapping[str, Any]] = ()
        self._tail: deque[str] = deque(maxlen=_TAIL)
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> Worker:
        """Start it and greet it. Raises PhituiError with its own words if it refuses, EngineError if it dies."""
        try:
            self._process = subprocess.Popen(
                command(self.offer),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            raise EngineError(f"cannot start the worker's process: {error.strerror}") from None
        assert self._process.stdout is not None
        threading.Thread(target=_pump, args=(self._process.stdout, self._lines), daemon=True).start()
        end = time.monotonic() + START_SECONDS
        announced = not has_rpc()
        while time.monotonic() < end:
            line = self.line(0.05)
            announced = announced or bool(self.devices)
            if announced and line != "":
                (worker,) = ask_workers([self.offer.endpoint], 1.0)
                if worker.state == "ready":
                    return worker
        raise EngineError(f"the worker did not answer within {START_SECONDS:.0f} s", "", "\n".join(self._tail))

    def line(self, seconds: float) -> str | None:
        """The next line that it prints, None after `seconds` without one. Raises EngineError when it has ended."""
        try:
            line = self._lines.get(timeout=seconds)
        except queue.Empty:
            return None
        if line is None:
            raise self._death()
        if not line.startswith("{"):
            self._tail.append(line)
            return line
        message = json.loads(line)
        if message["event"] == "error":
            raise _refusal(message["message"], message["hint"])
        self.devices = message["devices"]
        return ""

    def peers(self) -> list[str]:
        """Addresses of the programs that are connected; empty where the system does not tell."""
        import psutil

        try:
            found = psutil.Process(self.pid).net_connections("tcp4")
        except psutil.Error:
            return []
        mine = [each for each in found if each.laddr and each.laddr.port == self.offer.port and each.raddr]
        return [each.raddr.ip for each in mine if each.status == psutil.CONN_ESTABLISHED]

    def end(self) -> None:
        """Kill it: it holds nothing that could be lost."""
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None
        process.stdin.close()  # is enough for each of them; the rest is for one that is stuck
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(2)
        process.kill()
        process.wait()

    def _death(self) -> EngineError:
        assert self._process is not None
        code = self._process.wait(5)
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return EngineError(f"the worker's server ended: {how}", "start it again", "\n".join(self._tail))


def _pump(stream: IO[bytes], lines: queue.SimpleQueue[str | None]) -> None:
    with stream:
        for raw in stream:
            lines.put(raw.decode("utf-8", "replace").rstrip("\n"))
    lines.put(None)


def _refusal(message: str, hint: str) -> PhituiError:
    return (
        UsageError(message, hint)
        if "--mem" in message or "there is no device" in message
        else Unavailable(message, hint)
    )
