"""The commands with a repository of the Hub as source: planned before it is downloaded, built without keeping it."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from phitui.testing.checkpoints import write_checkpoint
from phitui.testing.hub_server import COMMIT, Hub, hub_server


def phitui(hub: Hub, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "phitui", *arguments]
    values = hub.environment(**environment)
    return subprocess.run(command, env=values, capture_output=True, text=True, timeout=90, check=False)


def answer(hub: Hub, *arguments: str) -> Any:
    done = phitui(hub, *arguments, "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


def checkpoint(tmp_path: Path, **spec: Any) -> Path:
    """A checkpoint in a directory that is called like the repository."""
    return write_checkpoint(tmp_path / "local" / "phi", **({"shards": 2, "card": True} | spec))


@pytest.fixture
def local(tmp_path: Path) -> Path:
    return checkpoint(tmp_path)


@pytest.fixture
def hub(local: Path) -> Iterator[Hub]:
    with hub_server(local) as running:
        yield running


def weights(hub: Hub) -> list[str]:
    return [name for name in hub.files if name.endswith(".safetensors")]


def test_the_same_bytes_as_from_a_local_checkpoint(tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    local = checkpoint(tmp_path, family="phimoe")
    out, expected = tmp_path / "out.gguf", tmp_path / "expected.gguf"
    with hub_server(local) as hub:
        built = answer(hub, "build", "acme/phi", "--scheme", "Q4_K_M", "--stream", "--out", str(out))
        assert built["remote"]["verified"] == sorted(weights(hub))
        answer(hub, "build", str(local), "--scheme", "Q4_K_M", "--out", str(expected))
    assert out.read_bytes() == expected.read_bytes()
    assert not list(tmp_path.glob("out.gguf.partial*"))


def test_what_is_left_behind(hub: Hub, local: Path, tmp_path: Path, home: Path) -> None:
    """The result, a recipe that says where it came from, and a cache without weights."""
    out = tmp_path / "out.gguf"
    built = answer(hub, "build", "acme/phi@main", "--scheme", "BF16", "--stream", "--out", str(out))
    recipe = Path(built["lineage"]).read_text()
    assert f'revision = "{COMMIT}"' in recipe
    assert "stream = true" in recipe
    for name in weights(hub):
        assert hashlib.sha256((local / name).read_bytes()).hexdigest() in recipe
    cached = sum(path.stat().st_size for path in (home / "phitui" / "cache").rglob("*") if path.is_file())
    assert cached < 200_000
    (job,) = answer(hub, "jobs")["jobs"]
    assert job["title"] == "phi as BF16"
    assert job["argv"][2:4] == [f"acme/phi@{COMMIT}", "--scheme"]
    assert "--stream" in job["argv"]


def test_nothing_is_fetched_twice_into_the_cache(hub: Hub) -> None:
    answer(hub, "schemes", "acme/phi")
    before = len(hub.asked)
    again = phitui(hub, "schemes", f"acme/phi@{COMMIT}")
    assert "in the cache" in again.stderr
    assert len(hub.asked) == before
    assert phitui(hub, "schemes", f"acme/phi@{COMMIT}", HF_HUB_OFFLINE="1").returncode == 0
    offline = phitui(hub, "schemes", "acme/phi", HF_HUB_OFFLINE="1")
    assert (offline.returncode, "HF_HUB_OFFLINE is set" in offline.stderr) == (1, True)


def test_sizes_before_any_download(hub: Hub, local: Path) -> None:
    shown = phitui(hub, "schemes", "acme/phi", "--json")
    rows = json.loads(shown.stdout)["schemes"]
    here = answer(hub, "schemes", str(local))["schemes"]
    assert [(row["scheme"], row["size"]) for row in rows] == [(row["scheme"], row["size"]) for row in here]
    assert "its weights" in shown.stderr
    assert max(stop for name in weights(hub) for _, stop in hub.ranges(name)) <= 64 << 10
    planned = answer(hub, "build", "acme/phi", "--scheme", "BF16", "--dry-run")
    assert planned["size"] == next(row["size"] for row in rows if row["scheme"] == "BF16")


def test_without_stream_it_says_what_to_do(hub: Hub) -> None:
    refused = phitui(hub, "build", "acme/phi", "--scheme", "BF16")
    assert refused.returncode == 2
    assert "phitui pull acme/phi" in refused.stderr
    assert "--stream" in refused.stderr
    assert not hub.asked


def test_stream_of_something_local_is_an_ordinary_build(hub: Hub, local: Path, tmp_path: Path) -> None:
    built = answer(hub, "build", str(local), "--scheme", "BF16", "--stream", "--out", str(tmp_path / "a.gguf"))
    assert built["remote"] is None
    assert not hub.asked


def test_a_gated_repository(hub: Hub) -> None:
    hub.trouble.answers["/acme/phi/resolve"] = (403, {"X-Error-Code": "GatedRepo"})
    refused = phitui(hub, "build", "acme/phi", "--scheme", "BF16", "--stream", "--json")
    assert refused.returncode == 1
    assert "accept the terms" in json.loads(refused.stdout)["error"]["hint"]
    assert "Traceback" not in refused.stderr


def test_planned_before_any_download(hub: Hub) -> None:
    done = phitui(hub, "plan", "acme/phi", "--scheme", "BF16", "--device", "RTX 4070=12GiB", "--no-probe", "--json")
    planned = json.loads(done.stdout)
    assert (planned["model"], planned["scheme"], planned["fits"]) == (f"acme/phi@{COMMIT}", "BF16", True)
    assert planned["n_gpu_layers"] == planned["layers_total"] == 3
    assert "its weights" in done.stderr
    plain = phitui(hub, "plan", "acme/phi")
    assert (plain.returncode, "--scheme Q4_K_M" in plain.stderr) == (2, True)


def test_what_cannot_be_converted_is_refused_by_its_config(hub: Hub) -> None:
    hub.files["config.json"] = b'{"architectures": ["Phi3SmallForCausalLM"]}'
    refused = phitui(hub, "build", "acme/phi", "--scheme", "BF16", "--stream")
    assert "blocksparse" in refused.stderr
    assert {Path(path).name for path in hub.paths() if "resolve" in path} == {"config.json"}
