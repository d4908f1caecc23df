"""What a load really took: llama.cpp's own log of its buffers, and the memory that is left."""

from __future__ import annotations

import ctypes
import re
from typing import Any

_LINE = re.compile(r"(\S+)\s+(model|KV|compute|output) buffer size\s*=\s*([\d.]+) MiB")
_WHAT = {"model": "weights", "KV": "kv", "compute": "compute", "output": "output"}
_MIB = 1024 * 1024
_LOCAL_GPU = (1, 2)  # ggml_backend_dev_type: GPU, IGPU


class BufferLog:
    """Collects the buffers that llama.cpp says it allocates."""

    def __init__(self) -> None:
        self._sizes: dict[tuple[str, str], int] = {}

    def __call__(self, text: str) -> None:
        for name, what, size in _LINE.findall(text):
            key = (name, _WHAT[what])
            self._sizes[key] = self._sizes.get(key, 0) + round(float(size) * _MIB)

    def rows(self) -> list[dict[str, Any]]:
        """{"name", "what", "size"}: the buffer type, what it is for, bytes (to 0.01 MiB)."""
        return [{"name": name, "what": what, "size": size} for (name, what), size in self._sizes.items()]


def free_memory(ggml: ctypes.CDLL, base: ctypes.CDLL) -> dict[str, int]:
    """Bytes that this machine's GPUs have left, by device name. An RPC worker's memory is not ours to count."""
    ggml.ggml_backend_dev_count.restype = ctypes.c_size_t
    ggml.ggml_backend_dev_get.restype = ctypes.c_void_p
    ggml.ggml_backend_dev_get.argtypes = [ctypes.c_size_t]
    base.ggml_backend_dev_name.restype = ctypes.c_char_p
    base.ggml_backend_dev_name.argtypes = base.ggml_backend_dev_type.argtypes = [ctypes.c_void_p]
    sizes = ctypes.POINTER(ctypes.c_size_t)
    base.ggml_backend_dev_memory.restype = None
    base.ggml_backend_dev_memory.argtypes = [ctypes.c_void_p, sizes, sizes]
    found: dict[str, int] = {}
    for number in range(ggml.ggml_backend_dev_count()):
        device = ggml.ggml_backend_dev_get(number)
        name = (base.ggml_backend_dev_name(device) or b"").decode("utf-8", "replace")
        if base.ggml_backend_dev_type(device) not in _LOCAL_GPU or name.startswith("RPC"):
            continue
        free, total = ctypes.c_size_t(0), ctypes.c_size_t(0)
        base.ggml_backend_dev_memory(device, ctypes.byref(free), ctypes.byref(total))
        found[name] = free.value
    return found


def private_memory() -> int:
    """Bytes of RAM that are this process's own: not shared, not a file's pages."""
    import psutil

    memory = psutil.Process().memory_info()
    return max(0, int(memory.rss) - int(getattr(memory, "shared", 0)))
