"""Where ggml's RPC library is, without loading it."""

from __future__ import annotations

import os
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

INSTALL = 'CMAKE_ARGS="-DGGML_RPC=ON" pip install --no-cache-dir --force-reinstall llama-cpp-python'
"""For the CPU alone; phitui doctor prints the line with this machine's GPU in it."""


@lru_cache(maxsize=1)
def folder() -> Path | None:
    """The directory of llama-cpp-python's shared libraries; None where it is not installed."""
    moved = os.environ.get("LLAMA_CPP_LIB_PATH")
    if moved:
        return Path(moved)
    spec = find_spec("llama_cpp")
    return Path(spec.origin).parent / "lib" if spec and spec.origin else None


@lru_cache(maxsize=1)
def has_rpc() -> bool:
    """Whether it was built with -DGGML_RPC=ON."""
    where = folder()
    return where is not None and any(where.glob("*ggml-rpc*"))


def linked(name: str, where: Path) -> Path:
    """The file of a library that libllama links: any other copy of it would have a device registry of its own."""
    for pattern in (f"lib{name}.so.[0-9]*", f"lib{name}.[0-9]*.dylib", f"lib{name}.so", f"lib{name}.dylib"):
        found = sorted(where.glob(pattern), key=lambda path: len(path.name))
        if found:
            return found[0]
    raise FileNotFoundError(f"{name} is missing in {where}")
