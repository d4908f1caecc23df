"""Removing and renaming models on this machine, with all that belongs to them. Only in phitui's own folders."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path

from phitui.actions import models
from phitui.actions.context import Context
from phitui.actions.jobs import list_jobs
from phitui.config import plugin_folders
from phitui.domain.model import Artifact
from phitui.errors import OutputExists, PhituiError, UsageError

CHECKPOINT_FILES = ("*.safetensors", "*.json", "tokenizer.model", "*.jinja", "merges.txt", "*.md", "LICENSE*", "*.toml")
"""What a downloaded checkpoint consists of; anything else in its directory is the person's."""


@dataclass(frozen=True)
class Removal:
    """What a removal takes away (`files`, of `size` bytes together) and what it leaves in the directory."""

    path: Path
    files: tuple[Path, ...]
    size: int
    left: int = 0


def removal(ctx: Context, model: str) -> Removal:
    """What removing a model would take away; nothing is done.

    `model` is a path or a name in the library. Raises UsageError for a model that another program keeps, or that a job
    is working with.
    """
    artifact = _found(ctx, model)
    _refuse_foreign(artifact)
    _refuse_busy(ctx, artifact.path)
    files = _checkpoint_files(artifact.path) if artifact.kind == "checkpoint" else _gguf_files(artifact.path)
    left = sum(path.is_file() for path in artifact.path.rglob("*")) if artifact.kind == "checkpoint" else len(files)
    return Removal(artifact.path, files, sum(path.lstat().st_size for path in files), left - len(files))


def remove(ctx: Context, model: str) -> Removal:
    """Remove a model with its recipe and all parts of a split one. Links are removed, never what they point to."""
    found = removal(ctx, model)
    for path in found.files:
        _unlink(path)
    if found.path.is_dir():
        for folder in sorted((p for p in found.path.rglob("*") if p.is_dir()), reverse=True):
            with contextlib.suppress(OSError):
                folder.rmdir()
        with contextlib.suppress(OSError):
            found.path.rmdir()
    return found


def rename(ctx: Context, model: str, name: str) -> Path:
    """Give a model another name in its directory; the recipe beside it and all parts of a split one go with it.

    Raises UsageError for a name that is no plain file name, or OutputExists; then nothing is renamed.
    """
    artifact = _found(ctx, model)
    _refuse_foreign(artifact)
    _refuse_busy(ctx, artifact.path)
    moves = _moves(artifact, name)
    there = next((new for _, new in moves if os.path.lexists(new)), None)
    if there is not None:
        raise OutputExists(f"{there} is there already", "choose another name")
    done: list[tuple[Path, Path]] = []
    try:
        for old, new in moves:
            old.rename(new)
            done.append((old, new))
    except OSError as error:
        for old, new in reversed(done):
            new.rename(old)
        raise PhituiError(f"cannot rename {artifact.path}: {error.strerror}") from None
    return moves[-1][1]


def _moves(artifact: Artifact, name: str) -> list[tuple[Path, Path]]:
    """(old, new) of every file that goes along; the model's own (first) file last."""
    name = name.strip()
    if not name or name in (".", "..") or "/" in name or "\0" in name:
        raise UsageError(f"{name!r} is no file name", "give a name without a directory")
    if artifact.kind == "checkpoint":
        return [(artifact.path, artifact.path.with_name(name))]
    from phitui.gguf.shards import model_stem

    stem, new = model_stem(artifact.path), name.removesuffix(".gguf")
    files = _gguf_files(artifact.path)
    moves = [(path, path.with_name(new + path.name.removeprefix(stem))) for path in files if path != artifact.path]
    return [*moves, (artifact.path, artifact.path.with_name(new + artifact.path.name.removeprefix(stem)))]


def _found(ctx: Context, model: str) -> Artifact:
    """The artifact of a path or a name. Raises UsageError."""
    path = Path(model).expanduser()
    if not path.exists():
        artifact = models.named(ctx, model)
        if artifact is None:
            raise UsageError(f"there is no model {model!r} here", "phitui models lists them")
        if models.is_name_elsewhere(artifact, model):
            raise UsageError(
                f"{model} is the name of the same content in another place",
                f"name the one that is meant: {artifact.name}, at {artifact.path}",
            )
        return artifact
    path = path.absolute()
    wanted = (path, models.first_file(path))
    for artifact in models.library(ctx):
        if artifact.path.absolute() in wanted:
            return artifact
        for place in artifact.also:
            if place.path.absolute() in wanted:
                return dataclasses.replace(artifact, path=place.path, name=place.name, found_by=place.found_by)
    raise UsageError(f"{path} is none of the models that phitui models lists", "remove or rename it yourself")


def _refuse_foreign(artifact: Artifact) -> None:
    """Only what lies in phitui's own folders: other programs' stores have indexes of their own."""
    parent = artifact.path.parent.resolve()
    if not any(parent.is_relative_to(folder.resolve()) for folder in plugin_folders()):
        raise UsageError(
            f"{artifact.path} was found by {artifact.found_by}: it belongs to another program",
            "remove or rename it with that program",
        )


def _refuse_busy(ctx: Context, path: Path) -> None:
    for job in list_jobs(ctx):
        if job.live and str(path) in (job.key, *(v for v in job.request.values() if isinstance(v, str))):
            raise UsageError(f"job {job.id} ({job.title}) is working with {path.name}", f"phitui jobs cancel {job.id}")


def _gguf_files(path: Path) -> tuple[Path, ...]:
    """The files of a GGUF: all parts of a split one, and the recipes beside them."""
    from phitui.gguf.shards import named_shards
    from phitui.store.sidecar import beside

    parts = [file for file in named_shards(path) if os.path.lexists(file)] or [path]
    return (*parts, *(file for part in parts if os.path.lexists(file := beside(part))))


def _checkpoint_files(directory: Path) -> tuple[Path, ...]:
    """The files of a checkpoint and what its download left behind."""
    found = {path for pattern in CHECKPOINT_FILES for path in directory.glob(pattern) if not path.is_dir()}
    found |= {path for path in (directory / ".cache").rglob("*") if not path.is_dir()}
    return tuple(sorted(found))


def _unlink(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise PhituiError(f"cannot remove {path}: {error.strerror}") from None
