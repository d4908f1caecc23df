"""The tables of the domain against those of the gguf package."""

from __future__ import annotations

import gguf
import pytest

from phitui.domain.quant import FILE_TYPES
from phitui.domain.tensors import TensorType

WRONG_THERE = {"Q8_1"}
"""gguf's table says 40 bytes; ggml's block_q8_1 holds two halves and 32 bytes, so 36."""


@pytest.mark.parametrize("kind", list(gguf.GGMLQuantizationType), ids=lambda kind: kind.name)
def test_block_sizes(kind: gguf.GGMLQuantizationType) -> None:
    ours = TensorType(int(kind))
    assert ours.name == kind.name
    if kind.name not in WRONG_THERE:
        assert (ours.block, ours.block_bytes) == gguf.GGML_QUANT_SIZES[kind]


def test_q8_1_is_36_bytes() -> None:
    assert (TensorType.Q8_1.block, TensorType.Q8_1.block_bytes) == (32, 36)


def test_file_types() -> None:
    names = {int(kind): kind.name.removeprefix("MOSTLY_").removeprefix("ALL_") for kind in gguf.LlamaFileType}
    names.pop(int(gguf.LlamaFileType.GUESSED))
    assert {number: FILE_TYPES[number] for number in names} == names
