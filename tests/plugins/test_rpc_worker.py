"""`phitui worker` as a person or a script starts it: what it says, how it ends, what it refuses."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from phitui_rpc import address, command, library, process

from phitui.engine.workers import ask_workers
from phitui.errors import Unavailable, UsageError

needs_rpc = pytest.mark.skipif(not library.has_rpc(), reason="no llama-cpp-python with RPC here")
Start = Callable[..., tuple[subprocess.Popen[str], dict[str, Any]]]
MIB = 1024 * 1024


@pytest.fixture
def start() -> Iterator[Start]:
    """Start `phitui worker --json` on a free port; gives the process and its document."""
    started: list[subprocess.Popen[str]] = []

    def factory(*flags: str, stderr: int | None = subprocess.PIPE) -> tuple[subprocess.Popen[str], dict[str, Any]]:
        line = [sys.executable, "-m", "phitui", "worker", "--json", "--port", "0", "--threads", "1", *flags]
        child = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=stderr, text=True)
        started.append(child)
        assert child.stdout is not None
        return child, json.loads(child.stdout.readline())

    yield factory
    for child in started:
        child.kill()
        child.communicate()


def worker(*flags: str, seconds: float = 60, **environment: str) -> subprocess.CompletedProcess[str]:
    """`phitui worker` that is expected to refuse."""
    line = [sys.executable, "-m", "phitui", "worker", *flags]
    env = os.environ | environment
    return subprocess.run(line, capture_output=True, text=True, timeout=seconds, check=False, env=env)


@needs_rpc
def test_it_says_what_it_lends_and_ends_with_ctrl_c(start: Start, wait_until: Callable[..., None]) -> None:
    child, document = start("--mem", "64MiB")
    assert document["endpoint"] == f"127.0.0.1:{document['port']}"
    assert document["pid"] == child.pid
    (device,) = document["devices"]
    assert device["total"] == 64 * MIB
    assert 0 < device["free"] <= 64 * MIB
    (seen,) = ask_workers([document["endpoint"]])
    assert seen.state == "ready"
    assert seen.memory[0][1] == 64 * MIB
    with socket.create_connection((document["host"], document["port"])):
        time.sleep(1.0)  # somebody who stays is spoken of
    time.sleep(0.2)
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=10)
    assert child.returncode == 130
    assert out == "", "one document is all there is on stdout"
    assert f"ssh -N -L {document['port']}:127.0.0.1:{document['port']}" in err
    assert err.count("connected: 127.0.0.1") == 1
    assert err.count("connection closed") == 1
    assert "Traceback" not in err
    assert not psutil.pid_exists(document["server_pid"])
    assert ask_workers([document["endpoint"]])[0].state == "gone"


@needs_rpc
def test_sigterm_ends_it_alike(start: Start) -> None:
    child, document = start()
    child.terminate()
    child.communicate(timeout=10)
    assert child.returncode == 130
    assert not psutil.pid_exists(document["server_pid"])


@needs_rpc
def test_a_killed_parent_leaves_no_orphan(start: Start, wait_until: Callable[..., None]) -> None:
    child, document = start()
    child.kill()
    child.wait()
    wait_until(lambda: not psutil.pid_exists(document["server_pid"]), 5)
    assert ask_workers([document["endpoint"]])[0].state == "gone"


@needs_rpc
def test_ram_is_what_is_really_free(start: Start) -> None:
    """ggml's CPU device calls all of the RAM free."""
    _, document = start()
    (device,) = document["devices"]
    assert device["kind"] == "cpu"
    assert device["free"] < device["total"]
    assert device["free"] == pytest.approx(psutil.virtual_memory().available, rel=0.25)


@needs_rpc
def test_a_client_that_vanishes_does_not_end_it(start: Start) -> None:
    """Its server answers into a closed connection; SIGPIPE would end ggml's own program."""
    _, document = start()
    host, port = document["host"], document["port"]
    with socket.create_connection((host, port)) as first:
        first.sendall(b"\x0e" + (24).to_bytes(8, "little") + bytes(24))
        assert first.recv(8)
        with socket.create_connection((host, port)) as second:
            second.sendall(b"\x0e" + (24).to_bytes(8, "little") + bytes(24))
        for _ in range(6):  # ggml listens with a queue of one
            assert ask_workers([document["endpoint"]], 0.1)[0].state == "busy"
    assert ask_workers([document["endpoint"]])[0].state == "ready"


@needs_rpc
@pytest.mark.parametrize("garbage", [b"GET / HTTP/1.1\r\n\r\n", b"\x0e" + b"\xff" * 8, bytes(64), b""])
def test_garbage_ends_a_connection_only(start: Start, garbage: bytes) -> None:
    child, document = start()
    with socket.create_connection((document["host"], document["port"])) as link:
        link.settimeout(5)
        with contextlib.suppress(OSError):  # it hangs up, in one way or another
            link.sendall(garbage)
            link.shutdown(socket.SHUT_WR)
            assert link.recv(64) == b""
    assert ask_workers([document["endpoint"]])[0].state == "ready"
    assert child.poll() is None


@needs_rpc
def test_a_server_that_dies_at_once_is_an_error_and_a_steady_one_is_started_again(
    start: Start, wait_until: Callable[..., None]
) -> None:
    child, document = start()
    os.kill(document["server_pid"], signal.SIGKILL)
    _, err = child.communicate(timeout=10)
    assert child.returncode == 1
    assert "SIGKILL" in err
    assert "Traceback" not in err


@needs_rpc
def test_a_steady_server_is_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "_STEADY", 0.0)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = process.Server(process.Offer("127.0.0.1", port, (), (), 1, None))
    said: list[str] = []

    class Enough(Exception):
        pass

    def say(text: str) -> None:
        said.append(text)
        if "started again" in text:
            raise Enough

    try:
        server.start()
        os.kill(server.pid, signal.SIGKILL)
        with pytest.raises(Enough):
            command._serve(server, say)
        assert ask_workers([server.offer.endpoint])[0].state == "ready"
    finally:
        server.end()
    assert any("SIGKILL" in text for text in said)


@needs_rpc
def test_a_port_that_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = worker("--port", str(port))
    assert done.returncode == 1
    assert f"port {port} of 127.0.0.1 is in use" in done.stderr
    assert f"--port {port + 1}" in done.stderr


@needs_rpc
@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--host", "0.0.0.0"], "no password and no encryption"),
        (["--host", "::1"], "IPv4 only"),
        (["--host", "203.0.113.7", "--i-know"], "not an address of this machine"),
        (["--host", "no host\x1b"], "not an IPv4 address"),
        (["--port", "65536"], "out of range"),
        (["--port", "-1"], "out of range"),
        (["--port", "many"], "not a valid integer"),
        (["--mem", "lots"], "is no size"),
        (["--mem", "0"], "is no size"),
        (["--threads", "0"], "out of range"),
        (["--port", "0", "--device", "CUDA7"], "there is no device 'CUDA7' here"),
        (["--port", "0", "--mem", "1G", "--mem", "2G"], "2 --mem for 1 device"),
    ],
)
def test_what_is_refused(flags: list[str], words: str) -> None:
    done = worker(*flags)
    assert done.returncode == 2, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_other_machines_only_when_insisted(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="reached from other machines") as caught:
        address.resolve("0.0.0.0", 50052, False)
    assert "ssh -N -L 50052:127.0.0.1:50052" in caught.value.hint
    assert "--i-know" in caught.value.hint
    assert address.resolve("0.0.0.0", 0, True)[0] == "0.0.0.0"
    assert address.resolve("localhost", 0, False)[0] == "127.0.0.1"
    assert address.resolve("127.0.0.2", 0, False)[0] == "127.0.0.2"


def test_without_rpc_in_the_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(command, "has_rpc", lambda: False)
    monkeypatch.setattr(process, "has_rpc", lambda: False)
    monkeypatch.setenv("PATH", str(tmp_path))
    state = command.WorkerCommand().available()
    assert not state.ok
    assert "-DGGML_RPC=ON" in state.hint
    offer = process.Offer("127.0.0.1", 50052, ("CPU", "CUDA0"), (), 3, None)
    with pytest.raises(Unavailable, match="without RPC"):
        process.command(offer)
    own = tmp_path / "rpc-server"
    own.write_text("#!/bin/sh\n")
    own.chmod(0o755)
    assert command.WorkerCommand().available().ok
    line = process.command(offer)
    assert line[line.index(str(own)) - 1] == "phitui_rpc.shim"
    assert line[-2:] == ["--device", "CPU,CUDA0"]
    with pytest.raises(UsageError, match="--mem"):
        process.command(process.Offer("127.0.0.1", 50052, (), (1,), 3, None))


def test_a_program_of_another_hand_ends_with_its_parent(wait_until: Callable[..., None], tmp_path: Path) -> None:
    note = tmp_path / "pid"
    script = f"import os, pathlib, time; pathlib.Path({str(note)!r}).write_text(str(os.getpid())); time.sleep(60)"
    line = [sys.executable, "-P", "-m", "phitui_rpc.shim", sys.executable, "-c", script]
    shim = subprocess.Popen(line, stdin=subprocess.PIPE)
    wait_until(lambda: note.exists() and note.read_text() != "", 20)
    assert shim.stdin is not None
    shim.stdin.close()
    assert shim.wait(10) == 128 + signal.SIGKILL
    assert not psutil.pid_exists(int(note.read_text()))


def test_nothing_native_is_loaded_to_offer_it() -> None:
    code = (
        "import sys, phitui_rpc; offers = [*phitui_rpc.phitui_backends(), *phitui_rpc.phitui_commands()]; "
        "[offer.available() for offer in offers]; assert not {'llama_cpp', 'psutil'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@needs_rpc
def test_the_cache_keeps_large_tensors(start: Start, home: Path) -> None:
    start("--cache")
    assert (home / "phitui" / "cache" / "rpc").is_dir()


def test_starting_twice_in_the_time_of_a_person(start: Start) -> None:
    if not library.has_rpc():
        pytest.skip("no RPC here")
    began = time.monotonic()
    start()
    assert time.monotonic() - began < 20
