"""`phitui build` and `phitui schemes` as a script sees them: JSON, exit codes, files."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from phitui.gguf.header import read_header
from phitui.jobs import Jobs
from phitui.plugins import load
from phitui.testing.checkpoints import write_checkpoint

LLAMA = any(offer.name == "llama.cpp" and offer.available().ok for offer in load().quantizers)
needs_llama = pytest.mark.skipif(not LLAMA, reason="llama-cpp-python is not installed")
PHITUI = [sys.executable, "-m", "phitui"]


def run(*arguments: str, code: int = 0, **environment: str) -> Any:
    """phitui with --json: its document, the exit code checked. Progress must stay off stdout."""
    done = subprocess.run(
        [*PHITUI, *arguments, "--json"],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | environment,
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("models") / "Phi-tiny-instruct", shards=2)


def types(path: Path) -> set[str]:
    return {tensor.type.name for tensor in read_header(path).tensors}


def test_floats_need_no_llama_cpp(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    planned = run("build", str(checkpoint), "--scheme", "f16", "--dry-run")
    assert not out.exists()
    made = run("build", str(checkpoint), "--scheme", "f16", "--out", str(out), PHITUI_PLUGINS="convert")
    assert made["scheme"] == "F16"
    assert made["path"] == str(out)
    assert made["size"] == planned["size"] == out.stat().st_size
    assert types(out) == {"F16", "F32"}
    assert list(tmp_path.glob("*.partial*")) == []


@needs_llama
def test_checkpoint_to_q4_in_one_pass(checkpoint: Path, tmp_path: Path) -> None:
    """The one pass gives the file that the way over a BF16 GGUF gives."""
    direct, bf16, second = tmp_path / "direct.gguf", tmp_path / "bf16.gguf", tmp_path / "second.gguf"
    planned = run("build", str(checkpoint), "--scheme", "Q4_K_M", "--dry-run")
    made = run("build", str(checkpoint), "--scheme", "Q4_K_M", "--out", str(direct), "--threads", "2")
    assert made["size"] == planned["size"] == direct.stat().st_size
    assert {row["to"] for row in planned["tensors"]} == types(direct) == {"Q4_K", "Q6_K", "F32"}
    run("build", str(checkpoint), "--scheme", "BF16", "--out", str(bf16))
    run("build", str(bf16), "--scheme", "Q4_K_M", "--out", str(second))
    assert direct.read_bytes() == second.read_bytes()
    job = run("jobs", "show", made["job"])
    assert (job["state"], job["kind"], job["argv"][:2]) == ("done", "build", ["phitui", "build"])


@needs_llama
def test_options_of_the_quantizer_are_flags(checkpoint: Path) -> None:
    planned = run("build", str(checkpoint), "--scheme", "Q4_0", "--pure", "--override", "ffn_down=Q8_0", "--dry-run")
    assert {row["to"] for row in planned["tensors"] if "ffn_down" in row["name"]} == {"Q8_0"}
    assert {row["to"] for row in planned["tensors"] if "attn_qkv" in row["name"]} == {"Q4_0"}
    error = run("build", str(checkpoint), "--scheme", "F16", "--pure", "--dry-run", code=2)["error"]
    assert "pure" in error["message"]


@needs_llama
def test_detach_and_wait(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    job = run("build", str(checkpoint), "--scheme", "Q8_0", "--out", str(out), "--detach")
    assert set(job) == {"job"}
    ended = run("jobs", "wait", job["job"])
    assert ended["state"] == "done"
    assert ended["result"]["size"] == out.stat().st_size


def test_default_place_is_the_models_folder(checkpoint: Path, home: Path) -> None:
    made = run("build", str(checkpoint), "--scheme", "BF16")
    assert made["path"] == str(home / "phitui" / "data" / "models" / "Phi-tiny-instruct.BF16.gguf")


def test_existing_file(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    out.write_text("mine")
    error = run("build", str(checkpoint), "--scheme", "BF16", "--out", str(out), code=2)["error"]
    assert "exists" in error["message"]
    assert out.read_text() == "mine"
    run("build", str(checkpoint), "--scheme", "BF16", "--out", str(out), "--overwrite")
    assert types(out) == {"BF16", "F32"}


def test_unknown_scheme(checkpoint: Path) -> None:
    error = run("build", str(checkpoint), "--scheme", "BF17", "--dry-run", code=2 if LLAMA else 1)["error"]
    assert "BF17" in error["message"]


def test_scheme_without_its_plugin(checkpoint: Path) -> None:
    error = run("build", str(checkpoint), "--scheme", "Q4_K_M", "--dry-run", code=2, PHITUI_PLUGINS="convert")
    assert "Q4_K_M" in error["error"]["message"]


@needs_llama
def test_imatrix_schemes_are_planned_and_refused_before_work(checkpoint: Path, tmp_path: Path) -> None:
    planned = run("build", str(checkpoint), "--scheme", "IQ2_XXS", "--dry-run")
    assert planned["needs_imatrix"] is True
    assert planned["size"] > 0
    folder = tmp_path / "folder"
    folder.mkdir()
    out = folder / "out.gguf"
    error = run("build", str(checkpoint), "--scheme", "IQ2_XXS", "--out", str(out), code=2)["error"]
    assert "importance matrix" in error["message"]
    assert "--imatrix" in error["hint"]
    assert list(folder.iterdir()) == []
    assert run("jobs", "list")["jobs"] == []


@needs_llama
def test_schemes(checkpoint: Path, tmp_path: Path) -> None:
    nominal = {row["scheme"]: row for row in run("schemes")["schemes"]}
    assert nominal["Q4_K_M"]["size"] is None
    assert nominal["F16"]["bits_per_weight"] == 16
    exact = {row["scheme"]: row for row in run("schemes", str(checkpoint))["schemes"]}
    assert set(exact) == set(nominal)
    made = run("build", str(checkpoint), "--scheme", "Q2_K", "--out", str(tmp_path / "o.gguf"))
    assert exact["Q2_K"]["size"] == made["size"]
    assert exact["IQ1_S"]["needs_imatrix"] is True
    fit = exact["Q2_K"]["fit"]
    assert fit["fits"] is True
    assert (fit["layers_total"], fit["n_ctx"]) == (3, 4096)


def test_text_for_people(checkpoint: Path) -> None:
    done = subprocess.run(
        [*PHITUI, "build", str(checkpoint), "--scheme", "BF16", "--dry-run"], capture_output=True, text=True, check=True
    )
    assert "bytes, exact" in done.stdout
    assert "token_embd.weight" in done.stdout


@needs_llama
def test_interrupt_cancels_the_job_and_leaves_no_file(
    tmp_path: Path, wait_until: Callable[..., None], home: Path
) -> None:
    slow = write_checkpoint(tmp_path / "slow", hidden=768, intermediate=1024, layers=4)
    out = tmp_path / "out.gguf"
    command = [*PHITUI, "build", str(slow), "--scheme", "IQ4_XS", "--out", str(out), "--threads", "1"]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    journals = home / "phitui" / "state" / "jobs"
    wait_until(lambda: any('"progress"' in e.read_text() for e in journals.glob("*/events*")), 30)
    child.send_signal(signal.SIGINT)
    _, words = child.communicate(timeout=30)
    assert child.returncode == 130, words
    assert "cancelled" in words
    assert not out.exists()
    assert run("jobs", "list")["jobs"][0]["state"] == "cancelled"


@needs_llama
def test_kill_9_and_resume_gives_the_same_bytes(tmp_path: Path, wait_until: Callable[..., None], home: Path) -> None:
    slow = write_checkpoint(tmp_path / "slow", hidden=768, intermediate=1024, layers=2)
    out, whole = tmp_path / "out.gguf", tmp_path / "whole.gguf"
    job = run("build", str(slow), "--scheme", "IQ4_XS", "--out", str(out), "--threads", "1", "--detach")["job"]
    jobs = Jobs(home / "phitui" / "state" / "jobs")
    wait_until(lambda: jobs.get(job).progress.done > 0, 30)
    os.kill(jobs.get(job).pid or 0, signal.SIGKILL)
    wait_until(lambda: jobs.get(job).state == "interrupted", 10)
    assert not out.exists()
    ended = run("jobs", "resume", job)
    assert ended["state"] == "done"
    assert ended["result"]["resumed_bytes"] > 0
    run("build", str(slow), "--scheme", "IQ4_XS", "--out", str(whole))
    assert out.read_bytes() == whole.read_bytes()
