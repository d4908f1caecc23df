"""Removing and renaming models: what belongs together goes together, and nothing else is touched."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from phitui.__main__ import main
from phitui.actions import jobs, tidy
from phitui.actions.context import Context
from phitui.errors import OutputExists, UsageError
from phitui.testing.bytewise import write_bytewise
from phitui.testing.checkpoints import write_checkpoint


@pytest.fixture
def gguf(context: Context) -> Path:
    context.paths.models.mkdir(parents=True)
    return write_bytewise(context.paths.models / "tiny.gguf")


def test_a_model_goes_with_its_recipe(context: Context, gguf: Path) -> None:
    recipe = gguf.with_name("tiny.gguf.toml")
    recipe.write_text("format = 1\n")
    (gguf.parent / "other.gguf.toml").write_text("mine")
    found = tidy.removal(context, "tiny")
    assert set(found.files) == {gguf, recipe} and found.size == gguf.stat().st_size + 11
    assert gguf.exists()
    tidy.remove(context, "tiny")
    assert [path.name for path in gguf.parent.iterdir()] == ["other.gguf.toml"]


def test_a_split_model_goes_and_is_renamed_as_a_whole(context: Context, gguf: Path) -> None:
    assert main(["gguf", "split", str(gguf), "--max-tensors", "8", "--out", str(gguf.parent / "part")]) == 0
    gguf.unlink()
    for recipe in gguf.parent.glob("*.toml"):
        recipe.unlink()
    parts = sorted(gguf.parent.glob("part-*.gguf"))
    assert len(parts) > 1
    first = tidy.rename(context, str(parts[1]), "new.gguf")
    assert sorted(path.name for path in gguf.parent.iterdir()) == [p.name.replace("part", "new") for p in parts]
    assert first.name.startswith("new-00001")
    assert len(tidy.remove(context, "new").files) == len(parts)
    assert not list(gguf.parent.iterdir())


def test_of_a_checkpoint_only_what_was_downloaded_goes(context: Context) -> None:
    place = context.paths.models / "Phi-tiny"
    write_checkpoint(place)
    (place / ".cache" / "huggingface").mkdir(parents=True)
    (place / ".cache" / "huggingface" / "x.lock").touch()
    (place / "my notes.txt").write_text("keep me")
    found = tidy.remove(context, str(place))
    assert found.left == 1 and [path.name for path in place.iterdir()] == ["my notes.txt"]


def test_a_checkpoint_without_anything_else_goes_with_its_directory(context: Context) -> None:
    place = context.paths.models / "Phi-tiny"
    write_checkpoint(place)
    renamed = tidy.rename(context, "Phi-tiny", "Phi-other")
    assert not place.exists() and (renamed / "config.json").exists()
    tidy.remove(context, "Phi-other")
    assert not renamed.exists()


def test_links_are_removed_and_not_what_they_point_to(context: Context, gguf: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere.gguf"
    gguf.rename(elsewhere)
    gguf.symlink_to(elsewhere)
    tidy.remove(context, str(gguf))
    assert elsewhere.exists() and not gguf.is_symlink()


def test_models_of_other_programs_are_left_alone(
    context: Context, gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = tmp_path / "hub" / "models--org--phi" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    shutil.copy(gguf, snapshot / "cached.gguf")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    for act in (lambda: tidy.remove(context, "cached"), lambda: tidy.rename(context, "cached", "x")):
        with pytest.raises(UsageError, match="another program"):
            act()
    stray = shutil.copy(gguf, tmp_path / "stray.gguf")
    with pytest.raises(UsageError, match="none of the models"):
        tidy.remove(context, str(stray))
    assert (snapshot / "cached.gguf").exists() and Path(stray).exists()


def test_a_model_that_a_job_works_with_stays(context: Context, gguf: Path) -> None:
    request = {"steps": 1000, "pause": 0.05, "source": str(gguf)}
    job = jobs.jobs(context).start("test", "phitui.testing.tasks:count", request, "Count")
    with pytest.raises(UsageError, match=job.id):
        tidy.remove(context, "tiny")
    jobs.cancel_job(context, job.id)
    tidy.remove(context, "tiny")


@pytest.mark.parametrize("name", ["", "  ", ".", "..", "a/b", "../x", "a\0b"])
def test_bad_names_are_refused(context: Context, gguf: Path, name: str) -> None:
    with pytest.raises(UsageError, match="no file name"):
        tidy.rename(context, "tiny", name)
    assert gguf.exists()


def test_nothing_is_renamed_onto_another(context: Context, gguf: Path) -> None:
    gguf.with_name("b.gguf.toml").write_text("mine")
    gguf.with_name("tiny.gguf.toml").write_text("x")
    with pytest.raises(OutputExists):
        tidy.rename(context, "tiny", "b")
    assert gguf.exists() and gguf.with_name("tiny.gguf.toml").read_text() == "x"


def test_the_command_line(context: Context, gguf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "rename", "tiny", "small"]) == 0
    assert capsys.readouterr().out.strip() == str(gguf.with_name("small.gguf"))
    assert main(["models", "remove", "tiny", "--yes"]) == 2
    capsys.readouterr()
    assert main(["models", "remove", "small", "--yes", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["files"] == [str(gguf.with_name("small.gguf"))]
    assert not gguf.with_name("small.gguf").exists()
