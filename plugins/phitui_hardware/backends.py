"""One offer per kind of hardware: what the engine's device registry lists, beside what the machine has."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from phitui.api import (
    Availability,
    BackendReport,
    Device,
    EngineReport,
    EngineSettings,
    MemoryBuffer,
    PhituiError,
    TensorType,
    Unavailable,
)
from phitui_hardware import child, install, machine, parsers


@dataclass(frozen=True)
class HardwareBackend:
    """A GPU backend. `registries` are the names ggml registers it under; `look` asks the machine's own tools."""

    name: str
    title: str
    registries: tuple[str, ...]
    look: Callable[[], machine.Sight]

    def available(self) -> Availability:
        """Always: the report itself says what is there and what is missing."""
        return Availability()

    def probe(self) -> BackendReport:
        engine, trouble = ask_engine()
        sight = self.look()
        compiled = any(name in engine.get("backends", ()) for name in self.registries)
        devices = tuple(
            device(row, self.name) for row in engine.get("devices", ()) if row["registry"] in self.registries
        )
        warnings = [text for text in (trouble, sight.trouble) if text]
        if compiled and not devices:
            warnings.append(f"the engine has {self.title}, but it lists no device")
        return BackendReport(
            self.name,
            devices,
            compiled,
            True if devices else sight.present,
            install.install_line(self.name, platform.system(), self._targets(sight)),
            tuple((f"{card.name} ({sight.source})", card_text(card)) for card in sight.cards),
            tuple(warnings),
        )

    def _targets(self, sight: machine.Sight) -> str:
        return ";".join(sorted({card.detail for card in sight.cards if card.detail.startswith("gfx")}))


class CpuBackend:
    """The processor and the RAM. Also asks the engine what a load would allocate."""

    name = "cpu"
    title = "CPU"

    def available(self) -> Availability:
        """Always: every machine has one."""
        return Availability()

    def probe(self) -> BackendReport:
        import psutil

        engine, trouble = ask_engine()
        title, features, source = machine.processor()
        memory = psutil.virtual_memory()
        compiled = parsers.compiled_features(engine.get("system_info", "")).get("CPU", ())
        cores = psutil.cpu_count(logical=False) or psutil.cpu_count() or 1
        missing = [name for name in features if name not in compiled] if compiled else []
        warnings = [trouble] if trouble else []
        if missing:
            warnings.append(f"the engine was built without {', '.join(missing)}, which this CPU has")
        facts = (
            (f"processor ({source})", title or platform.machine()),
            ("cores", f"{cores} cores, {psutil.cpu_count() or cores} threads"),
            ("instruction sets", " ".join(features) or "unknown"),
            ("about the install lines", install.WHY_NO_CACHE),
        )
        ram = Device("CPU", self.name, "cpu", title or "CPU", memory.total, memory.available, "measured")
        line = install.install_line(self.name, platform.system())
        old = install.old_flags(os.environ.get("CMAKE_ARGS", ""))
        return BackendReport(
            self.name, (ram,), bool(engine), True, line, facts, (*warnings, *old), engine_report(engine)
        )

    def workers(self, rpc: Sequence[str]) -> Sequence[Device]:
        """The devices of RPC workers, as the engine lists them."""
        require_engine()
        return [device(row, "rpc") for row in child.engine(tuple(rpc))["devices"] if row["registry"].startswith("RPC")]

    def measure(self, model: Path, settings: EngineSettings) -> Sequence[MemoryBuffer]:
        """The buffers of a load, from a warm child process that has only the model's header."""
        require_engine()
        question = {
            "op": "measure",
            "path": str(model),
            "modified": model.stat().st_mtime,
            "layers": settings.layers,
            "context": settings.context,
            "batch": settings.batch,
            "ubatch": settings.ubatch,
            "kv_type": int(TensorType[settings.kv_type.upper()]),
            "flash_attention": settings.flash_attention,
        }
        rows = child.child(settings.rpc).ask(question)["buffers"]
        return [
            MemoryBuffer(row["name"], row["device"], row["compute"], row.get("weights"), row.get("kv")) for row in rows
        ]

    def release(self) -> None:
        """End the child processes."""
        child.close_all()


def require_engine() -> None:
    """Raise Unavailable with the install line where llama-cpp-python is missing."""
    if not child.installed():
        raise Unavailable("llama-cpp-python is not installed", install.install_line("cpu", platform.system()))


def ask_engine() -> tuple[Mapping[str, Any], str]:
    """What the engine says of itself, and why it says nothing."""
    if not child.installed():
        return {}, ""
    try:
        return child.engine(), ""
    except PhituiError as error:
        return {}, error.message


def engine_report(engine: Mapping[str, Any]) -> EngineReport | None:
    """The engine as the doctor shows it; None where there is none."""
    if not engine:
        return None
    return EngineReport(
        "llama-cpp-python",
        engine["version"],
        engine["path"],
        tuple(engine["backends"]),
        parsers.compiled_features(engine["system_info"]),
        engine["gpu_offload"],
        engine["rpc"],
    )


def device(row: Mapping[str, Any], backend: str) -> Device:
    """A device of ggml's registry."""
    kind: Any = "remote" if backend == "rpc" else row["kind"] if row["kind"] in ("cpu", "gpu", "igpu") else "accel"
    return Device(row["name"], backend, kind, row["description"], row["total"], row["free"])


def card_text(card: parsers.Card) -> str:
    """One card as people read it."""
    size = f"{card.total / 1024**3:.1f} GiB" if card.total else ""
    return ", ".join(part for part in (size, card.detail, "shares RAM" if card.shared else "") if part)


def backends() -> list[Any]:
    """The offers, the CPU first."""
    return [
        CpuBackend(),
        HardwareBackend("cuda", "CUDA", ("CUDA",), machine.nvidia),
        HardwareBackend("rocm", "ROCm", ("ROCm", "HIP"), machine.amd),
        HardwareBackend("metal", "Metal", ("MTL", "Metal"), machine.apple),
        HardwareBackend("vulkan", "Vulkan", ("Vulkan",), machine.vulkan),
        HardwareBackend("sycl", "SYCL", ("SYCL",), machine.sycl),
    ]
