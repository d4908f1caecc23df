"""The library's memory: facts of model files, so that a folder of a thousand GGUFs is read once and not at every start.

One SQLite file in WAL mode. It is a cache: whatever happens to it, it can be made again from the files, so a damaged
one is moved aside and a locked or read-only one is done without. Entries are keyed by path, size and mtime_ns.
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from phitui.domain.model import ModelFacts, Rope, Verdict

UPGRADES: tuple[str, ...] = (
    """CREATE TABLE facts (
        path TEXT PRIMARY KEY, size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL,
        facts TEXT NOT NULL, error TEXT NOT NULL
    ) WITHOUT ROWID""",
)
"""SQL scripts; number N brings a file from version N to N + 1. Never change one that was released, append."""

PATIENCE = 10.0
"""Seconds to wait for another process that writes."""


@dataclass(frozen=True)
class Entry:
    """What is remembered of one file: its facts, or why it could not be read."""

    path: Path
    facts: ModelFacts | None
    error: str = ""


class Library:
    """The cache in the file `path`. Safe with several processes; one instance is for one thread."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._database = self._open()

    def __enter__(self) -> Library:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._database.close()

    def entry(self, path: Path, read: Callable[[Path], Entry]) -> Entry:
        """The remembered entry of a file, or `read(path)` remembered from now on. Raises OSError if it is gone."""
        stat = path.stat()
        key = (str(path), stat.st_size, stat.st_mtime_ns)
        found = self._find(*key)
        if found is None:
            found = read(path)
            self._remember(*key, found)
        return found

    def forget_missing(self) -> int:
        """Drop entries of files that are gone; returns how many."""
        try:
            gone = [row for row in self._database.execute("SELECT path FROM facts") if not Path(row[0]).exists()]
            self._database.executemany("DELETE FROM facts WHERE path = ?", gone)
        except sqlite3.Error:
            return 0
        return len(gone)

    def _find(self, path: str, size: int, mtime_ns: int) -> Entry | None:
        try:
            row = self._database.execute(
                "SELECT facts, error FROM facts WHERE path = ? AND size = ? AND mtime_ns = ?", (path, size, mtime_ns)
            ).fetchone()
            return None if row is None else Entry(Path(path), _decode(row[0]) if row[0] else None, row[1])
        except (sqlite3.Error, ValueError, TypeError, KeyError):
            return None

    def _remember(self, path: str, size: int, mtime_ns: int, entry: Entry) -> None:
        facts = json.dumps(dataclasses.asdict(entry.facts)) if entry.facts else ""
        try:
            self._database.execute(
                "INSERT OR REPLACE INTO facts VALUES (?, ?, ?, ?, ?)", (path, size, mtime_ns, facts, entry.error)
            )
        except (sqlite3.Error, ValueError):
            return  # locked for long, a full disk, a name that is no text: the answer is right, only not remembered

    def _open(self) -> sqlite3.Connection:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            try:
                return _connect(self._path)
            except sqlite3.OperationalError:
                raise
            except sqlite3.DatabaseError:
                with _repairing(self._path):
                    return _reopen(self._path)
        except (OSError, sqlite3.Error, _Newer):
            return _connect(Path(":memory:"))


class _Newer(Exception):
    """The file was written by a later phitui: it is left alone."""


def _connect(path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(path, timeout=PATIENCE, isolation_level=None)
    try:
        # switching to WAL answers "locked" at once while another process does the same, so it is asked for repeatedly
        _patiently(lambda: database.execute("PRAGMA journal_mode = WAL").fetchone())
        database.execute("PRAGMA synchronous = NORMAL")
        _upgrade(database)
        database.execute("SELECT count(*) FROM facts").fetchone()
    except BaseException:
        database.close()
        raise
    return database


def _patiently(call: Callable[[], Any]) -> None:
    end = time.monotonic() + PATIENCE
    while True:
        try:
            call()
        except sqlite3.OperationalError:
            if time.monotonic() > end:
                raise
            time.sleep(0.02)
        else:
            return


def _upgrade(database: sqlite3.Connection) -> None:
    """Run the missing upgrades in one transaction. A second process waits for the lock, then finds nothing to do."""
    if database.execute("PRAGMA user_version").fetchone()[0] == len(UPGRADES):
        return
    database.execute("BEGIN IMMEDIATE")
    try:
        version = database.execute("PRAGMA user_version").fetchone()[0]
        if version > len(UPGRADES):
            raise _Newer
        for script in UPGRADES[version:]:
            database.execute(script)
        database.execute(f"PRAGMA user_version = {len(UPGRADES)}")
        database.execute("COMMIT")
    except BaseException:
        database.execute("ROLLBACK")
        raise


@contextmanager
def _repairing(path: Path) -> Iterator[None]:
    """One process at a time, so that a second one does not move aside what the first has just rebuilt."""
    with path.with_name(path.name + ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _reopen(path: Path) -> sqlite3.Connection:
    try:
        return _connect(path)
    except sqlite3.OperationalError:
        raise
    except sqlite3.DatabaseError:
        aside = f"{path.name}.damaged-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
        path.replace(path.with_name(aside))
        for suffix in ("-wal", "-shm"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)
        return _connect(path)


def _decode(text: str) -> ModelFacts:
    document = json.loads(text)
    document["rope"] = Rope(**document["rope"])
    verdict = document["verdict"]
    document["verdict"] = Verdict(**verdict) if verdict else None
    return ModelFacts(**document)


def versions(path: Path) -> tuple[int, int]:
    """(version of that file, version of this phitui), for diagnosis."""
    with closing(sqlite3.connect(path)) as database:
        return int(database.execute("PRAGMA user_version").fetchone()[0]), len(UPGRADES)
