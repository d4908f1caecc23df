"""`phitui gguf` as a script sees it: JSON, exit codes, files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from phitui.cli import dispatch
from phitui.gguf.header import read_header
from phitui.plugins import load
from phitui.testing.bytewise import write_bytewise

LLAMA = any(offer.name == "llama.cpp" and offer.available().ok for offer in load().quantizers)
needs_llama = pytest.mark.skipif(not LLAMA, reason="llama-cpp-python is not installed")
Run = Callable[..., Any]
SETTINGS = ("--temp", "0", "--max-tokens", "12", "--ctx", "256")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """phitui with --json: its document, the exit code checked. In this process, as starting one takes its time."""

    def call(*arguments: str, code: int = 0) -> Any:
        capsys.readouterr()
        ended = dispatch.run([*arguments, "--json"])
        out, err = capsys.readouterr()
        assert ended == code, out + err
        assert "Traceback" not in err
        return json.loads(out)

    return call


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bytewise(tmp_path_factory.mktemp("models") / "tiny.gguf")


@pytest.fixture
def model(tiny: Path, tmp_path: Path) -> Path:
    path = tmp_path / "tiny.gguf"
    path.write_bytes(tiny.read_bytes())
    return path


@needs_llama
def test_a_split_model_is_a_model_everywhere(run: Run, model: Path, tmp_path: Path) -> None:
    parts = tmp_path / "parts"
    parts.mkdir()
    planned = run("gguf", "split", str(model), "--max-size", "700K", "--out", str(parts), "--dry-run")
    assert list(parts.iterdir()) == []
    made = run("gguf", "split", str(model), "--max-size", "700K", "--out", str(parts))
    assert made["files"] == planned["files"]
    assert len(made["files"]) > 2
    assert made["path"] == made["files"][0]["path"] == str(parts / f"tiny-00001-of-0000{len(made['files'])}.gguf")
    assert all(Path(file["path"]).stat().st_size == file["size"] for file in made["files"])
    last = made["files"][-1]["path"]

    whole_answer, answer = (run("chat", file, "-p", "hello", *SETTINGS) for file in (str(model), last))
    assert answer["text"] == whole_answer["text"] and answer["completion_tokens"] == 12
    assert run("inspect", last)["parameters"] == run("inspect", str(model))["parameters"]
    plans = [run("plan", file, "--ctx", "512")["devices"] for file in (last, str(model))]
    assert [device["weights"] for device in plans[0]] == [device["weights"] for device in plans[1]]
    for source, out in ((last, "a.gguf"), (str(model), "b.gguf")):
        run("build", source, "--scheme", "Q8_0", "--out", str(tmp_path / out))
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()

    merged = run("gguf", "merge", last, "--out", str(tmp_path / "merged.gguf"))
    assert merged["parts"] == len(made["files"])
    assert (tmp_path / "merged.gguf").read_bytes() == model.read_bytes()
    shown = run("gguf", "show", last)
    assert [file["size"] for file in shown["files"]] == [file["size"] for file in made["files"]]
    assert len(shown["tensors"]) == len(read_header(model).tensors)
    assert [key["key"] for key in run("gguf", "show", last, "--this-file")["keys"]] == [
        "split.no", "split.tensors.count", "split.count",
    ]  # fmt: skip


def test_what_split_and_merge_refuse(run: Run, model: Path, tmp_path: Path) -> None:
    def hint(*arguments: str, code: int = 2) -> str:
        error = run("gguf", *arguments, code=code)["error"]
        assert error["hint"]
        return str(error["message"])

    assert "no size" in hint("split", str(model), "--max-size", "many")
    assert "not clear" in hint("split", str(model))
    assert "nothing to split" in hint("split", str(model), "--max-size", "1G")
    assert "alone has" in hint("split", str(model), "--max-size", "1K")
    assert "does not exist" in hint("split", str(model), "--max-tensors", "4", "--out", str(tmp_path / "no" / "x"))
    assert "nothing to merge" in run("gguf", "merge", str(model), "--out", "x.gguf", code=2)["error"]["hint"]
    run("gguf", "split", str(model), "--max-tensors", "9")
    assert "exists already" in hint("split", str(model), "--max-tensors", "9")
    first = next(tmp_path.glob("*-00001-*"))
    assert "name of a part" in hint("merge", str(first), "--out", str(tmp_path / "x-00001-of-00002.gguf"))
    assert "exists already" in hint("merge", str(first), "--out", str(model))
    model.rename(tmp_path / "other.gguf")
    model.symlink_to(first)
    assert "source itself" in hint("merge", str(first), "--out", str(model), "--overwrite")
    next(tmp_path.glob("*-00002-*")).unlink()
    assert "is missing" in hint("merge", str(first), "--out", str(tmp_path / "y.gguf"), code=1)
    assert not list(tmp_path.glob("y.gguf*"))


def test_edits(run: Run, model: Path, tmp_path: Path) -> None:
    before, size = model.read_bytes(), model.stat().st_size
    name = read_header(model).get("general.name")
    other = name[::-1]
    planned = run("gguf", "edit", str(model), "--name", other, "--in-place", "--dry-run")
    assert (planned["how"], model.read_bytes()) == ("header", before)
    done = run("gguf", "edit", str(model), "--name", other, "--in-place")
    assert done["how"] == "header" and 0 < done["bytes_written"] <= len(name)
    assert done["changes"] == [{"key": "general.name", "index": None, "type": "str", "before": name, "after": other}]
    assert model.stat().st_size == size
    assert run("gguf", "edit", str(model), "--name", other, "--in-place")["how"] == "nothing"
    template = tmp_path / "chat.jinja"
    template.write_text("{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}")
    arguments = ("--chat-template", str(template), "--set", "general.year=2026", "--set-type", "general.year=u16")
    anew = run("gguf", "edit", str(model), *arguments, "--in-place")
    assert (anew["how"], anew["path"], anew["bytes_written"]) == ("rewritten", str(model), model.stat().st_size)
    assert read_header(model).get("tokenizer.chat_template") == template.read_text()
    back = run(
        "gguf", "edit", str(model), "--name", name, "--remove", "tokenizer.chat_template", "--remove", "general.year",
        "--out", str(tmp_path / "back.gguf"),
    )  # fmt: skip
    assert back["how"] == "copied"
    assert (tmp_path / "back.gguf").read_bytes() == before
    shown = run("gguf", "show", str(model), "--key", "general.year")
    assert shown["keys"] == [{"key": "general.year", "type": "u16", "value": 2026}]


def test_edits_that_are_refused_change_nothing(run: Run, model: Path, tmp_path: Path) -> None:
    before = model.read_bytes()
    bad, link = tmp_path / "bad.jinja", tmp_path / "link.gguf"
    bad.write_text("{% for m in messages %}\n{% if %}\n{% endfor %}")
    link.symlink_to(model)
    stored = tmp_path / ("sha256-" + "0" * 64)
    stored.write_bytes(before)

    def message(*arguments: str, code: int = 2, file: Path = model) -> str:
        error = run("gguf", "edit", str(file), *arguments, code=code)["error"]
        assert error["hint"]
        return str(error["message"])

    assert "not clear" in message("--name", "x")
    assert "not clear" in message("--name", "x", "--in-place", "--out", "y")
    assert "error in line 2" in message("--chat-template", str(bad), "--in-place", code=1)
    assert "error in line 1" in message("--set", "tokenizer.chat_template={{", "--in-place", code=1)
    assert "not changed" in message("--set", "general.architecture=llama", "--in-place")
    assert "no token id" in message("--token", "x=y", "--in-place")
    assert "no = in it" in message("--set", "general.name", "--in-place")
    assert "would not load" in message("--name", "My Phi-3", "--in-place")
    assert "is a link to" in message("--name", "x", "--in-place", file=link)
    assert "named by its content" in message("--name", "x", "--in-place", file=stored)
    assert "exists already" in message("--name", "x", "--out", str(bad))
    assert model.read_bytes() == stored.read_bytes() == before
    assert not list(tmp_path.glob("*.edit*"))


def test_the_lineage_of_an_edited_file_is_no_lie(run: Run, model: Path, tmp_path: Path) -> None:
    pytest.importorskip("tomli_w")
    from phitui.store.sidecar import beside, read_recipe

    built = tmp_path / "built.gguf"
    run("build", str(model), "--scheme", "F16", "--out", str(built))
    assert not read_recipe(beside(built)).edits
    name = read_header(built).get("general.name")
    assert run("gguf", "edit", str(built), "--name", name[::-1], "--in-place")["how"] == "header"
    (edit,) = read_recipe(beside(built)).edits
    assert (edit.what, edit.size) == ("edited general.name", built.stat().st_size)
    assert run("gguf", "edit", str(built), "--name", name * 40, "--in-place")["how"] == "rewritten"
    assert [edit.size for edit in read_recipe(beside(built)).edits][-1] == built.stat().st_size


def test_a_split_model_is_edited_in_its_first_file(run: Run, model: Path, tmp_path: Path) -> None:
    made = run("gguf", "split", str(model), "--max-tensors", "9", "--out", str(tmp_path / "set"))
    first, last = made["files"][0]["path"], made["files"][-1]["path"]
    raw = Path(last).read_bytes()
    error = run("gguf", "edit", last, "--name", "x", "--out", str(tmp_path / "y.gguf"), code=2)["error"]
    assert "parts of a split model" in error["message"]
    done = run("gguf", "edit", last, "--name", "another name, longer than the one before it", "--in-place")
    assert (done["how"], done["path"]) == ("rewritten", first)
    assert run("inspect", last)["name"] == "another name, longer than the one before it"
    assert Path(last).read_bytes() == raw
    assert "split.count is not changed" in run(
        "gguf", "edit", last, "--set", "split.count=2", "--in-place", code=2
    )["error"]["message"]  # fmt: skip


@pytest.mark.parametrize(
    "arguments", [("show",), ("split", "--max-tensors", "2"), ("edit", "--name", "x", "--in-place")]
)
def test_files_that_are_none(run: Run, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(b"not a gguf")
    command, *rest = arguments
    assert "not a GGUF" in run("gguf", command, str(bad), *rest, code=1)["error"]["message"]
    run("gguf", command, str(tmp_path / "none.gguf"), *rest, code=2)
