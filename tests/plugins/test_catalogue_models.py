"""The catalogue agrees with itself and with the converters that are here."""

from __future__ import annotations

import pytest
from phitui_catalogue import PhiModels

from phitui.actions.context import Context
from phitui.domain.chat import CHAT_FORMATS
from phitui.domain.model import KnownModel

MODELS = PhiModels().models()
IDS = {model.id for model in MODELS}


def test_ids_are_unique_and_whole() -> None:
    assert len(IDS) == len(MODELS) > 20
    assert all(model.id.startswith("microsoft/") for model in MODELS)


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.id)
def test_rows(model: KnownModel) -> None:
    assert model.architecture
    assert model.context_length >= 2048
    assert model.chat_format in {"", *(item.name for item in CHAT_FORMATS)}
    if not model.verdict.ok:
        assert len(model.verdict.reason) > 20
        nearest = next(other for other in MODELS if other.id == model.verdict.nearest)
        assert nearest.verdict.ok


def test_verdicts_agree_with_the_converters() -> None:
    taken = {name for converter in Context().registry.converters for name in converter.architectures}
    if taken:
        assert {model.architecture for model in MODELS if model.verdict.ok} <= taken
