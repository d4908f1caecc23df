"""The exact commands that install llama-cpp-python for a kind of hardware, and what to say about old flags."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from phitui.api import InstallWay
from phitui_hardware import surroundings
from phitui_hardware.surroundings import Surroundings
from phitui_hardware.wheels import DRIVERS, Wheel, driver_release, wheel

PACKAGE = "llama-cpp-python"
REQUIREMENT = "llama-cpp-python>=0.3.36"
"""The same as in phitui's extra `llama`: what phitui's own native calls were written for."""

WHEEL_NOTE = "ready-made: seconds, not minutes; for any CPU of its kind, without RPC"
BUILD_NOTE = "compiles llama.cpp for this machine, with RPC: minutes"

OLD_FLAGS = {
    "LLAMA_CUBLAS": "GGML_CUDA",
    "LLAMA_CUDA": "GGML_CUDA",
    "LLAMA_METAL": "GGML_METAL",
    "LLAMA_HIPBLAS": "GGML_HIP",
    "LLAMA_HIP": "GGML_HIP",
    "GGML_HIPBLAS": "GGML_HIP",
    "GGML_CUBLAS": "GGML_CUDA",
    "LLAMA_VULKAN": "GGML_VULKAN",
    "LLAMA_KOMPUTE": "GGML_VULKAN",
    "LLAMA_SYCL": "GGML_SYCL",
    "LLAMA_BLAS": "GGML_BLAS",
    "LLAMA_OPENBLAS": "GGML_BLAS",
    "LLAMA_RPC": "GGML_RPC",
    "LLAMA_NATIVE": "GGML_NATIVE",
    "LLAMA_AVX2": "GGML_AVX2",
    "LLAMA_AVX512": "GGML_AVX512",
}
"""Flags of earlier llama.cpp versions that today's build ignores, and their present names."""


@dataclass(frozen=True)
class Flags:
    """What CMake needs for a backend, and where it can be built at all."""

    cmake: tuple[str, ...]
    systems: tuple[str, ...]


RPC = "-DGGML_RPC=ON"
"""Always built in: it costs nothing and lets layers go to other machines."""
FLAGS: Mapping[str, Flags] = {
    "cpu": Flags((), ("Linux", "Darwin", "Windows")),
    "cuda": Flags(("-DGGML_CUDA=ON",), ("Linux", "Windows")),
    "rocm": Flags(("-DGGML_HIP=ON",), ("Linux", "Windows")),
    "metal": Flags(("-DGGML_METAL=ON",), ("Darwin",)),
    "vulkan": Flags(("-DGGML_VULKAN=ON",), ("Linux", "Windows", "Darwin")),
    "sycl": Flags(("-DGGML_SYCL=ON",), ("Linux", "Windows")),
}

LEAST_NVCC = {"8.7": (11, 4), "8.9": (11, 8), "9.0": (11, 8), "10.0": (12, 8), "10.3": (12, 9), "12.0": (12, 8)}
"""The first CUDA toolkit that compiles for a compute capability (NVIDIA's release notes)."""
LAST_OLD_NVCC = 12
"""The last CUDA toolkit that compiles for cards before compute capability 7.5."""


def ways(backend: str, place: Surroundings, targets: Sequence[str] = (), driver: str = "") -> tuple[InstallWay, ...]:
    """The ways to give the engine this backend, the best first; none where it cannot be had on this system.

    `targets` are compute capabilities ("8.9") or gfx names of the cards, `driver` is NVIDIA's version. What needs
    nothing more comes first, and of two such the ready-made wheel: except for a CPU whose engine is already here, where
    only a build can bring what the wheel leaves out.
    """
    if place.system not in FLAGS[backend].systems:
        return ()
    found = [_build(backend, place, targets, driver)]
    ready = wheel(backend, place, targets, driver)
    if ready is not None and not (backend == "cpu" and place.engine_here):
        found.insert(0, _wheel(ready, place))
    return tuple(sorted(found, key=lambda way: bool(way.needs)))


def install_line(backend: str, system: str) -> str:
    """The command that builds the engine for this backend here; empty where it cannot be built."""
    place = replace(surroundings.here(), system=system)
    found = [way.line for way in ways(backend, place) if way.kind == "build"]
    return found[0] if found else ""


def _wheel(ready: Wheel, place: Surroundings) -> InstallWay:
    words = (*_pip_flags(place), "--only-binary", PACKAGE, "--extra-index-url", ready.url, REQUIREMENT)
    return _way("wheel", words, {}, place, (), ready.needs, ready.note or WHEEL_NOTE)


def _build(backend: str, place: Surroundings, targets: Sequence[str], driver: str) -> InstallWay:
    cmake = [*FLAGS[backend].cmake, RPC]
    environment: dict[str, str] = {}
    needs = [] if place.compiler else [_compiler_hint(place.system)]
    before: tuple[str, ...] = ()
    if backend == "cuda":
        cmake += _cuda_flags(place, targets)
        needs += _cuda_needs(place, targets, driver)
    elif backend == "rocm":
        cmake += [f"-DGPU_TARGETS={';'.join(sorted(set(targets)))}"] if targets else []
        environment = _rocm_environment(place)
        needs += [] if place.rocm else ["ROCm with hipcc (AMD's rocm package)"]
    elif backend == "vulkan":
        needs += _vulkan_needs(place)
    elif backend == "sycl":
        compilers = ("icx", "icx") if place.system == "Windows" else ("icx", "icpx")
        cmake += [f"-DCMAKE_C_COMPILER={compilers[0]}", f"-DCMAKE_CXX_COMPILER={compilers[1]}"]
        needs = [] if place.oneapi or place.icpx else ["Intel oneAPI with icx and MKL (Intel's oneAPI Base Toolkit)"]
        before = (
            () if place.icpx or place.system == "Windows" else (".", place.oneapi or "/opt/intel/oneapi/setvars.sh")
        )
    environment["CMAKE_ARGS"] = shlex.join(cmake) if any(" " in flag for flag in cmake) else " ".join(cmake)
    words = (*_pip_flags(place), "--no-binary", PACKAGE, REQUIREMENT)
    note = BUILD_NOTE + ("; afterwards start phitui, too, where setvars.sh was read" if backend == "sycl" else "")
    return _way("build", words, environment, place, before, needs, note)


def _pip_flags(place: Surroundings) -> tuple[str, ...]:
    """pip reuses a cached wheel whatever CMAKE_ARGS says, hence no cache. Where the engine is here already it must be
    replaced even by the same version; then all that it depends on is here too, and --no-deps leaves NumPy and the rest
    as they are."""
    uv = place.installer.kind == "uv"
    flags = ("--no-cache" if uv else "--no-cache-dir",)
    if not place.engine_here:
        return flags
    return (*flags, *(("--reinstall-package", PACKAGE) if uv else ("--force-reinstall",)), "--no-deps")


def _way(
    kind: str,
    words: Sequence[str],
    environment: Mapping[str, str],
    place: Surroundings,
    before: Sequence[str],
    needs: Sequence[str],
    note: str,
) -> InstallWay:
    tool = place.installer
    shown = (*tool.shown, *words)
    if place.system == "Windows":
        line = "; ".join([*(f"$env:{k}={powershell(v, True)}" for k, v in environment.items()), powershell_line(shown)])
    else:
        line = " ".join([*(f"{key}={posix(value)}" for key, value in environment.items()), shlex.join(shown)])
        line = f"{shlex.join(before)} && {line}" if before else line
    argv = ("bash", "-c", line) if before else (*tool.argv, *words)
    all_needs = (*((tool.problem,) if tool.problem else ()), *needs)
    note = "; ".join(filter(None, (note, tool.note)))
    return InstallWay(
        "wheel" if kind == "wheel" else "build",
        line,
        argv,
        () if before else tuple(environment.items()),
        all_needs,
        note,
    )


def _cuda_flags(place: Surroundings, targets: Sequence[str]) -> list[str]:
    """Compiling for the cards that are here alone takes a fraction of the time; nvcc is named where PATH lacks it."""
    numbers = sorted({int(target.replace(".", "")) for target in targets if target.replace(".", "").isdigit()})
    flags = [f"-DCMAKE_CUDA_ARCHITECTURES={';'.join(map(str, numbers))}"] if numbers else []
    return flags + ([f"-DCMAKE_CUDA_COMPILER={place.nvcc}"] if place.nvcc and not place.nvcc_on_path else [])


def _cuda_needs(place: Surroundings, targets: Sequence[str], driver: str) -> list[str]:
    if not place.nvcc:
        return ["the CUDA toolkit with nvcc (NVIDIA's cuda-toolkit package)"]
    major, minor = place.nvcc_version
    needs = [] if place.cublas else ["cuBLAS with its headers (NVIDIA's libcublas-dev package)"]
    if not major:
        return needs
    for target in sorted(set(targets)):
        least = LEAST_NVCC.get(target, (0, 0))
        if place.nvcc_version < least:
            needs.append(
                f"CUDA {least[0]}.{least[1]} or newer for compute capability {target}: nvcc here is {major}.{minor}"
            )
        if major > LAST_OLD_NVCC and _old_card(target):
            needs.append(f"CUDA {LAST_OLD_NVCC}: version {major} no longer compiles for compute capability {target}")
    if 0 < driver_release(driver) < DRIVERS.get(major, 0):
        needs.append(f"an NVIDIA driver from {DRIVERS[major]} on for CUDA {major}.{minor}: driver here is {driver}")
    return needs


def _old_card(target: str) -> bool:
    major, _, minor = target.partition(".")
    return major.isdigit() and minor.isdigit() and (int(major), int(minor)) < (7, 5)


def _rocm_environment(place: Surroundings) -> dict[str, str]:
    """llama.cpp's build wants ROCm's own clang; on Windows the HIP SDK's installer sets what is needed."""
    if place.system == "Windows" or not place.rocm:
        return {}
    return {"HIPCXX": f"{place.rocm}/llvm/bin/clang", "HIP_PATH": place.rocm}


def _vulkan_needs(place: Surroundings) -> list[str]:
    needs = [] if place.glslc else ["glslc (Ubuntu: glslc; elsewhere the Vulkan SDK)"]
    if not place.vulkan_headers:
        needs.append("the Vulkan and SPIR-V headers (Ubuntu: libvulkan-dev spirv-headers)")
    return needs


def _compiler_hint(system: str) -> str:
    return {
        "Darwin": "a C++ compiler: xcode-select --install",
        "Windows": "a C++ compiler: Visual Studio's Build Tools, and their developer shell",
    }.get(system, "a C++ compiler (Ubuntu: apt install build-essential)")


def posix(value: str) -> str:
    """A value of an assignment in a POSIX shell, in double quotes where that is safe, since people read it."""
    return shlex.quote(value) if any(sign in value for sign in '"$`\\!') else f'"{value}"'


def powershell(word: str, always: bool = False) -> str:
    """A word in PowerShell: in single quotes, which expand nothing, where it needs any."""
    plain = word and all(sign.isalnum() or sign in "-_.:/\\=" for sign in word)
    return word if plain and not always else "'" + word.replace("'", "''") + "'"


def powershell_line(words: Sequence[str]) -> str:
    """A command in PowerShell, which needs & before a quoted program."""
    quoted = [powershell(word) for word in words]
    return " ".join(["&", *quoted] if quoted[0].startswith("'") else quoted)


def old_flags(cmake_args: str) -> list[str]:
    """One sentence for each flag in CMAKE_ARGS that llama.cpp no longer knows."""
    given = dict(word[2:].replace(":BOOL", "").partition("=")[::2] for word in cmake_args.split() if word[:2] == "-D")
    return [
        f"CMAKE_ARGS has -D{name}, which llama.cpp no longer knows: today it is -D{OLD_FLAGS[name]}={value or 'ON'}"
        for name, value in given.items()
        if name in OLD_FLAGS
    ]
