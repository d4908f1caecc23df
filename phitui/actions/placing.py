"""Having a large file in a second place without a second copy of its bytes, where the file systems allow it."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from pathlib import Path

from phitui.errors import OutputExists, PhituiError

_FICLONE = 0x40049409
"""The ioctl of Linux that lets two files share their blocks until one is written to (btrfs, XFS, bcachefs)."""


def in_place(source: Path, path: Path) -> bool:
    """Whether `path` is that very file already, under whatever name, or an untouched copy that was made here.

    A copy is known by its size and its time of change, which it took over to the nanosecond.
    """
    try:
        if path.samefile(source):
            return True
        one, other = source.stat(), path.stat()
    except OSError:
        return False
    return (one.st_size, one.st_mtime_ns) == (other.st_size, other.st_mtime_ns)


def place(source: Path, path: Path, *, overwrite: bool = False) -> str:
    """Make `path` the same file as `source`, or one with the same bytes; says how, for people.

    A file appears under its name whole or not at all; without `overwrite` nothing is replaced, not even in a race.
    Raises OutputExists, or PhituiError where the file cannot be read or written or the disk is too small.
    """
    if in_place(source, path):
        return "there already"
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        real = source.resolve(strict=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.unlink(missing_ok=True)
        how = _fill(real, partial)
        _publish(partial, path, overwrite)
    except FileExistsError:
        raise OutputExists(f"{path} is there already", "choose another name, or replace it with --overwrite") from None
    except OSError as error:
        raise PhituiError(f"cannot place {source.name} at {path}: {error.strerror}", "--out writes elsewhere") from None
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
    return how


def _fill(real: Path, partial: Path) -> str:
    """Give `partial` the bytes of `real`, in the cheapest way that works here."""
    with contextlib.suppress(OSError):  # another file system, one without links, or a file of somebody else
        os.link(real, partial)
        return "hard link, takes no space of its own"
    if _reflink(real, partial):
        _take_time(real, partial)
        return "shares its blocks, takes no space of its own"
    size, free = real.stat().st_size, shutil.disk_usage(partial.parent).free
    if size > free:
        raise PhituiError(
            f"a copy of {real.name} needs {size / 2**30:.2f} GiB, and {partial.parent} has {free / 2**30:.2f} GiB free",
            "free some space, or keep the model on the file system of the other program: then it needs none",
        )
    shutil.copyfile(real, partial)
    with partial.open("rb+") as stream:
        os.fsync(stream.fileno())
    _take_time(real, partial)
    return f"copy, takes {size / 2**30:.2f} GiB"


def _take_time(real: Path, partial: Path) -> None:
    stat = real.stat()
    os.utime(partial, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def _reflink(real: Path, partial: Path) -> bool:
    if sys.platform != "linux":
        return False
    import fcntl

    try:
        with real.open("rb") as source, partial.open("wb") as target:
            fcntl.ioctl(target.fileno(), _FICLONE, source.fileno())
    except OSError:
        partial.unlink(missing_ok=True)
        return False
    return True


def _publish(partial: Path, path: Path, overwrite: bool) -> None:
    if not overwrite:
        try:
            os.link(partial, path)
            return
        except FileExistsError:
            raise
        except OSError:  # a file system without hard links, such as exFAT: the best that is left
            if os.path.lexists(path):
                raise FileExistsError(path) from None
    partial.replace(path)
