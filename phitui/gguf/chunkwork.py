"""Does the work of a chunk: reads it, looks at its floats, converts or encodes it, and writes it to its place.

Safe for several threads; each has one buffer, which it uses again for every chunk.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phitui.domain.offers import Encoder
from phitui.domain.tensors import FileExtent, TensorType
from phitui.errors import PhituiError
from phitui.gguf.chunks import Chunk
from phitui.gguf.partial import Partial
from phitui.gguf.reading import SourceFiles

if TYPE_CHECKING:
    from phitui.gguf.finite import Inspector

_FALLBACK_BYTES = 1 << 20
_LOOK_BYTES = 256 << 10
"""Floats are looked at in pieces that stay in the cache of a core."""


class ChunkWork:
    """The work on the chunks of one file."""

    def __init__(self, partial: Partial, sources: SourceFiles, encoder: Encoder | None, inspector: Inspector) -> None:
        self.partial, self.sources, self.encoder, self.inspector = partial, sources, encoder, inspector
        self._local = threading.local()

    def write(self, chunk: Chunk, target: int) -> bool:
        """Look at a chunk and write it to `target` in the file. True if that is done for good: a new try must see what
        is bad again."""
        if chunk.kind == "copy":
            return self._copy(chunk, target)
        source, (start, length) = chunk.tensor.source, chunk.stored
        raw = self._buffer(length)
        self.sources.read(source, start, raw)
        good = not source.stored.is_float or self._look(chunk, start, raw)
        if self.inspector.refused:
            return False
        encoded, good_after = self._encoded(chunk, raw, good)
        self.partial.write(encoded, target)
        return good and good_after

    def _look(self, chunk: Chunk, start: int, raw: Any) -> bool:
        """Whether stored floats from byte `start` of the tensor on are numbers."""
        kind = chunk.tensor.source.stored
        return self.inspector.look(chunk.tensor.source, start // kind.block_bytes, raw, kind)

    def _encoded(self, chunk: Chunk, raw: memoryview, good: bool) -> tuple[Any, bool]:
        """The bytes to be written, and whether all values are numbers in them too. Floats are as `good` as `raw`."""
        from phitui.gguf import floats

        tensor, width = chunk.tensor, chunk.tensor.shape[0]
        source, first = tensor.source, chunk.first_row * width
        if chunk.kind == "float":
            made = floats.convert(raw, source.stored, tensor.type)
            wider = tensor.type is TensorType.F32 or not good
            return made, wider or self.inspector.overflow(source, first, made, tensor.type)
        values = floats.widen(raw, source.stored)
        if not source.stored.is_float:
            good = self.inspector.look(source, first, values, TensorType.F32)
            if self.inspector.refused:
                return b"", False
        assert self.encoder is not None
        encoded = self.encoder(tensor, chunk.first_row, values.reshape(chunk.rows, width))
        if memoryview(encoded).nbytes != chunk.length:
            raise PhituiError(
                f"the encoder made {memoryview(encoded).nbytes} bytes of {chunk.rows} rows of {tensor.name}, "
                f"not {chunk.length}"
            )
        return encoded, good

    def _copy(self, chunk: Chunk, target: int) -> bool:
        """Floats are looked at in the page cache first; the kernel copies them from there. What lies in no file is
        read and written."""
        source, good = chunk.tensor.source, True
        pieces = list(self.sources.segments(source, chunk.start, chunk.length))
        by_kernel = all(isinstance(extent, FileExtent) for extent, _, _ in pieces)
        if source.stored.is_float or not by_kernel:
            for start in range(chunk.start, chunk.start + chunk.length, _LOOK_BYTES):
                part = self._buffer(min(_LOOK_BYTES, chunk.start + chunk.length - start))
                self.sources.read(source, start, part)
                good = (not source.stored.is_float or self._look(chunk, start, part)) and good
                if not by_kernel and not self.inspector.refused:
                    self.partial.write(part, target + start - chunk.start)
        if by_kernel and not self.inspector.refused:
            for extent, offset, length in pieces:
                assert isinstance(extent, FileExtent)
                self._copy_file(extent.path, extent.offset + offset, length, target)
                target += length
        return good and not self.inspector.refused

    def _copy_file(self, path: Path, offset: int, length: int, target: int) -> None:
        """By the kernel; what it leaves (another file system, an old kernel, macOS) through a buffer."""
        copied = self.partial.copy(self.sources.descriptor(path), offset, length, target)
        while copied < length:
            part = self._buffer(min(_FALLBACK_BYTES, length - copied))
            self.sources.read_file(path, offset + copied, part)
            self.partial.write(part, target + copied)
            copied += len(part)

    def _buffer(self, size: int) -> memoryview:
        """A buffer of this thread, used again for every chunk."""
        held: bytearray | None = getattr(self._local, "buffer", None)
        if held is None or len(held) < size:
            held = self._local.buffer = bytearray(size)
        return memoryview(held)[:size]
