"""The files of one job: request.json, events.jsonl, log, lock and cancel; written by one runner, read by anyone.

Each event is one JSON line, appended with one write. A line torn by a crash or a full disk is skipped by readers, and
the next writer starts on a fresh line.
"""

from __future__ import annotations

import errno
import json
import os
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from phitui.jobs.model import FINAL, Event, Progress, event_from

REQUEST, EVENTS, LOG, CANCEL = "request.json", "events.jsonl", "log", "cancel"
_TAIL = 2048


class EventWriter:
    """Appends events. Safe from any thread; after a final state everything else is dropped."""

    def __init__(self, directory: Path) -> None:
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        self._file = os.open(directory / EVENTS, flags, 0o600)
        self._mutex = threading.Lock()
        self._ended = False
        size = os.fstat(self._file).st_size
        self._torn = size > 0 and os.pread(self._file, 1, size - 1) != b"\n"

    def write(self, type_: str, **values: Any) -> bool:
        """Append one event; returns False if the disk refused it or the job has ended before.

        Only "done" is synced: it must not be forgotten while the file it speaks of stays. Waiting for the disk at a
        cancel could take as long as all that other programs have written.
        """
        state = values.get("state")
        line = json.dumps({"time": round(time.time(), 3), "type": type_, **values}, ensure_ascii=False, default=str)
        with self._mutex:
            if self._ended:
                return False
            self._ended = state in FINAL
            return self._append(line.encode("utf-8", "replace") + b"\n", sync=state == "done")

    def _append(self, data: bytes, sync: bool) -> bool:
        try:
            data = b"\n" + data if self._torn else data
            written = os.write(self._file, data)
            self._torn = written != len(data)
            if sync:
                os.fsync(self._file)
        except OSError:
            return False
        return not self._torn

    def close(self) -> None:
        with self._mutex:
            self._ended = True
            os.close(self._file)


def write_state(directory: Path, **values: Any) -> None:
    """Append one state for a job that has no runner; the caller holds its lock. Raises OSError if it cannot."""
    writer = EventWriter(directory)
    try:
        if not writer.write("state", **values):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    finally:
        writer.close()


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
        self.started = event.started


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
        """Bring `fold` up to date. The first time, the last lines are enough for a job that has ended."""
        size = self.size()
        if self._offset == 0 and size > _TAIL:
            with self._path.open("rb") as file:
                file.seek(size - _TAIL)
                data = file.read()
            fold = _ended(data[data.find(b"\n") + 1 : data.rfind(b"\n") + 1])
            if fold is not None:
                self.fold, self._offset = fold, size - _TAIL + data.rfind(b"\n") + 1
                return
        if size != self._offset:
            self.read()

    def _take(self, data: bytes) -> list[Event]:
        end = data.rfind(b"\n") + 1
        self._offset += end
        events = [event for line in data[:end].splitlines() if (event := _parsed(line)) is not None]
        for event in events:
            self.fold.add(event)
        return events


def _parsed(line: bytes) -> Event | None:
    """The event, or None for a line that is torn or of a later version."""
    try:
        return event_from(json.loads(line))
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _ended(lines: bytes) -> Fold | None:
    """What all events add up to, from the last lines alone; None if these do not tell an end and a progress."""
    state = None
    for line in reversed(lines.splitlines()):
        event = _parsed(line)
        if event is None:
            continue
        if state is None and event.type == "state":
            if event.state not in FINAL:
                return None
            state = event
        if event.progress is not None and state is not None:
            fold = Fold()
            fold.add(event)
            fold.add(state)
            return fold
    return None


def write_request(directory: Path, values: dict[str, Any]) -> None:
    """Write request.json; the directory is not public yet. Raises TypeError if the values are not JSON."""
    data = json.dumps(values, ensure_ascii=False, indent=1).encode()
    descriptor = os.open(directory / REQUEST, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)


def read_request(directory: Path) -> dict[str, Any]:
    """request.json. Raises OSError or ValueError."""
    values = json.loads((directory / REQUEST).read_bytes())
    if not isinstance(values, dict):
        raise ValueError("not an object")
    return values
