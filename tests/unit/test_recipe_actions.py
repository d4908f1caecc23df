"""Lineage and recipes below the command line."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from phitui.actions import recipe as actions
from phitui.actions.build import BuildRequest
from phitui.actions.build import run as build
from phitui.actions.context import Context
from phitui.actions.jobs import list_jobs
from phitui.actions.lineage import lineage_of, record_edit
from phitui.actions.provenance import NOTE, downloaded, is_whole, note_download
from phitui.domain.recipe import MadeRecord
from phitui.errors import Cancelled, PhituiError
from phitui.store import hashes
from phitui.store.hashes import Hashed, sha256_of
from phitui.store.sidecar import Sidecar, beside, read_recipe
from phitui.testing.bytewise import write_bytewise
from phitui.testing.checkpoints import write_checkpoint


class Job:
    """A JobContext that keeps what it is told."""

    def __init__(self, cancel: str = "") -> None:
        self.notes: list[str] = []
        self.cancel = cancel

    def progress(self, done: int, total: int, text: str = "") -> None:
        if self.cancel and self.cancel in text:
            raise Cancelled

    def note(self, text: str) -> None:
        self.notes.append(text)

    def check(self) -> None: ...


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "models" / "Phi-tiny-instruct")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "out"
    made.mkdir()
    return made


def make(checkpoint: Path, out: Path, job: Job | None = None, **settings: Any) -> dict[str, Any]:
    from dataclasses import asdict

    return build(asdict(BuildRequest(str(checkpoint), "BF16", str(out), **settings)), job or Job())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[build]\nscheme = 3", "line 2"),
        ("nonsense", "not TOML"),
        ('[build]\nscheme = "BF16"\nsource = "SOURCE"\nout = "../x.gguf"', "outside of its own directory"),
        ('[build]\nscheme = "BF16"\nsource = "SOURCE"\nout = "/x.gguf"', "outside of its own directory"),
        ('[build]\nscheme = "BF17"\nsource = "SOURCE"', "BF17"),
        ('[build]\nscheme = "BF16"\nsource = "gone/away"', "not on this machine"),
        ('[build]\nscheme = "BF16"\nsource = "SOURCE"\nquantizer.impure = true', "impure"),
        ('[build]\nscheme = "BF16"\nsource = "SOURCE"\nconverter.nmae = "x"', "nmae"),
        ('[build]\nscheme = "BF16"\nsource = "SOURCE"\nknown_as = "../x"', "cannot be the name"),
        ('[build]\nscheme = "BF16"\nsource = "m.gguf"\nout = "m.gguf"', "source itself"),
        ('[export]\nmodel = "gone.gguf"\nto = "nowhere"', "gone.gguf"),
        ('[evaluate]\ntext = "x"', "needs a model"),
        ("format = 7\n[build]", "format 7"),
        ("[[edits]]\nwhat = 'edited by hand'", "no step"),
    ],
)
def test_recipes_that_cannot_be(context: Context, checkpoint: Path, folder: Path, text: str, words: str) -> None:
    """Refused before any job is made, whatever is wrong; nothing is written."""
    write_bytewise(folder / "m.gguf")
    path = folder / "r.toml"
    path.write_text(text.replace("SOURCE", str(checkpoint)))
    before = sorted(folder.iterdir())
    with pytest.raises(PhituiError) as caught:
        actions.start(context, actions.RunRequest(str(path)))
    assert words in caught.value.message
    assert caught.value.hint
    assert list_jobs(context) == []
    assert sorted(folder.iterdir()) == before


def test_a_build_whose_recipe_cannot_be_written_is_not_lost(
    checkpoint: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk, at the moment the recipe is written."""
    real = os.fsync

    def full(descriptor: int) -> None:
        if Path(f"/proc/self/fd/{descriptor}").resolve().name.endswith(".toml.partial"):
            raise OSError(28, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    job = Job()
    made = make(checkpoint, folder / "m.gguf", job)
    assert made["lineage"] == ""
    assert made["sha256"] == sha256_of(folder / "m.gguf").sha256
    assert [path.name for path in folder.iterdir()] == ["m.gguf"]
    assert any("lineage is not recorded" in note and "No space left" in note for note in job.notes)


def test_names_that_are_no_text_cost_the_recipe_and_not_the_build(folder: Path) -> None:
    try:
        odd = write_bytewise(folder / os.fsdecode(b"tiny-\xff.gguf"))
    except OSError:
        pytest.skip("this file system has only UTF-8 names")
    job = Job()
    made = make(odd, folder / "m.gguf", job)
    assert Path(made["path"]).exists()
    assert made["lineage"] == ""
    assert any("not UTF-8" in note for note in job.notes)
    assert not list(folder.glob("*.toml*"))


@pytest.mark.parametrize("how", ["not wanted", "not possible"])
def test_no_recipe_of_a_former_file_stays(
    checkpoint: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    out = folder / "m.gguf"
    make(checkpoint, out)
    (checkpoint / "generation_config.json").write_text('{"temperature": 0.5}')
    if how == "not possible":
        monkeypatch.setattr(Sidecar, "prepare", lambda *_: (_ for _ in ()).throw(PhituiError("no room")))
    make(checkpoint, out, overwrite=True, lineage=how == "not possible")
    assert [path.name for path in folder.iterdir()] == ["m.gguf"]


def test_a_build_that_died_between_the_two_names_gets_its_recipe(checkpoint: Path, folder: Path) -> None:
    out = folder / "m.gguf"
    first = make(checkpoint, out)
    beside(out).rename(folder / "m.gguf.toml.partial")  # as a kill between the two renames leaves it
    job = Job()
    again = make(checkpoint, out, job)
    assert any("complete already" in note for note in job.notes)
    assert (again["sha256"], again["lineage"]) == (first["sha256"], str(beside(out)))
    assert read_recipe(beside(out)).result == read_recipe(beside(out)).result
    assert sorted(path.name for path in folder.iterdir()) == ["m.gguf", "m.gguf.toml"]


def test_a_recipe_that_died_between_the_two_names(context: Context, checkpoint: Path, folder: Path) -> None:
    from dataclasses import asdict

    path = folder / "r.toml"
    path.write_text(f'[build]\nsource = "{checkpoint}"\nscheme = "BF16"\nout = "m.gguf"\n')
    request = asdict(actions.load(context, actions.RunRequest(str(path)))[0])
    first = actions.run(request, Job())["steps"]["build"]
    beside(folder / "m.gguf").unlink()
    again = actions.run(request, Job())["steps"]["build"]
    assert again["lineage"] == str(beside(folder / "m.gguf"))
    assert again["sha256"] == first["sha256"]
    assert "skipped" in actions.run(request, Job())["steps"]["build"]


def test_a_build_cancelled_at_its_checksums(checkpoint: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashes.Hashing, "finish", lambda _self, report: report(0, 1))
    with pytest.raises(Cancelled):
        make(checkpoint, folder / "m.gguf", Job(cancel="checksums"))
    assert not list(folder.glob("*.toml*"))
    assert not (folder / "m.gguf").exists()
    monkeypatch.undo()
    monkeypatch.setenv("PHITUI_HOME", str(folder / "home"))
    assert make(checkpoint, folder / "m.gguf")["resumed_bytes"] > 0


def test_where_a_download_came_from(checkpoint: Path, folder: Path) -> None:
    files = {path.name: sha256_of(path) for path in checkpoint.iterdir()}
    assert note_download(checkpoint, "acme/phi", "0123abc", files, MadeRecord("1")) == ""
    assert downloaded(checkpoint)[:2] == ("acme/phi", "0123abc")
    assert is_whole(checkpoint)
    make(checkpoint, folder / "m.gguf")
    source = read_recipe(beside(folder / "m.gguf")).source
    assert source is not None
    assert (source.repo, source.revision) == ("acme/phi", "0123abc")
    assert NOTE not in {file.path for file in source.files}
    assert lineage_of(folder / "m.gguf") == "acme/phi@0123abc, BF16"
    assert lineage_of(checkpoint) == "acme/phi@0123abc"
    with (checkpoint / "config.json").open("a") as file:
        file.write(" ")  # no longer what was downloaded: the repository is not claimed
    assert not is_whole(checkpoint)
    make(checkpoint, folder / "n.gguf")
    source = read_recipe(beside(folder / "n.gguf")).source
    assert source is not None
    assert (source.repo, source.revision) == ("", "")


def test_a_second_download_adds_to_the_note(folder: Path) -> None:
    made = MadeRecord("1")
    note_download(folder, "a/b", "c", {"one.gguf": Hashed(1, "1" * 64)}, made)
    note_download(folder, "a/b", "c", {"two.gguf": Hashed(2, "2" * 64)}, made)
    assert set(downloaded(folder)[2]) == {"one.gguf", "two.gguf"}
    note_download(folder, "a/b", "d", {"two.gguf": Hashed(2, "2" * 64)}, made)
    assert set(downloaded(folder)[2]) == {"two.gguf"}


def test_an_edit_is_told(context: Context, checkpoint: Path, folder: Path) -> None:
    out = folder / "m.gguf"
    make(checkpoint, out)
    with out.open("ab") as file:
        file.write(b"more")
    assert lineage_of(out) == ""
    assert record_edit(context, out, "edited general.name") == ""
    assert lineage_of(out) == "Phi-tiny-instruct, BF16, then: edited general.name"
    copy = folder / "copy.gguf"
    copy.write_bytes(out.read_bytes())
    assert record_edit(context, copy, "edited again", out) == ""
    assert lineage_of(copy).endswith("then: edited general.name, then: edited again")
    plain, other = write_bytewise(folder / "plain.gguf"), folder / "other.gguf"
    other.write_bytes(plain.read_bytes())
    assert record_edit(context, other, "cut", plain) == ""
    assert lineage_of(other) == "plain.gguf, then: cut"


def test_a_source_that_moved_is_found_by_its_content(context: Context, checkpoint: Path, folder: Path) -> None:
    """The recipe lies elsewhere now, where its relative path leads nowhere."""
    for path in checkpoint.iterdir():
        os.utime(path, (1_000_000_000, 1_000_000_000))
    out = folder / "m.gguf"
    make(checkpoint, out)
    there = folder / "deep" / "er"
    there.mkdir(parents=True)
    beside(out).rename(there / "m.gguf.toml")
    from phitui.actions.recipe_sources import locate

    request, recipe = actions.load(context, actions.RunRequest(str(there / "m.gguf.toml")))
    assert locate(context, request, recipe) == str(checkpoint)
