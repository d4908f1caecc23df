"""Changes in place: at whatever step they end, the file is the old one or the new one once it is read again."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phitui.domain.tensors import FilePlan, InlineExtent, SourceTensor, TensorType, Value, place
from phitui.errors import InvalidFile, PhituiError
from phitui.gguf import patch
from phitui.gguf.header import encode_header, read_header
from phitui.gguf.patch import complete, record_path, replace_start


def header(name: str) -> bytes:
    tensor = SourceTensor("t", (32,), TensorType.F32, (InlineExtent(bytes(128)),))
    metadata = {
        "general.architecture": Value.string("phi3"),
        "long": Value.string("x" * 9000 + name),
        "general.name": Value.string(name),
    }
    return encode_header(FilePlan("F32", metadata, place([(tensor, TensorType.F32, None)])))


OLD, NEW = header("a" * 5000), header("b" * 5000)
DATA = b"weights " * 16


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "m.gguf"
    path.write_bytes(OLD + DATA)
    return path


def test_only_what_differs_is_written(file: Path) -> None:
    file.chmod(0o640)
    near = OLD.replace(b"aaab", b"aaac") if b"aaab" in OLD else OLD[:5000] + b"!" + OLD[5001:]
    assert replace_start(file, OLD, near) == 1
    assert replace_start(file, near, OLD) == 1
    assert replace_start(file, OLD, OLD) == 0
    assert replace_start(file, OLD, NEW) > 5000
    assert file.read_bytes() == NEW + DATA
    assert file.stat().st_mode & 0o777 == 0o640
    assert [path.name for path in file.parent.iterdir() if path.is_file()] == ["m.gguf"]


@given(
    st.binary(min_size=1, max_size=20_000),
    st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(1, 255)), max_size=5),
)
def test_difference(old: bytes, changes: list[tuple[int, int]]) -> None:
    changed = bytearray(old)
    for position, value in changes:
        changed[position % len(old)] ^= value
    new = bytes(changed)
    start, end = patch._difference(old, new)
    assert old[:start] + new[start:end] + old[end:] == new
    if old != new:
        assert old[start] != new[start] and old[end - 1] != new[end - 1]
    else:
        assert start == end


class Died(BaseException):
    """The process is gone: nothing that catches errors sees it."""


STEPS = ["write_record", "sync_record", "rename", "sync_folder", "half", "all", "sync_file", "unlink"]


def die_at(step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make one step of a change the last thing that happens."""

    def dies(real: Callable[..., Any], before: bool) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if not before:
                real(*args, **kwargs)
            raise Died

        return call

    def half(descriptor: int, data: bytes, offset: int) -> int:
        os.pwrite.__wrapped__(descriptor, data[: len(data) // 2], offset)  # type: ignore[attr-defined]
        raise Died

    if step == "write_record":
        monkeypatch.setattr(patch.os, "fsync", dies(os.fsync, before=True))
    elif step == "sync_record":
        monkeypatch.setattr(patch.os, "fsync", dies(os.fsync, before=False))
    elif step == "rename":
        monkeypatch.setattr(Path, "replace", dies(Path.replace, before=False))
    elif step == "sync_folder":
        monkeypatch.setattr(patch, "_sync_directory", dies(patch._sync_directory, before=False))
    elif step == "half":
        real = os.pwrite
        monkeypatch.setattr(patch.os, "pwrite", half)
        half.__dict__["__wrapped__"] = real
    elif step == "all":
        monkeypatch.setattr(patch.os, "pwrite", dies(os.pwrite, before=False))
    elif step == "sync_file":
        real_apply = patch._apply
        monkeypatch.setattr(patch, "_apply", dies(real_apply, before=False))
    else:
        monkeypatch.setattr(Path, "unlink", dies(Path.unlink, before=False))


@pytest.mark.parametrize("step", STEPS)
def test_dying_at_any_step(file: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    with monkeypatch.context() as limited:
        die_at(step, limited)
        with pytest.raises(Died):
            replace_start(file, OLD, NEW)
    happened = STEPS.index(step) >= STEPS.index("rename")
    assert (file.read_bytes() not in (OLD + DATA, NEW + DATA)) == (step == "half")
    assert read_header(file).get("general.name")[0] == ("b" if happened else "a")
    assert file.read_bytes() == (NEW if happened else OLD) + DATA
    assert not record_path(file).exists()
    assert replace_start(file, NEW if happened else OLD, OLD if happened else NEW) > 0


def interrupted(file: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    with monkeypatch.context() as limited:
        die_at("half", limited)
        with pytest.raises(Died):
            replace_start(file, OLD, NEW)
    return record_path(file)


def test_through_a_link(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted(file, monkeypatch)
    link = tmp_path / "elsewhere.gguf"
    link.symlink_to(file)
    assert read_header(link).get("general.name")[0] == "b"


@pytest.mark.parametrize("other", [b"GGUF" + bytes(3000), OLD[:-32] + DATA, header("c" * 5000) + DATA, b""])
def test_a_file_that_was_replaced_meanwhile_is_left_alone(
    file: Path, monkeypatch: pytest.MonkeyPatch, other: bytes
) -> None:
    record = interrupted(file, monkeypatch)
    file.write_bytes(other)
    complete(file)
    assert file.read_bytes() == other
    assert not record.exists()


@pytest.mark.parametrize(
    "spoil", [lambda raw: raw[:-1], lambda raw: b"my own notes", lambda raw: b"", lambda raw: raw + b"x"]
)
def test_records_that_are_none(file: Path, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[bytes], bytes]) -> None:
    """Whatever else bears that name is not ours to delete, and does not keep anybody from reading."""
    record = interrupted(file, monkeypatch)
    file.write_bytes(OLD + DATA)
    record.write_bytes(spoil(record.read_bytes()))
    assert read_header(file).get("general.name")[0] == "a"
    assert record.exists()


def test_what_others_changed_is_not_overwritten(file: Path) -> None:
    file.write_bytes(NEW + DATA)
    with pytest.raises(InvalidFile, match="changed by another"):
        replace_start(file, OLD, NEW)
    assert file.read_bytes() == NEW + DATA


def test_a_full_disk_changes_nothing(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as limited:
        limited.setattr(patch.os, "fsync", full)
        with pytest.raises(PhituiError, match="nothing was changed: No space left"):
            replace_start(file, OLD, NEW)
    assert file.read_bytes() == OLD + DATA
    assert not list(file.parent.glob("*.edit*"))


def test_a_failing_disk_is_told_of_and_completed_later(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(descriptor: int, data: bytes, offset: int) -> int:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as limited:
        limited.setattr(patch.os, "pwrite", fails)
        with pytest.raises(PhituiError, match="interrupted: Input/output error"):
            replace_start(file, OLD, NEW)
    assert read_header(file).get("general.name")[0] == "b"


def test_half_changed_and_not_writable(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root writes everywhere, so the refusal is made by hand."""
    record = interrupted(file, monkeypatch)
    real = os.open

    def refuses(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
        if Path(path) == file and flags & os.O_RDWR:
            raise PermissionError(13, "Permission denied")
        return real(path, flags, *args, **kwargs)

    with monkeypatch.context() as limited:
        limited.setattr(patch.os, "open", refuses)
        with pytest.raises(InvalidFile, match="cannot be completed: Permission denied") as caught:
            read_header(file)
        assert record.name in caught.value.hint
        file.write_bytes(NEW + DATA)  # all of it arrived, only the record is left
        assert read_header(file).get("general.name")[0] == "b"


EDITOR = """
import sys
from pathlib import Path
from phitui.gguf.header import read_header
from phitui.gguf.patch import replace_start
path, old, new = Path(sys.argv[1]), Path(sys.argv[2]).read_bytes(), Path(sys.argv[3]).read_bytes()
print("ready", flush=True)
while True:
    read_header(path)
    if path.read_bytes()[: len(old)] == old:
        replace_start(path, old, new)
    replace_start(path, new, old)
"""


def test_killed_again_and_again(tmp_path: Path) -> None:
    """kill -9 of a process that does nothing but change a header of 2 MB to and fro."""
    path = tmp_path / "m.gguf"
    heads = [header(letter * 1_000_000) for letter in "ab"]
    path.write_bytes(heads[0] + DATA)
    for number, raw in enumerate(heads):
        (tmp_path / str(number)).write_bytes(raw)
    seen, pending = set(), 0
    for attempt in range(8):
        child = subprocess.Popen(
            [sys.executable, "-c", EDITOR, str(path), str(tmp_path / "0"), str(tmp_path / "1")], stdout=subprocess.PIPE
        )
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        end = time.monotonic() + 10
        while not record_path(path).exists() and time.monotonic() < end:
            time.sleep(0.0005)
        time.sleep(0.001 * (attempt % 6))
        child.kill()
        child.communicate()
        pending += record_path(path).exists()
        name = read_header(path).get("general.name")[0]
        assert path.read_bytes() == heads["ab".index(name)] + DATA
        assert not record_path(path).exists()
        seen.add(name)
    assert pending, "never killed in the middle of a change"


def test_two_at_once_wait_for_each_other(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    monkeypatch.setattr(patch, "PATIENCE", 0.1)
    with file.open("r+b") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(PhituiError, match="another phitui is changing it"):
            replace_start(file, OLD, NEW)
    assert replace_start(file, OLD, NEW)


def test_odd_things_under_the_records_name_do_not_block_reading(file: Path) -> None:
    record_path(file).mkdir()
    assert read_header(file).get("general.name")[0] == "a"
    record_path(file).rmdir()
    os.mkfifo(record_path(file))
    assert read_header(file).get("general.name")[0] == "a"
    loop = file.with_name("loop.gguf")
    loop.symlink_to(loop)
    with pytest.raises(InvalidFile, match="cannot be read"):
        read_header(loop)
