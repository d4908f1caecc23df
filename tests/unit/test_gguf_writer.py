"""The writer: what it writes is what was planned, whatever the cut, the threads and the interruptions."""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import math
import os
import threading
import time
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from phitui.domain.tensors import (
    FileExtent,
    FilePlan,
    InlineExtent,
    PlannedTensor,
    SourceTensor,
    TensorType,
    Value,
    ValueType,
    place,
)
from phitui.errors import Cancelled, InvalidFile, PhituiError, UsageError
from phitui.gguf import chunks
from phitui.gguf.floats import narrow, widen
from phitui.gguf.header import encode_header, file_size, read_header
from phitui.gguf.source import gguf_source
from phitui.gguf.writer import write_gguf

rng = np.random.default_rng(3)


class Job:
    """Records progress; cancels after so many reports."""

    def __init__(self, cancel_after: int | None = None) -> None:
        self.reports: list[tuple[int, int]] = []
        self.cancel_after = cancel_after

    def progress(self, done: int, total: int, text: str = "") -> None:
        self.reports.append((done, total))

    def note(self, text: str) -> None:
        pass

    def check(self) -> None:
        if self.cancel_after is not None and len(self.reports) > self.cancel_after:
            raise Cancelled


def q8(tensor: PlannedTensor, first_row: int, rows: Any) -> Any:
    return gguf.quants.quantize(rows, gguf.GGMLQuantizationType(int(tensor.type))).tobytes()


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "COPY_BYTES", 1000)
    monkeypatch.setattr(chunks, "FLOAT_VALUES", 300)
    monkeypatch.setattr(chunks, "ENCODE_VALUES", 128)


def sources(directory: Path) -> list[SourceTensor]:
    """Tensors of all kinds in two files, at odd offsets, one of them in three pieces."""
    values = {
        name: rng.standard_normal(n).astype(np.float32) for name, n in [("a", 64 * 50), ("b", 96), ("c", 32 * 60)]
    }
    bf16 = {name: bytes(narrow(array, TensorType.BF16)) for name, array in values.items()}
    one, two = directory / "one.bin", directory / "two.bin"
    one.write_bytes(b"?" * 13 + bf16["a"] + bf16["b"])
    two.write_bytes(b"!" * 7 + bf16["c"][2000:] + b"#" * 5 + bf16["c"][:1001] + bf16["c"][1001:2000])
    a, c = len(bf16["a"]), len(bf16["c"]) - 2000
    pieces = (FileExtent(two, 12 + c, 1001), FileExtent(two, 12 + c + 1001, 999), FileExtent(two, 7, c))
    factors = np.linspace(1, 2, 24, dtype=np.float32).tobytes()
    return [
        SourceTensor("a", (64, 50), TensorType.BF16, (FileExtent(one, 13, a),)),
        SourceTensor("b", (96,), TensorType.BF16, (FileExtent(one, 13 + a, 192),), pinned=TensorType.F32),
        SourceTensor("c", (32, 20, 3), TensorType.BF16, pieces),
        SourceTensor("factors", (24,), TensorType.F32, (InlineExtent(factors),), pinned=TensorType.F32),
    ]


def plan_of(tensors: list[SourceTensor], kind: TensorType) -> FilePlan:
    metadata = {"general.architecture": Value.string("phi3"), "tokens": Value.array(ValueType.STRING, ["a", "ب"])}
    return FilePlan(kind.name, metadata, place([(t, kind if t.pinned is None else t.pinned, None) for t in tensors]))


def data(tensor: SourceTensor) -> bytes:
    parts = []
    for extent in tensor.extents:
        if isinstance(extent, FileExtent):
            parts.append(extent.path.read_bytes()[extent.offset : extent.offset + extent.length])
        else:
            parts.append(extent.data)
    return b"".join(parts)


def expected(plan: FilePlan) -> bytes:
    """The file as it must be, made the simple way."""
    raw = bytearray(file_size(plan))
    header = encode_header(plan)
    raw[: len(header)] = header
    for tensor in plan.tensors:
        stored = data(tensor.source)
        if tensor.type is tensor.source.stored:
            made = stored
        elif tensor.type.is_float:
            made = bytes(narrow(widen(stored, tensor.source.stored), tensor.type))
        else:
            made = q8(tensor, 0, widen(stored, tensor.source.stored).reshape(-1, tensor.shape[0]))
        start = len(header) + tensor.offset
        raw[start : start + len(made)] = made
    return bytes(raw)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("kind", [TensorType.BF16, TensorType.F16, TensorType.F32, TensorType.Q8_0])
@pytest.mark.usefixtures("small_chunks")
def test_writes_what_was_planned(tmp_path: Path, kind: TensorType, threads: int) -> None:
    plan = plan_of(sources(tmp_path), kind)
    out, job = tmp_path / "out.gguf", Job()
    result = write_gguf(plan, out, q8, job, threads)
    assert out.read_bytes() == expected(plan)
    assert (result.path, result.size, result.resumed_bytes) == (out, file_size(plan), 0)
    assert sorted(path.name for path in tmp_path.iterdir() if "out" in path.name) == ["out.gguf"]
    total = sum(tensor.size for tensor in plan.tensors)
    assert job.reports[-1] == (total, total)
    assert job.reports == sorted(job.reports)


def test_the_gguf_package_reads_it(tmp_path: Path) -> None:
    plan = plan_of(sources(tmp_path), TensorType.BF16)
    write_gguf(plan, tmp_path / "out.gguf")
    reader = gguf.GGUFReader(tmp_path / "out.gguf")
    assert reader.fields["general.architecture"].contents() == "phi3"
    assert reader.fields["tokens"].contents() == ["a", "ب"]
    found = {tensor.name: tensor for tensor in reader.tensors}
    assert list(found) == [tensor.name for tensor in plan.tensors]
    for tensor in plan.tensors:
        assert tuple(int(n) for n in found[tensor.name].shape) == tensor.shape
        assert int(found[tensor.name].tensor_type) == tensor.type
    assert found["c"].data.tobytes() == data(plan.tensors[2].source)


def test_a_gguf_becomes_another_and_back(tmp_path: Path) -> None:
    first = plan_of(sources(tmp_path), TensorType.BF16)
    write_gguf(first, tmp_path / "1.gguf")
    source = gguf_source(tmp_path / "1.gguf")
    again = dataclasses.replace(first, tensors=place([(t, t.stored, None) for t in source.tensors]))
    write_gguf(again, tmp_path / "2.gguf")
    assert (tmp_path / "2.gguf").read_bytes() == (tmp_path / "1.gguf").read_bytes()
    assert [t.type for t in read_header(tmp_path / "2.gguf").tensors] == [t.type for t in first.tensors]


def test_a_file_without_tensors(tmp_path: Path) -> None:
    plan = FilePlan("F32", {"general.architecture": Value.string("x")}, ())
    assert write_gguf(plan, tmp_path / "out.gguf").size == file_size(plan)
    assert read_header(tmp_path / "out.gguf").tensors == ()


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("problem", [errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, None])
def test_copies_where_the_kernel_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, problem: int | None) -> None:
    """Another file system, an old kernel, a short copy, no such call at all: the same bytes."""
    plan = plan_of(sources(tmp_path), TensorType.BF16)
    calls = 0

    def refuse(source: int, target: int, count: int, offset_src: int, offset_dst: int) -> int:
        nonlocal calls
        calls += 1
        if problem is None:
            return os.pwrite(target, os.pread(source, min(count, 11), offset_src), offset_dst) if calls % 3 else 0
        raise OSError(problem, os.strerror(problem))

    monkeypatch.setattr(os, "copy_file_range", refuse, raising=False)
    write_gguf(plan, tmp_path / "1.gguf")
    monkeypatch.delattr(os, "copy_file_range")
    write_gguf(plan, tmp_path / "2.gguf")
    assert calls
    assert (tmp_path / "1.gguf").read_bytes() == (tmp_path / "2.gguf").read_bytes() == expected(plan)


def test_chunks_cover_every_byte_once_and_no_matrix_border(small_chunks: None, tmp_path: Path) -> None:
    for kind in (TensorType.BF16, TensorType.F16, TensorType.Q8_0):
        plan = plan_of(sources(tmp_path), kind)
        cut = chunks.split(plan)
        assert [chunk.number for chunk in cut] == list(range(len(cut)))
        for tensor in plan.tensors:
            pieces = [chunk for chunk in cut if chunk.tensor is tensor]
            ends = [0, *(chunk.start + chunk.length for chunk in pieces)]
            assert ends[:-1] == [chunk.start for chunk in pieces]
            assert ends[-1] == tensor.size
            for chunk in pieces:
                if chunk.kind == "encode" and len(tensor.shape) > 2:
                    assert chunk.first_row // tensor.shape[1] == (chunk.first_row + chunk.rows - 1) // tensor.shape[1]


@pytest.mark.usefixtures("small_chunks")
def test_cancel_leaves_what_a_second_try_goes_on_from(tmp_path: Path) -> None:
    plan = plan_of(sources(tmp_path), TensorType.Q8_0)
    out = tmp_path / "out.gguf"
    seen: list[tuple[str, int]] = []
    cancelled = threading.Event()

    class Canceller(Job):
        """Cancels while the sixth chunk is being encoded."""

        def check(self) -> None:
            if len(seen) > 5:
                cancelled.set()
                raise Cancelled

    def slow(tensor: PlannedTensor, first_row: int, rows: Any) -> Any:
        seen.append((tensor.name, first_row))
        if len(seen) > 5 and not again:
            assert cancelled.wait(30)
            time.sleep(0.05)  # the threads are told to stop a moment later
        return q8(tensor, first_row, rows)

    again = False
    with pytest.raises(Cancelled):
        write_gguf(plan, out, slow, Canceller(), 2)
    assert not out.exists()
    assert (tmp_path / "out.gguf.partial").exists() and (tmp_path / "out.gguf.partial.journal").exists()
    first, seen, again = seen, [], True
    job = Job()
    result = write_gguf(plan, out, slow, job, 2)
    assert out.read_bytes() == expected(plan)
    assert len(first) >= 6 and seen and not set(first) & set(seen)
    assert 0 < result.resumed_bytes < job.reports[-1][1]
    assert job.reports[0][0] >= result.resumed_bytes
    assert not list(tmp_path.glob("out.gguf.*"))


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("change", ["scheme", "metadata", "source", "encoder", "size", "journal"])
def test_a_changed_request_starts_over(tmp_path: Path, change: str) -> None:
    plan = plan_of(sources(tmp_path), TensorType.Q8_0)
    out = tmp_path / "out.gguf"

    def slow(tensor: PlannedTensor, first_row: int, rows: Any) -> Any:
        time.sleep(0.01)
        return q8(tensor, first_row, rows)

    with pytest.raises(Cancelled):
        write_gguf(plan, out, slow, Job(cancel_after=1), 2)
    encoder: Any = q8
    if change == "scheme":
        plan = plan_of([t.source for t in plan.tensors], TensorType.BF16)
    elif change == "metadata":
        plan = dataclasses.replace(plan, metadata={"general.architecture": Value.string("PHI3")})
    elif change == "source":
        path = tmp_path / "one.bin"
        path.write_bytes(path.read_bytes()[::-1])
    elif change == "encoder":
        encoder = type("Other", (), {"identity": "imatrix 2", "__call__": staticmethod(q8)})()
    elif change == "size":
        os.truncate(tmp_path / "out.gguf.partial", 100)
    else:
        (tmp_path / "out.gguf.partial.journal").write_bytes(b"\xff\0nonsense\n")
    assert write_gguf(plan, out, encoder).resumed_bytes == 0
    assert out.read_bytes() == expected(plan)


def test_cancel_takes_effect_while_a_chunk_is_encoded(tmp_path: Path) -> None:
    plan = plan_of(sources(tmp_path), TensorType.Q8_0)

    def slow(tensor: PlannedTensor, first_row: int, rows: Any) -> Any:
        time.sleep(0.2)
        return q8(tensor, first_row, rows)

    started = time.monotonic()
    with pytest.raises(Cancelled):
        write_gguf(plan, tmp_path / "out.gguf", slow, Job(cancel_after=0), 1)
    assert time.monotonic() - started < 1.0


@pytest.mark.usefixtures("small_chunks")
def test_a_failing_encoder_stops_all_threads(tmp_path: Path) -> None:
    plan = plan_of(sources(tmp_path), TensorType.Q8_0)
    calls = []

    def fails(tensor: PlannedTensor, first_row: int, rows: Any) -> Any:
        calls.append(first_row)
        if len(calls) > 3:
            raise PhituiError("this encoder is broken")
        return q8(tensor, first_row, rows)

    with pytest.raises(PhituiError, match="broken"):
        write_gguf(plan, tmp_path / "out.gguf", fails, None, 2)
    assert len(calls) <= 6
    assert not (tmp_path / "out.gguf").exists()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("phitui-write")]


def test_an_encoder_that_lies_about_its_size(tmp_path: Path) -> None:
    plan = plan_of(sources(tmp_path), TensorType.Q8_0)
    with pytest.raises(PhituiError, match="the encoder made 3 bytes"):
        write_gguf(plan, tmp_path / "out.gguf", lambda tensor, first_row, rows: b"abc")


def test_rows_are_given_as_float32_rows(tmp_path: Path) -> None:
    plan = plan_of(sources(tmp_path), TensorType.Q8_0)

    def look(tensor: PlannedTensor, first_row: int, rows: Any) -> Any:
        assert rows.dtype == np.float32 and rows.flags.c_contiguous and rows.shape[1] == tensor.shape[0]
        stored = widen(data(tensor.source), TensorType.BF16).reshape(-1, tensor.shape[0])
        assert np.array_equal(rows, stored[first_row : first_row + len(rows)])
        return q8(tensor, first_row, rows)

    write_gguf(plan, tmp_path / "out.gguf", look)


def test_outputs_that_cannot_be(tmp_path: Path) -> None:
    plan = plan_of(sources(tmp_path), TensorType.BF16)
    out = tmp_path / "out.gguf"
    out.write_text("mine")
    with pytest.raises(UsageError, match="there already") as caught:
        write_gguf(plan, out)
    assert "--overwrite" in caught.value.hint and out.read_text() == "mine"
    assert write_gguf(plan, out, overwrite=True).size == out.stat().st_size
    with pytest.raises(UsageError, match="is a directory"):
        write_gguf(plan, tmp_path)
    with pytest.raises(PhituiError, match="does not exist") as missing:
        write_gguf(plan, tmp_path / "no" / "out.gguf")
    assert "mkdir" in missing.value.hint
    with pytest.raises(PhituiError, match="cannot be written"):
        write_gguf(plan, tmp_path / ("x" * 250))
    with pytest.raises(UsageError, match="source itself"):
        write_gguf(plan, tmp_path / "one.bin", overwrite=True)
    with pytest.raises(UsageError, match="no encoder"):
        write_gguf(plan_of(sources(tmp_path), TensorType.Q8_0), tmp_path / "q.gguf")
    assert not list(tmp_path.glob("*.partial*"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_directory_that_may_not_be_written(tmp_path: Path) -> None:
    plan = plan_of(sources(tmp_path), TensorType.BF16)
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    with pytest.raises(PhituiError, match="permission denied"):
        write_gguf(plan, locked / "out.gguf")


def test_a_disk_that_is_too_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of(sources(tmp_path), TensorType.BF16)
    usage = type("usage", (), {"free": 100})
    monkeypatch.setattr("phitui.gguf.partial.shutil.disk_usage", lambda path: usage)
    with pytest.raises(PhituiError, match="100 are free"):
        write_gguf(plan, tmp_path / "out.gguf")
    assert not list(tmp_path.glob("out*"))


def test_two_writers_never_share_a_file(tmp_path: Path) -> None:
    plan = plan_of(sources(tmp_path), TensorType.BF16)
    descriptor = os.open(tmp_path / "out.gguf.partial", os.O_RDWR | os.O_CREAT)
    os.write(descriptor, b"theirs")
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    with pytest.raises(PhituiError, match="another phitui is writing"):
        write_gguf(plan, tmp_path / "out.gguf")
    assert (tmp_path / "out.gguf.partial").read_bytes() == b"theirs"
    os.close(descriptor)
    write_gguf(plan, tmp_path / "out.gguf")
    assert (tmp_path / "out.gguf").read_bytes() == expected(plan)


def test_many_writers_at_once_one_file(tmp_path: Path) -> None:
    plan = plan_of(sources(tmp_path), TensorType.BF16)
    outcomes: list[str] = []

    def write() -> None:
        try:
            write_gguf(plan, tmp_path / "out.gguf", threads=1)
            outcomes.append("done")
        except PhituiError as error:
            outcomes.append(error.message)

    threads = [threading.Thread(target=write) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes.count("done") == 1
    assert all("another phitui" in text or "there already" in text for text in outcomes if text != "done")
    assert (tmp_path / "out.gguf").read_bytes() == expected(plan)
    assert not list(tmp_path.glob("*.partial*"))


def test_extents_must_fit(tmp_path: Path) -> None:
    tensors = sources(tmp_path)
    short = dataclasses.replace(tensors[0], extents=(FileExtent(tmp_path / "one.bin", 13, 100),))
    with pytest.raises(InvalidFile, match="holds 100 bytes instead of"):
        write_gguf(plan_of([short], TensorType.BF16), tmp_path / "out.gguf")
    size = math.prod(tensors[0].shape) * 2
    outside = dataclasses.replace(tensors[0], extents=(FileExtent(tmp_path / "one.bin", 10_000, size),))
    with pytest.raises(InvalidFile, match="truncated"):
        write_gguf(plan_of([outside], TensorType.BF16), tmp_path / "out.gguf")
    gone = dataclasses.replace(tensors[0], extents=(FileExtent(tmp_path / "gone", 0, size),))
    with pytest.raises(InvalidFile, match="cannot be read"):
        write_gguf(plan_of([gone], TensorType.BF16), tmp_path / "out.gguf")
    assert not list(tmp_path.glob("out*"))
