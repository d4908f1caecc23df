"""Weights that are no numbers: NaN and infinity, found in the raw words while they pass by, and told tensor by tensor.

In IEEE 754 (and in BF16, the upper half of an F32) a word whose exponent is all ones is NaN or infinite, and nothing
else is. Such words are the largest of their sign: the largest one read as a signed number finds the positive, the
largest read as unsigned the negative ones. That is two passes over words that are in the cache, without a conversion.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from phitui.domain.tensors import SourceTensor, TensorType
from phitui.errors import InvalidFile

BLOCK_BYTES = 256 << 10
"""Looked at in one go: stays in the cache of a core."""
LOOK_SECONDS = 30.0
"""How long the rest of the weights is looked at after the first bad one, so that all are named."""
SHOWN = 8
"""Tensors named in a message."""


@dataclass(frozen=True)
class Words:
    """How a float type is stored: the words' types in numpy, and the exponent's bits. The sign is the highest bit."""

    unsigned: Any
    signed: Any
    exponent: int


WORDS = {
    TensorType.F32: Words(np.uint32, np.int32, 0x7F80_0000),
    TensorType.F16: Words(np.uint16, np.int16, 0x7C00),
    TensorType.BF16: Words(np.uint16, np.int16, 0x7F80),
}


@dataclass(frozen=True)
class NotFinite:
    """What one tensor holds that is no number: counts, and the index of the first such value among all its values.

    `overflow` counts numbers that are finite in the source and infinite in the type they are written as.
    """

    tensor: str
    shape: tuple[int, ...]
    nan: int
    infinite: int
    overflow: int
    first: int

    def __str__(self) -> str:
        counts = ((self.nan, "NaN"), (self.infinite, "infinite"), (self.overflow, "too large for the type"))
        text = ", ".join(f"{count:,} {kind}" for count, kind in counts if count)
        return f"{self.tensor} ({text}; first {self._where()})"

    def _where(self) -> str:
        if len(self.shape) < 2:
            return f"at index {self.first}"
        row, column = divmod(self.first, self.shape[0])
        place = f"in row {row % self.shape[1]}, column {column}"
        return place if len(self.shape) < 3 else f"{place} of expert {row // self.shape[1]}"


class NotFiniteError(InvalidFile):
    """The weights hold NaN or infinity, and nobody asked for a file of that."""


def first_bad(raw: Any, kind: TensorType) -> int | None:
    """The index of the first NaN or infinity in a buffer of F32, F16 or BF16; None if all are numbers."""
    words = WORDS[kind]
    values = np.frombuffer(raw, words.unsigned)
    step = BLOCK_BYTES // values.itemsize
    for start in range(0, len(values), step):
        block = values[start : start + step]
        if block.view(words.signed).max() >= words.exponent or block.max() >= words.exponent | _sign(block):
            return start + int(_is_bad(block, words).argmax())
    return None


def count(raw: Any, kind: TensorType) -> tuple[int, int]:
    """How many NaN and how many infinite values a buffer holds."""
    words = WORDS[kind]
    values = np.frombuffer(raw, words.unsigned)
    bad = values[_is_bad(values, words)]
    infinite = int(np.count_nonzero((bad & (_sign(bad) - 1)) == words.exponent))
    return len(bad) - infinite, infinite


def _sign(values: Any) -> int:
    return 1 << (8 * int(values.itemsize) - 1)


def _is_bad(values: Any, words: Words) -> Any:
    return (values & words.exponent) == words.exponent


class Inspector:
    """Looks at all values of a write and remembers what is bad. Safe for several threads.

    Without `allow` the first find turns `refused` on: then the rest is only looked at, for `LOOK_SECONDS` at most.
    """

    def __init__(self, allow: bool) -> None:
        self.allow = allow
        self._found: dict[str, NotFinite] = {}
        self._since = 0.0
        self._lock = threading.Lock()

    @property
    def refused(self) -> bool:
        return bool(self._found) and not self.allow

    @property
    def tired(self) -> bool:
        """It has looked long enough for more."""
        return self.refused and time.monotonic() - self._since > LOOK_SECONDS

    @property
    def found(self) -> tuple[NotFinite, ...]:
        """One entry per tensor, by name."""
        return tuple(self._found[name] for name in sorted(self._found))

    def look(self, tensor: SourceTensor, start: int, raw: Any, kind: TensorType) -> bool:
        """Look at the values of a tensor from index `start` on, stored as `kind`. True if all are numbers."""
        first = first_bad(raw, kind)
        if first is None:
            return True
        nan, infinite = count(raw, kind)
        self._note(tensor, start + first, nan, infinite, 0)
        return False

    def overflow(self, tensor: SourceTensor, start: int, raw: Any, kind: TensorType) -> bool:
        """The same for encoded values whose originals are all numbers."""
        first = first_bad(raw, kind)
        if first is None:
            return True
        self._note(tensor, start + first, 0, 0, sum(count(raw, kind)))
        return False

    def _note(self, tensor: SourceTensor, first: int, nan: int, infinite: int, overflow: int) -> None:
        with self._lock:
            before = self._found.get(tensor.name, NotFinite(tensor.name, tensor.shape, 0, 0, 0, first))
            self._since = self._since or time.monotonic()
            self._found[tensor.name] = NotFinite(
                tensor.name,
                tensor.shape,
                before.nan + nan,
                before.infinite + infinite,
                before.overflow + overflow,
                min(before.first, first),
            )

    def error(self, what: str) -> NotFiniteError:
        """The refusal; `what` is the file that was not written."""
        found = self.found
        damaged = any(one.nan or one.infinite for one in found)
        tensors = "tensor holds" if len(found) == 1 else "tensors hold"
        rest = "\n  the rest was not looked at" if self.tired else ""
        way = "choose a type with a larger range (BF16, F32)"
        if damaged:
            way = "download the checkpoint again and compare its checksums"
        return NotFiniteError(
            f"{what} was not written: {len(found)} {tensors} values that are no finite numbers:{listed(found)}{rest}",
            f"{way}; --allow-nan writes the file all the same",
        )


def listed(found: Iterable[NotFinite]) -> str:
    """The first few in words: behind the sentence if it is one, else a line for each."""
    names = [str(one) for one in found]
    if len(names) == 1:
        return f" {names[0]}"
    more = [f"and {len(names) - SHOWN} more tensors"] if len(names) > SHOWN else []
    return "".join(f"\n  {line}" for line in [*names[:SHOWN], *more])
