"""Reads the bytes of a write from the Hub before their turn: large ranges, several at a time, none of them twice.

What will be read is known beforehand, so it is cut into blocks, file by file. A few connections fill the blocks, the
threads of the writer empty them, and a block that is empty makes room for the next one: memory is bounded. Files that
are read from end to end are compared with the Hub's checksum on the way.
"""

from __future__ import annotations

import hashlib
import mmap
import threading
from bisect import bisect_right
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from phitui.domain.tensors import HubFile
from phitui.errors import Cancelled, SourceChanged
from phitui.gguf.remote import CONNECTIONS, HubReader

BLOCK = 8 << 20
"""Bytes of one request: enough that waiting 50 ms for its answer hardly counts."""
WINDOW = 64 << 20
"""Bytes of all blocks that are being filled or emptied, at most."""
BRIDGE = 1 << 20
"""A gap of at most so many bytes that nobody needs is read all the same: it is cheaper than another request."""
_STEP = 1 << 20
"""Bytes after which those who wait for a block look again."""
_STUCK = 3.0
"""Seconds without any move after which bytes must be wanted in another order than was announced (a slow disk moves)."""

Segment = tuple[HubFile, int, int]
"""Bytes that will be read: file, offset, length."""


@dataclass(frozen=True)
class RemoteReport:
    """What was read from the Hub, in bytes and requests.

    The SHA-256 of `verified` files is the Hub's. Of `unverified` ones not all bytes were read at once (parts of the
    file are not needed, or came in a former attempt): only their size and the Hub's tag of them were compared.
    """

    fetched: int = 0
    requests: int = 0
    verified: tuple[str, ...] = ()
    unverified: tuple[str, ...] = ()


@dataclass(eq=False)
class Block:
    """A range of a file. `wanted` counts the bytes that have not been read yet, `filled` those that came."""

    file: HubFile
    start: int
    length: int
    wanted: int = 0
    filled: int = 0
    begun: bool = False
    checked: bool = True
    data: mmap.mmap | None = None

    @property
    def end(self) -> int:
        return self.start + self.length


@dataclass(eq=False)
class _File:
    """The blocks of a file in its order, and its checksum if all of it is read."""

    file: HubFile
    blocks: list[Block]
    digest: Any = None
    next: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.starts = [block.start for block in self.blocks]
        whole = sum(block.length for block in self.blocks) == self.file.size
        self.digest = _digest(self.file) if whole else None
        for block in self.blocks:
            block.checked = self.digest is None

    def block(self, offset: int) -> Block | None:
        """The block that holds the byte at this offset."""
        at = bisect_right(self.starts, offset) - 1
        return self.blocks[at] if at >= 0 and offset < self.blocks[at].end else None

    def want(self, at: int, end: int) -> None:
        """Note that these bytes will be read once more; there are blocks for all of them."""
        while at < end:
            block = self.blocks[bisect_right(self.starts, at) - 1]
            part = min(end, block.end) - at
            block.wanted += part
            at += part

    @property
    def verified(self) -> bool:
        return self.digest is not None and self.next == len(self.blocks)


def _digest(file: HubFile) -> Any:
    """What the Hub's tag of a file is made with: SHA-256, or git's SHA-1 for a small one; None if it is neither."""
    if len(file.etag) == 64:
        return hashlib.sha256()
    if len(file.etag) == 40:
        return hashlib.sha1(b"blob %d\0" % file.size, usedforsecurity=False)
    return None


def matches(file: HubFile, data: bytes) -> bool:
    """Whether these are the bytes of the file, as far as the Hub says what they are."""
    digest = _digest(file)
    if digest is not None:
        digest.update(data)
    return len(data) == file.size and (digest is None or digest.hexdigest() == file.etag)


def cut(segments: Iterable[Segment]) -> list[_File]:
    """Blocks of at most BLOCK bytes that hold the segments: files in order of appearance, each by rising offset."""
    ranges: dict[HubFile, list[tuple[int, int]]] = {}
    for file, offset, length in segments:
        if length:
            ranges.setdefault(file, []).append((offset, offset + length))
    return [_cut(file, sorted(parts)) for file, parts in ranges.items()]


def _cut(file: HubFile, parts: list[tuple[int, int]]) -> _File:
    runs: list[list[int]] = [[0, 0]]
    for start, end in [*parts, (file.size, file.size)]:
        if start - runs[-1][1] <= BRIDGE:
            runs[-1][1] = max(runs[-1][1], end)
        else:
            runs.append([start, end])
    blocks = [
        Block(file, start, min(BLOCK, last - start)) for first, last in runs for start in range(first, last, BLOCK)
    ]
    made = _File(file, blocks)
    for start, end in parts:
        made.want(start, end)
    return made


def _memory(size: int) -> mmap.mmap:
    """Memory that goes back to the system when it is thrown away; the heap would keep most of it."""
    return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


class ReadAhead:
    """The bytes of known segments, ready or on their way. Safe for several threads."""

    def __init__(self, reader: HubReader, segments: Iterable[Segment]) -> None:
        self.reader = reader
        self._files = {made.file: made for made in cut(segments)}
        self._blocks = [block for made in self._files.values() for block in made.blocks]
        self._next = self._held = self._filling = self._moves = 0
        self._disorder = False
        self._changed = threading.Condition()
        self._error: BaseException | None = None
        for number in range(min(CONNECTIONS, len(self._blocks))):
            threading.Thread(target=self._work, name=f"phitui-hub-{number}", daemon=True).start()

    def read(self, file: HubFile, offset: int, target: memoryview) -> None:
        """Fill `target` with bytes of a file, from `offset` on. What was not announced is asked for at once."""
        while target:
            made = self._files.get(file)
            block = made.block(offset) if made else None
            data = self._wait(block, min(block.end, offset + len(target)) - block.start) if block else None
            if block is None or data is None:
                target[:] = self.reader.read(file, offset, len(target))
                return
            part = min(len(target), block.end - offset)
            start = offset - block.start
            target[:part] = memoryview(data)[start : start + part]
            with self._changed:
                block.wanted -= part
                self._moves += 1
                self._free(block)
            target, offset = target[part:], offset + part

    def finish(self, check: Callable[[], None] = lambda: None) -> RemoteReport:
        """Wait for what nobody reads but the checksums. `check` is called while waiting, and may raise.

        To be called when all announced bytes are read. Raises what went wrong, SourceChanged for a wrong checksum.
        """
        while not all(block.checked for block in self._blocks):
            check()
            with self._changed:
                self._look()
                self._changed.wait(0.1)
        self._look()
        names = sorted(self._files, key=lambda file: file.name)
        return RemoteReport(
            self.reader.fetched,
            self.reader.requests,
            tuple(file.name for file in names if self._files[file].verified),
            tuple(file.name for file in names if not self._files[file].verified),
        )

    def stop(self) -> None:
        """End all waiting and reading."""
        self.reader.stop.set()
        with self._changed:
            self._changed.notify_all()

    def _look(self) -> None:
        """Raise what ended the reading."""
        if self._error is not None:
            raise self._error
        if self.reader.stop.is_set():
            raise Cancelled

    def _wait(self, block: Block, filled: int) -> mmap.mmap | None:
        """The block's data once so much of it is there; None if it was thrown away already.

        A block that has no room, since all others wait for readers too, is filled by this thread: whatever the order,
        nobody waits for ever.
        """
        with self._changed:
            while not block.begun and not self._is_stuck():
                self._look()
            mine = not block.begun
            if mine:
                self._begin(block)
        if mine:
            self._fill(block)
        with self._changed:
            while block.filled < filled:
                self._look()
                self._changed.wait(0.5)
            self._look()
            return block.data

    def _is_stuck(self) -> bool:
        """Wait a little. Whether nothing moved meanwhile, because all who could make room wait for what has none."""
        moves = self._moves
        if not self._disorder and self._filling:
            self._changed.wait(_STUCK)
        elif not self._disorder:
            moved = self._changed.wait_for(lambda: self._moves != moves or self._filling > 0, _STUCK)
            self._disorder = self._disorder or not moved
        return self._disorder

    def _begin(self, block: Block) -> None:
        block.begun, block.data = True, _memory(block.length)
        self._held += block.length
        self._filling += 1
        made = self._files[block.file]
        if made.digest is not None and any(not other.begun for other in made.blocks if other.start < block.start):
            made.digest = None  # out of order: it would be kept until all before it have come
            for other in made.blocks:
                other.checked = True
                self._free(other)

    def _work(self) -> None:
        """Fill blocks, one after the other."""
        try:
            while block := self._take():
                self._fill(block)
        except BaseException as error:  # no memory: those who read must hear of it
            with self._changed:
                self._error = self._error or error
                self._changed.notify_all()

    def _take(self) -> Block | None:
        """The next block, begun, once there is room for it; None if there is nothing left to do."""
        with self._changed:
            while not self._error and not self.reader.stop.is_set():
                while self._next < len(self._blocks) and self._blocks[self._next].begun:
                    self._next += 1
                if self._next == len(self._blocks):
                    return None
                block = self._blocks[self._next]
                if not self._held or self._held + block.length <= WINDOW:
                    self._begin(block)
                    return block
                self._changed.wait(0.5)
        return None

    def _fill(self, block: Block) -> None:
        """Fetch a block; an error is kept for those who read."""
        data = block.data
        assert data is not None

        def take(piece: bytes) -> None:
            at = block.filled
            data[at : at + len(piece)] = piece
            block.filled = at + len(piece)
            if block.filled // _STEP > at // _STEP:
                with self._changed:
                    self._changed.notify_all()

        try:
            self.reader.fetch(block.file, block.start, block.length, take)
            self._check(self._files[block.file])
        except BaseException as error:
            self._error = self._error or error
        with self._changed:
            self._filling -= 1
            self._moves += 1
            self._free(block)
            self._changed.notify_all()

    def _check(self, made: _File) -> None:
        """Go on with the checksum of a file as far as its blocks are there. Raises SourceChanged at its end."""
        with made.lock:
            while (digest := made.digest) is not None and made.next < len(made.blocks):
                block = made.blocks[made.next]
                if block.data is None or block.filled < block.length:
                    return
                digest.update(block.data)
                made.next += 1
                if made.next == len(made.blocks) and digest.hexdigest() != made.file.etag:
                    raise SourceChanged(
                        f"{made.file}: what came is not what the Hub has: the checksums differ",
                        "start again; if it happens twice, a proxy or a disk on the way is damaged",
                    )
                with self._changed:
                    block.checked = True
                    self._free(block)

    def _free(self, block: Block) -> None:
        """Throw away a block that nobody needs any more."""
        if block.data is not None and block.wanted <= 0 and block.checked and block.filled == block.length:
            block.data = None
            self._held -= block.length
            self._changed.notify_all()
