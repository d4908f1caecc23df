"""TOML to a checked Recipe: every mistake is named with its line and the nearest key that exists."""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import fields
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from phitui.domain import options
from phitui.domain.options import OptionSpec
from phitui.domain.recipe import (
    FORMAT,
    STEPS,
    EditRecord,
    FileRecord,
    MadeFacts,
    MadeRecord,
    Recipe,
    ResultRecord,
    SourceFacts,
    SourceRecord,
)
from phitui.domain.text import visible
from phitui.errors import UsageError

_SHA256 = re.compile(r"[0-9a-f]{64}")
_Record = TypeVar("_Record")
_RECORDS: dict[str, type] = {"made": MadeFacts, "source": SourceFacts, "result": ResultRecord}
_WHOLE: dict[str, type] = {"made": MadeRecord, "source": SourceRecord}
_TABLES = {
    ("build", "converter"): "converter",
    ("build", "quantizer"): "quantizer",
    ("evaluate", "options"): "evaluate_options",
    ("export", "options"): "export_options",
}
"""(section, key) of tables whose keys belong to plugins -> field of Recipe."""
_LISTS = {
    ("source", "files"): FileRecord,
    ("build", "files"): FileRecord,
    ("imatrix", "files"): FileRecord,
}
_REQUIRED = {"get": ("repo",), "build": ("scheme",), "export": ("to",), "source": ("kind",)}


def loads(text: str, name: str = "recipe") -> Recipe:
    """The recipe in a TOML text. Raises UsageError naming file and line."""
    try:
        document = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise UsageError(f"{name} is not TOML: {visible(str(error))}", "phitui run --example shows a recipe") from None
    return parse(document, text, name)


def parse(document: Mapping[str, Any], text: str = "", name: str = "recipe") -> Recipe:
    """Check a TOML document. `text` is what it was read from, for line numbers. Raises UsageError."""
    check = _Check(text, name)
    check.version(document.get("format", FORMAT))
    known = ["format", *_RECORDS, *STEPS, "edits"]
    values: dict[str, Any] = {}
    for section, content in document.items():
        if section == "format":
            continue
        if section == "edits":
            values["edits"] = check.records(EditRecord, content, "edits")
            continue
        if section not in known:
            raise check.unknown("", section, known)
        if not isinstance(content, Mapping):
            raise check.error("", section, f"{section} is a section: [{section}]")
        kind = STEPS.get(section) or _RECORDS[section]
        values |= _section(check, section, kind, content)
    recipe = Recipe(**values)
    if not (recipe.steps or recipe.result or recipe.edits):
        raise UsageError(f"{name} has no step in it", f"steps: {', '.join(STEPS)}; phitui run --example shows a recipe")
    return recipe


def _section(check: _Check, section: str, kind: type, content: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of Recipe that a section gives."""
    plain: dict[str, Any] = {}
    values: dict[str, Any] = {}
    lists: dict[str, Any] = {}
    for key, value in content.items():
        if (section, key) in _TABLES:
            values[_TABLES[section, key]] = check.table(section, key, value)
        elif (section, key) in _LISTS:
            lists[key] = check.records(_LISTS[section, key], value, f"{section}.{key}")
        elif (section, key) == ("made", "versions"):
            lists[key] = {str(k): str(v) for k, v in check.table(section, key, value).items()}
        elif (section, key) == ("plan", "layers") and isinstance(value, int) and not isinstance(value, bool):
            plain[key] = str(value)
        else:
            plain[key] = value
    given = check.section(section, kind, plain)
    if section in _WHOLE:
        values[section] = _WHOLE[section](**given, **lists)
        return values
    if "files" in lists:
        values[f"{section}_files"] = lists["files"]
    return values | {section: kind(**given)}


class _Check:
    """Checks values and says where in the text one is wrong."""

    def __init__(self, text: str, name: str) -> None:
        self._lines, self._name = text.splitlines(), name

    def version(self, value: Any) -> None:
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise self.error("", "format", f"format = {value!r} is no version", f"this phitui writes format = {FORMAT}")
        if value > FORMAT:
            raise self.error(
                "", "format", f"it has format {value}, and this phitui knows formats up to {FORMAT}", "update phitui"
            )

    def section(self, section: str, kind: type, content: Mapping[str, Any]) -> dict[str, Any]:
        """The values of a section: every key known, of the right type, in range, and the needed ones there."""
        specs = {spec.name: spec for spec in options.specs(kind)}
        values: dict[str, Any] = {}
        for key, given in content.items():
            if key not in specs:
                tables = [table for name, table in (*_TABLES, *_LISTS) if name == section]
                raise self.unknown(section, key, [*specs, *tables])
            self._type(section, specs[key], given)
            try:
                values[key] = getattr(options.build(kind, {key: _text(given)}), key)
            except UsageError as error:
                message = error.message.replace(specs[key].flag, key, 1)
                raise self.error(section, key, message, error.hint or specs[key].help) from None
        for key in _REQUIRED.get(section, ()):
            if not content.get(key):
                raise self.error("", section, f"[{section}] needs {key}", specs[key].help)
        return values

    def table(self, section: str, key: str, value: Any) -> dict[str, Any]:
        """A table of plain values, whose keys belong to a plugin."""
        if not isinstance(value, Mapping):
            raise self.error(section, key, f"{key} is a table: [{section}.{key}]")
        for name, item in value.items():
            parts = item if isinstance(item, list) else [item]
            if not all(isinstance(part, str | int | float | bool) for part in parts):
                raise self.error(f"{section}.{key}", name, f"{name} must be a text, a number, true, false or a list")
        return dict(value)

    def records(self, kind: type[_Record], content: Any, where: str) -> tuple[_Record, ...]:
        """A list of records, such as the files of a source."""
        if not isinstance(content, list) or not all(isinstance(item, Mapping) for item in content):
            raise self.error(where.rpartition(".")[0], where.rpartition(".")[2], f"{where} is a list of tables")
        known = {item.name: item for item in fields(kind)}  # type: ignore[arg-type]
        made = []
        for item in content:
            for key, value in item.items():
                if key not in known:
                    raise self.unknown(where, key, known)
                wanted = int if known[key].type in ("int", int) else str
                if not isinstance(_text(value), wanted) or isinstance(value, bool):
                    raise self.error(where, key, f"{key} is not {visible(str(value))!r}")
            sha256 = item.get("sha256", "")
            if sha256 and not _SHA256.fullmatch(sha256):
                raise self.error(where, "sha256", f"{visible(sha256)!r} is no SHA-256", "64 hexadecimal digits")
            made.append(kind(**{key: _text(value) for key, value in item.items()}))
        return tuple(made)

    def unknown(self, section: str, key: str, known: Iterable[str]) -> UsageError:
        known = list(known)
        near = difflib.get_close_matches(key, known, 1, 0.5)
        what = f"[{section}] has no key {visible(key)!r}" if section else f"{visible(key)!r} is no section of a recipe"
        names = ", ".join(known)
        return self.error(section, key, what, f"did you mean {near[0]}? known: {names}" if near else f"known: {names}")

    def error(self, section: str, key: str, message: str, hint: str = "phitui run --example shows one") -> UsageError:
        line = self._line(section, key)
        return UsageError(f"{self._name}{f', line {line}' if line else ''}: {message}", hint)

    def _type(self, section: str, spec: OptionSpec, value: Any) -> None:
        items = value if spec.repeatable and isinstance(value, list) else [value]
        wanted = _KINDS[spec.kind]
        if spec.repeatable != isinstance(value, list) or not all(_is(item, spec.kind) for item in items):
            shown = visible(repr(value))[:60]
            raise self.error(
                section,
                spec.name,
                f"{spec.name} is {f'a list, each {wanted}' if spec.repeatable else wanted}, not {shown}",
                f"{spec.name}: {spec.help}",
            )

    def _line(self, section: str, key: str) -> int:
        """The line of a key, or of a section's header; 0 where it cannot be told."""
        current, dotted = "", f"{section}.{key}" if section else key
        for number, line in enumerate(self._lines, 1):
            header = re.match(r"\s*\[\[?\s*([^\]]+?)\s*\]\]?", line)
            if header:
                current = header[1].replace(" ", "").replace('"', "")
                if current == dotted:
                    return number
                continue
            found = re.match(r"\s*([^=#]+?)\s*=", line)
            if found:
                name = found[1].replace('"', "").replace(" ", "")
                full = f"{current}.{name}" if current else name
                if full == dotted or full.startswith(f"{dotted}."):
                    return number
        return 0


_KINDS = {str: "a text", int: "a whole number", float: "a number", bool: "true or false", Path: "a path"}


def _is(value: Any, kind: type) -> bool:
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if kind in (str, Path):
        return isinstance(value, str | datetime)
    return isinstance(value, kind)


def _text(value: Any) -> Any:
    """Dates of TOML as text; everything else as it is."""
    return value.isoformat() if isinstance(value, datetime) else value
