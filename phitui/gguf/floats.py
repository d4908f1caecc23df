"""Float conversions, as convert_hf_to_gguf.py and llama.cpp do them, on whole buffers.

BF16 is the upper half of an F32. Rounding to BF16 is to nearest, ties to even; a NaN stays a (quiet) NaN
(ggml-impl.h, ggml_compute_fp32_to_bf16). F16 is IEEE 754's, rounded the same way; too large values become infinite.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from phitui.domain.tensors import TensorType
from phitui.errors import PhituiError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

_F32_INFINITY = 0x7F80_0000


def widen(buffer: Any, kind: TensorType) -> Floats:
    """The values of a buffer of F32, F16, BF16 or a quantized type, as a flat float32 array.

    Raises PhituiError for a type that cannot be decoded here.
    """
    if kind is TensorType.F32:
        return np.frombuffer(buffer, np.float32)
    if kind is TensorType.F16:
        return np.frombuffer(buffer, np.float16).astype(np.float32)
    if kind is TensorType.BF16:
        halves = np.frombuffer(buffer, np.uint16)
        wide = halves.astype(np.uint32)
        np.left_shift(wide, 16, out=wide)
        return wide.view(np.float32)
    return _dequantize(buffer, kind)


def narrow(values: Floats, kind: TensorType) -> memoryview:
    """Float32 values encoded as F32, F16 or BF16. Raises PhituiError for another type."""
    values = np.ascontiguousarray(values, np.float32).reshape(-1)
    if kind is TensorType.F32:
        return _bytes(values)
    if kind is TensorType.F16:
        with np.errstate(over="ignore", invalid="ignore"):
            return _bytes(values.astype(np.float16))
    if kind is TensorType.BF16:
        return _bytes(_to_bf16(values))
    raise PhituiError(f"{kind.name} is not a float type; it needs an encoder")


def convert(buffer: Any, stored: TensorType, wanted: TensorType) -> memoryview:
    """The values of a buffer in another float type; the same bytes as `narrow(widen(...))`.

    Two bytes to two bytes is a look-up among 65,536 results: three times as fast as numpy's own cast to F16.
    """
    if stored.block_bytes == wanted.block_bytes == 2:
        return _bytes(np.take(_table(stored, wanted), np.frombuffer(buffer, np.uint16), mode="wrap"))
    return narrow(widen(buffer, stored), wanted)


@cache
def _table(stored: TensorType, wanted: TensorType) -> NDArray[np.uint16]:
    every = np.arange(1 << 16, dtype=np.uint16)
    return np.frombuffer(narrow(widen(every, stored), wanted), np.uint16)


def _bytes(values: NDArray[Any]) -> memoryview:
    view: memoryview = values.data.cast("B")
    return view


def _to_bf16(values: Floats) -> NDArray[np.uint16]:
    bits = values.view(np.uint32)
    rounded = bits >> 16
    rounded &= 1
    rounded += 0x7FFF
    rounded += bits
    rounded >>= 16
    halves = rounded.astype(np.uint16)
    nan = (bits & 0x7FFF_FFFF) > _F32_INFINITY
    if nan.any():
        halves[nan] = (bits[nan] >> 16).astype(np.uint16) | 0x40
    return halves


def _dequantize(buffer: Any, kind: TensorType) -> Floats:
    """Decode a quantized type with the gguf package."""
    import gguf

    try:
        code = gguf.GGMLQuantizationType(int(kind))
        values: Floats = gguf.quants.dequantize(np.frombuffer(buffer, np.uint8).reshape(-1, kind.block_bytes), code)
    except (ValueError, NotImplementedError):
        raise PhituiError(
            f"tensors of type {kind.name} cannot be decoded", "start from the checkpoint instead"
        ) from None
    return values.reshape(-1)
