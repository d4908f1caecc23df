"""What `phitui eval` checks beforehand, fills in, remembers and prints; with an evaluator made here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from phitui.actions import evaluate
from phitui.actions.context import Context
from phitui.actions.evaluate import EvaluateRequest
from phitui.cli.eval import table
from phitui.domain.offers import Availability, Measures
from phitui.domain.options import NoOptions, option
from phitui.domain.tensors import FilePlan, InlineExtent, SourceTensor, TensorType, Value, place
from phitui.errors import Unavailable, UsageError
from phitui.gguf.writer import write_gguf
from phitui.plugins import Registry


@dataclass(frozen=True)
class Options:
    text: Path | None = option(None, help="text")
    reference: Path | None = option(None, help="reference")
    threads: int | None = option(None, help="threads")
    journal: Path | None = option(None, help="journal")
    chunks: int = option(4, help="chunks")
    fast: bool = option(True, help="fast")


class Fake:
    """An evaluator that remembers what it was given."""

    name, title = "fake", "Fake"
    options: type = Options

    def __init__(self) -> None:
        self.given: list[Any] = []

    def available(self) -> Availability:
        return Availability()

    def evaluate(self, model: Path, options: Any, job: Any) -> Measures:
        self.given.append(options)
        return Measures({"perplexity": 7.0, "perplexity_error": 0.5}, "made up", {"text": "none"})


class Job:
    def __init__(self) -> None:
        self.notes: list[str] = []

    def progress(self, done: int, total: int, text: str = "") -> None: ...
    def check(self) -> None: ...

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    offer = Fake()
    monkeypatch.setattr(Context, "registry", Registry(evaluators=[offer]))
    return offer


@pytest.fixture
def model(tmp_path: Path) -> Path:
    tensor = SourceTensor("a.weight", (64,), TensorType.F32, (InlineExtent(bytes(256)),))
    plan = FilePlan("F32", {"general.architecture": Value.string("phi3")}, place([(tensor, TensorType.F32, None)]))
    write_gguf(plan, tmp_path / "m.gguf", None)
    return tmp_path / "m.gguf"


def run(context: Context, request: EvaluateRequest, job: Job | None = None) -> dict[str, Any]:
    from dataclasses import asdict

    return evaluate.run(asdict(evaluate.normalized(context, request)), job or Job())


def test_figures_are_remembered(context: Context, fake: Fake, model: Path) -> None:
    assert evaluate.measures_of(context, model) == []
    document = run(context, EvaluateRequest(str(model), reference=str(model)))
    assert document["perplexity"] == 7.0
    assert document["source"] == "made up"
    assert document["evaluator"] == "fake"
    (measured,) = evaluate.measures_of(context, model)
    assert measured.values == {"perplexity": 7.0, "perplexity_error": 0.5}
    assert measured.reference == "m.gguf"
    assert len(measured.reference_fingerprint) == 64
    assert measured.created == document["created"] > 1.6e9


def test_a_store_that_refuses_costs_a_note(context: Context, fake: Fake, model: Path) -> None:
    evaluate.store_file(context).mkdir(parents=True)
    job = Job()
    assert run(context, EvaluateRequest(str(model)), job)["perplexity"] == 7.0
    assert "not remembered" in job.notes[0]
    assert evaluate.measures_of(context, model) == []


def test_options_are_filled_in(context: Context, fake: Fake, model: Path, tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("text")
    context.paths.config.mkdir(parents=True)
    context.paths.config_file.write_text("threads = 3\n")
    run(context, EvaluateRequest(str(model), text=str(tmp_path / "t.txt"), options={"chunks": 9}))
    options = fake.given[0]
    assert (options.text, options.reference, options.threads, options.chunks) == (tmp_path / "t.txt", None, 3, 9)
    assert options.journal.parent == context.paths.state / "evaluations"
    run(context, EvaluateRequest(str(model), options={"threads": 1}))
    assert fake.given[1].threads == 1
    assert fake.given[1].journal != options.journal


def test_paths_become_absolute(
    context: Context, fake: Fake, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.txt").write_text("text")
    request = EvaluateRequest("m.gguf", "m.gguf", "t.txt", options={"journal": "j", "fast": False})
    made = evaluate.normalized(context, request)
    assert made.model == made.reference == str(model)
    assert made.text == str(tmp_path / "t.txt")
    assert made.options == {"journal": str(tmp_path / "j"), "fast": False}
    assert evaluate.command_line(made) == (
        *("phitui", "eval", str(model), "--reference", str(model), "--text", str(tmp_path / "t.txt")),
        *("--evaluator", "fake", "--journal", str(tmp_path / "j"), "--no-fast"),
    )


def test_mistakes_are_found_before_work(context: Context, fake: Fake, model: Path) -> None:
    for request, words in [
        (EvaluateRequest("nowhere.gguf"), "neither a file nor a model"),
        (EvaluateRequest(str(model), reference="nowhere.gguf"), "neither a file nor a model"),
        (EvaluateRequest(str(model), text="nowhere.txt"), "no text file"),
        (EvaluateRequest(str(model), evaluator="other"), "no evaluator is named 'other'"),
        (EvaluateRequest(str(model), options={"chunks": "many"}), "is a int"),
        (EvaluateRequest(str(model), options={"unknown": 1}), "unknown option"),
    ]:
        with pytest.raises(UsageError, match=words):
            evaluate.start(context, request)
    assert not list(context.paths.jobs.glob("*")) if context.paths.jobs.exists() else True


def test_an_evaluator_without_a_reference(context: Context, fake: Fake, model: Path) -> None:
    fake.options = NoOptions
    assert run(context, EvaluateRequest(str(model)))["perplexity"] == 7.0
    with pytest.raises(UsageError, match="takes no reference"):
        evaluate.normalized(context, EvaluateRequest(str(model), reference=str(model)))


def test_no_evaluator(context: Context, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Context, "registry", Registry())
    with pytest.raises(Unavailable, match="no evaluator"):
        evaluate.start(context, EvaluateRequest(str(model)))


def test_table_for_people() -> None:
    document = {"model": "m", "perplexity": 7.03678, "perplexity_error": 0.65, "top1_agreement": 0.88, "chunks": 4.0}
    text = table(document | {"created": 1.0, "source": "measured", "own_figure": 0.25})
    assert [line.split() for line in text.splitlines()] == [
        ["figure", "value", "standard", "error"],
        ["perplexity", "7.0368", "±", "0.650000"],
        ["same", "likeliest", "token", "88.000", "%"],
        ["chunks", "4"],
        ["own_figure", "0.250000"],
        ["measured"],
    ]
