"""phitui pull against a server on this machine that speaks as much of the Hub's protocol as a download needs."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from phitui.testing.hub_server import COMMIT, Hub, hub_server

CONFIG = json.dumps(
    {
        "architectures": ["Phi3ForCausalLM"],
        "model_type": "phi3",
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "vocab_size": 640,
        "max_position_embeddings": 4096,
        "original_max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
    }
).encode()


@pytest.fixture
def hub() -> Iterator[Hub]:
    files = {
        "config.json": CONFIG,
        "tokenizer.json": b'{"a": 1}',
        "README.md": b"---\nlicense: mit\n---\n",
        "model.safetensors": bytes(range(256)) * 800,
        "pytorch_model.bin": b"pickle",
        "onnx/model.onnx": b"onnx",
    }
    with hub_server(files) as running:
        yield running


def phitui(hub: Hub, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "phitui", *arguments]
    values = hub.environment(**environment)
    return subprocess.run(command, env=values, capture_output=True, text=True, timeout=60, check=False)


def test_a_checkpoint_comes_whole_and_checked(hub: Hub, tmp_path: Path) -> None:
    done = phitui(hub, "pull", "acme/phi", "--to", str(tmp_path / "phi"), "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    wanted = ["README.md", "model.safetensors", "tokenizer.json", "config.json"]
    assert (result["repo"], result["revision"], result["files"]) == ("acme/phi", COMMIT, wanted)
    assert result["size"] == sum(hub.size(name) for name in wanted)
    assert all((tmp_path / "phi" / name).read_bytes() == hub.files[name] for name in wanted)
    asked = hub.paths()
    assert not any(".bin" in path or "onnx" in path for path in asked)
    weights = next(at for at, path in enumerate(asked) if path.endswith("/model.safetensors"))
    assert asked.index(f"/acme/phi/resolve/{COMMIT}/config.json") < weights


def test_the_default_place_is_in_the_library(hub: Hub) -> None:
    assert phitui(hub, "pull", "acme/phi").returncode == 0
    listed = json.loads(phitui(hub, "models", "--json").stdout)["library"]
    assert [(row["name"], row["kind"], row["architecture"]) for row in listed] == [
        ("phi", "checkpoint", "Phi3ForCausalLM")
    ]


def test_an_unsupported_checkpoint_is_refused_before_its_weights(hub: Hub, tmp_path: Path) -> None:
    hub.files["config.json"] = b'{"architectures": ["Phi3SmallForCausalLM"]}'
    refused = phitui(hub, "pull", "acme/phi", "--to", str(tmp_path / "phi"), "--json")
    assert refused.returncode == 1
    error = json.loads(refused.stdout)["error"]
    assert "blocksparse" in error["message"]
    assert "microsoft/Phi-3-mini-4k-instruct" in error["hint"]
    assert "--force" in error["hint"]
    assert not any("safetensors" in path for path in hub.paths())
    assert not (tmp_path / "phi").exists()
    assert phitui(hub, "pull", "acme/phi", "--to", str(tmp_path / "phi"), "--force").returncode == 0


def test_inspect_of_what_cannot_be_converted_asks_for_the_config_alone(hub: Hub) -> None:
    hub.files["config.json"] = CONFIG.replace(b"Phi3ForCausalLM", b"Phi3SmallForCausalLM")
    shown = phitui(hub, "inspect", f"acme/phi@{COMMIT}", "--json")
    assert shown.returncode == 0, shown.stderr
    facts = json.loads(shown.stdout)
    assert (facts["layers"], facts["verdict"]["ok"]) == (2, False)
    assert {path.rpartition("/")[2] for path in hub.paths() if "/resolve/" in path} == {"config.json"}


def test_a_ready_gguf(hub: Hub, tmp_path: Path) -> None:
    hub.files = {"phi-Q4_K_M.gguf": b"GGUF" + bytes(100), "phi-Q8_0.gguf": b"GGUF"}
    plain = phitui(hub, "pull", "acme/phi", "--to", str(tmp_path))
    assert plain.returncode == 2
    assert "--include" in plain.stderr
    assert "phi-Q4_K_M.gguf" in plain.stderr
    assert phitui(hub, "pull", "acme/phi", "--to", str(tmp_path), "--include", "*q4_k_m*").returncode == 0
    assert [path.name for path in tmp_path.glob("*.gguf")] == ["phi-Q4_K_M.gguf"]


def test_a_broken_download_goes_on_where_it_stopped(hub: Hub, tmp_path: Path) -> None:
    hub.files["model.safetensors"] = bytes(range(256)) * 50_000  # downloads are kept in pieces of 10 MiB
    hub.trouble.cut["model.safetensors"] = [11 << 20]
    assert phitui(hub, "pull", "acme/phi", "--to", str(tmp_path / "phi")).returncode == 0
    assert (tmp_path / "phi" / "model.safetensors").read_bytes() == hub.files["model.safetensors"]
    assert any(10 << 20 <= start <= 11 << 20 for start, _ in hub.ranges("model.safetensors"))


def test_a_failed_pull_is_resumed(hub: Hub, tmp_path: Path) -> None:
    hub.trouble.answers[f"/acme/phi/resolve/{COMMIT}/model.safetensors"] = (404, {"X-Error-Code": "EntryNotFound"})
    assert phitui(hub, "pull", "acme/phi", "--to", str(tmp_path / "phi")).returncode in (1, 2)
    (job,) = json.loads(phitui(hub, "jobs", "--json").stdout)["jobs"]
    assert (job["kind"], job["state"]) == ("pull", "failed")
    hub.trouble.answers.clear()
    assert phitui(hub, "jobs", "resume", job["id"]).returncode == 0
    assert phitui(hub, "jobs", "wait", job["id"]).returncode == 0
    assert (tmp_path / "phi" / "model.safetensors").read_bytes() == hub.files["model.safetensors"]


def test_a_damaged_file_is_removed(hub: Hub, tmp_path: Path) -> None:
    hub.trouble.lie["model.safetensors"] = "0" * 64
    failed = phitui(hub, "pull", "acme/phi", "--to", str(tmp_path / "phi"))
    assert failed.returncode == 1
    assert "checksum" in failed.stderr
    assert not (tmp_path / "phi" / "model.safetensors").exists()
    assert not (tmp_path / "phi" / "config.json").exists()


@pytest.mark.parametrize(
    ("prefix", "status", "code", "message", "hint", "exit_code"),
    [
        ("/api/models/acme/phi", 403, "GatedRepo", "gated", "hf auth login", 1),
        ("/api/models/acme/phi", 404, "RepoNotFound", "there is no acme/phi", "check the name", 2),
        ("/api/models/acme/phi", 404, "RevisionNotFound", "no revision", "@REVISION", 2),
        ("/api/models/acme/phi", 400, "Whatever", "refused", "later", 1),
        (f"/acme/phi/resolve/{COMMIT}/config.json", 404, "EntryNotFound", "has no config.json", "huggingface.co", 2),
    ],
)
def test_refusals_say_what_to_do(
    hub: Hub, prefix: str, status: int, code: str, message: str, hint: str, exit_code: int
) -> None:
    hub.trouble.answers[prefix] = (status, {"X-Error-Code": code})
    failed = phitui(hub, "pull", "acme/phi@v9", "--json")
    error = json.loads(failed.stdout)["error"]
    assert message in error["message"], error
    assert hint in error["hint"]
    assert failed.returncode == exit_code
    assert "Traceback" not in failed.stderr


def test_no_network_and_offline(hub: Hub) -> None:
    away = phitui(hub, "pull", "acme/phi", HF_ENDPOINT="http://127.0.0.1:1")
    assert (away.returncode, away.stdout) == (1, "")
    assert "cannot reach the Hub" in away.stderr
    offline = phitui(hub, "pull", "acme/phi", HF_HUB_OFFLINE="1")
    assert offline.returncode == 1
    assert "HF_HUB_OFFLINE is set" in offline.stderr
    assert not hub.asked
