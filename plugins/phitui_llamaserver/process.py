"""Starts a server, waits until it is well, and ends it. What it prints goes to a log file."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from phitui.api import Cancelled, EngineError, UsageError

PYTHON_SERVER = ("llama_cpp", "uvicorn", "fastapi", "sse_starlette", "starlette_context", "pydantic_settings")
"""What llama-cpp-python's own server needs."""
INSTALL = 'pip install "llama-cpp-python[server]"'
_STEP = 0.2
_TELL = 15.0
_GRACE = 8.0
_TAIL = 2000


def llama_server(program: str) -> str | None:
    """Path of the llama-server, None where there is none."""
    return shutil.which(program)


def missing_of_python_server() -> list[str]:
    """Modules that llama-cpp-python's server would need and that are not here. Imports none of them."""
    return [name for name in PYTHON_SERVER if importlib.util.find_spec(name) is None]


def free_port(host: str, port: int) -> int:
    """The port, or a free one for 0. Raises UsageError where it is taken or the address is not this machine's."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            return int(probe.getsockname()[1])
    except OSError as error:
        raise UsageError(
            f"cannot listen on {host}:{port}: {error.strerror or error}", "--port 0 takes a free port"
        ) from None


class Server:
    """The child. `path` of the health check answers 200 once the model is loaded."""

    def __init__(self, command: Sequence[str], address: tuple[str, int], health: str, log: Path) -> None:
        self._command, self._address, self._health, self._log = list(command), address, health, log
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self, waiting: Callable[[float], None]) -> None:
        """Start it and wait until it is well, calling `waiting` with the seconds now and then.

        Raises EngineError with the end of its log if it dies before.
        """
        try:
            self._log.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        except OSError as error:
            raise EngineError(f"cannot write the log {self._log}: {error.strerror}") from None
        shim = [sys.executable, "-P", "-m", "phitui_llamaserver.shim"]
        with os.fdopen(descriptor, "wb") as log:
            self._process = subprocess.Popen(
                [*shim, *self._command], stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True
            )
        began = told = time.monotonic()
        while not self._well():
            self.check()
            time.sleep(_STEP)
            if time.monotonic() - told >= _TELL:
                told = time.monotonic()
                waiting(told - began)

    def wait(self) -> None:
        """Wait until it ends by itself, which is an error. Never returns."""
        while True:
            self.check()
            time.sleep(_STEP)

    def check(self) -> None:
        """Raise EngineError if it has ended."""
        assert self._process is not None
        code = self._process.poll()
        if code is None:
            return
        tail = self._log.read_bytes()[-_TAIL:].decode("utf-8", "replace").strip()
        last = next((line for line in reversed(tail.splitlines()) if "error" in line.lower()), "")
        why = f": {last.strip()}" if last else f", exit code {code}"
        raise EngineError(f"the server ended{why}", f"its log: {self._log}", tail)

    def end(self) -> None:
        """End it, by force if it does not end by itself."""
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None
        with contextlib.suppress(OSError):
            process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired, Cancelled):
            process.wait(_GRACE)
        if process.poll() is None:
            with contextlib.suppress(OSError):
                os.killpg(process.pid, 9)  # it leads a session of its own: the server is in it
        process.wait()

    def _well(self) -> bool:
        import http.client

        connection = http.client.HTTPConnection(*self._address, timeout=2)
        try:
            connection.request("GET", self._health)
            return connection.getresponse().status == http.client.OK
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()
