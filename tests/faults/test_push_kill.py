"""A push is killed, cancelled and resumed: the server gets a whole model or none, and what it has is not sent again."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from phitui.__main__ import main
from phitui.actions import jobs
from phitui.actions.context import Context
from phitui.testing.bytewise import write_bytewise
from phitui.testing.ollama_server import Ollama, ollama_server


@pytest.fixture
def ollama(tmp_path: Path) -> Iterator[Ollama]:
    with ollama_server(tmp_path / "server") as running:
        yield running


@pytest.fixture
def parts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> list[Path]:
    """A model of about 2 MB in three files."""
    whole = write_bytewise(tmp_path / "tiny.gguf", layers=4, width=128)
    size = whole.stat().st_size
    assert main(["gguf", "split", str(whole), "--max-size", str(size // 3 + 50_000), "--json"]) == 0
    capsys.readouterr()
    found = sorted(tmp_path.glob("tiny-*.gguf"))
    assert len(found) >= 3
    return found


@pytest.fixture
def start(ollama: Ollama, parts: list[Path], capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    def run(*more: str) -> str:
        arguments = ["export", str(parts[0]), "--to", "ollama", "--name", "tiny", "--push", ollama.url, *more]
        assert main([*arguments, "--detach", "--json"]) == 0
        return str(json.loads(capsys.readouterr().out)["job"])

    return run


def sizes(parts: list[Path]) -> int:
    return sum(path.stat().st_size for path in parts)


def whole(ollama: Ollama, parts: list[Path]) -> bool:
    files = ollama.models["tiny:latest"]["files"]
    return {name: ollama.blob(digest.removeprefix("sha256:")).read_bytes() for name, digest in files.items()} == {
        part.name: part.read_bytes() for part in parts
    }


def test_killed_and_resumed(
    ollama: Ollama, parts: list[Path], start: Callable[..., str], context: Context, wait_until: Callable[..., None]
) -> None:
    ollama.trouble.rate = 400_000
    id_ = start("--system", "Be brief.")
    first = parts[0].stat().st_size
    wait_until(lambda: ollama.received > first + 100_000, 60)
    os.kill(int(jobs.get_job(context, id_).pid or 0), signal.SIGKILL)
    wait_until(lambda: jobs.get_job(context, id_).state == "interrupted", 10)
    assert not ollama.models
    wait_until(lambda: not list(ollama.blobs.glob("part-*")), 10)
    ollama.trouble.rate, ollama.received = 0, 0
    jobs.resume_job(context, id_)
    job = jobs.wait_job(context, id_, 60)
    assert job.state == "done", job.error
    result: dict[str, Any] = job.result or {}
    assert result["present"] >= first  # or more: what was on its way when the job died may have arrived
    assert result["sent"] == ollama.received == sizes(parts) - result["present"] > 0
    assert result["answer"] == "2 words."
    assert ollama.models["tiny:latest"]["system"] == "Be brief."
    assert whole(ollama, parts)


def test_killed_after_it_was_created(
    ollama: Ollama, parts: list[Path], start: Callable[..., str], context: Context, wait_until: Callable[..., None]
) -> None:
    """What the former attempt made does not stand in the way."""
    ollama.trouble.error_in_chat = "not now"
    id_ = start()
    assert jobs.wait_job(context, id_, 60).state == "failed"
    assert ollama.models
    ollama.trouble.error_in_chat = ""
    jobs.resume_job(context, id_)
    assert jobs.wait_job(context, id_, 60).state == "done"
    assert ollama.count("POST /api/blobs") == len(parts)


def test_cancelled(
    ollama: Ollama, parts: list[Path], start: Callable[..., str], context: Context, wait_until: Callable[..., None]
) -> None:
    ollama.trouble.rate = 200_000
    id_ = start()
    wait_until(lambda: ollama.received > 0, 60)
    assert jobs.cancel_job(context, id_).state == "cancelled"
    assert not ollama.models
