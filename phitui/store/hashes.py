"""SHA-256 of files, remembered by path, size, time and inode, so that gigabytes are read once and not at every build.

The store is a cache: one that is damaged is moved aside, and one that cannot be used is done without.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

from phitui.errors import InvalidFile
from phitui.store.database import connect, open_database

UPGRADES: tuple[tuple[str, ...], ...] = (
    (
        """CREATE TABLE hashes (
            path BLOB PRIMARY KEY, size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL, inode INTEGER NOT NULL,
            sha256 TEXT NOT NULL
        ) WITHOUT ROWID""",
        "CREATE INDEX hashes_of ON hashes (sha256)",
    ),
)
SETTLED = 2.0
"""Seconds since its last change before a file's hash is remembered: a change within one tick of the clock of a file
system would go unseen."""
THREADS = 2
_BLOCK = 16 << 20


@dataclass(frozen=True)
class Hashed:
    """A file's size in bytes and its SHA-256 in hex."""

    size: int
    sha256: str


Identity = tuple[int, int, int]
"""Size, mtime_ns and inode."""


def identity(path: Path) -> Identity:
    """What tells one state of a file from another. Raises OSError."""
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns, stat.st_ino


def sha256_of(path: Path, count: Callable[[int], None] = lambda _: None) -> Hashed:
    """Read a whole file. `count` is given the bytes as they are read and may raise. Raises InvalidFile.

    hashlib and reading release the GIL, so several files can be read by several threads.
    """
    digest, buffer = hashlib.sha256(), bytearray(_BLOCK)
    view = memoryview(buffer)
    size = 0
    try:
        with path.open("rb", buffering=0) as file:
            before = os.fstat(file.fileno())
            while size <= before.st_size and (read := file.readinto(buffer)):  # not after a file that grows
                digest.update(view[:read])
                size += read
                count(read)
            after = os.fstat(file.fileno())
    except OSError as error:
        raise InvalidFile(f"cannot read {path}: {error.strerror}") from None
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns) or size != after.st_size:
        raise InvalidFile(f"{path} changed while it was read", "let the other program finish, then start again")
    return Hashed(size, digest.hexdigest())


class HashStore:
    """The remembered hashes in the file `path`. One instance is for one thread."""

    def __init__(self, path: Path) -> None:
        try:
            self._database = open_database(path, UPGRADES, "hashes")
        except (OSError, sqlite3.Error):
            self._database = connect(Path(":memory:"), UPGRADES, "hashes")

    def __enter__(self) -> HashStore:
        return self

    def __exit__(self, *_: object) -> None:
        self._database.close()

    def get(self, path: Path) -> Hashed | None:
        """The file's hash, if it is known and the file is unchanged. Raises OSError if the file is gone."""
        real = path.resolve()
        key = identity(real)
        with contextlib.suppress(sqlite3.Error):
            row = self._database.execute(
                "SELECT sha256 FROM hashes WHERE path = ? AND size = ? AND mtime_ns = ? AND inode = ?",
                (os.fsencode(real), *key),
            ).fetchone()
            return Hashed(key[0], str(row[0])) if row else None
        return None

    def put(self, path: Path, sha256: str, as_of: Identity | None = None) -> None:
        """Remember the hash of a file that had the identity `as_of` while it was read; of one still changing, not."""
        real = path.resolve()
        with contextlib.suppress(sqlite3.Error, OSError):
            key = identity(real)
            if (as_of is None or as_of == key) and time.time() - key[1] / 1e9 >= SETTLED:
                self._database.execute(
                    "INSERT OR REPLACE INTO hashes VALUES (?, ?, ?, ?, ?)", (os.fsencode(real), *key, sha256)
                )

    def where(self, sha256: str) -> list[Path]:
        """Files of that content that were seen on this machine and are unchanged."""
        with contextlib.suppress(sqlite3.Error):
            rows = self._database.execute("SELECT path FROM hashes WHERE sha256 = ?", (sha256,)).fetchall()
            return [path for (raw,) in rows if (path := Path(os.fsdecode(raw))).is_file() and self.get(path)]
        return []


class Hashing:
    """Hashes of several files at once, in threads: other work goes on meanwhile.

    With `fresh` every file is read, whatever is remembered of it. To be started and ended in the same thread.
    """

    def __init__(self, store: HashStore, paths: Iterable[Path], *, fresh: bool = False) -> None:
        self._store = store
        self._stop = threading.Event()
        self.known: dict[Path, Hashed] = {}
        self._futures: dict[Path, tuple[Identity, Future[Hashed]]] = {}
        self.done = self.total = 0
        self._pool = ThreadPoolExecutor(THREADS, "phitui-hash")
        for path in paths:
            self._add(path, fresh)

    def _add(self, path: Path, fresh: bool) -> None:
        if path in self.known or path in self._futures:
            return
        try:
            found = None if fresh else self._store.get(path)
            if found is not None:
                self.known[path] = found
                return
            key = identity(path)
        except OSError as error:
            raise InvalidFile(f"cannot read {path}: {error.strerror}") from None
        self.total += key[0]
        self._futures[path] = key, self._pool.submit(sha256_of, path, self._count)

    def _count(self, size: int) -> None:
        self.done += size
        if self._stop.is_set():
            raise InvalidFile("stopped")

    def finish(self, report: Callable[[int, int], None] = lambda _done, _total: None) -> Mapping[Path, Hashed]:
        """All hashes, by path. `report(done, total)` is called now and then with bytes and may raise."""
        try:
            for path, (key, future) in self._futures.items():
                while not future.done():
                    report(self.done, self.total)
                    wait({future}, 0.1)
                self.known[path] = future.result()
                self._store.put(path, future.result().sha256, key)
        finally:
            self.stop()
        return self.known

    def stop(self) -> None:
        """End the threads; what was not finished is lost."""
        self._stop.set()
        self._pool.shutdown(wait=True, cancel_futures=True)
