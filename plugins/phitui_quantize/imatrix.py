"""Importance matrices in llama.cpp's GGUF format: per tensor, `NAME.in_sum2` and `NAME.counts`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from phitui.api import InvalidFile, Metadata, PlannedTensor, TensorType, Value, read_header

TEXT_LIMIT = 127
"""llama-quantize cuts the texts it notes in the file to this many bytes."""


OLD_FORMAT = "llama-imatrix writes it; convert an old .dat file with llama-imatrix --in-file OLD --output-format gguf"


@dataclass(frozen=True)
class Imatrix:
    """Mean squared activations by tensor name: float32, one value per column (and per expert)."""

    path: str = ""
    datasets: tuple[str, ...] = ()
    chunks: int = 0
    weights: Mapping[str, Any] = field(default_factory=dict)

    @property
    def sizes(self) -> dict[str, int]:
        return {name: int(values.size) for name, values in self.weights.items()}

    def metadata(self) -> Metadata:
        """The keys by which llama-quantize says which matrix it used."""
        if not self.weights:
            return {}
        keys = {"quantize.imatrix.file": Value.string(_cut(self.path))}
        if self.datasets:
            keys["quantize.imatrix.dataset"] = Value.string(_cut(self.datasets[0]))
        keys["quantize.imatrix.entries_count"] = Value.u32(len(self.weights))
        if self.chunks > 0:
            keys["quantize.imatrix.chunks_count"] = Value.u32(self.chunks)
        return keys

    def values(self, tensor: PlannedTensor) -> Any:
        """The values for one tensor, or None. Raises InvalidFile where they belong to another model."""
        found = self.weights.get(tensor.name)
        if found is None:
            return None
        wanted = tensor.shape[0] * (tensor.shape[2] if len(tensor.shape) > 2 else 1)
        if found.size == wanted:
            return found
        if tensor.name == "token_embd.weight":
            return None
        raise InvalidFile(
            f"{self.path}: {found.size} values for {tensor.name}, which has {wanted}: it was made for another model",
            "make an importance matrix with this very model",
        )


def no_imatrix() -> Imatrix:
    return Imatrix()


def read_imatrix(path: Path) -> Imatrix:
    """Read the file and divide the sums by their counts (1 where an expert was never used). Raises InvalidFile."""
    import numpy as np

    try:
        header = read_header(path)
    except InvalidFile as error:
        raise InvalidFile(f"not an importance matrix in llama.cpp's GGUF format: {error.message}", OLD_FORMAT) from None
    tensors = {tensor.name: tensor for tensor in header.tensors}
    names = sorted(name.removesuffix(".in_sum2") for name in tensors if name.endswith(".in_sum2"))
    keys = ("imatrix.datasets", "imatrix.chunk_count", "imatrix.chunk_size")
    if not names or any(header.get(key) is None for key in keys):
        raise InvalidFile(
            f"{path} is not an importance matrix in llama.cpp's GGUF format",
            OLD_FORMAT,
        )
    weights: dict[str, Any] = {}
    for name in names:
        sums, counts = (_floats(path, tensors.get(f"{name}.{part}")) for part in ("in_sum2", "counts"))
        if not counts.size or sums.size % counts.size:
            raise InvalidFile(f"{path}: the sums and counts of {name} do not match")
        counts = np.rint(counts).astype(np.float32).reshape(-1, 1)
        table = sums.reshape(counts.size, -1)
        values = np.where(counts > 0, table / np.where(counts > 0, counts, np.float32(1)), np.float32(1))
        if not np.isfinite(values).all():
            raise InvalidFile(f"{path}: {name} holds values that are not finite")
        weights[name] = np.ascontiguousarray(values.reshape(-1), dtype=np.float32)
    datasets = tuple(str(text) for text in header.get("imatrix.datasets"))
    return Imatrix(str(path), datasets, int(header.get("imatrix.chunk_count")), weights)


def _floats(path: Path, tensor: Any) -> Any:
    import numpy as np

    if tensor is None or tensor.type != TensorType.F32:
        raise InvalidFile(f"{path}: an importance matrix has F32 sums and counts for every tensor; one is missing")
    with path.open("rb") as file:
        file.seek(tensor.offset)
        return np.frombuffer(file.read(tensor.size), dtype="<f4")


def _cut(text: str) -> bytes:
    return text.encode()[:TEXT_LIMIT]
