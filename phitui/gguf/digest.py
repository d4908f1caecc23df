"""The SHA-256 of a file while it is being written: a thread follows the writers, through the page cache.

Reading a file again after it was written costs seconds per gigabyte; this way it is done when the last byte is written,
in time that the writers mostly spend waiting for the disk.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterable, Sequence

_BLOCK = 16 << 20
"""Bytes hashed at once: a smaller block costs more waiting for the interpreter's lock than it takes to hash."""


class FollowingDigest:
    """Hashes `descriptor` from its start up to where all parts are written. `parts` are (number, end offset), in order.

    What lies between two parts (padding) counts as written with the later one. Parts are told of in any order.
    """

    def __init__(self, descriptor: int, size: int, parts: Sequence[tuple[int, int]]) -> None:
        self._descriptor, self._size, self._parts = descriptor, size, parts
        self._written: set[int] = set()
        self._next = 0
        self._safe = 0 if parts else size
        self._changed = threading.Condition()
        self._stopped = False
        self._failed: OSError | None = None
        self._digest = hashlib.sha256()
        self._thread = threading.Thread(target=self._follow, name="phitui-digest", daemon=True)

    def start(self, done: Iterable[int] = ()) -> None:
        """Begin, with the parts that are there already."""
        for number in done:
            self.wrote(number)
        self._thread.start()

    def wrote(self, number: int) -> None:
        """A part is written. Safe from any thread."""
        with self._changed:
            self._written.add(number)
            while self._next < len(self._parts) and self._parts[self._next][0] in self._written:
                self._written.discard(self._parts[self._next][0])
                self._safe = self._parts[self._next][1]
                self._next += 1
            if self._next == len(self._parts):
                self._safe = self._size
            self._changed.notify()

    def finish(self, check: Callable[[], None] = lambda: None) -> str:
        """The digest, in hex, once all parts are written. `check` is called while waiting, and may raise.

        Raises OSError if the file cannot be read.
        """
        while self._thread.is_alive():
            check()
            self._thread.join(0.05)
        if self._failed is not None:
            raise self._failed
        return self._digest.hexdigest()

    def stop(self) -> None:
        """Give up; to be called before the descriptor is closed."""
        with self._changed:
            self._stopped = True
            self._changed.notify()
        if self._thread.ident is not None:
            self._thread.join()

    def _follow(self) -> None:
        buffer = memoryview(bytearray(_BLOCK))
        at = 0
        while at < self._size:
            with self._changed:
                while self._safe - at < min(_BLOCK, self._size - at) and not self._stopped:
                    self._changed.wait()
                if self._stopped:
                    return
                safe = self._safe
            try:
                while at < safe:
                    if self._stopped:
                        return
                    count = os.preadv(self._descriptor, [buffer[: min(_BLOCK, safe - at)]], at)
                    if not count:
                        raise OSError("the file was cut while it was written")
                    self._digest.update(buffer[:count])
                    at += count
            except OSError as error:
                self._failed = error
                return
