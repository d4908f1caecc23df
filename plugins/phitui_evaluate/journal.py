"""The chunks that are done, in a file, so that a stopped evaluation goes on from there.

A line of JSON that says what is evaluated, then the scores of each chunk as float64. A chunk that was cut off by a
crash is evaluated again, and a file of another evaluation is begun anew.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]


class Journal:
    """Scores of finished chunks, in order. Without a path, or on a disk that refuses, nothing is kept."""

    def __init__(self, path: Path | None, identity: Mapping[str, Any], rows: int, columns: int) -> None:
        self._path = path
        self._file: IO[bytes] | None = None
        self._shape = (rows, columns)
        self._line = json.dumps(identity, sort_keys=True).encode() + b"\n"

    def begin(self) -> list[Array]:
        """The chunks that were done before."""
        if self._path is None:
            return []
        done: list[Array] = []
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            self._file = os.fdopen(descriptor, "r+b", buffering=0)
            done = self._read(self._file)
        return done

    def _read(self, file: IO[bytes]) -> list[Array]:
        import numpy as np

        size = self._shape[0] * self._shape[1] * 8
        data = file.read()
        if not data.startswith(self._line):
            file.seek(0)
            file.truncate()
            file.write(self._line)
            return []
        count = (len(data) - len(self._line)) // size
        end = len(self._line) + count * size
        file.truncate(end)
        file.seek(end)
        scores = np.frombuffer(data[len(self._line) : end], np.float64)
        return list(scores.reshape(count, *self._shape))

    def add(self, scores: Array) -> None:
        """Remember one more chunk."""
        if self._file is not None:
            try:
                self._file.write(scores.tobytes())
            except OSError:
                self.close()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def forget(self) -> None:
        """The evaluation is done: remove the file."""
        self.close()
        if self._path is not None:
            with contextlib.suppress(OSError):
                self._path.unlink()
