"""The header of a GGUF file, read lazily (phitui.gguf.encode makes one from a plan).

Layout (ggml/docs/gguf.md): "GGUF", version u32, tensor count u64, key count u64, the key-value pairs, the tensor infos
(name, dimensions, type, offset), padding to the alignment, tensor data. All little-endian. Strings are u64 length and
bytes. Large arrays (vocabularies) are passed over and decoded when they are asked for.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from phitui.domain.tensors import ALIGNMENT, TensorType, Value, ValueType, align
from phitui.errors import InvalidFile
from phitui.gguf.cursor import Cursor
from phitui.gguf.encode import MAGIC, SCALARS, STRUCTS, U32, U64, encode_header, encode_string, file_size

__all__ = ["Header", "HeaderTensor", "encode_header", "file_size", "read_header"]

MAX_KEYS = 1 << 16
MAX_TENSORS = 1 << 17
MAX_STRINGS = 1 << 22
"""Strings in all arrays together: the largest real vocabularies, with merges, have under a million."""
MAX_NAME = 1 << 16
MAX_STRING = 1 << 26
MAX_DIMENSIONS = 4


@dataclass(frozen=True)
class HeaderTensor:
    """A tensor as a header describes it. `offset` counts from the start of the file `path`; sizes are bytes."""

    name: str
    shape: tuple[int, ...]
    type: TensorType
    offset: int
    size: int
    path: Path


@dataclass(frozen=True)
class _Lazy:
    """An array (or long string) left in the file: where it starts, how many elements and bytes it has."""

    type: ValueType
    offset: int
    count: int
    length: int
    is_array: bool = True


@dataclass(frozen=True)
class Header:
    """The header of one GGUF file. `data_start` is the offset of the tensor data; sizes are bytes.

    Of a split model (phitui.gguf.shards.read_model): `files` are its files, `path` and `data_start` those of the first,
    `file_size` and `tensors` those of all.
    """

    path: Path
    version: int
    file_size: int
    alignment: int
    data_start: int
    tensors: tuple[HeaderTensor, ...]
    files: tuple[Path, ...]
    _values: dict[str, Value | _Lazy] = field(repr=False, compare=False)

    def keys(self) -> Iterable[str]:
        return self._values.keys()

    def __contains__(self, key: object) -> bool:
        return key in self._values

    def get(self, key: str, default: Any = None) -> Any:
        """The plain value of a key: number, bool, str or list. Text that is not UTF-8 has replacement characters."""
        if key not in self._values:
            return default
        value = self.value(key).value
        if isinstance(value, list):
            return [item.decode("utf-8", "replace") if isinstance(item, bytes) else item for item in value]
        return value.decode("utf-8", "replace") if isinstance(value, bytes) else value

    def value(self, key: str) -> Value:
        """The typed value of a key; strings that are not UTF-8 are bytes. Raises KeyError for an unknown key."""
        found = self._values[key]
        return self._decode(found, key) if isinstance(found, _Lazy) else found

    def metadata(self) -> dict[str, Value]:
        """All keys with their values, in the order of the file."""
        return {key: self.value(key) for key in self._values}

    def length(self, key: str) -> int:
        """The number of elements of an array, without decoding it; 0 if there is no such array."""
        found = self._values.get(key)
        return found.count if isinstance(found, _Lazy) and found.is_array else 0

    def present(self, key: str, texts: Iterable[str]) -> set[str]:
        """Those of `texts` that are elements of a string array. Searches the raw bytes: 1 ms for a large vocabulary."""
        found = self._values.get(key)
        if not isinstance(found, _Lazy) or found.type is not ValueType.STRING or not found.is_array:
            return set()
        raw = self._raw(found, key)
        return {text for text in texts if encode_string(text) in raw}

    def _decode(self, lazy: _Lazy, key: str) -> Value:
        raw = self._raw(lazy, key)
        if not lazy.is_array:
            return Value(ValueType.STRING, _text(raw))
        if lazy.type is ValueType.STRING:
            try:
                return Value(lazy.type, _split(raw, lazy.count), is_array=True)
            except (struct.error, OverflowError):
                raise InvalidFile(f"{self.path}: changed since its header was read") from None
        values = struct.unpack(f"<{lazy.count}{SCALARS[lazy.type]}", raw)
        return Value(lazy.type, list(values), is_array=True)

    def _raw(self, lazy: _Lazy, key: str) -> bytes:
        with _opened(self.path) as descriptor:
            return Cursor(descriptor, self.path, self.file_size, lazy.offset).take(lazy.length, f"key {key!r}")


def _split(raw: bytes, count: int) -> list[str | bytes]:
    """The strings of an array: each is a length and as many bytes. Raises struct.error where that is not so."""
    unpack, values, at = U64.unpack_from, [], 0
    for _ in range(count):
        start = at + 8
        at = start + unpack(raw, at)[0]
        values.append(_text(raw[start:at]))
    return values


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    """A read-only descriptor, closed at the end. An OSError becomes an InvalidFile."""
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
    except OSError as error:
        raise InvalidFile(f"{path}: cannot be read: {error.strerror}") from None
    try:
        yield descriptor
    except OSError as error:
        raise InvalidFile(f"{path}: cannot be read: {error.strerror}") from None
    finally:
        os.close(descriptor)


def _text(raw: bytes) -> str | bytes:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw


def read_header(path: Path | str) -> Header:
    """Read and check the header of a GGUF file. Raises InvalidFile with what is wrong; never reads tensor data.

    An edit in place that was interrupted is completed first (phitui.gguf.patch).
    """
    path = Path(path)
    if path.is_dir():
        raise InvalidFile(f"{path} is a directory, not a GGUF file")
    for last in (False, False, True):
        _complete_edit(path)
        with _opened(path) as descriptor:
            before, problem = os.fstat(descriptor), None
            try:
                header = _Reader(Cursor(descriptor, path, before.st_size)).read()
            except InvalidFile as error:
                problem = error
            if last or os.fstat(descriptor).st_mtime_ns == before.st_mtime_ns:  # else somebody is just editing it
                break
    if problem is not None:
        raise problem
    return header


def _complete_edit(path: Path) -> None:
    real = Path(os.path.realpath(path)) if path.is_symlink() else path  # which does not mind a loop of links
    if real.with_name(real.name + ".edit").is_file():
        from phitui.gguf import patch

        patch.complete(real)


class _Reader:
    """Reads one header, front to back, with every count bounded by the file and by what is sane."""

    def __init__(self, cursor: Cursor) -> None:
        self.cursor = cursor
        self.strings = 0
        self.names: set[str] = set()

    def read(self) -> Header:
        version, tensor_count, key_count = self._start()
        values = self._pairs(key_count)
        alignment = self._alignment(values)
        described = [self._tensor() for _ in range(tensor_count)]
        data_start = align(self.cursor.position, alignment)
        tensors = self._place(described, data_start, alignment)
        path = self.cursor.path
        return Header(path, version, self.cursor.size, alignment, data_start, tensors, (path,), values)

    def fail(self, text: str, hint: str = "") -> InvalidFile:
        return InvalidFile(f"{self.cursor.path}: {text}", hint)

    def _start(self) -> tuple[int, int, int]:
        if self.cursor.size < 4 or self.cursor.take(4, "the magic") != MAGIC:
            raise self.fail("is not a GGUF file (it does not start with 'GGUF')")
        version: int = self.cursor.unpack(U32, "the version")
        if version and not version & 0xFFFF:
            raise self.fail("is a big-endian GGUF file", "convert it to little-endian: gguf-convert-endian FILE little")
        if version not in (2, 3):
            raise self.fail(f"has GGUF version {version}; versions 2 and 3 can be read", "convert the model again")
        tensors, keys = self.cursor.u64("the counts"), self.cursor.u64("the counts")
        room = self.cursor.size - self.cursor.position
        if tensors > min(MAX_TENSORS, room // 24):
            raise self.fail(f"says it holds {tensors} tensors, which cannot be true of {self.cursor.size} bytes")
        if keys > min(MAX_KEYS, room // 13):
            raise self.fail(f"says it holds {keys} keys, which cannot be true of {self.cursor.size} bytes")
        return version, tensors, keys

    def _name(self, what: str) -> str:
        length = self.cursor.u64(what)
        if length > MAX_NAME:
            raise self.fail(f"{what} is said to be {length} bytes long")
        try:
            return self.cursor.take(length, what).decode()
        except UnicodeDecodeError:
            raise self.fail(f"{what} is not UTF-8") from None

    def _type(self, key: str) -> ValueType:
        number: int = self.cursor.unpack(U32, key)
        try:
            return ValueType(number)
        except ValueError:
            raise self.fail(f"key {key!r} has the unknown value type {number}") from None

    def _pairs(self, count: int) -> dict[str, Value | _Lazy]:
        values: dict[str, Value | _Lazy] = {}
        for _ in range(count):
            key = self._name("the name of a key")
            if key in values:
                raise self.fail(f"key {key!r} stands there twice")
            type_ = self._type(key)
            if type_ is ValueType.ARRAY:
                values[key] = self._array(key)
            elif type_ is ValueType.STRING:
                values[key] = self._string(key)
            else:
                values[key] = Value(type_, self.cursor.unpack(STRUCTS[type_], key))
        return values

    def _string(self, key: str) -> Value | _Lazy:
        length = self.cursor.u64(key)
        if length > MAX_STRING:
            raise self.fail(f"the text of key {key!r} is said to be {length} bytes long")
        if length > MAX_NAME:
            lazy = _Lazy(ValueType.STRING, self.cursor.position, length, length, is_array=False)
            self.cursor.skip(length, key)
            return lazy
        return Value(ValueType.STRING, _text(self.cursor.take(length, key)))

    def _array(self, key: str) -> _Lazy:
        type_, count = self._type(key), self.cursor.u64(key)
        if type_ is ValueType.ARRAY:
            raise self.fail(f"key {key!r} is an array of arrays, which no reader supports")
        width = 8 if type_ is ValueType.STRING else STRUCTS[type_].size
        if count > (self.cursor.size - self.cursor.position) // width:
            raise self.fail(f"key {key!r} is said to have {count} elements, more than the file has room for")
        start = self.cursor.position
        if type_ is ValueType.STRING:
            self.strings += count
            if self.strings > MAX_STRINGS:
                raise self.fail(f"key {key!r} has {count} strings, which is no vocabulary")
            self.cursor.skip_strings(count, f"key {key!r}")
        else:
            if count * width > MAX_STRING:
                raise self.fail(f"key {key!r} is said to have {count} elements, which is absurd")
            self.cursor.skip(count * width, f"key {key!r}")
        return _Lazy(type_, start, count, self.cursor.position - start)

    def _alignment(self, values: dict[str, Value | _Lazy]) -> int:
        found = values.get("general.alignment")
        if found is None:
            return ALIGNMENT
        number = found.value if isinstance(found, Value) else None
        if not isinstance(number, int) or isinstance(number, bool) or not 0 < number <= MAX_NAME or number & number - 1:
            raise self.fail(f"general.alignment is {number!r}, not a power of two")
        return number

    def _tensor(self) -> tuple[str, tuple[int, ...], TensorType, int]:
        name = self._name("the name of a tensor")
        if name in self.names:
            raise self.fail(f"tensor {name!r} stands there twice")
        self.names.add(name)
        dimensions: int = self.cursor.unpack(U32, name)
        if dimensions > MAX_DIMENSIONS:
            raise self.fail(f"tensor {name!r} has {dimensions} dimensions; at most {MAX_DIMENSIONS} are possible")
        shape = tuple(self.cursor.u64(name) for _ in range(dimensions)) or (1,)
        number: int = self.cursor.unpack(U32, name)
        try:
            type_ = TensorType(number)
        except ValueError:
            hint = "it may come from a newer or a changed llama.cpp; update phitui or convert the model again"
            raise self.fail(f"tensor {name!r} has the unknown type {number}", hint) from None
        return name, shape, type_, self.cursor.u64(name)

    def _place(
        self, described: list[tuple[str, tuple[int, ...], TensorType, int]], data_start: int, alignment: int
    ) -> tuple[HeaderTensor, ...]:
        """Check shapes, offsets and sizes against the file and each other."""
        tensors = []
        room = self.cursor.size - data_start
        for name, shape, type_, offset in described:
            size = self._size(name, shape, type_)
            if offset % alignment:
                raise self.fail(f"tensor {name!r} starts at {offset}, which is not aligned to {alignment} bytes")
            if offset > room or size > room - offset:
                need = data_start + offset + size
                raise self.fail(
                    f"is truncated: tensor {name!r} ends at byte {need}, the file has {self.cursor.size}",
                    "download or build it again",
                )
            tensors.append(HeaderTensor(name, shape, type_, data_start + offset, size, self.cursor.path))
        self._overlaps(tensors)
        return tuple(tensors)

    def _size(self, name: str, shape: tuple[int, ...], type_: TensorType) -> int:
        rows = 1
        for length in shape[1:]:
            rows *= length
        if not all(0 < length < 1 << 62 for length in shape) or rows * shape[0] >= 1 << 62:
            raise self.fail(f"tensor {name!r} has the impossible shape {shape}")
        if shape[0] % type_.block:
            raise self.fail(f"tensor {name!r} of {type_.name} has rows of {shape[0]}, not a multiple of {type_.block}")
        return rows * type_.row_bytes(shape[0])

    def _overlaps(self, tensors: list[HeaderTensor]) -> None:
        ordered = sorted(tensors, key=lambda tensor: tensor.offset)
        for first, second in pairwise(ordered):
            if first.offset + first.size > second.offset:
                raise self.fail(f"tensors {first.name!r} and {second.name!r} overlap")
