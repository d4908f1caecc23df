"""llama.cpp's own server: everything to start it with a model, as files."""

from __future__ import annotations

from collections.abc import Iterable

from phitui.api import Exporter, hookimpl
from phitui_llamaserver.exporter import LlamaServer


@hookimpl
def phitui_exporters() -> Iterable[Exporter]:
    return [LlamaServer()]
