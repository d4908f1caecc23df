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
    """A GPU as the machine's tools see it; bytes, 0 where unknown.

    `detail` is for people (driver, architecture); `target` is what a compiler wants: a compute capability ("8.9") or
    a gfx name. `driver` is its version.
    """

    name: str
    total: int = 0
    free: int = 0
    detail: str = ""
    shared: bool = False
    target: str = ""
    driver: str = ""


def sane(size: float) -> int:
    """`size` as bytes, 0 if it cannot be one."""
    return int(size) if 0 < size < MOST_BYTES else 0


NVIDIA_QUERY = "name,memory.total,memory.free,driver_version,compute_cap,mig.mode.current"
NVIDIA_OLD_QUERY = "name,memory.total,memory.free,driver_version"
"""nvidia-smi --query-gpu=... --format=csv,noheader,nounits (MiB); drivers before 470 refuse the last two fields."""


def nvidia(text: str) -> list[Card]:
    """Cards of nvidia-smi's CSV answer to either query. A size that cannot be is 0 (a Jetson says [N/A])."""
    found = []
    for line in text.splitlines():
        row = [part.strip() for part in line.split(",")]
        if len(row) < 4 or not row[0] or not re.match(r"\d+\.\d+", row[3]):
            continue
        total, free = (sane(number(value) * MIB) for value in row[1:3])
        capability = row[4] if len(row) > 4 and re.fullmatch(r"\d{1,2}\.\d", row[4]) else ""
        detail = f"driver {row[3]}" + (f", compute {capability}" if capability else "")
        if len(row) > 5 and row[5] == "Enabled":
            detail += ", MIG"
        found.append(Card(row[0], total, min(free, total), detail, target=capability, driver=row[3]))
    return found


def nvidia_instances(text: str) -> list[str]:
    """The MIG instances of `nvidia-smi -L`: ["3g.40gb", ...]."""
    return re.findall(r"^\s+MIG\s+(\S+)\s+Device\s+\d+:", text, re.MULTILINE)


NVIDIA_TROUBLES = (
    (
        "driver/library version mismatch",
        "the NVIDIA driver was updated and the kernel still runs the old one: restart the machine",
    ),
    (
        "couldn't communicate with the nvidia driver",
        "nvidia-smi is installed, but the NVIDIA kernel driver is not running",
    ),
    (
        "gpu access blocked by the operating system",
        "Windows keeps the NVIDIA card from this WSL: install the driver on Windows only, none in WSL, and run "
        "wsl --shutdown",
    ),
    ("no devices were found", "the NVIDIA driver runs and finds no card"),
    ("gpu is lost", "the NVIDIA card no longer answers its driver: restart the machine"),
    ("insufficient permissions", "this account may not use the NVIDIA card: is it in the group video?"),
    (
        "failed to initialize nvml: unknown error",
        "the NVIDIA card was taken from this container: restart the container",
    ),
    (
        "nvml shared library not found",
        "the NVIDIA driver's library (libnvidia-ml) is not here: install the NVIDIA driver",
    ),
)
"""(what nvidia-smi or NVML says, in lower case; what it means and what to do)."""


def nvidia_trouble(text: str) -> str:
    """Why the NVIDIA driver gave no card, in one sentence; empty if it says nothing we know."""
    lowered = text.lower()
    return next((meaning for said, meaning in NVIDIA_TROUBLES if said in lowered), "")


def nvml(text: str) -> tuple[list[Card], str]:
    """(cards, error) of the JSON that phitui_hardware.nvml prints."""
    document = _json(text)
    error = document.get("error")
    cards = []
    driver = str(document.get("driver") or "")
    cuda = str(document.get("cuda") or "")
    rows = document.get("cards")
    for row in rows if isinstance(rows, list) else []:
        if not isinstance(row, dict) or not row.get("name"):
            continue
        total, free = sane(number(row.get("total"))), sane(number(row.get("free")))
        target = str(row.get("compute") or "")
        parts = [f"driver {driver}" + (f" (CUDA {cuda})" if cuda else "")] if driver else []
        parts += [f"compute {target}"] if target else []
        parts += (
            [f"MIG: {', '.join(map(str, row['mig'])) or 'no instance'}"] if isinstance(row.get("mig"), list) else []
        )
        cards.append(Card(str(row["name"]), total, min(free, total), ", ".join(parts), target=target, driver=driver))
    return cards, str(error) if error else ""


def rocm_smi(text: str) -> list[Card]:
    """Cards of `rocm-smi --showproductname --showmeminfo vram --json`."""
    found = []
    for key, values in sorted(_json(text).items()):
        if key.startswith("card") and isinstance(values, dict):
            total = sane(number(_first(values, "VRAM Total Memory (B)")))
            used = sane(number(_first(values, "VRAM Total Used Memory (B)")))
            name = _first(values, "Card Series", "Card series", "Device Name", "Card Model", "Card model") or key
            target = _gfx(_first(values, "GFX Version"))
            if total:
                found.append(Card(name, total, max(0, total - used), target, target=target))
    return found


def rocminfo(text: str) -> list[Card]:
    """GPU agents of `rocminfo`: marketing name, gfx name, and the size of the first global memory pool."""
    found = []
    for agent in re.split(r"^Agent \d+\s*$", text, flags=re.MULTILINE)[1:]:
        fields: dict[str, str] = {}
        for key, value in re.findall(r"^\s*([A-Z][\w ]*):\s+(.+?)\s*$", agent, re.MULTILINE):
            fields.setdefault(key, value)
        target = _gfx(fields.get("Name", ""))
        if fields.get("Device Type") == "GPU" and target:
            size = sane(number(fields.get("Size", "")) * 1024)
            found.append(Card(fields.get("Marketing Name") or target, size, 0, target, target=target))
    return found


def kfd_target(text: str) -> str:
    """The gfx name in a /sys/class/kfd/kfd/topology/nodes/*/properties; "" for a CPU's node.

    gfx_target_version is major * 10000 + minor * 100 + stepping, the stepping written in hexadecimal: 90010 is gfx90a.
    """
    match = re.search(r"^gfx_target_version (\d{1,7})$", text, re.MULTILINE)
    version = int(match[1]) if match else 0
    return f"gfx{version // 10000}{version // 100 % 100:x}{version % 100:x}" if version else ""


def amdgpu_sysfs(files: dict[str, str]) -> Card | None:
    """The card of one /sys/class/drm/card*/device directory, from the texts of its files; None if it is not AMD's."""
    if files.get("vendor", "").strip().lower() != "0x1002":
        return None
    total = sane(number(files.get("mem_info_vram_total", "")))
    used = sane(number(files.get("mem_info_vram_used", "")))
    shared = sane(number(files.get("mem_info_gtt_total", "")))
    name = files.get("product_name", "").strip() or f"AMD GPU {files.get('device', '').strip()}"
    apu = 0 < total <= 4096 * MIB and shared > total
    detail = f"shares {shared // MIB} MiB of RAM (GTT)" if apu else ""
    return Card(name, total, max(0, total - used), detail, shared=apu) if total else None


def vulkan(text: str) -> list[Card]:
    """Cards of `vulkaninfo --summary`; software renderers are left out. Vulkan does not say how much memory is free."""
    found: dict[str, Card] = {}
    for block in re.split(r"^GPU\d+:\s*$", text, flags=re.MULTILINE)[1:]:
        fields = dict(re.findall(r"^\s*(\w+)\s*=\s*(.+?)\s*$", block, re.MULTILINE))
        kind, name = fields.get("deviceType", ""), fields.get("deviceName", "")
        if name and "CPU" not in kind and "llvmpipe" not in name:
            detail = " ".join(filter(None, (fields.get("driverName"), fields.get("driverInfo"))))
            found.setdefault(name, Card(name, detail=detail, shared="INTEGRATED" in kind))
    return list(found.values())


def only_software(text: str) -> bool:
    """Whether `vulkaninfo --summary` lists a software renderer and nothing else."""
    return "PHYSICAL_DEVICE_TYPE_CPU" in text and not vulkan(text)


def sycl(text: str) -> list[Card]:
    """GPUs of `sycl-ls`; one physical card may be listed by several drivers, Level Zero's line is taken first."""
    lines = re.findall(r"^\[(\w+):gpu[^\]]*\](?:\[[^\]]*\])?\s*(.+)$", text, re.MULTILINE)
    lines.sort(key=lambda line: not line[0].endswith("level_zero"))
    found: dict[str, Card] = {}
    for driver, rest in lines:
        name = re.sub(r"\s+\S*\d+\.\d+\S*\s*\[.*$", "", rest.split(",", 1)[-1]).strip(" ,")
        name = re.sub(r"\s+(OpenCL \d.*|\d+\.\d+.*|1\.\d.*)$", "", name).strip()
        if name and name not in found:
            found[name] = Card(name, detail="Level Zero" if driver.endswith("level_zero") else driver)
    return list(found.values())


def displays(text: str) -> list[Card]:
    """GPUs of `system_profiler SPDisplaysDataType -json`, on a Mac. An Apple chip shares all RAM: no size."""
    rows = _json(text).get("SPDisplaysDataType")
    found = []
    for row in rows if isinstance(rows, list) else []:
        if not isinstance(row, dict) or not (name := _first(row, "sppci_model", "_name")):
            continue
        vram = _first(row, "spdisplays_vram")
        size = sane(number(vram) * MIB * (1024 if "GB" in vram else 1))
        metal = _first(row, "spdisplays_mtlgpufamilysupport", "spdisplays_metal").removeprefix("spdisplays_")
        cores = _first(row, "sppci_cores")
        version = re.fullmatch(r"metal(\d+)", metal)
        parts = (f"{cores} cores" if cores else "", f"Metal {version[1]}" if version else "")
        found.append(Card(name, size, 0, ", ".join(filter(None, parts)), shared=not size))
    return found


def pci_display(text: str) -> tuple[str, str] | None:
    """(vendor, device) of a PCI device's `uevent` text if it is a display controller or 3D accelerator, else None."""
    fields = dict(re.findall(r"^(\w+)=(.*)$", text, re.MULTILINE))
    vendor, _, device = fields.get("PCI_ID", "").lower().partition(":")
    is_display = re.fullmatch(r"0?3\d{4}|120000", fields.get("PCI_CLASS", "").lower())
    return (vendor, device) if is_display and vendor and device else None


def version(text: str) -> tuple[int, int]:
    """The first MAJOR.MINOR in a text (`nvcc --version` says "release 12.4"); (0, 0) if there is none."""
    match = re.search(r"release (\d{1,4})\.(\d{1,4})", text) or re.search(r"(\d{1,4})\.(\d{1,4})", text)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def number(text: Any) -> float:
    """The first number in a text, 0 if there is none."""
    match = re.search(r"-?\d{1,30}(?:\.\d{1,30})?", str(text))
    return float(match[0]) if match else 0.0


def _gfx(text: str) -> str:
    match = re.search(r"\bgfx[0-9a-f]{3,5}\b", text)
    return match[0] if match else ""


def _json(text: str) -> dict[str, Any]:
    """The JSON object in a text, which may have warnings before it; {} if there is none."""
    try:
        document = json.loads(text[text.index("{") :])
    except (ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


def _first(values: dict[str, Any], *names: str) -> str:
    return next((str(values[name]).strip() for name in names if values.get(name)), "")
