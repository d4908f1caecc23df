"""Ollama: a Modelfile for the model's own chat format, a push to a running server, and the models in its store."""

from __future__ import annotations

from collections.abc import Iterable

from phitui.api import Exporter, Finder, hookimpl
from phitui_ollama.exporter import Ollama
from phitui_ollama.store import OllamaStore


@hookimpl
def phitui_exporters() -> Iterable[Exporter]:
    return [Ollama()]


@hookimpl
def phitui_finders() -> Iterable[Finder]:
    return [OllamaStore()]
