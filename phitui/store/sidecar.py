"""The recipe beside a file phitui made: `model.gguf.toml`. Written so that a person reads it with pleasure."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from phitui.domain.recipe import FORMAT, STEPS, SUFFIX, FileRecord, Recipe
from phitui.domain.recipe_reading import loads
from phitui.errors import PhituiError, UsageError

LIMIT = 64 << 20
"""Bytes. A recipe has a few kilobytes; one of a checkpoint with thousands of shards has a few hundred."""
COMMENTS = {
    "made": "who made it; other versions may make other bytes",
    "source": "what it was made from; every file that was read, with its SHA-256",
    "build": "how; paths are relative to this file",
    "imatrix": "how; paths are relative to this file",
    "result": "what came out",
    "edits": "changes after it was made, which a recipe cannot make again",
}


def beside(path: Path) -> Path:
    """Where the recipe of a file lies."""
    return path.with_name(path.name + SUFFIX)


def read_recipe(path: Path) -> Recipe:
    """Read and check a recipe. Raises UsageError naming the line, or PhituiError for a file that cannot be read."""
    return loads(read_text(path), str(path))


def read_text(path: Path) -> str:
    """The text of a recipe. Raises PhituiError."""
    try:
        with path.open("rb") as stream:
            data = stream.read(LIMIT + 1)
    except OSError as error:
        raise PhituiError(f"cannot read {path}: {error.strerror}", "phitui run RECIPE.toml") from None
    if len(data) > LIMIT:
        raise UsageError(f"{path} is over {LIMIT >> 20} MiB: that is no recipe")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 at byte {error.start}", "a recipe is a TOML text") from None


def read_beside(path: Path) -> Recipe | None:
    """The lineage of a file; None if there is none that is readable and of this very file (by its name and size).

    That the bytes are the same is not checked here: that takes reading them.
    """
    try:
        recipe = read_recipe(beside(path))
        size = path.stat().st_size
    except (PhituiError, OSError):
        return None
    if recipe.edits:
        return recipe if recipe.edits[-1].size == size else None
    return recipe if recipe.result is not None and recipe.result.size == size else None


def is_record(path: Path) -> bool:
    """Whether a file is a recipe that phitui wrote as lineage, and so may replace."""
    try:
        recipe = read_recipe(path)
    except PhituiError:
        return False
    plain = set(recipe.steps) <= {"build", "imatrix"}  # further steps are a person's
    return plain and recipe.made is not None and (recipe.result is not None or bool(recipe.edits))


class Sidecar:
    """Writes a file's recipe in two steps around the rename of the file itself, so that it is complete or absent."""

    def __init__(self, path: Path) -> None:
        self.path = beside(path)
        self._partial = self.path.with_name(self.path.name + ".partial")

    def prepare(self, text: str) -> None:
        """Write it under another name, and take away one of a former file. Raises PhituiError."""
        if os.path.lexists(self.path) and not is_record(self.path):
            raise PhituiError(f"{self.path} is there already, and is not phitui's own")
        try:
            with self._partial.open("w", encoding="utf-8") as stream:
                stream.write(text)
                stream.flush()
                os.fsync(stream.fileno())
            self.path.unlink(missing_ok=True)
        except OSError as error:
            self.discard()
            raise PhituiError(f"cannot write {self.path}: {error.strerror}") from None
        except UnicodeEncodeError:  # a path that is no text
            self.discard()
            raise PhituiError("a name in it is not UTF-8, and TOML holds nothing else") from None

    def publish(self) -> None:
        """Give it its name. Raises PhituiError."""
        try:
            self._partial.replace(self.path)
        except OSError as error:
            raise PhituiError(f"cannot write {self.path}: {error.strerror}") from None

    def discard(self) -> None:
        with contextlib.suppress(OSError):
            self._partial.unlink(missing_ok=True)


def dumps(recipe: Recipe, title: str = "") -> str:
    """The recipe as TOML with comments; keys in the order of the dataclasses, values that are the default left out."""
    parts = [f"# {line}".rstrip() for line in title.splitlines()]
    parts += [f"format = {FORMAT}"]
    if recipe.made:
        parts += _table("made", _plain(recipe.made, ("versions",)))
        parts += _table("made.versions", recipe.made.versions)
    if recipe.source:
        parts += _table("source", _plain(recipe.source, ("files",)))
        parts += _files(recipe.source.files)
    for name in STEPS:
        step = getattr(recipe, name)
        if step is None:
            continue
        parts += _table(name, _plain(step))
        if name in ("build", "imatrix"):
            parts += _files(getattr(recipe, f"{name}_files"))
        if name == "build":
            parts += _table("build.converter", recipe.converter) + _table("build.quantizer", recipe.quantizer)
        elif name in ("evaluate", "export"):
            parts += _table(f"{name}.options", getattr(recipe, f"{name}_options"))
    if recipe.result:
        parts += _table("result", _plain(recipe.result))
    for edit in recipe.edits:
        parts += _table("edits", _plain(edit), "[[{}]]")
    return "\n".join(parts) + "\n"


def _table(name: str, values: Mapping[str, Any], header: str = "[{}]") -> list[str]:
    if not values:
        return []
    comment = [f"# {COMMENTS[name]}"] if name in COMMENTS else []
    return ["", *comment, header.format(name), *(f"{_key(key)} = {_value(value)}" for key, value in values.items())]


def _files(files: Sequence[FileRecord]) -> list[str]:
    """One line per file."""
    if not files:
        return []
    lines = []
    for file in files:
        items = ", ".join(f"{key} = {_value(value)}" for key, value in _plain(file).items())
        lines.append(f"  {{ {items} }},")
    return ["files = [", *lines, "]"]


def _plain(record: Any, but: Sequence[str] = ()) -> dict[str, Any]:
    values = {item.name: getattr(record, item.name) for item in fields(record) if item.name not in but}
    return {key: value for key, value in values.items() if value not in (None, "", (), False)}


def _key(text: str) -> str:
    import tomli_w

    return tomli_w.dumps({text: 0}).rpartition(" = ")[0]


def _value(value: Any) -> str:
    import tomli_w

    given = list(value) if isinstance(value, tuple) else value
    text: str = tomli_w.dumps({"x": given}).partition(" = ")[2].rstrip("\n")
    return text
