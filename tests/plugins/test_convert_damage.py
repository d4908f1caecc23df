"""Checkpoints with tensors missing, unknown, doubled, of wrong shapes or types, or full of NaN: each is named."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import pytest
from phitui_convert.converter import ConvertOptions, PhiConverter
from phitui_convert.floats import FloatQuantizer

from phitui import plugins
from phitui.api import InvalidFile, write_gguf
from phitui.gguf.safetensors_writer import write_safetensors
from phitui.gguf.source import gguf_source
from phitui.testing.checkpoints import TinyPhi, tensor_data, tensor_shapes, write_checkpoint

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
@pytest.mark.parametrize("scheme", ["AUTO", "F16", "F32", "Q8_0", "Q4_K_M", "IQ4_XS"])
def test_weights_that_are_no_numbers_are_named(dtype: str, bad: bytes, scheme: str, tmp_path: Path) -> None:
    """Whatever the scheme, all tensors that hold some are named, and nothing is written."""
    offer = next((one for one in plugins.load().quantizers if scheme in {each.name for each in one.schemes()}), None)
    if offer is None:
        pytest.skip("llama-cpp-python is missing")
    directory = write_checkpoint(tmp_path / "tiny", hidden=256, intermediate=256, layers=2, dtype=dtype)
    for name, count in (("blk.0.attn_norm.weight", 1), ("blk.1.ffn_down.weight", 2)):
        tensor = next(one for one in opened(directory).tensors if one.name == name)
        with tensor.extents[0].path.open("r+b") as file:
            file.seek(tensor.extents[0].offset + 3 * len(bad))
            file.write(bad * count)
    plan = offer.plan(opened(directory), [scheme], offer.options())[scheme]
    out = tmp_path / "out.gguf"
    with pytest.raises(InvalidFile, match="2 tensors hold values that are no finite numbers") as caught:
        write_gguf(plan, out, offer.encoder(plan, offer.options()))
    kind = "NaN" if bad[-2:] in (b"\xc0\x7f",) else "infinite"
    assert f"blk.0.attn_norm.weight (1 {kind}; first at index 3)" in caught.value.message
    assert f"blk.1.ffn_down.weight (2 {kind}; first in row 0, column 3)" in caught.value.message
    assert not list(tmp_path.glob("out.gguf*"))
    if scheme in ("AUTO", "F16", "F32"):
        assert len(write_gguf(plan, out, allow_nan=True).not_finite) == 2


LLAMA_QUANTIZE = """
import ctypes, sys
import llama_cpp
params = llama_cpp.llama_model_quantize_default_params()
params.ftype, params.nthread = int(sys.argv[3]), 1
assert llama_cpp.llama_model_quantize(sys.argv[1].encode(), sys.argv[2].encode(), ctypes.byref(params))
"""


@pytest.mark.parametrize("scheme", ["Q8_0", "Q4_K_S"])
def test_llama_quantize_refuses_the_same(scheme: str, tmp_path: Path) -> None:
    """It looks at the source as phitui does, so there are no bytes of it to be equal to where NaN is allowed."""
    offer = next((one for one in plugins.load().quantizers if scheme in {each.name for each in one.schemes()}), None)
    if offer is None:
        pytest.skip("llama-cpp-python is missing")
    directory = write_checkpoint(tmp_path / "tiny", hidden=256, intermediate=256, layers=1)
    tensor = next(one for one in opened(directory).tensors if one.name == "blk.0.ffn_down.weight")
    with tensor.extents[0].path.open("r+b") as file:
        file.seek(tensor.extents[0].offset + 6)
        file.write(b"\xc0\x7f")
    source = opened(directory)
    write_gguf(FloatQuantizer().plan(source, ["BF16"], None)["BF16"], tmp_path / "whole.gguf", allow_nan=True)
    file_type = next(each.file_type for each in offer.schemes() if each.name == scheme)
    command = [sys.executable, "-c", LLAMA_QUANTIZE, str(tmp_path / "whole.gguf"), str(tmp_path / "theirs.gguf")]
    done = subprocess.run([*command, str(file_type)], capture_output=True, text=True, timeout=60, check=True)
    assert "tensor 'blk.0.ffn_down.weight' has invalid data" in done.stderr
    for origin in (source, gguf_source(tmp_path / "whole.gguf")):
        plan = offer.plan(origin, [scheme], offer.options())[scheme]
        with pytest.raises(InvalidFile, match=r"blk.0.ffn_down.weight \(1 NaN; first in row 0, column 3\)"):
            write_gguf(plan, tmp_path / "ours.gguf", offer.encoder(plan, offer.options()))


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
    scale = {name + "_scale_inv": ("F32", (1, 1), bytes(4))}
    write_safetensors(tiny / "model.safetensors", tensors | scale | {name: ("F8_E4M3", (32, 32), bytes(1024))})
    with pytest.raises(InvalidFile, match=r"'model.layers.0.mlp.down_proj.weight' is F8_E4M3; weights of F32") as error:
        opened(tiny)
    assert "original checkpoint" in error.value.hint


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.self_attn.rotary_emb.inv_freq",
        "model.layers.1.attention.masked_bias",
        "model.layers.1.attention.bias",
        "model.position_ids",
    ],
)
@pytest.mark.parametrize("dtype", ["F32", "I64", "BOOL"])
def test_computed_buffers_of_any_type_are_left_out(name: str, dtype: str, tiny: Path) -> None:
    """The reference converter skips them by name; integers among them are no reason to refuse a checkpoint."""
    phi = TINY
    width = {"F32": 4, "I64": 8, "BOOL": 1}[dtype]
    tensors = {each: ("BF16", shape, tensor_data(phi, each, shape)) for each, shape in tensor_shapes(phi).items()}
    write_safetensors(tiny / "model.safetensors", {name: (dtype, (1, 4), bytes(4 * width))} | tensors)
    with_buffer = written(tiny)
    write_safetensors(tiny / "model.safetensors", tensors)
    assert with_buffer == written(tiny)


def test_integers_of_a_vision_tower_do_not_matter(tmp_path: Path) -> None:
    phi = TinyPhi(family="phi3v", hidden=32, intermediate=32)
    directory = write_checkpoint(tmp_path / "Phi-3-vision", family="phi3v", hidden=32, intermediate=32)
    tensors = {each: ("BF16", shape, tensor_data(phi, each, shape)) for each, shape in tensor_shapes(phi).items()}
    name = "model.vision_embed_tokens.img_processor.vision_model.embeddings.position_ids"
    write_safetensors(directory / "model.safetensors", tensors | {name: ("I64", (1, 577), bytes(577 * 8))})
    assert not any("vision" in tensor.name for tensor in opened(directory).tensors)


def written(directory: Path) -> bytes:
    out = directory / "out.gguf"
    write_gguf(FloatQuantizer().plan(opened(directory), ["BF16"], None)["BF16"], out, overwrite=True)
    return out.read_bytes()


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
