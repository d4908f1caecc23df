"""The work of writing a file, cut into chunks that any thread can do in any order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from phitui.domain.tensors import FilePlan, PlannedTensor

COPY_BYTES = 8 << 20
"""Bytes of one chunk that is only copied: a few ms, and below a second where a slow disk holds the writer back."""
FLOAT_VALUES = 1 << 18
"""Values of one chunk that goes from float type to float type: 1 MiB of buffers, which stays in the cache of a core."""
ENCODE_VALUES = 1 << 18
"""Values of one chunk for an encoder: 30 ms for a K-quant, well below half a second for the slowest IQ type."""

Kind = Literal["copy", "float", "encode"]


@dataclass(frozen=True)
class Chunk:
    """Rows of one tensor (`copy`: any bytes of it). `start` and `length` are bytes of the encoded tensor."""

    number: int
    kind: Kind
    tensor: PlannedTensor
    first_row: int
    rows: int
    start: int
    length: int

    @property
    def stored(self) -> tuple[int, int]:
        """Where the chunk's values begin in the tensor as its source stores it, and how many bytes they are."""
        if self.kind == "copy":
            return self.start, self.length
        row_bytes = self.tensor.source.stored.row_bytes(self.tensor.shape[0])
        return self.first_row * row_bytes, self.rows * row_bytes


def kind_of(tensor: PlannedTensor) -> Kind:
    """How the bytes of a tensor come about."""
    if tensor.type is tensor.source.stored:
        return "copy"
    return "float" if tensor.type.is_float and tensor.source.stored.is_float else "encode"


def split(plan: FilePlan) -> list[Chunk]:
    """All chunks of a plan, numbered in the order of the file. The same plan is always cut the same way."""
    chunks: list[Chunk] = []
    for tensor in plan.tensors:
        kind = kind_of(tensor)
        pieces = _bytes(tensor) if kind == "copy" else _rows(tensor, kind)
        for first_row, rows, start, length in pieces:
            chunks.append(Chunk(len(chunks), kind, tensor, first_row, rows, start, length))
    return chunks


def _bytes(tensor: PlannedTensor) -> Iterator[tuple[int, int, int, int]]:
    """No chunk crosses from one extent to the next (but in the middle of a value): the order of chunks can then be
    that of the source's bytes."""
    start = end = 0
    for extent in tensor.source.extents:
        end += extent.length
        if end % tensor.type.block_bytes == 0:
            for at in range(start, end, COPY_BYTES):
                yield 0, 0, at, min(COPY_BYTES, end - at)
            start = end


def _rows(tensor: PlannedTensor, kind: Kind) -> Iterator[tuple[int, int, int, int]]:
    """Whole rows. No chunk crosses from one matrix to the next: an expert has an importance matrix of its own."""
    row_bytes = tensor.type.row_bytes(tensor.shape[0])
    step = max(1, (FLOAT_VALUES if kind == "float" else ENCODE_VALUES) // tensor.shape[0])
    matrix = tensor.shape[1] if len(tensor.shape) > 1 else 1
    for base in range(0, tensor.source.rows, matrix):
        for first in range(base, base + matrix, step):
            rows = min(step, base + matrix - first)
            yield first, rows, first * row_bytes, rows * row_bytes
