"""Weights that are NaN or infinite: found in every float type, refused by every way of writing, told by tensor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from phitui.domain.tensors import FileExtent, FilePlan, InlineExtent, SourceTensor, TensorType, Value, place
from phitui.errors import InvalidFile
from phitui.gguf import chunks, finite, floats
from phitui.gguf.writer import WriteResult, write_gguf

WIDTH, ROWS = 64, 32
FLOATS = (TensorType.F32, TensorType.F16, TensorType.BF16)
KEYS = {"general.architecture": Value.string("x")}


class Job:
    """Keeps the notes; may cancel at the n-th report."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def progress(self, done: int, total: int, text: str = "") -> None: ...

    def check(self) -> None: ...

    def note(self, text: str) -> None:
        self.notes.append(text)


def blocks(tensor: Any, first_row: int, rows: Any) -> bytes:
    return bytes(rows.size // 32 * 34)


def stored(values: Any, kind: TensorType) -> bytes:
    return bytes(floats.narrow(np.asarray(values, np.float32), kind))


def tensor_of(path: Path, name: str, values: Any, kind: TensorType, *shape: int) -> SourceTensor:
    path.write_bytes(b"??" + stored(values, kind))  # at an odd place
    pinned = TensorType.F32 if len(shape) == 1 else None
    return SourceTensor(name, shape, kind, (FileExtent(path, 2, path.stat().st_size - 2),), pinned)


def write(tmp_path: Path, tensors: list[SourceTensor], kind: TensorType, **options: Any) -> WriteResult:
    planned = place([(one, kind if one.pinned is None else one.pinned, None) for one in tensors])
    return write_gguf(FilePlan(kind.name, KEYS, planned), tmp_path / "out.gguf", blocks, threads=2, **options)


def noise(count: int = WIDTH * ROWS) -> Any:
    return np.random.default_rng(7).normal(size=count).astype(np.float32)


@pytest.mark.parametrize("kind", FLOATS)
def test_every_word_is_judged_as_numpy_judges_it(kind: TensorType) -> None:
    words = np.arange(1 << 16, dtype=np.uint16)
    if kind is TensorType.F32:
        words = np.concatenate([words.astype(np.uint32) << 16, (words.astype(np.uint32) << 16) | 1])
    values = floats.widen(words, kind)
    bad = ~np.isfinite(values)
    assert finite.count(words, kind) == (np.isnan(values).sum(), np.isinf(values).sum())
    assert finite.first_bad(words, kind) == int(bad.argmax())
    assert finite.first_bad(words[~bad], kind) is None
    assert finite.first_bad(b"", kind) is None
    for one in np.nonzero(bad)[0][:: len(values) // 512]:
        assert finite.first_bad(words[one : one + 1], kind) == 0


def test_a_bad_word_anywhere_in_a_large_buffer() -> None:
    values = np.zeros(1 << 20, np.float32)
    for place_ in (0, 65535, 65536, 400_001, (1 << 20) - 1):
        values[place_] = -np.inf
        assert finite.first_bad(values, TensorType.F32) == place_
        values[place_] = 0


@pytest.mark.parametrize("source", FLOATS)
@pytest.mark.parametrize("target", [*FLOATS, TensorType.Q8_0])
def test_all_bad_tensors_are_named_and_nothing_stays(
    source: TensorType, target: TensorType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunks, "COPY_BYTES", 1024)
    monkeypatch.setattr(chunks, "FLOAT_VALUES", 512)
    monkeypatch.setattr(chunks, "ENCODE_VALUES", 512)
    first, second, norm = noise(), noise(), noise(WIDTH)
    first[[5 * WIDTH + 7, 9 * WIDTH]] = np.nan
    second[[20 * WIDTH, 20 * WIDTH + 1, 31 * WIDTH]] = (np.inf, -np.inf, np.nan)
    norm[3] = -np.inf
    tensors = [
        tensor_of(tmp_path / "a", "a", first, source, WIDTH, ROWS),
        tensor_of(tmp_path / "b", "b", second, source, WIDTH, ROWS // 4, 4),
        tensor_of(tmp_path / "c", "c", norm, source, WIDTH),
        tensor_of(tmp_path / "d", "d", noise(), source, WIDTH, ROWS),
    ]
    with pytest.raises(InvalidFile, match="3 tensors hold values that are no finite numbers") as caught:
        write(tmp_path, tensors, target)
    assert "a (2 NaN; first in row 5, column 7)" in caught.value.message
    assert "b (1 NaN, 2 infinite; first in row 4, column 0 of expert 2)" in caught.value.message
    assert "c (1 infinite; first at index 3)" in caught.value.message
    assert "--allow-nan" in caught.value.hint
    assert not list(tmp_path.glob("out*"))

    job = Job()
    result = write(tmp_path, tensors, target, allow_nan=True, job=job)
    assert [(one.tensor, one.nan, one.infinite) for one in result.not_finite] == [("a", 2, 0), ("b", 1, 2), ("c", 0, 1)]
    assert len(job.notes) == 3 and job.notes[0].endswith("a (2 NaN; first in row 5, column 7)")


@pytest.mark.parametrize("kind", FLOATS)
def test_what_is_allowed_is_written_as_it_is(kind: TensorType, tmp_path: Path) -> None:
    values = noise()
    values[100] = np.nan
    tensor = tensor_of(tmp_path / "a", "a", values, TensorType.BF16, WIDTH, ROWS)
    out = write(tmp_path, [tensor], kind, allow_nan=True).path
    expected = bytes(floats.convert((tmp_path / "a").read_bytes()[2:], TensorType.BF16, kind))
    assert out.read_bytes().endswith(expected)


def test_numbers_too_large_for_f16(tmp_path: Path) -> None:
    """The reference converter makes infinity of them without a word."""
    values = noise()
    values[[70, 71]] = (70000.0, -1e30)
    tensors = [tensor_of(tmp_path / "a", "a", values, TensorType.BF16, WIDTH, ROWS)]
    with pytest.raises(InvalidFile, match=r"a \(2 too large for the type; first in row 1, column 6\)") as caught:
        write(tmp_path, tensors, TensorType.F16)
    assert "larger range" in caught.value.hint
    assert not list(tmp_path.glob("out*"))
    assert write(tmp_path, tensors, TensorType.F16, allow_nan=True).not_finite[0].overflow == 2
    (tmp_path / "out.gguf").unlink()
    assert not write(tmp_path, tensors, TensorType.F32).not_finite


def test_a_quantized_source_with_a_broken_scale(tmp_path: Path) -> None:
    block = np.array([np.nan], np.float16).tobytes() + bytes(32)
    tensor = SourceTensor("a", (32, 2), TensorType.Q8_0, (InlineExtent(bytes(34) + block),))
    with pytest.raises(InvalidFile, match=r"a \(32 NaN; first in row 1, column 0\)"):
        write(tmp_path, [tensor], TensorType.Q4_0)


def test_a_long_list_is_cut(tmp_path: Path) -> None:
    bad = InlineExtent(stored([np.nan] * 4, TensorType.F32))
    tensors = [SourceTensor(f"t{n:02}", (4,), TensorType.F32, (bad,), TensorType.F32) for n in range(20)]
    with pytest.raises(
        InvalidFile, match=r"(?s)20 tensors hold .*t07 \(4 NaN; first at index 0\)\n  and 12 more tensors"
    ):
        write(tmp_path, tensors, TensorType.F32)


def test_looking_for_more_ends_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finite, "LOOK_SECONDS", -1.0)
    bad = InlineExtent(stored([np.nan] * 4, TensorType.F32))
    tensors = [SourceTensor(f"t{n:02}", (4,), TensorType.F32, (bad,), TensorType.F32) for n in range(50)]
    with pytest.raises(InvalidFile, match="the rest was not looked at"):
        write(tmp_path, tensors, TensorType.F32)


def test_a_file_begun_with_leave_is_not_finished_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was written while NaN was allowed does not count as looked at."""
    monkeypatch.setattr(chunks, "ENCODE_VALUES", WIDTH)
    values = noise()
    values[0] = np.nan
    tensor = tensor_of(tmp_path / "a", "a", values, TensorType.BF16, WIDTH, ROWS)
    plan = FilePlan("Q8_0", KEYS, place([(tensor, TensorType.Q8_0, None)]))
    calls = 0

    def stumble(tensor: Any, first_row: int, rows: Any) -> bytes:
        nonlocal calls
        calls += 1
        if calls == 20:
            raise InvalidFile("stumbled")
        return blocks(tensor, first_row, rows)

    def begin() -> None:
        with pytest.raises(InvalidFile, match="stumbled"):
            write_gguf(plan, tmp_path / "out.gguf", stumble, threads=1, allow_nan=True)

    begin()
    again = write_gguf(plan, tmp_path / "out.gguf", blocks, threads=1, allow_nan=True)
    assert again.resumed_bytes and again.not_finite[0].nan == 1, "told of on the second try too"
    (tmp_path / "out.gguf").unlink()
    calls = 0
    begin()
    with pytest.raises(InvalidFile, match=r"a \(1 NaN"):
        write_gguf(plan, tmp_path / "out.gguf", blocks, threads=1)
    assert not list(tmp_path.glob("out*"))
