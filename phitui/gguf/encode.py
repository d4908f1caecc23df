"""The header of a GGUF file, encoded from a plan. The layout is described in phitui.gguf.header."""

from __future__ import annotations

import struct
from typing import Any

from phitui.domain.tensors import ALIGNMENT, FilePlan, Value, ValueType, align, as_bytes

MAGIC = b"GGUF"
VERSION = 3
SCALARS = {
    ValueType.UINT8: "B",
    ValueType.INT8: "b",
    ValueType.UINT16: "H",
    ValueType.INT16: "h",
    ValueType.UINT32: "I",
    ValueType.INT32: "i",
    ValueType.FLOAT32: "f",
    ValueType.BOOL: "?",
    ValueType.UINT64: "Q",
    ValueType.INT64: "q",
    ValueType.FLOAT64: "d",
}
STRUCTS = {type_: struct.Struct("<" + code) for type_, code in SCALARS.items()}
U32, U64 = struct.Struct("<I"), struct.Struct("<Q")


def encode_header(plan: FilePlan) -> bytes:
    """The header of the planned file, padded: the data section starts right after it. Raises ValueError for a plan
    whose offsets or alignment cannot be."""
    _check(plan)
    parts = [MAGIC, struct.pack("<IQQ", VERSION, len(plan.tensors), len(plan.metadata))]
    for key, value in plan.metadata.items():
        parts += [encode_string(key), _encode_value(value)]
    for tensor in plan.tensors:
        parts += [
            encode_string(tensor.name),
            struct.pack(f"<I{len(tensor.shape)}Q", len(tensor.shape), *tensor.shape),
            struct.pack("<IQ", tensor.type, tensor.offset),
        ]
    raw = b"".join(parts)
    return raw.ljust(align(len(raw), plan.alignment), b"\0")


def file_size(plan: FilePlan) -> int:
    """The exact size of the planned file, in bytes."""
    fixed = 24 + sum(len(encode_string(key)) + value.encoded_size for key, value in plan.metadata.items())
    infos = sum(len(encode_string(tensor.name)) + 4 + 8 * len(tensor.shape) + 12 for tensor in plan.tensors)
    return align(fixed + infos, plan.alignment) + plan.data_size


def _check(plan: FilePlan) -> None:
    named = plan.metadata.get("general.alignment", Value.u32(ALIGNMENT)).value
    if named != plan.alignment:
        raise ValueError(f"general.alignment is {named}, the plan's alignment {plan.alignment}")
    end = 0
    for tensor in sorted(plan.tensors, key=lambda tensor: tensor.offset):
        if tensor.offset < end or tensor.offset % plan.alignment:
            raise ValueError(f"tensor {tensor.name} has the impossible offset {tensor.offset}")
        end = tensor.offset + tensor.size


def encode_string(text: str | bytes) -> bytes:
    """Length and bytes, as every string of a header stands there."""
    raw = as_bytes(text)
    return U64.pack(len(raw)) + raw


def _encode_value(value: Value) -> bytes:
    if not value.is_array:
        return U32.pack(value.type) + _encode_items(value.type, [value.value])
    start = struct.pack("<IIQ", ValueType.ARRAY, value.type, len(value.value))
    return start + _encode_items(value.type, value.value)


def _encode_items(type_: ValueType, items: Any) -> bytes:
    if type_ is ValueType.STRING:
        return b"".join([encode_string(item) for item in items])
    return struct.pack(f"<{len(items)}{SCALARS[type_]}", *items)
