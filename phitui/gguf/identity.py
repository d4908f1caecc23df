"""What a source is, by its content: a checkpoint and the GGUF that holds the same weights are the same source.

Figures are remembered with it, so it must not change when files are moved, renamed or sharded otherwise, and must
change when a weight, or a key that decides what the model computes, does.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from phitui.domain.tensors import FileExtent, InlineExtent, Metadata, SourceTensor, Value, ValueType, as_bytes

if TYPE_CHECKING:
    from phitui.domain.tensors import TensorSource

SAMPLE = 2048
"""Values from the middle of each tensor that count."""
MOST_TENSORS = 512
"""Tensors that are sampled; of more, evenly spaced ones. Names, shapes and types of all count."""
MOST_ITEMS = 4096
"""Items of an array (a vocabulary) that count; of longer ones, evenly spaced ones."""
_NOT_COMPUTED = ("tokenizer.chat_template",)
"""Keys that change no probability."""


def source_identity(source: TensorSource) -> str:
    """The identity of a source that was opened; "" where there is none (its bytes are not on this machine)."""
    return identity(source.metadata, source.tensors)


def identity(metadata: Metadata, tensors: Sequence[SourceTensor]) -> str:
    """The SHA-256 of names, shapes, stored types and samples of the tensors, and of the keys that matter.

    Floats are compared as values, and one-dimensional tensors whatever float type they are stored in: converting a
    norm to F32 loses nothing. Reads some KiB per tensor: milliseconds. "" for extents of an unknown kind.

    Raises OSError for a file that cannot be read.
    """
    if any(not isinstance(extent, FileExtent | InlineExtent) for tensor in tensors for extent in tensor.extents):
        return ""
    digest = hashlib.sha256(b"1")
    architecture = metadata.get("general.architecture")
    prefixes = (f"{architecture.value if architecture else ''}.", "tokenizer.")
    for key in sorted(metadata):
        if key.startswith(prefixes) and not key.startswith(_NOT_COMPUTED):
            digest.update(f"{key} {metadata[key].type.name} ".encode() + _value(metadata[key]))
    ordered = sorted(tensors, key=lambda tensor: tensor.name)
    step = max(1, -(-len(ordered) // MOST_TENSORS))
    with _Files() as files:
        for number, tensor in enumerate(ordered):
            kept = "float" if len(tensor.shape) == 1 and tensor.stored.is_float else tensor.stored.name
            digest.update(f"{tensor.name} {tensor.shape} {kept} ".encode())
            if number % step == 0:
                digest.update(_sample(tensor, files))
    return digest.hexdigest()


def _value(value: Value) -> bytes:
    if not value.is_array:
        return _scalar(value.value, value.type)
    items = value.value
    chosen = items[:: max(1, len(items) // MOST_ITEMS)]
    return f"[{len(items)}]".encode() + b"\0".join(_scalar(item, value.type) for item in chosen)


def _scalar(item: Any, kind: ValueType) -> bytes:
    """As in a file: a float of a config.json has more digits than the F32 that is written of it."""
    if kind is ValueType.STRING:
        return as_bytes(item)
    return struct.pack("<f", item) if kind is ValueType.FLOAT32 else repr(item).encode()


def _sample(tensor: SourceTensor, files: _Files) -> bytes:
    """The middle of a tensor: floats as F32, anything else as it is stored."""
    stored = tensor.stored
    blocks = tensor.stored_bytes // stored.block_bytes
    count = min(blocks, max(1, SAMPLE // stored.block))
    start = (blocks - count) // 2 * stored.block_bytes
    data = files.read(tensor, start, count * stored.block_bytes)
    if not stored.is_float:
        return data
    from phitui.gguf.floats import widen

    return widen(data, stored).tobytes()


class _Files:
    """The open files of a source."""

    def __init__(self) -> None:
        self._descriptors: dict[str, int] = {}

    def __enter__(self) -> _Files:
        return self

    def __exit__(self, *_: object) -> None:
        for descriptor in self._descriptors.values():
            os.close(descriptor)

    def read(self, tensor: SourceTensor, start: int, length: int) -> bytes:
        """These bytes of the tensor. Raises OSError, also where a file is cut."""
        found, wanted = bytearray(), length
        for extent in tensor.extents:
            if start < extent.length and length > 0:
                part = min(length, extent.length - start)
                if isinstance(extent, FileExtent):
                    found += os.pread(self._descriptor(str(extent.path)), part, extent.offset + start)
                elif isinstance(extent, InlineExtent):
                    found += extent.data[start : start + part]
                length -= part
            start = max(0, start - extent.length)
        if length or len(found) != wanted:
            raise OSError(f"the data of {tensor.name} is cut")
        return bytes(found)

    def _descriptor(self, path: str) -> int:
        if path not in self._descriptors:
            self._descriptors[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        return self._descriptors[path]
