"""Harmless tasks for tests of jobs: each is `(request, job) -> dict` like those below phitui.actions."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from phitui.domain.offers import JobContext
from phitui.errors import Cancelled, PhituiError, UsageError


def echo(request: dict[str, Any], job: JobContext) -> dict[str, Any]:
    """Returns the request."""
    job.note("hello")
    return {"request": request, "cwd": str(Path.cwd()), "sid": os.getsid(0), "pid": os.getpid()}


def count(request: dict[str, Any], job: JobContext) -> dict[str, Any]:
    """Counts to `steps` with `pause` seconds between, and remembers in the file `memory` how far it came."""
    memory = Path(request["memory"]) if "memory" in request else None
    first = int(memory.read_text()) if memory and memory.exists() else 0
    for step in range(first, request["steps"]):
        job.progress(step, request["steps"], f"step {step}")
        time.sleep(request.get("pause", 0.0))
        if memory:
            fresh = memory.with_suffix(".fresh")
            fresh.write_text(str(step + 1))
            fresh.replace(memory)
    job.progress(request["steps"], request["steps"], "counted")
    return {"first": first, "steps": request["steps"]}


def sleep(request: dict[str, Any], job: JobContext) -> dict[str, Any]:
    """One long call that never looks at the job, like native code."""
    time.sleep(request["seconds"])
    return {}


def stuck(request: dict[str, Any], job: JobContext) -> dict[str, Any]:
    """Native sleep that keeps the interpreter's lock, so that no Python thread can run, and that no signal shortens."""
    import ctypes
    import signal

    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    ctypes.PyDLL(None).sleep(int(request["seconds"]))
    return {}


def fail(request: dict[str, Any], job: JobContext) -> dict[str, Any]:
    """Fails the way `how` says."""
    how = request["how"]
    if how == "expected":
        raise PhituiError("the disk is made of cheese", "buy another")
    if how == "usage":
        raise UsageError("cheese is no disk", "give a disk")
    if how == "unexpected":
        raise RuntimeError("surprise")
    if how == "exit":
        sys.exit(3)
    if how == "hard exit":
        os._exit(0)
    if how == "abort":
        os.abort()
    raise AssertionError(how)


def chatter(request: dict[str, Any], job: JobContext) -> dict[str, Any]:
    """Writes to stdout, to stderr and past Python, and reports progress `calls` times as fast as it can."""
    print("from print")  # noqa: T201 - that is the point
    os.write(2, b"from native code\n")
    for call in range(request.get("calls", 0)):
        job.progress(call, request["calls"])
    return {}


def deaf(request: dict[str, Any], job: JobContext) -> dict[str, Any]:
    """Swallows every wish to stop."""
    end = time.monotonic() + request["seconds"]
    while time.monotonic() < end:
        try:
            job.check()
        except Cancelled:
            time.sleep(0.01)
    return {}


def trip(request: dict[str, Any], job: JobContext) -> dict[str, Any]:
    """Stumbles over the cancel, as code does that wraps whatever it catches."""
    end = time.monotonic() + request["seconds"]
    try:
        while time.monotonic() < end:
            job.check()
            time.sleep(0.01)
    except Cancelled as error:
        raise RuntimeError("something went wrong") from error
    return {}


def with_child(request: dict[str, Any], job: JobContext) -> dict[str, Any]:
    """Waits for a child process without looking at the job."""
    child = subprocess.Popen([sys.executable, "-c", f"import time; time.sleep({int(request['seconds'])})"])
    job.note(f"child {child.pid}")
    time.sleep(request["seconds"])
    return {}


def leave_child(request: dict[str, Any], job: JobContext) -> dict[str, Any]:
    """Ends while a forked child lives on."""
    child = os.fork()
    if child == 0:
        time.sleep(request["seconds"])
        os._exit(0)
    return {"child": child}
