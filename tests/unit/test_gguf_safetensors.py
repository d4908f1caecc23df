"""Checkpoints: what is read, and everything that can be wrong with one."""

from __future__ import annotations

import json
import os
import pickle
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from phitui.domain.tensors import TensorType
from phitui.errors import InvalidFile
from phitui.gguf.safetensors import open_checkpoint, read_shard
from phitui.gguf.safetensors_writer import write_safetensors
from phitui.testing.checkpoints import write_checkpoint

INDEX = "model.safetensors.index.json"


def shard(path: Path, header: Any, data: bytes = b"", length: int | None = None) -> Path:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw) if length is None else length) + raw + data)
    return path


def entry(dtype: str = "F32", shape: Any = (2, 2), offsets: Any = (0, 16)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def checkpoint(directory: Path, shards: dict[str, dict[str, Any]], index: dict[str, str] | None = None) -> Path:
    directory.mkdir()
    (directory / "config.json").write_text("{}")
    for name, tensors in shards.items():
        shard(directory / name, tensors, bytes(max((t["data_offsets"][1] for t in tensors.values()), default=0)))
    if index is not None:
        (directory / INDEX).write_text(json.dumps({"weight_map": index}))
    return directory


def refused(directory: Path, *expected: str) -> InvalidFile:
    with pytest.raises(InvalidFile) as caught:
        open_checkpoint(directory)
    for text in expected:
        assert text in caught.value.message
    return caught.value


def test_describes_a_checkpoint(tmp_path: Path) -> None:
    found = open_checkpoint(write_checkpoint(tmp_path / "phi"))
    embedding = found.tensors["model.embed_tokens.weight"]
    assert embedding.dtype is TensorType.BF16
    assert embedding.shape == (640, 256)
    assert embedding.extent.length == 640 * 256 * 2
    assert found.size == sum(tensor.extent.length for tensor in found.tensors.values())
    assert found.config["architectures"] == ["Phi3ForCausalLM"]
    assert found.json("config.json") == found.config
    assert found.json("nothing.json") is None
    assert found.path("config.json") == tmp_path / "phi" / "config.json"
    assert found.path("nothing.json") is None


def test_extents_hold_the_data(tmp_path: Path) -> None:
    directory = tmp_path / "c"
    directory.mkdir()
    (directory / "config.json").write_text("{}")
    data = bytes(range(24))
    header = {"__metadata__": {"format": "pt"}, "a": entry("F16", (4,), (0, 8)), "b": entry("F32", (2, 2), (8, 24))}
    shard(directory / "model.safetensors", header, data)
    found = open_checkpoint(directory)
    raw = (directory / "model.safetensors").read_bytes()
    extents = {name: tensor.extent for name, tensor in found.tensors.items()}
    assert {name: raw[e.offset : e.offset + e.length] for name, e in extents.items()} == {"a": data[:8], "b": data[8:]}


def test_shards_by_index_and_by_number(tmp_path: Path) -> None:
    shards = {"model-00001-of-00002.safetensors": {"a": entry()}, "model-00002-of-00002.safetensors": {"b": entry()}}
    names = dict(zip("ab", shards, strict=True))
    assert set(open_checkpoint(checkpoint(tmp_path / "index", shards, names)).tensors) == {"a", "b"}
    assert set(open_checkpoint(checkpoint(tmp_path / "numbered", shards)).tensors) == {"a", "b"}


def test_links_as_in_the_hub_cache(tmp_path: Path) -> None:
    blobs = checkpoint(tmp_path / "blobs", {"model.safetensors": {"a": entry()}})
    links = tmp_path / "snapshot"
    links.mkdir()
    for path in blobs.iterdir():
        (links / path.name).symlink_to(path)
    assert set(open_checkpoint(links).tensors) == {"a"}


def test_not_a_checkpoint(tmp_path: Path) -> None:
    refused(tmp_path / "none", "does not exist")
    (tmp_path / "file").write_text("x")
    refused(tmp_path / "file", "is not a directory")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "no config.json")
    bare = checkpoint(tmp_path / "bare", {})
    assert "phitui pull" in refused(bare, "no *.safetensors").hint
    for content, expected in [("{", "not JSON"), ("[1]", "not a JSON object"), ("[" * 100_000, "not JSON")]:
        (bare / "config.json").write_text(content)
        refused(bare, "config.json", expected)


def test_missing_shard_is_named(tmp_path: Path) -> None:
    shards = {"model-00001-of-00002.safetensors": {"a": entry()}}
    index = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    for directory in (checkpoint(tmp_path / "i", shards, index), checkpoint(tmp_path / "n", shards)):
        assert "phitui pull" in refused(directory, "shard model-00002-of-00002.safetensors is missing").hint


def test_index_and_shards_must_agree(tmp_path: Path) -> None:
    one = {"model-00001-of-00001.safetensors": {"a": entry()}}
    name = next(iter(one))
    refused(checkpoint(tmp_path / "a", one, {"a": name, "b": name}), "names tensor 'b'", name)
    two = {"model-00001-of-00002.safetensors": {"a": entry()}, "model-00002-of-00002.safetensors": {"a": entry()}}
    refused(checkpoint(tmp_path / "b", two), "'a' is in", "00001-of", "00002-of")
    refused(checkpoint(tmp_path / "c", one, {"a": "../../etc/passwd"}), "not the name of a shard")
    refused(checkpoint(tmp_path / "d", one, {}), "no weight_map")
    refused(checkpoint(tmp_path / "e", {"x.safetensors": {"a": entry()}, "y.safetensors": {"b": entry()}}), "no model")


def test_pickles_are_never_opened(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return (os.mkdir, (str(tmp_path / "exploded"),))

    for name in ("pytorch_model.bin", "consolidated.pth", "model.pt"):
        directory = checkpoint(tmp_path / name.replace(".", "_"), {})
        (directory / name).write_bytes(pickle.dumps(Bomb()))
        assert "safetensors" in refused(directory, name, "pickle").hint
    assert not (tmp_path / "exploded").exists()


GOOD = {"a": entry()}
BAD: dict[str, tuple[Any, bytes, int | None, str]] = {
    "10 GB long": (GOOD, bytes(16), 10_000_000_000, "the format allows"),
    "longer than the file": (GOOD, bytes(16), 90_000_000, "truncated"),
    "not JSON": (b"{nonsense}", b"", None, "not JSON"),
    "not UTF-8": (b'{"\xff": 1}', b"", None, "not JSON"),
    "deep": (b"[" * 1_000_000, b"", None, "not JSON"),
    "huge number": (b'{"a": ' + b"9" * 10_000 + b"}", b"", None, "not JSON"),
    "a list": (b"[1, 2, 3]", b"", None, "not a JSON object"),
    "name twice": (b'{"a": 1, "a": 2}', b"", None, "twice"),
    "entry no object": ({"a": 1}, b"", None, "not an object"),
    "no dtype": ({"a": {"shape": [1], "data_offsets": [0, 4]}}, bytes(4), None, "'a' is None"),
    "float8 of no length": ({"a": entry("F8_E4M3", (16,), (16, 0))}, bytes(16), None, "cannot have data_offsets"),
    "float8 in a hole": ({"a": entry("F8_E4M3", (16,), (4, 20))}, bytes(20), None, "hole before tensor 'a'"),
    "negative shape": ({"a": entry(shape=(-2, -2))}, bytes(16), None, "no valid shape"),
    "shape of floats": ({"a": entry(shape=(2.0, 2))}, bytes(16), None, "no valid shape"),
    "shape of booleans": ({"a": entry(shape=(True, 4))}, bytes(16), None, "no valid shape"),
    "shape is text": ({"a": {"dtype": "F32", "shape": "22", "data_offsets": [0, 16]}}, bytes(16), None, "no valid"),
    "three offsets": ({"a": entry(offsets=(0, 16, 32))}, bytes(16), None, "no valid shape"),
    "offsets backwards": ({"a": entry(offsets=(16, 0))}, bytes(16), None, "cannot have data_offsets"),
    "size is no product": ({"a": entry(shape=(2, 3))}, bytes(16), None, "cannot have data_offsets"),
    "overlap": ({"a": entry(), "b": entry(offsets=(8, 24))}, bytes(24), None, "'a' and 'b' overlap"),
    "same bytes": ({"a": entry(), "b": entry()}, bytes(16), None, "overlap"),
    "hole": ({"a": entry(), "b": entry(offsets=(20, 36))}, bytes(36), None, "hole before tensor 'b'"),
    "late start": ({"a": entry(offsets=(4, 20))}, bytes(20), None, "hole before tensor 'a'"),
    "cut data": (GOOD, bytes(12), None, "truncated: tensor 'a'"),
    "outside": ({"a": entry(shape=(1 << 50,), offsets=(0, 1 << 52))}, bytes(16), None, "truncated"),
    "rest": (GOOD, bytes(20), None, "4 bytes at its end"),
}


@pytest.mark.parametrize(("header", "data", "length", "expected"), BAD.values(), ids=BAD)
def test_false_shards(tmp_path: Path, header: Any, data: bytes, length: int | None, expected: str) -> None:
    path = shard(tmp_path / "model.safetensors", header, data, length)
    with pytest.raises(InvalidFile) as caught:
        read_shard(path)
    assert expected in caught.value.message
    assert str(path) in caught.value.message


def test_tiny_and_unreadable_files(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    for raw in (b"", b"\1", bytes(8)):
        path.write_bytes(raw)
        with pytest.raises(InvalidFile, match="truncated"):
            read_shard(path)
    with pytest.raises(InvalidFile, match="cannot be read"):
        read_shard(tmp_path / "none")


def test_empty_tensors_and_scalars(tmp_path: Path) -> None:
    header = {"empty": entry(shape=(0, 4), offsets=(0, 0)), "scalar": entry(shape=(), offsets=(0, 4))}
    found = read_shard(shard(tmp_path / "a", header, bytes(4)))
    assert {name: tensor.extent.length for name, tensor in found.items()} == {"empty": 0, "scalar": 4}


json_values: Any = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)
entries: Any = st.fixed_dictionaries(
    {"dtype": st.sampled_from(["F32", "BF16", "F16", "I8"]) | json_values, "shape": json_values | st.just([2, 2])},
    optional={"data_offsets": st.lists(st.integers(-4, 64), max_size=3) | json_values},
)


@given(st.dictionaries(st.text(max_size=8), entries | json_values, max_size=4) | json_values, st.binary(max_size=64))
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_header_breaks_the_reader(tmp_path: Path, header: Any, data: bytes) -> None:
    path = shard(tmp_path / "fuzz", header, data)
    try:
        read_shard(path)
    except InvalidFile as error:
        assert error.message


def test_types_that_are_no_weights_are_described(tmp_path: Path) -> None:
    """Whether they matter is the converter's to say."""
    header = {
        "a": entry("I64", (2,), (0, 16)),
        "b": entry("F8_E4M3", (3,), (16, 19)),
        "c": entry("F32", (1,), (19, 23)),
    }
    found = read_shard(shard(tmp_path / "a", header, bytes(23)))
    assert [(one.dtype, one.stored) for one in found.values()] == [
        (None, "I64"),
        (None, "F8_E4M3"),
        (TensorType.F32, "F32"),
    ]


def test_what_we_write_we_read(tmp_path: Path) -> None:
    blob = bytes(range(12))
    size = write_safetensors(tmp_path / "model.safetensors", {"a": ("BF16", (2, 3), blob), "b": ("F32", (3,), blob)})
    (tmp_path / "config.json").write_text("{}")
    tensors = open_checkpoint(tmp_path).tensors
    assert size == 24
    assert tensors["a"].shape == (2, 3) and tensors["b"].shape == (3,)
    for tensor in tensors.values():
        data = tensor.extent.path.read_bytes()[tensor.extent.offset : tensor.extent.offset + tensor.extent.length]
        assert data == blob
