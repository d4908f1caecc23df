"""One offer per kind of hardware: what the engine's device registry lists, beside what the machine has."""

from __future__ import annotations

import importlib
import os
import platform
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from phitui.api import (
    Availability,
    BackendReport,
    Bandwidth,
    Device,
    EngineReport,
    EngineSettings,
    MemoryBuffer,
    PhituiError,
    Unavailable,
)
from phitui_hardware import child, install, machine, parsers, processors, surroundings


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
        sight = self.look()
        engine, _ = ask_engine()
        compiled = any(name in engine.get("backends", ()) for name in self.registries)
        devices = tuple(
            device(row, self.name) for row in engine.get("devices", ()) if row["registry"] in self.registries
        )
        targets = [card.target for card in sight.cards if card.target]
        driver = next((card.driver for card in sight.cards if card.driver), "")
        place = replace(surroundings.here(), nvcc_version=sight.nvcc)
        found = install.ways(self.name, place, targets, driver)
        warnings = [sight.trouble] if sight.trouble else []
        if compiled and not devices:
            warnings.append(f"the engine has {self.title}, but it lists no device: is its driver running?")
        return BackendReport(
            self.name,
            devices,
            compiled,
            True if devices else sight.present,
            found[0].line if found else "",
            tuple(_facts(sight)),
            tuple(warnings),
            ways=found,
            seen=seen(sight.cards),
            integrated=bool(sight.cards) and all(card.shared for card in sight.cards),
        )

    def bandwidth(self) -> Sequence[Bandwidth]:
        """Measure the devices that the engine lists, one after the other."""
        from phitui_hardware.bandwidth import measure_device

        engine, _ = ask_engine()
        rows = [row for row in engine.get("devices", ()) if row["registry"] in self.registries]
        return [measure_device(device(row, self.name)) for row in rows]


def _facts(sight: machine.Sight) -> Iterator[tuple[str, str]]:
    for card in sight.cards:
        yield f"{card.name} ({sight.source})", card_text(card)
    if sight.remark:
        yield sight.source, sight.remark
    if any(sight.nvcc):
        yield "CUDA toolkit (nvcc)", "{}.{}".format(*sight.nvcc)


class CpuBackend:
    """The processor and the RAM. Also asks the engine what a load would allocate, and measures the RAM's speed."""

    name = "cpu"
    title = "CPU"

    def available(self) -> Availability:
        """Always: every machine has one."""
        return Availability()

    def probe(self) -> BackendReport:
        import psutil

        engine, trouble = ask_engine()
        title, features, source = machine.processor()
        cores = psutil.cpu_count(logical=False) or psutil.cpu_count() or 1
        compiled = processors.compiled_features(engine.get("system_info", "")).get("CPU", ())
        warnings = []
        if missing := processors.unused(features, compiled):
            ready = "; it is a ready-made wheel" if engine and ready_made(engine["path"]) else ""
            warnings.append(f"the engine was built without {', '.join(missing)}, which this CPU has{ready}")
        if platform.system() == "Darwin" and processors.translated(machine.mac_text()):
            warnings.append(
                "this Python is made for Intel and runs translated (Rosetta): install one for Apple silicon"
            )
        facts = (
            (f"processor ({source})", title or platform.machine()),
            ("cores", f"{cores} cores, {psutil.cpu_count() or cores} threads"),
            ("instruction sets", " ".join(features) or "unknown"),
        )
        found = install.ways(self.name, surroundings.here())
        old = install.old_flags(os.environ.get("CMAKE_ARGS", ""))
        return BackendReport(
            self.name,
            (ram(title),),
            bool(engine),
            True,
            found[0].line if found else "",
            facts,
            (*warnings, *old),
            engine_report(engine, trouble),
            found,
            title or platform.machine(),
        )

    def bandwidth(self) -> Sequence[Bandwidth]:
        """Measure how fast all cores together read the RAM."""
        from phitui_hardware.bandwidth import measure

        return [measure(ram(machine.processor()[0]))]

    def workers(self, rpc: Sequence[str]) -> Sequence[Device]:
        """The devices of RPC workers, as the engine lists them."""
        require_engine()
        return [device(row, "rpc") for row in child.engine(tuple(rpc))["devices"] if row["registry"].startswith("RPC")]

    def measure(self, model: Path, settings: EngineSettings) -> Sequence[MemoryBuffer]:
        """The buffers of a load, from a warm child process that has only the model's header."""
        require_engine()
        return child.measure(model, settings)

    def release(self) -> None:
        """End the child processes, and forget what was found: the next question looks at everything anew."""
        child.close_all()
        child.installed.cache_clear()
        importlib.invalidate_caches()
        surroundings.here.cache_clear()
        machine.forget()
        _trouble.clear()


def ram(title: str) -> Device:
    """The RAM as a device."""
    import psutil

    memory = psutil.virtual_memory()
    return Device("CPU", "cpu", "cpu", title or "CPU", memory.total, memory.available, "measured")


def ready_made(folder: str) -> bool:
    """Whether the llama_cpp in `folder` came as a wheel for many machines, by the tag in its metadata."""
    tags = [
        line
        for file in Path(folder).parent.glob("llama_cpp_python-*.dist-info/WHEEL")
        for line in file.read_text(errors="replace").splitlines()
        if line.startswith("Tag:")
    ]
    return any("linux" in tag and "-linux" not in tag for tag in tags)


def require_engine() -> None:
    """Raise Unavailable with the install line where llama-cpp-python is missing."""
    if not child.installed():
        raise Unavailable("llama-cpp-python is not installed", install.install_line("cpu", platform.system()))


def ask_engine() -> tuple[Mapping[str, Any], str]:
    """What the engine says of itself, and why it says nothing."""
    if not child.installed():
        return {}, ""
    with _asking:
        if _trouble and time.monotonic() - _trouble[0][0] < child.FRESH_SECONDS:
            return {}, _trouble[0][1]
        try:
            return child.engine(), ""
        except PhituiError as error:
            _trouble[:] = [(time.monotonic(), error.message)]
            return {}, error.message


_asking = threading.Lock()
_trouble: list[tuple[float, str]] = []
"""When the engine last failed, and how: it may have taken half a minute, and every backend asks."""


def engine_report(engine: Mapping[str, Any], trouble: str = "") -> EngineReport | None:
    """The engine as the doctor shows it; None where there is none. `trouble` is why one that is here does not work."""
    if not engine and trouble:
        return EngineReport("llama-cpp-python", installed_version(), "", (), {}, False, False, trouble)
    if not engine:
        return None
    return EngineReport(
        "llama-cpp-python",
        engine["version"],
        engine["path"],
        tuple(engine["backends"]),
        processors.compiled_features(engine["system_info"]),
        engine["gpu_offload"],
        engine["rpc"],
    )


def installed_version() -> str:
    """The version of llama-cpp-python by its metadata, without importing it."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("llama-cpp-python")
    except PackageNotFoundError:
        return ""


def device(row: Mapping[str, Any], backend: str) -> Device:
    """A device of ggml's registry."""
    kind: Any = "remote" if backend == "rpc" else row["kind"] if row["kind"] in ("cpu", "gpu", "igpu") else "accel"
    return Device(row["name"], backend, kind, row["description"], row["total"], row["free"])


def card_text(card: parsers.Card) -> str:
    """What is known of one card, as people read it."""
    size = f"{card.total / 1024**3:.1f} GiB" if card.total else ""
    shared = "shares RAM" if card.shared and "share" not in card.detail and "unified" not in card.detail else ""
    return ", ".join(part for part in (size, card.detail, shared) if part)


def seen(cards: Sequence[parsers.Card]) -> str:
    """All cards in one line: equal ones are counted."""
    texts = [", ".join(part for part in (card.name, card_text(card)) if part) for card in cards]
    counts = {text: texts.count(text) for text in texts}
    return "; ".join(f"{count} × {text}" if count > 1 else text for text, count in counts.items())


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
