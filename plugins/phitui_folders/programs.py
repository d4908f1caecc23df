"""The finders for other programs that keep GGUF files under their own names: LM Studio and llama.cpp."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from phitui.api import Artifact, Availability
from phitui_folders.finders import artifacts

_LIMIT = 1 << 20
"""Bytes of a settings file that are read."""


class LmStudio:
    """LM Studio's models folder, wherever its settings put it. Only GGUF files: its MLX models are no checkpoints."""

    name = "lmstudio"
    title = "LM Studio's models"

    def available(self) -> Availability:
        return Availability()

    def find(self) -> Iterator[Artifact]:
        yield from _ggufs(lmstudio_folder(), self.name)


class LlamaCpp:
    """What llama.cpp's own programs have downloaded. Newer ones use the Hugging Face cache, which is looked at too."""

    name = "llama.cpp"
    title = "llama.cpp's cache"

    def available(self) -> Availability:
        return Availability()

    def find(self) -> Iterator[Artifact]:
        yield from _ggufs(llamacpp_folder(), self.name)


def lmstudio_folder() -> Path:
    """`downloadsFolder` of the settings in LM Studio's home, else `models` there."""
    home = _lmstudio_home()
    try:
        chosen = json.loads(_start_of(home / "settings.json"))["downloadsFolder"]
        if isinstance(chosen, str) and chosen:
            return Path(chosen).expanduser()
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, RecursionError):
        pass  # no settings, or none that can be read
    return home / "models"


def _lmstudio_home() -> Path:
    """What the pointer file in the home directory says, else the older place if it is there, else the usual one."""
    try:
        said = _start_of(Path.home() / ".lmstudio-home-pointer").decode().strip()
        if said:
            return Path(said).expanduser()
    except (OSError, ValueError, RuntimeError):
        pass
    older = Path.home() / ".cache" / "lm-studio"
    return older if older.is_dir() else Path.home() / ".lmstudio"


def llamacpp_folder() -> Path:
    """LLAMA_CACHE, else `llama.cpp` in the system's place for caches."""
    if os.environ.get("LLAMA_CACHE"):
        return Path(os.environ["LLAMA_CACHE"]).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "llama.cpp"
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base).expanduser() if base else Path.home() / ".cache") / "llama.cpp"


def _ggufs(folder: Path, found_by: str) -> Iterator[Artifact]:
    return (artifact for artifact in artifacts(folder, found_by, set()) if artifact.kind == "gguf")


def _start_of(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_LIMIT)
