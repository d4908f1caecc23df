"""Importance matrices as llama-quantize takes them: a GGUF with `NAME.in_sum2` and `NAME.counts`, or an old `.dat`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from phitui.api import InvalidFile, Metadata, PlannedTensor, SourceTensor, TensorType, Value, read_header
from phitui_quantize.imatrix_file import read_legacy

TEXT_LIMIT = 127
"""llama-quantize cuts the texts it notes in the file to this many bytes."""


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
        self._check_size(tensor.name, tensor.shape)
        found = self.weights.get(tensor.name)
        return found if found is not None and found.size == _wanted(tensor.shape) else None

    def check(self, tensors: Sequence[SourceTensor]) -> None:
        """Raise InvalidFile naming the first tensor that shows that this is another model's matrix.

        llama-quantize would notice a wrong size only, and leave layers without values without a word.
        """
        for tensor in tensors:
            self._check_size(tensor.name, tensor.shape)
        names = {tensor.name for tensor in tensors}
        strange = [name for name in self.weights if name.startswith("blk.") and name not in names]
        if strange:
            raise self._of_another_model(f"it has values for {min(strange, key=_place)}, which this model lacks")
        covered = {_block(name) for name in self.weights}
        bare = [tensor.name for tensor in tensors if len(tensor.shape) > 1 and _block(tensor.name) not in covered]
        bare = [name for name in bare if name.startswith("blk.")]
        if bare and self.weights:
            raise self._of_another_model(f"it has no values for {min(bare, key=_place)}, nor for its whole layer")

    def gaps(self, tensors: Sequence[PlannedTensor]) -> list[str]:
        """What to say of quantized weights of blocks that have no values: they are encoded as without a matrix."""
        bare = [t.name for t in tensors if not t.type.is_float and t.name.startswith("blk.")]
        bare = [name for name in bare if name not in self.weights]
        if not self.weights or not bare:
            return []
        return [f"the importance matrix has no values for {bare[0]} ({len(bare)} tensors in all)"]

    def _check_size(self, name: str, shape: tuple[int, ...]) -> None:
        found = self.weights.get(name)
        if found is not None and found.size != _wanted(shape) and name != "token_embd.weight":
            raise self._of_another_model(f"it has {found.size} values for {name}, which needs {_wanted(shape)}")

    def _of_another_model(self, why: str) -> InvalidFile:
        return InvalidFile(
            f"{self.path} was made for another model: {why}",
            "make an importance matrix with this very model: phitui imatrix MODEL",
        )


def _wanted(shape: tuple[int, ...]) -> int:
    """Values that a weight needs: one per column, and per expert."""
    return shape[0] * (shape[2] if len(shape) > 2 else 1)


def _block(name: str) -> str:
    """blk.12 of blk.12.ffn_up.weight."""
    return ".".join(name.split(".")[:2])


def _place(name: str) -> list[tuple[int, str]]:
    """Sort key: numbers in a name by their value."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in name.split(".")]


def no_imatrix() -> Imatrix:
    return Imatrix()


def read_imatrix(path: Path) -> Imatrix:
    """Read the file and divide the sums by their counts (1 where an expert was never used). Raises InvalidFile."""
    import numpy as np

    if _is_legacy(path):
        old = read_legacy(path)
        return Imatrix(str(path), old.datasets, old.chunks, old.weights)
    header = read_header(path)
    tensors = {tensor.name: tensor for tensor in header.tensors}
    names = sorted(name.removesuffix(".in_sum2") for name in tensors if name.endswith(".in_sum2"))
    keys = ("imatrix.datasets", "imatrix.chunk_count", "imatrix.chunk_size")
    if not names or any(header.get(key) is None for key in keys):
        raise InvalidFile(f"{path} is a GGUF, but not an importance matrix", "phitui imatrix makes one")
    weights: dict[str, Any] = {}
    for name in names:
        sums, counts = (_floats(path, tensors.get(f"{name}.{part}")) for part in ("in_sum2", "counts"))
        if not counts.size or sums.size % counts.size:
            raise InvalidFile(
                f"{path}: the sums and counts of {name} do not match", "make it again: phitui imatrix MODEL"
            )
        counts = np.rint(counts).astype(np.float32).reshape(-1, 1)
        table = sums.reshape(counts.size, -1)
        values = np.where(counts > 0, table / np.where(counts > 0, counts, np.float32(1)), np.float32(1))
        if not np.isfinite(values).all():
            raise InvalidFile(f"{path}: {name} holds values that are not finite", "make it again: phitui imatrix MODEL")
        weights[name] = np.ascontiguousarray(values.reshape(-1), dtype=np.float32)
    datasets = tuple(str(text) for text in header.get("imatrix.datasets"))
    return Imatrix(str(path), datasets, int(header.get("imatrix.chunk_count")), weights)


def _is_legacy(path: Path) -> bool:
    """Whether this is some other file than a GGUF."""
    try:
        with path.open("rb") as file:
            return file.read(4) != b"GGUF"
    except OSError as error:
        raise InvalidFile(f"cannot read {path}: {error.strerror}", "phitui imatrix makes one") from None


def _floats(path: Path, tensor: Any) -> Any:
    import numpy as np

    if tensor is None or tensor.type != TensorType.F32:
        raise InvalidFile(
            f"{path}: an importance matrix has F32 sums and counts for every tensor; one is missing",
            "make it again: phitui imatrix MODEL",
        )
    with path.open("rb") as file:
        file.seek(tensor.offset)
        return np.frombuffer(file.read(tensor.size), dtype="<f4")


def _cut(text: str) -> bytes:
    return text.encode()[:TEXT_LIMIT]
