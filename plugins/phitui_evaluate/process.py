"""The parent's side of a worker: starts it, asks it, reads its logits, ends it. Nothing native is loaded here."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from phitui.api import EngineError, PhituiError

POLL = 0.1
"""Seconds between two looks whether the work was cancelled."""
PIPE_SIZE = 1 << 20
_SETPIPE_SZ = 1031  # fcntl.F_SETPIPE_SZ, Linux


class Worker:
    """One model in a child process. `check` is called while waiting, and raises to stop waiting.

    `setup` is how to load it, see native.Setup.
    """

    def __init__(self, model: Path, setup: Mapping[str, int], check: Callable[[], None]) -> None:
        self.model = model
        self._check = check
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  (lives as long as the child)
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "phitui_evaluate.worker", json.dumps({"model": str(model), **setup})],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=os.environ | {"GGML_NO_BACKTRACE": "1"},
            bufsize=0,
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._in, self._out = self._process.stdin.fileno(), self._process.stdout.fileno()
        _widen(self._out)
        self.vocabulary = 0
        self.bos: int | None = None
        self.trained = 0

    @property
    def pid(self) -> int:
        return self._process.pid

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def wait_loaded(self, progress: Callable[[float], None]) -> None:
        """Wait until the model is loaded. Raises EngineError with llama.cpp's words if it is not."""
        while "part" in (reply := self.reply()):
            progress(reply["part"])
        self.vocabulary, self.bos, self.trained = reply["vocabulary"], reply["bos"], reply["trained"]

    def send(self, command: Mapping[str, Any]) -> None:
        """Give a command; `reply` gets its answer."""
        data = memoryview(json.dumps(command).encode() + b"\n")
        with contextlib.suppress(BrokenPipeError):  # the reply will say what happened
            while data:
                data = data[os.write(self._in, data) :]

    def reply(self) -> dict[str, Any]:
        """The next reply. Raises EngineError if the process has ended or refuses."""
        length = bytearray(4)
        self.read_into(memoryview(length))
        text = bytearray(int.from_bytes(length, "little"))
        self.read_into(memoryview(text))
        reply: dict[str, Any] = json.loads(text)
        if "error" in reply:
            raise EngineError(reply["error"], reply.get("hint", ""), self._tail())
        return reply

    def read_into(self, view: memoryview) -> None:
        """Fill `view` with what comes next."""
        while view:
            if not select.select([self._out], [], [], POLL)[0]:
                self._check()
                continue
            count = os.readv(self._out, [view])
            if not count:
                raise self._died()
            view = view[count:]
        self._check()

    def close(self) -> None:
        """End the process at once; it holds nothing that could be lost."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._log):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()

    def _died(self) -> PhituiError:
        code = self._process.wait()
        self._check()  # a cancel ends the workers too: then that is what happened
        cause = f"signal {-code}" if code < 0 else f"exit code {code}"
        tail = self._tail()
        last = " | ".join(tail.splitlines()[-2:])
        hint = "phitui doctor shows what the engine was compiled with; try another --ctx, or --layers 0"
        if code == -signal.SIGKILL:
            hint = "if the machine ran out of memory, take a smaller --ctx or evaluate a smaller model"
        return EngineError(
            f"the process that runs {self.model.name} ended unexpectedly ({cause})" + (f": {last}" if last else ""),
            hint,
            tail,
        )

    def _tail(self) -> str:
        """The last lines that the process wrote to stderr."""
        size = os.fstat(self._log.fileno()).st_size  # not seek: the process writes through the same file position
        lines = os.pread(self._log.fileno(), 4000, max(0, size - 4000)).decode("utf-8", "replace").splitlines()
        return "\n".join(line for line in lines if line.strip(" ."))[-2000:]


def _widen(descriptor: int) -> None:
    """A larger pipe, where the system can: logits come by the megabyte."""
    if sys.platform == "linux":
        import fcntl

        with contextlib.suppress(OSError):
            fcntl.fcntl(descriptor, _SETPIPE_SZ, PIPE_SIZE)
