"""What the task of a job is given: progress that costs nothing, and a stop that takes effect within a second."""

from __future__ import annotations

import contextlib
import math
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from phitui.errors import Cancelled
from phitui.jobs.journal import CANCEL, EventWriter

THIN = 0.2  # seconds between two progress events
GRACE = 0.7  # seconds a task has to react to a cancel
_LOOK = 0.05
_SMOOTH = 5.0  # seconds after which an observation has lost two thirds of its weight


class Rate:
    """Amount per second, smoothed: the ratio of two sums that both forget exponentially, so it is unbiased at once."""

    def __init__(self) -> None:
        self._last: tuple[float, int, int] | None = None
        self._amount = self._seconds = 0.0

    def update(self, now: float, done: int, total: int) -> float:
        """The rate per second, 0 while unknown. Another total or a step back is another phase: it starts anew."""
        last = self._last
        self._last = (now, done, total)
        if last is None or last[2] != total or done < last[1]:
            self._amount = self._seconds = 0.0
            return 0.0
        elapsed = max(0.0, now - last[0])
        fade = math.exp(-elapsed / _SMOOTH)
        self._amount = self._amount * fade + (done - last[1])
        self._seconds = self._seconds * fade + elapsed
        return self._amount / self._seconds if self._seconds > 0 else 0.0


class RunnerContext:
    """The JobContext of a runner. A watcher thread looks for a cancel and writes the thinned progress."""

    def __init__(self, directory: Path, events: EventWriter, hard_stop: Callable[[], None]) -> None:
        self._cancel_file = directory / CANCEL
        self._events = events
        self._hard_stop = hard_stop
        self._latest: tuple[float, int, int, str] | None = None
        self._rate = Rate()
        self._mutex = threading.Lock()
        self._ended = threading.Event()
        self.stopping = False

    # ---- for the task

    def progress(self, done: int, total: int, text: str = "") -> None:
        """Report `done` of `total`. Keeps only the newest; raises Cancelled when asked to stop."""
        self._latest = (time.monotonic(), int(done), int(total), text)
        self.check()

    def note(self, text: str) -> None:
        """Tell a person something: an event, and a line in the log."""
        self._events.write("note", text=text)
        with contextlib.suppress(OSError):
            sys.stderr.write(f"{text}\n")  # which is the job's log
            sys.stderr.flush()

    def check(self) -> None:
        """Raise Cancelled if the work was asked to stop (cancel file or SIGTERM, seen within 50 ms)."""
        if self.stopping:
            raise Cancelled

    # ---- for the runner

    def watch(self) -> None:
        """Start the watcher. To be called from the main thread, which is where Python allows to set signals."""
        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        # The C-level handler writes to this pipe even while the main thread is inside native code.
        signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)
        self.stopping = self._cancel_file.exists()
        threading.Thread(target=self._watch, args=(reading,), name="watcher", daemon=True).start()

    def end(self) -> None:
        """Stop watching, and write the last progress."""
        self._ended.set()
        self._flush()

    def _watch(self, signals: int) -> None:
        stopping_since: float | None = None
        flushed = 0.0
        while not self._ended.is_set():
            if select.select([signals], [], [], _LOOK)[0]:
                self.stopping = _asked_to_stop(os.read(signals, 64)) or self.stopping
            now = time.monotonic()
            self.stopping = self.stopping or self._cancel_file.exists()
            if self.stopping and stopping_since is None:
                stopping_since = now
            if stopping_since is not None and now - stopping_since >= GRACE and not self._ended.is_set():
                self._hard_stop()
            if now - flushed >= THIN and self._latest is not None:
                self._flush()
                flushed = now

    def _flush(self) -> None:
        with self._mutex:
            latest, self._latest = self._latest, None
            if latest is None:
                return
            at, done, total, text = latest
            rate = self._rate.update(at, done, total)
            left = round(max(0, total - done) / rate, 1) if rate > 0 and total > 0 else None
            self._events.write("progress", done=done, total=total, text=text, rate=round(rate, 3), seconds_left=left)


def _asked_to_stop(numbers: bytes) -> bool:
    return bool(set(numbers) & {signal.SIGTERM, signal.SIGINT})
