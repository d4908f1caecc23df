"""`phitui serve`, with a llama-server of a few lines of Python that starts, answers, dies and ends with its parent."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from phitui_llamaserver import process, serve

from phitui.__main__ import main
from phitui.actions.context import Context
from phitui.actions.facade import Facade
from phitui.domain import options as declared
from phitui.domain.tensors import FilePlan, InlineExtent, SourceTensor, TensorType, Value, ValueType, place
from phitui.gguf.writer import write_gguf

FAKE = """#!{python}
import http.server, json, os, signal, sys, time
words = dict(zip(sys.argv[1::2], sys.argv[2::2]))
if os.environ.get("FAKE") == "die":
    print("loading"); print("error: the model is too large", flush=True); sys.exit(1)
if os.environ.get("FAKE") == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
loaded = time.monotonic() + 0.4
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        well = self.path == "/health" and time.monotonic() > loaded
        body = json.dumps(words).encode() if self.path == "/words" else b"{{}}"
        self.send_response(200 if well or self.path == "/words" else 503)
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_):
        pass
http.server.ThreadingHTTPServer((words["--host"], int(words["--port"])), Handler).serve_forever()
"""
Start = Callable[..., tuple["subprocess.Popen[str]", dict[str, Any]]]


@pytest.fixture
def gguf(tmp_path: Path) -> Path:
    tensor = SourceTensor("token_embd.weight", (32, 2), TensorType.F32, (InlineExtent(bytes(256)),))
    metadata = {
        "general.architecture": Value.string("phi3"),
        "phi3.block_count": Value.u32(2),
        "phi3.context_length": Value.u32(8192),
        "tokenizer.ggml.tokens": Value.array(ValueType.STRING, ["<|end|>", "<|user|>"]),
        "tokenizer.chat_template": Value.string("{{ messages }}"),
    }
    path = tmp_path / "it's a phi.gguf"
    write_gguf(FilePlan("F32", metadata, place([(tensor, TensorType.F32, None)])), path)
    return path


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory on the PATH with that llama-server."""
    folder = tmp_path / "programs"
    folder.mkdir()
    (folder / "llama-server").write_text(FAKE.format(python=sys.executable))
    (folder / "llama-server").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return folder


@pytest.fixture
def start(gguf: Path, programs: Path) -> Iterator[Start]:
    children: list[subprocess.Popen[str]] = []

    def run(*flags: str, **environment: str) -> tuple[subprocess.Popen[str], dict[str, Any]]:
        child = subprocess.Popen(
            [sys.executable, "-m", "phitui", "serve", str(gguf), "--json", "--port", "0", *flags],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
        )
        children.append(child)
        assert child.stdout is not None
        return child, json.loads(child.stdout.readline())

    yield run
    for child in children:
        child.kill()
        child.communicate()


def offspring(document: dict[str, Any]) -> list[psutil.Process]:
    """The shim and the server."""
    shim = psutil.Process(document["server_pid"])
    return [shim, *shim.children(recursive=True)]


def test_it_serves_until_interrupted(start: Start, gguf: Path) -> None:
    child, document = start("--layers", "2", "--ctx", "max", "--threads", "1")
    family = offspring(document)
    assert len(family) == 2
    base = document["url"].removesuffix("/v1")
    with urllib.request.urlopen(f"{base}/words", timeout=5) as answer:
        words = json.load(answer)
    assert words["--model"] == str(gguf)
    assert words["--alias"] == document["model"] == "it-s-a-phi"
    assert (words["--n-gpu-layers"], words["--threads"]) == ("2", "1")
    assert "--ctx-size" not in words
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=15)
    assert child.returncode == 130
    assert out == ""
    assert f"curl {base}/v1/chat/completions" in err
    assert "Traceback" not in err
    assert not any(one.is_running() for one in family)
    assert Path(document["log"]).stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_it_leaves_no_orphan(start: Start, wait_until: Callable[..., None], number: signal.Signals) -> None:
    child, document = start()
    family = offspring(document)
    child.send_signal(number)
    child.communicate(timeout=15)
    assert child.returncode == (-9 if number == signal.SIGKILL else 130)
    wait_until(lambda: not any(one.is_running() for one in family), 5)


def test_a_stubborn_server_is_ended_too(start: Start, wait_until: Callable[..., None]) -> None:
    child, document = start(FAKE="stubborn")
    family = offspring(document)
    child.send_signal(signal.SIGINT)
    child.communicate(timeout=20)
    assert child.returncode == 130
    wait_until(lambda: not any(one.is_running() for one in family), 5)


def test_a_server_that_dies_while_serving(start: Start) -> None:
    child, document = start()
    offspring(document)[1].kill()
    _, err = child.communicate(timeout=15)
    assert child.returncode == 1
    assert "the server ended" in err
    assert document["log"] in err


def test_a_server_that_cannot_load(
    gguf: Path, programs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FAKE", "die")
    assert main(["serve", str(gguf), "--port", "0"]) == 1
    shown = capsys.readouterr().err
    assert "error: the model is too large" in shown
    assert "its log:" in shown


def test_a_port_that_is_taken(gguf: Path, programs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main(["serve", str(gguf), "--port", port]) == 2
    assert "--port 0 takes a free port" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "code", "said"),
    [
        (["--host", "0.0.0.0"], 2, "--i-know"),
        (["--ctx", "8193"], 2, "8192 tokens"),
        (["--layers", "4"], 2, "2 layers and the output layer"),
        (["--alias", "a,b"], 2, "cannot be a model's name"),
        (["--program", "no-such-llama-server"], 1, "llama-cpp-python's server lacks uvicorn"),
    ],
)
def test_what_cannot_be_served(
    gguf: Path,
    programs: Path,
    flags: list[str],
    code: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(process, "missing_of_python_server", lambda: ["uvicorn"])
    assert main(["serve", str(gguf), "--port", "0", *flags]) == code
    captured = capsys.readouterr()
    assert said in captured.err
    assert captured.out == ""


def test_a_model_must_be_said(programs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve"]) == 2
    assert main(["serve", str(tmp_path / "none.gguf")]) in (1, 2)
    (tmp_path / "bad.gguf").write_bytes(b"GGUF")
    assert main(["serve", str(tmp_path / "bad.gguf")]) == 1
    assert "Traceback" not in capsys.readouterr().err


def test_llama_cpp_pythons_server_takes_its_place(
    gguf: Path, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a llama-server; the plan says what its `auto` cannot."""
    monkeypatch.setattr(process, "missing_of_python_server", list)
    monkeypatch.setattr(Facade, "plan", lambda *_, **given: {"n_ctx": given["context"] or 4096, "n_gpu_layers": 1})
    options = declared.build(serve.ServeOptions, {"program": "no-such-llama-server", "context": 1024, "threads": 3})
    said: list[str] = []
    facade = Facade(context)
    words, health = serve._command(facade, facade.model(str(gguf)), "phi", options, said.append)
    assert words[:5] == [sys.executable, "-P", "-m", "llama_cpp.server", "--model"]
    given = dict(zip(words[4::2], words[5::2], strict=True))
    assert given == {
        "--model": str(gguf),
        "--model_alias": "phi",
        "--host": "127.0.0.1",
        "--port": "8080",
        "--n_ctx": "1024",
        "--n_gpu_layers": "1",
        "--n_threads": "3",
    }
    assert health == "/v1/models"
    assert "fewer settings" in said[0]
