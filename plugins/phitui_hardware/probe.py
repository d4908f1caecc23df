"""The probe's child process: `python -m phitui_hardware.probe [--rpc HOST:PORT]...`, one JSON object a line both ways.

Without a terminal, without a model in memory, it answers until its input ends:

    {"op": "engine"}                     -> {"version", "path", "backends", "features", "gpu_offload", "rpc", "devices"}
    {"op": "measure", "path": ..., ...}  -> {"buffers": [...]}
    anything that fails                  -> {"error": "...", "hint": "..."}

Whatever llama.cpp prints goes to the standard error stream, which the parent keeps for the case of a crash.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO


class ProbeError(Exception):
    """Something a person should read; `args` are (message, hint)."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Answer requests until the input ends."""
    parser = argparse.ArgumentParser(prog="phitui_hardware.probe")
    parser.add_argument("--rpc", action="append", default=[])
    options = parser.parse_args(arguments)
    os.environ["GGML_NO_BACKTRACE"] = "1"  # or a failed assert would start a debugger first
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    probe = Probe(options.rpc)
    for line in requests:
        _answer(probe, line, answers)
    return 0


def _answer(probe: Probe, line: bytes, answers: BinaryIO) -> None:
    try:
        document = probe.answer(json.loads(line))
    except ProbeError as error:
        document = {"error": str(error.args[0]), "hint": str(error.args[1])}
    except Exception as error:
        document = {"error": f"{type(error).__name__}: {error}", "hint": ""}
    answers.write(json.dumps(document).encode() + b"\n")


class Probe:
    """Loads the native libraries with the first request."""

    def __init__(self, rpc: Sequence[str]) -> None:
        self._rpc = rpc
        self._ggml: Any = None
        self._meter: Any = None

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        self._load()
        if request.get("op") == "engine":
            return self._engine()
        if request.get("op") == "measure":
            from phitui_hardware.measure import MeasureError

            try:
                return {"buffers": self._meter.measure(request)}
            except MeasureError as error:
                raise ProbeError(f"llama.cpp cannot plan this load: {error}", "") from None
        raise ProbeError(f"unknown request {request.get('op')!r}", "")

    def _load(self) -> None:
        if self._meter is not None:
            return
        if self._rpc:
            reach(self._rpc)
        try:
            import llama_cpp.llama_cpp as llama
        except Exception as error:
            raise ProbeError(f"llama-cpp-python does not load: {error}", "install it again for this machine") from None
        from phitui_hardware.install import install_line
        from phitui_hardware.measure import Meter
        from phitui_hardware.native import Ggml

        llama.llama_backend_init()
        self._ggml = Ggml()
        for endpoint in self._rpc:
            if not self._ggml.add_worker(endpoint):
                raise ProbeError(
                    f"the engine cannot use {endpoint}: it has no RPC backend, or the worker no device",
                    install_line("cpu", platform.system()),
                )
        self._meter = Meter(self._ggml)

    def _engine(self) -> dict[str, Any]:
        import llama_cpp
        import llama_cpp.llama_cpp as llama

        return {
            "version": str(getattr(llama_cpp, "__version__", "")),
            "path": str(Path(llama_cpp.__file__).parent),
            "backends": self._ggml.registries(),
            "system_info": llama.llama_print_system_info().decode("utf-8", "replace"),
            "gpu_offload": bool(llama.llama_supports_gpu_offload()),
            "rpc": bool(llama.llama_supports_rpc()),
            "devices": [asdict(device) for device in self._ggml.devices()],
        }


def reach(endpoints: Sequence[str]) -> None:
    """Greet workers. Raises ProbeError: llama.cpp itself would wait for ever, or end this process."""
    from phitui.api import PhituiError, ask_workers

    try:
        for worker in ask_workers(endpoints):
            if worker.state != "ready":
                raise worker.refusal()
    except PhituiError as error:
        raise ProbeError(error.message, error.hint) from None


if __name__ == "__main__":
    sys.exit(main())
