"""The cache on disk: remembers, upgrades, and is never a reason to fail."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import sqlite3
from pathlib import Path

import pytest

from phitui.domain.model import ModelFacts, Rope, Verdict
from phitui.store import library
from phitui.store.database import versions
from phitui.store.library import Entry, Library

FACTS = ModelFacts(
    "n", "phi3", 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, Rope(96, 1e4, "longrope", 4096), "t", "phi-3", "Q4_K_M", 11
)


class Reader:
    """Counts how often a file is really read."""

    def __init__(self, facts: ModelFacts | None = FACTS, error: str = "") -> None:
        self.calls, self.facts, self.error = 0, facts, error

    def __call__(self, path: Path) -> Entry:
        self.calls += 1
        return Entry(path, self.facts, self.error)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF")
    return path


def test_a_file_is_read_once(tmp_path: Path, file: Path) -> None:
    read = Reader(dataclasses.replace(FACTS, verdict=Verdict(True, "yes"), extra={"a": 1}))
    for _ in range(3):
        with Library(tmp_path / "x" / "library.db") as cache:
            assert cache.entry(file, read).facts == read.facts
    assert read.calls == 1


def test_failures_are_remembered_too(tmp_path: Path, file: Path) -> None:
    read = Reader(None, "truncated")
    with Library(tmp_path / "library.db") as cache:
        assert cache.entry(file, read) == cache.entry(file, read) == Entry(file, None, "truncated")
    assert read.calls == 1


@pytest.mark.parametrize("change", ["size", "time"])
def test_a_changed_file_is_read_again(tmp_path: Path, file: Path, change: str) -> None:
    read = Reader()
    with Library(tmp_path / "library.db") as cache:
        cache.entry(file, read)
        if change == "size":
            stat = file.stat()
            file.write_bytes(b"GGUF+")
            os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        else:
            os.utime(file, ns=(1, 1))
        cache.entry(file, read)
    assert read.calls == 2


def test_a_missing_file_is_an_error_and_can_be_forgotten(tmp_path: Path, file: Path) -> None:
    with Library(tmp_path / "library.db") as cache:
        cache.entry(file, Reader())
        file.unlink()
        with pytest.raises(OSError, match="No such file"):
            cache.entry(file, Reader())
        assert cache.forget_missing() == 1
        assert cache.forget_missing() == 0


@pytest.mark.parametrize("damage", ["text", "middle", "empty"])
def test_a_damaged_database_is_moved_aside(tmp_path: Path, file: Path, damage: str) -> None:
    database = tmp_path / "library.db"
    with Library(database) as cache:
        cache.entry(file, Reader())
    data = database.read_bytes()
    database.write_bytes(
        {"text": b"this is no database, " * 400, "middle": data[:100] + bytes(2000), "empty": b""}[damage]
    )
    for suffix in ("-wal", "-shm"):
        database.with_name(database.name + suffix).unlink(missing_ok=True)
    read = Reader()
    for _ in range(2):
        with Library(database) as cache:
            assert cache.entry(file, read).facts == FACTS
    assert read.calls == 1
    assert len(list(tmp_path.glob("library.db.damaged-*"))) == (0 if damage == "empty" else 1)


def test_strange_rows_are_read_again(tmp_path: Path, file: Path) -> None:
    database = tmp_path / "library.db"
    with Library(database) as cache:
        cache.entry(file, Reader())
    with sqlite3.connect(database) as raw:
        raw.execute("UPDATE facts SET facts = '{\"rope\": 3}'")
    raw.close()
    read = Reader()
    with Library(database) as cache:
        assert cache.entry(file, read).facts == FACTS
    assert read.calls == 1


def test_a_newer_database_is_left_alone(tmp_path: Path, file: Path) -> None:
    database = tmp_path / "library.db"
    with sqlite3.connect(database) as raw:
        raw.execute("CREATE TABLE future (x)")
        raw.execute("PRAGMA user_version = 99")
    raw.close()
    with Library(database) as cache:
        assert cache.entry(file, Reader()).facts == FACTS
    assert versions(database, library.UPGRADES) == (99, len(library.UPGRADES))


def test_upgrades_run_in_order(tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    database = tmp_path / "library.db"
    with Library(database) as cache:
        cache.entry(file, Reader())
    monkeypatch.setattr(
        library, "UPGRADES", (*library.UPGRADES, ("CREATE TABLE next (x)",), ("ALTER TABLE next ADD y",))
    )
    read = Reader()
    with Library(database) as cache:
        cache.entry(file, read)
    assert read.calls == 0
    assert versions(database, library.UPGRADES) == (3, 3)


def test_a_place_that_cannot_be_written(tmp_path: Path, file: Path) -> None:
    (tmp_path / "file").write_text("")
    read = Reader()
    with Library(tmp_path / "file" / "library.db") as cache:
        assert cache.entry(file, read).facts == cache.entry(file, read).facts == FACTS
    assert read.calls == 1


def _hammer(database: Path, files: list[Path], results: multiprocessing.Queue[int]) -> None:
    read = Reader()
    for file in files:
        with Library(database) as cache:
            assert cache.entry(file, read).facts == FACTS
    results.put(read.calls)


def test_several_processes_at_once(tmp_path: Path) -> None:
    files = [tmp_path / f"{n}.gguf" for n in range(20)]
    for path in files:
        path.write_bytes(b"GGUF")
    database = tmp_path / "library.db"
    database.write_bytes(b"damaged " * 1000)
    context = multiprocessing.get_context("spawn")
    results: multiprocessing.Queue[int] = context.Queue()
    workers = [context.Process(target=_hammer, args=(database, files, results)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(30)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert len(list(tmp_path.glob("library.db.damaged-*"))) == 1
    with Library(database) as cache:
        read = Reader()
        for path in files:
            cache.entry(path, read)
    assert read.calls == 0
