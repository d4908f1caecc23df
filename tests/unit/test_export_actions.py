"""Exports: what is previewed is what is written, whole or not at all, and never outside the directory."""

from __future__ import annotations

import errno
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from phitui.__main__ import main
from phitui.actions import export as actions
from phitui.actions import placing
from phitui.actions.context import Context
from phitui.actions.export import ExportRequest
from phitui.domain.bundle import Bundle, BundleFile, BundleLink, ExportModel
from phitui.domain.offers import Availability
from phitui.domain.options import option
from phitui.domain.tensors import FilePlan, InlineExtent, SourceTensor, TensorType, Value, ValueType, place
from phitui.errors import InvalidFile, OutputExists, PhituiError, Unavailable, UsageError
from phitui.gguf.writer import write_gguf

TEMPLATE = (
    "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endfor %}{{ '<|assistant|>\n' }}"
)


@dataclass(frozen=True)
class Options:
    text: str = option("hello", help="what to write")


class Exporter:
    name = "fake"
    title = "Fake"
    options = Options

    def __init__(self, *paths: str) -> None:
        self.paths = paths or ("a.txt",)
        self.model: ExportModel | None = None

    def available(self) -> Availability:
        return Availability()

    def preview(self, model: ExportModel, options: Options, out: Path) -> Bundle:
        self.model = model
        return Bundle(tuple(BundleFile(path, options.text) for path in self.paths), ("run it",), ("a note",))


@pytest.fixture
def model(tmp_path: Path) -> str:
    tensor = SourceTensor("token_embd.weight", (32, 2), TensorType.F32, (InlineExtent(bytes(256)),))
    metadata = {
        "general.architecture": Value.string("phi3"),
        "general.name": Value.string("tiny"),
        "phi3.block_count": Value.u32(2),
        "phi3.context_length": Value.u32(8192),
        "tokenizer.ggml.tokens": Value.array(ValueType.STRING, ["<|end|>", "<|user|>"]),
        "tokenizer.chat_template": Value.string(TEMPLATE),
    }
    path = tmp_path / "Phi-3-tiny.gguf"
    write_gguf(FilePlan("F32", metadata, place([(tensor, TensorType.F32, None)])), path)
    return str(path)


def use(context: Context, exporter: Any) -> Any:
    context.registry.exporters.insert(0, exporter)
    return exporter


def test_preview_writes_nothing(context: Context, model: str, tmp_path: Path) -> None:
    exporter = use(context, Exporter())
    bundle = actions.preview(context, ExportRequest(model, "fake", tmp_path / "out", {"text": "x"}))
    assert bundle.files == (BundleFile("a.txt", "x"),)
    assert not (tmp_path / "out").exists()
    seen = exporter.model
    assert seen.chat_template == TEMPLATE
    assert seen.facts.chat_format == "phi-3"
    assert seen.metadata["phi3.block_count"] == 2
    assert "nothing" not in seen.metadata
    assert len(seen.metadata) == len(list(seen.metadata)) == 6


def test_export(context: Context, model: str, tmp_path: Path) -> None:
    use(context, Exporter("a.txt", "deep/er/b.txt"))
    text = "zeile\r\n«ü»\n"
    result = actions.export(context, ExportRequest(model, "fake", tmp_path / "out", {"text": text}))
    assert result.files == (tmp_path / "out" / "a.txt", tmp_path / "out" / "deep" / "er" / "b.txt")
    assert (result.run, result.notes) == (("run it",), ("a note",))
    assert all(file.read_bytes() == text.encode() for file in result.files)
    assert sorted(path.name for path in (tmp_path / "out").rglob("*") if path.is_file()) == ["a.txt", "b.txt"]


def test_existing_files_are_kept(context: Context, model: str, tmp_path: Path) -> None:
    use(context, Exporter("new.txt", "a.txt"))
    (tmp_path / "a.txt").write_text("mine")
    request = ExportRequest(model, "fake", tmp_path)
    with pytest.raises(UsageError, match="is there already"):
        actions.export(context, request)
    assert (tmp_path / "a.txt").read_text() == "mine"
    assert not (tmp_path / "new.txt").exists()
    actions.export(context, request, overwrite=True)
    assert (tmp_path / "a.txt").read_text() == "hello"


def test_a_dangling_link_is_not_written_through(context: Context, model: str, tmp_path: Path) -> None:
    use(context, Exporter())
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.txt").symlink_to(tmp_path / "elsewhere")
    request = ExportRequest(model, "fake", tmp_path / "out")
    with pytest.raises(UsageError):
        actions.export(context, request)
    actions.export(context, request, overwrite=True)
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("path", ["../a", "/etc/a", "x/../../a", "", "a\\..\\b", "link/a"])
def test_paths_outside_are_refused(context: Context, model: str, tmp_path: Path, path: str) -> None:
    use(context, Exporter("good.txt", path))
    out = tmp_path / "out"
    out.mkdir()
    (out / "link").symlink_to(tmp_path)
    with pytest.raises(UsageError, match="outside"):
        actions.export(context, ExportRequest(model, "fake", out), overwrite=True)
    assert not (out / "good.txt").exists()


def test_out_that_cannot_be_written(context: Context, model: str, tmp_path: Path) -> None:
    use(context, Exporter())
    (tmp_path / "file").write_text("")
    with pytest.raises(PhituiError, match="cannot write"):
        actions.export(context, ExportRequest(model, "fake", tmp_path / "file" / "x"))
    (tmp_path / "out" / "a.txt").mkdir(parents=True)
    with pytest.raises(UsageError, match="is a directory"):
        actions.export(context, ExportRequest(model, "fake", tmp_path / "out"), overwrite=True)


def test_wrong_requests(context: Context, model: str, tmp_path: Path) -> None:
    use(context, Exporter())
    with pytest.raises(UsageError, match="no export target is named 'nope'"):
        actions.preview(context, ExportRequest(model, "nope", tmp_path))
    with pytest.raises(UsageError, match="unknown option 'nope'"):
        actions.preview(context, ExportRequest(model, "fake", tmp_path, {"nope": 1}))
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    with pytest.raises(InvalidFile):
        actions.preview(context, ExportRequest(str(tmp_path / "x.gguf"), "fake", tmp_path))


def test_an_exporter_that_cannot_be_used(context: Context, model: str, tmp_path: Path) -> None:
    class Missing(Exporter):
        name = "missing"

        def available(self) -> Availability:
            return Availability(False, "not here", "install it")

    use(context, Missing())
    assert "missing" in [offer.name for offer in actions.targets(context)]
    with pytest.raises(Unavailable, match="not here"):
        actions.preview(context, ExportRequest(model, "missing", tmp_path))


def test_an_exporter_that_raises(context: Context, model: str, tmp_path: Path) -> None:
    class Broken(Exporter):
        def preview(self, model: ExportModel, options: Options, out: Path) -> Bundle:
            raise KeyError("x")

    use(context, Broken())
    with pytest.raises(PhituiError, match="fake failed: KeyError"):
        actions.export(context, ExportRequest(model, "fake", tmp_path / "out"))


def test_command_line(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    arguments = ["export", model, "--to", "ollama", "--out", str(out), "--system", "Be brief.", "--num-ctx", "2048"]
    assert main([*arguments, "--preview"]) == 0
    shown = capsys.readouterr().out
    assert "SYSTEM Be brief." in shown
    assert not out.exists()
    assert main([*arguments, "--name", "mine", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["files"] == [str(out / "Modelfile")]
    assert document["run"] == [f"ollama create mine -f {out}/Modelfile", "ollama run mine"]
    text = (out / "Modelfile").read_text()
    assert f"FROM {model}\n" in text
    assert "PARAMETER num_ctx 2048\n" in text
    assert main(arguments) == 2
    assert "is there already" in capsys.readouterr().err
    assert main([*arguments, "--overwrite"]) == 0
    assert f"wrote {out / 'Modelfile'}" in capsys.readouterr().out


@pytest.mark.parametrize("extra", [["--parameter", "nope=1"], ["--name", "a b"], ["--num-ctx", "0"], ["--nope"]])
def test_command_line_refuses(model: str, tmp_path: Path, extra: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", model, "--to", "ollama", "--out", str(tmp_path / "out"), *extra]) == 2
    assert capsys.readouterr().out == ""
    assert not (tmp_path / "out").exists()


class Placer(Exporter):
    """Places the model, or what a test says, where a test says."""

    def __init__(self, path: str, source: Path | None = None) -> None:
        super().__init__("readme.txt")
        self.path, self.source = path, source

    def preview(self, model: ExportModel, options: Options, out: Path) -> Bundle:
        link = BundleLink(self.path, self.source or model.path)
        return Bundle((BundleFile("readme.txt", options.text),), links=(link,))


def test_the_model_is_linked(context: Context, model: str, tmp_path: Path) -> None:
    elsewhere = tmp_path / "its own" / "folder" / "m.gguf"
    use(context, Placer(str(elsewhere)))
    request = ExportRequest(model, "fake", tmp_path / "out")
    assert actions.preview(context, request).links == (BundleLink(str(elsewhere), Path(model)),)
    assert not elsewhere.parent.exists()
    result = actions.export(context, request)
    assert result.files == (tmp_path / "out" / "readme.txt", elsewhere)
    assert elsewhere.samefile(model)
    assert result.notes == (f"{elsewhere}: hard link, takes no space of its own",)
    (tmp_path / "out" / "readme.txt").unlink()
    assert actions.export(context, request).notes == (f"{elsewhere}: there already",)
    actions.export(context, request, overwrite=True)
    assert Path(model).read_bytes() == elsewhere.read_bytes() != b""
    assert [path.name for path in elsewhere.parent.iterdir()] == ["m.gguf"]


def test_the_model_is_copied_where_it_cannot_be_linked(
    context: Context, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = os.link

    def refused(source: Any, target: Any) -> None:
        if Path(source) == Path(model):
            raise OSError(errno.EXDEV, "another file system")
        link(source, target)

    monkeypatch.setattr(os, "link", refused)
    monkeypatch.setattr(placing, "_reflink", lambda _real, _partial: False)
    use(context, Placer("models/a b/m.gguf"))
    placed = tmp_path / "out" / "models" / "a b" / "m.gguf"
    request = ExportRequest(model, "fake", tmp_path / "out")
    assert "copy, takes" in actions.export(context, request).notes[0]
    assert placed.read_bytes() == Path(model).read_bytes()
    assert not placed.samefile(model)
    assert "there already" in actions.export(context, request, overwrite=True).notes[0]
    placed.write_bytes(b"mine")
    with pytest.raises(OutputExists):
        actions.export(context, request)
    assert placed.read_bytes() == b"mine"
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: shutil._ntuple_diskusage(9, 9, 0))
    with pytest.raises(PhituiError, match=r"0\.00 GiB free"):
        actions.export(context, request, overwrite=True)
    assert [path.name for path in placed.parent.iterdir()] == ["m.gguf"]
    monkeypatch.undo()
    actions.export(context, request, overwrite=True)
    assert placed.samefile(model)


def test_a_file_in_the_way_of_the_model_stays(context: Context, model: str, tmp_path: Path) -> None:
    taken = tmp_path / "folder" / "m.gguf"
    taken.parent.mkdir()
    taken.write_bytes(b"another model")
    use(context, Placer(str(taken)))
    request = ExportRequest(model, "fake", tmp_path / "out")
    with pytest.raises(OutputExists, match="is there already"):
        actions.export(context, request)
    assert taken.read_bytes() == b"another model"
    assert not (tmp_path / "out").exists()
    with pytest.raises(OutputExists):
        placing.place(Path(model), taken)
    assert taken.read_bytes() == b"another model"
    actions.export(context, request, overwrite=True)
    assert taken.samefile(model)


def test_only_the_model_is_placed(context: Context, model: str, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("mine")
    use(context, Placer(str(tmp_path / "x.gguf"), secret))
    with pytest.raises(UsageError, match="no file of the model"):
        actions.export(context, ExportRequest(model, "fake", tmp_path / "out"))
    context.registry.exporters.pop(0)
    for path in ("../x.gguf", f"{tmp_path}/a/../x.gguf"):
        use(context, Placer(path))
        with pytest.raises(UsageError, match=r"outside|no plain path"):
            actions.export(context, ExportRequest(model, "fake", tmp_path / "out"))
        context.registry.exporters.pop(0)
    assert not (tmp_path / "x.gguf").exists()


def test_a_name_that_is_no_text(context: Context, model: str, tmp_path: Path) -> None:
    use(context, Exporter())
    with pytest.raises(UsageError, match="no valid UTF-8"):
        actions.export(context, ExportRequest(model, "fake", tmp_path / "out", {"text": "\udcff"}))
