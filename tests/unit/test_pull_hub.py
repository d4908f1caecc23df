"""phitui pull against a server on this machine that speaks as much of the Hub's protocol as a download needs."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"
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


@dataclass
class Hub:
    """A Hub with one repository, acme/phi. `errors` maps a path's prefix to (status, X-Error-Code)."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    errors: dict[str, tuple[int, str]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    ranges: list[str] = field(default_factory=list)
    cut: dict[str, int] = field(default_factory=dict)
    """Files whose next download ends after so many bytes."""
    lies: dict[str, str] = field(default_factory=dict)
    """Checksums that are not the file's."""

    def sha256(self, name: str) -> str:
        return self.lies.get(name) or hashlib.sha256(self.files[name]).hexdigest()

    def info(self) -> dict[str, Any]:
        siblings = []
        for name, data in self.files.items():
            sibling: dict[str, Any] = {"rfilename": name, "size": len(data), "blobId": "b" * 40}
            if name.endswith((".safetensors", ".gguf", ".bin")):
                sibling["lfs"] = {"sha256": self.sha256(name), "size": len(data), "pointerSize": 134}
            siblings.append(sibling)
        return {"id": "acme/phi", "modelId": "acme/phi", "sha": COMMIT, "siblings": siblings, "tags": []}


def handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            """Silence."""

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, body: bool) -> None:
            path = self.path.partition("?")[0]
            hub.asked.append(f"{self.command} {path}")
            for prefix, (status, code) in hub.errors.items():
                if path.startswith(prefix):
                    return self.send(status, b"{}", {"X-Error-Code": code, "X-Error-Message": f"{code} it is"}, body)
            if path.startswith("/api/models/acme/phi"):
                return self.send(200, json.dumps(hub.info()).encode(), {"Content-Type": "application/json"}, body)
            name = path.removeprefix(f"/acme/phi/resolve/{COMMIT}/")
            if name in hub.files:
                return self.file(name, body)
            code = "EntryNotFound" if path.startswith("/acme/phi/") else "RepoNotFound"
            return self.send(404, b"{}", {"X-Error-Code": code}, body)

        def file(self, name: str, body: bool) -> None:
            data, start = hub.files[name], 0
            span = self.headers.get("Range")
            if span and body:
                hub.ranges.append(f"{name} {span}")
                start = int(span.removeprefix("bytes=").partition("-")[0])
            headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{hub.sha256(name)}"', "Accept-Ranges": "bytes"}
            if start:
                headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            stop = hub.cut.pop(name, None) if body else None
            self.send(206 if start else 200, data[start:], headers, body, stop)

        def send(self, status: int, data: bytes, headers: dict[str, str], body: bool, stop: int | None = None) -> None:
            self.send_response(status)
            for key, value in {**headers, "Content-Length": str(len(data))}.items():
                self.send_header(key, value)
            self.end_headers()
            if body:
                self.wfile.write(data if stop is None else data[:stop])
            if stop is not None:
                self.wfile.flush()
                self.close_connection = True
                self.connection.close()

    return Handler


@pytest.fixture
def hub() -> Iterator[Hub]:
    found = Hub(
        files={
            "config.json": CONFIG,
            "tokenizer.json": b'{"a": 1}',
            "README.md": b"---\nlicense: mit\n---\n",
            "model.safetensors": bytes(range(256)) * 800,
            "pytorch_model.bin": b"pickle",
            "onnx/model.onnx": b"onnx",
        }
    )
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(found))
    server.daemon_threads = True
    found.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    yield found
    server.shutdown()
    server.server_close()


def phitui(hub: Hub, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    values = {
        **os.environ,
        "HF_ENDPOINT": hub.url,
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        **environment,
    }
    command = [sys.executable, "-m", "phitui", *arguments]
    return subprocess.run(command, env=values, capture_output=True, text=True, timeout=60, check=False)


def test_a_checkpoint_comes_whole_and_checked(hub: Hub, tmp_path: Path) -> None:
    done = phitui(hub, "pull", "acme/phi", "--to", str(tmp_path / "phi"), "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    wanted = ["README.md", "model.safetensors", "tokenizer.json", "config.json"]
    assert (result["repo"], result["revision"], result["files"]) == ("acme/phi", COMMIT, wanted)
    assert result["size"] == sum(len(hub.files[name]) for name in wanted)
    assert all((tmp_path / "phi" / name).read_bytes() == hub.files[name] for name in wanted)
    assert not any(".bin" in path or "onnx" in path for path in hub.asked)
    assert hub.asked.index(f"GET /acme/phi/resolve/{COMMIT}/config.json") < hub.asked.index(
        f"GET /acme/phi/resolve/{COMMIT}/model.safetensors"
    )


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
    assert not any("safetensors" in path for path in hub.asked)
    assert not (tmp_path / "phi").exists()
    assert phitui(hub, "pull", "acme/phi", "--to", str(tmp_path / "phi"), "--force").returncode == 0


def test_inspect_asks_for_the_config_alone(hub: Hub) -> None:
    hub.errors["/acme/phi/resolve/main"] = (200, "")
    shown = phitui(hub, "inspect", f"acme/phi@{COMMIT}", "--json")
    assert shown.returncode == 0, shown.stderr
    facts = json.loads(shown.stdout)
    assert (facts["architecture"], facts["layers"]) == ("phi3", 2)
    assert {path.rpartition("/")[2] for path in hub.asked} == {"config.json"}


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
    hub.cut["model.safetensors"] = 11 << 20
    assert phitui(hub, "pull", "acme/phi", "--to", str(tmp_path / "phi")).returncode == 0
    assert (tmp_path / "phi" / "model.safetensors").read_bytes() == hub.files["model.safetensors"]
    assert any(span.startswith("model.safetensors bytes=") for span in hub.ranges)


def test_a_failed_pull_is_resumed(hub: Hub, tmp_path: Path) -> None:
    hub.errors[f"/acme/phi/resolve/{COMMIT}/model.safetensors"] = (404, "EntryNotFound")
    assert phitui(hub, "pull", "acme/phi", "--to", str(tmp_path / "phi")).returncode == 1
    (job,) = json.loads(phitui(hub, "jobs", "--json").stdout)["jobs"]
    assert (job["kind"], job["state"]) == ("pull", "failed")
    hub.errors.clear()
    assert phitui(hub, "jobs", "resume", job["id"]).returncode == 0
    assert phitui(hub, "jobs", "wait", job["id"]).returncode == 0
    assert (tmp_path / "phi" / "model.safetensors").read_bytes() == hub.files["model.safetensors"]


def test_a_damaged_file_is_removed(hub: Hub, tmp_path: Path) -> None:
    hub.lies["model.safetensors"] = "0" * 64
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
    hub.errors[prefix] = (status, code)
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
