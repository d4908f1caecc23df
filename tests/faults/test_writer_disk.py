"""Disks that fill up and files that may not grow, for real where this machine allows it."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from phitui.domain.tensors import FileExtent, FilePlan, SourceTensor, TensorType, Value, place
from phitui.errors import InvalidFile, PhituiError
from phitui.gguf import chunks
from phitui.gguf.writer import write_gguf

ROWS, WIDTH = 512, 1024
SIZE = ROWS * WIDTH * 2


def numbers(size: int) -> bytes:
    """Random bytes that are finite numbers as BF16 and F16."""
    return os.urandom(size).translate(bytes(byte & 0x3F for byte in range(256)))


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "COPY_BYTES", 64 * 1024)
    monkeypatch.setattr(chunks, "ENCODE_VALUES", 16 * 1024)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source.bin"
    path.write_bytes(numbers(SIZE))
    return path


def plan_of(source: Path, kind: TensorType = TensorType.Q8_0) -> FilePlan:
    tensor = SourceTensor("t", (WIDTH, ROWS), TensorType.BF16, (FileExtent(source, 0, SIZE),))
    return FilePlan(kind.name, {"general.architecture": Value.string("x")}, place([(tensor, kind, None)]))


def zeros(tensor: Any, first_row: int, rows: Any) -> bytes:
    return bytes(len(rows) * WIDTH // 32 * 34)


def once(do: Callable[[], None], after: int = 5) -> Callable[..., bytes]:
    """An encoder during whose work something happens."""
    calls, lock = [0], threading.Lock()

    def encode(tensor: Any, first_row: int, rows: Any) -> bytes:
        with lock:
            calls[0] += 1
            if calls[0] == after:
                do()
        return zeros(tensor, first_row, rows)

    return encode


def test_a_file_that_may_not_grow(tmp_path: Path, source: Path) -> None:
    """RLIMIT_FSIZE in a child: the kernel itself refuses."""
    script = f"""
import resource, sys
sys.path[:0] = {sys.path!r}
from pathlib import Path
from phitui.domain.tensors import *
from phitui.errors import PhituiError
from phitui.gguf.writer import write_gguf
tensor = SourceTensor("t", ({WIDTH}, {ROWS}), TensorType.BF16, (FileExtent(Path({str(source)!r}), 0, {SIZE}),))
plan = FilePlan("BF16", {{}}, place([(tensor, TensorType.BF16, None)]))
resource.setrlimit(resource.RLIMIT_FSIZE, ({SIZE // 2}, {SIZE // 2}))
try:
    write_gguf(plan, Path({str(tmp_path / "out.gguf")!r}))
except PhituiError as error:
    print(error.message, "|", error.hint)
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert "may not grow" in run.stdout and "free some space" in run.stdout
    assert not list(tmp_path.glob("out*"))
    assert source.stat().st_size == SIZE


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs of 4 MiB, where the tests may mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "phitui", disk], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("this machine does not let us mount a tmpfs")
    yield disk
    subprocess.run(["umount", disk], check=True)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="tmpfs")
def test_a_disk_that_is_filled_by_somebody_else(tiny_disk: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("phitui.gguf.partial.preallocate", lambda descriptor, size: None)

    def fill() -> None:
        with (tiny_disk / "theirs").open("wb", buffering=0) as file:
            try:
                while file.write(bytes(4096)) == 4096:
                    pass
            except OSError as error:
                assert error.errno == errno.ENOSPC

    with pytest.raises(PhituiError, match="disk is full") as caught:
        write_gguf(plan_of(source), tiny_disk / "out.gguf", once(fill), threads=2)
    assert caught.value.hint
    assert [path.name for path in tiny_disk.iterdir()] == ["theirs"]
    (tiny_disk / "theirs").unlink()
    with pytest.raises(PhituiError, match="are free on this disk"):
        (tiny_disk / "theirs").write_bytes(bytes(7 << 19))
        write_gguf(plan_of(source, TensorType.BF16), tiny_disk / "out.gguf")
    assert [path.name for path in tiny_disk.iterdir()] == ["theirs"]


def test_blocks_are_reserved_before_any_work(tmp_path: Path, source: Path) -> None:
    held: list[int] = []

    def look() -> None:
        held.append((tmp_path / "out.gguf.partial").stat().st_blocks * 512)

    plan = plan_of(source)
    write_gguf(plan, tmp_path / "out.gguf", once(look, after=1), threads=1)
    if not sys.platform.startswith("linux"):
        pytest.skip("only Linux reserves")
    assert held[0] >= plan.data_size


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="fallocate")
def test_no_room_to_reserve(tiny_disk: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody takes the space between our look and our call."""
    monkeypatch.setattr("phitui.gguf.partial.shutil.disk_usage", lambda path: type("usage", (), {"free": 1 << 40}))
    (tiny_disk / "theirs").write_bytes(bytes(7 << 19))
    with pytest.raises(PhituiError, match="disk is full"):
        write_gguf(plan_of(source, TensorType.BF16), tiny_disk / "out.gguf")
    assert [path.name for path in tiny_disk.iterdir()] == ["theirs"]


@pytest.mark.parametrize("problem", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
@pytest.mark.parametrize("kind", [TensorType.BF16, TensorType.Q8_0])
def test_writing_fails_in_the_middle(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch, problem: int, kind: TensorType
) -> None:
    real, calls = os.pwrite, []

    def failing(descriptor: int, data: Any, offset: int) -> int:
        calls.append(offset)
        if len(calls) > 5:
            raise OSError(problem, os.strerror(problem))
        return real(descriptor, data, offset)

    def not_here(*arguments: int) -> int:
        raise OSError(errno.EXDEV, "not here")

    monkeypatch.setattr(os, "pwrite", failing)
    monkeypatch.setattr(os, "copy_file_range", not_here, raising=False)
    with pytest.raises(PhituiError, match=r"disk is full|cannot be written"):
        write_gguf(plan_of(source, kind), tmp_path / "out.gguf", zeros, threads=2)
    assert not list(tmp_path.glob("out*"))


CALLS = ("pwrite", "write", "ftruncate", "fsync", "fdatasync", "copy_file_range", "replace")


class Full:
    """Every call that can meet a full disk, counted; the one with the number `at` meets it."""

    def __init__(self, patch: pytest.MonkeyPatch, at: int) -> None:
        self.calls, self._at, self._lock = 0, at, threading.Lock()
        for name in CALLS:
            if hasattr(os, name):
                patch.setattr(os, name, self._wrapped(getattr(os, name)))
        patch.setattr(Path, "write_text", self._wrapped(Path.write_text))
        patch.setattr("phitui.gguf.partial.preallocate", self._wrapped(lambda descriptor, size: None))

    def _wrapped(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            with self._lock:
                self.calls += 1
                if self.calls == self._at:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(*arguments, **named)

        return call


@pytest.mark.parametrize("kind", [TensorType.BF16, TensorType.F16, TensorType.Q8_0])
def test_a_disk_that_is_full_at_any_point(tmp_path: Path, source: Path, kind: TensorType) -> None:
    """One run for every call: a clear error, and nothing of the file stays, or it is whole and under its name."""
    out, plan = tmp_path / "out.gguf", plan_of(source, kind)
    with pytest.MonkeyPatch.context() as patch:
        calls = Full(patch, 0)
        write_gguf(plan, out, zeros, threads=1)
    whole = out.read_bytes()
    assert calls.calls > 12
    for at in range(1, calls.calls + 1):
        out.unlink(missing_ok=True)
        with pytest.MonkeyPatch.context() as patch:
            Full(patch, at)
            with pytest.raises(PhituiError) as caught:
                write_gguf(plan, out, zeros, threads=1)
        assert caught.value.hint, f"call {at}"
        assert "full" in caught.value.message or "No space left" in caught.value.message, f"call {at}"
        assert not list(tmp_path.glob("out.gguf.*")), f"call {at}"
        assert not out.exists() or out.read_bytes() == whole, f"call {at}"


def test_sync_fails(tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(PhituiError, match="cannot be written: Input/output error"):
        write_gguf(plan_of(source), tmp_path / "out.gguf", zeros)
    assert not list(tmp_path.glob("out*"))


def test_the_source_is_cut_meanwhile(tmp_path: Path, source: Path) -> None:
    with pytest.raises(InvalidFile, match="changed while it was read"):
        write_gguf(plan_of(source), tmp_path / "out.gguf", once(lambda: os.truncate(source, 1000)), threads=2)
    assert not list(tmp_path.glob("out*"))


def test_the_source_is_cut_before_it_is_copied(tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from phitui.gguf.partial import Partial

    reserve = Partial.reserve

    def cut(self: Partial, size: int, keep: bool) -> None:
        reserve(self, size, keep)
        os.truncate(source, SIZE // 2)

    monkeypatch.setattr(Partial, "reserve", cut)
    with pytest.raises(InvalidFile, match="changed while it was read"):
        write_gguf(plan_of(source, TensorType.BF16), tmp_path / "out.gguf", threads=2)
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize("how", ["rewritten", "removed", "replaced"])
def test_the_source_becomes_another_file(tmp_path: Path, source: Path, how: str) -> None:
    def change() -> None:
        if how == "removed":
            source.unlink()
        elif how == "rewritten":
            source.write_bytes(numbers(SIZE))
        else:
            (tmp_path / "new").write_bytes(numbers(SIZE + 2))
            (tmp_path / "new").replace(source)

    with pytest.raises(InvalidFile, match="changed while it was read"):
        write_gguf(plan_of(source), tmp_path / "out.gguf", once(change), threads=2)
    assert not list(tmp_path.glob("out*"))


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    """A sparse source of 256 MiB, converted by a child: a few MiB per thread above what importing numpy takes."""
    source, size = tmp_path / "big.bin", 256 << 20
    source.touch()
    os.truncate(source, size)
    script = f"""
import resource, sys
sys.path[:0] = {sys.path!r}
from pathlib import Path
from phitui.domain.tensors import *
from phitui.gguf import floats
from phitui.gguf.writer import write_gguf
tensor = SourceTensor("t", (4096, {size // 8192}), TensorType.BF16, (FileExtent(Path({str(source)!r}), 0, {size}),))
plan = FilePlan("F16", {{}}, place([(tensor, TensorType.F16, None)]))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
write_gguf(plan, Path({str(tmp_path / "out.gguf")!r}), threads=4)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    unit = 1024 if sys.platform.startswith("linux") else 1
    assert int(run.stdout) * unit < 64 << 20
