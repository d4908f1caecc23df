"""What a viewer sees of a job: its state, its progress and its events. Values only, no files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FINAL = frozenset({"done", "failed", "cancelled", "interrupted"})
RESUMABLE = frozenset({"failed", "cancelled", "interrupted"})
_BYTES_FROM = 1 << 20


@dataclass(frozen=True)
class Progress:
    """How far a job is. `done` and `total` are bytes or items; `rate` is per second, smoothed; 0 while unknown."""

    done: int = 0
    total: int = 0
    text: str = ""
    rate: float = 0.0
    seconds_left: float | None = None

    @property
    def fraction(self) -> float:
        """0 to 1; 0 while the total is unknown."""
        return min(1.0, max(0.0, self.done / self.total)) if self.total > 0 else 0.0

    @property
    def in_bytes(self) -> bool:
        """Whether to show sizes: tasks count bytes of files or a handful of items, never a million items."""
        return self.total >= _BYTES_FROM


@dataclass(frozen=True)
class Event:
    """One line of a job's journal. `type` is "state", "progress" or "note"; the other fields belong to one of them.

    `started` is when the attempt began to run; it is repeated in the final state, so that the end of a journal is
    enough to know an ended job.

    The state "interrupted" is never in the file: a reader concludes it when the runner is gone without a final state.
    """

    time: float
    type: str
    state: str = ""
    text: str = ""
    attempt: int = 0
    pid: int | None = None
    started: float | None = None
    progress: Progress | None = None
    result: dict[str, Any] | None = None
    error: dict[str, str] | None = None


@dataclass(frozen=True)
class Job:
    """A snapshot of one job. Times are unix seconds; `pid` is the live runner's, None when there is none.

    `state` is queued, running, done, failed, cancelled or interrupted. `attempt` counts from 1 and grows by resuming.
    `argv` is the command line that does the same; `key` names what the job works on (see Jobs.start).
    """

    id: str
    kind: str
    title: str
    state: str
    directory: Path
    request: dict[str, Any] = field(default_factory=dict)
    created: float = 0.0
    pid: int | None = None
    started: float | None = None
    finished: float | None = None
    progress: Progress = Progress()
    result: dict[str, Any] | None = None
    error: dict[str, str] | None = None
    attempt: int = 1
    argv: tuple[str, ...] = ()
    key: str = ""

    @property
    def live(self) -> bool:
        """Queued or running: somebody works on it."""
        return self.state not in FINAL

    @property
    def resumable(self) -> bool:
        return self.state in RESUMABLE


def event_from(line: Mapping[str, Any]) -> Event:
    """An Event from a parsed line of the journal. Raises KeyError, TypeError or ValueError for a strange one."""
    progress = None
    if line["type"] == "progress":
        left = line.get("seconds_left")
        progress = Progress(
            int(line["done"]),
            int(line["total"]),
            str(line.get("text", "")),
            float(line.get("rate", 0.0)),
            None if left is None else float(left),
        )
    pid, started = line.get("pid"), line.get("started")
    return Event(
        time=float(line["time"]),
        type=str(line["type"]),
        state=str(line.get("state", "")),
        text=str(line.get("text", "")),
        attempt=int(line.get("attempt", 0)),
        pid=None if pid is None else int(pid),
        started=None if started is None else float(started),
        progress=progress,
        result=line.get("result"),
        error=line.get("error"),
    )
