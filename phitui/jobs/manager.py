"""Jobs: start, look at, follow, cancel and resume. Every method works from any process, two at once too."""

from __future__ import annotations

import codecs
import contextlib
import io
import os
import re
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from phitui.errors import PhituiError, UsageError
from phitui.jobs import create, journal, launch, lock
from phitui.jobs.model import FINAL, Event, Job

POLL = 0.1
_INTERRUPTED = "the job's process ended without a result: it was killed, it crashed, or the machine restarted"


@dataclass
class _Known:
    """What is remembered of a job between two looks."""

    request: dict[str, Any]
    reader: journal.EventReader
    mutex: threading.Lock = field(default_factory=threading.Lock)


class Jobs:
    """The jobs below one directory. Cheap to make; keep it to look at the same jobs again. Safe from any thread."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._known: dict[str, _Known] = {}

    # ---- starting

    def start(
        self,
        kind: str,
        task: str,
        request: dict[str, Any],
        title: str,
        *,
        key: str = "",
        argv: Sequence[str] = (),
    ) -> Job:
        """Start `task` ("phitui.actions.x:function") with `request` in a detached process and return at once.

        The process runs in "/": paths in the request must be absolute. `key` names what the work produces, for example
        its output path: while a job with the same key lives, the same request returns that job (the caller is attached
        to it), and another request is refused. `argv` is the command line that does the same.
        """
        launch.check_task(task)
        with create.starting(self.directory):
            if live := self._live_with(key):
                if live.kind == kind and live.request == request:
                    return live
                raise _busy(live)
            values = {"kind": kind, "task": task, "title": title, "request": request, "key": key, "argv": list(argv)}
            name, held = create.create(self.directory, values)
            create.remember_key(self.directory, key, name)
        self._launch(name, held, attempt=1)
        return self.get(name)

    def resume(self, job_id: str) -> Job:
        """Run an interrupted, failed or cancelled job again, in the same directory. Of two at once, one wins."""
        name = self._find(job_id)
        with create.starting(self.directory):
            job = self.get(name)
            if job.state == "done":
                raise PhituiError(f"job {name} is done, there is nothing to resume", f"phitui jobs show {name}")
            other = self._live_with(job.key)
            if other and other.id != name:
                raise _busy(other)
            held = self._seize(job, "resume")
            try:
                (job.directory / journal.CANCEL).unlink(missing_ok=True)
                journal.write_state(job.directory, state="queued", attempt=job.attempt + 1)
                create.remember_key(self.directory, job.key, name)
            except OSError as error:
                os.close(held)
                raise PhituiError(f"cannot resume job {name}: {error.strerror}") from None
        self._launch(name, held, job.attempt + 1)
        return self.get(name)

    def _live_with(self, key: str) -> Job | None:
        name = create.job_of_key(self.directory, key)
        job = self._look(name) if name else None
        return job if job and job.live and job.key == key else None

    def _launch(self, name: str, held: int, attempt: int) -> None:
        directory = self.directory / name
        try:
            launch.launch(directory, held)
        except OSError as error:
            text = f"cannot start the job's process: {error.strerror}"
            with contextlib.suppress(OSError):
                journal.write_state(directory, state="failed", attempt=attempt, error={"message": text, "hint": ""})
            raise PhituiError(text, f"phitui jobs resume {name}") from None
        finally:
            os.close(held)

    def _seize(self, job: Job, verb: str) -> int:
        """The lock of a job that does not live. A runner that wrote its final state may need a moment to go."""
        held = None if job.live else lock.acquire(job.directory / lock.NAME, patience=2.0)
        if held is None:
            raise PhituiError(
                f"cannot {verb} job {job.id}: it is running",
                f"phitui jobs wait {job.id}, or phitui jobs cancel {job.id}",
            )
        return held

    # ---- looking

    def list(self) -> list[Job]:
        """All jobs, newest first."""
        try:
            names = [entry.name for entry in os.scandir(self.directory) if not entry.name.startswith(".")]
        except OSError:
            return []
        for gone in set(self._known.copy()) - set(names):
            self._known.pop(gone, None)
        jobs = [job for name in names if (job := self._look(name)) is not None]
        return sorted(jobs, key=lambda job: (job.created, job.id), reverse=True)

    def get(self, job_id: str) -> Job:
        """The job of that id, or of a unique beginning or end of one. Raises PhituiError."""
        job = self._look(self._find(job_id))
        if job is None:
            raise _unknown(job_id)
        return job

    def _find(self, job_id: str) -> str:
        wanted = job_id.strip().lower()
        if not re.fullmatch("[0-9a-z]+", wanted):
            raise _unknown(job_id)
        if (self.directory / wanted / journal.REQUEST).exists():
            return wanted
        names = [path.name for path in self.directory.glob("[!.]*")]
        found = [n for n in names if n.startswith(wanted)] or [n for n in names if n.endswith(wanted)]
        if len(found) > 1:
            raise UsageError(f"{len(found)} jobs match {job_id!r}", f"one of: {', '.join(sorted(found)[-5:])}")
        if not found:
            raise _unknown(job_id)
        return found[0]

    def _look(self, name: str) -> Job | None:
        """The job as its files say; None if they are gone or are no job."""
        directory = self.directory / name
        try:
            known = self._known.get(name)
            if known is None:
                known = self._known[name] = _Known(journal.read_request(directory), journal.EventReader(directory))
            with known.mutex:
                reader = known.reader
                reader.skim()
                alive = True
                if reader.fold.state not in FINAL and not lock.held(directory / lock.NAME):
                    reader.skim()  # it may have ended between the two looks
                    alive = reader.fold.state in FINAL
                return _job(known.request, reader.fold, directory, alive)
        except (OSError, ValueError):
            self._known.pop(name, None)
            return None

    def follow(self, job_id: str, new_only: bool = False) -> Iterator[Event]:
        """The events from the start (or from now on) until the job ends; the last one is its final state."""
        directory = self.directory / self._find(job_id)
        reader = journal.EventReader(directory)
        skip = new_only
        while True:
            alive = lock.held(directory / lock.NAME)  # before reading, so that its last words are not missed
            try:
                events = reader.read()
            except FileNotFoundError:
                return
            ended = reader.fold.state in FINAL
            if skip:
                events = events[-1:] if ended else []
            yield from events
            skip = False
            if ended:
                return
            if not alive:
                job = self.get(directory.name)
                yield Event(job.finished or 0.0, "state", job.state, attempt=job.attempt, error=job.error)
                return
            time.sleep(POLL)

    def wait(self, job_id: str, timeout: float | None = None) -> Job:
        """The job once it has ended, or as it is after `timeout` seconds."""
        deadline = None if timeout is None else time.monotonic() + timeout
        name = self._find(job_id)
        while True:
            job = self.get(name)
            if not job.live or (deadline is not None and time.monotonic() >= deadline):
                return job
            time.sleep(POLL / 4)

    def log(self, job_id: str, last_bytes: int | None = None) -> str:
        """What the job's process wrote to stdout and stderr, native code included; the end of it only, if wanted."""
        try:
            with (self.directory / self._find(job_id) / journal.LOG).open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(0, size - last_bytes) if last_bytes is not None else 0)
                return file.read().decode("utf-8", "replace")
        except FileNotFoundError:
            return ""

    def follow_log(self, job_id: str, until_end: bool = True) -> Iterator[str]:
        """The log in pieces, every kind of line end as a newline; with `until_end` as it grows, until the job ends."""
        directory = self.directory / self._find(job_id)
        decode = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder("utf-8")("replace"), translate=True).decode
        offset = 0
        while True:
            live = until_end and self.get(directory.name).live  # before reading, so that its last words are not missed
            with contextlib.suppress(FileNotFoundError), (directory / journal.LOG).open("rb") as file:
                file.seek(offset)
                while data := file.read(1 << 16):
                    offset += len(data)
                    yield decode(data)
            if not live:
                yield decode(b"", final=True)
                return
            time.sleep(POLL)

    # ---- stopping

    def cancel(self, job_id: str, patience: float = 0.95) -> Job:
        """Stop a job and return it; one that has ended is returned as it is. Blocks up to `patience` + 0.5 seconds.

        The runner sees the request within 50 ms and gives its task 0.7 s to react. One that does not even then (native
        code that keeps the interpreter's lock) is killed; what it wrote stays resumable all the same.
        """
        job = self.get(job_id)
        if not job.live:
            return job
        with contextlib.suppress(OSError):  # on a full disk the signal alone has to do
            (job.directory / journal.CANCEL).touch(mode=0o600)
        _signal(job, signal.SIGTERM)
        job = self.wait(job.id, patience)
        if job.live:
            _signal(job, signal.SIGKILL)
            job = self.wait(job.id, 0.5)
        return job

    def remove(self, job_id: str) -> Job:
        """Delete the files of a job that has ended (never what it produced). Returns it as it was."""
        job = self.get(job_id)
        held = self._seize(job, "remove")
        try:
            create.discard(self.directory, job.id)
        except OSError as error:
            raise PhituiError(f"cannot remove job {job.id}: {error.strerror}") from None
        finally:
            os.close(held)
        self._known.pop(job.id, None)
        return job


def _unknown(job_id: str) -> PhituiError:
    return PhituiError(f"there is no job {job_id!r}", "phitui jobs list")


def _busy(job: Job) -> PhituiError:
    return PhituiError(
        f"job {job.id} ({job.title}) is already working on {job.key}",
        f"phitui jobs wait {job.id}, or phitui jobs cancel {job.id}",
    )


def _job(request: dict[str, Any], fold: journal.Fold, directory: Path, alive: bool) -> Job:
    state, error = fold.state, fold.error
    if not alive:
        stopped = (directory / journal.CANCEL).exists()
        state = "cancelled" if stopped else "interrupted"
        if not stopped:
            name = directory.name
            error = {
                "message": _INTERRUPTED,
                "hint": f"phitui jobs resume {name}; what it said: phitui jobs log {name}",
            }
    return Job(
        id=directory.name,
        kind=str(request.get("kind", "")),
        title=str(request.get("title", "")),
        state=state,
        directory=directory,
        request=dict(request.get("request") or {}),
        created=float(request.get("created", 0.0)),
        pid=fold.pid if state not in FINAL else None,
        started=fold.started,
        finished=fold.last if state in FINAL else None,
        progress=fold.progress,
        result=fold.result,
        error=error,
        attempt=fold.attempt,
        argv=tuple(request.get("argv") or ()),
        key=str(request.get("key", "")),
    )


def _signal(job: Job, number: signal.Signals) -> None:
    """Signal the runner and nobody else: the lock is looked at after the process is pinned by a descriptor."""
    if job.pid is None:
        return
    with contextlib.suppress(OSError):
        if not hasattr(os, "pidfd_open"):
            if lock.held(job.directory / lock.NAME):
                os.kill(job.pid, number)
            return
        pinned = os.pidfd_open(job.pid)
        try:
            if lock.held(job.directory / lock.NAME):
                signal.pidfd_send_signal(pinned, number)
        finally:
            os.close(pinned)
