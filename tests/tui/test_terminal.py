"""The real app in a real terminal, by keys alone: from a checkpoint to an exported Modelfile, killed in between."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import signal
import struct
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pyte
import pytest

QUERIES = re.compile(rb"\x1b\[[<>=?][0-9;$]*[a-zA-Z]|\x1b\[>[0-9;]*[a-z]|\x1b_G.*?\x1b\\|\x1bP.*?\x1b\\")
COLUMNS, ROWS = 80, 24
pytest.importorskip("phitui.testing.checkpoints")


class Terminal:
    """`phitui` behind a pty."""

    def __init__(self, environ: dict[str, str]) -> None:
        self.screen = pyte.Screen(COLUMNS, ROWS)
        self._stream = pyte.ByteStream(self.screen)
        self.raw = b""
        self.pid, self._fd = pty.fork()
        if self.pid == 0:
            settings = {"TERM": "xterm-256color", "LANG": "C.UTF-8", **environ}
            os.execvpe(sys.executable, [sys.executable, "-m", "phitui"], dict(os.environ, **settings))
        fcntl.ioctl(self._fd, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))

    def pump(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0 and select.select([self._fd], [], [], left)[0]:
            try:
                data = os.read(self._fd, 65536)
            except OSError:
                return
            self.raw += data
            self._stream.feed(QUERIES.sub(b"", data))

    def wait(self, pattern: str, seconds: float = 40.0) -> str:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.pump(0.05)
            text = "\n".join(self.screen.display)
            if re.search(pattern, text):
                return text
        raise AssertionError(f"{pattern!r} did not show:\n" + "\n".join(self.screen.display))

    def keys(self, *keys: str) -> None:
        for key in keys:
            os.write(self._fd, key.encode())
            self.pump(0.1)

    def ended(self) -> int | None:
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        return status if pid else None

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self._fd)


@pytest.fixture
def terminal() -> Iterator[Callable[..., Terminal]]:
    started: list[Terminal] = []

    def start(**environ: str) -> Terminal:
        started.append(Terminal(environ))
        return started[-1]

    yield start
    for one in started:
        with contextlib.suppress(OSError):
            one.kill()


def test_from_a_checkpoint_to_a_modelfile_by_keys_alone(
    home: Path, terminal: Callable[..., Terminal], context: object
) -> None:
    from phitui.testing.checkpoints import write_checkpoint

    models = home / "phitui" / "data" / "models"
    write_checkpoint(models / "Phi-3-tiny-instruct")
    app = terminal()
    app.wait("Phi-3-tiny-instruct/")
    app.keys("\r")
    app.wait(r"› \S+ +[\d.]+ [KM]iB")
    app.keys("\x1b[H")
    app.wait("› F32")
    app.keys("b")
    app.wait("t takes it in hand")
    app.keys("t")
    app.wait(r"phitui Phi-3-tiny-instruct\.F32")
    assert list(models.glob("*.gguf"))
    app.keys("6")
    app.wait("✓ done")
    app.kill()

    again = terminal()
    again.wait(r"phitui Phi-3-tiny-instruct\.F32")
    again.keys("6")
    again.wait("✓ done")
    again.keys("3")
    again.wait("✓ fits")
    again.keys("5")
    again.wait(r"Ollama \(Modelfile\)")
    again.keys("\x1b[F")
    again.wait("TEMPLATE")
    again.keys("w")
    again.wait("✓ written")
    assert next((home / "phitui" / "data" / "exports").rglob("Modelfile")).read_text().count("FROM") == 1
    again.keys("q")
    end = time.monotonic() + 10
    while (status := again.ended()) is None and time.monotonic() < end:
        again.pump(0.05)
    assert status == 0
    assert b"\x1b[?1049l" in again.raw, "the terminal's own screen is back"
    assert b"Traceback" not in again.raw


@pytest.mark.parametrize(
    "environ", [{"TERM": "xterm", "NO_COLOR": "1"}, {"TERM": "linux"}, {"LANG": "C", "LC_ALL": "C"}]
)
def test_plain_terminals_are_usable(terminal: Callable[..., Terminal], environ: dict[str, str]) -> None:
    app = terminal(**environ)
    text = app.wait("No model on this machine yet")
    assert "1 Models" in text
    assert "? help" in text
    app.keys("7")
    text = app.wait("engine")
    if environ.get("LC_ALL") == "C":
        assert text.isascii()
