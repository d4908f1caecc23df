"""Runs the machine's own tools: found on PATH, each with a time limit and a limit on what it may say.

A tool may hang (and leave children behind that hold its output open), be stuck in the kernel where no signal reaches
it, or print without end. None of that may cost more than the time limit.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

TOOL_SECONDS = 1.3
"""All a tool gets: the whole report has to be there within two seconds, and tools are asked at the same time."""

MOST_OUTPUT = 1 << 20
"""Bytes of output that are read. The longest honest answer (vulkaninfo with many layers) has some 20 KiB."""


@dataclass(frozen=True)
class Said:
    """What a tool said. `problem` is why it said nothing of use; `found` is False where it is not installed."""

    output: str = ""
    problem: str = ""
    found: bool = True

    @property
    def trouble(self) -> str:
        """The problem, if there is one that matters: a tool that is not installed is none."""
        return self.problem if self.found else ""


def run(command: Sequence[str], seconds: float | None = None, extra: Mapping[str, str] | None = None) -> Said:
    """Run a tool and return what it wrote. Never raises, never takes longer than `seconds`."""
    name = os.path.basename(command[0])  # noqa: PTH119
    path = shutil.which(command[0])
    if path is None:
        return Said(found=False, problem=f"{name} is not installed")
    limit = TOOL_SECONDS if seconds is None else seconds
    try:
        process = subprocess.Popen(
            [path, *command[1:]],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "LC_ALL": "C", "LANG": "C", **(extra or {})},
            start_new_session=True,
        )
    except OSError as error:
        return Said(problem=f"{name} cannot be started: {error.strerror}")
    end = time.monotonic() + limit
    try:
        output, complaint, problem = _read(process, end)
    finally:
        _finish(process, end)
    if problem:
        return Said(output, f"{name} {problem.format(limit=f'{limit:g} s')}")
    if process.returncode:
        return Said(f"{complaint}\n{output}".strip(), f"{name} failed with exit code {process.returncode}")
    return Said(output)


def _read(process: subprocess.Popen[bytes], end: float) -> tuple[str, str, str]:
    """(stdout, stderr, problem). A child that the tool left behind may hold the pipes: they are not waited for."""
    texts = {"out": bytearray(), "err": bytearray()}
    problem = ""
    with selectors.DefaultSelector() as selector:
        for name, stream in (("out", process.stdout), ("err", process.stderr)):
            assert stream is not None
            selector.register(stream, selectors.EVENT_READ, name)
        while selector.get_map():
            left = end - time.monotonic()
            if left <= 0:
                problem = "gave no answer within {limit}"
                break
            for key, _ in selector.select(min(left, 0.05)):
                data = os.read(key.fd, 65536)
                texts[key.data] += data
                if not data:
                    selector.unregister(key.fileobj)
            if sum(map(len, texts.values())) > MOST_OUTPUT:
                problem = f"wrote more than {MOST_OUTPUT >> 20} MiB and was stopped"
                break
            if process.poll() is not None and not selector.select(0):
                break
    output, complaint = (bytes(text).decode("utf-8", "replace") for text in texts.values())
    return output, complaint, problem


def _finish(process: subprocess.Popen[bytes], end: float) -> None:
    """End the tool with its children; one that even SIGKILL cannot end is left to a thread that waits for it."""
    if process.poll() is None and process.stdout is not None and not process.stdout.closed:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.05 if time.monotonic() < end else 0)
    with contextlib.suppress(OSError):
        os.killpg(process.pid, signal.SIGKILL)
    for stream in (process.stdout, process.stderr):
        if stream is not None:
            stream.close()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(0.2)
        return
    threading.Thread(target=process.wait, name=f"reap {process.pid}", daemon=True).start()
