"""Split models: written as llama.cpp writes them, read as one, and every way in which a set can be wrong."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phitui.actions import models
from phitui.actions.context import Context
from phitui.actions.gguf_files import is_copy
from phitui.actions.source import source_name
from phitui.actions.standin import stand_in
from phitui.domain.tensors import FilePlan, InlineExtent, Source, SourceTensor, TensorType, Value, ValueType, place
from phitui.errors import InvalidFile, UsageError
from phitui.gguf.facts import facts_from_header
from phitui.gguf.header import read_header
from phitui.gguf.regroup import copied, merged, shards
from phitui.gguf.shards import named_shards, read_model, shard_path, shards_of
from phitui.gguf.source import gguf_source
from phitui.gguf.writer import write_gguf
from phitui.store.measures import fingerprint

TOKENS = ["<unk>", "<s>", "</s>", "a", "b"]


def model(path: Path, tensors: int = 7, alignment: int = 32, architecture: str = "phi3", seed: int = 0) -> Path:
    """A small GGUF: tensor i is (32, i + 1) F32, the first one Q8_0."""
    described = []
    for number in range(tensors):
        kind = TensorType.F32 if number else TensorType.Q8_0
        name = f"blk.{number - 1}.ffn_up.weight" if number else "token_embd.weight"
        size = kind.row_bytes(32) * (number + 1)
        data = bytes((seed + number + i) % 251 for i in range(size))
        described.append((SourceTensor(name, (32, number + 1), kind, (InlineExtent(data),)), kind, None))
    metadata = {
        "general.architecture": Value.string(architecture),
        "general.file_type": Value.u32(7),
        f"{architecture}.block_count": Value.u32(tensors - 1),
        f"{architecture}.context_length": Value.u32(4096),
        "tokenizer.ggml.tokens": Value.array(ValueType.STRING, TOKENS),
        **({"general.alignment": Value.u32(alignment)} if alignment != 32 else {}),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_gguf(FilePlan("Q8_0", metadata, place(described, alignment), alignment), path)
    return path


def split(path: Path, stem: Path, **limits: object) -> list[Path]:
    plans = shards(read_model(path), **limits)  # type: ignore[arg-type]
    stem.parent.mkdir(parents=True, exist_ok=True)
    paths = [shard_path(stem, number, len(plans)) for number in range(1, len(plans) + 1)]
    for target, plan in zip(paths, plans, strict=True):
        write_gguf(plan, target)
    return paths


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    return model(tmp_path / "tiny-Q8_0.gguf")


@pytest.fixture
def parts(whole: Path, tmp_path: Path) -> list[Path]:
    return split(whole, tmp_path / "set" / "tiny-Q8_0", max_tensors=3)


def test_names_and_keys_are_llama_cpps(parts: list[Path], whole: Path) -> None:
    assert [part.name for part in parts] == [f"tiny-Q8_0-0000{n}-of-00003.gguf" for n in (1, 2, 3)]
    headers = [read_header(part) for part in parts]
    marks = ["split.no", "split.tensors.count", "split.count"]
    assert list(headers[0].keys()) == [*read_header(whole).keys(), *marks]
    assert [list(header.keys()) for header in headers[1:]] == [marks, marks]
    for number, header in enumerate(headers):
        assert header.value("split.no") == Value(ValueType.UINT16, number)
        assert header.value("split.count") == Value(ValueType.UINT16, 3)
        assert header.value("split.tensors.count") == Value(ValueType.INT32, 7)
    assert [len(header.tensors) for header in headers] == [3, 3, 1]


def test_any_part_is_the_whole_model(parts: list[Path], whole: Path) -> None:
    one = read_model(whole)
    for part in parts:
        header = read_model(part)
        assert header.metadata() == one.metadata()
        assert [(t.name, t.shape, t.type, t.size) for t in header.tensors] == [
            (t.name, t.shape, t.type, t.size) for t in one.tensors
        ]
        assert (header.path, header.files) == (parts[0], tuple(parts))
        assert header.file_size == sum(path.stat().st_size for path in parts)
        facts = facts_from_header(header)
        assert (facts.name, facts.parameters) == ("tiny-Q8_0", facts_from_header(one).parameters)
        for mine, theirs in zip(gguf_source(part).tensors, gguf_source(whole).tensors, strict=True):
            assert contents(mine) == contents(theirs)
    assert shards_of(parts[2]) == tuple(parts)
    assert shards_of(whole) == (whole,)
    assert gguf_source(parts[1]).metadata == gguf_source(whole).metadata


def contents(tensor: SourceTensor) -> bytes:
    data = b""
    for extent in tensor.extents:
        with extent.path.open("rb") as stream:  # type: ignore[union-attr]
            stream.seek(extent.offset)  # type: ignore[union-attr]
            data += stream.read(extent.length)
    return data


def test_a_stand_in_of_a_split_model_is_that_of_the_whole(parts: list[Path], whole: Path) -> None:
    one, other = (stand_in(path, path.stat().st_size, path.stat().st_mtime_ns) for path in (parts[0], whole))
    assert one.read_bytes() == other.read_bytes()


def test_fingerprint_sees_every_part(parts: list[Path]) -> None:
    before = fingerprint(parts[0])
    size = parts[2].stat().st_size
    with parts[2].open("r+b") as stream:
        stream.seek(size - 400)
        stream.write(b"changed")
    assert fingerprint(parts[0]) != before


limits = st.one_of(
    st.builds(lambda n: {"max_tensors": n}, st.integers(1, 9)),
    st.builds(lambda n: {"max_size": n}, st.integers(1024, 6000)),
)


@given(tensors=st.integers(1, 9), alignment=st.sampled_from([8, 32, 64, 4096]), limit=limits, bare=st.booleans())
@settings(max_examples=40, deadline=None)
def test_merging_gives_the_bytes_that_were_split(
    tmp_path_factory: pytest.TempPathFactory, tensors: int, alignment: int, limit: dict[str, int], bare: bool
) -> None:
    folder = tmp_path_factory.mktemp("split")
    path = model(folder / "m.gguf", tensors, alignment)
    if "max_size" in limit:
        limit = {"max_size": max(limit["max_size"], alignment, 1152)}
    try:
        paths = split(path, folder / "parts" / "m", **limit, bare_first=bare)
    except UsageError as error:
        assert "nothing to split" in error.message
        return
    headers = [read_header(part) for part in paths]
    assert not bare or not headers[0].tensors
    for header in headers[bare:]:
        assert 0 < len(header.tensors) <= limit.get("max_tensors", 99)
        used = sum(-(-tensor.size // alignment) * alignment for tensor in header.tensors)
        assert used <= limit.get("max_size", 1 << 40)
        assert header.alignment == alignment
    write_gguf(merged(read_model(paths[-1])), folder / "again.gguf")
    assert (folder / "again.gguf").read_bytes() == path.read_bytes()


def test_limits_that_cannot_be(whole: Path) -> None:
    header = read_model(whole)
    for given_limits, expected in [
        ({"max_size": 800}, "blk.5.ffn_up.weight alone"),
        ({"max_size": 0}, "token_embd.weight alone"),
        ({"max_tensors": 0}, "no limit"),
        ({"max_tensors": 7}, "nothing to split"),
        ({"max_size": 1 << 30}, "nothing to split"),
        ({}, "not clear"),
        ({"max_size": 5000, "max_tensors": 2}, "not clear"),
    ]:
        with pytest.raises(UsageError, match=expected):
            shards(header, **given_limits)
    assert "choose at least --max-size 896" in str(_refused(lambda: shards(header, 800)))
    with pytest.raises(UsageError, match="nothing to merge"):
        merged(header)


def _refused(call: Callable[[], object]) -> UsageError:
    with pytest.raises(UsageError) as caught:
        call()
    return caught.value


def test_too_many_parts(tmp_path: Path) -> None:
    header = read_model(model(tmp_path / "m.gguf"))
    many = dataclasses.replace(header, tensors=header.tensors[:1] * 70_000)
    with pytest.raises(UsageError, match="70000 files"):
        shards(many, max_tensors=1)


def test_a_merged_file_of_llama_gguf_split_has_no_marks_as_a_source(tmp_path: Path, whole: Path) -> None:
    """Its merge leaves split.count 0 behind; llama-quantize drops it, and so do we."""
    header = read_model(whole)
    marked = header.metadata() | {"split.count": Value(ValueType.UINT16, 0), "split.no": Value(ValueType.UINT16, 0)}
    write_gguf(copied(header, marked), tmp_path / "theirs.gguf")
    assert gguf_source(tmp_path / "theirs.gguf").metadata == gguf_source(whole).metadata
    again = split(tmp_path / "theirs.gguf", tmp_path / "x" / "m", max_tensors=4)
    assert read_header(again[0]).value("split.count") == Value(ValueType.UINT16, 2)


# ---- sets that are wrong


def renumbered(path: Path, target: Path, **marks: Value) -> None:
    """Write a part again under another name with other keys."""
    header = read_header(path)
    found = header.metadata() | {key.replace("_", "."): value for key, value in marks.items()}
    write_gguf(copied(header, found), target.with_name("fresh"))
    target.with_name("fresh").replace(target)


def missing(parts: list[Path]) -> str:
    parts[1].unlink()
    return r"has 3 parts, and tiny-Q8_0-00002-of-00003.gguf is missing"


def two_missing(parts: list[Path]) -> str:
    parts[0].unlink()
    parts[1].unlink()
    return r"tiny-Q8_0-00001-of-00003.gguf, tiny-Q8_0-00002-of-00003.gguf are missing"


def twice(parts: list[Path]) -> str:
    parts[1].write_bytes(parts[2].read_bytes())
    return r"00002-of-00003.gguf: is part 3 of 3, where part 2 of 3 should be"


def cut(parts: list[Path]) -> str:
    os.truncate(parts[1], parts[1].stat().st_size - 300)
    return r"00002-of-00003.gguf: is truncated"


def empty(parts: list[Path]) -> str:
    parts[1].write_bytes(b"")
    return r"00002-of-00003.gguf: is not a GGUF file"


def unmarked(parts: list[Path]) -> str:
    model(parts[1].with_name("x.gguf")).rename(parts[1])
    return r"00002-of-00003.gguf: is no part of a split model, where part 2 of 3 should be"


def of_another_size(parts: list[Path]) -> str:
    other = split(model(parts[0].with_name("o.gguf"), 8), parts[0].with_name("o"), max_tensors=3)
    other[1].rename(parts[1])
    return r"00002-of-00003.gguf: belongs to a model of 8 tensors, tiny-Q8_0-00001-of-00003.gguf to one of 7"


def of_another_kind(parts: list[Path]) -> str:
    renumbered(parts[1], parts[1], general_architecture=Value.string("llama"))
    return r"00002-of-00003.gguf: is a part of another model"


def tensors_twice(parts: list[Path]) -> str:
    renumbered(parts[1], parts[2], split_no=Value(ValueType.UINT16, 2))
    return r"00003-of-00003.gguf: holds tensor 'blk.2.ffn_up.weight', which tiny-Q8_0-00002-of-00003.gguf holds"


def too_few(parts: list[Path]) -> str:
    for number, part in enumerate(parts):
        marks = {"split_tensors_count": Value(ValueType.INT32, 9), "split_no": Value(ValueType.UINT16, number)}
        renumbered(part, part, **marks)
    return r"should have 9 tensors, its 3 parts have 7"


@pytest.mark.parametrize(
    "spoil",
    [missing, two_missing, twice, cut, empty, unmarked, of_another_size, of_another_kind, tensors_twice, too_few],
)
def test_wrong_sets(parts: list[Path], spoil: Callable[[list[Path]], str]) -> None:
    expected = spoil(parts)
    given_part = parts[2]
    with pytest.raises(InvalidFile, match=expected):
        read_model(given_part)


def test_a_part_under_another_name(parts: list[Path]) -> None:
    lost = parts[1].rename(parts[1].with_name("model.gguf"))
    with pytest.raises(InvalidFile, match="part 2 of 3 of a split model, but its name") as caught:
        read_model(lost)
    assert "model-00002-of-00003.gguf" in caught.value.hint


def test_a_name_alone_makes_no_set(whole: Path) -> None:
    alone = whole.rename(whole.with_name("tiny-00002-of-00005.gguf"))
    assert len(named_shards(alone)) == 5
    assert read_model(alone).files == (alone,)
    for name in ("a-00000-of-00002.gguf", "a-00003-of-00002.gguf", "a-1-of-2.gguf", "-00001-of-00002.gguf", "a.gguf"):
        assert named_shards(Path(name)) == (Path(name),)


def test_absurd_split_keys(whole: Path, tmp_path: Path) -> None:
    for value in (Value.string("x"), Value(ValueType.INT64, -5), Value.array(ValueType.UINT8, [1])):
        path = tmp_path / "odd.gguf"
        path.unlink(missing_ok=True)
        write_gguf(copied(read_model(whole), {**read_model(whole).metadata(), "split.count": value}), path)
        assert read_model(path).files == (path,)


# ---- in the library


def test_the_library_lists_a_set_once(context: Context, parts: list[Path]) -> None:
    folder = context.paths.models
    folder.mkdir(parents=True)
    for part in parts:
        os.link(part, folder / part.name)
    (row,) = models.library(context)
    size = sum(part.stat().st_size for part in parts)
    assert (row.name, row.size, row.scheme) == (parts[0].name, size, "Q8_0")
    for name in ("tiny-Q8_0", "tiny-q8_0", parts[0].name, parts[2].name, str(folder / parts[1].name)):
        assert models.resolve_model(context, name) == folder / parts[0].name
    assert models.inspect(context, "tiny-Q8_0").size == size
    assert source_name(row.path) == "tiny"

    (folder / parts[1].name).unlink()  # noticed, although the first file is what it was
    (row,) = models.library(context)
    assert row.architecture == models.UNREADABLE
    with pytest.raises(InvalidFile, match="is missing"):
        models.resolve_model(context, parts[0].name)


def test_a_set_without_its_first_file_is_no_model(context: Context, parts: list[Path]) -> None:
    folder = context.paths.models
    folder.mkdir(parents=True)
    for part in parts[1:]:
        os.link(part, folder / part.name)
    assert models.library(context) == []


# ---- copies


def test_is_copy_compares_every_byte(tmp_path: Path, whole: Path) -> None:
    plan = copied(read_model(whole))
    target = tmp_path / "copy.gguf"
    write_gguf(plan, target)
    assert target.read_bytes() == whole.read_bytes()
    assert is_copy(plan, target)
    for at in (read_header(target).tensors[0].offset, read_header(target).tensors[-1].offset + 100):
        with target.open("r+b") as stream:
            stream.seek(at)
            old = stream.read(1)
            stream.seek(at)
            stream.write(bytes([old[0] ^ 1]))
        assert not is_copy(plan, target)
        with target.open("r+b") as stream:
            stream.seek(at)
            stream.write(old)
    os.truncate(target, target.stat().st_size - 1)
    assert not is_copy(plan, target)
    assert not is_copy(plan, tmp_path / "none.gguf")


def test_source_is_a_plain_source(parts: list[Path]) -> None:
    assert isinstance(gguf_source(parts[0]), Source)
