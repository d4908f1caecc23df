"""Write a safetensors file: an 8-byte little-endian length, a JSON header, then the bytes of the tensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write_safetensors(path: Path, tensors: Mapping[str, tuple[str, tuple[int, ...], Any]]) -> int:
    """Write name -> (dtype such as "BF16", shape in PyTorch's order, bytes-like). Returns the bytes of tensor data.

    The header is padded with blanks to 8 bytes, as the format asks for. Not atomic: write into a directory that is
    renamed when it is complete.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, (dtype, shape, data) in tensors.items():
        size = memoryview(data).nbytes
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for _, _, data in tensors.values():
            stream.write(memoryview(data).cast("B"))
    return offset
