"""Float conversions against numpy, the gguf package and the definition."""

from __future__ import annotations

import gguf
import numpy as np
import pytest

from phitui.domain.tensors import TensorType
from phitui.errors import PhituiError
from phitui.gguf.floats import convert, narrow, widen

EVERY_HALF = np.arange(1 << 16, dtype=np.uint16)
SPECIAL = np.array(
    [
        0.0,
        -0.0,
        1.0,
        -1.0,
        np.inf,
        -np.inf,
        np.nan,
        65504.0,
        65520.0,
        1e38,
        1e-45,
        5.96e-8,
        3.0e-8,
        1.00390625,
        1.01171875,
    ],
    dtype=np.float32,
)
rng = np.random.default_rng(7)
RANDOM_BITS = rng.integers(0, 1 << 32, 200_000, dtype=np.uint64).astype(np.uint32).view(np.float32)
VALUES = np.concatenate([SPECIAL, RANDOM_BITS, rng.standard_normal(50_000).astype(np.float32)])


def bits(values: object, dtype: type) -> np.ndarray:
    return np.frombuffer(values, dtype)  # type: ignore[call-overload]


def test_widen_bf16_is_the_upper_half() -> None:
    wide = widen(EVERY_HALF, TensorType.BF16)
    assert np.array_equal(wide.view(np.uint32), EVERY_HALF.astype(np.uint32) << 16)


def test_widen_f16_is_numpys() -> None:
    assert np.array_equal(
        widen(EVERY_HALF, TensorType.F16).view(np.uint32),
        EVERY_HALF.view(np.float16).astype(np.float32).view(np.uint32),
    )


def test_narrow_bf16_is_that_of_the_gguf_package() -> None:
    expected = gguf.quants.quantize(VALUES.reshape(1, -1), gguf.GGMLQuantizationType.BF16).reshape(-1).view(np.uint16)
    assert np.array_equal(bits(narrow(VALUES, TensorType.BF16), np.uint16), expected)


def test_narrow_bf16_rounds_ties_to_even_and_keeps_nan() -> None:
    def rounded(pattern: int) -> int:
        value = np.array([pattern], np.uint32).view(np.float32)
        return int(bits(narrow(value, TensorType.BF16), np.uint16)[0])

    assert rounded(0x3F80_8000) == 0x3F80  # a tie, even below
    assert rounded(0x3F81_8000) == 0x3F82  # a tie, even above
    assert rounded(0x3F80_8001) == 0x3F81
    assert rounded(0x7F7F_FFFF) == 0x7F80  # the largest number becomes infinite
    assert rounded(0x7F80_0001) == 0x7FC0  # a NaN whose payload is below stays a NaN
    assert rounded(0xFFFF_FFFF) == 0xFFFF


def test_narrow_f16_is_numpys() -> None:
    with np.errstate(all="ignore"):
        expected = VALUES.astype(np.float16).view(np.uint16)
    assert np.array_equal(bits(narrow(VALUES, TensorType.F16), np.uint16), expected)


@pytest.mark.parametrize("stored", [TensorType.BF16, TensorType.F16])
@pytest.mark.parametrize("wanted", [TensorType.BF16, TensorType.F16, TensorType.F32])
def test_convert_is_narrow_of_widen(stored: TensorType, wanted: TensorType) -> None:
    assert bytes(convert(EVERY_HALF, stored, wanted)) == bytes(narrow(widen(EVERY_HALF, stored), wanted))
    assert bytes(convert(VALUES, TensorType.F32, wanted)) == bytes(narrow(VALUES, wanted))


def test_shapes_do_not_matter() -> None:
    square = np.ones((4, 8), np.float32)
    assert len(narrow(square, TensorType.BF16)) == 64
    assert len(narrow(square.T, TensorType.F16)) == 64
    assert narrow(square[:0], TensorType.F32).nbytes == 0


def test_dequantizes_through_the_gguf_package() -> None:
    values = rng.standard_normal(512).astype(np.float32)
    raw = gguf.quants.quantize(values.reshape(2, 256), gguf.GGMLQuantizationType.Q8_0)
    expected = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType.Q8_0).reshape(-1)
    assert np.array_equal(widen(raw.tobytes(), TensorType.Q8_0), expected)


def test_types_without_a_decoder() -> None:
    with pytest.raises(PhituiError, match="Q8_K"):
        widen(bytes(292), TensorType.Q8_K)
    with pytest.raises(PhituiError, match="encoder"):
        narrow(np.ones(32, np.float32), TensorType.Q4_0)
