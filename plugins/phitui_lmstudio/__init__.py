"""LM Studio: the model in its folder, a preset, and the line that loads it."""

from __future__ import annotations

from collections.abc import Iterable

from phitui.api import Exporter, hookimpl
from phitui_lmstudio.exporter import LMStudio


@hookimpl
def phitui_exporters() -> Iterable[Exporter]:
    return [LMStudio()]
