"""What a build checks before any work, and what its job does; with quantizers and converters made here."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from phitui.actions import build, schemes
from phitui.actions.build import BuildRequest
from phitui.actions.context import Context
from phitui.actions.source import open_source, source_name, source_path
from phitui.domain.model import Verdict
from phitui.domain.offers import Availability
from phitui.domain.options import option
from phitui.domain.quant import Scheme
from phitui.domain.tensors import FilePlan, InlineExtent, Source, SourceTensor, TensorType, Value, place
from phitui.errors import InvalidFile, PhituiError, Unavailable, UnsupportedModel, UsageError
from phitui.gguf.header import file_size
from phitui.gguf.writer import write_gguf
from phitui.plugins import Failure, Registry


@dataclass(frozen=True)
class Options:
    note: str = option("", help="a note")
    list_file: Path | None = option(None, help="a file")


class Halves:
    """Two schemes: SAME copies, WEIGHED needs an imatrix; BROKEN is refused."""

    name, title, options = "halves", "Halves", Options

    def __init__(self, state: Availability | None = None) -> None:
        self.state = state or Availability()

    def available(self) -> Availability:
        return self.state

    def schemes(self) -> Sequence[Scheme]:
        return Scheme("SAME", 32, 0), Scheme("WEIGHED", 2, 1, needs_imatrix=True), Scheme("BROKEN", 1, 2)

    def plan(self, source: Any, schemes: Sequence[str], options: Options) -> Mapping[str, FilePlan]:
        return {name: self._plan(source, name, options) for name in schemes}

    def _plan(self, source: Any, name: str, options: Options) -> FilePlan:
        tensors = place([(t, t.stored, TensorType.Q4_K if i == 0 else None) for i, t in enumerate(source.tensors)])
        needs = ("a.weight",) if name == "WEIGHED" else ()
        notes = (options.note,) if options.note else ()
        if name == "BROKEN":
            return FilePlan(name, source.metadata, (), refused="it is broken")
        return FilePlan(name, source.metadata, tensors, needs_imatrix=needs, notes=notes)

    def encoder(self, plan: FilePlan, options: Options) -> Any:
        return None


class Reader:
    """Takes checkpoints of TinyForCausalLM."""

    name, title, options = "reader", "Reader", Options
    architectures = ("TinyForCausalLM",)

    def available(self) -> Availability:
        return Availability()

    def inspect(self, config: Mapping[str, Any]) -> Verdict:
        if config.get("strange"):
            return Verdict(False, "it is strange")
        ok = config.get("architectures") == ["TinyForCausalLM"]
        return Verdict(ok, "" if ok else "not mine")

    def open(self, checkpoint: Path, options: Options) -> Source:
        return tiny(checkpoint)


class Note:
    """A JobContext that remembers."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def progress(self, done: int, total: int, text: str = "") -> None: ...
    def check(self) -> None: ...
    def note(self, text: str) -> None:
        self.notes.append(text)


def tiny(origin: Path) -> Source:
    data = bytes(4 * 64 * 2)
    tensors = tuple(
        SourceTensor(name, (64, 2), TensorType.F32, (InlineExtent(data),)) for name in ("a.weight", "b.weight")
    )
    return Source(origin, "tiny", {"general.architecture": Value.string("tiny")}, tensors)


@pytest.fixture
def ctx(monkeypatch: pytest.MonkeyPatch) -> Context:
    registry = Registry(quantizers=[Halves()], converters=[Reader()])  # type: ignore[list-item]
    monkeypatch.setattr("phitui.plugins.load", lambda: registry)
    return Context()


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    directory = tmp_path / "Tiny-instruct"
    directory.mkdir()
    (directory / "config.json").write_text('{"architectures": ["TinyForCausalLM"]}')
    return directory


@pytest.fixture
def gguf(tmp_path: Path) -> Path:
    source = tiny(tmp_path)
    plan = FilePlan("F32", source.metadata, place([(t, t.stored, None) for t in source.tensors]))
    write_gguf(plan, tmp_path / "tiny-bf16.gguf")
    return tmp_path / "tiny-bf16.gguf"


class TestSource:
    def test_checkpoint_goes_to_its_converter(self, ctx: Context, checkpoint: Path) -> None:
        assert open_source(ctx, str(checkpoint)).architecture == "tiny"

    def test_gguf(self, ctx: Context, gguf: Path) -> None:
        assert [tensor.name for tensor in open_source(ctx, str(gguf)).tensors] == ["a.weight", "b.weight"]

    def test_unknown_architecture_names_the_nearest(self, ctx: Context, checkpoint: Path) -> None:
        (checkpoint / "config.json").write_text('{"architectures": ["TinyForCausalLN"]}')
        with pytest.raises(UnsupportedModel, match="TinyForCausalLN") as caught:
            open_source(ctx, str(checkpoint))
        assert "TinyForCausalLM" in str(caught.value)

    def test_reason_of_the_converter(self, ctx: Context, checkpoint: Path) -> None:
        (checkpoint / "config.json").write_text('{"architectures": ["TinyForCausalLM"], "strange": true}')
        with pytest.raises(UnsupportedModel, match="it is strange"):
            open_source(ctx, str(checkpoint))

    def test_not_a_checkpoint(self, ctx: Context, tmp_path: Path) -> None:
        with pytest.raises(InvalidFile, match=r"config\.json"):
            open_source(ctx, str(tmp_path))

    def test_not_a_gguf(self, ctx: Context, tmp_path: Path) -> None:
        (tmp_path / "x.gguf").write_bytes(b"nonsense" * 10)
        with pytest.raises(InvalidFile):
            open_source(ctx, str(tmp_path / "x.gguf"))

    def test_one_file_of_a_checkpoint(self, ctx: Context, checkpoint: Path) -> None:
        (checkpoint / "model.safetensors").touch()
        with pytest.raises(UsageError, match="one file of a checkpoint"):
            open_source(ctx, str(checkpoint / "model.safetensors"))

    def test_hub_id_says_pull(self, ctx: Context) -> None:
        with pytest.raises(UsageError) as caught:
            source_path(ctx, "microsoft/Phi-4-mini-instruct")
        assert "phitui pull microsoft/Phi-4-mini-instruct" in caught.value.hint

    def test_nothing_there(self, ctx: Context) -> None:
        with pytest.raises(UsageError, match="does not exist"):
            source_path(ctx, "nothing-here")

    def test_converter_options_are_for_checkpoints(self, ctx: Context, gguf: Path) -> None:
        with pytest.raises(UsageError, match="--note is for checkpoints"):
            open_source(ctx, str(gguf), {"note": "x"})

    @pytest.mark.parametrize(
        ("file", "name"),
        [
            ("Phi-4-mini-bf16.gguf", "Phi-4-mini"),
            ("Phi-4-mini.Q4_K_M.gguf", "Phi-4-mini"),
            ("Phi-4-mini-IQ2_XXS.gguf", "Phi-4-mini"),
            ("Phi-4-mini.gguf", "Phi-4-mini"),
            ("phi-2.gguf", "phi-2"),
            ("Q4_0.gguf", "Q4_0"),
        ],
    )
    def test_name_of_a_file(self, file: str, name: str) -> None:
        assert source_name(Path(file)) == name

    def test_name_of_a_hub_snapshot_is_not_its_hash(self, tmp_path: Path) -> None:
        snapshot = tmp_path / "models--microsoft--Phi-4-mini-instruct" / "snapshots" / "0123abcd"
        snapshot.mkdir(parents=True)
        assert source_name(snapshot) == "Phi-4-mini-instruct"


class TestSchemes:
    def test_any_case(self, ctx: Context) -> None:
        assert schemes.find_scheme(ctx, " same ")[1].name == "SAME"

    def test_nearest_match(self, ctx: Context) -> None:
        with pytest.raises(UsageError) as caught:
            schemes.find_scheme(ctx, "WEIGHT")
        assert "did you mean WEIGHED" in caught.value.hint

    def test_a_quantizer_that_is_not_available_is_the_reason(self, ctx: Context) -> None:
        ctx.registry.quantizers.append(Halves(Availability(False, "x is not installed", "pip install x")))  # type: ignore[arg-type]
        with pytest.raises(Unavailable, match="x is not installed") as caught:
            schemes.find_scheme(ctx, "Q4_K_M")
        assert caught.value.hint == "pip install x"
        assert schemes.missing_quantizers(ctx) == [("Halves", "x is not installed", "pip install x")]

    def test_a_plugin_that_failed_is_named(self, ctx: Context) -> None:
        ctx.registry.failures.append(Failure("numbers", "import", "ImportError: x"))
        with pytest.raises(UsageError) as caught:
            schemes.find_scheme(ctx, "Q9_X")
        assert "numbers failed to load, phitui plugins says why" in caught.value.hint

    def test_table_without_a_source(self, ctx: Context) -> None:
        rows = schemes.scheme_table(ctx, None)
        assert [(row.scheme.name, row.size, row.needs_imatrix) for row in rows] == [
            ("SAME", None, False),
            ("WEIGHED", None, True),
            ("BROKEN", None, False),
        ]

    def test_table_with_a_source(self, ctx: Context, gguf: Path) -> None:
        rows = {row.scheme.name: row for row in schemes.scheme_table(ctx, str(gguf))}
        assert rows["SAME"].size == gguf.stat().st_size
        assert rows["SAME"].bits_per_weight == 32
        assert rows["SAME"].substitutions == 1
        assert rows["BROKEN"].error == "it is broken"
        assert rows["WEIGHED"].needs_imatrix

    def test_a_quantizer_that_raises_is_a_failure_not_a_crash(
        self, ctx: Context, gguf: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def raises(self: Halves) -> Sequence[Scheme]:
            raise RuntimeError("boom")

        monkeypatch.setattr(Halves, "schemes", raises)
        assert schemes.scheme_table(ctx, str(gguf)) == []
        assert [failure.error for failure in ctx.registry.failures] == ["RuntimeError: boom"]


class TestRefusals:
    """Before a job is started; nothing is left behind."""

    def refused(self, ctx: Context, request: BuildRequest) -> PhituiError:
        with pytest.raises(PhituiError) as caught:
            build.start(ctx, request)
        assert not ctx.paths.jobs.exists()
        return caught.value

    def test_out_exists(self, ctx: Context, gguf: Path, tmp_path: Path) -> None:
        (tmp_path / "out.gguf").write_text("mine")
        error = self.refused(ctx, BuildRequest(str(gguf), "SAME", str(tmp_path / "out.gguf")))
        assert "--overwrite" in error.hint
        assert (tmp_path / "out.gguf").read_text() == "mine"

    def test_out_is_the_source(self, ctx: Context, gguf: Path) -> None:
        error = self.refused(ctx, BuildRequest(str(gguf), "SAME", str(gguf), overwrite=True))
        assert "the source itself" in error.message

    def test_out_is_a_link_to_the_source(self, ctx: Context, gguf: Path, tmp_path: Path) -> None:
        (tmp_path / "link.gguf").symlink_to(gguf)
        error = self.refused(ctx, BuildRequest(str(gguf), "SAME", str(tmp_path / "link.gguf"), overwrite=True))
        assert "the source itself" in error.message

    def test_out_is_a_directory(self, ctx: Context, gguf: Path, tmp_path: Path) -> None:
        assert "is a directory" in self.refused(ctx, BuildRequest(str(gguf), "SAME", str(tmp_path))).message

    def test_no_such_directory(self, ctx: Context, gguf: Path, tmp_path: Path) -> None:
        error = self.refused(ctx, BuildRequest(str(gguf), "SAME", str(tmp_path / "no" / "x.gguf")))
        assert "does not exist" in error.message

    @pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
    def test_not_writable(self, ctx: Context, gguf: Path, tmp_path: Path) -> None:
        (tmp_path / "locked").mkdir(mode=0o500)
        error = self.refused(ctx, BuildRequest(str(gguf), "SAME", str(tmp_path / "locked" / "x.gguf")))
        assert "not writable" in error.message

    def test_disk_too_small(self, ctx: Context, gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 90, 10))
        error = self.refused(ctx, BuildRequest(str(gguf), "SAME", str(tmp_path / "x.gguf")))
        assert "GiB free" in error.message

    def test_imatrix_needed(self, ctx: Context, gguf: Path, tmp_path: Path) -> None:
        error = self.refused(ctx, BuildRequest(str(gguf), "WEIGHED", str(tmp_path / "x.gguf")))
        assert "importance matrix" in error.message
        assert "--imatrix" in error.hint

    def test_refused_plan(self, ctx: Context, gguf: Path, tmp_path: Path) -> None:
        assert "it is broken" in self.refused(ctx, BuildRequest(str(gguf), "BROKEN", str(tmp_path / "x"))).message

    def test_option_that_does_not_exist(self, ctx: Context, gguf: Path, tmp_path: Path) -> None:
        request = BuildRequest(str(gguf), "SAME", str(tmp_path / "x"), quantizer={"pure": True})
        assert "pure" in self.refused(ctx, request).message


class TestRequest:
    def test_paths_are_absolute_for_the_job(
        self, ctx: Context, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(checkpoint.parent)
        given = BuildRequest(checkpoint.name, "same", "x.gguf", {"list_file": "a"}, {"list_file": "b", "note": "n"})
        made = build.normalized(ctx, given)
        here = checkpoint.parent
        assert made.source == str(checkpoint)
        assert made.out == str(here / "x.gguf")
        assert made.scheme == "SAME"
        assert made.converter == {"list_file": str(here / "a")}
        assert made.quantizer == {"list_file": str(here / "b"), "note": "n"}

    def test_default_out(self, ctx: Context, gguf: Path) -> None:
        assert build.normalized(ctx, BuildRequest(str(gguf), "same")).out == str(ctx.paths.models / "tiny.SAME.gguf")

    def test_command_line_that_does_the_same(self) -> None:
        request = BuildRequest("/s", "Q4_K_M", "/o", {}, {"override": ["a=Q8_0", "b=F16"], "pure": True}, 2, True)
        assert build.command_line(request) == (
            *("phitui", "build", "/s", "--scheme", "Q4_K_M", "--out", "/o", "--override", "a=Q8_0"),
            *("--override", "b=F16", "--pure", "--threads", "2", "--overwrite"),
        )

    def test_document(self, ctx: Context, gguf: Path) -> None:
        plan = build.preview(ctx, BuildRequest(str(gguf), "SAME"))
        document = build.as_document(plan)
        assert document["size"] == file_size(plan)
        assert document["substitutions"] == [{"name": "a.weight", "wanted": "Q4_K", "to": "F32"}]
        assert document["tensors"][1] == {
            "name": "b.weight",
            "shape": [64, 2],
            "from": "F32",
            "to": "F32",
            "size": 512,
        }


def test_run_writes_and_reports(ctx: Context, gguf: Path, tmp_path: Path) -> None:
    job = Note()
    out = tmp_path / "out.gguf"
    request = build.normalized(ctx, BuildRequest(str(gguf), "SAME", str(out), quantizer={"note": "hello"}))
    result = build.run(build.asdict(request), job)
    assert result["path"] == str(out)
    assert result["size"] == out.stat().st_size
    assert result["bits_per_weight"] == 32
    assert result["substitutions"] == 1
    assert "hello" in job.notes
    assert any("in place of Q4_K" in note for note in job.notes)


def test_a_scheme_that_crashes_hides_no_other(ctx: Context, gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Halves.plan

    def plan(self: Halves, source: Any, names: Sequence[str], chosen: Options) -> Mapping[str, FilePlan]:
        if "BROKEN" in names:
            raise PhituiError("llama.cpp failed when asked for tensor types (signal 6)")
        return whole(self, source, names, chosen)

    monkeypatch.setattr(Halves, "plan", plan)
    rows = {row.scheme.name: row for row in build.scheme_table(ctx, str(gguf))}
    assert "signal 6" in rows["BROKEN"].error
    assert rows["SAME"].size
    assert not rows["SAME"].error
