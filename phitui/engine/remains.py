"""What an engine's process leaves behind: its log, and the reason of its death in words."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

from phitui.domain.text import visible

KEPT_LOGS = 10
TAIL_LINES = 15
_FATAL = "Fatal Python error"

_DEATHS = {
    signal.SIGKILL: "killed, often because memory ran out",
    signal.SIGABRT: "the native engine gave up",
    signal.SIGSEGV: "a memory fault in native code",
    signal.SIGBUS: "a bus error; is the model file still whole?",
    signal.SIGILL: "this CPU lacks an instruction the engine was compiled for",
    signal.SIGTERM: "it was asked to end",
}
_HINTS = {
    signal.SIGKILL: "restart it to go on; if it is killed again, use fewer layers or a smaller context",
    signal.SIGABRT: "restart it to go on; its last lines say why: fewer layers or a smaller context need less memory",
    signal.SIGILL: "see phitui doctor for the command that compiles the engine for this machine",
}


def death(code: int) -> tuple[str, str]:
    """The reason and the hint for an exit code; negative ones are signals."""
    again = "restart it to go on; the messages so far are kept"
    if code >= 0:
        return f"it exited with code {code}", again
    try:
        number = signal.Signals(-code)
    except ValueError:
        return f"signal {-code}", again
    meaning = _DEATHS.get(number, "")
    return f"{number.name} ({meaning})" if meaning else number.name, _HINTS.get(number, again)


def new_log(folder: Path, engine: str) -> Path:
    """A new, private log file; the oldest ones go."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    logs = sorted(folder.glob("*.log"))
    for old in logs[: max(0, len(logs) - KEPT_LOGS + 1)]:
        with contextlib.suppress(OSError):
            old.unlink()
    path = folder / f"{time.strftime('%Y%m%d-%H%M%S')}-{time.time_ns() % 10**9:09}-{os.getpid()}-{engine}.log"
    path.touch(mode=0o600, exist_ok=False)
    return path


def tail(log: Path, lines: int = TAIL_LINES) -> str:
    """The last lines of a log, without what a terminal would obey."""
    try:
        with log.open("rb") as stream:
            stream.seek(0, os.SEEK_END)
            stream.seek(max(0, stream.tell() - 16_384))
            text = stream.read().decode("utf-8", "replace")
    except OSError:
        return ""
    at = text.find(_FATAL)  # the interpreter's stacks after that line would hide the native last words
    if at >= 0:
        text = text[: text.find("\n", at)]
    shown = text.rstrip().splitlines()[-lines:]
    return visible("\n".join(shown), keep="\n\t")
