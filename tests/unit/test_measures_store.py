"""What was measured is found again with the file's content, by several processes, whatever happens to the store."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest

from phitui.domain.tensors import FilePlan, InlineExtent, SourceTensor, TensorType, Value, place
from phitui.errors import InvalidFile, PhituiError
from phitui.gguf.writer import write_gguf
from phitui.store import measures
from phitui.store.measures import Built, Measured, MeasureStore, fingerprint

FIGURES = Measured("m.gguf", "quality", 1000.0, "measured", {"perplexity": 7.5}, {"text": "t"}, "ref.gguf", "abc")


def gguf(path: Path, name: str = "one", fill: int = 1, size: int = 65536) -> Path:
    tensor = SourceTensor("a.weight", (size // 4,), TensorType.F32, (InlineExtent(bytes([fill]) * size),))
    plan = FilePlan("F32", {"general.name": Value.string(name)}, place([(tensor, TensorType.F32, None)]))
    write_gguf(plan, path, None, overwrite=True)
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return gguf(tmp_path / "m.gguf")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "data" / "measures.db"


def test_figures_come_back(file: Path, model: Path) -> None:
    with MeasureStore(file) as store:
        assert store.of(model) == []
        store.add(model, FIGURES)
    with MeasureStore(file) as store:
        assert store.of(model) == [FIGURES]
        assert store.forget(model) == 1
        assert store.of(model) == []


def test_files_are_remembered_with_their_source(file: Path, model: Path, tmp_path: Path) -> None:
    built = Built("source", "Q8_0", "{}", "", False, 65536, "m.gguf", 5.0)
    with MeasureStore(file) as store:
        store.add_built(model, built)
        store.add_built(model, replace(built, created=6.0))
        store.add_built(model, replace(built, source="other"))
        mark = store.fingerprint(model)
        assert store.built("source") == [replace(built, created=6.0, fingerprint=mark)]
        assert store.of_source("source") == []
        store.add(model, FIGURES)
        model.rename(tmp_path / "moved.gguf")
        assert store.of_source("source") == [(store.built("source")[0], FIGURES)]
        assert store.path_of(mark) is None  # where it was moved to was not seen yet
        assert store.of(tmp_path / "moved.gguf") == [FIGURES]
        assert store.path_of(mark) == tmp_path / "moved.gguf"


def test_newest_of_many(file: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other, junk = gguf(tmp_path / "other.gguf", size=4096), tmp_path / "junk.gguf"
    junk.write_bytes(bytes(model.stat().st_size))
    with MeasureStore(file) as store:
        assert store.newest([model]) == {}
        store.add(model, FIGURES)
        store.add(model, replace(FIGURES, created=2000.0))
        calls: list[Path] = []
        real = measures.fingerprint
        monkeypatch.setattr(measures, "fingerprint", lambda path: calls.append(path) or real(path))
        found = store.newest([model, other, junk, tmp_path / "missing.gguf"])
    assert found == {model: replace(FIGURES, created=2000.0)}
    assert calls == [junk], "files of another size are not looked into"


def test_newest_first(file: Path, model: Path) -> None:
    with MeasureStore(file) as store:
        for created in (2.0, 3.0, 1.0):
            store.add(model, Measured("m", "e", created, "", {}))
        assert [found.created for found in store.of(model)] == [3.0, 2.0, 1.0]


def test_they_follow_the_content(file: Path, model: Path, tmp_path: Path) -> None:
    with MeasureStore(file) as store:
        store.add(model, FIGURES)
        shutil.copy(model, tmp_path / "copy.gguf")
        assert store.of(tmp_path / "copy.gguf") == [FIGURES]
        moved = model.rename(tmp_path / "moved.gguf")
        assert store.of(moved) == [FIGURES]
        assert store.of(gguf(model, fill=2)) == []
        os.utime(moved)
        assert store.of(moved) == [FIGURES]


@pytest.mark.parametrize("change", [{"name": "two"}, {"fill": 2}, {"size": 65540}])
def test_fingerprints_differ(tmp_path: Path, model: Path, change: dict[str, object]) -> None:
    assert fingerprint(gguf(tmp_path / "other.gguf", **change)) != fingerprint(model)  # type: ignore[arg-type]


def test_a_fingerprint_is_taken_once(file: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Path] = []
    real = measures.fingerprint
    monkeypatch.setattr(measures, "fingerprint", lambda path: calls.append(path) or real(path))
    with MeasureStore(file) as store:
        first = store.fingerprint(model)
        assert store.fingerprint(model) == first
    assert calls == [model]


def test_what_is_no_model(file: Path, tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_text("hello")
    with MeasureStore(file) as store:
        for path in (tmp_path / "x.gguf", tmp_path / "missing.gguf"):
            with pytest.raises(InvalidFile):
                store.of(path)


def test_a_damaged_file_is_moved_aside(file: Path, model: Path) -> None:
    file.parent.mkdir()
    file.write_bytes(b"not a database, but long enough to look like one" * 100)
    with MeasureStore(file) as store:
        store.add(model, FIGURES)
        assert store.of(model) == [FIGURES]
    assert len(list(file.parent.glob("measures.db.damaged-*"))) == 1


def test_a_later_version_is_left_alone(file: Path, model: Path) -> None:
    MeasureStore(file).close()
    with sqlite3.connect(file) as database:
        database.execute(f"PRAGMA user_version = {len(measures.UPGRADES) + 1}")
    with pytest.raises(PhituiError, match="later version"):
        MeasureStore(file)
    assert not list(file.parent.glob("*.damaged-*"))


def test_an_upgrade_keeps_what_is_there(file: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with MeasureStore(file) as store:
        store.add(model, FIGURES)
    more = (*measures.UPGRADES, ("ALTER TABLE measures ADD COLUMN remark TEXT NOT NULL DEFAULT ''",))
    monkeypatch.setattr(MeasureStore, "UPGRADES", more)
    with MeasureStore(file) as store:
        assert store.of(model) == [FIGURES]
    with sqlite3.connect(file) as database:
        assert database.execute("PRAGMA user_version").fetchone() == (len(more),)


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file where a directory should be")
    with pytest.raises(PhituiError, match="cannot be used"):
        MeasureStore(tmp_path / "data" / "measures.db")


def _add(file: Path, model: Path, number: int) -> None:
    for _ in range(5):
        with MeasureStore(file) as store:
            store.add(model, Measured("m", "e", float(number), "", {}))


def test_several_processes(file: Path, model: Path) -> None:
    spawn = multiprocessing.get_context("fork")
    processes = [spawn.Process(target=_add, args=(file, model, number)) for number in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
        assert process.exitcode == 0
    with MeasureStore(file) as store:
        assert len(store.of(model)) == 20
