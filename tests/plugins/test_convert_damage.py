"""Checkpoints with tensors missing, unknown, doubled, of wrong shapes or types, or full of NaN: each is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import pytest
from phitui_convert.converter import ConvertOptions, PhiConverter

from phitui import plugins
from phitui.api import InvalidFile, write_gguf
from phitui.gguf.safetensors_writer import write_safetensors
from phitui.testing.checkpoints import TinyPhi, tensor_shapes, write_checkpoint

TINY = TinyPhi(hidden=32, intermediate=32)


def opened(directory: Path, **options: Any) -> Any:
    return PhiConverter().open(directory, ConvertOptions(**options))


def edit(path: Path, **changes: Any) -> None:
    values = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in (values | changes).items() if value != "DROP"}))


def retensor(directory: Path, change: Callable[[dict[str, tuple[int, ...]]], None]) -> None:
    shapes = tensor_shapes(TinyPhi(hidden=32, intermediate=32))
    change(shapes)
    tensors = {}
    for name, shape in shapes.items():
        size = 2
        for dimension in shape:
            size *= dimension
        tensors[name] = ("BF16", shape, bytes(size))
    write_safetensors(directory / "model.safetensors", tensors)


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "tiny", hidden=32, intermediate=32)


def test_missing_tensor(tiny: Path) -> None:
    retensor(tiny, lambda shapes: shapes.pop("model.layers.1.mlp.down_proj.weight") and None)
    with pytest.raises(InvalidFile, match=r"'model.layers.1.mlp.down_proj.weight' is missing"):
        opened(tiny)


def test_untied_without_an_output(tiny: Path) -> None:
    retensor(tiny, lambda shapes: shapes.pop("lm_head.weight") and None)
    with pytest.raises(InvalidFile, match=r"lm_head.weight' is missing") as error:
        opened(tiny)
    assert "tie_word_embeddings" in error.value.hint
    edit(tiny / "config.json", tie_word_embeddings=True)
    assert "output.weight" not in [tensor.name for tensor in opened(tiny).tensors]


def test_extra_tensor(tiny: Path) -> None:
    retensor(tiny, lambda shapes: shapes.update({"model.layers.0.self_attn.qkv_proj.lora_A.weight": (8, 32)}))
    with pytest.raises(InvalidFile, match=r"lora_A.weight' is not part of Phi-3 with 2 layers"):
        opened(tiny)


@pytest.mark.parametrize(
    ("dtype", "bad"),
    [("BF16", b"\xc0\x7f"), ("F16", b"\x00\xfc"), ("F32", b"\x00\x00\xc0\x7f"), ("F32", b"\x00\x00\x80\xff")],
)
def test_weights_that_are_no_numbers_are_named(dtype: str, bad: bytes, tmp_path: Path) -> None:
    directory = write_checkpoint(tmp_path / "tiny", hidden=32, intermediate=32, dtype=dtype)
    assert opened(directory, check_weights=True).notes == opened(directory).notes
    for name, count in (("blk.0.attn_norm.weight", 1), ("blk.1.ffn_down.weight", 2)):
        tensor = next(one for one in opened(directory).tensors if one.name == name)
        with tensor.extents[0].path.open("r+b") as file:
            file.seek(tensor.extents[0].offset + 3 * len(bad))
            file.write(bad * count)
    with pytest.raises(InvalidFile, match=r"2 tensors hold .*attn_norm.weight \(1 of .*ffn_down.weight \(2 of"):
        opened(directory, check_weights=True)
    assert opened(directory)


def test_quantizing_refuses_what_is_no_number(tmp_path: Path) -> None:
    """Without being asked: the row and the column of the first one."""
    offers = [offer for offer in plugins.load().quantizers if offer.name == "llama.cpp" and offer.available().ok]
    if not offers:
        pytest.skip("llama-cpp-python is missing")
    directory = write_checkpoint(tmp_path / "Phi-3-tiny", hidden=256, intermediate=256)
    source = opened(directory)
    tensor = next(one for one in source.tensors if one.name == "blk.1.ffn_down.weight")
    with tensor.extents[0].path.open("r+b") as file:
        file.seek(tensor.extents[0].offset + 2 * (256 * 5 + 7))
        file.write(b"\xc0\x7f")
    plan = offers[0].plan(source, ["Q4_K_M"], offers[0].options())["Q4_K_M"]
    with pytest.raises(InvalidFile, match=r"blk.1.ffn_down.weight holds nan at row 5, column 7"):
        write_gguf(plan, tmp_path / "out.gguf", offers[0].encoder(plan, offers[0].options()))
    assert not (tmp_path / "out.gguf").exists()


def test_a_tensor_in_two_shards(tmp_path: Path) -> None:
    directory = write_checkpoint(tmp_path / "tiny", hidden=32, intermediate=32, shards=2)
    first, second = (directory / f"model-0000{number}-of-00002.safetensors" for number in (1, 2))
    second.write_bytes(first.read_bytes())
    with pytest.raises(InvalidFile, match=r"is in model-00001-of-00002.safetensors and in model-00002"):
        opened(directory)


def test_an_index_that_names_a_missing_shard(tmp_path: Path) -> None:
    directory = write_checkpoint(tmp_path / "tiny", hidden=32, intermediate=32, shards=2)
    (directory / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(InvalidFile, match=r"model-00002-of-00002.safetensors is missing"):
        opened(directory)


def test_a_type_that_no_checkpoint_has(tiny: Path) -> None:
    tensors = {name: ("BF16", shape, bytes(2 * prod(shape))) for name, shape in tensor_shapes(TINY).items()}
    name = "model.layers.0.mlp.down_proj.weight"
    write_safetensors(tiny / "model.safetensors", tensors | {name: ("F8_E4M3", (32, 32), bytes(1024))})
    with pytest.raises(InvalidFile, match=r"'model.layers.0.mlp.down_proj.weight' is F8_E4M3"):
        opened(tiny)


def test_computed_buffers_are_left_out(tiny: Path) -> None:
    retensor(tiny, lambda shapes: shapes.update({"model.layers.0.self_attn.rotary_emb.inv_freq": (4,)}))
    assert len(opened(tiny).tensors) == len(tensor_shapes(TinyPhi()))


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("model.embed_tokens.weight", "vocab_size", 641),
        ("mlp.down_proj", "intermediate_size", 64),
        ("self_attn.qkv_proj", "num_key_value_heads", 4),
    ],
)
def test_shapes_against_the_config(name: str, field: str, value: int, tiny: Path) -> None:
    edit(tiny / "config.json", **{field: value})
    with pytest.raises(InvalidFile, match=r"has shape \[.*config.json says"):
        opened(tiny)
