"""Exports to Ollama: a Modelfile for the model's own chat format."""

from __future__ import annotations

from collections.abc import Iterable

from phitui.api import Exporter, hookimpl
from phitui_ollama.exporter import Ollama


@hookimpl
def phitui_exporters() -> Iterable[Exporter]:
    return [Ollama()]
