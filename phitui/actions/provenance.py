"""Where a source came from: its files, and the repository and revision it was downloaded from, where that is known."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from phitui.actions.views import name_of
from phitui.domain.recipe import FileRecord, GetStep, MadeRecord, Recipe, SourceRecord, Traced
from phitui.domain.tensors import FileExtent, TensorSource
from phitui.errors import PhituiError
from phitui.store.hashes import Hashed
from phitui.store.sidecar import dumps, read_recipe

NOTE = ".phitui-pull.toml"
"""What `phitui pull` leaves in a directory: the repository, the commit, and the files with their hashes."""
READ = ("*.json", "*.jinja", "*.model", "merges.txt", "vocab.txt", "README.md", "additional_chat_templates/*.jinja")
"""Files of a checkpoint, besides its weights, that a converter may read."""
_CACHED = re.compile(r"models--(.+?)--(.+)")


@dataclass(frozen=True)
class Found:
    """A source, and the files to hash, by their name in it."""

    record: SourceRecord
    files: Mapping[str, Path] = field(default_factory=dict)
    noted: Mapping[str, str] = field(default_factory=dict)
    """SHA-256 by name that the download had; if a file is another now, repository and revision are not claimed."""

    def recorded(self, hashes: Mapping[Path, Hashed]) -> SourceRecord:
        """The record with all files and their hashes."""
        if not self.files:
            return self.record
        files = tuple(FileRecord(n, hashes[p].size, hashes[p].sha256) for n, p in self.files.items())
        changed = any(self.noted.get(file.path, file.sha256) != file.sha256 for file in files)
        return replace(self.record, files=files, **({"repo": "", "revision": ""} if changed else {}))


def provenance(source: TensorSource) -> Found:
    """Where a source came from. One that knows it better tells it itself (Traced)."""
    if isinstance(source, Traced):
        return Found(source.provenance())
    weights = {extent.path for tensor in source.tensors for extent in tensor.extents if isinstance(extent, FileExtent)}
    return of_directory(source.origin, weights) if source.origin.is_dir() else of_file(source.origin, weights)


def of_directory(directory: Path, weights: set[Path]) -> Found:
    """A checkpoint."""
    names = {path.relative_to(directory).as_posix(): path for path in checkpoint_files(directory)}
    for path in weights:
        names[path.relative_to(directory).as_posix() if path.is_relative_to(directory) else path.name] = path
    repo, revision, noted = downloaded(directory)
    record = SourceRecord("checkpoint", name_of(directory), repo, revision)
    return Found(record, dict(sorted(names.items())), noted)


def of_file(path: Path, parts: set[Path] = frozenset()) -> Found:  # type: ignore[assignment]
    """A GGUF file, or all files of one in parts."""
    from phitui.actions.lineage import lineage_of

    repo, revision, noted = downloaded(path.parent)
    if path.name not in noted:
        repo = revision = ""
    record = SourceRecord("gguf", path.name, repo, revision, "" if repo else lineage_of(path))
    return Found(record, {part.name: part for part in sorted({path, *parts})}, noted)


def checkpoint_files(directory: Path) -> list[Path]:
    """The files of a checkpoint that a converter may read, but for the weights."""
    return sorted({path for pattern in READ for path in directory.glob(pattern) if path.is_file()})


def downloaded(directory: Path) -> tuple[str, str, dict[str, str]]:
    """(repository, commit, SHA-256 by file) as a download noted them, or as the Hub's cache says by its names."""
    noted = _noted(directory)
    if noted is not None:
        return noted.repo, noted.revision, {file.path: file.sha256 for file in noted.files if file.sha256}
    cached = _CACHED.fullmatch(directory.parent.parent.name)
    if cached and directory.parent.name == "snapshots":
        return f"{cached[1]}/{cached[2]}", directory.name, {}
    return "", "", {}


def _noted(directory: Path) -> SourceRecord | None:
    try:
        return read_recipe(directory / NOTE).source
    except PhituiError:
        return None


def is_whole(directory: Path) -> bool:
    """Whether all files that a download noted are there, by their sizes."""
    noted = _noted(directory)
    try:
        return noted is not None and all((directory / f.path).stat().st_size == f.size for f in noted.files)
    except OSError:
        return False


def note_download(directory: Path, repo: str, revision: str, files: Mapping[str, Hashed], made: MadeRecord) -> str:
    """Leave a note in a directory that was downloaded. Returns why it could not be written, or an empty text."""
    known = {name: (hashed.size, hashed.sha256) for name, hashed in files.items()}
    before = _noted(directory)
    if before is not None and (before.repo, before.revision) == (repo, revision):
        known = {file.path: (file.size, file.sha256) for file in before.files} | known
    records = tuple(FileRecord(name, *values) for name, values in sorted(known.items()))
    recipe = Recipe(
        get=GetStep(repo, revision),
        made=made,
        source=SourceRecord("repository", repo=repo, revision=revision, files=records),
    )
    text = dumps(recipe, f"phitui downloaded this from https://huggingface.co/{repo}")
    partial = directory / f"{NOTE}.partial"
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(directory / NOTE)
    except OSError as error:
        return f"cannot write {directory / NOTE}: {error.strerror}"
    return ""
