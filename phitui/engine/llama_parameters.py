"""Settings as llama.cpp's own parameters.

The engine that loads and the probe that plans both come here, so that what is planned is what is loaded.

Nothing native is loaded by this module: `library` is the module llama_cpp.llama_cpp of the process that did.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

from phitui.domain.chat import EngineSettings
from phitui.domain.placement import kv_type

_SPLIT_MODES = {"none": 0, "layer": 1, "row": 2}
_FLASH = {None: -1, False: 0, True: 1}
_LOAD_MODES = {(False, False): 0, (True, False): 1, (False, True): 2, (True, True): 3}
"""llama_load_mode by (mmap, mlock)."""

_EXPERTS = r"\.ffn_(up|down|gate|gate_up)_(ch|)exps"
"""The tensors of a layer's experts, as llama.cpp's own --n-cpu-moe knows them."""


class _Override(ctypes.Structure):
    """llama_model_tensor_buft_override."""

    _fields_ = (("pattern", ctypes.c_char_p), ("buffer_type", ctypes.c_void_p))


def model_parameters(library: Any, settings: EngineSettings) -> tuple[Any, Sequence[Any]]:
    """llama_model_params, and what they point to: keep that as long as the model."""
    parameters = library.llama_model_default_params()
    parameters.n_gpu_layers = settings.layers
    parameters.load_mode = _LOAD_MODES[settings.mmap, settings.mlock]
    parameters.split_mode = _SPLIT_MODES[settings.split_mode]
    parameters.main_gpu = settings.main_gpu
    kept: list[Any] = []
    if settings.tensor_split:
        count = int(library.llama_max_devices())
        split = (ctypes.c_float * count)(*settings.tensor_split[:count])
        parameters.tensor_split = ctypes.cast(split, ctypes.POINTER(ctypes.c_float))
        kept.append(split)
    if settings.n_cpu_moe > 0:
        overrides = _experts_in_ram(library, settings.n_cpu_moe)
        parameters.tensor_buft_overrides = ctypes.cast(overrides, ctypes.c_void_p)
        kept.append(overrides)
    return parameters, kept


def _experts_in_ram(library: Any, layers: int) -> Any:
    buffer_type = library._lib.ggml_backend_cpu_buffer_type
    buffer_type.restype, buffer_type.argtypes = ctypes.c_void_p, []
    rows = [_Override(rf"blk\.{layer}{_EXPERTS}".encode(), buffer_type()) for layer in range(layers)]
    return (_Override * (layers + 1))(*rows, _Override(None, None))


def context_parameters(library: Any, settings: EngineSettings, n_ctx: int) -> Any:
    """llama_context_params. Raises UsageError for a KV type that llama.cpp does not take."""
    parameters = library.llama_context_default_params()
    parameters.n_ctx = n_ctx
    parameters.n_batch = min(settings.batch, n_ctx)
    parameters.n_ubatch = min(settings.ubatch, parameters.n_batch)
    parameters.n_seq_max = settings.parallel
    parameters.kv_unified = settings.kv_unified
    parameters.type_k = kv_type(settings.kv_type)
    parameters.type_v = kv_type(settings.value_type)
    parameters.flash_attn_type = _FLASH[settings.flash_attention]
    parameters.offload_kqv = settings.kv_offload
    parameters.op_offload = settings.op_offload
    parameters.no_perf = True
    return parameters
