"""Asks llama.cpp what a load would allocate, without allocating it (`no_alloc`). Only in the probe's child process.

The model is built from its header alone and kept; a change of context, KV type or batch then costs only a new context.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from phitui.api import EngineSettings, context_parameters, model_parameters
from phitui_hardware.native import Ggml, LogCapture, breakdown

KEPT_MODELS = 4
"""Header-only models kept loaded: a slider goes to and fro between a few numbers of layers."""

OFFLOADING = ("gpu", "igpu")
"""Devices with memory of their own; every other buffer is host memory."""

_COMPUTE = re.compile(r"(\S+)\s+compute buffer size\s*=\s*([\d.]+) MiB")
_COPIES = re.compile(r"sched copies = (\d+)")
_OUTPUT = re.compile(r"(\S+)\s+output buffer size\s*=\s*([\d.]+) MiB")
MIB = 1024 * 1024


class MeasureError(Exception):
    """llama.cpp refused; the text is its last error line."""


class Meter:
    """Measures loads. Not thread safe: llama.cpp's logger is global."""

    def __init__(self, ggml: Ggml) -> None:
        import llama_cpp.llama_cpp as llama

        self._llama = llama
        self._ggml = ggml
        self._log = LogCapture(llama)
        self._breakdown = breakdown(llama)
        offloading = [device for device in ggml.devices() if device.kind in OFFLOADING]
        self._devices = sorted(offloading, key=lambda device: not device.registry.startswith("RPC"))  # workers first
        self._models: OrderedDict[tuple[Any, ...], Any] = OrderedDict()

    def measure(self, request: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Rows of {"name", "device", "compute"} and, where llama.cpp's own accounting can be read, "weights" and "kv".

        `request` has path, modified (a number that changes with the file) and settings (EngineSettings as a mapping).
        Raises MeasureError.
        """
        settings = settings_of(request["settings"])
        astray = settings.flash_attention is False or len(self._devices) > 1
        if astray and settings.layers and self._devices and not settings.kv_offload:
            # ggml_backend_sched_reserve_size forgets what the graph asked for: a real load keeps attention in RAM
            raise MeasureError("its dry run is wrong about attention in RAM")
        model = self._model(str(request["path"]), float(request["modified"]), settings)
        return self._buffers(model, settings)

    def _buffers(self, model: Any, settings: EngineSettings) -> list[dict[str, Any]]:
        with self._context(model, settings) as (context, lines):
            logged, outputs = logged_buffers(lines, _COMPUTE), logged_buffers(lines, _OUTPUT)
            accounted = self._accounted(context) if self._breakdown else []
        if accounted and agree(accounted, logged):
            rows = accounted + [row | {"weights": 0, "kv": 0} for row in outputs]
        else:
            rows = logged + outputs
        owned = [row | {"device": self._owner(row["name"])} for row in rows]
        copies = pipeline_copies(lines)
        if copies > 1:
            tokens = min(settings.ubatch, settings.batch, settings.context)
            self._correct(owned, copies * tokens * self._llama.llama_model_n_embd(model) * 4)
        return owned

    def _correct(self, rows: Sequence[dict[str, Any]], excess: int) -> None:
        """Take away what the dry run counts too much when devices work as a pipeline.

        It forgets that a layer's first norm belongs to the layer's device, and so has one hidden state per copy on
        every device but the first that a real load does not allocate; not on one that has the output layer alone,
        whose norm belongs to no layer (measured; tests/plugins/test_hardware_accuracy.py holds it down).
        """
        working = {row["device"] for row in rows if row["device"] and row["compute"] > excess}
        first = next((device.name for device in self._devices if device.name in working), "")
        for row in rows:
            if row["device"] in working - {first} and row.get("kv", 1):
                row["compute"] -= excess

    def _model(self, path: str, modified: float, settings: EngineSettings) -> Any:
        placing = (settings.layers, settings.n_cpu_moe, settings.split_mode, settings.tensor_split, settings.main_gpu)
        key = (path, modified, *placing)
        if key in self._models:
            self._models.move_to_end(key)
            return self._models[key]
        # no_alloc works with no other load mode; how weights come into memory changes no buffer's size
        params, _kept = model_parameters(self._llama, replace(settings, mmap=False, mlock=False))
        params.no_alloc = True
        self._log.take()
        model = self._llama.llama_model_load_from_file(path.encode(), params)
        if not model:
            raise MeasureError(why(self._log.take()))
        while len(self._models) >= KEPT_MODELS:
            self._llama.llama_model_free(self._models.popitem(last=False)[1])
        self._models[key] = model
        return model

    @contextmanager
    def _context(self, model: Any, settings: EngineSettings) -> Iterator[tuple[Any, list[str]]]:
        params = context_parameters(self._llama, settings, settings.context)
        self._log.take()
        context = self._llama.llama_init_from_model(model, params)
        lines = self._log.take()
        if not context:
            raise MeasureError(why(lines))
        try:
            yield context, lines
        finally:
            self._llama.llama_free(context)

    def _owner(self, buffer: str) -> str:
        """The device whose memory a buffer type is (MTL0, MTL0_Private); "" for host memory (CUDA_Host, CPU_REPACK)."""
        for device in self._devices:
            if buffer == device.buffer or buffer.startswith(f"{device.name}_"):
                return device.name
        return ""

    def _accounted(self, context: Any) -> list[dict[str, Any]]:
        assert self._breakdown is not None
        return [
            {
                "name": (self._ggml.buffer_name(kind) or b"").decode("utf-8", "replace"),
                "weights": weights,
                "kv": kv,
                "compute": compute,
            }
            for kind, weights, kv, compute in self._breakdown(context)
        ]


def settings_of(values: Mapping[str, Any]) -> EngineSettings:
    """EngineSettings that came through JSON."""
    known: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    return EngineSettings(**known)


def logged_buffers(lines: Sequence[str], pattern: re.Pattern[str]) -> list[dict[str, Any]]:
    """Buffers from the log, which has them right to 0.01 MiB even where nothing is allocated."""
    found: dict[str, int] = {}
    for line in lines:
        if match := pattern.search(line):
            found[match[1]] = found.get(match[1], 0) + round(float(match[2]) * MIB)
    return [{"name": name, "compute": size} for name, size in found.items()]


def pipeline_copies(lines: Sequence[str]) -> int:
    """How many copies of its inputs the scheduler keeps: more than one where devices work as a pipeline."""
    found = [match for line in lines if (match := _COPIES.search(line))]
    return int(found[-1][1]) if found else 1


def agree(accounted: Sequence[Mapping[str, Any]], logged: Sequence[Mapping[str, Any]]) -> bool:
    """Whether llama.cpp's accounting, read through a foreign layout, says what its log says."""
    wanted = {row["name"]: row["compute"] for row in logged}
    found = {row["name"]: row["compute"] for row in accounted}
    near = MIB // 50
    return all(found.keys()) and all(abs(found.get(name, -MIB) - size) <= near for name, size in wanted.items())


def why(lines: Sequence[str]) -> str:
    """The line of a log that says what went wrong."""
    words = ("error", "failed", "invalid", "unknown", "requires", "unsupported")
    telling = [line for line in lines if any(word in line.lower() for word in words)]
    line = (telling or [line for line in lines if line.strip()] or ["it gave no reason"])[0]
    return line.split(": ", 1)[-1].strip()
