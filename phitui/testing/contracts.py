"""What every offer of a kind must do, as test classes to subclass. phitui's own plugins pass the same ones.

Each class needs a fixture `offer` that returns the offer. `ConverterContract` also needs `checkpoint`, a directory it
can open; `ExporterContract` needs `model`, an ExportModel. `EngineContract` has a conversation where `model` is a GGUF
that the engine can open in this process; `CommandContract` runs the command where `options` are given.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from phitui.domain import options as declared
from phitui.domain.bundle import Bundle, ExportModel
from phitui.domain.chat import ChatStats, EngineSettings, Message, Sampling, SessionInfo, TextChunk
from phitui.domain.hardware import BackendReport
from phitui.domain.model import Artifact, KnownModel, Verdict
from phitui.domain.offers import Availability
from phitui.domain.quant import Scheme
from phitui.errors import PhituiError


class OfferContract:
    """What all offers share."""

    @pytest.fixture
    def offer(self) -> Any:
        raise NotImplementedError("override the fixture `offer`")

    def test_name_is_an_identifier(self, offer: Any) -> None:
        assert re.fullmatch(r"[a-z][a-z0-9_.-]*", offer.name)
        assert offer.title.strip()

    def test_available_answers(self, offer: Any) -> None:
        state = offer.available()
        assert isinstance(state, Availability)
        assert state.ok or state.reason, "an offer that is not available says why"

    def test_options_can_be_rendered(self, offer: Any) -> None:
        if hasattr(offer, "options"):
            specs = declared.specs(offer.options)
            assert all(spec.help for spec in specs), "every option has a help text"
            assert declared.plain(offer.options()) == {}, "defaults are the defaults"


class ConverterContract(OfferContract):
    """A converter judges any config without raising, and opens a checkpoint it accepts."""

    @pytest.fixture
    def checkpoint(self) -> Path:
        raise NotImplementedError("override the fixture `checkpoint`")

    @pytest.mark.parametrize(
        "config",
        [{}, {"architectures": None}, {"architectures": []}, {"architectures": ["Nonsense"]}, {"hidden_size": "x"}],
    )
    def test_strange_configs_get_a_verdict(self, offer: Any, config: dict[str, Any]) -> None:
        verdict = offer.inspect(config)
        assert isinstance(verdict, Verdict)
        assert not verdict.ok
        assert verdict.reason

    def test_opens_without_reading_data(self, offer: Any, checkpoint: Path) -> None:
        source = offer.open(checkpoint, offer.options())
        assert source.tensors
        assert "general.architecture" in source.metadata
        assert len({tensor.name for tensor in source.tensors}) == len(source.tensors)
        for tensor in source.tensors:
            assert sum(extent.length for extent in tensor.extents) == tensor.stored_bytes, tensor.name


class QuantizerContract(OfferContract):
    """A quantizer lists schemes from large to small under unique names."""

    def test_schemes(self, offer: Any) -> None:
        if not offer.available().ok:
            pytest.skip(offer.available().reason)
        schemes = offer.schemes()
        assert schemes and all(isinstance(scheme, Scheme) for scheme in schemes)
        assert len({scheme.name for scheme in schemes}) == len(schemes)
        assert all(scheme.name == scheme.name.upper() for scheme in schemes)


class BackendContract(OfferContract):
    """A backend's probe answers on every machine, with or without its hardware."""

    def test_probe_answers(self, offer: Any) -> None:
        report = offer.probe()
        assert isinstance(report, BackendReport)
        for device in report.devices:
            assert 0 <= device.free <= device.total
        assert not report.ways or report.install == report.ways[0].line
        assert all(way.argv and way.kind in ("wheel", "build") for way in report.ways)


class EngineContract(OfferContract):
    """An engine loads, streams and stops; it refuses what is not a model with an error for people."""

    @pytest.fixture
    def model(self, tmp_path: Path) -> Path | None:
        """A GGUF to be opened in this very process; None for an engine whose native code should not run in it."""
        return None

    def test_can_be_opened_as_phitui_does(self, offer: Any) -> None:
        assert list(inspect.signature(offer.open).parameters)[:2] == ["model", "settings"]

    def test_refuses_what_is_not_a_model(self, offer: Any, model: Path | None, tmp_path: Path) -> None:
        if model is None or not offer.available().ok:
            pytest.skip("no fixture `model`, or the engine is not available")
        (tmp_path / "nonsense.gguf").write_bytes(b"no model at all")
        with pytest.raises(PhituiError) as caught:
            offer.open(tmp_path / "nonsense.gguf", EngineSettings(), lambda part: None)
        assert caught.value.message

    def test_has_a_conversation(self, offer: Any, model: Path | None) -> None:
        if model is None or not offer.available().ok:
            pytest.skip("no fixture `model`, or the engine is not available")
        parts: list[float] = []
        session = offer.open(model, EngineSettings(context=256), parts.append)
        try:
            assert isinstance(session.info, SessionInfo)
            assert parts == sorted(parts) and all(0 <= part <= 1 for part in parts)
            question = [Message("user", "one two three four")]
            chunks = list(session.stream(question, Sampling(temperature=0, max_tokens=4)))
            assert isinstance(chunks[-1], ChatStats), "the last chunk is the ChatStats"
            assert all(isinstance(chunk, TextChunk) for chunk in chunks[:-1])
            assert chunks[-1].completion_tokens <= 4
            stream = session.stream(question, Sampling(temperature=0))
            if isinstance(next(stream), TextChunk):
                session.stop()
                *_, last = stream
                assert isinstance(last, ChatStats), "a stopped answer has its ChatStats too"
        finally:
            session.close()


class ExporterContract(OfferContract):
    """An exporter's preview is pure: relative files, the same every time, nothing written."""

    @pytest.fixture
    def model(self) -> ExportModel:
        raise NotImplementedError("override the fixture `model`")

    def test_preview_is_pure(self, offer: Any, model: ExportModel, tmp_path: Path) -> None:
        out = tmp_path / "out"
        try:
            bundle = offer.preview(model, offer.options(), out)
        except PhituiError as error:
            pytest.skip(f"this model cannot be exported with default options: {error.message}")
        assert isinstance(bundle, Bundle)
        assert bundle == offer.preview(model, offer.options(), out)
        assert not out.exists()
        for file in bundle.files:
            path = Path(file.path)
            assert not path.is_absolute() and ".." not in path.parts


class EvaluatorContract(OfferContract):
    """An evaluator refuses what is not a model with an error for people, and its options can be filled in by phitui."""

    def test_refuses_what_is_not_a_model(self, offer: Any, tmp_path: Path) -> None:
        if not offer.available().ok:
            pytest.skip(offer.available().reason)
        (tmp_path / "model.gguf").write_bytes(b"no model at all")
        with pytest.raises(PhituiError) as caught:
            offer.evaluate(tmp_path / "model.gguf", offer.options(), _Quiet())
        assert caught.value.message

    def test_filled_in_options_have_the_kinds_that_phitui_gives(self, offer: Any) -> None:
        given = {"text": Path, "reference": Path, "journal": Path, "threads": int}
        for spec in declared.specs(offer.options):
            assert spec.kind is given.get(spec.name, spec.kind), spec.name


class CommandContract(OfferContract):
    """A command has flags that do not hide phitui's own, and returns a document that --json can print."""

    @pytest.fixture
    def options(self) -> Any:
        """The options to run it with; None where running it is not for a test of a second."""
        return None

    @pytest.fixture
    def phitui(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
        """What a command is given: a real phitui, with nothing in it."""
        from phitui.actions.context import Context
        from phitui.actions.facade import Facade

        monkeypatch.setenv("PHITUI_HOME", str(tmp_path / "phitui"))
        monkeypatch.setenv("PHITUI_PLUGINS", "")
        return Facade(Context())

    def test_can_be_run_as_phitui_does(self, offer: Any) -> None:
        assert list(inspect.signature(offer.run).parameters) == ["phitui", "options", "say"]

    def test_flags_are_its_own(self, offer: Any) -> None:
        flags = [spec.flag for spec in declared.specs(offer.options)]
        assert len(set(flags)) == len(flags)
        assert not {"--json", "--help", "-h"} & set(flags), "phitui has these itself"

    def test_run_returns_a_document(self, offer: Any, options: Any, phitui: Any) -> None:
        if options is None or not offer.available().ok:
            pytest.skip("no fixture `options`, or the command is not available")
        said: list[str] = []
        document = offer.run(phitui, options, said.append)
        assert isinstance(document, Mapping)
        assert json.loads(json.dumps(document)) == document, "the document is JSON-ready"
        assert all(isinstance(text, str) for text in said)


class _Quiet:
    """A JobContext that is never stopped."""

    def progress(self, done: int, total: int, text: str = "") -> None: ...
    def note(self, text: str) -> None: ...
    def check(self) -> None: ...


class FinderContract(OfferContract):
    """A finder yields artifacts and survives whatever it meets."""

    def test_find(self, offer: Any) -> None:
        assert all(isinstance(artifact, Artifact) for artifact in offer.find())


class CatalogueContract(OfferContract):
    """A catalogue is data: unique ids, a reason with every verdict."""

    def test_models(self, offer: Any) -> None:
        models = offer.models()
        assert models and all(isinstance(model, KnownModel) for model in models)
        assert len({model.id for model in models}) == len(models)
        assert all(model.verdict.reason for model in models)
