"""Figures follow from builds to schemes, and the best scheme is chosen or searched; with offers made here."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from phitui.actions import best, build, evaluate, figures, search
from phitui.actions.best import BestRequest
from phitui.actions.build import BuildRequest
from phitui.actions.context import Context
from phitui.actions.schemes import scheme_table
from phitui.domain.model import Verdict
from phitui.domain.offers import Availability, Measures
from phitui.domain.options import option
from phitui.domain.quant import Scheme
from phitui.domain.tensors import FileExtent, FilePlan, Source, SourceTensor, TensorType, Value, place
from phitui.errors import Cancelled, NotMeasured, OutputExists, PhituiError, UsageError
from phitui.gguf.header import read_header
from phitui.plugins import Registry

TYPES = {
    "FULL": TensorType.BF16, "Q8": TensorType.Q8_0, "Q51": TensorType.Q5_1, "Q50": TensorType.Q5_0,
    "Q41": TensorType.Q4_1, "Q40": TensorType.Q4_0, "IQ": TensorType.TQ2_0,
}  # fmt: skip
"""Schemes from large to small. IQ needs an importance matrix."""
KLD = {TensorType.Q8_0: 0.001, TensorType.Q5_1: 0.01, TensorType.Q5_0: 0.02, TensorType.Q4_1: 0.04}
"""What the evaluator finds; 0.08 for all others."""


@dataclass(frozen=True)
class Options:
    imatrix: Path | None = option(None, help="matrix")
    pure: bool = option(False, help="pure")


class Ladder:
    name, title, options = "ladder", "Ladder", Options

    def available(self) -> Availability:
        return Availability()

    def schemes(self) -> Sequence[Scheme]:
        return [Scheme(name, 1.0, number) for number, name in enumerate([*TYPES, "SAME"])]

    def plan(self, source: Any, schemes: Sequence[str], options: Options) -> Mapping[str, FilePlan]:
        return {name: self._plan(source, name, options) for name in schemes}

    def _plan(self, source: Any, name: str, options: Options) -> FilePlan:
        name = "FULL" if name == "SAME" else name  # another name for it, as AUTO is
        matrix = {"quantize.imatrix": Value.string("x")} if options.imatrix else {}
        keys = source.metadata | matrix | {"general.file_type": Value.u32(list(TYPES).index(name))}
        tensors = place([(tensor, TYPES[name], None) for tensor in source.tensors])
        return FilePlan(name, keys, tensors, needs_imatrix=("a",) if name == "IQ" and not options.imatrix else ())

    def encoder(self, plan: FilePlan, options: Options) -> Any:
        return lambda tensor, first, rows: bytes(len(rows) * tensor.type.row_bytes(tensor.shape[0]))


class Reader:
    name, title = "reader", "Reader"
    architectures = ("TinyForCausalLM",)

    @dataclass(frozen=True)
    class options:
        base: float = option(1.0, help="base")

    def available(self) -> Availability:
        return Availability()

    def inspect(self, config: Mapping[str, Any]) -> Verdict:
        return Verdict(True, "")

    def open(self, checkpoint: Path, options: Any) -> Source:
        keys = {"general.architecture": Value.string("tiny"), "tiny.base": Value.f32(options.base)}
        extent = FileExtent(checkpoint / "w", 0, 256 * 64 * 2)
        return Source(checkpoint, "tiny", keys, (SourceTensor("a", (256, 64), TensorType.BF16, (extent,)),))


@dataclass(frozen=True)
class Measuring:
    text: Path | None = option(None, help="text")
    reference: Path | None = option(None, help="reference")
    chunks: int | None = option(None, help="chunks")


class Judge:
    """Tells a divergence by the type of the file's tensor."""

    name, title, options = "judge", "Judge", Measuring

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.fails: tuple[str, ...] = ()

    def available(self) -> Availability:
        return Availability()

    def evaluate(self, model: Path, options: Measuring, job: Any) -> Measures:
        assert options.reference is None or options.reference.is_file()
        job.progress(1, 2, "half")
        self.asked.append(model.name)
        if model.name in self.fails:
            raise PhituiError("it is broken")
        values = {"perplexity": 7.0, "decode_tokens_per_s": 30.0}
        if options.reference is not None:
            values |= {"kld_mean": KLD.get(read_header(model).tensors[0].type, 0.08), "kld_mean_error": 0.0005}
        facts = {"text": str(options.text), "chunks": str(options.chunks)}
        return Measures(values, f"made up on {options.chunks} chunks", facts)


class Job:
    """A JobContext that remembers, and is cancelled at the `stop`-th report of progress by an evaluation."""

    def __init__(self, stop: int = 0) -> None:
        self.notes: list[str] = []
        self.steps: list[str] = []
        self._left = stop

    def progress(self, done: int, total: int, text: str = "") -> None:
        self.steps.append(text)
        if "half" in text:
            self._left -= 1
            if self._left == 0:
                raise Cancelled

    def check(self) -> None: ...
    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture
def judge() -> Judge:
    return Judge()


@pytest.fixture
def ctx(monkeypatch: pytest.MonkeyPatch, judge: Judge) -> Context:
    registry = Registry(quantizers=[Ladder()], converters=[Reader()], evaluators=[judge])
    monkeypatch.setattr("phitui.plugins.load", lambda: registry)
    return Context()


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    import numpy as np

    folder = tmp_path / "Tiny"
    folder.mkdir()
    (folder / "config.json").write_text('{"architectures": ["TinyForCausalLM"]}')
    (folder / "w").write_bytes(np.random.default_rng(0).integers(0, 1 << 14, 256 * 64, np.uint16).tobytes())
    return folder


def make(ctx: Context, source: Path, scheme: str, **settings: Any) -> Path:
    request = build.normalized(ctx, BuildRequest(str(source), scheme, lineage=False, overwrite=True, **settings))
    return Path(build.run(asdict(request), Job())["path"])


def measure(ctx: Context, model: Path, reference: Path | None, **options: Any) -> None:
    request = evaluate.EvaluateRequest(str(model), str(reference or ""), options=options)
    evaluate.run(asdict(evaluate.normalized(ctx, request)), Job())


def shown(ctx: Context, source: Path, *settings: Any) -> dict[str, str]:
    rows = scheme_table(ctx, str(source), *settings)
    return {row.scheme.name: row.figure.text for row in rows if row.figure}


def request(source: Path, **settings: Any) -> BestRequest:
    return BestRequest(BuildRequest(str(source), best.NAME), **settings)


def chosen(ctx: Context, source: Path, **settings: Any) -> str:
    return best.decide(ctx, best.checked(ctx, request(source, **settings))).chosen.scheme


def searched(ctx: Context, asked: BestRequest, job: Job | None = None) -> dict[str, Any]:
    work = asdict(best.checked(ctx, asked))
    return search.run(json.loads(json.dumps(work)), job or Job())


def left(ctx: Context) -> Iterator[str]:
    return (path.name for path in ctx.paths.models.iterdir())


class TestFigures:
    def test_an_evaluation_shows_among_the_schemes(self, ctx: Context, checkpoint: Path) -> None:
        full, small = make(ctx, checkpoint, "FULL"), make(ctx, checkpoint, "Q50")
        assert shown(ctx, checkpoint) == {}
        measure(ctx, small, full)
        assert shown(ctx, checkpoint) == {"FULL": "reference", "SAME": "reference", "Q50": "KLD 0.0200 ±0.0005"}
        row = next(row for row in scheme_table(ctx, str(checkpoint)) if row.scheme.name == "Q50")
        assert row.figure is not None
        document = figures.as_document(row.figure)
        assert document["kld_mean"] == 0.02
        assert document["decode_tokens_per_s"] == 30.0
        assert document["file"] == "Tiny.Q50.gguf"
        assert document["quality"]["source"] == "made up on None chunks"
        assert document["quality"]["created"] > 1.6e9

    def test_they_outlive_the_file_and_follow_the_source(self, ctx: Context, checkpoint: Path, tmp_path: Path) -> None:
        full, small = make(ctx, checkpoint, "FULL"), make(ctx, checkpoint, "Q50")
        measure(ctx, small, full)
        small.unlink()
        moved = checkpoint.rename(tmp_path / "Other")
        assert shown(ctx, moved)["Q50"] == "KLD 0.0200 ±0.0005"
        assert shown(ctx, full)["Q50"] == "KLD 0.0200 ±0.0005"  # the lossless GGUF is the same source

    def test_another_source_has_none_of_them(self, ctx: Context, checkpoint: Path) -> None:
        measure(ctx, make(ctx, checkpoint, "Q50"), make(ctx, checkpoint, "FULL"))
        assert shown(ctx, checkpoint, {"base": 2.0}) == {}
        data = bytearray((checkpoint / "w").read_bytes())
        data[len(data) // 2] ^= 1
        (checkpoint / "w").write_bytes(data)
        assert shown(ctx, checkpoint) == {}

    def test_other_options_of_the_quantizer_make_another_file(self, ctx: Context, checkpoint: Path) -> None:
        full = make(ctx, checkpoint, "FULL")
        measure(ctx, make(ctx, checkpoint, "Q50", quantizer={"pure": True}), full)
        assert "Q50" not in shown(ctx, checkpoint)
        assert "Q50" in shown(ctx, checkpoint, None, {"pure": True})

    def test_what_is_not_comparable_is_marked(self, ctx: Context, checkpoint: Path) -> None:
        full = make(ctx, checkpoint, "FULL")
        for scheme in ("Q50", "Q41"):
            measure(ctx, make(ctx, checkpoint, scheme), full)
        measure(ctx, make(ctx, checkpoint, "Q40"), full, chunks=3)
        measure(ctx, make(ctx, checkpoint, "Q51"), None)
        assert shown(ctx, checkpoint) == {
            "FULL": "reference",
            "SAME": "reference",
            "Q51": "PPL 7 *",
            "Q50": "KLD 0.0200 ±0.0005",
            "Q41": "KLD 0.0400 ±0.0005",
            "Q40": "KLD 0.0800 ±0.0005 *",
        }

    def test_a_store_that_refuses_costs_a_note(self, ctx: Context, checkpoint: Path) -> None:
        evaluate.store_file(ctx).mkdir(parents=True)
        job = Job()
        asked = build.normalized(ctx, BuildRequest(str(checkpoint), "Q50", lineage=False))
        assert Path(build.run(asdict(asked), job)["path"]).is_file()
        assert any("will not show among the schemes" in note for note in job.notes)
        assert shown(ctx, checkpoint) == {}

    def test_newest_of_files(self, ctx: Context, checkpoint: Path, tmp_path: Path) -> None:
        full, small = make(ctx, checkpoint, "FULL"), make(ctx, checkpoint, "Q50")
        assert figures.newest(ctx, [full, small]) == {}
        measure(ctx, small, full)
        found = figures.newest(ctx, [full, small, tmp_path / "missing.gguf", checkpoint])
        assert list(found) == [small]

    @pytest.mark.parametrize(
        ("seconds", "text"),
        [(3, "just now"), (90, "1 min ago"), (7300, "2 h ago"), (12.5 * 86400, "12 d ago"), (-5, "just now")],
    )
    def test_age(self, seconds: float, text: str) -> None:
        assert figures.ago(1000.0, 1000.0 + seconds) == text


class TestChoice:
    @pytest.fixture(autouse=True)
    def _measured(self, ctx: Context, checkpoint: Path, request: pytest.FixtureRequest) -> None:
        if "nothing" not in request.node.name:
            full = make(ctx, checkpoint, "FULL")
            for scheme in ("Q8", "Q50", "Q40"):
                measure(ctx, make(ctx, checkpoint, scheme), full)

    def test_by_divergence(self, ctx: Context, checkpoint: Path) -> None:
        assert chosen(ctx, checkpoint, max_kld=0.03) == "Q50"
        assert chosen(ctx, checkpoint, max_kld=0.0201) == "Q8"  # the error counts
        assert chosen(ctx, checkpoint, max_kld=0.0) == "FULL"
        assert chosen(ctx, checkpoint, max_kld=1.0) == "Q40"

    def test_by_size(self, ctx: Context, checkpoint: Path) -> None:
        sizes = {row.scheme.name: row.size or 0 for row in scheme_table(ctx, str(checkpoint))}
        assert chosen(ctx, checkpoint, max_size=sizes["Q8"] - 1) == "Q50"
        assert chosen(ctx, checkpoint, max_size=10**9) == "FULL"
        assert chosen(ctx, checkpoint, max_size=10**9, among=("q40", "Q50")) == "Q50"

    def test_the_choice_is_explained(self, ctx: Context, checkpoint: Path) -> None:
        decision = best.decide(ctx, best.checked(ctx, request(checkpoint, max_kld=0.03)))
        text = "\n".join(decision.lines)
        assert "Q50 is the smallest measured scheme that is good enough: KLD 0.0200 ±0.0005" in text
        assert "not measured: Q51, Q41" in text
        assert "needs an importance matrix (--imatrix): IQ" in text
        assert decision.document["scheme"] == "Q50"
        assert {c["scheme"]: c["kld_mean"] for c in decision.document["candidates"]}["Q40"] == 0.08
        assert json.loads(json.dumps(decision.document)) == decision.document

    def test_figures_with_a_matrix_count_with_it_only(self, ctx: Context, checkpoint: Path, tmp_path: Path) -> None:
        (tmp_path / "m").write_bytes(b"matrix")
        measure(ctx, make(ctx, checkpoint, "IQ", quantizer={"imatrix": str(tmp_path / "m")}), make_full(ctx))
        assert shown(ctx, checkpoint)["IQ"] == "KLD 0.0800 ±0.0005"
        assert chosen(ctx, checkpoint, max_kld=1.0) == "Q40"
        with_matrix = BuildRequest(str(checkpoint), best.NAME, quantizer={"imatrix": str(tmp_path / "m")})
        asked = best.checked(ctx, BestRequest(with_matrix, max_kld=1.0))
        assert best.decide(ctx, asked).chosen.scheme == "IQ"

    def test_nothing_that_will_do(self, ctx: Context, checkpoint: Path) -> None:
        with pytest.raises(NotMeasured, match="nothing was measured yet") as caught:
            chosen(ctx, checkpoint, max_kld=0.03)
        assert "--scheme best --max-kld 0.03 --measure" in caught.value.hint
        assert f"phitui build {checkpoint} --scheme FULL && phitui build" in caught.value.hint
        assert "phitui eval" in caught.value.hint

    def test_too_little_is_known(self, ctx: Context, checkpoint: Path) -> None:
        with pytest.raises(NotMeasured, match=r"the best of those measured is Q8, KLD 0.0010") as caught:
            chosen(ctx, checkpoint, max_kld=0.0001, among=("Q8", "Q51"))
        assert "Q51" in caught.value.hint
        assert "--scheme FULL" not in caught.value.hint  # the reference is there

    def test_no_scheme_is_that_small(self, ctx: Context, checkpoint: Path) -> None:
        with pytest.raises(PhituiError, match="no scheme is that small"):
            chosen(ctx, checkpoint, max_size=10)

    @pytest.mark.parametrize(
        ("settings", "words"),
        [
            ({}, "needs to know what is good enough"),
            ({"max_kld": -1.0}, "is no divergence"),
            ({"max_kld": float("nan")}, "is no divergence"),
            ({"max_kld": 1.0, "among": ("Q9",)}, "there is no scheme 'Q9'"),
            ({"max_kld": 1.0, "chunks": 4}, "say how to measure"),
            ({"max_kld": 1.0, "measure": True, "text": "/no/such"}, "there is no text file"),
        ],
    )
    def test_refused(self, ctx: Context, checkpoint: Path, settings: dict[str, Any], words: str) -> None:
        with pytest.raises(UsageError, match=words):
            best.start(ctx, request(checkpoint, **settings))

    def test_the_build_tells_why(self, ctx: Context, checkpoint: Path) -> None:
        decision = best.decide(ctx, best.checked(ctx, request(checkpoint, max_kld=0.03)))
        made = best.build_of(ctx, request(checkpoint, max_kld=0.03), "Q50")
        job = Job()
        result = best.run({"build": asdict(replace(made, overwrite=True)), "best": decision.document}, job)
        assert job.notes[0].startswith("Q50 is the smallest measured scheme")
        assert (result["scheme"], result["best"]["scheme"]) == ("Q50", "Q50")

    def test_command_line_that_does_the_same(self, checkpoint: Path) -> None:
        asked = request(checkpoint, max_kld=0.03, max_size=3 << 30, measure=True, among=("Q8", "Q50"), chunks=2)
        words = ["phitui", "build", str(checkpoint), "--scheme", "best", "--max-kld", "0.03", "--max-size", "3GiB"]
        assert best.command_line(asked) == (*words, "--among", "Q8,Q50", "--measure", "--chunks", "2")


def make_full(ctx: Context) -> Path:
    return ctx.paths.models / "Tiny.FULL.gguf"


class TestSearch:
    def test_measures_builds_and_tidies_up(self, ctx: Context, checkpoint: Path, judge: Judge, tmp_path: Path) -> None:
        job = Job()
        asked = request(checkpoint, max_kld=0.03, measure=True)
        out = tmp_path / "best.gguf"
        result = searched(ctx, replace(asked, build=replace(asked.build, out=str(out))), job)
        assert result["path"] == str(out)
        assert result["scheme"] == result["best"]["scheme"] == "Q50"
        assert read_header(out).tensors[0].type is TensorType.Q5_0
        assert judge.asked == ["Tiny.Q50.gguf", "Tiny.Q41.gguf", "Tiny.Q40.gguf"]
        assert any("Q41: KLD 0.0400 ±0.0005" in note and "above 0.03" in note for note in job.notes)
        assert any(step.startswith("building the reference") for step in job.steps)
        assert not [path for path in tmp_path.iterdir() if "best-" in path.name]
        assert out.with_name("best.gguf.toml").is_file()

    def test_a_second_try_measures_nothing_again(self, ctx: Context, checkpoint: Path, judge: Judge) -> None:
        asked = request(checkpoint, max_kld=0.03, measure=True)
        first = searched(ctx, asked)
        judge.asked.clear()
        Path(first["path"]).unlink()
        again = searched(ctx, asked)
        assert judge.asked == []
        assert again["best"]["scheme"] == "Q50"
        assert Path(again["path"]).is_file()
        assert chosen(ctx, checkpoint, max_kld=0.03) == "Q50"  # and without --measure it is known now

    def test_by_size(self, ctx: Context, checkpoint: Path, judge: Judge) -> None:
        sizes = {row.scheme.name: row.size or 0 for row in scheme_table(ctx, str(checkpoint))}
        result = searched(ctx, request(checkpoint, max_size=sizes["Q8"] - 1, measure=True))
        assert result["scheme"] == "Q51"
        assert judge.asked == ["Tiny.Q51.gguf", "Tiny.Q50.gguf", "Tiny.Q41.gguf"]

    def test_the_full_model_fits(self, ctx: Context, checkpoint: Path, judge: Judge) -> None:
        result = searched(ctx, request(checkpoint, max_size=10**9, measure=True))
        assert (result["scheme"], judge.asked) == ("FULL", [])

    def test_an_existing_reference_is_used_and_kept(self, ctx: Context, checkpoint: Path) -> None:
        full = make(ctx, checkpoint, "FULL")
        job = Job()
        searched(ctx, request(checkpoint, max_kld=0.03, measure=True), job)
        assert f"the reference is {full}" in job.notes
        assert sorted(left(ctx)) == ["Tiny.FULL.gguf", "Tiny.Q50.gguf", "Tiny.Q50.gguf.toml"]

    def test_a_gguf_is_its_own_reference(self, ctx: Context, checkpoint: Path, judge: Judge) -> None:
        full = make(ctx, checkpoint, "FULL")
        result = searched(ctx, request(full, max_kld=0.03, measure=True, among=("Q8", "Q50")))
        assert (result["scheme"], judge.asked) == ("Q50", ["Tiny.FULL.Q8.gguf", "Tiny.FULL.Q50.gguf"])
        assert full.is_file()

    def test_cancelled_and_tried_again(self, ctx: Context, checkpoint: Path, judge: Judge) -> None:
        asked = request(checkpoint, max_kld=0.03, measure=True)
        with pytest.raises(Cancelled):
            searched(ctx, asked, Job(stop=2))
        assert judge.asked == ["Tiny.Q50.gguf"]
        (work,) = left(ctx)
        assert work.startswith(".Tiny.best-")
        result = searched(ctx, asked)
        assert judge.asked == ["Tiny.Q50.gguf", "Tiny.Q41.gguf", "Tiny.Q40.gguf"]
        assert sorted(left(ctx)) == [Path(result["path"]).name, Path(result["path"]).name + ".toml"]

    def test_none_will_do(self, ctx: Context, checkpoint: Path) -> None:
        with pytest.raises(
            PhituiError, match=r"no scheme has KLD at most 0.005: the best is Q50, KLD 0.0200"
        ) as caught:
            searched(ctx, request(checkpoint, max_kld=0.005, measure=True, among=("Q50", "Q40")))
        assert "raise --max-kld" in caught.value.hint
        assert list(left(ctx)) == []
        assert "Q50" in shown(ctx, checkpoint)  # what was measured is remembered

    def test_one_that_cannot_be_measured_is_left_out(self, ctx: Context, checkpoint: Path, judge: Judge) -> None:
        judge.fails = ("Tiny.Q50.gguf",)
        job = Job()
        result = searched(ctx, request(checkpoint, max_kld=0.03, measure=True), job)
        assert result["scheme"] == "Q51"
        assert "Q50 could not be measured: it is broken" in job.notes
        assert any("could not be measured: Q50" in line for line in result["best"]["explanation"])

    def test_where_nothing_can_be_measured_it_says_so(self, ctx: Context, checkpoint: Path, judge: Judge) -> None:
        judge.fails = tuple(f"Tiny.{scheme}.gguf" for scheme in TYPES)
        with pytest.raises(PhituiError, match="it is broken"):
            searched(ctx, request(checkpoint, max_kld=0.03, measure=True))
        assert len(judge.asked) == 2

    def test_nothing_is_that_small(self, ctx: Context, checkpoint: Path) -> None:
        with pytest.raises(PhituiError, match="no scheme is that small: the smallest here, IQ"):
            best.start(ctx, request(checkpoint, max_size=10, measure=True))
        assert not ctx.paths.jobs.exists()

    def test_auto_among_others(self, ctx: Context, checkpoint: Path) -> None:
        assert searched(ctx, request(checkpoint, max_kld=0.0, measure=True, among=("SAME", "Q40")))["scheme"] == "FULL"

    def test_other_questions_are_asked_anew(self, ctx: Context, checkpoint: Path, judge: Judge) -> None:
        full = make(ctx, checkpoint, "FULL")
        measure(ctx, make(ctx, checkpoint, "Q50"), full)
        measure(ctx, make(ctx, checkpoint, "Q8"), full, chunks=2)
        judge.asked.clear()
        asked = request(checkpoint, max_kld=0.03, measure=True, chunks=2, among=("Q8", "Q50"))
        result = searched(ctx, replace(asked, build=replace(asked.build, overwrite=True)))
        assert judge.asked == ["Tiny.Q50.gguf"]
        assert result["best"]["source"] == "made up on 2 chunks"

    def test_an_existing_output_is_refused_beforehand(self, ctx: Context, checkpoint: Path, tmp_path: Path) -> None:
        (tmp_path / "x.gguf").write_text("mine")
        asked = request(checkpoint, max_kld=0.03, measure=True)
        with pytest.raises(OutputExists):
            best.start(ctx, replace(asked, build=replace(asked.build, out=str(tmp_path / "x.gguf"))))
        assert (tmp_path / "x.gguf").read_text() == "mine"

    def test_room_is_looked_for_beforehand(
        self, ctx: Context, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import shutil

        monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 90, 10))
        with pytest.raises(PhituiError, match="measuring needs"):
            best.start(ctx, request(checkpoint, max_kld=0.03, measure=True))
