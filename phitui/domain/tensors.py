"""Tensors, where their bytes lie, and the plan of a file that is not written yet.

Shapes are in ggml's order: `shape[0]` is the row length (the fastest running dimension), so a PyTorch weight of
shape (out, in) is `(in, out)` here. Block sizes are those of ggml's type traits (ggml.c, ggml-common.h).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from phitui.errors import InvalidFile

ALIGNMENT = 32
"""GGUF's default alignment of tensor data, in bytes."""


class TensorType(IntEnum):
    """ggml's tensor types under their ids in GGUF files."""

    F32 = 0
    F16 = 1
    Q4_0 = 2
    Q4_1 = 3
    Q5_0 = 6
    Q5_1 = 7
    Q8_0 = 8
    Q8_1 = 9
    Q2_K = 10
    Q3_K = 11
    Q4_K = 12
    Q5_K = 13
    Q6_K = 14
    Q8_K = 15
    IQ2_XXS = 16
    IQ2_XS = 17
    IQ3_XXS = 18
    IQ1_S = 19
    IQ4_NL = 20
    IQ3_S = 21
    IQ2_S = 22
    IQ4_XS = 23
    I8 = 24
    I16 = 25
    I32 = 26
    I64 = 27
    F64 = 28
    IQ1_M = 29
    BF16 = 30
    TQ1_0 = 34
    TQ2_0 = 35
    MXFP4 = 39
    NVFP4 = 40
    Q1_0 = 41
    Q2_0 = 42

    @property
    def block(self) -> int:
        """Values per block; a row's length must be a multiple of it."""
        return _BLOCKS[self][0]

    @property
    def block_bytes(self) -> int:
        """Bytes per block."""
        return _BLOCKS[self][1]

    @property
    def is_float(self) -> bool:
        """True for the types that hold plain floating point values (F32, F16, BF16)."""
        return self in (TensorType.F32, TensorType.F16, TensorType.BF16)

    def row_bytes(self, length: int) -> int:
        """Bytes of one row of `length` values. Raises InvalidFile if the row does not divide into blocks."""
        if length % self.block:
            raise InvalidFile(f"a row of {length} values cannot be {self.name}: its blocks hold {self.block} values")
        return length // self.block * self.block_bytes


_K = 256
_BLOCKS: dict[TensorType, tuple[int, int]] = {
    TensorType.F32: (1, 4),
    TensorType.F16: (1, 2),
    TensorType.Q4_0: (32, 18),
    TensorType.Q4_1: (32, 20),
    TensorType.Q5_0: (32, 22),
    TensorType.Q5_1: (32, 24),
    TensorType.Q8_0: (32, 34),
    TensorType.Q8_1: (32, 36),
    TensorType.Q2_K: (_K, 84),
    TensorType.Q3_K: (_K, 110),
    TensorType.Q4_K: (_K, 144),
    TensorType.Q5_K: (_K, 176),
    TensorType.Q6_K: (_K, 210),
    TensorType.Q8_K: (_K, 292),
    TensorType.IQ2_XXS: (_K, 66),
    TensorType.IQ2_XS: (_K, 74),
    TensorType.IQ3_XXS: (_K, 98),
    TensorType.IQ1_S: (_K, 50),
    TensorType.IQ4_NL: (32, 18),
    TensorType.IQ3_S: (_K, 110),
    TensorType.IQ2_S: (_K, 82),
    TensorType.IQ4_XS: (_K, 136),
    TensorType.I8: (1, 1),
    TensorType.I16: (1, 2),
    TensorType.I32: (1, 4),
    TensorType.I64: (1, 8),
    TensorType.F64: (1, 8),
    TensorType.IQ1_M: (_K, 56),
    TensorType.BF16: (1, 2),
    TensorType.TQ1_0: (_K, 54),
    TensorType.TQ2_0: (_K, 66),
    TensorType.MXFP4: (32, 17),
    TensorType.NVFP4: (64, 36),
    TensorType.Q1_0: (128, 18),
    TensorType.Q2_0: (64, 18),
}


class ValueType(IntEnum):
    """Types of GGUF metadata values under their ids in the file."""

    UINT8 = 0
    INT8 = 1
    UINT16 = 2
    INT16 = 3
    UINT32 = 4
    INT32 = 5
    FLOAT32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    UINT64 = 10
    INT64 = 11
    FLOAT64 = 12


_WIDTHS = {
    **dict.fromkeys((ValueType.UINT8, ValueType.INT8, ValueType.BOOL), 1),
    **dict.fromkeys((ValueType.UINT16, ValueType.INT16), 2),
    **dict.fromkeys((ValueType.UINT32, ValueType.INT32, ValueType.FLOAT32), 4),
    **dict.fromkeys((ValueType.UINT64, ValueType.INT64, ValueType.FLOAT64), 8),
}


def as_bytes(text: str | bytes) -> bytes:
    """A string of a file as its bytes."""
    return text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text


@dataclass(frozen=True)
class Value:
    """One metadata value: a scalar of `type`, or a list whose elements have `type` if `is_array`.

    Strings may be `str` or `bytes` (vocabularies are not always valid UTF-8).
    """

    type: ValueType
    value: Any
    is_array: bool = False

    @cached_property
    def encoded_size(self) -> int:
        """Bytes of the value in a file with its type. Kept: a vocabulary is measured once, not for every scheme."""
        items = self.value if self.is_array else [self.value]
        start = 16 if self.is_array else 4
        if self.type is not ValueType.STRING:
            return start + _WIDTHS[self.type] * len(items)
        return start + sum(8 + len(as_bytes(item)) for item in items)

    @staticmethod
    def u32(value: int) -> Value:
        return Value(ValueType.UINT32, value)

    @staticmethod
    def f32(value: float) -> Value:
        return Value(ValueType.FLOAT32, value)

    @staticmethod
    def string(value: str | bytes) -> Value:
        return Value(ValueType.STRING, value)

    @staticmethod
    def boolean(value: bool) -> Value:
        return Value(ValueType.BOOL, value)

    @staticmethod
    def array(element: ValueType, values: Sequence[Any]) -> Value:
        return Value(element, values, is_array=True)


Metadata = Mapping[str, Value]


@dataclass(frozen=True)
class FileExtent:
    """A run of bytes in a file."""

    path: Path
    offset: int
    length: int


@dataclass(frozen=True)
class HubFile:
    """A file of a Hub repository at one commit, which is what pins its bytes.

    `etag` is the SHA-256 of a large file, or the git blob id of a small one; empty if the Hub does not say.
    """

    repo: str
    commit: str
    name: str
    size: int
    etag: str = ""

    def __str__(self) -> str:
        return f"{self.repo}@{self.commit[:12]}/{self.name}"


@dataclass(frozen=True)
class RemoteExtent:
    """A run of bytes in a file that stays on the Hub: read by HTTP range requests."""

    file: HubFile
    offset: int
    length: int


@dataclass(frozen=True)
class InlineExtent:
    """Bytes made by the converter itself (rope factors); small."""

    data: bytes

    @property
    def length(self) -> int:
        return len(self.data)


Extent = FileExtent | RemoteExtent | InlineExtent


@dataclass(frozen=True)
class SourceTensor:
    """A tensor as its source has it, described before any of its data is read.

    The bytes of `extents`, one after the other, are the rows of the tensor in order, stored as `stored`.
    `pinned` is the type the tensor must have whatever the scheme is (norms and 1-D tensors are F32 in llama.cpp).
    """

    name: str
    shape: tuple[int, ...]
    stored: TensorType
    extents: tuple[Extent, ...]
    pinned: TensorType | None = None

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def rows(self) -> int:
        return self.elements // self.shape[0]

    @property
    def stored_bytes(self) -> int:
        return self.rows * self.stored.row_bytes(self.shape[0])


class TensorSource(Protocol):
    """A model to be written: its GGUF metadata and its tensors, in the order they should have in the file.

    `origin` is the checkpoint directory or GGUF file. `notes` are sentences a person should see ("vision left out").
    `metadata` holds all keys except `general.file_type` and `general.quantization_version`, which the plan sets.
    """

    @property
    def origin(self) -> Path: ...
    @property
    def architecture(self) -> str: ...
    @property
    def metadata(self) -> Metadata: ...
    @property
    def tensors(self) -> Sequence[SourceTensor]: ...
    @property
    def notes(self) -> Sequence[str]: ...


@dataclass(frozen=True)
class Source:
    """The plain TensorSource: what converters return."""

    origin: Path
    architecture: str
    metadata: Metadata
    tensors: tuple[SourceTensor, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class PlannedTensor:
    """A tensor as it will stand in the file. `offset` counts from the start of the data section, in bytes."""

    name: str
    shape: tuple[int, ...]
    type: TensorType
    offset: int
    source: SourceTensor
    wanted: TensorType | None = None
    """The type the scheme would have used, where llama.cpp substitutes another (row length not a multiple of 256)."""

    @property
    def size(self) -> int:
        return self.source.rows * self.type.row_bytes(self.shape[0])

    @property
    def substituted(self) -> bool:
        return self.wanted is not None and self.wanted != self.type


@dataclass(frozen=True)
class FilePlan:
    """A GGUF file, complete but for its tensor data. Everything about its size is exact.

    `needs_imatrix` names the tensors whose type cannot be encoded without an importance matrix. `refused` says why
    this file cannot be written from this source at all; it is empty for a plan that can.
    """

    scheme: str
    metadata: Metadata
    tensors: tuple[PlannedTensor, ...]
    alignment: int = ALIGNMENT
    needs_imatrix: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(default=())
    refused: str = ""

    @property
    def data_size(self) -> int:
        """Bytes of the data section, padding included."""
        return sum(align(tensor.size, self.alignment) for tensor in self.tensors)

    @property
    def parameters(self) -> int:
        return sum(tensor.source.elements for tensor in self.tensors)

    @property
    def bits_per_weight(self) -> float:
        return 8 * sum(t.size for t in self.tensors) / max(1, self.parameters)

    @property
    def substitutions(self) -> tuple[PlannedTensor, ...]:
        return tuple(tensor for tensor in self.tensors if tensor.substituted)

    @cached_property
    def fingerprint(self) -> str:
        """Digest of everything that decides the file's bytes but the data itself: resume compares it."""
        digest = hashlib.sha256(f"{self.scheme} {self.alignment}".encode())
        for key, value in self.metadata.items():
            digest.update(f"{key} {value.type} {value.is_array} {value.value!r}".encode("utf-8", "surrogateescape"))
        for tensor in self.tensors:
            digest.update(repr((tensor.name, tensor.shape, tensor.type, tensor.offset, tensor.source)).encode())
        return digest.hexdigest()


def align(size: int, alignment: int = ALIGNMENT) -> int:
    """`size` rounded up to a multiple of `alignment`."""
    return -(-size // alignment) * alignment


def place(
    tensors: Sequence[tuple[SourceTensor, TensorType, TensorType | None]], alignment: int = ALIGNMENT
) -> tuple[PlannedTensor, ...]:
    """Give each (tensor, type, wanted type) its offset, one after the other, aligned."""
    placed, offset = [], 0
    for source, type_, wanted in tensors:
        tensor = PlannedTensor(source.name, source.shape, type_, offset, source, wanted)
        placed.append(tensor)
        offset += align(tensor.size, alignment)
    return tuple(placed)
