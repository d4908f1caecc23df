"""Writes a planned GGUF: chunks by several threads into `<name>.partial`, journalled, synced, renamed.

Bytes that stay as they are are copied by the kernel. Float to float goes through numpy, all else through the encoder of
the quantizer. Floats are looked at on their way: NaN and infinity are refused. Memory is a few MiB per thread at any
size of model.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from phitui.domain.offers import Encoder, JobContext
from phitui.domain.tensors import FileExtent, FilePlan
from phitui.errors import SourceChanged, UsageError
from phitui.gguf import chunks
from phitui.gguf.chunks import Chunk
from phitui.gguf.chunkwork import ChunkWork
from phitui.gguf.digest import FollowingDigest
from phitui.gguf.header import encode_header
from phitui.gguf.journal import VERSION, Journal, boot_id, recover
from phitui.gguf.partial import Partial, TargetError, check_output
from phitui.gguf.reading import SourceFiles

if TYPE_CHECKING:
    from phitui.gguf.finite import NotFinite
    from phitui.gguf.readahead import RemoteReport

MAX_THREADS = 32
SYNC_SECONDS = 30.0
"""How much work a power failure can cost, at most."""
AHEAD = 8
"""How many chunks before its turn a chunk is asked for from the disk."""
_POLL_SECONDS = 0.1


@dataclass(frozen=True)
class WriteResult:
    """A finished file. `resumed_bytes` were there from a former, interrupted write. Bytes and seconds.

    `not_finite` says what was written although it is no number, tensor by tensor; `remote` what came from the Hub.
    """

    path: Path
    size: int
    seconds: float
    resumed_bytes: int = 0
    not_finite: tuple[NotFinite, ...] = ()
    remote: RemoteReport | None = None


def write_gguf(
    plan: FilePlan,
    out: Path | str,
    encoder: Encoder | None = None,
    job: JobContext | None = None,
    threads: int | None = None,
    *,
    overwrite: bool = False,
    allow_nan: bool = False,
    seal: Callable[[str], None] | None = None,
) -> WriteResult:
    """Write the planned file. Goes on where a former write of the same plan was interrupted.

    Floats that are NaN or infinite, or become infinite in the type they are written as, are refused, all tensors that
    hold some in one error; with `allow_nan` they are written, and a note of the job and the result tell of them.
    `seal` is called with the SHA-256 of the finished file right before it gets its name, and may raise.
    Raises UsageError (output there already, encoder missing), InvalidFile (a source is truncated, changed or no
    numbers), PhituiError (disk full, not writable, another writer, encoder failed) and Cancelled. The unfinished file
    is removed where it is worthless (disk full, source changed or refused) and stays where a new try can go on with it.
    """
    from phitui.gguf.finite import NotFiniteError

    started = time.monotonic()
    out = Path(out).absolute()
    check_output(out, overwrite)
    _check_plan(plan, out, encoder)
    with SourceFiles(plan, job) as sources:
        partial = Partial(out, overwrite)
        try:
            work = _Write(plan, partial, sources, encoder, job, allow_nan, digest=seal is not None)
            size, resumed = work.run(threads or _default_threads())
            sources.check_unchanged()
            if seal is not None:
                seal(work.sha256)
            partial.publish(overwrite)
        except (TargetError, SourceChanged, NotFiniteError):
            partial.discard()
            raise
        finally:
            partial.close()
    return WriteResult(out, size, time.monotonic() - started, resumed, work.inspector.found, work.remote)


def _default_threads() -> int:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(usable, MAX_THREADS)


def _check_plan(plan: FilePlan, out: Path, encoder: Encoder | None) -> None:
    for tensor in plan.tensors:
        if encoder is None and chunks.kind_of(tensor) == "encode":
            raise UsageError(f"tensor {tensor.name} is to be {tensor.type.name}, but no encoder was given")
    target = out.resolve()
    files = {e.path for t in plan.tensors for e in t.source.extents if isinstance(e, FileExtent)}
    if any(path.resolve() == target for path in files):
        raise UsageError(f"{out} is the source itself", "choose another name with --out")


class _Write:
    """One write: its chunks, its threads and its journal."""

    def __init__(
        self,
        plan: FilePlan,
        partial: Partial,
        sources: SourceFiles,
        encoder: Encoder | None,
        job: JobContext | None,
        allow_nan: bool,
        digest: bool = False,
    ) -> None:
        from phitui.gguf.finite import Inspector

        self.partial, self.sources, self.job = partial, sources, job
        self.inspector = Inspector(allow_nan)
        self.work = ChunkWork(partial, sources, encoder, self.inspector)
        self.remote: RemoteReport | None = None
        self.header = encode_header(plan)
        self.size = len(self.header) + plan.data_size
        self.chunks = chunks.split(plan)
        self.sha256 = ""
        self.digest: FollowingDigest | None = None
        if digest:
            ends = [(chunk.number, self._target(chunk) + chunk.length) for chunk in self.chunks]
            self.digest = FollowingDigest(partial.descriptor, self.size, ends)
        self.total = sum(chunk.length for chunk in self.chunks)
        self.done = 0
        self.stop = threading.Event()
        self._count = threading.Lock()
        self.head = {
            "journal": VERSION,
            "plan": plan.fingerprint,
            "header": hashlib.sha256(self.header).hexdigest(),
            "encoder": str(getattr(encoder, "identity", "")),
            "size": self.size,
            "chunks": len(self.chunks),
            "cut": [chunks.COPY_BYTES, chunks.FLOAT_VALUES, chunks.ENCODE_VALUES],
            "sources": [list(identity) for identity in sources.identities],
            "allow_nan": allow_nan,
        }

    def run(self, threads: int) -> tuple[int, int]:
        """Do all chunks and sync. Returns the size of the file and the bytes that were there already."""
        boot = boot_id()
        kept = self.partial.size == self.size
        done, synced = recover(self.partial.journal_path, self.head, boot) if kept else ([], 0)
        try:
            if not done:  # first of all: it must never describe a file that is emptied here
                self.partial.journal_path.unlink(missing_ok=True)
            self.partial.reserve(self.size, keep=bool(done))
            self.journal = Journal(self.partial.journal_path, self.head, boot, done, synced)
        except OSError as error:
            raise self._journal_error(error) from None
        finished = set(done)
        self.queue = deque(self.sources.in_order([chunk for chunk in self.chunks if chunk.number not in finished]))
        resumed = self.done = self.total - sum(chunk.length for chunk in self.queue)
        try:
            self.partial.write(self.header, 0)
            if self.digest:
                self.digest.start(finished)
            self._work(threads)
            self._judge()
            self.remote = self.sources.finish(self._report)
            self._wait_for(_in_background(self.partial.sync))
            if self.digest:
                self.sha256 = self._digested(self.digest)
        finally:
            if self.digest:
                self.digest.stop()
            self.journal.close()
        self._report()
        return self.size, resumed

    def _digested(self, digest: FollowingDigest) -> str:
        try:
            return digest.finish(self._report)
        except OSError as error:
            raise TargetError(
                f"{self.partial.path}: cannot be read back: {error.strerror or error}", "choose another disk with --out"
            ) from None

    def _work(self, threads: int) -> None:
        """Let the threads empty the queue; this one reports, syncs now and then, and listens for a cancel."""
        syncing: Future[None] | None = None
        last = time.monotonic()
        with ThreadPoolExecutor(threads, thread_name_prefix="phitui-write") as pool:
            pending = {pool.submit(self._drain) for _ in range(max(1, min(threads, len(self.queue))))}
            try:
                while pending:
                    finished, pending = wait(pending, _POLL_SECONDS, FIRST_EXCEPTION)
                    for future in finished:
                        future.result()
                    self._report()
                    if syncing and syncing.done():
                        syncing.result()
                        syncing = None
                    if not syncing and time.monotonic() - last > SYNC_SECONDS:
                        syncing, last = _in_background(self._sync), time.monotonic()
            except BaseException:
                self.sources.stop()  # no thread of the pool may wait for a server: this one waits for all of them
                raise
            finally:
                self.stop.set()
        if syncing:
            self._wait_for(syncing)

    def _journal_error(self, error: OSError) -> TargetError:
        return TargetError(f"{self.partial.journal_path}: cannot be written: {error.strerror}", "free some space there")

    def _drain(self) -> None:
        while not self.stop.is_set():
            try:
                chunk = self.queue.popleft()
            except IndexError:
                return
            self._prefetch()
            if self.work.write(chunk, self._target(chunk)):
                try:
                    self.journal.done(chunk.number)
                except OSError as error:
                    raise self._journal_error(error) from None
            if self.digest:
                self.digest.wrote(chunk.number)
            with self._count:
                self.done += chunk.length
            if self.inspector.tired:
                return

    def _prefetch(self) -> None:
        """Several threads read by turns, which the kernel takes for random access: say what is read soon."""
        with contextlib.suppress(IndexError):
            chunk = self.queue[AHEAD]
            self.sources.prefetch(chunk.tensor.source, *chunk.stored)

    def _target(self, chunk: Chunk) -> int:
        """Where the chunk begins in the file."""
        return len(self.header) + chunk.tensor.offset + chunk.start

    def _judge(self) -> None:
        """Refuse what is not finite, or say that it was written. Raises NotFiniteError."""
        from phitui.gguf.finite import listed

        found = self.inspector.found
        if self.inspector.refused:
            raise self.inspector.error(str(self.partial.out))
        if found and self.job:
            for line in listed(found).strip().splitlines():
                self.job.note(f"not finite, and written as it is: {line.strip()}")

    def _sync(self) -> None:
        """What is written now is on the disk afterwards, and the journal says so."""
        count = self.journal.count
        self.partial.sync(data_only=True)
        try:
            self.journal.synced(count)
        except OSError as error:
            raise self._journal_error(error) from None

    def _report(self) -> None:
        """Tell the job how far it is; raises Cancelled if it was asked to stop."""
        if self.job:
            self.job.progress(self.done, self.total)
            self.job.check()

    def _wait_for(self, future: Future[None]) -> None:
        while not future.done():
            wait({future}, _POLL_SECONDS)
            self._report()
        future.result()


def _in_background(work: Callable[[], None]) -> Future[None]:
    """Run it in a daemon thread: nobody has to wait for a slow disk in order to stop."""
    future: Future[None] = Future()

    def run() -> None:
        try:
            work()
        except BaseException as error:
            future.set_exception(error)
        else:
            future.set_result(None)

    threading.Thread(target=run, name="phitui-sync", daemon=True).start()
    return future
