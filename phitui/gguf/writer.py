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
from typing import TYPE_CHECKING, Any

from phitui.domain.offers import Encoder, JobContext
from phitui.domain.tensors import FileExtent, FilePlan, TensorType
from phitui.errors import PhituiError, SourceChanged, UsageError
from phitui.gguf import chunks
from phitui.gguf.chunks import Chunk
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
_FALLBACK_BYTES = 1 << 20
_LOOK_BYTES = 256 << 10
"""Floats are looked at in pieces that stay in the cache of a core."""


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

        self.partial, self.sources, self.encoder, self.job = partial, sources, encoder, job
        self.inspector = Inspector(allow_nan)
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
            self.remote = self.sources.finish()
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
            raise TargetError(f"{self.partial.path}: cannot be read back: {error.strerror or error}") from None

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
            if self._do(chunk):
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

    def _do(self, chunk: Chunk) -> bool:
        """Look at a chunk and write it. True if that is done for good: a new try must see what is bad again."""
        target = self._target(chunk)
        if chunk.kind == "copy":
            return self._copy(chunk, target)
        source, (start, length) = chunk.tensor.source, chunk.stored
        raw = self._buffer(length)
        self.sources.read(source, start, raw)
        good = not source.stored.is_float or self._look(chunk, start, raw)
        if self.inspector.refused:
            return False
        encoded, good_after = self._encoded(chunk, raw, good)
        self.partial.write(encoded, target)
        return good and good_after

    def _look(self, chunk: Chunk, start: int, raw: Any) -> bool:
        """Whether stored floats from byte `start` of the tensor on are numbers."""
        kind = chunk.tensor.source.stored
        return self.inspector.look(chunk.tensor.source, start // kind.block_bytes, raw, kind)

    def _encoded(self, chunk: Chunk, raw: memoryview, good: bool) -> tuple[Any, bool]:
        """The bytes to be written, and whether all values are numbers in them too. Floats are as `good` as `raw`."""
        from phitui.gguf import floats

        tensor, width = chunk.tensor, chunk.tensor.shape[0]
        source, first = tensor.source, chunk.first_row * width
        if chunk.kind == "float":
            made = floats.convert(raw, source.stored, tensor.type)
            wider = tensor.type is TensorType.F32 or not good
            return made, wider or self.inspector.overflow(source, first, made, tensor.type)
        values = floats.widen(raw, source.stored)
        if not source.stored.is_float:
            good = self.inspector.look(source, first, values, TensorType.F32)
            if self.inspector.refused:
                return b"", False
        assert self.encoder is not None
        encoded = self.encoder(tensor, chunk.first_row, values.reshape(chunk.rows, width))
        if memoryview(encoded).nbytes != chunk.length:
            raise PhituiError(
                f"the encoder made {memoryview(encoded).nbytes} bytes of {chunk.rows} rows of {tensor.name}, "
                f"not {chunk.length}"
            )
        return encoded, good

    def _copy(self, chunk: Chunk, target: int) -> bool:
        """Floats are looked at in the page cache first; the kernel copies them from there. What lies in no file is
        read and written."""
        source, good = chunk.tensor.source, True
        pieces = list(self.sources.segments(source, chunk.start, chunk.length))
        by_kernel = all(isinstance(extent, FileExtent) for extent, _, _ in pieces)
        if source.stored.is_float or not by_kernel:
            for start in range(chunk.start, chunk.start + chunk.length, _LOOK_BYTES):
                part = self._buffer(min(_LOOK_BYTES, chunk.start + chunk.length - start))
                self.sources.read(source, start, part)
                good = (not source.stored.is_float or self._look(chunk, start, part)) and good
                if not by_kernel and not self.inspector.refused:
                    self.partial.write(part, target + start - chunk.start)
        if by_kernel and not self.inspector.refused:
            for extent, offset, length in pieces:
                assert isinstance(extent, FileExtent)
                self._copy_file(extent.path, extent.offset + offset, length, target)
                target += length
        return good and not self.inspector.refused

    def _copy_file(self, path: Path, offset: int, length: int, target: int) -> None:
        """By the kernel; what it leaves (another file system, an old kernel, macOS) through a buffer."""
        copied = self.partial.copy(self.sources.descriptor(path), offset, length, target)
        while copied < length:
            part = self._buffer(min(_FALLBACK_BYTES, length - copied))
            self.sources.read_file(path, offset + copied, part)
            self.partial.write(part, target + copied)
            copied += len(part)

    def _judge(self) -> None:
        """Refuse what is not finite, or say that it was written. Raises NotFiniteError."""
        from phitui.gguf.finite import listed

        found = self.inspector.found
        if self.inspector.refused:
            raise self.inspector.error(str(self.partial.out))
        if found and self.job:
            for line in listed(found).strip().splitlines():
                self.job.note(f"not finite, and written as you allowed: {line.strip()}")

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
