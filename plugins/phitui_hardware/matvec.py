"""How fast a device reads its memory while it does what decoding does: multiply large matrices by one vector.

`python -m phitui_hardware.matvec DEVICE SECONDS` measures the device of that name in ggml's registry and prints
{"bytes_per_second": ...} or {"error": ...}. Native code; a process of its own.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import time
from typing import Any

from phitui.api import native_library
from phitui_hardware.native import Ggml

WIDTH, HEIGHT = 4096, 8192
"""Of one F16 matrix: 64 MiB, like those of a model."""
MATRICES = 8
"""Together 512 MiB, more than any cache holds."""
F32, F16 = 0, 1
"""ggml_type."""
_POINTER = ctypes.c_void_p


class Refused(Exception):
    """The device cannot be measured; the text says why."""


class _InitParams(ctypes.Structure):
    _fields_ = [("mem_size", ctypes.c_size_t), ("mem_buffer", _POINTER), ("no_alloc", ctypes.c_bool)]


def functions(base: ctypes.CDLL) -> dict[str, Any]:
    """The functions of libggml-base that a small graph takes."""
    size, integer = ctypes.c_size_t, ctypes.c_int
    signatures: dict[str, tuple[Any, list[Any]]] = {
        "ggml_init": (_POINTER, [_InitParams]),
        "ggml_free": (None, [_POINTER]),
        "ggml_tensor_overhead": (size, []),
        "ggml_graph_overhead": (size, []),
        "ggml_new_tensor_2d": (_POINTER, [_POINTER, integer, ctypes.c_int64, ctypes.c_int64]),
        "ggml_mul_mat": (_POINTER, [_POINTER, _POINTER, _POINTER]),
        "ggml_new_graph": (_POINTER, [_POINTER]),
        "ggml_build_forward_expand": (None, [_POINTER, _POINTER]),
        "ggml_backend_dev_init": (_POINTER, [_POINTER, ctypes.c_char_p]),
        "ggml_backend_alloc_ctx_tensors": (_POINTER, [_POINTER, _POINTER]),
        "ggml_backend_buffer_clear": (None, [_POINTER, ctypes.c_uint8]),
        "ggml_backend_graph_compute": (integer, [_POINTER, _POINTER]),
        "ggml_backend_synchronize": (None, [_POINTER]),
    }
    found = {}
    for name, (result, arguments) in signatures.items():
        function = getattr(base, name)
        function.restype, function.argtypes = result, arguments
        found[name.removeprefix("ggml_")] = function
    return found


def read_speed(device: str, seconds: float) -> float:
    """Bytes of weights per second, in the best of the rounds that fit. Raises Refused."""
    ggml = Ggml()
    names = [found.name for found in ggml.devices()]
    if device not in names:
        raise Refused(f"the engine lists no device {device}")
    call = functions(ctypes.CDLL(str(native_library("ggml-base"))))
    free = ggml.devices()[names.index(device)].free
    count = min(MATRICES, int(free * 0.5) // (WIDTH * HEIGHT * 2))
    if count < 1:
        raise Refused(f"{device} has too little free memory")
    backend = call["backend_dev_init"](ggml.dev_get(names.index(device)), None)
    if not backend:
        raise Refused(f"{device} cannot be opened")
    memory = call["tensor_overhead"]() * (2 * count + 4) + call["graph_overhead"]()
    context = call["init"](_InitParams(memory, None, True))
    vector = call["new_tensor_2d"](context, F32, WIDTH, 1)
    graph = call["new_graph"](context)
    for _ in range(count):
        matrix = call["new_tensor_2d"](context, F16, WIDTH, HEIGHT)
        call["build_forward_expand"](graph, call["mul_mat"](context, matrix, vector))
    buffer = call["backend_alloc_ctx_tensors"](context, backend)
    if not buffer:
        raise Refused(f"{device} refuses {count * 64} MiB")
    call["backend_buffer_clear"](buffer, 0)
    return _best(call, backend, graph, count * WIDTH * HEIGHT * 2, seconds)


def _best(call: dict[str, Any], backend: int, graph: int, size: int, seconds: float) -> float:
    best, rounds, end = 0.0, 0, time.perf_counter() + seconds
    while rounds < 3 or time.perf_counter() < end:
        began = time.perf_counter()
        if call["backend_graph_compute"](backend, graph) != 0:
            raise Refused("the device failed to multiply")
        call["backend_synchronize"](backend)
        taken, rounds = time.perf_counter() - began, rounds + 1
        best = max(best, size / taken) if rounds > 1 else 0.0  # the first one compiles and warms up
    return best


def main(arguments: list[str]) -> int:
    """Measure and print; the exit code is 0 whatever the outcome, unless native code ends the process."""
    os.environ["GGML_NO_BACKTRACE"] = "1"
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever ggml prints
    try:
        import llama_cpp  # noqa: F401  (loads the libraries with all that they need)

        document: dict[str, Any] = {"bytes_per_second": round(read_speed(arguments[0], float(arguments[1])))}
    except Exception as error:  # a broken installation raises anything
        document = {"error": str(error)}
    answers.write(json.dumps(document) + "\n")
    answers.flush()
    os._exit(0)  # drivers may hang while they are unloaded


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
