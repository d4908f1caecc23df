"""Where the engine would be installed: system, Python environment, compilers and the libraries that a wheel expects.

Only files and PATH are looked at; nothing is started and nothing is loaded.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

Version = tuple[int, int]


@dataclass(frozen=True)
class Installer:
    """What installs into *this* environment. `shown` are the words for a person, `argv` the same for a process.

    `kind` is "pip" or "uv", which name some flags differently. `problem` is why it cannot install here.
    """

    kind: str
    shown: tuple[str, ...]
    argv: tuple[str, ...]
    problem: str = ""
    note: str = ""


@dataclass(frozen=True)
class Surroundings:
    """All that the install lines depend on. Versions are (0, 0) where unknown; paths are empty where not found.

    `cuda_runtime` is the newest libcudart with libcublas on the loader's path, `rocm_runtime` the major version of
    libamdhip64. `vulkan_headers` means headers and SPIR-V headers, all that building for Vulkan needs beside glslc.
    """

    system: str
    machine: str
    installer: Installer
    engine_here: bool = False
    glibc: Version = (0, 0)
    compiler: bool = True
    nvcc: str = ""
    nvcc_on_path: bool = False
    nvcc_version: Version = (0, 0)
    cublas: bool = True
    cuda_runtime: Version = (0, 0)
    rocm: str = ""
    rocm_runtime: int = 0
    glslc: bool = False
    vulkan_headers: bool = False
    vulkan_loader: bool = False
    oneapi: str = ""
    icpx: bool = False


@lru_cache(maxsize=1)
def here() -> Surroundings:
    """This machine and this Python."""
    libraries = loader_libraries()
    nvcc = find_nvcc()
    return Surroundings(
        platform.system(),
        platform.machine(),
        installer(),
        importlib.util.find_spec("llama_cpp") is not None,
        _pair(platform.libc_ver()[1]) if platform.libc_ver()[0] == "glibc" else (0, 0),
        has_compiler(),
        nvcc,
        shutil.which("nvcc") is not None,
        (0, 0),
        has_cublas(nvcc),
        cuda_runtime(libraries),
        find_rocm(),
        newest(libraries, "libamdhip64"),
        shutil.which("glslc") is not None,
        vulkan_headers(),
        any(name.startswith("libvulkan.so.1") for name in libraries) or platform.system() == "Windows",
        find_oneapi(),
        shutil.which("icpx") is not None,
    )


def installer() -> Installer:
    """pip if this environment has it, else uv. pipx and uv's tools are told apart: their environments are theirs."""
    prefix = Path(sys.prefix)
    python = sys.executable
    problem, note = "", ""
    if sys.prefix == sys.base_prefix and (Path(os.__file__).parent / "EXTERNALLY-MANAGED").exists():
        problem = "this Python belongs to the system, which forbids pip: install phitui into a venv, or with pipx"
    if (prefix / "pipx_metadata.json").exists() and shutil.which("pipx"):
        pipx = ("pipx", "runpip", prefix.name, "install")
        return Installer("pip", pipx, pipx, problem)
    if importlib.util.find_spec("pip") is not None:
        pip = shutil.which("pip")
        mine = pip is not None and Path(pip).parent == Path(python).parent
        shown = ("pip", "install") if mine else (python, "-m", "pip", "install")
        return Installer("pip", shown, (python, "-m", "pip", "install"), problem)
    if (prefix / "uv-receipt.toml").exists():
        note = "uv tool upgrade makes this environment anew: run the line again after it"
    if shutil.which("uv"):
        uv = ("uv", "pip", "install", "--python", python)
        return Installer("uv", uv, uv, problem, note)
    missing = f"this environment has no pip, and uv is not on PATH: {python} -m ensurepip"
    return Installer("pip", (python, "-m", "pip", "install"), (python, "-m", "pip", "install"), problem or missing)


def has_compiler() -> bool:
    """Whether C and C++ can be compiled. (CMake and Ninja are fetched by the build itself where they are missing.)"""
    if platform.system() == "Windows":
        return shutil.which("cl") is not None or bool(os.environ.get("VCINSTALLDIR"))
    return all(
        bool(os.environ.get(variable)) or any(shutil.which(name) for name in names)
        for variable, names in (("CC", ("cc", "gcc", "clang")), ("CXX", ("c++", "g++", "clang++")))
    )


def find_nvcc() -> str:
    """nvcc: on PATH, else where NVIDIA's installers put it."""
    found = shutil.which("nvcc")
    if found:
        return found
    roots = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda", "/opt/cuda"]
    return _first(Path(root) / "bin" / "nvcc" for root in roots if root)


def has_cublas(nvcc: str) -> bool:
    """Whether cuBLAS's headers are there, which come in a package of their own; Debian has them in /usr/include."""
    roots = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda", "/opt/cuda", "/usr"]
    roots += [str(Path(nvcc).resolve().parent.parent)] if nvcc else []
    folders = ("include", f"targets/{platform.machine()}-linux/include")
    return any((Path(root) / folder / "cublas_v2.h").exists() for root in roots if root for folder in folders)


def find_rocm() -> str:
    """ROCm's directory, if it has a compiler for GPUs."""
    roots = [os.environ.get("ROCM_PATH"), os.environ.get("HIP_PATH"), "/opt/rocm"]
    hipcc = shutil.which("hipcc")
    if hipcc:
        roots.append(str(Path(hipcc).resolve().parent.parent))
    return next((root for root in roots if root and (Path(root) / "bin" / "hipcc").exists()), "")


def find_oneapi() -> str:
    """The script that makes Intel's compilers known to a shell; empty if there is none."""
    roots = [os.environ.get("ONEAPI_ROOT"), "/opt/intel/oneapi", str(Path.home() / "intel" / "oneapi")]
    return _first(Path(root) / "setvars.sh" for root in roots if root)


def vulkan_headers() -> bool:
    """Whether vulkan.h and the SPIR-V headers' CMake files are at one of the usual places."""
    roots = [Path(root) for root in (os.environ.get("VULKAN_SDK"), "/usr", "/usr/local", "/opt/homebrew") if root]
    has_header = any((root / "include" / "vulkan" / "vulkan.h").exists() for root in roots)
    spirv = ("share/cmake/SPIRV-Headers", "lib/cmake/SPIRV-Headers")
    return has_header and any((root / place).is_dir() for root in roots for place in spirv)


def loader_folders() -> list[Path]:
    """Where the dynamic loader of Linux looks: LD_LIBRARY_PATH, ld.so.conf and the standard directories."""
    folders = [folder for folder in os.environ.get("LD_LIBRARY_PATH", "").split(":") if folder]
    for file in (Path("/etc/ld.so.conf"), *sorted(Path("/etc/ld.so.conf.d").glob("*.conf"))):
        try:
            lines = file.read_text(errors="replace").splitlines()
        except OSError:
            continue
        folders += [line.strip() for line in lines if line.startswith("/")]
    multiarch = f"/usr/lib/{platform.machine()}-linux-gnu"
    return [Path(folder) for folder in (*folders, multiarch, "/usr/lib64", "/lib64", "/usr/lib", "/usr/local/lib")]


def loader_libraries() -> frozenset[str]:
    """Names of the GPU libraries that the loader would find: libcudart.so.12, libvulkan.so.1, ..."""
    if platform.system() != "Linux":
        return frozenset()
    wanted = ("libcudart.so", "libcublas.so", "libamdhip64.so", "libvulkan.so")
    found: set[str] = set()
    for folder in dict.fromkeys(loader_folders()):
        for stem in wanted:
            for path in folder.glob(f"{stem}*"):
                found |= {path.name, path.resolve().name}
    return frozenset(found)


def cuda_runtime(libraries: Sequence[str] | frozenset[str]) -> Version:
    """The newest CUDA whose libcudart and libcublas are both there; its minor version is in the full file name."""
    best = (0, 0)
    for name in libraries:
        match = re.fullmatch(r"libcudart\.so\.(\d+)(?:\.(\d+))?(?:\..*)?", name)
        if match and any(other.startswith(f"libcublas.so.{match[1]}") for other in libraries):
            best = max(best, (int(match[1]), int(match[2] or 0)))
    return best


def newest(libraries: Sequence[str] | frozenset[str], stem: str) -> int:
    """The highest major version of a library, 0 if it is not there."""
    matches = (re.match(rf"{re.escape(stem)}\.so\.(\d+)", name) for name in libraries)
    return max((int(match[1]) for match in matches if match), default=0)


def _pair(text: str) -> Version:
    match = re.match(r"(\d+)\.(\d+)", text)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def _first(paths: Iterable[Path]) -> str:
    return next((str(path) for path in paths if path.exists()), "")
