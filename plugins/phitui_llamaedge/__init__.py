"""LlamaEdge: llama.cpp in a WebAssembly sandbox (WasmEdge), and GaiaNet, whose nodes are built on it."""

from __future__ import annotations

from collections.abc import Iterable

from phitui.api import Exporter, hookimpl
from phitui_llamaedge.exporter import LlamaEdge


@hookimpl
def phitui_exporters() -> Iterable[Exporter]:
    return [LlamaEdge()]
