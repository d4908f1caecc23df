"""The exact command that installs llama-cpp-python for a kind of hardware, and what to say about old flags."""

from __future__ import annotations

import importlib.util
import shlex
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

PIP = "pip install --no-cache-dir --force-reinstall"
WHY_NO_CACHE = (
    "pip reuses a cached wheel whatever CMAKE_ARGS says; --no-cache-dir --force-reinstall builds what is asked"
)

OLD_FLAGS = {
    "LLAMA_CUBLAS": "GGML_CUDA",
    "LLAMA_CUDA": "GGML_CUDA",
    "LLAMA_METAL": "GGML_METAL",
    "LLAMA_HIPBLAS": "GGML_HIP",
    "LLAMA_HIP": "GGML_HIP",
    "GGML_HIPBLAS": "GGML_HIP",
    "LLAMA_VULKAN": "GGML_VULKAN",
    "LLAMA_SYCL": "GGML_SYCL",
    "LLAMA_BLAS": "GGML_BLAS",
    "LLAMA_RPC": "GGML_RPC",
    "LLAMA_NATIVE": "GGML_NATIVE",
}
"""Flags of earlier llama.cpp versions that today's build ignores, and their present names."""


@dataclass(frozen=True)
class Flags:
    """What CMake needs for a backend, and where it can be built at all."""

    cmake: str
    systems: tuple[str, ...]
    needs: str


FLAGS: Mapping[str, Flags] = {
    "cpu": Flags("-DGGML_RPC=ON", ("Linux", "Darwin", "Windows"), "a C++ compiler and CMake"),
    "cuda": Flags("-DGGML_CUDA=ON -DGGML_RPC=ON", ("Linux", "Windows"), "the CUDA toolkit (nvcc)"),
    "rocm": Flags("-DGGML_HIP=ON -DGGML_RPC=ON", ("Linux", "Windows"), "ROCm with hipcc"),
    "metal": Flags("-DGGML_METAL=ON -DGGML_RPC=ON", ("Darwin",), "the Xcode command line tools"),
    "vulkan": Flags("-DGGML_VULKAN=ON -DGGML_RPC=ON", ("Linux", "Windows", "Darwin"), "the Vulkan SDK (glslc)"),
    "sycl": Flags(
        "-DGGML_SYCL=ON -DGGML_RPC=ON -DCMAKE_C_COMPILER=icx -DCMAKE_CXX_COMPILER=icpx",
        ("Linux", "Windows"),
        "Intel oneAPI (source /opt/intel/oneapi/setvars.sh first)",
    ),
}
"""RPC is always built in: it costs nothing and lets layers go to other machines."""


def install_line(backend: str, system: str, targets: str = "") -> str:
    """The command for this operating system ("Linux", "Darwin", "Windows"); empty where the backend cannot be built.

    `targets` are GPU architectures for ROCm ("gfx1100"); without them the build takes those of the machine.
    """
    flags = FLAGS[backend]
    if system not in flags.systems:
        return ""
    cmake = flags.cmake + (f" -DGPU_TARGETS={targets}" if backend == "rocm" and targets else "")
    pip = f"{installer()} llama-cpp-python"
    if system == "Windows":
        cmake = cmake.replace("CMAKE_CXX_COMPILER=icpx", "CMAKE_CXX_COMPILER=icx")
        return f'$env:CMAKE_ARGS="{cmake}"; {pip}'
    return f'CMAKE_ARGS="{cmake}" {pip}'


@lru_cache(maxsize=1)
def installer() -> str:
    """The command that installs into *this* environment, without its cache: pip if it is this one's, else uv."""
    pip = shutil.which("pip")
    if pip and Path(pip).parent == Path(sys.executable).parent:
        return PIP
    if importlib.util.find_spec("pip") is not None:
        return f"{shlex.quote(sys.executable)} -m {PIP}"
    if shutil.which("uv"):
        return f"uv pip install --python {shlex.quote(sys.executable)} --no-cache --reinstall-package llama-cpp-python"
    return PIP


def old_flags(cmake_args: str) -> list[str]:
    """One sentence for each flag in CMAKE_ARGS that llama.cpp no longer knows."""
    names = [word[2:].split("=")[0].split(":")[0] for word in cmake_args.split() if word.startswith("-D")]
    return [
        f"CMAKE_ARGS has -D{name}, which llama.cpp no longer knows: today it is -D{OLD_FLAGS[name]}=ON"
        for name in names
        if name in OLD_FLAGS
    ]
