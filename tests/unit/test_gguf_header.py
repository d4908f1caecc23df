"""Headers: against the gguf package both ways, and everything a file can lie about."""

from __future__ import annotations

import dataclasses
import os
import struct
import time
import tracemalloc
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from phitui.domain.tensors import FilePlan, InlineExtent, SourceTensor, TensorType, Value, ValueType, place
from phitui.errors import InvalidFile
from phitui.gguf.header import encode_header, file_size, read_header

TOKENS = ["<unk>", "<s>", "نمونه", "ı", "", "<|im_sep|>", "a" * 300]


def reference(path: Path) -> Path:
    """A file with every type of value, written by the gguf package."""
    writer = gguf.GGUFWriter(path, "phi3")
    writer.add_string("general.name", "Örnek")
    writer.add_uint32("phi3.block_count", 2)
    writer.add_float32("phi3.eps", 1e-5)
    writer.add_bool("flag", True)
    writer.add_uint8("u8", 255)
    writer.add_int8("i8", -128)
    writer.add_uint16("u16", 65535)
    writer.add_int16("i16", -2)
    writer.add_int32("i32", -3)
    writer.add_uint64("u64", 2**64 - 1)
    writer.add_int64("i64", -(2**63))
    writer.add_float64("f64", 0.1)
    writer.add_array("tokenizer.ggml.tokens", TOKENS)
    writer.add_array("tokenizer.ggml.scores", [0.5, -1.25, 1e9])
    writer.add_array("tokenizer.ggml.token_type", [1, 2, 3])
    writer.add_array("flags", [True, False, True])
    writer.add_string("tokenizer.chat_template", "x" * 70_000)
    writer.add_tensor("token_embd.weight", np.arange(64, dtype=np.float32).reshape(2, 32))
    writer.add_tensor("norm", np.ones(3, dtype=np.float16))
    writer.add_tensor("q", np.zeros((4, 34), dtype=np.uint8), raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def planned(**metadata: Value) -> FilePlan:
    sources = [
        SourceTensor("a", (32, 2), TensorType.F32, (InlineExtent(b"\1" * 256),)),
        SourceTensor("b", (3,), TensorType.F16, (InlineExtent(b"\2" * 6),)),
        SourceTensor("c", (256, 1, 2), TensorType.Q4_K, (InlineExtent(b"\3" * 288),)),
    ]
    return FilePlan("F32", metadata, place([(source, source.stored, None) for source in sources]))


def test_reads_what_the_gguf_package_writes(tmp_path: Path) -> None:
    header = read_header(reference(tmp_path / "a.gguf"))
    assert header.version == 3
    assert header.file_size == (tmp_path / "a.gguf").stat().st_size
    assert header.get("general.name") == "Örnek"
    assert header.get("tokenizer.ggml.tokens") == TOKENS
    assert header.get("tokenizer.ggml.scores") == [0.5, -1.25, 1e9]
    assert header.get("tokenizer.ggml.token_type") == [1, 2, 3]
    assert header.get("flags") == [True, False, True]
    assert header.get("tokenizer.chat_template") == "x" * 70_000
    numbers = ["flag", "u8", "i8", "u16", "i16", "i32", "u64", "i64", "f64"]
    assert [header.get(key) for key in numbers] == [True, 255, -128, 65535, -2, -3, 2**64 - 1, -(2**63), 0.1]
    assert header.get("nothing", 7) == 7 and "nothing" not in header
    assert [(t.name, t.shape, t.type, t.size) for t in header.tensors] == [
        ("token_embd.weight", (32, 2), TensorType.F32, 256),
        ("norm", (3,), TensorType.F16, 6),
        ("q", (32, 4), TensorType.Q8_0, 136),
    ]
    raw = (tmp_path / "a.gguf").read_bytes()
    first = header.tensors[0]
    assert first.offset == header.data_start
    assert raw[first.offset : first.offset + first.size] == np.arange(64, dtype=np.float32).tobytes()


def test_asks_for_tokens_without_decoding(tmp_path: Path) -> None:
    header = read_header(reference(tmp_path / "a.gguf"))
    assert header.length("tokenizer.ggml.tokens") == len(TOKENS)
    assert header.present("tokenizer.ggml.tokens", ["<|im_sep|>", "<|end|>", "im_sep", ""]) == {"<|im_sep|>", ""}
    assert header.present("general.name", ["Örnek"]) == set()
    assert header.length("general.name") == 0


def test_encodes_the_same_bytes_as_the_gguf_package(tmp_path: Path) -> None:
    """Reading a header and encoding it again gives the bytes that were read."""
    path = reference(tmp_path / "a.gguf")
    header = read_header(path)
    sources = [SourceTensor(t.name, t.shape, t.type, (InlineExtent(b"\0" * t.size),)) for t in header.tensors]
    plan = FilePlan("F32", header.metadata(), place([(source, source.stored, None) for source in sources]))
    assert encode_header(plan) == path.read_bytes()[: header.data_start]
    assert file_size(plan) == header.file_size


def test_bytes_that_are_no_text_survive(tmp_path: Path) -> None:
    plan = planned(tokens=Value.array(ValueType.STRING, [b"\xff\xfe", "ok"]), one=Value.string(b"\x80"))
    path = tmp_path / "a.gguf"
    path.write_bytes(encode_header(plan) + bytes(plan.data_size))
    header = read_header(path)
    assert header.metadata() == plan.metadata
    assert header.get("tokens") == ["��", "ok"]
    assert header.get("one") == "�"


def test_alignment_of_the_plan_and_the_key_must_agree(tmp_path: Path) -> None:
    plan = planned(**{"general.alignment": Value.u32(64)})
    with pytest.raises(ValueError, match="alignment"):
        encode_header(plan)
    sources = [(tensor.source, tensor.type, None) for tensor in plan.tensors]
    aligned = dataclasses.replace(plan, alignment=64, tensors=place(sources, 64))
    path = tmp_path / "a.gguf"
    path.write_bytes(encode_header(aligned) + bytes(aligned.data_size))
    assert read_header(path).alignment == 64


def test_plans_with_impossible_offsets_are_refused() -> None:
    plan = planned()
    for offset in (1, 32):
        moved = dataclasses.replace(plan.tensors[1], offset=offset)
        with pytest.raises(ValueError, match="offset"):
            encode_header(dataclasses.replace(plan, tensors=(plan.tensors[0], moved)))


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def head(version: int = 3, tensors: int = 0, keys: int = 0) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, keys)


def info(name: str, shape: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def pair(key: str, kind: int, raw: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + raw


HUGE = 1 << 63
PAD = bytes(4096)
BAD: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "is not a GGUF file"),
    "other format": (b"PK\3\4" + PAD, "is not a GGUF file"),
    "magic only": (b"GGUF", "ends in the middle of the version"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
    "version 1": (head(1), "version 1"),
    "version 99": (head(99), "version 99"),
    "tensor count": (head(3, HUGE, 0) + PAD, "tensors, which cannot be true"),
    "key count": (head(3, 0, HUGE) + PAD, "keys, which cannot be true"),
    "key length": (head(3, 0, 1) + struct.pack("<Q", HUGE) + PAD, "said to be"),
    "key not text": (head(3, 0, 1) + text(b"\xff") + PAD, "not UTF-8"),
    "value type": (head(3, 0, 1) + pair("k", 13, b"") + PAD, "unknown value type 13"),
    "string length": (head(3, 0, 1) + pair("k", 8, struct.pack("<Q", HUGE)) + PAD, "said to be"),
    "string past the end": (head(3, 0, 1) + pair("k", 8, struct.pack("<Q", 66_000)) + PAD, "ends in the middle"),
    "array count": (head(3, 0, 1) + pair("k", 9, struct.pack("<IQ", 4, HUGE)) + PAD, "more than the file has room"),
    "string array count": (head(3, 0, 1) + pair("k", 9, struct.pack("<IQ", 8, HUGE)) + PAD, "room for"),
    "string in array": (
        head(3, 0, 1) + pair("k", 9, struct.pack("<IQ", 8, 3) + text("a") + struct.pack("<Q", 2**64 - 1)) + PAD,
        "ends in the middle",
    ),
    "array of arrays": (head(3, 0, 1) + pair("k", 9, struct.pack("<IQ", 9, 1)) + PAD, "array of arrays"),
    "array element type": (head(3, 0, 1) + pair("k", 9, struct.pack("<IQ", 77, 1)) + PAD, "unknown value type 77"),
    "key twice": (head(3, 0, 2) + 2 * pair("k", 4, b"\0\0\0\0") + PAD, "twice"),
    "alignment": (head(3, 0, 1) + pair("general.alignment", 4, struct.pack("<I", 33)) + PAD, "power of two"),
    "alignment 0": (head(3, 0, 1) + pair("general.alignment", 4, struct.pack("<I", 0)) + PAD, "power of two"),
    "alignment text": (head(3, 0, 1) + pair("general.alignment", 8, text("x")) + PAD, "power of two"),
    "dimensions": (head(3, 1) + text("t") + struct.pack("<I", 5) + PAD, "5 dimensions"),
    "dimension 0": (head(3, 1) + info("t", (0, 2)) + PAD, "impossible shape"),
    "shape overflow": (head(3, 1) + info("t", (1 << 40, 1 << 40)) + PAD, "impossible shape"),
    "dimension overflow": (head(3, 1) + info("t", (HUGE,)) + PAD, "impossible shape"),
    "tensor type": (head(3, 1) + info("blk.0.x", (32,), 99) + PAD, "'blk.0.x' has the unknown type 99"),
    "removed tensor type": (head(3, 1) + info("t", (32,), 4) + PAD, "unknown type 4"),
    "block": (head(3, 1) + info("t", (33,), 8) + PAD, "not a multiple of 32"),
    "unaligned": (head(3, 1) + info("t", (8,), 0, 5) + PAD, "not aligned"),
    "outside": (head(3, 1) + info("t", (8,), 0, 1 << 50) + PAD, "truncated"),
    "cut": (head(3, 1) + info("t", (2048,)) + PAD, "truncated: tensor 't'"),
    "tensor twice": (head(3, 2) + info("t", (8,)) + info("t", (8,), 0, 32) + PAD, "twice"),
    "overlap": (head(3, 2) + info("a", (64,)) + info("b", (8,), 0, 64) + PAD, "'a' and 'b' overlap"),
}


@pytest.mark.parametrize(("raw", "expected"), BAD.values(), ids=BAD)
def test_bad_headers(tmp_path: Path, raw: bytes, expected: str) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(raw)
    with pytest.raises(InvalidFile) as caught:
        read_header(path)
    assert expected in caught.value.message
    assert str(path) in caught.value.message


def test_paths_that_are_no_file(tmp_path: Path) -> None:
    with pytest.raises(InvalidFile, match="directory"):
        read_header(tmp_path)
    with pytest.raises(InvalidFile, match="No such file"):
        read_header(tmp_path / "none.gguf")


def sparse(path: Path, raw: bytes, size: int) -> Path:
    path.write_bytes(raw)
    os.truncate(path, size)
    return path


@pytest.mark.parametrize(
    "raw",
    [
        head(3, 0, 1) + pair("k", 9, struct.pack("<IQ", 8, 1 << 30)),
        head(3, 0, 1) + pair("k", 9, struct.pack("<IQ", 0, 1 << 33)),
        head(3, 0, 1 << 30),
        head(3, 1 << 28),
        head(3, 0, 60_000),
        head(3, 100_000),
    ],
    ids=["strings", "numbers", "keys", "tensors", "empty keys", "empty tensors"],
)
def test_absurd_counts_in_a_large_file_cost_nothing(tmp_path: Path, raw: bytes) -> None:
    path = sparse(tmp_path / "big.gguf", raw, 1 << 36)
    tracemalloc.start()
    started = time.process_time()
    with pytest.raises(InvalidFile):
        read_header(path)
    seconds, (_, peak) = time.process_time() - started, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert seconds < 5  # without tracing, on an idle machine: below 0.5
    assert peak < 32 << 20


def test_a_large_vocabulary_is_passed_over_in_little_memory(tmp_path: Path) -> None:
    tokens = [f"token{i}" for i in range(100_000)]
    plan = planned(tokens=Value.array(ValueType.STRING, tokens), types=Value.array(ValueType.INT32, [1] * len(tokens)))
    path = tmp_path / "a.gguf"
    path.write_bytes(encode_header(plan) + bytes(plan.data_size))
    tracemalloc.start()
    header = read_header(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20
    assert len(header.tensors) == 3
    assert header.get("tokens") == tokens


def test_a_header_that_is_cut_anywhere_is_refused(tmp_path: Path) -> None:
    raw = reference(tmp_path / "a.gguf").read_bytes()
    path = tmp_path / "cut.gguf"
    for length in [*range(0, 1200, 7), *range(1200, len(raw) - 32, 1999)]:
        path.write_bytes(raw[:length])
        with pytest.raises(InvalidFile):
            read_header(path)


@given(st.lists(st.tuples(st.integers(0, 1500), st.integers(0, 255)), min_size=1, max_size=8))
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_changed_bytes_never_break_the_reader(tmp_path: Path, changes: list[tuple[int, int]]) -> None:
    path = tmp_path / "fuzz.gguf"
    raw = bytearray(encode_header(planned(k=Value.u32(1), t=Value.array(ValueType.STRING, ["a", "bc"]))) + bytes(1024))
    for position, value in changes:
        raw[position % len(raw)] = value
    path.write_bytes(raw)
    _survives(path)


@given(st.binary(max_size=400))
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_noise_never_breaks_the_reader(tmp_path: Path, noise: bytes) -> None:
    path = tmp_path / "fuzz.gguf"
    path.write_bytes(head(3, 1, 2) + noise)
    _survives(path)


def _survives(path: Path) -> None:
    try:
        header = read_header(path)
        header.metadata()
        values: list[Any] = [header.get(key) for key in list(header.keys())]
        assert len(values) == len(list(header.keys()))
    except InvalidFile as error:
        assert error.message
