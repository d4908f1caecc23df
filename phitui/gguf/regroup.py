"""Plans that put the tensors of a GGUF into other files and leave them as they are: split, merged, or with other keys.

The rule where one shard ends and the next begins is that of llama.cpp's llama-gguf-split, so that the same limit gives
the same files: tensor data alone counts, each tensor padded, and the header of a shard comes on top.
"""

from __future__ import annotations

from collections.abc import Sequence

from phitui.domain.tensors import (
    ALIGNMENT,
    FileExtent,
    FilePlan,
    Metadata,
    SourceTensor,
    TensorType,
    Value,
    ValueType,
    align,
    place,
)
from phitui.errors import UsageError
from phitui.gguf.header import Header, HeaderTensor
from phitui.gguf.shards import COUNT, MAX_SHARDS, NO, SPLIT_KEYS, TENSORS

ALIGN_KEY = "general.alignment"


def copied(header: Header, metadata: Metadata | None = None) -> FilePlan:
    """One file with all tensors of a model, in their order; without other `metadata`, with the keys it has."""
    found = header.metadata() if metadata is None else metadata
    return _plan("COPY", found, header.tensors, _alignment(found))


def merged(header: Header) -> FilePlan:
    """The one file of a split model (a header of read_model). Raises UsageError if it is not split."""
    if len(header.files) < 2:
        raise UsageError(f"{header.path} is one file, not a part of a split model", "there is nothing to merge")
    return copied(header)


def shards(
    header: Header, max_size: int | None = None, max_tensors: int | None = None, bare_first: bool = False
) -> list[FilePlan]:
    """The files of a model (a header of read_model) cut after `max_size` bytes of tensors or after `max_tensors`.

    `bare_first`: the first file holds keys only. Raises UsageError for a limit that cannot be kept or cuts nothing.
    """
    groups = _groups(header, max_size, max_tensors)
    if bare_first:
        groups.insert(0, [])
    if len(groups) < 2:
        size = sum(tensor.size for tensor in header.tensors)
        raise UsageError(
            f"nothing to split: all {len(header.tensors)} tensors ({size} bytes) go into one file",
            "choose a smaller --max-size or --max-tensors",
        )
    if len(groups) > MAX_SHARDS:
        raise UsageError(f"that would make {len(groups)} files; {MAX_SHARDS} are possible", "choose a larger limit")
    keys = {key: value for key, value in header.metadata().items() if key not in SPLIT_KEYS}
    aligned = {key: value for key, value in keys.items() if key == ALIGN_KEY}
    total = len(header.tensors)
    return [
        _plan("SPLIT", {**(aligned if number else keys), **_marks(number, len(groups), total)}, group, header.alignment)
        for number, group in enumerate(groups)
    ]


def _marks(number: int, count: int, tensors: int) -> dict[str, Value]:
    """The keys of one shard, in the order and with the types that llama.cpp writes (and insists on)."""
    return {
        NO: Value(ValueType.UINT16, number),
        TENSORS: Value(ValueType.INT32, tensors),
        COUNT: Value(ValueType.UINT16, count),
    }


def _groups(header: Header, max_size: int | None, max_tensors: int | None) -> list[list[HeaderTensor]]:
    if (max_size is None) == (max_tensors is None):
        raise UsageError("how the file is cut is not clear", "give one of --max-size and --max-tensors")
    if max_size is not None:
        return _by_size(header, max_size)
    if not max_tensors or max_tensors < 1:
        raise UsageError(f"{max_tensors} tensors per file is no limit", "for example: --max-tensors 128")
    tensors = list(header.tensors)
    return [tensors[start : start + max_tensors] for start in range(0, len(tensors), max_tensors)]


def _by_size(header: Header, max_size: int) -> list[list[HeaderTensor]]:
    groups: list[list[HeaderTensor]] = []
    used = 0
    for tensor in header.tensors:
        size = align(tensor.size, header.alignment)
        if size > max_size:
            raise UsageError(
                f"tensor {tensor.name} alone has {size} bytes, more than --max-size {max_size}",
                f"choose at least --max-size {max(align(t.size, header.alignment) for t in header.tensors)}",
            )
        if not groups or used + size > max_size:
            groups.append([])
            used = 0
        groups[-1].append(tensor)
        used += size
    return groups


def _alignment(metadata: Metadata) -> int:
    found = metadata.get(ALIGN_KEY)
    return int(found.value) if found is not None else ALIGNMENT


def _plan(scheme: str, metadata: Metadata, tensors: Sequence[HeaderTensor], alignment: int) -> FilePlan:
    stored: list[tuple[SourceTensor, TensorType, TensorType | None]] = [
        (SourceTensor(t.name, t.shape, t.type, (FileExtent(t.path, t.offset, t.size),)), t.type, None) for t in tensors
    ]
    return FilePlan(scheme, metadata, place(stored, alignment), alignment)
