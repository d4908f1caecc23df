"""Reads little-endian values one after the other from the front of a file, through a small sliding window.

Reads are `pread`s, never a memory map: a file that somebody cuts short under a map kills the process with SIGBUS.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any

from phitui.errors import InvalidFile

WINDOW = 1 << 20
_U64 = struct.Struct("<Q")


class Cursor:
    """A read position in an open file of `size` bytes. All reads raise InvalidFile at the end of the file."""

    def __init__(self, descriptor: int, path: Path, size: int, start: int = 0) -> None:
        self.path = path
        self.size = size
        self._descriptor = descriptor
        self._base = start
        self._at = 0
        self._buffer = b""

    @property
    def position(self) -> int:
        """The offset in the file of the next byte."""
        return self._base + self._at

    def take(self, count: int, what: str) -> bytes:
        """The next `count` bytes."""
        if self._at + count > len(self._buffer):
            self._fill(count, what)
        self._at += count
        return self._buffer[self._at - count : self._at]

    def unpack(self, form: struct.Struct, what: str) -> Any:
        """The next value of a one-value struct, or the tuple of a longer one."""
        if self._at + form.size > len(self._buffer):
            self._fill(form.size, what)
        values = form.unpack_from(self._buffer, self._at)
        self._at += form.size
        return values[0] if len(values) == 1 else values

    def u64(self, what: str) -> int:
        value: int = self.unpack(_U64, what)
        return value

    def skip(self, count: int, what: str) -> None:
        """Pass over `count` bytes without reading them."""
        if count > self.size - self.position:
            raise self.truncated(what)
        self._base, self._at, self._buffer = self.position + count, 0, b""

    def skip_strings(self, count: int, what: str) -> None:
        """Pass over `count` strings (64-bit length, bytes). This loop is what reading a large vocabulary costs."""
        unpack = _U64.unpack_from
        remaining = count
        while remaining:
            self._fill(8, what)
            buffer, at = self._buffer, self._at
            try:
                for left in range(remaining, 0, -1):
                    remaining = left
                    at += unpack(buffer, at)[0] + 8
                remaining = 0
            except (struct.error, OverflowError):
                pass
            if at > self.size - self._base:
                raise self.truncated(what)
            self._at = at

    def truncated(self, what: str) -> InvalidFile:
        return InvalidFile(
            f"{self.path}: the file ends in the middle of {what} ({self.size} bytes)", "download or build it again"
        )

    def _fill(self, count: int, what: str) -> None:
        """Move the window so that it starts at the position and holds at least `count` bytes."""
        if self._at + count <= len(self._buffer):
            return
        position = self.position
        if count > self.size - position:
            raise self.truncated(what)
        wanted = min(max(count, WINDOW), self.size - position)
        parts, have = [], 0
        while have < count:
            part = os.pread(self._descriptor, wanted - have, position + have)
            if not part:
                raise self.truncated(what)
            parts.append(part)
            have += len(part)
        self._buffer = parts[0] if len(parts) == 1 else b"".join(parts)
        self._base, self._at = position, 0
