"""Asks the machine's own tools, each optional and given two seconds, and reads what the kernel tells."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from phitui_hardware import parsers
from phitui_hardware.parsers import Card

TOOL_SECONDS = 2.0


@dataclass(frozen=True)
class Said:
    """What a tool said. `problem` is why it said nothing: not found, hung, or failed."""

    output: str = ""
    problem: str = ""
    found: bool = True


@dataclass(frozen=True)
class Sight:
    """What the machine has of one kind. `source` names who says so; `trouble` is what stands in the way."""

    cards: tuple[Card, ...] = ()
    present: bool | None = None
    source: str = ""
    trouble: str = ""


def run(command: Sequence[str], seconds: float = TOOL_SECONDS) -> Said:
    """Run a tool, found on PATH. Never raises, never waits longer than `seconds`."""
    path = shutil.which(command[0])
    if path is None:
        return Said(found=False, problem=f"{command[0]} is not installed")
    environment = {**os.environ, "LC_ALL": "C", "LANG": "C"}
    try:
        done = subprocess.run(
            [path, *command[1:]],
            capture_output=True,
            timeout=seconds,
            stdin=subprocess.DEVNULL,
            env=environment,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Said(problem=f"{command[0]} gave no answer within {seconds:g} s")
    except OSError as error:
        return Said(problem=f"{command[0]}: {error.strerror}")
    output = done.stdout.decode("utf-8", "replace")
    if done.returncode != 0:
        complaint = (done.stderr.decode("utf-8", "replace") + output).strip()
        return Said(complaint, f"{command[0]} failed with exit code {done.returncode}")
    return Said(output)


@lru_cache(maxsize=1)
def nvidia() -> Sight:
    """NVIDIA cards, by nvidia-smi."""
    said = run(["nvidia-smi", f"--query-gpu={parsers.NVIDIA_QUERY}", "--format=csv,noheader,nounits"])
    if not said.found:
        present = True if Path("/proc/driver/nvidia/version").exists() else None
        return Sight(present=present, source="/proc/driver/nvidia" if present else "", trouble="")
    if said.problem:
        return Sight(source="nvidia-smi", trouble=parsers.nvidia_trouble(said.output) or said.problem)
    cards = tuple(parsers.nvidia(said.output))
    return Sight(cards, bool(cards), "nvidia-smi", "" if cards else parsers.nvidia_trouble(said.output))


@lru_cache(maxsize=1)
def amd() -> Sight:
    """AMD cards, by the amdgpu driver's files, else by rocm-smi."""
    cards = tuple(card for folder in drm_folders() if (card := parsers.amdgpu_sysfs(texts(folder))))
    if cards:
        return Sight(cards, True, "amdgpu (sysfs)")
    said = run(["rocm-smi", "--showproductname", "--showmeminfo", "vram", "--json"])
    if not said.found:
        return Sight(present=False if platform.system() == "Linux" else None, source="sysfs")
    cards = tuple(parsers.rocm_smi(said.output))
    return Sight(cards, bool(cards) or None, "rocm-smi", said.problem)


@lru_cache(maxsize=1)
def vulkan() -> Sight:
    """Cards with a Vulkan driver, by vulkaninfo."""
    said = run(["vulkaninfo", "--summary"])
    cards = tuple(parsers.vulkan(said.output))
    return Sight(cards, bool(cards) if said.found and not said.problem else None, "vulkaninfo", _trouble(said))


@lru_cache(maxsize=1)
def sycl() -> Sight:
    """Intel GPUs, by sycl-ls."""
    said = run(["sycl-ls"])
    cards = tuple(parsers.sycl(said.output))
    return Sight(cards, bool(cards) if said.found and not said.problem else None, "sycl-ls", _trouble(said))


@lru_cache(maxsize=1)
def apple() -> Sight:
    """The GPU of a Mac: part of the chip, sharing its RAM."""
    if platform.system() != "Darwin":
        return Sight(present=False, source=platform.system())
    chip, _, ram = mac()
    return Sight((Card(chip or "Mac", ram, 0, "unified memory", shared=True),), True, "sysctl")


@lru_cache(maxsize=1)
def mac() -> tuple[str, tuple[str, ...], int]:
    """(chip, instruction sets, RAM) of a Mac."""
    return parsers.mac_features(run(["sysctl", "machdep.cpu.brand_string", "hw.memsize", "hw.optional"]).output)


@lru_cache(maxsize=1)
def processor() -> tuple[str, tuple[str, ...], str]:
    """(CPU name, instruction sets, source)."""
    if platform.system() == "Darwin":
        return (*mac()[:2], "sysctl")
    try:
        return (*parsers.cpuinfo(Path("/proc/cpuinfo").read_text(errors="replace")), "/proc/cpuinfo")
    except OSError:
        return platform.processor(), (), "platform"


def drm_folders() -> list[Path]:
    """The device directories of the kernel's graphics cards."""
    return sorted(Path("/sys/class/drm").glob("card[0-9]*/device")) if Path("/sys/class/drm").is_dir() else []


def texts(folder: Path) -> dict[str, str]:
    """The small text files of a sysfs directory that describe a card."""
    names = ("vendor", "device", "product_name", "mem_info_vram_total", "mem_info_vram_used", "mem_info_gtt_total")
    found = {}
    for name in names:
        try:
            found[name] = (folder / name).read_text(errors="replace")
        except OSError:
            continue
    return found


def _trouble(said: Said) -> str:
    return said.problem if said.found else ""
