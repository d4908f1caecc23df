"""Writing importance matrices in llama.cpp's GGUF format, and reading the format before that (`.dat`)."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from phitui.api import (
    FilePlan,
    ImatrixSettings,
    InlineExtent,
    InvalidFile,
    SourceTensor,
    TensorType,
    Value,
    ValueType,
    place,
    write_gguf,
)
from phitui_quantize.sums import Sums

MAX_ENTRIES = 1 << 17
MAX_NAME = 1 << 10


def write_imatrix(out: Path, sums: Sums, settings: ImatrixSettings) -> int:
    """Write the matrix, as llama-imatrix would; returns the size in bytes. Replaces a file that is there."""
    tensors = [tensor for name in sorted(sums.squares) for tensor in _entry(name, sums)]
    keys = {
        "general.type": Value.string("imatrix"),
        "imatrix.datasets": Value.array(ValueType.STRING, [settings.dataset] if settings.dataset else []),
        "imatrix.chunk_count": Value.u32(sums.chunks),
        "imatrix.chunk_size": Value.u32(settings.context),
    }
    plan = FilePlan("", keys, place([(tensor, tensor.stored, None) for tensor in tensors]))
    return write_gguf(plan, out, overwrite=True).size


def _entry(name: str, sums: Sums) -> Iterator[SourceTensor]:
    squares, counts = sums.squares[name], sums.counts[name]
    for part, values in (("in_sum2", squares.reshape(len(counts), -1)), ("counts", counts.reshape(-1, 1))):
        rows, columns = values.shape
        shape = (columns, rows) if rows > 1 else (columns,)
        yield SourceTensor(f"{name}.{part}", shape, TensorType.F32, (InlineExtent(values.astype("<f4").tobytes()),))


class Legacy(NamedTuple):
    """What a `.dat` file holds: mean squares (float32) by tensor name, chunks, and the text they came from."""

    weights: dict[str, Any]
    chunks: int
    datasets: tuple[str, ...]


def read_legacy(path: Path) -> Legacy:
    """Read the format that llama-imatrix wrote before GGUF. Raises InvalidFile for anything else.

    i32 entries, then per entry: i32 length and name, i32 calls, i32 count, float32 values (the mean squares times
    calls). Then, since a later version, i32 chunks and i32 length and name of the text. All little-endian.
    """
    import numpy as np

    data = path.read_bytes()
    reader = _Reader(path, data)
    entries = reader.integer("the count of entries", 1, MAX_ENTRIES)
    weights: dict[str, Any] = {}
    for number in range(entries):
        name = reader.text(f"the name of entry {number}", MAX_NAME)
        calls = reader.integer(f"the calls of {name}", 0)
        count = reader.integer(f"the count of values of {name}", 1)
        sums = np.frombuffer(reader.take(4 * count, f"the values of {name}"), "<f4")
        weights[name] = np.ascontiguousarray(sums / np.float32(calls) if calls else sums, np.float32)
        if not np.isfinite(weights[name]).all():
            raise InvalidFile(f"{path}: {name} holds values that are not finite", "make it again: phitui imatrix MODEL")
    if reader.rest < 8:
        return Legacy(weights, 0, ())
    chunks = reader.integer("the count of chunks", 0)
    dataset = reader.text("the name of the text", 1 << 16)
    return Legacy(weights, chunks, (dataset,) if dataset else ())


class _Reader:
    """Reads one piece after the other, never beyond the end."""

    def __init__(self, path: Path, data: bytes) -> None:
        self._path, self._data, self._at = path, data, 0

    @property
    def rest(self) -> int:
        return len(self._data) - self._at

    def take(self, count: int, what: str) -> bytes:
        if count > self.rest:
            raise InvalidFile(
                f"{self._path} is not an importance matrix, or cut short: it ends within {what}",
                "phitui imatrix makes one",
            )
        self._at += count
        return self._data[self._at - count : self._at]

    def integer(self, what: str, least: int, most: int = (1 << 31) - 1) -> int:
        value: int = struct.unpack("<i", self.take(4, what))[0]
        if not least <= value <= most:
            raise InvalidFile(
                f"{self._path} is not an importance matrix: {what} is {value}", "phitui imatrix makes one"
            )
        return value

    def text(self, what: str, most: int) -> str:
        return self.take(self.integer(what, 0, most), what).decode("utf-8", "replace")
