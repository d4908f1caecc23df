"""`phitui chat` as a person and as a script use it, on a tiny model whose answer is known."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

from phitui.actions.chat import ChatRequest, open_chat
from phitui.actions.context import Context
from phitui.domain.chat import Sampling, TextChunk
from phitui.errors import PhituiError
from phitui.testing.scripted import write_scripted

pytestmark = pytest.mark.skipif(find_spec("llama_cpp") is None, reason="llama-cpp-python is not installed")
TEXT = "Paris. سلام Güneş 👩‍👩‍👧‍👦 done"


@pytest.fixture
def parrot(tmp_path: Path) -> str:
    return str(write_scripted(tmp_path / "parrot.gguf", TEXT))


@pytest.fixture
def endless(tmp_path: Path) -> str:
    return str(write_scripted(tmp_path / "endless.gguf", "on and on it goes ", loop=True, context=1 << 17, layers=1))


def phitui(*arguments: str, text: str | None = None, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "phitui", "chat", *arguments],
        input=text,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=os.environ | more,
    )


def test_one_question(parrot: str) -> None:
    done = phitui(parrot, "-p", "hello")
    assert (done.returncode, done.stdout, done.stderr) == (0, TEXT + "\n", "")


def test_json(parrot: str) -> None:
    done = phitui(parrot, "-p", "hello", "--json", "--seed", "1", "--max-tokens", "5", "--ctx", "512")
    assert done.returncode == 0
    document = json.loads(done.stdout)
    assert TEXT.startswith(document["text"]) and document["text"]
    assert document["finish_reason"] == "length"
    assert document["completion_tokens"] == 5
    assert document["prompt_tokens"] == document["evaluated_tokens"] == 11
    assert document["context"] == 512
    for name in ("decode_tokens_per_s", "prompt_tokens_per_s", "load_seconds", "prompt_seconds", "decode_seconds"):
        assert document[name] >= 0


def test_lines_from_stdin(parrot: str) -> None:
    done = phitui(parrot, "--stop", " done", text="hello\n\n/reset\nagain\n/quit\nnot read\n")
    short = TEXT.removesuffix(" done")
    assert (done.returncode, done.stdout) == (0, f"{short}\n{short}\n")
    assert done.stderr == "the conversation is forgotten\n"


def test_mistakes(parrot: str, tmp_path: Path) -> None:
    assert phitui(parrot, "--json").returncode == 2
    assert phitui(parrot, "-p", "x", "--layers", "many").returncode == 2
    assert phitui(parrot, "-p", "x", "--engine", "warp").returncode == 2
    assert phitui("nowhere.gguf", "-p", "x").returncode != 0
    (tmp_path / "bad.gguf").write_bytes(b"GGUF but not really")
    done = phitui(str(tmp_path / "bad.gguf"), "-p", "x", "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["error"]["message"]
    assert "Traceback" not in done.stdout + done.stderr


def test_without_the_library(parrot: str) -> None:
    done = phitui(parrot, "-p", "x", PHITUI_PLUGINS="")
    assert done.returncode == 1
    assert "no engine" in done.stderr


def test_broken_pipe_leaves_nothing_behind(endless: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "phitui", "chat", endless, "-p", "x", "--ctx", "100000"], stdout=subprocess.PIPE
    )
    assert process.stdout
    process.stdout.read(20)
    process.stdout.close()
    assert process.wait(60) == 1


def test_an_interrupted_question(endless: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "phitui", "chat", endless, "-p", "x", "--ctx", "100000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout and process.stderr
    process.stdout.read(20)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"Traceback" not in errors


def test_open_chat(parrot: str) -> None:
    chat = open_chat(Context(), ChatRequest(parrot, context=512, layers=0, sampling=Sampling(temperature=0)))
    try:
        assert chat.info.context == 512
        assert "".join(c.text for c in chat.ask("hi") if isinstance(c, TextChunk)) == TEXT
        assert (Context().paths.state / "engine").is_dir()
    finally:
        chat.close()


def test_a_plan_that_does_not_fit_is_refused(parrot: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    from phitui.actions import plan as plans
    from phitui.errors import DoesNotFit

    real = plans.plan
    monkeypatch.setattr(plans, "plan", lambda *a, **k: replace(real(*a, **k), fits=False))
    with pytest.raises(DoesNotFit) as caught:
        open_chat(Context(), ChatRequest(parrot, context=512))
    assert "--force" in caught.value.hint
    open_chat(Context(), ChatRequest(parrot, context=512, force=True)).close()


class Terminal:
    """phitui chat on a pseudo-terminal."""

    def __init__(self, *arguments: str) -> None:
        self.output = b""
        self.pid, self.descriptor = pty.fork()
        if self.pid == 0:
            os.execv(sys.executable, [sys.executable, "-m", "phitui", "chat", *arguments])

    def type(self, text: str) -> None:
        os.write(self.descriptor, text.encode())

    def expect(self, text: str, seconds: float = 60) -> str:
        """What came until and with `text`."""
        end = time.monotonic() + seconds
        while text.encode() not in self.output:
            ready, _, _ = select.select([self.descriptor], [], [], max(0, end - time.monotonic()))
            assert ready, f"no {text!r} in {self.output[-500:]!r}"
            try:
                data = os.read(self.descriptor, 65536)
            except OSError:
                data = b""
            assert data, f"ended before {text!r}: {self.output[-500:]!r}"
            self.output += data
        before, _, self.output = self.output.partition(text.encode())
        return before.decode("utf-8", "replace") + text

    def end(self) -> int:
        """The exit code, once it ends by itself; what it still writes is read meanwhile."""
        while True:
            try:
                if not os.read(self.descriptor, 65536):
                    break
            except OSError:
                break
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        os.close(self.descriptor)
        return code


def test_terminal_conversation(parrot: str) -> None:
    terminal = Terminal(parrot)
    terminal.expect("/quit ends")
    terminal.expect("> ")
    terminal.type("hello\n")
    terminal.expect("done")
    terminal.expect("> ")
    terminal.type("/quit\n")
    assert terminal.end() == 0


def test_ctrl_c_stops_the_answer_and_the_next_one_ends(endless: str) -> None:
    terminal = Terminal(endless, "--ctx", "100000")
    terminal.expect("> ")
    terminal.type("hello\n")
    terminal.expect("on and on")
    terminal.type("\x03")
    terminal.expect("> ")
    terminal.type("\x03")
    assert terminal.end() == 130


def test_ctrl_d_ends(parrot: str) -> None:
    terminal = Terminal(parrot)
    terminal.expect("> ")
    terminal.type("\x04")
    assert terminal.end() == 0


def test_a_killed_engine_is_started_again(endless: str) -> None:
    terminal = Terminal(endless, "--ctx", "100000")
    terminal.expect("> ")
    terminal.type("hello\n")
    terminal.expect("on and on")
    children = Path(f"/proc/{terminal.pid}/task/{terminal.pid}/children")
    if not children.exists():
        pytest.skip("this system does not list children")
    engines = [int(pid) for pid in children.read_text().split() if b"engine.host" in _command(int(pid))]
    assert len(engines) == 1
    os.kill(engines[0], signal.SIGKILL)
    terminal.expect("SIGKILL")
    terminal.expect("starting the engine again")
    terminal.expect("> ")
    terminal.type("hello\n")
    terminal.expect("on and on")
    terminal.type("\x03")
    terminal.expect("> ")
    terminal.type("/quit\n")
    assert terminal.end() == 0


def _command(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


def test_terminal_commands_of_a_model_are_shown_not_obeyed(tmp_path: Path) -> None:
    evil = write_scripted(tmp_path / "evil.gguf", "a\x1b]0;owned\x07b\x9b31mc \u202egnp.exe end")
    terminal = Terminal(str(evil), "-p", "hello")
    shown = terminal.expect("end")
    assert "\x1b]0" not in shown and "\x07" not in shown and "\u202e" not in shown and "\x9b" not in shown
    assert terminal.end() == 0
    assert "\x1b]0;owned" in phitui(str(evil), "-p", "hello").stdout  # a pipe gets the text as it is


def test_errors_of_the_request() -> None:
    with pytest.raises(PhituiError):
        open_chat(Context(), ChatRequest("no-such-model"))
