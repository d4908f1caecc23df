"""Where LM Studio keeps its models on this machine."""

from __future__ import annotations

import json
from pathlib import Path

_HIDDEN = ".lmstudio"


def home() -> Path | None:
    """LM Studio's own directory: where its pointer says, else the old place, else the new one. None if there is none.

    The same order as in LM Studio's own SDK, which would make the last one.
    """
    for folder in (_pointed(), Path.home() / ".cache" / "lm-studio", Path.home() / _HIDDEN):
        if folder is not None and folder.is_dir():
            return folder
    return None


def models(base: Path) -> Path:
    """The folder of its models: `downloadsFolder` of settings.json, else `models` in its directory."""
    try:
        settings = json.loads((base / "settings.json").read_text("utf-8-sig"))
        folder = settings["downloadsFolder"]
    except (OSError, ValueError, KeyError, TypeError):
        return base / "models"
    absolute = isinstance(folder, str) and Path(folder).is_absolute()
    return Path(folder) if absolute else base / "models"


def _pointed() -> Path | None:
    try:
        text = (Path.home() / ".lmstudio-home-pointer").read_text("utf-8").strip()
    except (OSError, ValueError):
        return None
    return Path(text) if text and Path(text).is_absolute() else None
