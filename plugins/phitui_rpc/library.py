"""Where ggml's RPC library is, without loading it."""

from __future__ import annotations

from functools import lru_cache

from phitui.api import library_folder

INSTALL = 'CMAKE_ARGS="-DGGML_RPC=ON" pip install --no-cache-dir --force-reinstall llama-cpp-python'
"""For the CPU alone; phitui doctor prints the line with this machine's GPU in it."""


@lru_cache(maxsize=1)
def has_rpc() -> bool:
    """Whether it was built with -DGGML_RPC=ON."""
    where = library_folder()
    return where is not None and any(where.glob("*ggml-rpc*"))
