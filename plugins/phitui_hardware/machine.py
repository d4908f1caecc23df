"""What the machine has, by whoever can tell: drivers' libraries, tools, the kernel's files. Each is optional and named.

Sources of one kind of hardware are asked at the same time, and their answer is kept until somebody asks anew.
"""

from __future__ import annotations

import importlib.util
import platform
import shutil
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from phitui_hardware import parsers, processors, surroundings, tools
from phitui_hardware.parsers import Card
from phitui_hardware.tools import Said

SYS = Path("/sys")
PROC = Path("/proc")
WSL_SMI = "/usr/lib/wsl/lib/nvidia-smi"
"""Where WSL keeps it, which is not on every PATH."""

ARC = ("56", "e2", "0b")
"""How the PCI device ids of Intel's cards with memory of their own begin (Alchemist, Battlemage, data centre)."""

_forgetters: list[Callable[[], None]] = []


def forget() -> None:
    """Ask everybody anew next time: cards do not come and go, but a person may have mended a driver."""
    for each in _forgetters:
        each()


@dataclass(frozen=True)
class Sight:
    """What the machine has of one kind. `source` names who says so; `trouble` is what stands in the way.

    `present` is None where nobody could tell. `nvcc` is the CUDA compiler's version where it was asked,
    `remark` what is worth knowing and no trouble.
    """

    cards: tuple[Card, ...] = ()
    present: bool | None = None
    source: str = ""
    trouble: str = ""
    nvcc: surroundings.Version = (0, 0)
    remark: str = ""


def remembered(look: Callable[[], Sight]) -> Callable[[], Sight]:
    """Keep the answer until `forget` is called: plans ask for devices many times a second."""
    kept = lru_cache(maxsize=1)(look)
    _forgetters.append(kept.cache_clear)
    return kept


def together(*questions: Callable[[], Said]) -> list[Said]:
    """The answers of several tools, asked at the same time."""
    with ThreadPoolExecutor(max_workers=len(questions)) as pool:
        return [future.result() for future in [pool.submit(question) for question in questions]]


def tool(*command: str) -> Callable[[], Said]:
    """A question to a tool."""
    return lambda: tools.run(command)


def ask_nvml() -> Said:
    """NVML through nvidia-ml-py, in a process of its own; "not found" where that is not installed."""
    if importlib.util.find_spec("pynvml") is None:
        return Said(found=False, problem="nvidia-ml-py is not installed")
    said = tools.run([sys.executable, "-P", "-m", "phitui_hardware.nvml"])
    return replace(said, problem=said.problem.replace(Path(sys.executable).name, "NVML", 1))


@remembered
def nvidia() -> Sight:
    """NVIDIA cards, by NVML, else by nvidia-smi, else by what the kernel shows."""
    nvcc = surroundings.find_nvcc()
    smi = "nvidia-smi" if shutil.which("nvidia-smi") or not Path(WSL_SMI).exists() else WSL_SMI
    library, listed, instances, compiler = together(
        ask_nvml,
        tool(smi, f"--query-gpu={parsers.NVIDIA_QUERY}", "--format=csv,noheader,nounits"),
        tool(smi, "-L"),
        tool(nvcc or "nvcc", "--version"),
    )
    if "not a valid field" in listed.output.lower():
        listed = tools.run([smi, f"--query-gpu={parsers.NVIDIA_OLD_QUERY}", "--format=csv,noheader,nounits"])
    version = parsers.version(compiler.output) if not compiler.problem else (0, 0)
    cards, error = parsers.nvml(library.output)
    if cards:
        return Sight(with_jetson(cards), True, "NVML", nvcc=version)
    cards = parsers.nvidia(listed.output) if not listed.problem else []
    if cards:
        mig = ", ".join(parsers.nvidia_instances(instances.output)) or "no instance"
        named = [replace(card, detail=card.detail.replace("MIG", f"MIG: {mig}")) for card in cards]
        return Sight(with_jetson(named), True, "nvidia-smi", nvcc=version)
    trouble = (
        parsers.nvidia_trouble(f"{listed.output}\n{error}") or listed.trouble or library.trouble or _first_line(listed)
    )
    return replace(unlisted_nvidia(trouble, listed.found), nvcc=version)


def unlisted_nvidia(trouble: str, has_tools: bool) -> Sight:
    """NVIDIA hardware that no driver lists: a Jetson, the driver's own files, or a card on the PCI bus.

    Where there is no such hardware, NVML without a driver is no trouble: nvidia-ml-py comes along with other packages.
    """
    board = jetson()
    if board is not None:
        return Sight((board,), True, "device tree", trouble)
    names = [
        text.partition("Model:")[2].partition("\n")[0].strip()
        for path in sorted(PROC.glob("driver/nvidia/gpus/*/information"))
        if (text := _read(path))
    ]
    release = parsers.version(_read(PROC / "driver/nvidia/version").partition("Kernel Module")[2])
    driver = f"{release[0]}.{release[1]}" if release[0] else ""
    if any(names):
        found = tuple(Card(name, detail=f"driver {driver}" if driver else "", driver=driver) for name in names if name)
        return Sight(found, True, "/proc/driver/nvidia", trouble)
    on_bus = pci_cards("10de")
    if on_bus:
        return Sight(
            tuple(on_bus),
            True,
            "PCI bus",
            trouble or "an NVIDIA card is on the PCI bus, but no NVIDIA driver runs: install it",
        )
    trouble = trouble if has_tools else ""
    return Sight(present=None if trouble else no_pci_card(), source="PCI bus", trouble=trouble)


def with_jetson(cards: Sequence[Card]) -> tuple[Card, ...]:
    """On a Jetson the driver tells no size: CPU and GPU share the RAM."""
    board = jetson()
    if board is None:
        return tuple(cards)
    return tuple(
        card if card.total else replace(board, name=board.name, detail=card.detail, target=card.target or board.target)
        for card in cards
    )


def jetson() -> Card | None:
    """The GPU of an NVIDIA Jetson board, by the device tree."""
    model = _read(PROC / "device-tree/model").strip("\x00\n ")
    if "jetson" not in model.lower() and "tegra" not in model.lower():
        return None
    import psutil

    memory = psutil.virtual_memory()
    target = "8.7" if "orin" in model.lower() else "7.2" if "xavier" in model.lower() else ""
    return Card(model, memory.total, memory.available, "shares the RAM", shared=True, target=target)


@remembered
def amd() -> Sight:
    """AMD cards, by the amdgpu driver's files, else rocm-smi and rocminfo; gfx names by the kernel, else rocminfo."""
    cards, on_bus = kernel_amd(), pci_cards("1002")
    if cards and all(card.target for card in cards):
        return Sight(tuple(cards), True, "amdgpu (sysfs)")
    if not cards and not on_bus and no_pci_card() is False and not shutil.which("rocm-smi"):
        return Sight(present=False, source="PCI bus")
    info, smi = together(tool("rocminfo"), tool("rocm-smi", "--showproductname", "--showmeminfo", "vram", "--json"))
    agents = parsers.rocminfo(info.output) if not info.problem else []
    trouble = smi.trouble or info.trouble
    if cards:
        return Sight(joined(cards, agents), True, "amdgpu (sysfs)" + (", rocminfo" if agents else ""))
    listed = parsers.rocm_smi(smi.output) if not smi.problem else []
    if listed:
        return Sight(joined(listed, agents), True, "rocm-smi")
    if agents:
        return Sight(tuple(agents), True, "rocminfo", trouble)
    if on_bus:
        idle = "an AMD GPU is on the PCI bus, but the amdgpu driver shows none"
        return Sight(tuple(on_bus), True, "PCI bus", trouble or idle)
    return Sight(present=None if trouble else no_pci_card(), source="PCI bus", trouble=trouble)


def kernel_amd() -> list[Card]:
    """The amdgpu driver's cards with their gfx names, where as many nodes of the compute driver name one."""
    cards = [card for folder in drm_folders() if (card := parsers.amdgpu_sysfs(texts(folder)))]
    nodes = sorted(SYS.glob("class/kfd/kfd/topology/nodes/*/properties"), key=lambda path: int(path.parent.name))
    targets = [target for path in nodes if (target := parsers.kfd_target(_read(path)))]
    return list(joined(cards, [Card("", target=target) for target in targets]))


def joined(cards: Sequence[Card], agents: Sequence[Card]) -> tuple[Card, ...]:
    """Cards with the gfx names and marketing names of as many agents, in the same order of the bus."""
    if len(cards) != len(agents):
        return tuple(cards)
    joined = []
    for card, agent in zip(cards, agents, strict=True):
        target = card.target or agent.target
        detail = ", ".join(part for part in (target if target not in card.detail else "", card.detail) if part)
        name = agent.name if agent.name and card.name.startswith("AMD GPU 0x") else card.name
        joined.append(replace(card, name=name, target=target, detail=detail))
    return tuple(joined)


@remembered
def vulkan() -> Sight:
    """Cards with a Vulkan driver, by vulkaninfo."""
    said = tools.run(["vulkaninfo", "--summary"])
    cards = tuple(parsers.vulkan(said.output)) if not said.problem else ()
    if not said.found or said.problem:
        return Sight(source="vulkaninfo", trouble=_vulkan_trouble(said))
    remark = (
        "only a software renderer (llvmpipe), slower than the CPU itself" if parsers.only_software(said.output) else ""
    )
    return Sight(cards, bool(cards), "vulkaninfo", remark=remark)


def _vulkan_trouble(said: Said) -> str:
    """A machine without any Vulkan driver is not in trouble, it has no Vulkan."""
    return (
        ""
        if "found no drivers" in said.output.lower() or "incompatible_driver" in said.output.lower()
        else said.trouble
    )


@remembered
def sycl() -> Sight:
    """Intel GPUs, by sycl-ls, else by the PCI bus."""
    said = tools.run(["sycl-ls"])
    cards = tuple(parsers.sycl(said.output)) if not said.problem else ()
    if cards:
        return Sight(cards, True, "sycl-ls")
    on_bus = tuple(pci_cards("8086"))
    if on_bus:
        return Sight(on_bus, True, "PCI bus", said.trouble)
    return Sight(present=None if said.trouble else no_pci_card(), source="PCI bus", trouble=said.trouble)


@remembered
def apple() -> Sight:
    """The GPU of a Mac: part of the chip, sharing its RAM."""
    if platform.system() != "Darwin":
        return Sight(present=False, source=platform.system())
    chip, _, ram = mac()
    shown = tools.run(["system_profiler", "SPDisplaysDataType", "-json"])
    cards = parsers.displays(shown.output) if not shown.problem else []
    if not cards:
        return Sight((Card(chip or "Mac", ram, 0, "unified memory", shared=True),), True, "sysctl", shown.trouble)
    unified = [
        card if card.total else replace(card, total=ram, detail=f"{card.detail}, unified memory".strip(", "))
        for card in cards
    ]
    return Sight(tuple(unified), True, "system_profiler")


@lru_cache(maxsize=1)
def mac_text() -> str:
    """What sysctl says of a Mac's processor."""
    keys = ["machdep.cpu.brand_string", "hw.memsize", "sysctl.proc_translated", "hw.optional"]
    said = tools.run(["sysctl", *keys])
    return said.output


def mac() -> tuple[str, tuple[str, ...], int]:
    """(chip, instruction sets, RAM) of a Mac."""
    return processors.mac_features(mac_text())


@lru_cache(maxsize=1)
def processor() -> tuple[str, tuple[str, ...], str]:
    """(CPU name, instruction sets, source)."""
    if platform.system() == "Darwin":
        return (*mac()[:2], "sysctl")
    text = _read(PROC / "cpuinfo")
    if not text:
        return platform.processor(), (), "platform"
    name, features = processors.cpuinfo(text)
    return name or _read(PROC / "device-tree/model").strip("\x00\n "), features, "/proc/cpuinfo"


def drm_folders() -> list[Path]:
    """The device directories of the kernel's graphics cards."""
    return sorted(SYS.glob("class/drm/card[0-9]*/device")) if (SYS / "class/drm").is_dir() else []


def texts(folder: Path) -> dict[str, str]:
    """The small text files of a sysfs directory that describe a card."""
    names = ("vendor", "device", "product_name", "mem_info_vram_total", "mem_info_vram_used", "mem_info_gtt_total")
    return {name: text for name in names if (text := _read(folder / name))}


def pci_cards(vendor: str) -> list[Card]:
    """Display controllers of a vendor (four hexadecimal digits) on the PCI bus; the bus tells no names."""
    titles = {"10de": "NVIDIA", "1002": "AMD", "8086": "Intel"}
    found = (parsers.pci_display(_read(path)) for path in sorted(SYS.glob("bus/pci/devices/*/uevent")))
    return [
        Card(f"{titles[vendor]} GPU (PCI {vendor}:{ids[1]})", shared=vendor == "8086" and not ids[1].startswith(ARC))
        for ids in found
        if ids and ids[0] == vendor
    ]


def no_pci_card() -> bool | None:
    """False where the PCI bus can be read (and, as the caller found, holds no such card), None where it cannot."""
    return False if next(SYS.glob("bus/pci/devices/*/uevent"), None) is not None else None


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _first_line(said: Said) -> str:
    """What a tool that ran well said instead of an answer we can read."""
    line = next((line.strip() for line in said.output.splitlines() if line.strip()), "")
    return f"nvidia-smi answered something unreadable: {line[:80]!r}" if said.found and line else ""
