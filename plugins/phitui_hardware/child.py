"""Starts the probe's child process, keeps it warm and asks it. One child per set of RPC workers and process.

A child that crashes or hangs costs an error, never this process; the next question starts a new one.
"""

from __future__ import annotations

import atexit
import json
import queue
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

from phitui.api import EngineError, EngineSettings, MemoryBuffer, PhituiError, Unavailable, UsageError

ANSWER_SECONDS = 30.0
"""The longest a question may take: a GPU driver that wakes up needs seconds."""

WORKER_SECONDS = 6.0
"""The same where RPC workers are asked. A worker serves one program at a time: others connect and hear nothing."""

WARM_WORKER_SECONDS = 3.0
"""The same once the libraries are loaded: then a worker that takes so long hangs."""


_MISMATCH = re.compile(r"version mismatch: ([\d.]+)|malformed response()|handshake failed()")
"""What llama.cpp says before it ends its process because of a worker of another version."""


class Child:
    """One probe process. Safe to call from several threads; questions are answered one after the other."""

    def __init__(self, rpc: Sequence[str] = (), command: Sequence[str] | None = None) -> None:
        self._command = [*(command or [sys.executable, "-P", "-m", "phitui_hardware.probe"]), *_flags(rpc)]
        self._rpc = tuple(rpc)
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._answers: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._log: IO[bytes] | None = None

    def ask(self, question: Mapping[str, Any], seconds: float | None = None) -> dict[str, Any]:
        """The child's answer. Raises EngineError if it died or hung, PhituiError with its own words if it refused."""
        with self._lock:
            seconds = seconds or self._patience()
            process = self._running()
            assert process.stdin is not None
            try:
                process.stdin.write(json.dumps(question).encode() + b"\n")
                process.stdin.flush()
                line = self._answers.get(timeout=seconds)
            except (OSError, ValueError):
                line = b""
            except queue.Empty:
                self._end()
                raise self._silent(seconds) from None
            if not line:
                raise self._died()
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise _refusal(answer["error"], answer.get("hint", ""))
        return answer

    def _patience(self) -> float:
        if not self._rpc:
            return ANSWER_SECONDS
        warm = self._process is not None and self._process.poll() is None
        return min(WARM_WORKER_SECONDS, WORKER_SECONDS) if warm else WORKER_SECONDS

    def close(self) -> None:
        """End the child."""
        with self._lock:
            self._end()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        self._end()
        self._answers = queue.SimpleQueue()
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  (lives as long as the child)
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, start_new_session=True
        )
        threading.Thread(target=_read, args=(self._process.stdout, self._answers), daemon=True).start()
        return self._process

    def _silent(self, seconds: float) -> EngineError:
        if self._rpc:
            return EngineError(
                f"the RPC worker {', '.join(self._rpc)} did not answer within {seconds:.0f} s",
                "it serves one program at a time: is another chat using it?",
            )
        return EngineError(f"the hardware probe did not answer within {seconds:.0f} s")

    def _died(self) -> PhituiError:
        code = self._process.wait(5) if self._process else None
        tail = self._tail()
        self._end()
        if self._rpc and (found := _MISMATCH.search(tail)):
            theirs = f" ({found[1]})" if found[1] else ""
            return Unavailable(
                f"an RPC worker ({', '.join(self._rpc)}) speaks another protocol{theirs} than the llama.cpp here",
                "install the same version of llama-cpp-python on both machines",
            )
        return EngineError(f"the hardware probe ended unexpectedly ({_ending(code)})", "", tail)

    def _tail(self) -> str:
        if self._log is None:
            return ""
        self._log.seek(0)
        return "\n".join(self._log.read()[-4000:].decode("utf-8", "replace").splitlines()[-8:])

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            assert process.stdin is not None
            process.stdin.close()
        if self._log is not None:
            self._log.close()
            self._log = None


def _read(stream: IO[bytes], answers: queue.SimpleQueue[bytes]) -> None:
    with stream:
        for line in stream:
            answers.put(line)
    answers.put(b"")


def _flags(rpc: Sequence[str]) -> list[str]:
    return [part for endpoint in rpc for part in ("--rpc", endpoint)]


def _ending(code: int | None) -> str:
    return f"killed by signal {-code}" if code is not None and code < 0 else f"exit code {code}"


def _refusal(message: str, hint: str) -> PhituiError:
    if "is not HOST:PORT" in message:
        return UsageError(message, hint)
    return Unavailable(message, hint)


_children: dict[tuple[str, ...], Child] = {}
_children_lock = threading.Lock()
_known: dict[tuple[str, ...], tuple[float, Mapping[str, Any]]] = {}

FRESH_SECONDS = 3.0
"""How old a device's free memory may be before a warm child is asked again."""


def child(rpc: Sequence[str] = ()) -> Child:
    """The warm child of this process for these workers."""
    with _children_lock:
        key = tuple(rpc)
        if key not in _children:
            if not _children:
                atexit.register(close_all)
            _children[key] = Child(key)
        return _children[key]


def close_all() -> None:
    """End every child of this process."""
    with _children_lock:
        for each in _children.values():
            each.close()
        _children.clear()


@lru_cache(maxsize=1)
def installed() -> bool:
    """Whether llama-cpp-python can be imported here, without importing it."""
    from importlib.util import find_spec

    return find_spec("llama_cpp") is not None


def engine(rpc: Sequence[str] = ()) -> Mapping[str, Any]:
    """What the engine is and which devices it lists (see phitui_hardware.probe), with their free memory as of now."""
    key = tuple(rpc)
    with _engine_lock:
        asked, answer = _known.get(key, (0.0, {}))
        if not answer or time.monotonic() - asked > FRESH_SECONDS:
            answer = child(key).ask({"op": "engine"})
            _known[key] = (time.monotonic(), answer)
        return answer


def measure(model: Path, settings: EngineSettings) -> list[MemoryBuffer]:
    """What a load of `model` would allocate (see phitui_hardware.measure), from the warm child."""
    question = {
        "op": "measure",
        "path": str(model),
        "modified": model.stat().st_mtime,
        "settings": asdict(settings),
    }
    rows = child(settings.rpc).ask(question)["buffers"]
    return [MemoryBuffer(row["name"], row["device"], row["compute"], row.get("weights"), row.get("kv")) for row in rows]


_engine_lock = threading.Lock()
