"""Making a model known to another program: shown first, then written."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from phitui.actions.context import Context
from phitui.actions.models import resolve_model
from phitui.actions.placing import in_place, place
from phitui.actions.texts import write_text
from phitui.domain import options
from phitui.domain.bundle import Bundle, BundleLink, ExportModel
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
    """What was written: texts, then the files of the model that were placed. `run` are the commands to type next."""

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
    model = export_model(path)
    try:
        return _checked(exporter.preview(model, values, request.out.absolute()), model)
    except PhituiError:
        raise
    except Exception as error:  # a stranger's code
        raise PhituiError(
            f"the export target {request.to} failed: {type(error).__name__}: {error}",
            "phitui plugins shows whose it is",
        ) from error


def export_model(path: Path) -> ExportModel:
    """What exporters are given of a GGUF. Raises InvalidFile."""
    header = read_model(path)
    template = header.get("tokenizer.chat_template", "")
    return ExportModel(
        path,
        facts_from_header(header),
        template if isinstance(template, str) else "",
        HeaderValues(header),
        header.files if len(header.files) > 1 else (),
    )


def export(context: Context, request: ExportRequest, overwrite: bool = False) -> ExportResult:
    """Write the export below `request.out`, each file at once under its name, and place the files of the model.

    Raises UsageError, with nothing written, if a file is there already (unless `overwrite`) or would lie outside. Only
    files of the model itself are placed outside, where the preview says so; one that is there already is left alone.
    """
    bundle = preview(context, request)
    out = request.out.absolute()
    files = [(_inside(out, file.path), file) for file in bundle.files]
    links = [(target_of(out, link), link) for link in bundle.links]
    missing = [(path, link) for path, link in links if not in_place(link.source, path)]
    there = [path for path, _ in (*files, *missing) if os.path.lexists(path)]
    if there and not overwrite:
        raise OutputExists(f"{there[0]} is there already", "--overwrite replaces it, --out writes to another directory")
    blocked = next((path for path in there if path.is_dir()), None)
    if blocked is not None:
        raise UsageError(f"{blocked} is a directory", "--out writes to another directory")
    how = tuple(f"{path}: {place(link.source, path, overwrite=overwrite)}" for path, link in links)
    for path, file in files:
        write_text(path, file.text, overwrite=overwrite)
    return ExportResult(tuple(path for path, _ in (*files, *links)), bundle.run, (*how, *bundle.notes))


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


def target_of(out: Path, link: BundleLink) -> Path:
    """Where a file of the model goes: anywhere for an absolute path, else below `out`. Raises UsageError."""
    path = Path(link.path)
    if not path.is_absolute():
        return _inside(out, link.path)
    if ".." in path.parts:
        raise UsageError(f"the exporter wants to place the model at {link.path!r}, which is no plain path")
    return path


def _checked(bundle: Bundle, model: ExportModel) -> Bundle:
    """The bundle, if all of it can be written. Raises UsageError for text that is no UTF-8 and for strangers' files."""
    for file in bundle.files:
        try:
            file.text.encode()
        except UnicodeEncodeError:
            raise UsageError(f"{file.path} would hold a name that is no valid UTF-8", "rename the file") from None
    foreign = next((link.source for link in bundle.links if link.source not in model.files), None)
    if foreign is not None:
        raise UsageError(f"the exporter wants to place {foreign}, which is no file of the model")
    return bundle


def _inside(out: Path, name: str) -> Path:
    """Where a file of the bundle goes. Raises UsageError for a path that leaves `out`, by ".." or by a link."""
    relative = PurePosixPath(name)
    path = out.joinpath(*relative.parts)
    leaves = relative.is_absolute() or not relative.parts or ".." in relative.parts or "\\" in name
    if leaves or not path.parent.resolve().is_relative_to(out.resolve()):
        raise UsageError(f"the exporter wants to write {name!r}, which is outside the output directory")
    return path
