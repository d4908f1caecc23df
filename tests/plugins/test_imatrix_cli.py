"""`phitui imatrix` and `phitui build --imatrix` as a script sees them: JSON, exit codes, files, jobs."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("phitui_quantize")
from phitui_quantize import library

from phitui.actions import imatrix
from phitui.actions.context import Context
from phitui.actions.imatrix import ImatrixRequest
from phitui.actions.models import library as library_of
from phitui.errors import InvalidFile, PhituiError, Unavailable, UsageError
from phitui.gguf.header import read_header
from phitui.jobs import Jobs
from phitui.testing.bytewise import write_bytewise

if not library.available().ok:
    pytest.skip("llama-cpp-python is not installed", allow_module_level=True)

TEXT = "Sphinx of black quartz, judge my vow! " * 12


def run(*arguments: str, code: int = 0) -> Any:
    """phitui with --json: its document, the exit code checked. Progress must stay off stdout."""
    command = [sys.executable, "-m", "phitui", *arguments, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_bytewise(tmp_path / "tiny.gguf", layers=1)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "words.txt"
    path.write_text(TEXT)
    return path


def test_a_build_that_lacks_a_matrix_says_how_to_get_it(model: Path, tmp_path: Path, context: Context) -> None:
    """What the error says is typed as it stands, and the build succeeds."""
    out = tmp_path / "tiny.IQ2_XXS.gguf"
    build = ["build", str(model), "--scheme", "IQ2_XXS", "--out", str(out)]
    error = run(*build, code=2)["error"]
    assert "needs an importance matrix" in error["message"]
    command, then = error["hint"].splitlines()
    made = run(*shlex.split(command)[1:], "--ctx", "64", "--chunks", "3")
    matrix = Path(made["path"])
    assert matrix == context.paths.data / "imatrix" / "tiny.imatrix.gguf"
    assert f"--imatrix {matrix}" in then
    assert (made["chunks"], made["tokens"], made["entries"], made["unused_experts"]) == (3, 192, 4, {})
    assert f"there is one: --imatrix {matrix}" in run(*build, code=2)["error"]["hint"]
    built = run(*build, "--imatrix", str(matrix))
    assert built["scheme"] == "IQ2_XXS"
    header = read_header(out)
    assert header.get("quantize.imatrix.dataset") == "phitui"
    assert header.get("quantize.imatrix.chunks_count") == 3
    assert library_of(context) == []


def test_of_another_model_is_refused_before_any_work(model: Path, text: Path, tmp_path: Path) -> None:
    matrix = str(tmp_path / "m.gguf")
    run("imatrix", str(model), "--text", str(text), "--ctx", "32", "--out", matrix)
    other = write_bytewise(tmp_path / "other.gguf", layers=2)
    out = tmp_path / "x.gguf"
    error = run("build", str(other), "--scheme", "Q4_K_M", "--imatrix", matrix, "--out", str(out), code=1)["error"]
    assert "another model" in error["message"]
    assert "blk.1." in error["message"]
    assert not out.exists()


def test_cancelled_then_resumed(text: Path, tmp_path: Path, context: Context, wait_until: Any) -> None:
    """A job that is cancelled in the middle of its work goes on there, and the file is as if nothing had happened."""
    model = write_bytewise(tmp_path / "tiny.gguf", layers=2)
    text.write_text(TEXT * 60)
    whole, cut = tmp_path / "whole.gguf", tmp_path / "cut.gguf"
    request = ImatrixRequest(str(model), str(text), str(cut), 64, threads=1)
    jobs = Jobs(context.paths.jobs)
    job = imatrix.start(context, request)
    wait_until(lambda: jobs.get(job.id).progress.done >= 3 or not jobs.get(job.id).live, 60)
    assert jobs.cancel(job.id).state == "cancelled"
    assert not cut.exists()
    jobs.resume(job.id)
    ended = jobs.wait(job.id, 120)
    assert ended.state == "done", ended.error
    assert ended.result is not None
    assert ended.result["resumed_chunks"] >= 3
    run("imatrix", str(model), "--text", str(text), "--out", str(whole), "--ctx", "64", "--threads", "1")
    assert cut.read_bytes() == whole.read_bytes()
    assert list(tmp_path.glob("*.state*")) == []


def test_refused_beforehand(model: Path, text: Path, tmp_path: Path, context: Context) -> None:
    matrix, binary, latin = tmp_path / "m.gguf", tmp_path / "binary", tmp_path / "latin.txt"
    binary.write_bytes(b"a\0b")
    latin.write_bytes("größer".encode("latin-1"))
    matrix.write_bytes(b"here before")
    good = {"model": str(model), "text": str(text), "out": str(tmp_path / "new.gguf")}
    for change, kind, words in (
        ({"model": str(text)}, InvalidFile, "words.txt"),
        ({"model": str(tmp_path)}, UsageError, "is a directory"),
        ({"text": str(model)}, InvalidFile, "not a text"),
        ({"text": str(binary)}, InvalidFile, "not a text"),
        ({"text": str(latin)}, InvalidFile, "not UTF-8 at byte 2"),
        ({"text": str(tmp_path / "none.txt")}, PhituiError, "cannot read"),
        ({"out": str(matrix)}, UsageError, "exists already"),
        ({"out": str(tmp_path)}, UsageError, "is a directory"),
        ({"out": str(tmp_path / "none" / "m.gguf")}, UsageError, "does not exist"),
        ({"out": str(model), "overwrite": True}, UsageError, "made from"),
        ({"context": 8}, UsageError, "too short"),
    ):
        with pytest.raises(kind, match=words):
            imatrix.start(context, ImatrixRequest(**{**good, **change}))
    assert matrix.read_bytes() == b"here before"
    assert Jobs(context.paths.jobs).list() == []


def test_nobody_can_make_one(context: Context, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(context.registry, "quantizers", [])
    with pytest.raises(Unavailable, match="cannot be made here"):
        imatrix.start(context, ImatrixRequest(str(model)))


def test_the_command_line_does_the_same(context: Context) -> None:
    request = ImatrixRequest("m.gguf", "t.txt", "o.gguf", 64, 3, 2, -1, False, True, True)
    words = imatrix.command_line(request)
    assert words[:2] == ("phitui", "imatrix")
    from phitui.cli.imatrix import command

    parsed = command(context).make_context("imatrix", list(words[2:])).params
    parsed["context"] = parsed.pop("context_length")
    assert {name: parsed[name] for name in vars(request)} == vars(request)
    assert str(context.paths.data) in str(imatrix.default_out(context, Path("a/Phi.BF16.gguf")))
