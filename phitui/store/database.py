"""A SQLite file in WAL mode, with numbered upgrades, safe with several processes; a damaged one is moved aside."""

from __future__ import annotations

import fcntl
import os
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import ClassVar, Self

from phitui.errors import PhituiError

Upgrades = Sequence[Sequence[str]]
"""SQL statements; number N brings a file from version N to N + 1. Never change one that was released, append."""

PATIENCE = 10.0
"""Seconds to wait for another process that writes."""


class LaterVersion(sqlite3.OperationalError):
    """The file was written by a later phitui: it is left alone."""


def open_database(path: Path, upgrades: Upgrades, table: str) -> sqlite3.Connection:
    """Open or make the file and bring it up to date; `table` is read once, so that damage shows here.

    Raises OSError or sqlite3.Error (LaterVersion among them) where that cannot be.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        return connect(path, upgrades, table)
    except sqlite3.OperationalError:
        raise
    except sqlite3.DatabaseError:
        return _repaired(path, upgrades, table)


class Store:
    """Records that are no cache: what goes wrong with their file is said and not done without. For one thread.

    A subclass names its upgrades, a table to read first, and in `KEEPS` what it keeps, for messages.
    """

    UPGRADES: ClassVar[Upgrades]
    TABLE: ClassVar[str]
    KEEPS: ClassVar[str]
    PRIVATE: ClassVar[bool] = False
    """Whether the file can be read by its owner only."""

    def __init__(self, path: Path) -> None:
        """Open or make the file; one that is damaged is moved aside. Raises PhituiError if that cannot be."""
        self._path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if self.PRIVATE:
                path.touch(mode=0o600, exist_ok=True)
            self._database = open_database(path, self.UPGRADES, self.TABLE)
        except (OSError, sqlite3.Error) as error:
            raise self._refused(error) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._database.close()

    @contextmanager
    def _refusing(self) -> Iterator[None]:
        """Errors of SQLite as errors for people."""
        try:
            yield
        except sqlite3.Error as error:
            raise self._refused(error) from None

    @contextmanager
    def _together(self) -> Iterator[None]:
        """All statements within, or none of them."""
        self._database.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._database.execute("ROLLBACK")
            raise
        self._database.execute("COMMIT")

    def _refused(self, error: Exception) -> PhituiError:
        return PhituiError(
            f"{self.KEEPS} in {self._path} cannot be used: {error}",
            "is the disk full or read-only, or did a later phitui write them?",
        )


def connect(path: Path, upgrades: Upgrades, table: str) -> sqlite3.Connection:
    """As open_database, but nothing is moved aside. `:memory:` is a path too."""
    database = sqlite3.connect(path, timeout=PATIENCE, isolation_level=None)
    try:
        _use_wal(database)
        database.execute("PRAGMA synchronous = NORMAL")
        _upgrade(database, upgrades)
        database.execute(f"SELECT count(*) FROM {table}").fetchone()  # noqa: S608  (a name of ours)
    except BaseException:
        database.close()
        raise
    return database


def versions(path: Path, upgrades: Upgrades) -> tuple[int, int]:
    """(version of that file, version of this phitui), for diagnosis."""
    with closing(sqlite3.connect(path)) as database:
        return int(database.execute("PRAGMA user_version").fetchone()[0]), len(upgrades)


def _use_wal(database: sqlite3.Connection) -> None:
    """Switching to WAL answers "locked" at once while another process does the same, so it is asked for repeatedly."""
    end = time.monotonic() + PATIENCE
    while True:
        try:
            database.execute("PRAGMA journal_mode = WAL").fetchone()
        except sqlite3.OperationalError:
            if time.monotonic() > end:
                raise
            time.sleep(0.02)
        else:
            return


def _upgrade(database: sqlite3.Connection, upgrades: Upgrades) -> None:
    """Run the missing upgrades in one transaction. A second process waits for the lock, then finds nothing to do."""
    if database.execute("PRAGMA user_version").fetchone()[0] == len(upgrades):
        return
    database.execute("BEGIN IMMEDIATE")
    try:
        version = database.execute("PRAGMA user_version").fetchone()[0]
        if version > len(upgrades):
            raise LaterVersion("it is of a later version")
        for statements in upgrades[version:]:
            for statement in statements:
                database.execute(statement)
        database.execute(f"PRAGMA user_version = {len(upgrades)}")
        database.execute("COMMIT")
    except BaseException:
        database.execute("ROLLBACK")
        raise


def _repaired(path: Path, upgrades: Upgrades, table: str) -> sqlite3.Connection:
    """Move a damaged file aside and begin a new one; one process at a time, lest the second moves the new one away."""
    with path.with_name(path.name + ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            return connect(path, upgrades, table)
        except sqlite3.OperationalError:
            raise
        except sqlite3.DatabaseError:
            path.replace(path.with_name(f"{path.name}.damaged-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"))
            for suffix in ("-wal", "-shm"):
                path.with_name(path.name + suffix).unlink(missing_ok=True)
            return connect(path, upgrades, table)
