"""A conversation at a terminal whose worker is killed: said, kept, tried again, and gone on with without it."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from phitui_rpc import library

from phitui.testing.scripted import write_scripted

pytestmark = pytest.mark.skipif(not library.has_rpc(), reason="no llama-cpp-python with RPC here")


class Terminal:
    """phitui on a pseudo-terminal."""

    def __init__(self, *arguments: str) -> None:
        self.output = b""
        self.pid, self.descriptor = pty.fork()
        if self.pid == 0:
            os.execv(sys.executable, [sys.executable, "-m", "phitui", *arguments])

    def type(self, text: str) -> None:
        os.write(self.descriptor, text.encode())

    def expect(self, text: str, seconds: float = 60) -> str:
        """What came until and with `text`."""
        end = time.monotonic() + seconds
        while text.encode() not in self.output:
            ready, _, _ = select.select([self.descriptor], [], [], max(0, end - time.monotonic()))
            assert ready, f"no {text!r} in {self.output[-800:]!r}"
            self.output += os.read(self.descriptor, 65536)
        before, _, self.output = self.output.partition(text.encode())
        return before.decode("utf-8", "replace") + text

    def close(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self.descriptor)


def lend(port: int = 0) -> tuple[subprocess.Popen[str], str]:
    line = [sys.executable, "-m", "phitui", "worker", "--json", "--threads", "1", "--port", str(port)]
    worker = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert worker.stdout is not None
    return worker, json.loads(worker.stdout.readline())["endpoint"]


def end(worker: subprocess.Popen[str]) -> None:
    worker.kill()
    worker.wait()
    assert worker.stdout is not None
    worker.stdout.close()


def test_the_conversation_outlives_its_worker(tmp_path: Path) -> None:
    endless = write_scripted(tmp_path / "endless.gguf", "on and on it goes ", loop=True, context=1 << 17, layers=1)
    worker, endpoint = lend()
    terminal = Terminal("chat", str(endless), "--rpc", endpoint, "--temp", "0", "--ctx", "65536")
    try:
        terminal.expect("/quit ends")
        terminal.type("first\n")
        terminal.expect("on and on it goes on")
        end(worker)
        said = terminal.expect("tries again")
        assert f"the RPC worker {endpoint} does not answer: connection refused" in said
        assert f"phitui worker --port {endpoint.split(':')[1]}" in said
        assert "Traceback" not in said
        terminal.expect(f"/without {endpoint} goes on without it")
        terminal.type("/restart\n")
        terminal.expect("does not answer")
        terminal.expect("tries again")
        worker, _ = lend(int(endpoint.split(":")[1]))
        terminal.type("/restart\n")
        terminal.expect("starting the engine again ...")
        terminal.expect("> ")
        terminal.type("second\n")
        terminal.expect("on and on it goes on")
        end(worker)
        terminal.expect("goes on without it")
        terminal.type("/without\n")
        terminal.expect(f"starting the engine again without {endpoint} ...")
        terminal.expect("> ")
        terminal.type("third\n")
        terminal.expect("on and on it goes on")
        terminal.type("\x03")  # stops the answer
        terminal.expect("> ")
        terminal.type("/quit\n")
    finally:
        terminal.close()
        if worker.poll() is None:
            end(worker)
