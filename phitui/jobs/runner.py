"""`python -m phitui.jobs.runner DIR [LOCK]`: the detached process of one job.

Nothing heavy is imported before the job is marked running. The task's outcome becomes the last event; whatever else
happens (a kill, an abort in native code), the lock goes free without one, which readers call "interrupted".
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
import traceback
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from phitui.errors import Cancelled, PhituiError, UsageError
from phitui.jobs import journal, lock
from phitui.jobs.context import RunnerContext
from phitui.jobs.launch import check_task


def main(arguments: list[str]) -> int:
    """Run the job; returns the exit code of the process."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    directory = Path(arguments[0])
    held = _hold(directory, int(arguments[1]) if len(arguments) > 1 else None)
    if held is None:
        _say("this job is already running")
        return 1
    request = journal.read_request(directory)
    reader = journal.EventReader(directory)
    reader.skim()
    attempt, started = reader.fold.attempt, round(time.time(), 3)
    end = _Ending(journal.EventWriter(directory), attempt, started)
    context = RunnerContext(directory, end.events, end.hard_stop)
    context.watch()
    end.events.write("state", state="running", attempt=attempt, started=started, pid=os.getpid())
    _say(f"--- attempt {attempt}, process {os.getpid()}, {time.strftime('%Y-%m-%d %H:%M:%S')}")
    outcome = _run(request, context, directory)
    context.end()
    end.write(**outcome)
    return {"done": 0, "cancelled": 130}.get(outcome["state"], 1)


@dataclass(frozen=True)
class _Ending:
    """Writes the last event. Whoever comes first, the task or the watcher, decides how the job ended."""

    events: journal.EventWriter
    attempt: int
    started: float

    def write(self, **outcome: Any) -> bool:
        return self.events.write("state", attempt=self.attempt, started=self.started, **outcome)

    def hard_stop(self) -> None:
        """End a task that does not react to a cancel, with the children it started; called by the watcher."""
        self.write(state="cancelled")
        if os.getsid(0) == os.getpid():
            with contextlib.suppress(OSError):
                os.killpg(os.getpgid(0), signal.SIGTERM)  # we handle it, our children end
        os._exit(130)


def _say(text: str) -> None:
    with contextlib.suppress(OSError):
        sys.stderr.write(f"{text}\n")


def _hold(directory: Path, inherited: int | None) -> int | None:
    """The lock's descriptor, kept to this process: a forked child would keep the job alive after us."""
    held = lock.acquire(directory / lock.NAME, patience=0.3) if inherited is None else inherited
    if held is not None:
        os.set_inheritable(held, False)
        os.register_at_fork(after_in_child=lambda: os.close(held))
    return held


def _run(request: dict[str, Any], context: RunnerContext, directory: Path) -> dict[str, Any]:
    """The final event's values."""
    try:
        context.check()
        result = _task(request["task"])(request["request"], context)
        return {"state": "done", "result": result if result is not None else {}}
    except Cancelled:
        return {"state": "cancelled"}
    except BaseException as error:
        if not isinstance(error, PhituiError):
            traceback.print_exc()
        if context.stopping:
            return {"state": "cancelled"}
        return {"state": "failed", "error": _explain(error, directory)}


def _task(name: str) -> Any:
    check_task(name)
    module, _, function = name.partition(":")
    return getattr(import_module(module), function)


def _explain(error: BaseException, directory: Path) -> dict[str, str]:
    if isinstance(error, PhituiError):
        usage = {"kind": "usage"} if isinstance(error, UsageError) else {}
        return {"message": error.message, "hint": error.hint, **usage}
    if isinstance(error, MemoryError):
        return {
            "message": "the machine has not enough free memory for this",
            "hint": "close other programs, then resume",
        }
    kind = (
        "the task ended the process" if isinstance(error, SystemExit) else f"unexpected error: {type(error).__name__}"
    )
    log = directory / journal.LOG
    return {"message": f"{kind}: {error}", "hint": f"this is a defect of phitui or a plugin; details are in {log}"}


if __name__ == "__main__":
    code = main(sys.argv[1:])
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
    os._exit(code)  # whatever threads the task left behind
