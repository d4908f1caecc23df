"""kill -9 at random moments: never a file under the final name, and the resumed result is the same bytes."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from phitui.gguf.header import read_header
from phitui.gguf.journal import recover

WRITER = """
import sys, time
from pathlib import Path
from phitui.domain.tensors import FileExtent, FilePlan, SourceTensor, TensorType, Value, place
from phitui.gguf import chunks
from phitui.gguf.writer import write_gguf

chunks.COPY_BYTES, chunks.FLOAT_VALUES, chunks.ENCODE_VALUES = 100_000, 16_384, 4_096
source, out, pause = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])
rows, wanted = 256, [TensorType.BF16, TensorType.F16, TensorType.Q8_0]
tensors = [
    (SourceTensor(f"t{i}", (1024, rows), TensorType.BF16, (extent,)), kind, None)
    for i, kind in enumerate(wanted * 2)
    for extent in [FileExtent(source, i * rows * 2048, rows * 2048)]
]
plan = FilePlan("MIX", {"general.architecture": Value.string("phi3")}, place(tensors))

def encode(tensor, first_row, rows):
    time.sleep(pause)
    return b"".join(bytes([first_row % 251]) + row.tobytes()[:33] for row in rows.reshape(-1, 32))

result = write_gguf(plan, out, encode, threads=2)
print(result.resumed_bytes)
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source.bin"
    raw = random.Random(1).randbytes(6 * 256 * 2048)
    path.write_bytes(raw.translate(bytes(byte & 0x3F for byte in range(256))))  # finite numbers
    return path


def start(script: Path, source: Path, out: Path, pause: float) -> subprocess.Popen[str]:
    command = [sys.executable, str(script), str(source), str(out), str(pause)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(child: subprocess.Popen[str]) -> int:
    out, problems = child.communicate(timeout=60)
    assert child.returncode == 0, problems
    return int(out)


def test_killed_again_and_again(tmp_path: Path, source: Path) -> None:
    script = tmp_path / "writer.py"
    script.write_text(WRITER)
    assert finish(start(script, source, tmp_path / "whole.gguf", 0)) == 0
    expected = (tmp_path / "whole.gguf").read_bytes()
    before = source.read_bytes()

    out = tmp_path / "out.gguf"
    journal = tmp_path / "out.gguf.partial.journal"
    moments = random.Random(2)
    known = 0
    for _ in range(5):
        child = start(script, source, out, 0.01)
        while child.poll() is None and (not journal.exists() or len(journal.read_bytes().splitlines()) <= known):
            time.sleep(0.002)
        time.sleep(moments.uniform(0, 0.15))
        child.kill()
        child.communicate()
        if out.exists():
            break
        assert (tmp_path / "out.gguf.partial").exists()
        known = len(journal.read_bytes().splitlines())
    assert not out.exists(), "it was finished before it was killed: the test is too slow"
    resumed = finish(start(script, source, out, 0))
    assert resumed > 0
    assert out.read_bytes() == expected
    assert source.read_bytes() == before
    assert len(read_header(out).tensors) == 6
    assert not list(tmp_path.glob("out.gguf.*"))


HEAD = {"chunks": 10, "plan": "x"}


def written(path: Path, *lines: object, boot: str = "now", tail: str = "") -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in ({**HEAD, "boot": boot}, *lines)) + tail)
    return path


def test_after_a_reboot_only_synced_chunks_count(tmp_path: Path) -> None:
    lines = (1, 2, {"synced": 0}, 3, 4, {"synced": 3}, 5)
    path = written(tmp_path / "j", *lines)
    assert recover(path, HEAD, "now") == ([1, 2, 3, 4, 5], 3)
    assert recover(path, HEAD, "later") == ([1, 2, 3], 3)
    assert recover(written(path, 1, 2), HEAD, "later") == ([], 0)


def test_a_torn_journal(tmp_path: Path) -> None:
    path = written(tmp_path / "j", 1, 2, tail="7")
    assert recover(path, HEAD, "now") == ([1, 2], 0)
    for lines in ([1, 77], [-1], [1, {"other": 1}], [None], ["x"], [[1]], [{"synced": "x"}], [1, {"synced": 9}]):
        written(path, *lines)
        assert all(number in range(10) for number in recover(path, HEAD, "later")[0])
    assert recover(tmp_path / "none", HEAD, "now") == ([], 0)
    assert recover(written(path, 1), {**HEAD, "plan": "y"}, "now") == ([], 0)
    for raw in (b"", b"\n", b"[]\n1\n", b"\xff\n", b'{"chunks": 10'):
        path.write_bytes(raw)
        assert recover(path, HEAD, "now") == ([], 0)
