"""A Hugging Face checkpoint: config.json and safetensors, described from their headers alone.

A safetensors file is a little-endian u64 length, that many bytes of JSON (name -> dtype, shape, data_offsets), then the
data, without holes (https://github.com/huggingface/safetensors). Nothing in the header is believed unchecked.
Pickles are never opened: unpickling runs code. Weights may stay on the Hub (phitui.gguf.manifest).
"""

from __future__ import annotations

import json
import math
import os
import re
import struct
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from phitui.domain.tensors import FileExtent, HubFile, RemoteExtent, TensorType
from phitui.errors import InvalidFile
from phitui.gguf.manifest import HEADER, read_manifest

INDEX = "model.safetensors.index.json"
MAX_HEADER = 100_000_000
"""The limit of the safetensors format itself, in bytes."""
MAX_JSON = 200_000_000
DTYPES = {"F32": TensorType.F32, "F16": TensorType.F16, "BF16": TensorType.BF16}
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")
_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.safetensors")
_AGAIN = "download it again: phitui pull REPO"


@dataclass(frozen=True)
class CheckpointTensor:
    """A tensor of a checkpoint. `shape` is in PyTorch's order: the last dimension is the row length.

    `dtype` is None for what cannot be a weight of ours, such as integers and FP8; `stored` is its name in the file.
    """

    name: str
    dtype: TensorType | None
    shape: tuple[int, ...]
    extent: FileExtent | RemoteExtent
    stored: str = ""

    @property
    def shard(self) -> str:
        """The name of the file that holds it."""
        extent = self.extent
        return extent.path.name if isinstance(extent, FileExtent) else extent.file.name


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint directory. `tensors` are by name, in the order of the files."""

    directory: Path
    config: dict[str, Any]
    tensors: Mapping[str, CheckpointTensor]

    @cached_property
    def size(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.extent.length for tensor in self.tensors.values())

    def path(self, name: str) -> Path | None:
        """The file of that name in the checkpoint, if there is one."""
        path = self.directory / name
        return path if path.is_file() else None

    def json(self, name: str) -> dict[str, Any] | None:
        """The JSON object in that file; None without such a file. Raises InvalidFile if it is anything else."""
        path = self.path(name)
        return None if path is None else _read_json(path)


def open_checkpoint(directory: Path | str) -> Checkpoint:
    """Describe a checkpoint. Reads config.json and the headers of the shards. Raises InvalidFile with what is wrong."""
    try:
        return _describe(Path(directory))
    except InvalidFile as error:
        error.hint = error.hint or _AGAIN
        raise


def _describe(directory: Path) -> Checkpoint:
    if not directory.exists():
        raise InvalidFile(f"{directory} does not exist", "give a checkpoint directory, or pull one: phitui pull REPO")
    if not directory.is_dir():
        raise InvalidFile(f"{directory} is not a directory; a checkpoint is one, with config.json and *.safetensors")
    if not (directory / "config.json").is_file():
        raise InvalidFile(f"{directory} is not a checkpoint: it has no config.json", _AGAIN)
    config = _read_json(directory / "config.json")
    tensors: dict[str, CheckpointTensor] = {}
    index, remote = _index(directory), read_manifest(directory)
    for shard in _shards(directory, index, remote):
        for name, tensor in read_shard(directory / shard, remote.get(shard)).items():
            if name in tensors:
                raise InvalidFile(f"{directory}: tensor {name!r} is in {tensors[name].shard} and in {shard}")
            tensors[name] = tensor
    missing = [name for name in index if name not in tensors]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise InvalidFile(
            f"{directory}: the index names tensor {missing[0]!r}{more}, but {index[missing[0]]} does not hold it",
            _AGAIN,
        )
    return Checkpoint(directory, config, tensors)


def _index(directory: Path) -> dict[str, str]:
    """Tensor name -> shard name, from the index file; empty without one."""
    path = directory / INDEX
    if not path.is_file():
        return {}
    weights = _read_json(path).get("weight_map")
    if not isinstance(weights, dict) or not weights:
        raise InvalidFile(f"{path}: has no weight_map", _AGAIN)
    for shard in weights.values():
        if not isinstance(shard, str) or Path(shard).name != shard or not shard.endswith(".safetensors"):
            raise InvalidFile(f"{path}: {shard!r} is not the name of a shard")
    return weights


def shard_names(directory: Path, there: Collection[str]) -> list[str]:
    """Which of the safetensors files that are `there` hold the model, in order. Raises InvalidFile if one is missing.

    `directory` needs to hold the index alone, if the model has one.
    """
    return _shards(directory, _index(directory), there)


def _shards(directory: Path, index: Mapping[str, str], remote: Collection[str]) -> list[str]:
    """The shard names in order, all of them there, or on the Hub."""
    found = sorted({path.name for path in directory.glob("*.safetensors") if path.is_file()} | set(remote))
    if index:
        names = sorted(set(index.values()))
    else:
        names = ["model.safetensors"] if "model.safetensors" in found else _numbered(directory, found)
    for name in names:
        if name not in found:
            raise InvalidFile(f"{directory}: the shard {name} is missing", _AGAIN)
    return names


def _numbered(directory: Path, found: list[str]) -> list[str]:
    """Shards without an index: what one of their names says of the number of all."""
    for name in found:
        match = _SHARD.fullmatch(name)
        if match and 0 < int(match["count"]) < 10_000:
            return [
                f"{match['stem']}-{i:05}-of-{match['count']}.safetensors" for i in range(1, int(match["count"]) + 1)
            ]
    if len(found) == 1:
        return found
    if found:
        raise InvalidFile(f"{directory}: has {len(found)} safetensors files and no {INDEX} that names them", _AGAIN)
    pickles = sorted(path.name for path in directory.iterdir() if path.suffix in _PICKLES)
    if pickles:
        raise InvalidFile(
            f"{directory}: {pickles[0]} is a pickle, which can run any code when it is opened; phitui does not",
            "take a revision of the model that has safetensors files",
        )
    raise InvalidFile(f"{directory}: has no *.safetensors files", _AGAIN)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_JSON:
            raise InvalidFile(f"{path}: is too large to be read as JSON")
        document = json.loads(path.read_bytes())
    except OSError as error:
        raise InvalidFile(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise InvalidFile(f"{path}: is not JSON: {error}", _AGAIN) from None
    if not isinstance(document, dict):
        raise InvalidFile(f"{path}: is not a JSON object", _AGAIN)
    return document


def read_shard(path: Path, remote: HubFile | None = None) -> dict[str, CheckpointTensor]:
    """The tensors of one safetensors file. Raises InvalidFile for a header that is false in any way.

    Of a `remote` file only the header is here, under `path` and HEADER.
    """
    header, start, size = _read_header(path, remote)
    tensors = {
        name: _tensor(path, name, entry, start, remote) for name, entry in header.items() if name != "__metadata__"
    }
    end, before = start, ""
    for tensor in sorted(tensors.values(), key=lambda tensor: (tensor.extent.offset, tensor.extent.length)):
        if tensor.extent.offset < end:
            raise InvalidFile(f"{path}: tensors {before!r} and {tensor.name!r} overlap")
        if tensor.extent.offset > end:
            raise InvalidFile(f"{path}: there is a hole before tensor {tensor.name!r}")
        end, before = end + tensor.extent.length, tensor.name
        if end > size:
            raise InvalidFile(
                f"{path}: is truncated: tensor {before!r} ends at byte {end}, the file has {size}", _AGAIN
            )
    if end != size:
        raise InvalidFile(f"{path}: {size - end} bytes at its end belong to no tensor", _AGAIN)
    return tensors


def header_length(path: Path | str, size: int, first: bytes) -> int:
    """Bytes of the JSON header of a file of `size` bytes, of which `first` are the first 8. Raises InvalidFile."""
    if size < 10 or len(first) < 8:
        raise InvalidFile(f"{path}: is truncated: it has {size} bytes", _AGAIN)
    length: int = struct.unpack("<Q", first[:8])[0]
    if length > MAX_HEADER:
        raise InvalidFile(f"{path}: its header is said to be {length} bytes long; the format allows {MAX_HEADER}")
    if length > size - 8:
        raise InvalidFile(f"{path}: is truncated: its header has {length} bytes, the file {size}", _AGAIN)
    return length


def _read_header(path: Path, remote: HubFile | None) -> tuple[dict[str, Any], int, int]:
    """The JSON of the header, where the data starts, and the size of the file."""
    here = path if remote is None else path.with_name(path.name + HEADER)
    try:
        with here.open("rb") as file:
            size = os.fstat(file.fileno()).st_size if remote is None else remote.size
            length = header_length(path, size, file.read(8))
            raw = file.read(length)
    except OSError as error:
        raise InvalidFile(f"{here}: cannot be read: {error.strerror}") from None
    try:
        header = json.loads(raw, object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:
        raise InvalidFile(f"{path}: its header is not JSON: {error}", _AGAIN) from None
    if not isinstance(header, dict):
        raise InvalidFile(f"{path}: its header is not a JSON object", _AGAIN)
    return header, 8 + length, size


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands there twice")
    return found


def _tensor(path: Path, name: str, entry: Any, start: int, remote: HubFile | None) -> CheckpointTensor:
    """Check one entry of the header. `start` is where the data begins in the file."""
    if not isinstance(entry, dict):
        raise InvalidFile(f"{path}: the entry of tensor {name!r} is not an object")
    dtype = entry.get("dtype")
    shape, offsets = _counts(entry.get("shape")), _counts(entry.get("data_offsets"))
    if not isinstance(dtype, str):
        raise InvalidFile(f"{path}: the dtype of tensor {name!r} is {dtype}")
    if shape is None or offsets is None or len(offsets) != 2:
        raise InvalidFile(f"{path}: tensor {name!r} has no valid shape and data_offsets")
    known, length = DTYPES.get(dtype), offsets[1] - offsets[0]
    if length < 0 or (known is not None and length != known.block_bytes * math.prod(shape)):
        raise InvalidFile(f"{path}: tensor {name!r} of shape {shape} and {dtype} cannot have data_offsets {offsets}")
    at = start + offsets[0]
    extent = FileExtent(path, at, length) if remote is None else RemoteExtent(remote, at, length)
    return CheckpointTensor(name, known, tuple(shape), extent, dtype)


def _counts(values: Any) -> list[int] | None:
    """A list of a few sane sizes; None for anything else."""
    if not isinstance(values, list) or len(values) > 8:
        return None
    sane = all(isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 62 for value in values)
    return values if sane else None
