"""A source is known by its content: moved or sharded otherwise, or written without loss, it is the same."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from phitui.domain.tensors import (
    FileExtent,
    FilePlan,
    InlineExtent,
    Source,
    SourceTensor,
    TensorType,
    Value,
    ValueType,
    place,
)
from phitui.gguf.floats import narrow
from phitui.gguf.identity import identity, source_identity
from phitui.gguf.source import gguf_source
from phitui.gguf.writer import write_gguf

KEYS = {
    "general.architecture": Value.string("phi3"),
    "general.name": Value.string("Tiny"),
    "phi3.attention.layer_norm_rms_epsilon": Value.f32(1e-5),
    "phi3.block_count": Value.u32(1),
    "tokenizer.ggml.tokens": Value.array(ValueType.STRING, ["a", b"\xff", "c"]),
    "tokenizer.chat_template": Value.string("{{ messages }}"),
}


def weights(seed: int = 0, count: int = 64 * 96) -> bytes:
    import numpy as np

    values = np.random.default_rng(seed).normal(size=count).astype(np.float32)
    return bytes(narrow(values, TensorType.BF16))


def checkpoint(folder: Path, seed: int = 0, keys: dict[str, Value] | None = None) -> Source:
    """Two tensors in one file, as a converter describes them: the norm will be F32."""
    folder.mkdir(exist_ok=True)
    matrix, norm = weights(seed), weights(1, 64)
    (folder / "w").write_bytes(matrix + norm)
    tensors = (
        SourceTensor("a.weight", (64, 96), TensorType.BF16, (FileExtent(folder / "w", 0, len(matrix)),)),
        SourceTensor("n.weight", (64,), TensorType.BF16, (FileExtent(folder / "w", len(matrix), 128),), TensorType.F32),
    )
    return Source(folder, "phi3", KEYS | (keys or {}), tensors)


def written(source: Source, path: Path, kind: TensorType = TensorType.BF16) -> Source:
    plan = FilePlan("X", source.metadata, place([(t, t.pinned or kind, None) for t in source.tensors]))
    write_gguf(plan, path, None)
    return gguf_source(path)


def test_a_lossless_gguf_is_the_same_source(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "c")
    assert len(source_identity(source)) == 64
    assert source_identity(written(source, tmp_path / "b.gguf")) == source_identity(source)


def test_a_lossy_one_is_another(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "c")
    assert source_identity(written(source, tmp_path / "h.gguf", TensorType.F16)) != source_identity(source)


def test_it_moves_with_the_files(tmp_path: Path) -> None:
    before = source_identity(checkpoint(tmp_path / "c"))
    shutil.rmtree(tmp_path / "c")
    assert source_identity(checkpoint(tmp_path / "elsewhere")) == before


def test_shards_make_no_difference(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "c")
    data = weights()
    (tmp_path / "x").write_bytes(data[:5000])
    parts = (FileExtent(tmp_path / "x", 0, 5000), InlineExtent(data[5000:]))
    sharded = replace(source, tensors=(replace(source.tensors[0], extents=parts), source.tensors[1]))
    assert source_identity(sharded) == source_identity(source)


@pytest.mark.parametrize(
    ("keys", "same"),
    [
        ({"general.name": Value.string("Renamed")}, True),
        ({"tokenizer.chat_template": Value.string("other")}, True),
        ({"phi3.block_count": Value.u32(2)}, False),
        ({"phi3.rope.freq_base": Value.f32(5e5)}, False),
        ({"tokenizer.ggml.tokens": Value.array(ValueType.STRING, ["a", b"\xfe", "c"])}, False),
    ],
)
def test_keys_that_decide_what_is_computed(tmp_path: Path, keys: dict[str, Value], same: bool) -> None:
    before = source_identity(checkpoint(tmp_path / "c"))
    assert (source_identity(checkpoint(tmp_path / "c", keys=keys)) == before) is same


def test_other_weights_are_another_source(tmp_path: Path) -> None:
    assert source_identity(checkpoint(tmp_path / "c")) != source_identity(checkpoint(tmp_path / "d", seed=7))


def test_bytes_that_are_elsewhere_have_no_identity(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Elsewhere:
        length: int

    source = checkpoint(tmp_path / "c")
    far: Any = replace(source.tensors[0], extents=(Elsewhere(64 * 96 * 2),))  # type: ignore[arg-type]
    assert identity(source.metadata, [far]) == ""


def test_a_cut_file_is_an_error(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "c")
    (tmp_path / "c" / "w").write_bytes(b"short")
    with pytest.raises(OSError, match="cut"):
        source_identity(source)
