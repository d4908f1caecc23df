"""The files of one job: request.json, events.jsonl, log, lock and cancel; written by one runner, read by anyone.

Each event is one JSON line, appended with one write. A line torn by a crash or a full disk is skipped by readers, and
the next writer starts on a fresh line.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from phitui.jobs.model import FINAL, Event, Progress, event_from

REQUEST, EVENTS, LOG, CANCEL = "request.json", "events.jsonl", "log", "cancel"
_TAIL = 16 * 1024


class EventWriter:
    """Appends events. Safe from any thread; after a final state everything else is dropped."""

    def __init__(self, directory: Path) -> None:
        self._file = os.open(directory / EVENTS, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._mutex = threading.Lock()
        self._closed = False
        size = os.fstat(self._file).st_size
        self._torn = size > 0 and os.pread(self._file, 1, size - 1) != b"\n"

    def write(self, type_: str, **values: Any) -> bool:
        """Append one event; returns whether it is on its way to the disk. A state is synced before this returns."""
        final = values.get("state") in FINAL
        line = json.dumps({"time": round(time.time(), 3), "type": type_, **values}, ensure_ascii=False, default=str)
        with self._mutex:
            if self._closed:
                return False
            self._closed = final
            return self._append(line.encode("utf-8", "replace") + b"\n", sync=type_ == "state")

    def _append(self, data: bytes, sync: bool) -> bool:
        try:
            data = b"\n" + data if self._torn else data
            self._torn = True
            self._torn = os.write(self._file, data) != len(data)
            if sync:
                os.fsync(self._file)
        except OSError:
            return False
        return not self._torn

    def close(self) -> None:
        with self._mutex:
            self._closed = True
        os.close(self._file)


@dataclass
class Fold:
    """What the events so far add up to."""

    state: str = "queued"
    attempt: int = 1
    pid: int | None = None
    started: float | None = None
    last: float = 0.0
    progress: Progress = field(default_factory=Progress)
    result: dict[str, Any] | None = None
    error: dict[str, str] | None = None

    def add(self, event: Event) -> None:
        self.last = event.time
        if event.progress is not None:
            self.progress = event.progress
        if event.type != "state":
            return
        self.state, self.result, self.error = event.state, event.result, event.error
        self.attempt = event.attempt or self.attempt
        self.pid = event.pid
        if event.state == "queued":
            self.started = None
        elif event.state == "running":
            self.started = event.time


class EventReader:
    """Reads events.jsonl from where it stopped last time; only whole lines count."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / EVENTS
        self._offset = 0
        self.fold = Fold()

    def size(self) -> int:
        return self._path.stat().st_size

    def read(self) -> list[Event]:
        """The events that are new since the last call, also added to `fold`. Raises FileNotFoundError."""
        with self._path.open("rb") as file:
            if os.fstat(file.fileno()).st_size == self._offset:
                return []
            file.seek(self._offset)
            data = file.read()
        return self._take(data)

    def skim(self) -> None:
        """Bring `fold` up to date. The first time, the end of a long journal is enough if the job has ended there."""
        size = self.size()
        if self._offset == 0 and size > _TAIL:
            with self._path.open("rb") as file:
                file.seek(size - _TAIL)
                data = file.read()
            start = data.find(b"\n") + 1
            self._offset = size - _TAIL + start
            self._take(data[start:])
            if self.fold.state in FINAL:
                return
            self._offset, self.fold = 0, Fold()
        if size != self._offset:
            self.read()

    def _take(self, data: bytes) -> list[Event]:
        end = data.rfind(b"\n") + 1
        self._offset += end
        events = []
        for line in data[:end].splitlines():
            with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):  # torn, or of a later version
                event = event_from(json.loads(line))
                self.fold.add(event)
                events.append(event)
        return events


def write_request(directory: Path, values: dict[str, Any]) -> None:
    """Write request.json, synced; the directory is not public yet. Raises TypeError if it is not JSON."""
    data = json.dumps(values, ensure_ascii=False, indent=1).encode()
    descriptor = os.open(directory / REQUEST, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def read_request(directory: Path) -> dict[str, Any]:
    """request.json. Raises OSError or ValueError."""
    values = json.loads((directory / REQUEST).read_bytes())
    if not isinstance(values, dict):
        raise ValueError("not an object")
    return values
