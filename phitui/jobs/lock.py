"""The lock that says whether a job's runner lives.

A job is alive exactly as long as an exclusive flock is held on its `lock` file. The kernel drops it however the process
ends, so neither a crash nor a reused process id can fool a reader. The starter takes it and hands the open file to the
runner, so that there is no moment in between in which the job looks dead.
"""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

NAME = "lock"


def acquire(file: Path, patience: float = 0.0) -> int | None:
    """Take the lock; returns its file descriptor (close-on-exec), or None if it stays taken for `patience` seconds.

    Readers hold a shared lock for microseconds while they look, hence callers give at least some patience.
    """
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return descriptor
        except BlockingIOError:
            if time.monotonic() >= deadline:
                os.close(descriptor)
                return None
        except BaseException:
            os.close(descriptor)
            raise
        time.sleep(0.005)


def held(file: Path) -> bool:
    """Whether somebody holds the lock."""
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
