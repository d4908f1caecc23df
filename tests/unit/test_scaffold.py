"""`phitui plugins new`: names and places that cannot be are refused, and there is a whole package or nothing."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path

import pytest

from phitui import hookspecs
from phitui.actions import scaffold
from phitui.actions.context import Context
from phitui.cli.dispatch import COMMANDS, run
from phitui.errors import OutputExists, PhituiError, UsageError

OWN = sorted(point.name for point in entry_points(group="phitui.plugins") if point.dist and point.dist.name == "phitui")


def test_every_hook_has_a_kind() -> None:
    hooks = {name for name, _ in inspect.getmembers(hookspecs, inspect.isfunction) if hasattr(hookspecs, name)}
    assert {scaffold.hook_of(kind) for kind in scaffold.KINDS} == {name for name in hooks if name.startswith("phitui_")}


@pytest.mark.parametrize(
    ("given", "name", "module"),
    [
        ("mine", "mine", "phitui_mine"),
        ("phitui-mine", "mine", "phitui_mine"),
        ("phitui_my_2nd", "my-2nd", "phitui_my_2nd"),
        ("a" * scaffold.LONGEST, "a" * scaffold.LONGEST, "phitui_" + "a" * scaffold.LONGEST),
    ],
)
def test_names(context: Context, tmp_path: Path, given: str, name: str, module: str) -> None:
    made = scaffold.new_plugin(context, given, directory=tmp_path / "new")
    assert (made.plugin, made.package, made.module) == (name, f"phitui-{name}", module)
    assert (tmp_path / "new" / module / "__init__.py").is_file()


@pytest.mark.parametrize(
    "name",
    ["", "phitui-", "My", "1st", "a b", "a--b", "-a", "a-", "../a", "a/b", "é", "a.b", "a\x1b[31m", "a" * 25, "a\n"],
)
def test_bad_names(context: Context, tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError) as caught:
        scaffold.new_plugin(context, name, directory=tmp_path / "new")
    assert "for example: phitui plugins new " in caught.value.hint
    assert "\x1b" not in str(caught.value)
    assert not (tmp_path / "new").exists()


def test_the_example_of_a_bad_name_is_a_good_one(context: Context, tmp_path: Path) -> None:
    for number, name in enumerate(["My Tool!", "2nd__Try-", "x" * 80, "a" * 23 + " b", "--"]):
        with pytest.raises(UsageError) as caught:
            scaffold.new_plugin(context, name, directory=tmp_path / "no")
        better = caught.value.hint.rpartition(" ")[2]
        scaffold.new_plugin(context, better, directory=tmp_path / str(number))


@pytest.mark.parametrize("name", OWN)
def test_names_of_phituis_own_plugins(context: Context, tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="phitui's own"):
        scaffold.new_plugin(context, name, directory=tmp_path / "new")


def test_names_of_offers_and_commands(context: Context, tmp_path: Path) -> None:
    evaluator = context.registry.evaluators[0].name
    with pytest.raises(UsageError, match="another evaluator"):
        scaffold.new_plugin(context, evaluator, ["evaluator"], tmp_path / "new")
    assert scaffold.new_plugin(context, evaluator, ["finder"], tmp_path / "new").kinds == ("finder",)
    for name in COMMANDS:
        with pytest.raises(UsageError):
            scaffold.new_plugin(context, name, ["command"], tmp_path / "other", COMMANDS)


def test_names_of_other_modules(context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "phitui_taken_already.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UsageError, match="is installed already"):
        scaffold.new_plugin(context, "taken-already", directory=tmp_path / "new")


def test_unknown_kind(context: Context, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        scaffold.new_plugin(context, "mine", ["importer"], tmp_path / "new")
    assert "exporter" in caught.value.hint


def test_what_is_there_stays(context: Context, tmp_path: Path) -> None:
    full, file, link = tmp_path / "full", tmp_path / "file", tmp_path / "link"
    full.mkdir()
    (full / "kept.txt").write_text("mine")
    file.write_text("mine")
    link.symlink_to(tmp_path / "nowhere")
    for place in (full, file, link):
        with pytest.raises(OutputExists):
            scaffold.new_plugin(context, "mine", directory=place)
    assert [path.name for path in full.iterdir()] == ["kept.txt"]
    assert file.read_text() == "mine" and link.is_symlink()


def test_an_empty_directory_is_taken(context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    empty = tmp_path / "empty"
    empty.mkdir(mode=0o755)
    made = scaffold.new_plugin(context, "mine", directory=empty)
    assert (made.directory / "pyproject.toml").is_file()
    assert made.directory.stat().st_mode & 0o777 == 0o755
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(UsageError, match="current directory"):
        scaffold.new_plugin(context, "mine", directory=Path())


def test_whole_or_not_at_all(context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that is full after a few files leaves neither a package nor scratch files."""
    write, count = Path.write_text, 0

    def limited(path: Path, *arguments: object, **named: object) -> int:
        nonlocal count
        count += 1
        if count > 3:
            raise OSError(28, "No space left on device")
        return write(path, *arguments, **named)  # type: ignore[arg-type]

    below = tmp_path / "below"
    below.mkdir()
    monkeypatch.setattr(Path, "write_text", limited)
    with pytest.raises(PhituiError, match="No space left"):
        scaffold.new_plugin(context, "mine", directory=below / "new")
    assert list(below.iterdir()) == []


def test_a_place_that_cannot_be_written(context: Context, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PhituiError) as caught:
        scaffold.new_plugin(context, "mine", directory=tmp_path / "file" / "new")
    assert "--dir" in caught.value.hint


@pytest.mark.parametrize("place", ["x" * 300, "~nobody-has-this-name/new", "x/" + "y" * 300])
def test_places_that_cannot_be(context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PhituiError) as caught:
        scaffold.new_plugin(context, "mine", directory=Path(place))
    assert "--dir" in caught.value.hint


def test_a_current_directory_that_is_gone(context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(UsageError):
        scaffold.new_plugin(context, "mine")
    assert scaffold.new_plugin(context, "mine", directory=tmp_path / "new").files


@pytest.mark.parametrize("name", ["exporters", "exporter", "test", "phitui"])
def test_names_like_those_of_hooks_and_kinds(context: Context, tmp_path: Path, name: str) -> None:
    made = scaffold.new_plugin(context, name, tuple(scaffold.KINDS), tmp_path / "new")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_package.py"]
    result = subprocess.run(command, cwd=made.directory, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stdout


@pytest.mark.skipif(find_spec("ruff") is None, reason="ruff is not installed")
@pytest.mark.parametrize("name", ["a", "a" * scaffold.LONGEST])
@pytest.mark.parametrize("kinds", [tuple(scaffold.KINDS), ("finder",)], ids=["all", "one"])
def test_ruff_has_nothing_to_say(context: Context, tmp_path: Path, name: str, kinds: tuple[str, ...]) -> None:
    made = scaffold.new_plugin(context, name, kinds, tmp_path / "new")
    ruff = [sys.executable, "-m", "ruff"]
    for call in (["check", "--no-cache", "--select", "E,F,I,B,UP,RET,SIM,PERF"], ["format", "--no-cache", "--check"]):
        result = subprocess.run([*ruff, *call, "."], cwd=made.directory, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stdout


def test_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["plugins", "new", "mine", "--kind", "all", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["kinds"] == list(scaffold.KINDS)
    there = sorted(str(path.relative_to(tmp_path / "phitui-mine")) for path in tmp_path.rglob("*") if path.is_file())
    assert sorted(document["files"]) == [name for name in there if not name.startswith("..")]
    assert run(["plugins", "new", "mine"]) == 2
    assert "not empty" in capsys.readouterr().err
    assert run(["plugins", "--json", "new", "ollama"]) == 2
    assert "phitui's own" in json.loads(capsys.readouterr().out)["error"]["message"]
    assert run(["plugins", "new", "other", "--kind", "finder", "--dir", "deep/below it"]) == 0
    text = capsys.readouterr().out
    assert "cd 'deep/below it'" in text and 'pip install -e ".[dev]"' in text


@pytest.mark.parametrize("words", [[], ["list"]])
@pytest.mark.parametrize("flag", ["--json", "--trace"])
def test_the_list_is_as_it_was(words: list[str], flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plugins", *words, flag]) == 0
    after = capsys.readouterr().out
    assert run(["plugins", flag, *words]) == 0
    assert capsys.readouterr().out == after
    assert OWN[0] in after
