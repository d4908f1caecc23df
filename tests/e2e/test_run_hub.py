"""Recipes whose source is on the Hub: downloaded, or read from there while building."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from phitui.testing.checkpoints import write_checkpoint
from phitui.testing.hub_server import COMMIT, Hub, hub_server


def answer(hub: Hub, *arguments: object, code: int = 0, **environment: str) -> Any:
    command = [sys.executable, "-m", "phitui", *map(str, arguments), "--json"]
    values = hub.environment(**environment)
    done = subprocess.run(command, env=values, capture_output=True, text=True, timeout=90, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def local(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "local" / "phi", shards=2, card=True)


@pytest.fixture
def hub(local: Path) -> Iterator[Hub]:
    with hub_server(local) as running:
        yield running


def test_get_and_build(hub: Hub, tmp_path: Path) -> None:
    """The lineage then names repository and commit; a second run asks nobody."""
    folder = tmp_path / "recipes"
    folder.mkdir()
    path = folder / "mine.toml"
    path.write_text('[get]\nrepo = "acme/phi"\nto = "phi"\n[build]\nscheme = "BF16"\nout = "m.gguf"\n')
    done = answer(hub, "run", path)
    assert done["steps"]["get"]["revision"] == COMMIT
    source = tomllib.loads((folder / "m.gguf.toml").read_text())["source"]
    assert (source["repo"], source["revision"], source["name"]) == ("acme/phi", COMMIT, "phi")
    before = len(hub.asked)
    again = answer(hub, "run", path)["steps"]
    assert all(step["skipped"] for step in again.values())
    assert len(hub.asked) == before
    (folder / "phi").rename(tmp_path / "gone")
    for file in folder.glob("m.gguf"):
        file.unlink()
    elsewhere = str(tmp_path / "home2")
    error = answer(hub, "run", folder / "m.gguf.toml", code=2, PHITUI_HOME=elsewhere)["error"]
    assert error["hint"] == f"phitui pull acme/phi@{COMMIT}, then the same again"
    answer(hub, "pull", f"acme/phi@{COMMIT}", PHITUI_HOME=elsewhere)
    assert answer(hub, "run", folder / "m.gguf.toml", PHITUI_HOME=elsewhere)["same"] is True


def test_a_streamed_build_again(hub: Hub, local: Path, tmp_path: Path) -> None:
    """From the Hub, and from a copy that is called otherwise."""
    out = tmp_path / "out.gguf"
    answer(hub, "build", "acme/phi", "--scheme", "BF16", "--stream", "--out", out)
    elsewhere = str(tmp_path / "home2")
    done = answer(hub, "run", f"{out}.toml", "--out", tmp_path / "again.gguf", PHITUI_HOME=elsewhere)
    assert done["same"] is True
    assert (tmp_path / "again.gguf").read_bytes() == out.read_bytes()
    copy = local.rename(tmp_path / "called otherwise")
    done = answer(hub, "run", f"{out}.toml", "--source", copy, "--out", tmp_path / "third.gguf")
    assert done["same"] is True
    assert answer(hub, "run", out, "--check", "--source", copy)["same"] is True
    with (copy / "model-00001-of-00002.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x7f")
    error = answer(hub, "run", f"{out}.toml", "--source", copy, "--out", tmp_path / "n.gguf", code=1)["error"]
    assert "model-00001-of-00002.safetensors (source) is changed" in error["message"]
