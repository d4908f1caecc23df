"""The embedded engine: llama.cpp through llama-cpp-python, inside phitui's engine process."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib.util import find_spec
from pathlib import Path

from phitui.api import Availability, Engine, EngineSettings, Session, hookimpl


class LlamaCpp:
    """Runs GGUF files with llama.cpp's C interface."""

    name = "llama.cpp"
    title = "llama.cpp (embedded)"

    def available(self) -> Availability:
        if find_spec("llama_cpp") is None:
            return Availability(False, "llama-cpp-python is not installed", "pip install 'phitui[llama]'")
        return Availability()

    def open(self, model: Path, settings: EngineSettings, progress: Callable[[float], None]) -> Session:
        from phitui_llamacpp.session import LlamaSession

        return LlamaSession(model, settings, progress)


@hookimpl
def phitui_engines() -> Iterable[Engine]:
    return [LlamaCpp()]
