"""llama.cpp's library: loading a model and a context with phitui's settings. Only the engine process imports this."""

from __future__ import annotations

import ctypes
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import llama_cpp.llama_cpp as lib

from phitui.api import (
    EngineError,
    EngineSettings,
    NativeLog,
    Unavailable,
    UsageError,
    ask_workers,
    context_parameters,
    model_parameters,
    native_library,
)

_GPU_KINDS = (1, 2)  # ggml_backend_dev_type: GPU, IGPU


class Switch:
    """Something native code can ask without taking Python's lock: "should I abort?"

    llama.cpp calls its abort callback between the operations of a graph, a thousand times a token. The callback here
    is the C library's strlen on a two-byte buffer: 0 while the first byte is 0, else 1. No Python runs.
    """

    def __init__(self) -> None:
        self._flag = ctypes.create_string_buffer(2)
        strlen = ctypes.cast(ctypes.CDLL(None).strlen, ctypes.c_void_p).value
        self.callback = lib.ggml_abort_callback(strlen)
        self.data = ctypes.cast(self._flag, ctypes.c_void_p)

    @property
    def on(self) -> bool:
        return self._flag.raw[0] != 0

    def set(self, on: bool) -> None:
        self._flag[0] = b"\1" if on else b"\0"


def load_model(path: Path, settings: EngineSettings, progress: Callable[[float], None], log: NativeLog) -> Any:
    """Load the weights. Raises EngineError with llama.cpp's own complaint."""
    lib.llama_backend_init()
    add_servers(settings.rpc)

    def report(part: float, _data: Any) -> bool:
        progress(part)
        return True

    parameters, kept = model_parameters(lib, settings)
    parameters.progress_callback = callback = lib.llama_progress_callback(report)
    model = lib.llama_model_load_from_file(os.fsencode(path), parameters)
    del callback, kept
    if not model:
        raise EngineError(
            f"llama.cpp cannot load {path.name}: {log.why()}",
            "phitui inspect shows what the file holds; if memory is short, use fewer layers or a smaller scheme",
        )
    return model


def make_context(model: Any, settings: EngineSettings, n_ctx: int, switch: Switch, log: NativeLog) -> Any:
    """The context with its KV cache and compute buffers. Raises EngineError with llama.cpp's own complaint."""
    parameters = context_parameters(lib, settings, n_ctx)
    if settings.flash_attention is False and settings.value_type.lower() not in ("f32", "f16", "bf16"):
        raise UsageError(f"a {settings.value_type} KV cache needs flash attention", "leave it on, or use f16")
    parameters.n_threads = parameters.n_threads_batch = settings.threads or default_threads()
    parameters.abort_callback = switch.callback
    parameters.abort_callback_data = switch.data
    context = lib.llama_init_from_model(model, parameters)
    if not context:
        raise EngineError(
            f"llama.cpp cannot make a context of {n_ctx} tokens: {log.why()}",
            "use a smaller context, a smaller KV type or fewer layers",
        )
    return context


def add_servers(servers: Sequence[str]) -> None:
    """Register RPC workers (HOST:PORT) as devices. Raises Unavailable if this build has no RPC or one is not there."""
    if not servers:
        return
    for worker in ask_workers(servers):  # llama.cpp itself would wait for ever, or end this process
        if worker.state != "ready":
            raise worker.refusal()
    ggml, base = ggml_libraries()
    ggml.ggml_backend_reg_by_name.restype = ctypes.c_void_p
    ggml.ggml_backend_reg_by_name.argtypes = [ctypes.c_char_p]
    registry = ggml.ggml_backend_reg_by_name(b"RPC")
    if not registry:
        raise Unavailable(
            "this llama-cpp-python was compiled without RPC",
            'CMAKE_ARGS="-DGGML_RPC=ON" pip install --no-cache-dir --force-reinstall llama-cpp-python',
        )
    base.ggml_backend_reg_get_proc_address.restype = ctypes.c_void_p
    base.ggml_backend_reg_get_proc_address.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
    address = base.ggml_backend_reg_get_proc_address(registry, b"ggml_backend_rpc_add_server")
    add = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_char_p)(address)
    ggml.ggml_backend_register.argtypes = [ctypes.c_void_p]
    ggml.ggml_backend_register.restype = None
    for server in servers:
        added = add(server.encode())
        if not added:
            raise Unavailable(f"the RPC worker {server} lends no device", "phitui worker says what it lends")
        ggml.ggml_backend_register(added)


def has_gpu() -> bool:
    """Whether any device could hold offloaded layers: a GPU, an integrated GPU or an RPC worker.

    (llama_supports_gpu_offload is true for every build with RPC, with or without workers.)
    """
    ggml, _ = ggml_libraries()
    ggml.ggml_backend_dev_by_type.restype = ctypes.c_void_p
    return any(ggml.ggml_backend_dev_by_type(kind) for kind in _GPU_KINDS)


def ggml_libraries() -> tuple[ctypes.CDLL, ctypes.CDLL]:
    """libggml and libggml-base under the names that libllama links: any other name would load a second registry."""
    return ctypes.CDLL(str(native_library("ggml"))), ctypes.CDLL(str(native_library("ggml-base")))


def default_threads() -> int:
    """Physical cores that this process may use: its affinity and its control group's quota respected."""
    import psutil

    logical = os.cpu_count() or 1
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else logical
    physical = psutil.cpu_count(logical=False) or logical
    return max(1, min(usable, physical, _quota()))


def _quota() -> int:
    """CPUs that the control group grants (cpu.max is "QUOTA PERIOD" or "max PERIOD")."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, math.ceil(int(quota) / int(period)))
    except (OSError, ValueError):
        return 1 << 16


def sampler(sampling: Any, vocabulary: int, seed: int) -> Any:
    """llama.cpp's chain in its default order: penalties, top-k, top-p, min-p, temperature, then the pick."""
    chain = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
    add = lib.llama_sampler_chain_add
    if sampling.repeat_penalty != 1.0:
        add(chain, lib.llama_sampler_init_penalties(vocabulary, PENALTY_WINDOW, sampling.repeat_penalty, 0.0, 0.0))
    if sampling.temperature <= 0:
        add(chain, lib.llama_sampler_init_greedy())
        return chain
    add(chain, lib.llama_sampler_init_top_k(sampling.top_k))
    add(chain, lib.llama_sampler_init_top_p(sampling.top_p, 1))
    add(chain, lib.llama_sampler_init_min_p(sampling.min_p, 1))
    add(chain, lib.llama_sampler_init_temp(sampling.temperature))
    add(chain, lib.llama_sampler_init_dist(seed))
    return chain


PENALTY_WINDOW = 64
"""Tokens that the repeat penalty looks back on, llama.cpp's default."""
