"""ggml's tensors as the scheduler's callback sees them, read in place. Only ever imported where native code may run.

The layout of `struct ggml_tensor` is not part of ggml's interface. `Ggml` therefore builds a small graph first and
looks whether every field is where it is expected.
"""

from __future__ import annotations

import ctypes
from typing import Any

from phitui.api import EngineError
from phitui_quantize.library import ggml_base

_INT64x4 = ctypes.c_int64 * 4
_SIZEx4 = ctypes.c_size_t * 4
F32, I32 = 0, 26
"""ggml_type of the two types that a matrix product takes as its right side and as expert ids."""


class Tensor(ctypes.Structure):
    """struct ggml_tensor (ggml.h): `ne` counts elements, `nb` are strides in bytes, the row is dimension 0."""

    _fields_ = [
        ("type", ctypes.c_int32),
        ("buffer", ctypes.c_void_p),
        ("ne", _INT64x4),
        ("nb", _SIZEx4),
        ("op", ctypes.c_int32),
        ("op_params", ctypes.c_int32 * 16),
        ("flags", ctypes.c_int32),
        ("src", ctypes.c_void_p * 10),
        ("view_src", ctypes.c_void_p),
        ("view_offs", ctypes.c_size_t),
        ("data", ctypes.c_void_p),
        ("name", ctypes.c_char * 64),
    ]


class _Params(ctypes.Structure):
    """struct ggml_init_params."""

    _fields_ = [("mem_size", ctypes.c_size_t), ("mem_buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool)]


class Ggml:
    """The few functions of libggml-base that reading tensors needs. Raises EngineError for an unknown layout."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(str(ggml_base()))
        pointer, size = ctypes.c_void_p, ctypes.c_size_t
        self._is_host = self._function("ggml_backend_buffer_is_host", ctypes.c_bool, pointer)
        self._get = self._function("ggml_backend_tensor_get", None, pointer, pointer, size, size)
        self._nbytes = self._function("ggml_nbytes", size, pointer)
        names = self._operations()
        self.mul_mat, self.mul_mat_id = names.get("MUL_MAT", -1), names.get("MUL_MAT_ID", -1)
        self._check()

    def values(self, address: int, kind: str = "<f4") -> Any:
        """All four dimensions of a tensor as a numpy array, the row last. In place where the data is in host memory.

        Valid as long as the tensor's data is, which is until the callback returns.
        """
        import numpy as np

        tensor = Tensor.from_address(address)
        count = self._nbytes(address)
        buffer: Any
        if tensor.buffer is None or self._is_host(tensor.buffer):
            buffer = (ctypes.c_ubyte * count).from_address(tensor.data)
        else:
            buffer = np.empty(count, np.uint8)
            self._get(address, buffer.ctypes.data, 0, count)
        return np.ndarray(tuple(tensor.ne)[::-1], np.dtype(kind), buffer, 0, tuple(tensor.nb)[::-1])

    def _function(self, name: str, result: Any, *arguments: Any) -> Any:
        function = getattr(self._library, name)
        function.restype, function.argtypes = result, list(arguments)
        return function

    def _operations(self) -> dict[str, int]:
        """Names of the operations -> their numbers, which change from version to version."""
        name = self._function("ggml_op_name", ctypes.c_char_p, ctypes.c_int)
        found: dict[str, int] = {}
        for number in range(60):  # there are about a hundred, and the two that are wanted are among the first
            found.setdefault((name(number) or b"").decode("ascii", "replace"), number)
        return found

    def _check(self) -> None:
        """Multiply two small tensors, on paper, and look at the result through `Tensor`."""
        pointer = ctypes.c_void_p
        start = self._function("ggml_init", pointer, _Params)
        new = self._function("ggml_new_tensor_2d", pointer, pointer, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
        multiply = self._function("ggml_mul_mat", pointer, pointer, pointer, pointer)
        data = self._function("ggml_get_data", pointer, pointer)
        self._function("ggml_set_name", pointer, pointer, ctypes.c_char_p)
        context = start(_Params(1 << 16, None, False))
        try:
            weights, rows = new(context, F32, 24, 3), new(context, F32, 24, 5)
            self._library.ggml_set_name(weights, b"weights")
            product = Tensor.from_address(multiply(context, weights, rows))
            left, right = Tensor.from_address(weights), Tensor.from_address(rows)
            as_expected = (
                (product.op, tuple(product.src[:3])) == (self.mul_mat, (weights, rows, None))
                and (left.name, left.type, left.data) == (b"weights", F32, data(weights))
                and (tuple(right.ne), tuple(right.nb)) == ((24, 5, 1, 1), (4, 96, 480, 480))
                and (left.buffer, right.view_src) == (None, None)
            )
        finally:
            self._function("ggml_free", None, pointer)(context)
        if not as_expected or self.mul_mat_id < 0:
            raise EngineError(
                "this llama-cpp-python arranges its tensors in a way that phitui does not know",
                "install the version that phitui[llama] asks for; llama-imatrix makes the same file",
            )
