"""Rows into blocks, by ggml itself: the same code that llama_model_quantize calls, so the bytes are the same."""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Mapping
from typing import Any

from phitui.api import FilePlan, InvalidFile, PlannedTensor
from phitui_quantize.library import ggml_base


class RowEncoder:
    """Encodes rows of any tensor of a plan. ggml drops the GIL and is thread-safe here.

    `weights` are importance values by tensor name: float32, one per column and expert.
    """

    def __init__(self, weights: Mapping[str, Any] | None = None) -> None:
        self._weights = weights or {}
        path = ggml_base().resolve()
        library = ctypes.CDLL(str(ggml_base()))
        self.identity = f"{path.name} {path.stat().st_size} {path.stat().st_mtime_ns} {_digest(self._weights)}"
        """A resumed write must go on with the same encoder and the same weights."""
        self._quantize = library.ggml_quantize_chunk
        self._quantize.restype = ctypes.c_size_t
        self._quantize.argtypes = [
            ctypes.c_int,
            ctypes.c_void_p,
            ctypes.c_void_p,
            ctypes.c_int64,
            ctypes.c_int64,
            ctypes.c_int64,
            ctypes.c_void_p,
        ]
        self._valid = library.ggml_validate_row_data
        self._valid.restype = ctypes.c_bool
        self._valid.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t]
        self._requires = library.ggml_quantize_requires_imatrix
        self._requires.restype = ctypes.c_bool
        self._requires.argtypes = [ctypes.c_int]

    def __call__(self, tensor: PlannedTensor, first_row: int, rows: Any) -> Any:
        """`rows`: C-contiguous float32 (rows, row length). Raises InvalidFile where ggml finds its own work invalid."""
        import numpy as np

        count, length = rows.shape
        row_bytes = tensor.type.row_bytes(length)
        encoded = np.empty(count * row_bytes, dtype=np.uint8)
        weights = self._weights.get(tensor.name)
        for start, end, expert in _runs(tensor, first_row, count):
            importance = None if weights is None else weights.ctypes.data + expert * length * weights.itemsize
            target = encoded.ctypes.data + start * row_bytes
            self._quantize(int(tensor.type), rows[start:end].ctypes.data, target, 0, end - start, length, importance)
        if not self._valid(int(tensor.type), encoded.ctypes.data, encoded.nbytes):
            lost = "" if np.isfinite(rows).all() else ": they are not all finite numbers"
            raise InvalidFile(
                f"{tensor.name}: rows {first_row} to {first_row + count} cannot be held as {tensor.type.name}{lost}",
                f"try a larger type for it: --override '{tensor.name}={'BF16' if lost else 'Q8_0'}'",
            )
        return encoded

    def check(self, plan: FilePlan) -> str:
        """The name of a tensor that ggml would abort on for want of weights; empty if there is none."""
        return next((t.name for t in plan.tensors if self._requires(int(t.type)) and t.name not in self._weights), "")


def _digest(weights: Mapping[str, Any]) -> str:
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(name.encode())
        digest.update(weights[name].data)
    return digest.hexdigest()[:16]


def _runs(tensor: PlannedTensor, first_row: int, count: int) -> list[tuple[int, int, int]]:
    """(start, end, expert) of the rows: each expert of a 3-D tensor has importance values of its own."""
    per_expert = tensor.shape[1] if len(tensor.shape) > 2 else tensor.source.rows
    runs, row = [], 0
    while row < count:
        expert, inside = divmod(first_row + row, per_expert)
        end = min(count, row + per_expert - inside)
        runs.append((row, end, expert))
        row = end
    return runs
