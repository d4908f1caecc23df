"""Every first-party offer passes the contract that phitui.testing gives to strangers, found through its entry point."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from phitui import plugins
from phitui.domain.bundle import ExportModel
from phitui.testing import contracts
from phitui.testing.checkpoints import write_checkpoint

REGISTRY = plugins.load()


def offers(kind: str) -> Any:
    """The fixture `offer`, once for each offer of that kind."""

    @pytest.fixture(params=getattr(REGISTRY, kind), ids=lambda offer: offer.name)
    def offer(self: Any, request: pytest.FixtureRequest) -> Any:
        return request.param

    return offer


class TestConverters(contracts.ConverterContract):
    offer = offers("converters")

    @pytest.fixture
    def checkpoint(self, tmp_path: Path) -> Path:
        return write_checkpoint(tmp_path / "tiny")


class TestQuantizers(contracts.QuantizerContract):
    offer = offers("quantizers")


class TestEvaluators(contracts.EvaluatorContract):
    offer = offers("evaluators")


class TestBackends(contracts.BackendContract):
    offer = offers("backends")


class TestEngines(contracts.EngineContract):
    offer = offers("engines")


class TestFinders(contracts.FinderContract):
    offer = offers("finders")


class TestCatalogues(contracts.CatalogueContract):
    offer = offers("catalogues")


class TestCommands(contracts.CommandContract):
    offer = offers("commands")


class TestExporters(contracts.ExporterContract):
    offer = offers("exporters")

    @pytest.fixture
    def model(self, tmp_path: Path) -> ExportModel:
        from phitui.domain.model import ModelFacts, Rope

        path = tmp_path / "model.gguf"
        path.write_bytes(b"GGUF")
        facts = ModelFacts(
            name="tiny",
            architecture="phi3",
            parameters=1_000_000,
            layers=2,
            context_length=4096,
            embedding_length=64,
            feed_forward_length=128,
            heads=4,
            heads_kv=4,
            key_length=16,
            value_length=16,
            vocabulary=1000,
            rope=Rope(16, 10000.0),
            tokenizer="llama",
            chat_format="phi-3",
        )
        return ExportModel(path, facts, "", {})


def test_every_kind_is_here() -> None:
    assert not REGISTRY.failures
    kinds = ("converters", "quantizers", "evaluators", "backends", "engines")
    for kind in (*kinds, "finders", "catalogues", "commands", "exporters"):
        assert getattr(REGISTRY, kind), kind
