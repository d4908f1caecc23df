"""`phitui build` of checkpoints that are not what they should be: an error with a way out, and no file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("phitui_convert")
from phitui.gguf.header import read_header
from phitui.testing.checkpoints import write_checkpoint
from phitui.testing.hub_server import hub_server

PHITUI = [sys.executable, "-m", "phitui"]


def build(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*PHITUI, "build", "Phi-3-tiny", "--out", "out.gguf", "--json", *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"PHITUI_HOME": str(tmp_path / "home")},
        check=False,
    )


def not_a_number(directory: Path) -> None:
    """The last word of the last tensor."""
    with (directory / "model-00002-of-00002.safetensors").open("r+b") as file:
        file.seek(-2, os.SEEK_END)
        file.write(b"\xc0\x7f")


def lost(directory: Path) -> None:
    (directory / "model-00002-of-00002.safetensors").unlink()


def cut(directory: Path) -> None:
    path = directory / "model-00001-of-00002.safetensors"
    os.truncate(path, path.stat().st_size - 1)


def doubled(directory: Path) -> None:
    first, second = (directory / f"model-0000{number}-of-00002.safetensors" for number in (1, 2))
    second.write_bytes(first.read_bytes())


def other_tokens(directory: Path) -> None:
    path = directory / "added_tokens.json"
    ids = json.loads(path.read_text())
    ids["<|user|>"], ids["<|end|>"] = ids["<|end|>"], ids["<|user|>"]
    path.write_text(json.dumps(ids))


def other_config(directory: Path) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"intermediate_size": 768}))


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "Phi-3-tiny", hidden=32, intermediate=32, shards=2)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lost, "model-00002-of-00002.safetensors is missing"),
        (cut, "is truncated"),
        (doubled, "is in model-00001-of-00002.safetensors and in model-00002-of-00002.safetensors"),
        (other_tokens, "its tokenizer files contradict each other"),
        (other_config, "but config.json says"),
    ],
)
def test_damage(damage: Callable[[Path], None], said: str, checkpoint: Path, tmp_path: Path) -> None:
    damage(checkpoint)
    done = build(tmp_path, "--scheme", "BF16")
    assert done.returncode == 1
    error: dict[str, Any] = json.loads(done.stdout)["error"]
    assert said in error["message"] and error["hint"]
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.glob("out.gguf*"))


def test_not_a_number(checkpoint: Path, tmp_path: Path) -> None:
    """Refused, nothing left; then written because it is asked for, and said."""
    not_a_number(checkpoint)
    done = build(tmp_path, "--scheme", "BF16")
    assert done.returncode == 1
    error = json.loads(done.stdout)["error"]
    assert (
        "1 tensor holds values that are no finite numbers: output_norm.weight (1 NaN; first at index 31)"
        in (error["message"])
    )
    assert "--allow-nan" in error["hint"]
    assert not list(tmp_path.glob("out.gguf*"))
    allowed = build(tmp_path, "--scheme", "BF16", "--allow-nan")
    assert allowed.returncode == 0, allowed.stderr
    assert json.loads(allowed.stdout)["not_finite"] == ["output_norm.weight (1 NaN; first at index 31)"]
    assert "not finite, and written as it is: output_norm.weight" in allowed.stderr
    assert read_header(tmp_path / "out.gguf").tensors


@pytest.mark.parametrize("scheme", ["BF16", "F16"])
def test_not_a_number_on_the_hub(scheme: str, checkpoint: Path, tmp_path: Path) -> None:
    """Streamed weights are looked at on their way, too."""
    not_a_number(checkpoint)
    with hub_server(checkpoint) as hub:
        done = subprocess.run(
            [*PHITUI, "build", "acme/phi", "--scheme", scheme, "--stream", "--out", "out.gguf", "--json"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
            env=hub.environment(),
            check=False,
        )
    assert done.returncode == 1
    assert "output_norm.weight (1 NaN; first at index 31)" in json.loads(done.stdout)["error"]["message"]
    assert not list(tmp_path.glob("out.gguf*"))
