"""Finds GGUF files and checkpoints in folders and in the Hugging Face cache."""

from __future__ import annotations

from collections.abc import Iterable

from phitui.api import Finder, hookimpl
from phitui_folders.finders import Folders, HuggingFace


@hookimpl
def phitui_finders() -> Iterable[Finder]:
    return [Folders(), HuggingFace()]
