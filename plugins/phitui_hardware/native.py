"""ggml and llama.cpp through ctypes. Only ever imported in the probe's child process: native code may abort there.

The device registry is read through the very libraries that llama-cpp-python's libllama links (`libggml.so.0`): opening
`libggml.so` would load a second copy with a registry of its own.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from phitui.api import native_library

DEVICE_TYPES = ("cpu", "gpu", "igpu", "accel", "meta")
"""ggml_backend_dev_type in order."""

_POINTER = ctypes.c_void_p
_SIZE = ctypes.c_size_t


@dataclass(frozen=True)
class NativeDevice:
    """One device of ggml's registry; bytes. `buffer` is the name of its default buffer type."""

    name: str
    registry: str
    kind: str
    description: str
    total: int
    free: int
    buffer: str


class Ggml:
    """The functions of ggml-base and ggml that the probe needs."""

    def __init__(self) -> None:
        base, ggml = (ctypes.CDLL(str(native_library(name))) for name in ("ggml-base", "ggml"))
        self.dev_count = _function(ggml, "ggml_backend_dev_count", _SIZE)
        self.dev_get = _function(ggml, "ggml_backend_dev_get", _POINTER, _SIZE)
        self.reg_by_name = _function(ggml, "ggml_backend_reg_by_name", _POINTER, ctypes.c_char_p)
        self.register = _function(ggml, "ggml_backend_register", None, _POINTER)
        self.reg_count = _function(ggml, "ggml_backend_reg_count", _SIZE)
        self.reg_get = _function(ggml, "ggml_backend_reg_get", _POINTER, _SIZE)
        self.reg_name = _function(base, "ggml_backend_reg_name", ctypes.c_char_p, _POINTER)
        self.reg_address = _function(base, "ggml_backend_reg_get_proc_address", _POINTER, _POINTER, ctypes.c_char_p)
        self.dev_name = _function(base, "ggml_backend_dev_name", ctypes.c_char_p, _POINTER)
        self.dev_description = _function(base, "ggml_backend_dev_description", ctypes.c_char_p, _POINTER)
        self.dev_type = _function(base, "ggml_backend_dev_type", ctypes.c_int, _POINTER)
        self.dev_registry = _function(base, "ggml_backend_dev_backend_reg", _POINTER, _POINTER)
        self.dev_buffer = _function(base, "ggml_backend_dev_buffer_type", _POINTER, _POINTER)
        self.buffer_name = _function(base, "ggml_backend_buft_name", ctypes.c_char_p, _POINTER)
        sizes = ctypes.POINTER(_SIZE)
        self.dev_memory = _function(base, "ggml_backend_dev_memory", None, _POINTER, sizes, sizes)

    def registries(self) -> list[str]:
        """Names of the compiled-in backends: CPU, CUDA, RPC, ..."""
        return [_text(self.reg_name(self.reg_get(number))) for number in range(self.reg_count())]

    def devices(self) -> list[NativeDevice]:
        """The device registry, in its order."""
        return [self._device(self.dev_get(number)) for number in range(self.dev_count())]

    def _device(self, device: int) -> NativeDevice:
        free, total = _SIZE(0), _SIZE(0)
        self.dev_memory(device, ctypes.byref(free), ctypes.byref(total))
        registry = self.dev_registry(device)
        kind = self.dev_type(device)
        return NativeDevice(
            _text(self.dev_name(device)),
            _text(self.reg_name(registry)) if registry else "",
            DEVICE_TYPES[kind] if kind < len(DEVICE_TYPES) else "accel",
            _text(self.dev_description(device)),
            total.value,
            free.value,
            _text(self.buffer_name(self.dev_buffer(device))),
        )

    def add_worker(self, endpoint: str) -> bool:
        """Make the devices of an RPC worker part of the registry. False if the engine has no RPC or it offers none."""
        registry = self.reg_by_name(b"RPC")
        address = registry and self.reg_address(registry, b"ggml_backend_rpc_add_server")
        if not address:
            return False
        added = ctypes.CFUNCTYPE(_POINTER, ctypes.c_char_p)(address)(endpoint.encode())
        if added:
            self.register(added)
        return bool(added)


def _function(library: ctypes.CDLL, name: str, result: Any, *arguments: Any) -> Any:
    function = getattr(library, name)
    function.restype, function.argtypes = result, list(arguments)
    return function


def _text(raw: bytes | None) -> str:
    return (raw or b"").decode("utf-8", "replace")


LOG_DEBUG = 1
"""ggml's level of the lines that say what every tensor does."""


class LogCapture:
    """Collects llama.cpp's log lines."""

    def __init__(self, llama: Any) -> None:
        self.lines: list[str] = []
        self._part = ""
        self._callback = llama.llama_log_callback(self._take)  # kept: the C side does not own it
        llama.llama_log_set(self._callback, None)

    def _take(self, level: int, text: bytes, user_data: Any) -> None:
        if level == LOG_DEBUG:
            return
        self._part += text.decode("utf-8", "replace")
        *lines, self._part = self._part.split("\n")
        self.lines += lines
        del self.lines[:-400]

    def take(self) -> list[str]:
        """The lines since the last call."""
        lines, self.lines = self.lines, []
        return lines


class _MapNode(ctypes.Structure):
    """libstdc++'s red-black tree node of std::map<buffer type, {model, context, compute}>."""


_MapNode._fields_ = [
    ("color", ctypes.c_int),
    ("parent", ctypes.POINTER(_MapNode)),
    ("left", ctypes.POINTER(_MapNode)),
    ("right", ctypes.POINTER(_MapNode)),
    ("buffer_type", _POINTER),
    ("model", _SIZE),
    ("context", _SIZE),
    ("compute", _SIZE),
]


class _Map(ctypes.Structure):
    _fields_ = [
        ("compare", _POINTER),
        ("color", ctypes.c_int),
        ("root", ctypes.POINTER(_MapNode)),
        ("leftmost", ctypes.POINTER(_MapNode)),
        ("rightmost", ctypes.POINTER(_MapNode)),
        ("count", _SIZE),
    ]


MOST_BUFFER_TYPES = 64
"""More than this cannot be: the tree is not what we think it is."""


def breakdown(llama: Any) -> Callable[[Any], list[tuple[int, int, int, int]]] | None:
    """A function (context -> [(buffer type, model, context, compute bytes)]), or None where it cannot be called.

    llama.cpp exports its accounting only as a C++ function that returns a std::map; its layout is known for libstdc++,
    which is Linux. The caller checks the figures against the log before it trusts them.
    """
    if sys.platform != "linux":
        return None
    library: Any = getattr(llama, "_lib", None)
    try:
        function = library._Z26llama_get_memory_breakdownPK13llama_context
    except AttributeError:
        return None
    function.restype, function.argtypes = _Map, [_POINTER]

    def ask(context: Any) -> list[tuple[int, int, int, int]]:
        found = function(context)
        if found.count > MOST_BUFFER_TYPES:
            return []
        rows: list[tuple[int, int, int, int]] = []
        _walk(found.root, rows)
        return rows if len(rows) == found.count else []

    return ask


def _walk(node: Any, rows: list[tuple[int, int, int, int]]) -> None:
    if not node or len(rows) > MOST_BUFFER_TYPES:
        return
    here = node.contents
    _walk(here.left, rows)
    rows.append((here.buffer_type or 0, here.model, here.context, here.compute))
    _walk(here.right, rows)
