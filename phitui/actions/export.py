"""Making a model known to another program: shown first, then written."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from phitui.actions.context import Context
from phitui.actions.models import resolve_model
from phitui.actions.texts import write_text
from phitui.domain import options
from phitui.domain.bundle import Bundle, BundleFile, ExportModel
from phitui.domain.offers import Exporter
from phitui.errors import OutputExists, PhituiError, UsageError
from phitui.gguf.facts import facts_from_header
from phitui.gguf.header import Header
from phitui.gguf.shards import read_model
from phitui.plugins import named


@dataclass(frozen=True)
class ExportRequest:
    """What to export where. `to` names an exporter, `options` are the values of its options."""

    model: str
    to: str
    out: Path
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ExportResult:
    """What was written. `run` are the commands to type next."""

    files: tuple[Path, ...]
    run: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def targets(context: Context) -> list[Exporter]:
    """All exporters, also those that cannot be used here."""
    return list(context.registry.exporters)


def preview(context: Context, request: ExportRequest) -> Bundle:
    """The files exactly as `export` writes them. Writes nothing."""
    exporter = named(context.registry.exporters, request.to, "export target")
    path = resolve_model(context, request.model)
    values = options.build(exporter.options, request.options)
    header = read_model(path)
    template = header.get("tokenizer.chat_template", "")
    model = ExportModel(
        path, facts_from_header(header), template if isinstance(template, str) else "", HeaderValues(header)
    )
    try:
        return exporter.preview(model, values, request.out.absolute())
    except PhituiError:
        raise
    except Exception as error:  # a stranger's code
        raise PhituiError(
            f"the export target {request.to} failed: {type(error).__name__}: {error}",
            "phitui plugins shows whose it is",
        ) from error


def export(context: Context, request: ExportRequest, overwrite: bool = False) -> ExportResult:
    """Write the export below `request.out`, each file at once under its name.

    Raises UsageError, with nothing written, if a file is there already (unless `overwrite`) or would lie outside.
    """
    bundle = preview(context, request)
    out = request.out.absolute()
    files = [(_inside(out, file), file) for file in bundle.files]
    there = [path for path, _ in files if os.path.lexists(path)]
    if there and not overwrite:
        raise OutputExists(f"{there[0]} is there already", "--overwrite replaces it, --out writes to another directory")
    blocked = next((path for path in there if path.is_dir()), None)
    if blocked is not None:
        raise UsageError(f"{blocked} is a directory", "--out writes to another directory")
    for path, file in files:
        write_text(path, file.text, overwrite=overwrite)
    return ExportResult(tuple(path for path, _ in files), bundle.run, bundle.notes)


class HeaderValues(Mapping[str, Any]):
    """Metadata of a header as a mapping of plain values, decoded when asked for (vocabularies are large)."""

    def __init__(self, header: Header) -> None:
        self._header = header

    def __getitem__(self, key: str) -> Any:
        if key not in self._header.keys():  # noqa: SIM118  (a Header is no mapping)
            raise KeyError(key)
        return self._header.get(key)

    def __iter__(self) -> Iterator[str]:
        return iter(self._header.keys())

    def __len__(self) -> int:
        return len(list(self._header.keys()))


def _inside(out: Path, file: BundleFile) -> Path:
    """Where a file of the bundle goes. Raises UsageError for a path that leaves `out`, by ".." or by a link."""
    relative = PurePosixPath(file.path)
    path = out.joinpath(*relative.parts)
    leaves = relative.is_absolute() or not relative.parts or ".." in relative.parts or "\\" in file.path
    if leaves or not path.parent.resolve().is_relative_to(out.resolve()):
        raise UsageError(f"the exporter wants to write {file.path!r}, which is outside the output directory")
    return path
