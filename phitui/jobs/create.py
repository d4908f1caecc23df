"""Making a job's directory, and who works on what: the part that only one process does at a time."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from phitui.errors import PhituiError, UsageError
from phitui.jobs import journal, lock

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_KEYS, _START = ".keys", ".start"
_LEFT_OVER = re.compile(r"\.[0-9a-z]{10}(\.removed)?")


def new_id(now: float) -> str:
    """Ten characters that sort by time (1/32 s), the last two random; no letters that look like digits."""
    ticks, text = int(now * 32), ""
    for _ in range(8):
        ticks, digit = divmod(ticks, 32)
        text = _ALPHABET[digit] + text
    return text + "".join(secrets.choice(_ALPHABET) for _ in range(2))


@contextlib.contextmanager
def starting(directory: Path) -> Iterator[None]:
    """Only one process at a time decides who works on a key; it also clears away drafts that a crash left."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        held = lock.acquire(directory / _START, patience=10.0)
    except OSError as error:
        raise PhituiError(f"cannot keep jobs in {directory}: {error.strerror}") from None
    if held is None:
        raise PhituiError("another phitui has been starting a job for 10 s", "try again")
    try:
        for entry in os.scandir(directory):
            if _LEFT_OVER.fullmatch(entry.name):
                shutil.rmtree(entry.path, ignore_errors=True)
        yield
    finally:
        os.close(held)


def create(directory: Path, values: dict[str, Any]) -> tuple[str, int]:
    """Make a job, complete and locked before it gets its name; returns its id and the lock's descriptor.

    To be called while `starting`. Raises PhituiError if the disk refuses, UsageError if the request is not JSON.
    """
    created = time.time()
    name = new_id(created)
    draft = directory / f".{name}"
    held = None
    try:
        draft.mkdir(mode=0o700)
        journal.write_request(draft, {"id": name, "created": round(created, 3), **values})
        held = lock.acquire(draft / lock.NAME)
        assert held is not None, "nobody else knows this directory"
        journal.write_state(draft, state="queued", attempt=1)
        draft.rename(directory / name)
    except BaseException as error:
        shutil.rmtree(draft, ignore_errors=True)
        if held is not None:
            os.close(held)
        if isinstance(error, OSError):
            raise PhituiError(f"cannot make a job in {directory}: {error.strerror}") from None
        if isinstance(error, TypeError):
            raise UsageError(f"the request of a job must be plain JSON: {error}") from None
        raise
    return name, held


def _key_file(directory: Path, key: str) -> Path:
    return directory / _KEYS / hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()[:32]


def remember_key(directory: Path, key: str, name: str) -> None:
    """Note that this job is the one that works on `key`, for as long as it lives. A no-op for an empty key."""
    if key:
        file = _key_file(directory, key)
        with contextlib.suppress(OSError):
            file.parent.mkdir(mode=0o700, exist_ok=True)
            file.write_text(name)


def job_of_key(directory: Path, key: str) -> str:
    """The id of the last job that worked on `key`, or an empty text."""
    try:
        return _key_file(directory, key).read_text() if key else ""
    except OSError:
        return ""


def discard(directory: Path, name: str) -> None:
    """Delete a job's directory, so that at no moment half of it can be seen. The caller holds its lock."""
    gone = directory / f".{name}.removed"
    with contextlib.suppress(FileNotFoundError):
        (directory / name).rename(gone)
        shutil.rmtree(gone, ignore_errors=True)
