"""Importance matrices: what is read, and what is refused with the reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("phitui_quantize")
from phitui_quantize.imatrix import read_imatrix

from phitui.domain.tensors import FilePlan, InlineExtent, PlannedTensor, SourceTensor, TensorType, Value, place
from phitui.domain.tensors import ValueType as Kind
from phitui.errors import InvalidFile
from phitui.gguf.writer import write_gguf

KEYS = {
    "imatrix.datasets": Value.array(Kind.STRING, ["words.txt", "more.txt"]),
    "imatrix.chunk_count": Value.u32(3),
    "imatrix.chunk_size": Value.u32(32),
}


def write(path: Path, arrays: dict[str, Any], keys: dict[str, Value] | None = None) -> Path:
    """A GGUF with these F32 (or F16) arrays."""
    import numpy as np

    tensors = []
    for name, values in arrays.items():
        data = np.asarray(values)
        stored = TensorType.F16 if data.dtype == np.float16 else TensorType.F32
        data = data if data.dtype == np.float16 else data.astype(np.float32)
        extent = InlineExtent(data.tobytes())
        tensors.append(SourceTensor(name, tuple(reversed(data.shape)), stored, (extent,)))
    plan = FilePlan("", KEYS if keys is None else keys, place([(t, t.stored, None) for t in tensors]))
    write_gguf(plan, path, allow_nan=True)
    return path


def planned(name: str, *shape: int) -> PlannedTensor:
    return PlannedTensor(name, shape, TensorType.Q4_0, 0, SourceTensor(name, shape, TensorType.F32, ()))


def test_sums_are_divided_by_counts(tmp_path: Path) -> None:
    path = write(tmp_path / "i.gguf", {"a.in_sum2": [2.0, 4.0, 9.0], "a.counts": [2.0]})
    matrix = read_imatrix(path)
    assert matrix.values(planned("a", 3)).tolist() == [1.0, 2.0, 4.5]
    assert matrix.values(planned("b", 3)) is None
    assert (matrix.datasets, matrix.chunks) == (("words.txt", "more.txt"), 3)


def test_an_expert_that_was_never_used_counts_evenly(tmp_path: Path) -> None:
    path = write(tmp_path / "i.gguf", {"a.in_sum2": [[2.0, 4.0], [0.0, 0.0]], "a.counts": [2.0, 0.0]})
    assert read_imatrix(path).values(planned("a", 2, 7, 2)).tolist() == [1.0, 2.0, 1.0, 1.0]


def test_of_another_model(tmp_path: Path) -> None:
    arrays = {"a.in_sum2": [1.0] * 4, "a.counts": [1.0], "token_embd.weight.in_sum2": [1.0] * 4}
    matrix = read_imatrix(write(tmp_path / "i.gguf", arrays | {"token_embd.weight.counts": [1.0]}))
    with pytest.raises(InvalidFile, match="another model"):
        matrix.values(planned("a", 8, 2))
    assert matrix.values(planned("token_embd.weight", 8, 2)) is None


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"a.in_sum2": [1.0]}, "one is missing"),
        ({"a.in_sum2": [1.0, 2.0, 3.0], "a.counts": [1.0, 1.0]}, "do not match"),
        ({"a.in_sum2": [float("nan")], "a.counts": [1.0]}, "not finite"),
        ({"a.weight": [1.0]}, "not an importance matrix"),
    ],
)
def test_refused(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidFile, match=message):
        read_imatrix(write(tmp_path / "i.gguf", arrays))


def test_half_floats_are_refused(tmp_path: Path) -> None:
    import numpy as np

    arrays = {"a.in_sum2": np.ones(4, np.float16), "a.counts": [1.0]}
    with pytest.raises(InvalidFile, match="F32"):
        read_imatrix(write(tmp_path / "i.gguf", arrays))


def test_a_model_is_no_importance_matrix(tmp_path: Path) -> None:
    path = write(tmp_path / "i.gguf", {"a.in_sum2": [1.0], "a.counts": [1.0]}, keys={})
    with pytest.raises(InvalidFile, match="not an importance matrix"):
        read_imatrix(path)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InvalidFile):
        read_imatrix(tmp_path / "none.gguf")
