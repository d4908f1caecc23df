"""kill -9 while a model is split, merged or edited: no half file under a final name, and the next try completes it."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from phitui.domain.tensors import FileExtent, FilePlan, SourceTensor, TensorType, Value, ValueType, place
from phitui.errors import InvalidFile
from phitui.gguf.header import read_header
from phitui.gguf.shards import read_model
from phitui.gguf.writer import write_gguf

WORKER = """
import json, sys, time
from phitui.actions import gguf_edit, gguf_files
from phitui.gguf import chunks

chunks.COPY_BYTES = 50_000
pause = float(sys.argv[3])

class Job:
    def progress(self, done, total, text=""):
        time.sleep(pause)
    def note(self, text):
        print(text, flush=True)
    def check(self):
        pass

run = {"split": gguf_files.run_split, "merge": gguf_files.run_merge, "edit": gguf_edit.run}[sys.argv[1]]
print("ready", flush=True)
result = run(json.loads(sys.argv[2]), Job())
print("done", result["path"], flush=True)
"""


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    raw = tmp_path / "raw"
    raw.write_bytes(random.Random(3).randbytes(12 * 34 * 8192))
    tensors = [
        SourceTensor(f"blk.{n}.ffn_up.weight", (256, 1024), TensorType.Q8_0, (FileExtent(raw, n * size, size),))
        for n in range(12)
        for size in [34 * 8192]
    ]
    metadata = {
        "general.architecture": Value.string("phi3"),
        "general.name": Value.string("m"),
        "tokenizer.ggml.tokens": Value.array(ValueType.STRING, [f"t{n}" for n in range(5000)]),
    }
    path = tmp_path / "m.gguf"
    write_gguf(FilePlan("Q8_0", metadata, place([(t, t.stored, None) for t in tensors])), path, allow_nan=True)
    return path


def start(kind: str, request: dict[str, Any], pause: float) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", WORKER, kind, json.dumps(request), str(pause)], stdout=subprocess.PIPE, text=True
    )


def kill_soon(kind: str, request: dict[str, Any], moments: random.Random) -> bool:
    """Start the work and kill it. Returns whether it was done before."""
    child = start(kind, request, 0.02)
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    time.sleep(moments.uniform(0.02, 0.4))
    child.kill()
    out, _ = child.communicate()
    return "done" in out


def finish(kind: str, request: dict[str, Any]) -> str:
    out, _ = start(kind, request, 0).communicate(timeout=60)
    assert "done" in out
    return out


def test_split_and_merge(tmp_path: Path, whole: Path) -> None:
    folder = tmp_path / "parts"
    folder.mkdir()
    request = {"file": str(whole), "out": f"{folder}/", "max_tensors": 2}
    names = [f"m-{n:05d}-of-00006.gguf" for n in range(1, 7)]
    moments = random.Random(4)
    for _ in range(4):
        if kill_soon("split", request, moments):
            break
        there = sorted(path.name for path in folder.glob("*.gguf"))
        for name in there:
            read_header(folder / name)
        assert names[0] not in there or there == names, "the first file has its name, so the set is complete"
        if there:
            with pytest.raises(InvalidFile, match="missing"):
                read_model(folder / there[0])
    finish("split", request)
    assert sorted(path.name for path in folder.iterdir()) == names
    assert "6 of 6 files were complete already" in finish("split", request)

    merge = {"file": str(folder / names[3]), "out": str(tmp_path / "again.gguf")}
    for _ in range(2):
        if kill_soon("merge", merge, moments):
            break
        assert not (tmp_path / "again.gguf").exists()
    finish("merge", merge)
    assert (tmp_path / "again.gguf").read_bytes() == whole.read_bytes()
    assert not list(tmp_path.glob("again.gguf.*"))


def test_a_split_over_another_one_leaves_no_mixture(tmp_path: Path, whole: Path) -> None:
    """Names and headers are the same, so only the first file tells that a set is complete."""
    folder = tmp_path / "parts"
    folder.mkdir()
    request = {"file": str(whole), "out": f"{folder}/", "max_tensors": 4, "overwrite": True}
    finish("split", request)
    with whole.open("r+b") as stream:  # other weights under the same header
        stream.seek(-3_000_000, 2)
        stream.write(b"other" * 200_000)
    if not kill_soon("split", request, random.Random(5)):
        assert not (folder / "m-00001-of-00003.gguf").exists()
    finish("split", request)
    target = tmp_path / "again.gguf"
    finish("merge", {"file": str(folder / "m-00001-of-00003.gguf"), "out": str(target)})
    assert target.read_bytes() == whole.read_bytes()


def test_edit_that_writes_anew(tmp_path: Path, whole: Path) -> None:
    whole.chmod(0o640)
    before = whole.read_bytes()
    request = {"file": str(whole), "name": "a name that is much longer " * 3, "in_place": True}
    moments = random.Random(6)
    for _ in range(4):
        done = kill_soon("edit", request, moments)
        now = whole.read_bytes()
        assert now == before or read_header(whole).get("general.name") == request["name"]
        assert whole.stat().st_mode & 0o777 == 0o640
        if done or now != before:
            break
        partial = tmp_path / "m.gguf.edited.partial"
        assert not partial.exists() or partial.stat().st_mode & 0o777 == 0o640
    finish("edit", request)
    header = read_header(whole)
    assert header.get("general.name") == request["name"]
    assert whole.read_bytes()[header.data_start :] == before[-(12 * 34 * 8192) :]
    assert whole.stat().st_mode & 0o777 == 0o640
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["m.gguf", "raw"]
    assert "done" in finish("edit", request), "a second try finds nothing to do"
