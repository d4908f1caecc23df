"""llama.cpp's own server: everything to start it with a model as files, and `phitui serve`."""

from __future__ import annotations

from collections.abc import Iterable

from phitui.api import Command, Exporter, hookimpl
from phitui_llamaserver.exporter import LlamaServer
from phitui_llamaserver.serve import Serve


@hookimpl
def phitui_exporters() -> Iterable[Exporter]:
    return [LlamaServer()]


@hookimpl
def phitui_commands() -> Iterable[Command]:
    return [Serve()]
