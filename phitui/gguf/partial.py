"""The file while it is being written: `<name>.partial`, locked, filled in any order, and published by one rename."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import shutil
import sys
from pathlib import Path

from phitui.errors import OutputExists, PhituiError, UsageError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


WRITE_BYTES = 256 << 10
"""At most this in one call: for larger ones Linux looks for larger runs of free memory, and can take thrice as long."""


class TargetError(PhituiError):
    """Writing failed on the side of the output: what is there cannot be used."""


def _target_error(path: Path, error: OSError) -> TargetError:
    if error.errno in _FULL:
        return TargetError(
            f"{path}: the disk is full or the file may not grow ({error.strerror}); the unfinished file was removed",
            "free some space, or choose another disk with --out",
        )
    return TargetError(f"{path}: cannot be written: {error.strerror}", "choose another place with --out")


def check_output(out: Path, overwrite: bool) -> None:
    """Raise OutputExists if `out` is there already, or PhituiError if nothing can be written beside it."""
    if out.is_dir():
        raise UsageError(f"{out} is a directory", "name the file in it that is to be written")
    if os.path.lexists(out) and not overwrite:
        raise OutputExists(f"{out} is there already", "choose another name, or replace it with --overwrite")
    if not out.parent.is_dir():
        raise PhituiError(f"the directory {out.parent} does not exist", f"make it first: mkdir -p {out.parent}")
    if not os.access(out.parent, os.W_OK | os.X_OK):
        raise PhituiError(
            f"nothing can be written to {out.parent}: permission denied", "choose another place with --out"
        )


def preallocate(descriptor: int, size: int) -> None:
    """Reserve the blocks of a file, so that a full disk shows before any work. Does nothing where it is not possible.

    Linux's own call: posix_fallocate would write to every block where the file system cannot reserve. Raises OSError.
    """
    call = getattr(ctypes.CDLL(None, use_errno=True), "fallocate", None)
    if call is None or not sys.platform.startswith("linux"):
        return
    if call(descriptor, 0, ctypes.c_int64(0), ctypes.c_int64(size)):
        problem = ctypes.get_errno()
        if problem in _FULL:
            raise OSError(problem, os.strerror(problem))


class Partial:
    """The unfinished file of `out`, held under an exclusive lock until it is closed."""

    def __init__(self, out: Path, overwrite: bool = False) -> None:
        """Open and lock it. Raises UsageError if `out` is there, PhituiError if another writer has it or it cannot be
        made."""
        self.out = out
        self.path = out.with_name(out.name + ".partial")
        self.journal_path = out.with_name(out.name + ".partial.journal")
        try:
            self.descriptor = self._open()
        except OSError as error:
            raise _target_error(self.path, error) from None
        try:
            check_output(out, overwrite)  # another writer may have finished between the first look and the lock
        except PhituiError:
            if not self.size:
                self.discard()
            self.close()
            raise

    def _open(self) -> int:
        """The locked descriptor. The one who waited may hold a file that was renamed meanwhile: then look again."""
        while True:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.path.samestat(os.fstat(descriptor), self.path.stat()):
                    return descriptor
            except FileNotFoundError:
                pass
            except BlockingIOError:
                os.close(descriptor)
                raise PhituiError(
                    f"another phitui is writing {self.out} right now", "wait for it, cancel it, or choose another name"
                ) from None
            except OSError as error:
                if error.errno in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                    return descriptor  # a file system without locks
                os.close(descriptor)
                raise
            os.close(descriptor)

    @property
    def size(self) -> int:
        return os.fstat(self.descriptor).st_size

    def reserve(self, size: int, keep: bool) -> None:
        """Give the file its final size. `keep` what is in it, or start from nothing. Raises TargetError if the
        disk is too small."""
        try:
            if not keep:
                os.ftruncate(self.descriptor, 0)
            held = os.fstat(self.descriptor).st_blocks * 512
            free = shutil.disk_usage(self.out.parent).free
            if size - held > free:
                raise TargetError(
                    f"{self.out}: {size} bytes are needed, {free + held} are free on this disk",
                    "free some space, or choose another disk with --out",
                )
            os.ftruncate(self.descriptor, size)
            preallocate(self.descriptor, size)
        except OSError as error:
            raise _target_error(self.path, error) from None

    def write(self, data: bytes | memoryview, offset: int) -> None:
        """Write all of `data` at `offset`."""
        view = memoryview(data).cast("B")
        try:
            while view:
                count = os.pwrite(self.descriptor, view[:WRITE_BYTES], offset)
                view = view[count:]
                offset += count
        except OSError as error:
            raise _target_error(self.path, error) from None

    def copy(self, source: int, source_offset: int, length: int, offset: int) -> int:
        """Let the kernel copy bytes from another file. Returns how many it copied: fewer where it cannot."""
        copied = 0
        if not hasattr(os, "copy_file_range"):
            return 0
        try:
            while copied < length:
                count = os.copy_file_range(
                    source, self.descriptor, length - copied, source_offset + copied, offset + copied
                )
                if not count:
                    break
                copied += count
        except OSError as error:
            if error.errno in _FULL:
                raise _target_error(self.path, error) from None
        return copied

    def sync(self, data_only: bool = False) -> None:
        """Wait until the file is on the disk."""
        flush = os.fdatasync if data_only and hasattr(os, "fdatasync") else os.fsync
        try:
            flush(self.descriptor)
        except OSError as error:
            raise _target_error(self.path, error) from None

    def publish(self, overwrite: bool) -> None:
        """Give the finished, synced file its final name, and remove the journal."""
        check_output(self.out, overwrite)
        try:
            self.path.replace(self.out)
            directory = os.open(self.out.parent, os.O_RDONLY)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
            self.journal_path.unlink(missing_ok=True)
        except OSError as error:
            raise _target_error(self.out, error) from None

    def discard(self) -> None:
        """Remove the file and its journal."""
        for path in (self.path, self.journal_path, self.journal_path.with_name(self.journal_path.name + ".new")):
            path.unlink(missing_ok=True)

    def close(self) -> None:
        os.close(self.descriptor)
