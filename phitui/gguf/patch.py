"""Changes the first bytes of a file in place, in such a way that no kill and no power cut leaves it half changed.

The old and the new bytes go into a record, `<file>.edit`, which is on the disk before the file is touched and goes when
the change is on the disk too. Whoever reads the header next and finds a record completes the change: phitui.gguf.header
does. One process at a time changes a file: it holds a lock (flock) on it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from phitui.errors import InvalidFile, PhituiError

SUFFIX = ".edit"
PATIENCE = 5.0
"""Seconds to wait for another process that is changing the file; a change takes milliseconds."""
_MAGIC = b"phitui edit 1\n"
_HEAD = struct.Struct("<QQQ")
_DIGEST = 32
_LARGEST = 1 << 30
_BLOCK = 4096


def record_path(path: Path) -> Path:
    """Where the record of a change lies."""
    return path.with_name(path.name + SUFFIX)


@dataclass(frozen=True)
class _Record:
    """`old` becomes `new` at `offset` of a file of `size` bytes."""

    size: int
    offset: int
    old: bytes
    new: bytes

    def encoded(self) -> bytes:
        raw = _MAGIC + _HEAD.pack(self.size, self.offset, len(self.old)) + self.old + self.new
        return raw + hashlib.sha256(raw).digest()


def replace_start(path: Path, old: bytes, new: bytes) -> int:
    """Replace the first bytes of a file, which are `old`, by as many `new` ones. Returns how many bytes were written.

    Raises InvalidFile if they are not `old` any more, PhituiError if it cannot be done; then nothing was changed, or
    the next reader completes the change.
    """
    assert len(old) == len(new), "the rest of the file stays where it is"
    start, end = _difference(old, new)
    if start == end:
        return 0
    kept = False
    try:
        with _locked(path) as descriptor:
            if os.pread(descriptor, len(old), 0) != old:
                raise InvalidFile(f"{path}: was changed by another program meanwhile", "look at it and try again")
            record = _Record(os.fstat(descriptor).st_size, start, old[start:end], new[start:end])
            _keep(record_path(path), record.encoded())
            kept = True
            _apply(descriptor, record)
            _forget(record_path(path))
    except OSError as error:
        if not kept:
            raise PhituiError(
                f"{path}: nothing was changed: {error.strerror}", "see that file and directory can be written to"
            ) from None
        raise PhituiError(
            f"{path}: the change was interrupted: {error.strerror}",
            f"it is completed when the file is read next; keep {record_path(path).name} until then",
        ) from None
    return end - start


def complete(path: Path) -> None:
    """Complete a change that was interrupted; wait for one that is going on. A no-op if there is none.

    Raises InvalidFile where a half changed file cannot be written to.
    """
    found = record_path(path)
    seen = _read(found)
    if seen is None:
        return
    try:
        with _locked(path) as descriptor:
            record = _read(found)
            if record is None:
                return
            if os.fstat(descriptor).st_size == record.size and _between(_current(descriptor, record), record):
                _apply(descriptor, record)
            _forget(found)  # also if the file is another one by now
    except OSError as error:
        if _whole(path, seen):
            return  # it may be read only, but it is as it was, or as it should be
        raise InvalidFile(
            f"{path}: a change of its header was interrupted and cannot be completed: {error.strerror}",
            f"make the file and {found.name} beside it writable, or edit it again on another machine",
        ) from None


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[int]:
    """A descriptor of the file, to read and write, that no other process of phitui holds. Raises OSError."""
    end = time.monotonic() + PATIENCE
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > end:
                    raise PhituiError(f"{path}: another phitui is changing it", "try again in a moment") from None
                time.sleep(0.02)
            except OSError as error:
                if error.errno in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                    break  # a file system without locks
                raise
        yield descriptor
    finally:
        os.close(descriptor)


def _keep(path: Path, raw: bytes) -> None:
    """The record appears under its name complete and synced, or not at all."""
    fresh = path.with_name(path.name + ".new")
    try:
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(raw)
            stream.flush()
            os.fsync(descriptor)
        fresh.replace(path)
        _sync_directory(path.parent)
    except OSError:
        with contextlib.suppress(OSError):
            fresh.unlink(missing_ok=True)
        raise


def _apply(descriptor: int, record: _Record) -> None:
    done = 0
    while done < len(record.new):
        done += os.pwrite(descriptor, record.new[done:], record.offset + done)
    os.fsync(descriptor)


def _forget(path: Path) -> None:
    with contextlib.suppress(PermissionError):  # harmless: it describes what is so already
        path.unlink(missing_ok=True)
    _sync_directory(path.parent)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read(path: Path) -> _Record | None:
    """The record, if it is there, whole, and ours."""
    try:
        with path.open("rb") as stream:
            if stream.read(len(_MAGIC)) != _MAGIC or os.fstat(stream.fileno()).st_size > _LARGEST:
                return None
            raw = _MAGIC + stream.read()
    except OSError:
        return None
    start = len(_MAGIC) + _HEAD.size
    if len(raw) < start + _DIGEST or hashlib.sha256(raw[:-_DIGEST]).digest() != raw[-_DIGEST:]:
        return None
    size, offset, length = _HEAD.unpack_from(raw, len(_MAGIC))
    if len(raw) != start + 2 * length + _DIGEST:
        return None
    return _Record(size, offset, raw[start : start + length], raw[start + length : start + 2 * length])


def _current(descriptor: int, record: _Record) -> bytes:
    return os.pread(descriptor, len(record.old), record.offset)


def _whole(path: Path, record: _Record) -> bool:
    try:
        with path.open("rb") as stream:
            return _current(stream.fileno(), record) in (record.old, record.new)
    except OSError:
        return False


def _between(current: bytes, record: _Record) -> bool:
    """Whether bytes are a mixture of old and new ones: else the file was replaced by another since."""
    if len(current) != len(record.old):
        return False
    for start in range(0, len(current), _BLOCK):
        now, old, new = (raw[start : start + _BLOCK] for raw in (current, record.old, record.new))
        if now not in (old, new) and any(a not in (b, c) for a, b, c in zip(now, old, new, strict=True)):
            return False
    return True


def _difference(old: bytes, new: bytes) -> tuple[int, int]:
    """Where two texts of the same length begin and cease to differ; (0, 0) if they do not."""
    if old == new:
        return 0, 0
    start = 0
    while old[start : start + _BLOCK] == new[start : start + _BLOCK]:
        start += _BLOCK
    start = next(i for i in range(start, len(old)) if old[i] != new[i])
    end = len(old)
    while end - _BLOCK > start and old[end - _BLOCK : end] == new[end - _BLOCK : end]:
        end -= _BLOCK
    end = next(i for i in range(end, start, -1) if old[i - 1] != new[i - 1])
    return start, end
