"""The library's memory: facts of model files, so that a folder of a thousand GGUFs is read once and not at every start.

One SQLite file in WAL mode. It is a cache: whatever happens to it, it can be made again from the files, so a damaged
one is moved aside and a locked or read-only one is done without. Entries are keyed by path, size and mtime_ns; those of
a split model by the path of its first file, the sizes of all together and the newest time.
"""

from __future__ import annotations

import dataclasses
import json
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from phitui.domain.model import ModelFacts, Rope, Verdict
from phitui.store.database import connect, open_database

UPGRADES: tuple[tuple[str, ...], ...] = (
    (
        """CREATE TABLE facts (
            path TEXT PRIMARY KEY, size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL,
            facts TEXT NOT NULL, error TEXT NOT NULL
        ) WITHOUT ROWID""",
    ),
)


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

    def entry(self, path: Path, read: Callable[[Path], Entry], others: Sequence[Path] = ()) -> Entry:
        """The remembered entry of a file, or `read(path)` remembered from now on. Raises OSError if it is gone.

        `others` are more files that the answer depends on; they need not be there.
        """
        stats = [path.stat(), *(file.stat() for file in others if file.exists())]
        key = (str(path), sum(stat.st_size for stat in stats), max(stat.st_mtime_ns for stat in stats))
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
            return open_database(self._path, UPGRADES, "facts")
        except (OSError, sqlite3.Error):
            return connect(Path(":memory:"), UPGRADES, "facts")


def _decode(text: str) -> ModelFacts:
    document = json.loads(text)
    document["rope"] = Rope(**document["rope"])
    verdict = document["verdict"]
    document["verdict"] = Verdict(**verdict) if verdict else None
    return ModelFacts(**document)
