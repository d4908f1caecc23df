"""Importance matrices as files: written as llama-imatrix does, the old format read, another model's refused."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("phitui_quantize")
from phitui_quantize.imatrix import no_imatrix, read_imatrix
from phitui_quantize.imatrix_file import write_imatrix
from phitui_quantize.sums import Sums

from phitui.api import ImatrixSettings
from phitui.domain.tensors import PlannedTensor, SourceTensor, TensorType
from phitui.errors import InvalidFile
from phitui.gguf.header import read_header

SQUARES = {"blk.0.a.weight": [[2.0, 4.0, 9.0]], "blk.0.e.weight": [[2.0, 4.0], [0.0, 0.0], [6.0, 9.0]]}
COUNTS = {"blk.0.a.weight": [2], "blk.0.e.weight": [2, 0, 3]}
MEANS = {"blk.0.a.weight": [1.0, 2.0, 4.5], "blk.0.e.weight": [1.0, 2.0, 1.0, 1.0, 2.0, 3.0]}


def written(path: Path, **settings: Any) -> Path:
    squares = {name: np.array(values) for name, values in SQUARES.items()}
    sums = Sums(squares, {name: np.array(values) for name, values in COUNTS.items()}, 7)
    size = write_imatrix(path, sums, ImatrixSettings(**settings))
    assert size == path.stat().st_size
    return path


def tensor(name: str, *shape: int) -> SourceTensor:
    return SourceTensor(name, shape, TensorType.F32, ())


def means(path: Path) -> dict[str, list[float]]:
    return {name: values.tolist() for name, values in read_imatrix(path).weights.items()}


def test_the_header_is_llama_imatrix_s(tmp_path: Path) -> None:
    header = read_header(written(tmp_path / "i.gguf", context=64, dataset="words.txt"))
    assert {key: header.get(key) for key in header.keys()} == {  # noqa: SIM118  (a header is no mapping)
        "general.type": "imatrix",
        "imatrix.datasets": ["words.txt"],
        "imatrix.chunk_count": 7,
        "imatrix.chunk_size": 64,
    }
    assert {t.name: (t.shape, t.type) for t in header.tensors} == {
        "blk.0.a.weight.in_sum2": ((3,), TensorType.F32),
        "blk.0.a.weight.counts": ((1,), TensorType.F32),
        "blk.0.e.weight.in_sum2": ((2, 3), TensorType.F32),
        "blk.0.e.weight.counts": ((1, 3), TensorType.F32),
    }


def test_round_trip(tmp_path: Path) -> None:
    matrix = read_imatrix(written(tmp_path / "i.gguf"))
    assert means(tmp_path / "i.gguf") == MEANS
    assert (matrix.datasets, matrix.chunks) == ((), 7)
    assert list(tmp_path.glob("i.*")) == [tmp_path / "i.gguf"]


def legacy(entries: dict[str, tuple[int, list[float]]], tail: bytes = b"") -> bytes:
    """The format before GGUF: the mean squares times calls."""
    data = struct.pack("<i", len(entries))
    for name, (calls, values) in entries.items():
        text = name.encode()
        data += struct.pack("<i", len(text)) + text + struct.pack("<ii", calls, len(values))
        data += np.array(values, "<f4").tobytes()
    return data + tail


ENTRIES = {"blk.0.a.weight": (4, [4.0, 8.0, 18.0]), "blk.0.b.weight": (0, [0.5, 0.25])}


def test_the_old_format(tmp_path: Path) -> None:
    path = tmp_path / "old.dat"
    path.write_bytes(legacy(ENTRIES, struct.pack("<ii", 12, 5) + b"w.txt"))
    matrix = read_imatrix(path)
    assert means(path) == {"blk.0.a.weight": [1.0, 2.0, 4.5], "blk.0.b.weight": [0.5, 0.25]}
    assert (matrix.datasets, matrix.chunks) == (("w.txt",), 12)
    assert {key: value.value for key, value in matrix.metadata().items()} == {
        "quantize.imatrix.file": str(path).encode(),
        "quantize.imatrix.dataset": b"w.txt",
        "quantize.imatrix.entries_count": 2,
        "quantize.imatrix.chunks_count": 12,
    }


def test_the_oldest_format_has_no_tail(tmp_path: Path) -> None:
    (tmp_path / "old.dat").write_bytes(legacy(ENTRIES))
    matrix = read_imatrix(tmp_path / "old.dat")
    assert (matrix.datasets, matrix.chunks, len(matrix.weights)) == ((), 0, 2)


@pytest.mark.parametrize("cut", [0, 3, 6, 12, 20, 30, 50])
def test_the_old_format_cut_short(cut: int, tmp_path: Path) -> None:
    (tmp_path / "old.dat").write_bytes(legacy(ENTRIES)[:cut])
    with pytest.raises(InvalidFile, match="not an importance matrix"):
        read_imatrix(tmp_path / "old.dat")


@pytest.mark.parametrize(
    "data",
    [b"some text that is no matrix at all", struct.pack("<i", 1 << 30), struct.pack("<ii", 1, -5), b"\xff" * 64],
)
def test_neither_format(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(data)
    with pytest.raises(InvalidFile, match="not an importance matrix") as caught:
        read_imatrix(tmp_path / "x")
    assert "phitui imatrix" in caught.value.hint


def test_not_finite_in_the_old_format(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(legacy({"a": (1, [1.0, float("nan")])}))
    with pytest.raises(InvalidFile, match="not finite"):
        read_imatrix(tmp_path / "x")


OWN = [tensor("token_embd.weight", 9, 5), tensor("blk.0.a.weight", 3, 4), tensor("blk.0.e.weight", 2, 4, 3)]


@pytest.mark.parametrize(
    ("tensors", "why"),
    [
        ([tensor("blk.0.a.weight", 4, 4), OWN[2]], "3 values for blk.0.a.weight, which needs 4"),
        ([OWN[1], tensor("blk.0.e.weight", 2, 4, 4)], "6 values for blk.0.e.weight, which needs 8"),
        ([OWN[1]], "values for blk.0.e.weight, which this model lacks"),
        ([*OWN, tensor("blk.2.a.weight", 3, 4), tensor("blk.10.a.weight", 3, 4)], "no values for blk.2.a.weight"),
    ],
    ids=["columns", "experts", "fewer tensors", "more layers"],
)
def test_of_another_model(tensors: list[SourceTensor], why: str, tmp_path: Path) -> None:
    matrix = read_imatrix(written(tmp_path / "i.gguf"))
    with pytest.raises(InvalidFile, match="another model") as caught:
        matrix.check(tensors)
    assert why in caught.value.message
    assert str(tmp_path / "i.gguf") in caught.value.message


def test_of_this_model(tmp_path: Path) -> None:
    """Norms and single tensors without values are no sign of another model."""
    matrix = read_imatrix(written(tmp_path / "i.gguf"))
    matrix.check(
        [*OWN, tensor("blk.0.norm.weight", 3), tensor("blk.0.router.weight", 3, 4), tensor("output.weight", 3, 9)]
    )
    assert matrix.values(PlannedTensor("output.weight", (3, 9), TensorType.Q4_0, 0, OWN[0])) is None


def test_weights_without_values_are_named(tmp_path: Path) -> None:
    def planned(name: str, type_: TensorType) -> PlannedTensor:
        return PlannedTensor(name, (32, 4), type_, 0, OWN[0])

    matrix = read_imatrix(written(tmp_path / "i.gguf"))
    names = ["output.weight", "blk.0.a.weight", "blk.0.up.weight", "blk.0.down.weight"]
    plan = [planned(name, TensorType.Q4_0) for name in names] + [planned("blk.0.router.weight", TensorType.F32)]
    assert matrix.gaps(plan) == ["the importance matrix has no values for blk.0.up.weight (2 tensors in all)"]
    assert no_imatrix().gaps(plan) == []
