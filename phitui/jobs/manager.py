"""Jobs: start, look at, follow, cancel and resume. Every method works from any process, two at once too."""

from __future__ import annotations

import codecs
import contextlib
import hashlib
import io
import os
import re
import secrets
import shutil
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from phitui.errors import PhituiError, UsageError
from phitui.jobs import journal, launch, lock
from phitui.jobs.model import FINAL, Event, Job

POLL = 0.1
_LOOK = 0.3  # seconds of patience for a lock that only readers may be touching
_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_KEYS, _START = ".keys", ".start"
_INTERRUPTED = "the job's process ended without a result: it was killed, it crashed, or the machine restarted"


@dataclass
class _Known:
    """What is remembered of a job between two looks."""

    request: dict[str, Any]
    reader: journal.EventReader


class Jobs:
    """The jobs below one directory. Cheap to make; keep it to look at the same jobs again."""

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
        with self._starting():
            if key and (live := self._live_with(key)):
                if live.kind == kind and live.request == request:
                    return live
                raise PhituiError(
                    f"job {live.id} ({live.title}) is already working on {key}",
                    f"phitui jobs wait {live.id}, or phitui jobs cancel {live.id}",
                )
            values = {"kind": kind, "task": task, "title": title, "request": request, "key": key, "argv": list(argv)}
            name, held = self._create(values)
            if key:
                self._remember(key, name)
        self._launch(name, held)
        return self.get(name)

    @contextlib.contextmanager
    def _starting(self) -> Iterator[None]:
        """Only one process at a time decides who works on a key."""
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            held = lock.acquire(self.directory / _START, patience=10.0)
        except OSError as error:
            raise PhituiError(f"cannot keep jobs in {self.directory}: {error.strerror}") from None
        if held is None:
            raise PhituiError("another phitui has been starting a job for 10 s", "try again")
        try:
            yield
        finally:
            os.close(held)

    def _create(self, values: dict[str, Any]) -> tuple[str, int]:
        """Make the job's directory, complete and locked before it gets its name."""
        created = time.time()
        name = new_id(created)
        draft = self.directory / f".{name}"
        held = None
        try:
            draft.mkdir(mode=0o700)
            journal.write_request(draft, {"id": name, "created": round(created, 3), **values})
            held = lock.acquire(draft / lock.NAME, _LOOK)
            assert held is not None, "nobody else knows this directory"
            writer = journal.EventWriter(draft)
            writer.write("state", state="queued", attempt=1)
            writer.close()
            draft.rename(self.directory / name)
        except BaseException as error:
            shutil.rmtree(draft, ignore_errors=True)
            if held is not None:
                os.close(held)
            if isinstance(error, OSError):
                raise PhituiError(f"cannot make a job in {self.directory}: {error.strerror}") from None
            if isinstance(error, TypeError):
                raise UsageError(f"the request of a job must be plain JSON: {error}") from None
            raise
        return name, held

    def _launch(self, name: str, held: int) -> None:
        directory = self.directory / name
        try:
            launch.launch(directory, held)
        except OSError as error:
            writer = journal.EventWriter(directory)
            message = f"cannot start the job's process: {error.strerror}"
            writer.write("state", state="failed", error={"message": message, "hint": ""})
            writer.close()
            raise PhituiError(message, f"phitui jobs resume {name}") from None
        finally:
            os.close(held)

    def _key_file(self, key: str) -> Path:
        return self.directory / _KEYS / hashlib.sha256(key.encode()).hexdigest()[:32]

    def _remember(self, key: str, name: str) -> None:
        file = self._key_file(key)
        with contextlib.suppress(OSError):
            file.parent.mkdir(mode=0o700, exist_ok=True)
            file.touch(mode=0o600)
            file.write_text(name)

    def _live_with(self, key: str) -> Job | None:
        try:
            job = self.get(self._key_file(key).read_text())
        except (OSError, PhituiError):
            return None
        return job if job.live and job.key == key else None

    def resume(self, job_id: str) -> Job:
        """Run an interrupted, failed or cancelled job again, in the same directory. Of two at once, one wins."""
        name = self._find(job_id)
        with self._starting():
            job = self.get(name)
            other = self._live_with(job.key) if job.key else None
            if other and other.id != name:
                raise PhituiError(f"job {other.id} is already working on {job.key}", f"phitui jobs wait {other.id}")
            held = self._seize(job, "resume")
            try:
                job = self.get(name)
                if job.state == "done":
                    raise PhituiError(f"job {name} is done, there is nothing to resume", f"phitui jobs show {name}")
                (job.directory / journal.CANCEL).unlink(missing_ok=True)
                writer = journal.EventWriter(job.directory)
                writer.write("state", state="queued", attempt=job.attempt + 1)
                writer.close()
                if job.key:
                    self._remember(job.key, name)
            except BaseException:
                os.close(held)
                raise
        self._launch(name, held)
        return self.get(name)

    def _seize(self, job: Job, verb: str) -> int:
        """The lock of a job that does not live. A runner that wrote its final state may need a moment to go."""
        held = None
        if not job.live:
            held = lock.acquire(job.directory / lock.NAME, patience=2.0)
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
        except FileNotFoundError:
            return []
        for gone in self._known.keys() - set(names):
            self._known.pop(gone, None)
        jobs = [job for name in names if (job := self._look(name)) is not None]
        return sorted(jobs, key=lambda job: (job.created, job.id), reverse=True)

    def get(self, job_id: str) -> Job:
        """The job of that id or unique prefix or suffix. Raises PhituiError."""
        name = self._find(job_id)
        job = self._look(name)
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
            yield from events[-1:] if skip and ended else () if skip else events
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
            time.sleep(POLL / 2)

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

        The runner sees the request within 50 ms and gives its task 0.75 s to react. One that does not even then (native
        code that keeps the interpreter's lock) is killed; what it wrote stays resumable all the same.
        """
        job = self.get(job_id)
        if not job.live:
            return job
        (job.directory / journal.CANCEL).touch(mode=0o600)
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
            gone = job.directory.with_name(f".{job.id}.removed")
            job.directory.rename(gone)
            shutil.rmtree(gone, ignore_errors=True)
        except FileNotFoundError:
            pass
        finally:
            os.close(held)
        self._known.pop(job.id, None)
        return job


def new_id(now: float) -> str:
    """Ten characters that sort by time (1/32 s), the last two random; no letters that look like digits."""
    ticks, text = int(now * 32), ""
    for _ in range(8):
        ticks, digit = divmod(ticks, 32)
        text = _ALPHABET[digit] + text
    return text + "".join(secrets.choice(_ALPHABET) for _ in range(2))


def _unknown(job_id: str) -> PhituiError:
    return PhituiError(f"there is no job {job_id!r}", "phitui jobs list")


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
        request=request.get("request") or {},
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
