"""Finds GGUF files and checkpoints in folders, in the Hugging Face cache, and in those of LM Studio and llama.cpp."""

from __future__ import annotations

from collections.abc import Iterable

from phitui.api import Finder, hookimpl
from phitui_folders.finders import Folders, HuggingFace
from phitui_folders.programs import LlamaCpp, LmStudio


@hookimpl
def phitui_finders() -> Iterable[Finder]:
    return [Folders(), HuggingFace(), LmStudio(), LlamaCpp()]
