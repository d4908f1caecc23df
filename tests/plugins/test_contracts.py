"""Every first-party offer passes the contract that phitui.testing gives to strangers, found through its entry point."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from phitui import plugins
from phitui.domain.bundle import ExportModel
from phitui.testing import contracts
from phitui.testing.checkpoints import write_checkpoint
from phitui.testing.facts import PHI_3_MINI

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
        path = tmp_path / "model.gguf"
        path.write_bytes(b"GGUF")
        return ExportModel(path, PHI_3_MINI, "", {})


def test_every_kind_is_here() -> None:
    assert not REGISTRY.failures
    kinds = ("converters", "quantizers", "evaluators", "backends", "engines")
    for kind in (*kinds, "finders", "catalogues", "commands", "exporters"):
        assert getattr(REGISTRY, kind), kind
