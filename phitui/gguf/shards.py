"""Models that are split over several GGUF files, in llama.cpp's way: `NAME-00001-of-00005.gguf`.

The first file holds all keys; every file holds `split.no` (from 0), `split.count` and `split.tensors.count` (of all
files together). Any file of a set means the set.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from phitui.errors import InvalidFile
from phitui.gguf.header import Header, read_header

NO, COUNT, TENSORS = "split.no", "split.count", "split.tensors.count"
SPLIT_KEYS = (NO, COUNT, TENSORS)
MAX_SHARDS = 65_535
"""`split.count` has 16 bits (and the names have five digits)."""

_NAME = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.DOTALL)


def shard_name(name: str) -> tuple[str, int, int] | None:
    """(stem, number from 1, count) of the name of a shard; None for any other name."""
    found = _NAME.fullmatch(name)
    if found is None or not 1 <= int(found["number"]) <= int(found["count"]):
        return None
    return found["stem"], int(found["number"]), int(found["count"])


def shard_path(stem: Path, number: int, count: int) -> Path:
    """The path of shard `number` (from 1); `stem` is the path without "-00001-of-00005.gguf"."""
    return stem.with_name(f"{stem.name}-{number:05d}-of-{count:05d}.gguf")


def named_shards(path: Path) -> tuple[Path, ...]:
    """All files of the set, by the name alone, whether they are there or not; (path,) for a name of no shard."""
    found = shard_name(path.name)
    if found is None:
        return (path,)
    stem, _, count = found
    return tuple(shard_path(path.with_name(stem), number, count) for number in range(1, count + 1))


def model_stem(path: Path) -> str:
    """The name of a model's file without ".gguf" and without the number of a shard."""
    found = shard_name(path.name)
    return found[0] if found else path.stem


def shards_of(path: Path | str) -> tuple[Path, ...]:
    """The files of the model that `path` belongs to, the first one first; (path,) where it is not split.

    Raises InvalidFile naming the file that is missing, damaged or does not belong to the set.
    """
    return read_model(path).files


def read_model(path: Path | str) -> Header:
    """The header of a whole model: the keys of the first file (without those of the split), the tensors of all.

    `Header.path` is the first file, `file_size` the sum; each tensor says in which file it lies. Raises InvalidFile.
    """
    given = read_header(path)
    count = _number(given, COUNT)
    headers = [given] if count <= 1 else _read_set(given, count)
    if count > 1:
        _check(headers)
    first = headers[0]
    values = {key: value for key, value in first._values.items() if key not in SPLIT_KEYS}
    return replace(
        first,
        file_size=sum(header.file_size for header in headers),
        tensors=tuple(tensor for header in headers for tensor in header.tensors),
        files=tuple(header.path for header in headers),
        _values=values,
    )


def _number(header: Header, key: str) -> int:
    value = header.get(key, 0)
    return value if isinstance(value, int) else 0


def _read_set(given: Header, count: int) -> list[Header]:
    paths = named_shards(given.path)
    number = _number(given, NO) + 1
    if len(paths) != count:
        stem = model_stem(given.path)
        raise InvalidFile(
            f"{given.path}: is part {number} of {count} of a split model, but its name does not say so",
            f"rename it to {shard_path(Path(stem), number, count)}, and the others likewise",
        )
    missing = [path.name for path in paths if not path.exists()]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        begun = any(path.with_name(path.name + ".partial").exists() for path in paths)
        raise InvalidFile(
            f"{given.path}: the model has {count} parts, and {', '.join(missing[:3])}{more} "
            f"{'is' if len(missing) == 1 else 'are'} missing in {given.path.absolute().parent}",
            "it is being split, or that was interrupted: phitui jobs" if begun else "put all parts into one directory",
        )
    return [given if path == given.path else read_header(path) for path in paths]


def _check(headers: Sequence[Header]) -> None:
    """The parts must be numbered, agree with each other and hold every tensor once."""
    first, count = headers[0], len(headers)
    wanted = _number(first, TENSORS)
    seen: dict[str, Path] = {}
    for number, header in enumerate(headers):
        said = (_number(header, NO), _number(header, COUNT))
        if said != (number, count):
            what = f"part {said[0] + 1} of {said[1]}" if said[1] else "no part of a split model"
            raise _foreign(header, f"is {what}, where part {number + 1} of {count} should be")
        if header.get("general.architecture", first.get("general.architecture")) != first.get("general.architecture"):
            raise _foreign(header, f"is a part of another model than {first.path.name}")
        tensors = _number(header, TENSORS)
        if tensors != wanted:
            raise _foreign(header, f"belongs to a model of {tensors} tensors, {first.path.name} to one of {wanted}")
        for tensor in header.tensors:
            if tensor.name in seen:
                raise _foreign(header, f"holds tensor {tensor.name!r}, which {seen[tensor.name].name} holds already")
            seen[tensor.name] = header.path
    if wanted and len(seen) != wanted:
        raise InvalidFile(
            f"{first.path}: the model should have {wanted} tensors, its {count} parts have {len(seen)}",
            "one of the parts is of another model or was cut: download them again",
        )


def _foreign(header: Header, problem: str) -> InvalidFile:
    return InvalidFile(f"{header.path}: {problem}", "the files were mixed up: download or split the model again")
