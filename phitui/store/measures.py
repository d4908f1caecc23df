"""What was measured of model files: quality and speed, with source and date. Kept for good, unlike the library's cache.

One SQLite file in WAL mode, safe with several processes. Figures belong to a file's content, not to its name: they
are found again when the file is moved or copied, and not when another one takes its place.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from phitui.errors import InvalidFile, PhituiError
from phitui.store.database import open_database

UPGRADES: tuple[tuple[str, ...], ...] = (
    (
        """CREATE TABLE files (
            path TEXT PRIMARY KEY, size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL, fingerprint TEXT NOT NULL
        ) WITHOUT ROWID""",
        """CREATE TABLE measures (
            id INTEGER PRIMARY KEY, fingerprint TEXT NOT NULL, model TEXT NOT NULL, evaluator TEXT NOT NULL,
            created REAL NOT NULL, source TEXT NOT NULL, figures TEXT NOT NULL, facts TEXT NOT NULL,
            reference TEXT NOT NULL, reference_fingerprint TEXT NOT NULL
        )""",
        "CREATE INDEX measures_of ON measures (fingerprint, created)",
    ),
)
SAMPLE = 4096
"""Bytes of each tensor that count for a fingerprint."""


@dataclass(frozen=True)
class Measured:
    """One evaluation of one file. `created` is in unix seconds; `reference` is the name of the file compared with.

    `values` by name: perplexity, kld_mean, decode_tokens_per_s, ...; `facts` tell which of them can be compared.
    """

    model: str
    evaluator: str
    created: float
    source: str
    values: Mapping[str, float]
    facts: Mapping[str, str] = field(default_factory=dict)
    reference: str = ""
    reference_fingerprint: str = ""


def fingerprint(path: Path) -> str:
    """The SHA-256 of a GGUF's size, header and 4 KiB from the middle of each tensor: enough to know a file again.

    Milliseconds, whatever the size. Raises InvalidFile for what is no GGUF, OSError for what cannot be read.
    """
    from phitui.gguf.header import read_header

    header = read_header(path)
    digest = hashlib.sha256(str(header.file_size).encode())
    with path.open("rb", buffering=0) as file:
        left = header.data_start
        while left and (data := file.read(min(left, 1 << 20))):
            digest.update(data)
            left -= len(data)
        for tensor in header.tensors:
            skip = max(0, tensor.size - SAMPLE) // 2
            digest.update(os.pread(file.fileno(), min(SAMPLE, tensor.size), tensor.offset + skip))
    return digest.hexdigest()


class MeasureStore:
    """The figures in the file `path`. One instance is for one thread."""

    def __init__(self, path: Path) -> None:
        """Open or make the file; one that is damaged is moved aside. Raises PhituiError if that cannot be."""
        self._path = path
        try:
            self._database = open_database(path, UPGRADES, "measures")
        except (OSError, sqlite3.Error) as error:
            raise self._refused(error) from None

    def __enter__(self) -> MeasureStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._database.close()

    def add(self, path: Path, measured: Measured) -> None:
        """Remember figures of that file."""
        row = (
            self.fingerprint(path),
            measured.model,
            measured.evaluator,
            measured.created,
            measured.source,
            json.dumps(dict(measured.values)),
            json.dumps(dict(measured.facts)),
            measured.reference,
            measured.reference_fingerprint,
        )
        with self._refusing():
            self._database.execute(
                "INSERT INTO measures (fingerprint, model, evaluator, created, source, figures, facts, reference,"
                " reference_fingerprint) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                row,
            )

    def of(self, path: Path) -> list[Measured]:
        """All figures of that file, newest first. Raises InvalidFile for what is no GGUF."""
        key = self.fingerprint(path)
        with self._refusing():
            rows = self._database.execute(
                "SELECT model, evaluator, created, source, figures, facts, reference, reference_fingerprint"
                " FROM measures WHERE fingerprint = ? ORDER BY created DESC, id DESC",
                (key,),
            ).fetchall()
        return [
            Measured(model, evaluator, created, source, json.loads(figures), json.loads(facts), *reference)
            for model, evaluator, created, source, figures, facts, *reference in rows
        ]

    def forget(self, path: Path) -> int:
        """Drop all figures of that file; returns how many there were."""
        key = self.fingerprint(path)
        with self._refusing():
            return self._database.execute("DELETE FROM measures WHERE fingerprint = ?", (key,)).rowcount

    def fingerprint(self, path: Path) -> str:
        """The file's fingerprint, remembered by path, size and time."""
        stat = self._stat(path)
        with self._refusing():
            row = self._database.execute(
                "SELECT fingerprint FROM files WHERE path = ? AND size = ? AND mtime_ns = ?", (str(path), *stat)
            ).fetchone()
        if row is not None:
            return str(row[0])
        try:
            made = fingerprint(path)
        except OSError as error:
            raise PhituiError(f"cannot read {path}: {error.strerror}") from None
        if self._stat(path) == stat:
            with self._refusing():
                self._database.execute("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?)", (str(path), *stat, made))
        return made

    def _stat(self, path: Path) -> tuple[int, int]:
        try:
            stat = path.stat()
        except OSError as error:
            raise InvalidFile(f"cannot read {path}: {error.strerror}") from None
        return stat.st_size, stat.st_mtime_ns

    @contextmanager
    def _refusing(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise self._refused(error) from None

    def _refused(self, error: Exception) -> PhituiError:
        return PhituiError(
            f"the measurements in {self._path} cannot be used: {error}",
            "is the disk full or read-only, or did a later phitui write them?",
        )
