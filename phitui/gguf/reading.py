"""Reads the tensor data of a plan's sources, and notices when a source is cut or changed meanwhile."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from phitui.domain.offers import JobContext
from phitui.domain.tensors import Extent, FileExtent, FilePlan, HubFile, InlineExtent, RemoteExtent, SourceTensor, place
from phitui.errors import InvalidFile, SourceChanged

if TYPE_CHECKING:
    from phitui.gguf.chunks import Chunk
    from phitui.gguf.readahead import ReadAhead, RemoteReport
    from phitui.gguf.remote import HubReader

Identity = tuple[str, int, int | str]
"""Path, size in bytes and modification time in ns of a source file; of one on the Hub its tag instead of the time."""


def _changed(path: Path) -> SourceChanged:
    return SourceChanged(
        f"{path}: changed while it was read, so the output would be a mixture",
        "let the download or the other program finish, then start again",
    )


class SourceFiles:
    """The files that hold the data of a plan, open. Safe for several threads: all reads name their offset.

    Files on the Hub are read through one reader, which tells `job` of troubles.
    """

    def __init__(self, plan: FilePlan, job: JobContext | None = None) -> None:
        self._descriptors: dict[Path, int] = {}
        self._identities: dict[Path | HubFile, Identity] = {}
        self._job = job
        self._reader: HubReader | None = None
        self._ahead: ReadAhead | None = None
        try:
            for tensor in plan.tensors:
                self._check(tensor.source)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self.stop()
        if self._reader:
            self._reader.close()
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])

    def stop(self) -> None:
        """Let no thread wait for a server any more."""
        if self._ahead:
            self._ahead.stop()

    @property
    def identities(self) -> list[Identity]:
        return sorted(self._identities.values(), key=lambda identity: identity[:2])

    def in_order(self, chunks: Sequence[Chunk]) -> Sequence[Chunk]:
        """The chunks in the order they should be done: where bytes come from the Hub, that of its files.

        Reading those ahead begins here.
        """
        from phitui.gguf.readahead import ReadAhead

        files: dict[HubFile, int] = {}
        placed = []
        for chunk in chunks:
            parts = [
                (extent.file, extent.offset + offset, length)
                for extent, offset, length in self.segments(chunk.tensor.source, *chunk.stored)
                if isinstance(extent, RemoteExtent)
            ]
            first = (files.setdefault(parts[0][0], len(files)), parts[0][1]) if parts else (-1, 0)
            placed.append((first, chunk, parts))
        if not files:
            return chunks
        placed.sort(key=lambda entry: entry[0])
        self._ahead = ReadAhead(self._hub(), (part for _, _, parts in placed for part in parts))
        return [chunk for _, chunk, _ in placed]

    def _hub(self) -> HubReader:
        from phitui.gguf.remote import HubReader

        if self._reader is None:
            self._reader = HubReader(self._job.note if self._job else None)
        return self._reader

    @property
    def remote(self) -> bool:
        """Whether bytes come from the Hub."""
        return any(isinstance(key, HubFile) for key in self._identities)

    def finish(self, check: Callable[[], None] = lambda: None) -> RemoteReport | None:
        """What was read from the Hub, once its checksums are known; None if nothing was.

        `check` is called while waiting, and may raise. Raises SourceChanged.
        """
        return self._ahead.finish(check) if self._ahead else None

    def descriptor(self, path: Path) -> int:
        return self._descriptors[path]

    def check_unchanged(self) -> None:
        """Raise SourceChanged if a file is no longer the one that was opened."""
        for path, identity in self._identities.items():
            if isinstance(path, HubFile):
                continue  # looked at with every answer
            try:
                if _identity(path, path.stat()) != identity:
                    raise _changed(path)
            except OSError:
                raise _changed(path) from None

    def segments(self, tensor: SourceTensor, start: int, length: int) -> Iterator[tuple[Extent, int, int]]:
        """The pieces (extent, offset in it, length) that hold these bytes of the tensor, in order."""
        for extent in tensor.extents:
            if length <= 0:
                return
            if start < extent.length:
                count = min(length, extent.length - start)
                yield extent, start, count
                length -= count
                start = 0
            else:
                start -= extent.length

    def prefetch(self, tensor: SourceTensor, start: int, length: int) -> None:
        """Let the kernel start to read these bytes of the tensor from the disk, if it can be told to."""
        if not hasattr(os, "posix_fadvise"):
            return
        for extent, offset, count in self.segments(tensor, start, length):
            if isinstance(extent, FileExtent):
                with contextlib.suppress(OSError):
                    where = extent.offset + offset
                    os.posix_fadvise(self._descriptors[extent.path], where, count, os.POSIX_FADV_WILLNEED)

    def read(self, tensor: SourceTensor, start: int, target: memoryview) -> None:
        """Fill `target` with the bytes of the tensor from `start` on. Raises InvalidFile where they cannot be read."""
        at = 0
        for extent, offset, count in self.segments(tensor, start, len(target)):
            part = target[at : at + count]
            if isinstance(extent, InlineExtent):
                part[:] = extent.data[offset : offset + count]
            elif isinstance(extent, FileExtent):
                self.read_file(extent.path, extent.offset + offset, part)
            elif self._ahead:
                self._ahead.read(extent.file, extent.offset + offset, part)
            else:
                part[:] = self._hub().read(extent.file, extent.offset + offset, count)
            at += count

    def read_file(self, path: Path, offset: int, target: memoryview) -> None:
        """Fill `target` from a file."""
        while target:
            try:
                count = os.preadv(self._descriptors[path], [target], offset)
            except OSError as error:
                raise InvalidFile(
                    f"{path}: cannot be read: {error.strerror}", "is it there, and may you read it?"
                ) from None
            if not count:
                raise _changed(path)
            target = target[count:]
            offset += count

    def _check(self, tensor: SourceTensor) -> None:
        """Open the files of a tensor; its bytes must lie inside them and be as many as its shape says."""
        for extent in tensor.extents:
            if isinstance(extent, InlineExtent):
                continue
            key = extent.path if isinstance(extent, FileExtent) else extent.file
            if key not in self._identities:
                self._open(key)
            size = self._identities[key][1]
            if extent.offset + extent.length > size:
                raise InvalidFile(
                    f"{key}: is truncated: tensor {tensor.name} needs bytes up to "
                    f"{extent.offset + extent.length}, the file has {size}",
                    "download it again",
                )
        held = sum(extent.length for extent in tensor.extents)
        if held != tensor.stored_bytes:
            raise InvalidFile(
                f"tensor {tensor.name}: its source holds {held} bytes instead of {tensor.stored_bytes}",
                "download it again",
            )

    def _open(self, path: Path | HubFile) -> None:
        if isinstance(path, HubFile):
            self._identities[path] = (f"{path.repo}@{path.commit}/{path.name}", path.size, path.etag)
            return
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise InvalidFile(
                f"{path}: cannot be read: {error.strerror}", "is it there, and may you read it?"
            ) from None
        self._descriptors[path] = descriptor
        self._identities[path] = _identity(path, os.fstat(descriptor))


def tensor_bytes(tensor: SourceTensor) -> bytes:
    """All stored bytes of one small tensor. Raises InvalidFile where they cannot be read."""
    data = bytearray(tensor.stored_bytes)
    with SourceFiles(FilePlan("", {}, place([(tensor, tensor.stored, None)]))) as files:
        files.read(tensor, 0, memoryview(data))
    return bytes(data)


def _identity(path: Path, status: os.stat_result) -> Identity:
    return str(path), status.st_size, status.st_mtime_ns
