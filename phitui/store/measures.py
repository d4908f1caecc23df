"""What was measured of model files: quality and speed, with source and date. Kept for good, unlike the library's cache.

One SQLite file in WAL mode, safe with several processes. Figures belong to a file's content, not to its name: they
are found again when the file is moved or copied, and not when another one takes its place.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from phitui.errors import InvalidFile, PhituiError
from phitui.store.database import Store

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
    (
        "ALTER TABLE measures ADD COLUMN conditions TEXT NOT NULL DEFAULT '{}'",
        "ALTER TABLE measures ADD COLUMN asked TEXT NOT NULL DEFAULT ''",
        """CREATE TABLE built (
            fingerprint TEXT NOT NULL, source TEXT NOT NULL, scheme TEXT NOT NULL, options TEXT NOT NULL,
            imatrix TEXT NOT NULL, lossless INTEGER NOT NULL, size INTEGER NOT NULL, name TEXT NOT NULL,
            created REAL NOT NULL, PRIMARY KEY (source, scheme, options, imatrix, fingerprint)
        ) WITHOUT ROWID""",
    ),
)
SAMPLE = 4096
"""Bytes of each tensor that count for a fingerprint."""


@dataclass(frozen=True)
class Measured:
    """One evaluation of one file. `created` is in unix seconds; `reference` is the name of the file compared with.

    `values` by name: perplexity, kld_mean, decode_tokens_per_s, ...; `facts` tell which of them can be compared,
    `conditions` what else a speed depends on. `asked` is a digest of what the evaluator was asked for: equal requests
    on the same files need not be carried out twice.
    """

    model: str
    evaluator: str
    created: float
    source: str
    values: Mapping[str, float]
    facts: Mapping[str, str] = field(default_factory=dict)
    reference: str = ""
    reference_fingerprint: str = ""
    conditions: Mapping[str, str] = field(default_factory=dict)
    asked: str = ""


@dataclass(frozen=True)
class Built:
    """A file that phitui made: of which content (`source`, see phitui.gguf.identity), and how.

    `options` are the quantizer's as JSON, `imatrix` is the digest of the importance matrix ("" without one).
    `lossless`: every weight is what it was in the source, so this is the model that others are compared with.
    `size` in bytes, `created` in unix seconds, `name` that of the file then.
    """

    source: str
    scheme: str
    options: str
    imatrix: str
    lossless: bool
    size: int
    name: str
    created: float
    fingerprint: str = ""


_MEASURED = (
    "measures.model, evaluator, measures.created, measures.source, figures, facts, reference, reference_fingerprint,"
    " conditions, asked"
)
_BUILT = "built.source, scheme, options, imatrix, lossless, size, name, built.created, built.fingerprint"


def fingerprint(path: Path) -> str:
    """The SHA-256 of a GGUF's size, header and 4 KiB from the middle of each tensor: enough to know a file again.

    Milliseconds, whatever the size. Raises InvalidFile for what is no GGUF, OSError for what cannot be read.
    """
    from phitui.gguf.shards import read_model

    header = read_model(path)
    digest = hashlib.sha256(str(header.file_size).encode())
    with header.path.open("rb", buffering=0) as file:
        left = header.data_start
        while left and (data := file.read(min(left, 1 << 20))):
            digest.update(data)
            left -= len(data)
    for part in header.files:  # of a split model there are several
        with part.open("rb", buffering=0) as file:
            for tensor in header.tensors:
                if tensor.path == part:
                    skip = max(0, tensor.size - SAMPLE) // 2
                    digest.update(os.pread(file.fileno(), min(SAMPLE, tensor.size), tensor.offset + skip))
    return digest.hexdigest()


class MeasureStore(Store):
    """The figures in the file `path`. One instance is for one thread."""

    UPGRADES = UPGRADES
    TABLE = "measures"
    KEEPS = "the measurements"

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
            json.dumps(dict(measured.conditions)),
            measured.asked,
        )
        with self._refusing():
            self._database.execute(
                "INSERT INTO measures (fingerprint, model, evaluator, created, source, figures, facts, reference,"
                " reference_fingerprint, conditions, asked) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                row,
            )

    def of(self, path: Path) -> list[Measured]:
        """All figures of that file, newest first. Raises InvalidFile for what is no GGUF."""
        key = self.fingerprint(path)
        with self._refusing():
            rows = self._database.execute(
                f"SELECT {_MEASURED} FROM measures WHERE fingerprint = ? ORDER BY created DESC, id DESC",  # noqa: S608
                (key,),
            ).fetchall()
        return [_measured(row) for row in rows]

    def newest(self, paths: Iterable[Path]) -> dict[Path, Measured]:
        """The newest figures of each of these files that has some. Cheap for thousands of files.

        Only files as long as one that was measured are looked into; what cannot be read has no figures.
        """
        with self._refusing():
            sizes = {
                size
                for (size,) in self._database.execute(
                    "SELECT DISTINCT size FROM files WHERE fingerprint IN (SELECT fingerprint FROM measures)"
                )
            }
        found: dict[Path, Measured] = {}
        for path in paths if sizes else ():
            with suppress(PhituiError, OSError):
                if path.stat().st_size in sizes and (figures := self.of(path)):
                    found[path] = figures[0]
        return found

    def forget(self, path: Path) -> int:
        """Drop all figures of that file; returns how many there were."""
        key = self.fingerprint(path)
        with self._refusing():
            return self._database.execute("DELETE FROM measures WHERE fingerprint = ?", (key,)).rowcount

    def add_built(self, path: Path, built: Built) -> None:
        """Remember how that file was made."""
        row = (built.source, built.scheme, built.options, built.imatrix, built.lossless, built.size, built.name)
        with self._refusing():
            self._database.execute(
                "INSERT OR REPLACE INTO built (source, scheme, options, imatrix, lossless, size, name, created,"
                " fingerprint) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (*row, built.created, self.fingerprint(path)),
            )

    def built(self, source: str) -> list[Built]:
        """Every file that was made of that content, newest first."""
        with self._refusing():
            rows = self._database.execute(
                f"SELECT {_BUILT} FROM built WHERE source = ? ORDER BY created DESC",  # noqa: S608
                (source,),
            ).fetchall()
        return [_built(row) for row in rows]

    def of_source(self, source: str) -> list[tuple[Built, Measured]]:
        """What was measured of the files made of that content, newest first."""
        with self._refusing():
            rows = self._database.execute(
                f"SELECT {_BUILT}, {_MEASURED} FROM built JOIN measures USING (fingerprint)"  # noqa: S608
                " WHERE built.source = ? ORDER BY measures.created DESC, id DESC",
                (source,),
            ).fetchall()
        width = len(_BUILT.split(","))
        return [(_built(row[:width]), _measured(row[width:])) for row in rows]

    def path_of(self, fingerprint: str) -> Path | None:
        """Where a file of that content lies, as far as it was seen and is still there."""
        with self._refusing():
            rows = self._database.execute("SELECT path FROM files WHERE fingerprint = ?", (fingerprint,)).fetchall()
        for (text,) in rows:
            with suppress(PhituiError):
                if self.fingerprint(Path(text)) == fingerprint:
                    return Path(text)
        return None

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


def _measured(row: Sequence[Any]) -> Measured:
    model, evaluator, created, source, figures, facts, reference, fingerprint, conditions, asked = row
    found = (json.loads(figures), json.loads(facts), reference, fingerprint, json.loads(conditions), asked)
    return Measured(model, evaluator, created, source, *found)


def _built(row: Sequence[Any]) -> Built:
    source, scheme, options, imatrix, lossless, *rest = row
    return Built(source, scheme, options, imatrix, bool(lossless), *rest)
