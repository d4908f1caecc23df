"""What is known about every Phi, as data (models.toml)."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from phitui.api import Availability, Catalogue, KnownModel, Verdict, hookimpl


class PhiModels:
    """Microsoft's open-weight Phi models on the Hugging Face Hub."""

    name = "phi"
    title = "Microsoft Phi models"

    def available(self) -> Availability:
        return Availability()

    def models(self) -> tuple[KnownModel, ...]:
        """The rows of models.toml, in its order."""
        return _read(Path(__file__).with_name("models.toml"))


@cache
def _read(file: Path) -> tuple[KnownModel, ...]:
    with file.open("rb") as stream:
        rows: list[dict[str, Any]] = tomllib.load(stream)["model"]
    return tuple(_model(row) for row in rows)


def _model(row: dict[str, Any]) -> KnownModel:
    """A row as a KnownModel. A row is convertible unless it gives a reason why not."""
    reason = row.get("reason", "")
    return KnownModel(
        id=row["id"],
        title=row["id"].partition("/")[2],
        architecture=row["architecture"],
        parameters=row["parameters"],
        context_length=row["context"],
        chat_format=row["chat"],
        license=row.get("license", "MIT"),
        verdict=Verdict(not reason, reason or "converts", row.get("nearest", "")),
        note=row.get("note", ""),
    )


@hookimpl
def phitui_catalogue() -> Iterable[Catalogue]:
    return [PhiModels()]
