"""The finders. They only look at names and sizes: phitui reads headers itself, and remembers them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from phitui.api import Artifact, Availability, plugin_folders

MAX_DEPTH = 8
"""Levels of subfolders that are looked into."""

_SHA256 = re.compile("[0-9a-f]{64}")
_SHARD = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.IGNORECASE)


class Folders:
    """phitui's own models and the folders of the configuration."""

    name = "folders"
    title = "Model folders"

    def available(self) -> Availability:
        return Availability()

    def find(self) -> Iterator[Artifact]:
        seen: set[tuple[int, int]] = set()
        for folder in plugin_folders():
            yield from artifacts(folder, self.name, seen)


class HuggingFace:
    """The cache that huggingface_hub and transformers share (HF_HUB_CACHE, HF_HOME)."""

    name = "huggingface"
    title = "Hugging Face cache"

    def available(self) -> Availability:
        return Availability()

    def find(self) -> Iterator[Artifact]:
        seen: set[tuple[int, int]] = set()
        for repo in sorted(cache_folder().glob("models--*--*")):
            name = repo.name.removeprefix("models--").replace("--", "/", 1)
            snapshots = _listed(repo / "snapshots")
            for snapshot in snapshots:
                label = name if len(snapshots) == 1 else f"{name}@{snapshot.name[:7]}"
                yield from map(_with_hash, artifacts(snapshot, self.name, seen, label))


def _with_hash(artifact: Artifact) -> Artifact:
    """With the SHA-256 of a GGUF: the cache links to large files by it. Of a split one it is not that of all."""
    if artifact.kind != "gguf" or _SHARD.fullmatch(artifact.path.name):
        return artifact
    try:
        blob = artifact.path.readlink().name
    except OSError:
        return artifact
    return replace(artifact, sha256=blob) if _SHA256.fullmatch(blob) else artifact


def cache_folder() -> Path:
    """Where huggingface_hub keeps repositories, by its own environment variables."""
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if os.environ.get(variable):
            return Path(os.environ[variable]).expanduser()
    home = os.environ.get("HF_HOME")
    if home:
        return Path(home).expanduser() / "hub"
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base).expanduser() if base else Path.home() / ".cache") / "huggingface" / "hub"


def artifacts(
    folder: Path, found_by: str, seen: set[tuple[int, int]], label: str = "", depth: int = 0
) -> Iterator[Artifact]:
    """Artifacts in a folder and below it. `seen` holds (device, inode) of folders, so that loops of links end.

    `label` is the name of a checkpoint that is the folder itself. Hidden folders and unfinished files
    (*.partial, *.incomplete) are left out.
    """
    try:
        stat = folder.stat()
    except OSError:
        return
    if (stat.st_dev, stat.st_ino) in seen:
        return
    seen.add((stat.st_dev, stat.st_ino))
    files, folders = _split(folder)
    weights = [size for name, (_, size, _) in files.items() if name.endswith(".safetensors")]
    if "config.json" in files and weights:
        path, _, modified = files["config.json"]
        yield Artifact(path.parent, "checkpoint", label or folder.name, "", "", sum(weights), found_by, modified)
    yield from _ggufs(files, found_by)
    if depth < MAX_DEPTH:
        for below in folders:
            yield from artifacts(below, found_by, seen, "", depth + 1)


Files = dict[str, tuple[Path, int, float]]
"""Name to (path, size, modification time)."""


def _ggufs(files: Files, found_by: str) -> Iterator[Artifact]:
    """GGUF files; a split one is listed once, as its first shard with the size of all."""
    for name, (path, own, modified) in files.items():
        if not name.lower().endswith(".gguf"):
            continue
        size, shard = own, _SHARD.fullmatch(name)
        if shard:
            if int(shard["number"]) != 1:
                continue
            size = sum(other[1] for key, other in files.items() if _same_model(key, shard))
        yield Artifact(path, "gguf", name, "", "", size, found_by, modified)


def _same_model(name: str, first: re.Match[str]) -> bool:
    shard = _SHARD.fullmatch(name)
    return shard is not None and (shard["stem"], shard["count"]) == (first["stem"], first["count"])


def _split(folder: Path) -> tuple[Files, list[Path]]:
    """Files and subfolders of a folder, links followed, sorted by name. What cannot be looked at is left out."""
    files: Files = {}
    folders: list[Path] = []
    try:
        with os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                try:
                    if entry.is_dir():
                        if not entry.name.startswith("."):
                            folders.append(Path(entry.path))
                    elif entry.is_file():
                        stat = entry.stat()
                        files[entry.name] = (Path(entry.path), stat.st_size, stat.st_mtime)
                except OSError:
                    continue
    except OSError:
        pass
    return files, folders


def _listed(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.is_dir())
    except OSError:
        return []
