"""Start-up time and the cost of a streamed answer, measured through a pty, beside a plain Textual app.

usage: python bench/tui.py [start] [stream] [slider --model GGUF] [--runs N] [--size 120x40] [--rate 50] [--tokens 500]

start:  seconds from exec to a usable screen: `phitui` against an App with one Static.
stream: bytes to the terminal per token and CPU of one core, for a markdown answer at a fixed rate: phitui's Chat
        against Textual's own Markdown stream in an anchored VerticalScroll.
slider: milliseconds from a key on the layer slider of Plan to the new value on the screen.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import pty
import re
import select
import signal
import statistics
import struct
import sys
import tempfile
import termios
import time
from pathlib import Path

import pyte

ANSWER = """## Why plans come first

A GGUF file can be *planned* before a byte is written. That gives three things:

- the **exact size** of every scheme, before any work;
- tensors that are written in any order, by several threads;
- a job that was killed goes on where it stopped.

### A small example

```python
def align(size: int, alignment: int = 32) -> int:
    return -(-size // alignment) * alignment
```

1. Read the headers of the checkpoint.
2. Ask the policy which tensor gets which type.
3. Place the tensors one after the other.

> Nothing is half written under a final name.

The rest is a matter of moving bytes from one place to another without keeping them all in memory at the same time.

"""

QUERIES = re.compile(rb"\x1b\[[<>=?][0-9;$]*[a-zA-Z]|\x1b\[>[0-9;]*[a-z]|\x1b_G.*?\x1b\\|\x1bP.*?\x1b\\")


class Terminal:
    """A program behind a pty, its screen kept by pyte."""

    def __init__(self, command: list[str], size: tuple[int, int], environ: dict[str, str] | None = None) -> None:
        columns, rows = size
        self.written = 0
        self.screen = pyte.Screen(columns, rows)
        self._stream = pyte.ByteStream(self.screen)
        self.began = time.perf_counter()
        self.pid, self._fd = pty.fork()
        if self.pid == 0:
            settings = {"TERM": "xterm-256color", "COLORTERM": "truecolor", "LANG": "C.UTF-8"}
            os.execvpe(command[0], command, dict(os.environ, **settings, **(environ or {})))
        fcntl.ioctl(self._fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def pump(self, seconds: float) -> None:
        """Take what the program writes for a while."""
        end = time.perf_counter() + seconds
        while (left := end - time.perf_counter()) > 0:
            if not select.select([self._fd], [], [], left)[0]:
                return
            try:
                data = os.read(self._fd, 65536)
            except OSError:
                return
            self.written += len(data)
            if b"\x1b[6n" in data:
                os.write(self._fd, b"\x1b[1;1R")
            self._stream.feed(QUERIES.sub(b"", data))

    def text(self) -> str:
        return "\n".join(self.screen.display)

    def wait(self, pattern: str, timeout: float = 30.0) -> float:
        """Seconds since the start until `pattern` shows."""
        while time.perf_counter() - self.began < timeout:
            self.pump(0.005)
            if re.search(pattern, self.text()):
                return time.perf_counter() - self.began
        raise TimeoutError(f"{pattern!r} did not show:\n{self.text()}")

    def first(self, text: bytes, timeout: float = 30.0) -> float:
        """Seconds since the start until the program has written `text`; the screen is not kept, for exact times."""
        seen = b""
        while time.perf_counter() - self.began < timeout:
            if select.select([self._fd], [], [], 0.05)[0]:
                seen += os.read(self._fd, 65536)
                if text in seen:
                    return time.perf_counter() - self.began
        raise TimeoutError(f"{text!r} was not written")

    def send(self, text: str) -> None:
        os.write(self._fd, text.encode())

    def cpu(self) -> float:
        """Seconds of CPU the program has used, its threads included."""
        return sum(int(f.read_text().split()[0]) for f in Path(f"/proc/{self.pid}/task").glob("*/schedstat")) / 1e9

    def rss(self) -> float:
        """MiB of memory."""
        line = next(line for line in Path(f"/proc/{self.pid}/status").read_text().splitlines() if "VmRSS" in line)
        return int(line.split()[1]) / 1024

    def close(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self._fd)


# what runs behind the pty ---------------------------------------------------------------------------------------------
def tokens(count: int) -> list[str]:
    """`count` pieces of the answer, cut as a tokenizer cuts."""
    pieces = re.findall(r" ?[A-Za-z]{1,6}|\s|[^A-Za-z\s]", ANSWER)
    return (pieces * (count // len(pieces) + 1))[:count]


def bare() -> None:
    from textual.app import App, ComposeResult
    from textual.widgets import Static

    class Bare(App[None]):
        def compose(self) -> ComposeResult:
            yield Static("READY")

    Bare().run()


def plain_stream(count: int, rate: float) -> None:
    """The peer: Textual's Markdown fed token by token through its own stream."""
    import asyncio

    from textual.app import App, ComposeResult
    from textual.containers import VerticalScroll
    from textual.widgets import Markdown, Static

    class Plain(App[None]):
        def compose(self) -> ComposeResult:
            yield Static("READY", id="state")
            with VerticalScroll():
                yield Markdown()

        async def on_key(self) -> None:
            self.run_worker(self.answer())

        async def answer(self) -> None:
            self.query_one(VerticalScroll).anchor()
            stream = Markdown.get_stream(self.query_one(Markdown))
            began = time.monotonic()
            for number, piece in enumerate(tokens(count)):
                await asyncio.sleep(max(0.0, began + number / rate - time.monotonic()))
                await stream.write(piece)
            await stream.stop()
            self.query_one("#state", Static).update("DONE")

    Plain().run()


def phitui_stream(count: int, rate: float) -> None:
    """phitui's Chat with an engine that says the answer at the given rate."""
    from phitui.actions.context import Context
    from phitui.domain.chat import ChatStats, TextChunk
    from phitui.tui.app import PhituiApp
    from phitui.tui.door import Door
    from phitui.tui.state import Hand

    class Talker:
        alive, lost, plan = True, (), None

        def __init__(self) -> None:
            self.messages: list[object] = []

        def ask(self, text: str) -> object:
            began = time.monotonic()
            for number, piece in enumerate(tokens(count)):
                time.sleep(max(0.0, began + number / rate - time.monotonic()))
                yield TextChunk(piece)
            yield ChatStats("stop", 10, 10, count, 0.1, count / rate, 4096, count + 10)

        def instruct(self, system: str) -> None: ...

        def close(self) -> None: ...

    class Bench(Door):
        def open_chat(self, *_: object) -> Talker:  # type: ignore[override]
            return Talker()

        def library(self) -> list[object]:  # type: ignore[override]
            return []

    context = Context()
    app = PhituiApp(context, Bench(context))
    app.hand = Hand("/model.gguf", "model.gguf", "gguf", "Q4_K_M", 1 << 30)
    app.run()


# measuring ------------------------------------------------------------------------------------------------------------
def measure_start(runs: int, size: tuple[int, int]) -> None:
    me = [sys.executable, __file__, "--child"]
    programs = {
        "bare Textual app": ([*me, "bare"], b"READY"),
        "phitui": ([sys.executable, "-m", "phitui"], b"quit"),
    }
    with tempfile.TemporaryDirectory() as home:
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in programs}
        for _ in range(runs + 1):
            for name, (command, pattern) in programs.items():
                terminal = Terminal(command, size, {"PHITUI_HOME": home})
                times[name].append((terminal.first(pattern), terminal.cpu()))
                terminal.close()
    for what, index in (("wall", 0), ("CPU", 1)):
        middle = {name: statistics.median(value[index] for value in values[1:]) for name, values in times.items()}
        least = {name: min(value[index] for value in values[1:]) for name, values in times.items()}
        for name in programs:
            print(f"start  {name:18} {what:5} {middle[name] * 1000:5.0f} ms median, {least[name] * 1000:5.0f} ms best")
        ratio = middle["phitui"] / middle["bare Textual app"]
        best = least["phitui"] / least["bare Textual app"]
        print(f"start  ratio              {what:5} {ratio:5.2f}    median, {best:5.2f}    best (bar 1.35, {runs} runs)")


def measure_stream(size: tuple[int, int], count: int, rate: float) -> None:
    for name, child, start, done in (
        ("plain Textual", "plain", "x", "DONE"),
        ("phitui", "phitui", "why?\r", r"tokens/s"),
    ):
        with tempfile.TemporaryDirectory() as home:
            command = [sys.executable, __file__, "--child", child, "--tokens", str(count), "--rate", str(rate)]
            terminal = Terminal(command, size, {"PHITUI_HOME": home})
            terminal.wait("READY|7 Machine")
            terminal.pump(1.5)
            if child == "phitui":
                terminal.send("4")
                terminal.wait("write a message")
                terminal.pump(1.0)
            written, cpu, began = terminal.written, terminal.cpu(), time.perf_counter()
            terminal.send(start)
            terminal.wait(done, timeout=count / rate + 60)
            seconds = time.perf_counter() - began
            per_token = (terminal.written - written) / count
            load = 100 * (terminal.cpu() - cpu) / seconds
            print(
                f"stream {name:18} {per_token:6.0f} bytes/token  {load:5.1f} % of a core  {terminal.rss():5.0f} MiB RSS"
                f"  ({count} tokens at {rate:g}/s, {size[0]}x{size[1]}, {seconds:.1f} s)"
            )
            terminal.close()
    print("stream bars               900 bytes/token   30.0 % of a core")


def measure_slider(size: tuple[int, int], model: Path, steps: int = 40) -> None:
    """The layer slider of Plan with a real model: from the key to the new value and bars on the screen."""
    with tempfile.TemporaryDirectory() as home:
        state = Path(home) / "state" / "tui.json"
        state.parent.mkdir()
        state.write_text(json.dumps({"hand": {"path": str(model), "name": model.name, "kind": "gguf"}}))
        terminal = Terminal([sys.executable, "-m", "phitui"], size, {"PHITUI_HOME": home})
        terminal.wait("7 Machine")
        terminal.send("3")
        terminal.wait("most context")
        total = int(re.search(r"layers .* (\d+) / (\d+)", terminal.text())[2])  # type: ignore[index]
        terminal.send("\x1b[H")
        terminal.pump(1.0)
        terminal.send("\x1b[C")
        terminal.pump(1.0)
        value = int(re.search(r"layers .* (\d+) / ", terminal.text())[1])  # type: ignore[index]
        times = []
        for step in range(steps):
            key, value = ("\x1b[C", value + 1) if step % 2 == 0 else ("\x1b[D", value - 1)
            sent = time.perf_counter()
            terminal.send(key)
            while f" {value} / {total}" not in terminal.text() and time.perf_counter() - sent < 2:
                terminal.pump(0.002)
            times.append(time.perf_counter() - sent)
            terminal.pump(0.15)
        terminal.close()
    print(
        f"slider {statistics.median(times) * 1000:.0f} ms median, {max(times) * 1000:.0f} ms worst from key to paint"
        f" ({steps} steps, {size[0]}x{size[1]}; bar 50)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", default=[])
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--size", default="120x40")
    parser.add_argument("--rate", type=float, default=50)
    parser.add_argument("--tokens", type=int, default=500)
    parser.add_argument("--model", type=Path, help="a GGUF, for the slider")
    parser.add_argument("--child")
    arguments = parser.parse_args()
    columns, _, rows = arguments.size.partition("x")
    size = (int(columns), int(rows))
    children = {
        "bare": bare,
        "plain": lambda: plain_stream(arguments.tokens, arguments.rate),
        "phitui": lambda: phitui_stream(arguments.tokens, arguments.rate),
    }
    if arguments.child:
        children[arguments.child]()
        return
    what = arguments.what or ["start", "stream"]
    if "start" in what:
        measure_start(arguments.runs, size)
    if "stream" in what:
        measure_stream(size, arguments.tokens, arguments.rate)
    if "slider" in what or arguments.model:
        measure_slider(size, arguments.model.absolute())


if __name__ == "__main__":
    main()
