"""Reads the tensor data of a plan's sources, and notices when a source is cut or changed meanwhile."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from phitui.domain.tensors import Extent, FileExtent, FilePlan, SourceTensor
from phitui.errors import InvalidFile

Identity = tuple[str, int, int]
"""Path, size in bytes and modification time in ns of a source file."""


class SourceChanged(InvalidFile):
    """A source file became another one while it was read: what was written from it is worthless."""


def _changed(path: Path) -> SourceChanged:
    return SourceChanged(
        f"{path}: changed while it was read, so the output would be a mixture",
        "let the download or the other program finish, then start again",
    )


class SourceFiles:
    """The open files that hold the data of a plan. Safe for several threads: all reads name their offset."""

    def __init__(self, plan: FilePlan) -> None:
        self._descriptors: dict[Path, int] = {}
        self._identities: dict[Path, Identity] = {}
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
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])

    @property
    def identities(self) -> list[Identity]:
        return sorted(self._identities.values())

    def descriptor(self, path: Path) -> int:
        return self._descriptors[path]

    def check_unchanged(self) -> None:
        """Raise SourceChanged if a file is no longer the one that was opened."""
        for path, identity in self._identities.items():
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
            if isinstance(extent, FileExtent):
                self.read_file(extent.path, extent.offset + offset, part)
            else:
                part[:] = extent.data[offset : offset + count]
            at += count

    def read_file(self, path: Path, offset: int, target: memoryview) -> None:
        """Fill `target` from a file."""
        while target:
            try:
                count = os.preadv(self._descriptors[path], [target], offset)
            except OSError as error:
                raise InvalidFile(f"{path}: cannot be read: {error.strerror}") from None
            if not count:
                raise _changed(path)
            target = target[count:]
            offset += count

    def _check(self, tensor: SourceTensor) -> None:
        """Open the files of a tensor; its bytes must lie inside them and be as many as its shape says."""
        for extent in tensor.extents:
            if not isinstance(extent, FileExtent):
                continue
            if extent.path not in self._descriptors:
                self._open(extent.path)
            size = self._identities[extent.path][1]
            if extent.offset + extent.length > size:
                raise InvalidFile(
                    f"{extent.path}: is truncated: tensor {tensor.name} needs bytes up to "
                    f"{extent.offset + extent.length}, the file has {size}",
                    "download it again",
                )
        held = sum(extent.length for extent in tensor.extents)
        if held != tensor.stored_bytes:
            raise InvalidFile(f"tensor {tensor.name}: its source holds {held} bytes instead of {tensor.stored_bytes}")

    def _open(self, path: Path) -> None:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise InvalidFile(f"{path}: cannot be read: {error.strerror}") from None
        self._descriptors[path] = descriptor
        self._identities[path] = _identity(path, os.fstat(descriptor))


def _identity(path: Path, status: os.stat_result) -> Identity:
    return str(path), status.st_size, status.st_mtime_ns
