"""Which ready-made wheels the llama-cpp-python project publishes, and which of them fits here.

Facts of llama-cpp-python 0.3.36, from its README ("Supported Backends") and its workflows build-wheels-*.yaml: since
0.3.20 wheels are tagged py3-none, so one serves every Python; those for CUDA and ROCm are made on Ubuntu 22.04
(glibc 2.35) for x86_64 and leave NVIDIA's and AMD's runtime libraries out; none has RPC.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from phitui_hardware.surroundings import Surroundings, Version

INDEX = "https://abetlen.github.io/llama-cpp-python/whl"
"""The project's own index; each kind of wheel has a folder in it."""

CUDA = {
    "Linux": ((11, 8), (12, 1), (12, 2), (12, 3), (12, 4), (12, 5), (13, 0), (13, 2)),
    "Windows": ((11, 8), (12, 4), (12, 5), (13, 0), (13, 2)),
}
CAPABILITIES = {11: ((6, 0), (8, 9)), 12: ((6, 0), (99, 0)), 13: ((7, 5), (99, 0))}
"""CUDA major version: lowest and highest compute capability that its wheels run on."""

DRIVERS = {11: 450, 12: 525, 13: 580}
"""CUDA major version: the lowest driver that runs its programs (NVIDIA's table of minor version compatibility)."""

ROCM = ("rocm72", 7)
"""Folder, and the major version of the ROCm libraries that its wheels want."""
_RADEON = ("gfx1030", "gfx1100", "gfx1101", "gfx1102", "gfx1150", "gfx1151", "gfx1200", "gfx1201")
ROCM_TARGETS = {"Linux": ("gfx908", "gfx90a", "gfx942", *_RADEON), "Windows": ("gfx1031", "gfx1032", *_RADEON)}
UBUNTU_GLIBC = (2, 35)
OLD_GLIBC = (2, 17)


@dataclass(frozen=True)
class Wheel:
    """A folder of the index, what is missing here for its wheels to work, and what to know of them."""

    folder: str
    needs: tuple[str, ...] = ()
    note: str = ""

    @property
    def url(self) -> str:
        return f"{INDEX}/{self.folder}"


def wheel(backend: str, place: Surroundings, targets: Sequence[str] = (), driver: str = "") -> Wheel | None:
    """The wheel for a backend here; None where the project publishes none that fits.

    `targets` are the cards' compute capabilities ("8.9") or gfx names, `driver` is NVIDIA's version.
    """
    if backend == "cuda":
        return _cuda(place, [_capability(target) for target in targets], driver)
    if backend == "rocm":
        return _rocm(place, targets)
    if backend == "vulkan":
        return _vulkan(place)
    if backend == "metal":
        return Wheel("metal") if (place.system, place.machine) == ("Darwin", "arm64") else None
    return _cpu(place) if backend == "cpu" else None


def _cuda(place: Surroundings, capabilities: Sequence[Version], driver: str) -> Wheel | None:
    if not _x86(place) or place.system not in CUDA or not _glibc(place, UBUNTU_GLIBC):
        return None
    release = driver_release(driver)
    majors = [
        major
        for major, (lowest, highest) in CAPABILITIES.items()
        if all(lowest <= capability <= highest for capability in capabilities) and release >= DRIVERS[major]
    ]
    runtime = place.cuda_runtime if place.cuda_runtime[0] in majors else (0, 0)
    major = runtime[0] or max(majors, default=0)
    fitting = [version for version in CUDA[place.system] if version[0] == major]
    fitting = [version for version in fitting if not runtime[0] or version <= runtime] or fitting[:1]
    if not fitting:
        return None
    folder = "cu{}{}".format(*fitting[-1])
    if runtime[0] or place.system == "Windows":
        return Wheel(folder)
    return Wheel(
        folder,
        (f"CUDA {major}'s libraries libcudart and libcublas, which the wheel does not bring (NVIDIA's cuda-toolkit)",),
    )


def driver_release(driver: str) -> int:
    """560 of "560.35.03", 0 where unknown."""
    first = driver.partition(".")[0]
    return int(first) if first.isdigit() else 0


def _rocm(place: Surroundings, targets: Sequence[str]) -> Wheel | None:
    known = ROCM_TARGETS.get(place.system, ())
    if not _x86(place) or not targets or any(target not in known for target in targets):
        return None
    if place.system == "Windows":
        return Wheel("hip-radeon")
    folder, major = ROCM
    if not _glibc(place, UBUNTU_GLIBC) or place.rocm_runtime not in (0, major):
        return None
    return Wheel(folder, () if place.rocm_runtime else (f"ROCm {major}'s libraries, which the wheel does not bring",))


def _vulkan(place: Surroundings) -> Wheel | None:
    if not _x86(place) or place.system not in ("Linux", "Windows") or not _glibc(place, OLD_GLIBC):
        return None
    return Wheel("vulkan", () if place.vulkan_loader else ("the Vulkan loader libvulkan.so.1 (Ubuntu: libvulkan1)",))


def _cpu(place: Surroundings) -> Wheel | None:
    fits = {
        "Linux": place.machine in ("x86_64", "aarch64"),
        "Darwin": place.machine in ("x86_64", "arm64"),
        "Windows": place.machine in ("AMD64", "x86_64"),
    }
    return Wheel("cpu") if fits.get(place.system) else None


def _x86(place: Surroundings) -> bool:
    return place.machine in ("x86_64", "AMD64")


def _glibc(place: Surroundings, least: Version) -> bool:
    return place.system != "Linux" or place.glibc >= least


def _capability(text: str) -> Version:
    major, _, minor = text.partition(".")
    return (int(major), int(minor)) if major.isdigit() and minor.isdigit() else (0, 0)
