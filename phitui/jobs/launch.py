"""Starts a job's runner so that nothing of the starter's terminal, session or life can reach it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from pathlib import Path

from phitui.errors import UsageError
from phitui.jobs.journal import LOG

_TASK = re.compile(r"phitui\.(actions|testing)(\.[a-z_0-9]+)+:[a-z_0-9]+", re.IGNORECASE)
# Nothing imported from the current directory; the log complete at any moment, in UTF-8, with a trace of a crash.
_FLAGS = ("-P", "-u", "-X", "utf8", "-X", "faulthandler")


def check_task(task: str) -> None:
    """Only phitui's own actions run as jobs, so a request file cannot name any function of any module."""
    if not _TASK.fullmatch(task):
        raise UsageError(f"{task!r} is not a task", "a task is phitui.actions.MODULE:FUNCTION")


def launch(directory: Path, held: int) -> int:
    """Start the runner of the job in `directory`, handing it the lock's descriptor; returns its process id.

    Raises OSError. A thread waits for the process, so that it is no zombie while a long-living starter goes on.
    What still ends the runner is a system that kills all processes of a person at logout (logind's KillUserProcesses)
    or a container that stops: the job is then interrupted, and resumes.
    """
    log = os.open(directory / LOG, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        process = subprocess.Popen(
            [sys.executable, *_FLAGS, "-m", "phitui.jobs.runner", str(directory.absolute()), str(held)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
            env=_environment(),
            start_new_session=True,
            pass_fds=(held,),
        )
    finally:
        os.close(log)
    threading.Thread(target=process.wait, name=f"reap {process.pid}", daemon=True).start()
    return process.pid


def _environment() -> dict[str, str]:
    """The starter's, with paths that stay right in another directory."""
    environment = dict(os.environ)
    for name in ("PHITUI_HOME", "HF_HOME"):
        if environment.get(name):
            environment[name] = str(Path(environment[name]).expanduser().absolute())
    if environment.get("PYTHONPATH"):
        folders = environment["PYTHONPATH"].split(os.pathsep)
        environment["PYTHONPATH"] = os.pathsep.join(str(Path(folder).absolute()) for folder in folders)
    environment["GGML_NO_BACKTRACE"] = "1"  # on an abort, ggml would otherwise start a debugger on itself
    return environment
