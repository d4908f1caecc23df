"""Streaming from the Hub is killed, cut and cancelled: the result is the same bytes, or there is none."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from phitui.testing.checkpoints import write_checkpoint
from phitui.testing.hub_server import Hub, hub_server


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 MB in two shards."""
    where = tmp_path_factory.mktemp("stream") / "phi"
    return write_checkpoint(where, shards=2, hidden=512, intermediate=1024, layers=4, dtype="F32")


@pytest.fixture
def hub(local: Path) -> Iterator[Hub]:
    with hub_server(local) as running:
        yield running


def phitui(hub: Hub, *arguments: str) -> Any:
    command = [sys.executable, "-m", "phitui", *arguments, "--json"]
    done = subprocess.run(command, env=hub.environment(), capture_output=True, text=True, timeout=90, check=False)
    return json.loads(done.stdout)


def start(hub: Hub, out: Path, scheme: str = "BF16") -> str:
    """A detached build from the Hub; returns the job's id."""
    return str(phitui(hub, "build", "acme/phi", "--scheme", scheme, "--stream", "--out", str(out), "--detach")["job"])


def job(hub: Hub, id_: str) -> dict[str, Any]:
    found: dict[str, Any] = phitui(hub, "jobs", "show", id_)
    return found.get("job", found)


def size(local: Path) -> int:
    return sum(path.stat().st_size for path in local.glob("*.safetensors"))


@pytest.fixture
def expected(local: Path, tmp_path: Path, hub: Hub) -> bytes:
    out = tmp_path / "expected.gguf"
    phitui(hub, "build", str(local), "--scheme", "BF16", "--out", str(out), "--no-lineage")
    return out.read_bytes()


def test_killed_and_resumed(
    hub: Hub, local: Path, tmp_path: Path, expected: bytes, wait_until: Callable[..., None]
) -> None:
    out = tmp_path / "out.gguf"
    hub.trouble.rate = 2_000_000
    hub.trouble.cut_all = 700_000
    id_ = start(hub, out)
    journal = tmp_path / "out.gguf.partial.journal"
    wait_until(lambda: journal.exists() and len(journal.read_bytes().splitlines()) > 6, 60)
    os.kill(job(hub, id_)["pid"], signal.SIGKILL)
    wait_until(lambda: job(hub, id_)["state"] == "interrupted", 10)
    assert not out.exists()
    sent, hub.trouble.rate = hub.sent, 0
    hub.asked.clear()
    phitui(hub, "jobs", "resume", id_)
    done = phitui(hub, "jobs", "wait", id_)
    done = done.get("job", done)
    assert done["state"] == "done", done
    assert out.read_bytes() == expected
    assert done["result"]["resumed_bytes"] > 0
    assert done["result"]["remote"]["fetched"] < size(local)
    assert hub.sent - sent < size(local)
    assert not list(tmp_path.glob("out.gguf.partial*"))


def test_cancelled_while_the_server_hangs(hub: Hub, tmp_path: Path, wait_until: Callable[..., None]) -> None:
    hub.trouble.hang["model-00002-of-00002.safetensors"] = 4_000_000
    out = tmp_path / "out.gguf"
    id_ = start(hub, out)
    wait_until(lambda: (tmp_path / "out.gguf.partial").exists() and hub.sent > 8_000_000, 60)
    pid = job(hub, id_)["pid"]
    os.kill(pid, signal.SIGTERM)
    began = time.monotonic()
    wait_until(lambda: not Path(f"/proc/{pid}").exists() or _is_zombie(pid), 10)
    assert time.monotonic() - began < 1.5
    assert job(hub, id_)["state"] == "cancelled"
    assert not out.exists()


def _is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_the_model_changes_meanwhile(hub: Hub, tmp_path: Path, wait_until: Callable[..., None]) -> None:
    hub.trouble.rate = 1_000_000
    hub.trouble.expire_after = 1
    hub.trouble.cut_all = 500_000
    out = tmp_path / "out.gguf"
    id_ = start(hub, out)
    wait_until(lambda: hub.sent > 2_000_000, 60)
    hub.trouble.lie["model-00001-of-00002.safetensors"] = "0" * 64
    done = phitui(hub, "jobs", "wait", id_)
    assert "changed on the Hub" in json.dumps(done)
    assert not list(tmp_path.glob("out.gguf*"))


def test_a_wrong_byte_never_becomes_a_file(hub: Hub, tmp_path: Path) -> None:
    hub.trouble.flip["model-00002-of-00002.safetensors"] = 5_000_001
    out = tmp_path / "out.gguf"
    failed = phitui(hub, "build", "acme/phi", "--scheme", "BF16", "--stream", "--out", str(out))
    assert "checksums differ" in failed["error"]["message"]
    assert not list(tmp_path.glob("out.gguf*"))
