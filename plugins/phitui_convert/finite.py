"""Reads all weights and names every tensor that holds NaN or infinity: what --check-weights does.

Quantizing refuses such values by itself, at the first one it meets. Copying floats does not look at them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from phitui.api import FileExtent, InvalidFile, SourceTensor, TensorType

_EXPONENTS = {TensorType.F32: 0x7F80_0000, TensorType.F16: 0x7C00, TensorType.BF16: 0x7F80}
"""The bits of the exponent; all of them are set in NaN and infinity, and in nothing else (IEEE 754)."""
_STEP = 8 << 20
"""Bytes read at once; a multiple of every width."""
_SHOWN = 8


def check(origin: Path, tensors: Sequence[SourceTensor]) -> None:
    """Raise InvalidFile that names the tensors, with the count of such values in each."""
    found = {tensor.name: count for tensor in tensors if (count := _count(tensor))}
    if not found:
        return
    lines = [f"{name} ({count:,} of them)" for name, count in found.items()]
    more = f", and {len(lines) - _SHOWN} more" if len(lines) > _SHOWN else ""
    tensors_are = "tensor holds" if len(lines) == 1 else "tensors hold"
    raise InvalidFile(
        f"{origin}: {len(lines)} {tensors_are} values that are NaN or infinite: {', '.join(lines[:_SHOWN])}{more}",
        "download the checkpoint again and compare its checksums; without --check-weights a float scheme copies them",
    )


def _count(tensor: SourceTensor) -> int:
    import numpy as np

    mask = _EXPONENTS[tensor.stored]
    kind: Any = np.uint32 if tensor.stored is TensorType.F32 else np.uint16
    total = 0
    for extent in tensor.extents:
        for block in _blocks(extent) if isinstance(extent, FileExtent) else (extent.data,):
            bits: Any = np.frombuffer(block, kind)
            total += int(np.count_nonzero((bits & mask) == mask))
    return total


def _blocks(extent: FileExtent) -> Iterator[bytes]:
    try:
        with extent.path.open("rb") as file:
            file.seek(extent.offset)
            for start in range(0, extent.length, _STEP):
                wanted = min(_STEP, extent.length - start)
                block = file.read(wanted)
                if len(block) != wanted:
                    raise InvalidFile(f"{extent.path}: is truncated", "download it again")
                yield block
    except OSError as error:
        raise InvalidFile(f"{extent.path}: cannot be read: {error.strerror}") from None
