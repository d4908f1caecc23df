"""An existing GGUF as a tensor source, in one file or split over several."""

from __future__ import annotations

from pathlib import Path

from phitui.domain.tensors import FileExtent, Source, SourceTensor
from phitui.errors import InvalidFile
from phitui.gguf.header import Header
from phitui.gguf.shards import read_model

PLANNED_KEYS = ("general.file_type", "general.quantization_version", "general.alignment")
"""Keys that belong to a file, not to a model: a plan sets them."""


def gguf_source(path: Path | str) -> Source:
    """The model of a GGUF file, its tensors stored as they are. Any file of a split model means all of it.

    Raises InvalidFile.
    """
    header = read_model(path)
    architecture = header.get("general.architecture")
    if not isinstance(architecture, str):
        raise InvalidFile(f"{header.path}: the key general.architecture is missing, so it is not a model")
    metadata = {key: value for key, value in header.metadata().items() if key not in PLANNED_KEYS}
    return Source(header.path, architecture, metadata, tuple(_tensors(header)))


def _tensors(header: Header) -> list[SourceTensor]:
    """A 1-D tensor is pinned to the type it has: no scheme of llama.cpp quantizes it."""
    return [
        SourceTensor(
            tensor.name,
            tensor.shape,
            tensor.type,
            (FileExtent(tensor.path, tensor.offset, tensor.size),),
            pinned=tensor.type if len(tensor.shape) == 1 else None,
        )
        for tensor in header.tensors
    ]
