"""Writes a planned GGUF: chunks by several threads into `<name>.partial`, journalled, synced, renamed.

Bytes that stay as they are are copied by the kernel. Float to float goes through numpy, all else through the encoder of
the quantizer. Memory is a few MiB per thread at any size of model.
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
from typing import Any

from phitui.domain.offers import Encoder, JobContext
from phitui.domain.tensors import FileExtent, FilePlan
from phitui.errors import PhituiError, UsageError
from phitui.gguf import chunks
from phitui.gguf.chunks import Chunk
from phitui.gguf.header import encode_header
from phitui.gguf.journal import VERSION, Journal, boot_id, recover
from phitui.gguf.partial import Partial, TargetError, check_output
from phitui.gguf.reading import SourceChanged, SourceFiles

MAX_THREADS = 32
SYNC_SECONDS = 30.0
"""How much work a power failure can cost, at most."""
AHEAD = 8
"""How many chunks before its turn a chunk is asked for from the disk."""
_POLL_SECONDS = 0.1
_FALLBACK_BYTES = 1 << 20


@dataclass(frozen=True)
class WriteResult:
    """A finished file. `resumed_bytes` were there from a former, interrupted write. Bytes and seconds."""

    path: Path
    size: int
    seconds: float
    resumed_bytes: int = 0


def write_gguf(
    plan: FilePlan,
    out: Path | str,
    encoder: Encoder | None = None,
    job: JobContext | None = None,
    threads: int | None = None,
    *,
    overwrite: bool = False,
) -> WriteResult:
    """Write the planned file. Goes on where a former write of the same plan was interrupted.

    Raises UsageError (output there already, encoder missing), InvalidFile (a source is truncated or changed),
    PhituiError (disk full, not writable, another writer, encoder failed) and Cancelled. The unfinished file is removed
    where it is worthless (disk full, source changed) and stays where a new try can go on with it.
    """
    started = time.monotonic()
    out = Path(out).absolute()
    check_output(out, overwrite)
    _check_plan(plan, out, encoder)
    with SourceFiles(plan) as sources:
        partial = Partial(out, overwrite)
        try:
            work = _Write(plan, partial, sources, encoder, job)
            size, resumed = work.run(threads or _default_threads())
            sources.check_unchanged()
            partial.publish(overwrite)
        except (TargetError, SourceChanged):
            partial.discard()
            raise
        finally:
            partial.close()
    return WriteResult(out, size, time.monotonic() - started, resumed)


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
        self, plan: FilePlan, partial: Partial, sources: SourceFiles, encoder: Encoder | None, job: JobContext | None
    ) -> None:
        self.partial, self.sources, self.encoder, self.job = partial, sources, encoder, job
        self.header = encode_header(plan)
        self.size = len(self.header) + plan.data_size
        self.chunks = chunks.split(plan)
        self.total = sum(chunk.length for chunk in self.chunks)
        self.done = 0
        self.stop = threading.Event()
        self._local = threading.local()
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
        self.queue = deque(chunk for chunk in self.chunks if chunk.number not in finished)
        resumed = self.done = self.total - sum(chunk.length for chunk in self.queue)
        try:
            self.partial.write(self.header, 0)
            self._work(threads)
            self._wait_for(_in_background(self.partial.sync))
        finally:
            self.journal.close()
        self._report()
        return self.size, resumed

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
            self._do(chunk)
            try:
                self.journal.done(chunk.number)
            except OSError as error:
                raise self._journal_error(error) from None
            with self._count:
                self.done += chunk.length

    def _prefetch(self) -> None:
        """Several threads read by turns, which the kernel takes for random access: say what is read soon."""
        with contextlib.suppress(IndexError):
            chunk = self.queue[AHEAD]
            self.sources.prefetch(chunk.tensor.source, *chunk.stored)

    def _do(self, chunk: Chunk) -> None:
        target = len(self.header) + chunk.tensor.offset + chunk.start
        if chunk.kind == "copy":
            self._copy(chunk, target)
        else:
            self.partial.write(self._encoded(chunk), target)

    def _encoded(self, chunk: Chunk) -> Any:
        from phitui.gguf import floats

        source, width = chunk.tensor.source, chunk.tensor.shape[0]
        start, length = chunk.stored
        raw = self._buffer(length)
        self.sources.read(source, start, raw)
        if chunk.kind == "float":
            return floats.convert(raw, source.stored, chunk.tensor.type)
        values = floats.widen(raw, source.stored)
        assert self.encoder is not None
        encoded = self.encoder(chunk.tensor, chunk.first_row, values.reshape(chunk.rows, width))
        if memoryview(encoded).nbytes != chunk.length:
            raise PhituiError(
                f"the encoder made {memoryview(encoded).nbytes} bytes of {chunk.rows} rows of {chunk.tensor.name}, "
                f"not {chunk.length}"
            )
        return encoded

    def _copy(self, chunk: Chunk, target: int) -> None:
        for extent, offset, length in self.sources.segments(chunk.tensor.source, chunk.start, chunk.length):
            if isinstance(extent, FileExtent):
                self._copy_file(extent.path, extent.offset + offset, length, target)
            else:
                self.partial.write(extent.data[offset : offset + length], target)
            target += length

    def _copy_file(self, path: Path, offset: int, length: int, target: int) -> None:
        """By the kernel; what it leaves (another file system, an old kernel, macOS) through a buffer."""
        copied = self.partial.copy(self.sources.descriptor(path), offset, length, target)
        while copied < length:
            part = self._buffer(min(_FALLBACK_BYTES, length - copied))
            self.sources.read_file(path, offset + copied, part)
            self.partial.write(part, target + copied)
            copied += len(part)

    def _buffer(self, size: int) -> memoryview:
        """A buffer of this thread, used again for every chunk."""
        held: bytearray | None = getattr(self._local, "buffer", None)
        if held is None or len(held) < size:
            held = self._local.buffer = bytearray(size)
        return memoryview(held)[:size]

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
