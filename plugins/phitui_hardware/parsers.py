"""What the machine's own tools print, as data. Pure functions: garbled output gives fewer facts, never an exception."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

MIB = 1024 * 1024
MOST_BYTES = 1 << 50
"""More memory than this is a misreading."""


@dataclass(frozen=True)
class Card:
    """A GPU as the machine's tools see it; bytes, 0 where unknown. `detail` is its driver or architecture."""

    name: str
    total: int = 0
    free: int = 0
    detail: str = ""
    shared: bool = False


def sane(size: float) -> int:
    """`size` as bytes, 0 if it cannot be one."""
    return int(size) if 0 < size < MOST_BYTES else 0


NVIDIA_QUERY = "name,memory.total,memory.free,driver_version,compute_cap"
"""nvidia-smi --query-gpu=... --format=csv,noheader,nounits (MiB)."""


def nvidia(text: str) -> list[Card]:
    """Cards of nvidia-smi's CSV answer to NVIDIA_QUERY."""
    found = []
    for line in text.splitlines():
        row = [part.strip() for part in line.split(",")]
        if len(row) >= 4 and row[0]:
            total, free = (sane(_number(value) * MIB) for value in row[1:3])
            capability = f", compute {row[4]}" if len(row) > 4 and _number(row[4]) > 0 else ""
            if total:
                found.append(Card(row[0], total, min(free, total), f"driver {row[3]}{capability}"))
    return found


def nvidia_trouble(text: str) -> str:
    """Why nvidia-smi failed, in one sentence; empty if it says nothing we know."""
    lowered = text.lower()
    if "driver/library version mismatch" in lowered:
        return "the NVIDIA driver was updated and the kernel still runs the old one: restart the machine"
    if "couldn't communicate with the nvidia driver" in lowered:
        return "nvidia-smi is installed, but the NVIDIA kernel driver is not running"
    if "no devices were found" in lowered:
        return "the NVIDIA driver runs and finds no card"
    return ""


def rocm_smi(text: str) -> list[Card]:
    """Cards of `rocm-smi --showproductname --showmeminfo vram --json`."""
    try:
        document = json.loads(text[text.index("{") :])
    except ValueError:
        return []
    if not isinstance(document, dict):
        return []
    found = []
    for key, values in sorted(document.items()):
        if key.startswith("card") and isinstance(values, dict):
            total = sane(_number(_first(values, "VRAM Total Memory (B)")))
            used = sane(_number(_first(values, "VRAM Total Used Memory (B)")))
            name = _first(values, "Card Series", "Card series", "Device Name", "Card Model", "Card model") or key
            if total:
                found.append(Card(name, total, max(0, total - used), _first(values, "GFX Version")))
    return found


def amdgpu_sysfs(files: dict[str, str]) -> Card | None:
    """The card of one /sys/class/drm/card*/device directory, from the texts of its files; None if it is not AMD's."""
    if files.get("vendor", "").strip().lower() != "0x1002":
        return None
    total = sane(_number(files.get("mem_info_vram_total", "")))
    used = sane(_number(files.get("mem_info_vram_used", "")))
    shared = sane(_number(files.get("mem_info_gtt_total", "")))
    name = files.get("product_name", "").strip() or f"AMD GPU {files.get('device', '').strip()}"
    apu = 0 < total <= 4096 * MIB and shared > total
    detail = f"shares {shared // MIB} MiB of RAM (GTT)" if apu else ""
    return Card(name, total, max(0, total - used), detail, shared=apu) if total else None


def vulkan(text: str) -> list[Card]:
    """Cards of `vulkaninfo --summary`; software renderers are left out. Vulkan does not say how much memory is free."""
    found = []
    for block in re.split(r"^GPU\d+:\s*$", text, flags=re.MULTILINE)[1:]:
        fields = dict(re.findall(r"^\s*(\w+)\s*=\s*(.+?)\s*$", block, re.MULTILINE))
        kind = fields.get("deviceType", "")
        if fields.get("deviceName") and "CPU" not in kind:
            detail = " ".join(filter(None, (fields.get("driverName"), fields.get("driverInfo"))))
            found.append(Card(fields["deviceName"], detail=detail, shared="INTEGRATED" in kind))
    return found


def sycl(text: str) -> list[Card]:
    """GPUs of `sycl-ls`; one physical card may be listed by several drivers, Level Zero's line is taken first."""
    lines = re.findall(r"^\[(\w+):gpu[^\]]*\](?:\[[^\]]*\])?\s*(.+)$", text, re.MULTILINE)
    lines.sort(key=lambda line: not line[0].endswith("level_zero"))
    found: dict[str, Card] = {}
    for driver, rest in lines:
        name = re.sub(r"\s+\S*\d+\.\d+\S*\s*\[.*$", "", rest.split(",", 1)[-1]).strip(" ,")
        name = re.sub(r"\s+(OpenCL \d.*|\d+\.\d+.*|1\.\d.*)$", "", name).strip()
        if name and name not in found:
            found[name] = Card(name, detail=driver)
    return list(found.values())


def cpuinfo(text: str) -> tuple[str, tuple[str, ...]]:
    """(model name, instruction sets that llama.cpp can use) of /proc/cpuinfo, x86 or ARM."""
    fields: dict[str, str] = {}
    for line in text.splitlines():
        key, found, value = line.partition(":")
        if found:
            fields.setdefault(key.strip().lower(), value.strip())
    flags = set((fields.get("flags") or fields.get("features") or "").split())
    name = fields.get("model name") or fields.get("hardware") or fields.get("cpu implementer", "")
    return name, tuple(dict.fromkeys(title for flag, title in CPU_FLAGS if flag in flags))


def mac_features(text: str) -> tuple[str, tuple[str, ...], int]:
    """(chip, instruction sets, RAM bytes) of `sysctl machdep.cpu.brand_string hw.memsize hw.optional`."""
    fields = dict(re.findall(r"^([\w.]+):\s*(.*)$", text, re.MULTILINE))
    known = [title for key, title in MAC_FLAGS if fields.get(key) == "1"]
    return (
        fields.get("machdep.cpu.brand_string", ""),
        tuple(dict.fromkeys(known)),
        sane(_number(fields.get("hw.memsize", ""))),
    )


CPU_FLAGS = (
    ("sse3", "SSE3"),
    ("pni", "SSE3"),
    ("ssse3", "SSSE3"),
    ("avx", "AVX"),
    ("f16c", "F16C"),
    ("fma", "FMA"),
    ("bmi2", "BMI2"),
    ("avx2", "AVX2"),
    ("avx_vnni", "AVX_VNNI"),
    ("avx512f", "AVX512"),
    ("avx512vbmi", "AVX512_VBMI"),
    ("avx512_vnni", "AVX512_VNNI"),
    ("avx512_bf16", "AVX512_BF16"),
    ("amx_int8", "AMX_INT8"),
    ("asimd", "NEON"),
    ("asimdhp", "FP16_VA"),
    ("asimddp", "DOTPROD"),
    ("i8mm", "MATMUL_INT8"),
    ("sve", "SVE"),
    ("sme", "SME"),
)
"""(flag of /proc/cpuinfo, llama.cpp's name of the feature)."""

MAC_FLAGS = (
    ("hw.optional.AdvSIMD", "NEON"),
    ("hw.optional.neon", "NEON"),
    ("hw.optional.arm.FEAT_DotProd", "DOTPROD"),
    ("hw.optional.arm.FEAT_FP16", "FP16_VA"),
    ("hw.optional.arm.FEAT_I8MM", "MATMUL_INT8"),
    ("hw.optional.arm.FEAT_SME", "SME"),
    ("hw.optional.avx2_0", "AVX2"),
    ("hw.optional.avx512f", "AVX512"),
)


def compiled_features(system_info: str) -> dict[str, tuple[str, ...]]:
    """Features per backend of llama_print_system_info: {"CPU": ("SSE3", "AVX", ...)}."""
    found: dict[str, list[str]] = {}
    backend = ""
    for part in system_info.split("|"):
        name, _, rest = part.rpartition(" : ")
        if name:
            backend = name.strip()
        key, equals, value = rest.partition("=")
        if backend and equals and value.strip() not in ("", "0"):
            found.setdefault(backend, []).append(key.strip())
    return {name: tuple(keys) for name, keys in found.items()}


def _number(text: Any) -> float:
    match = re.search(r"-?\d+(?:\.\d+)?", str(text))
    return float(match[0]) if match else 0.0


def _first(values: dict[str, Any], *names: str) -> str:
    return next((str(values[name]).strip() for name in names if values.get(name)), "")
