"""Phi-2, mixtures of experts and text models of multimodal checkpoints: what they become, run and refuse."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from phitui_convert.converter import ConvertOptions, PhiConverter
from phitui_convert.floats import FloatQuantizer

from phitui import plugins
from phitui.actions.context import Context
from phitui.actions.models import inspect
from phitui.api import InvalidFile, Source, TensorType, UnsupportedModel, UsageError, read_header, write_gguf
from phitui.testing.checkpoints import (
    TinyPhi,
    config,
    converter_options,
    tensor_data,
    tensor_shapes,
    write_checkpoint,
    write_safetensors,
)

IDS = {"<|endoftext|>": 3}
PHI2: dict[str, Any] = {
    "family": "phi2",
    "tokenizer": "bpe",
    "kv_heads": 4,
    "intermediate": 1024,
    "partial_rotary": 0.5,
    "dtype": "F16",
}
MULTIMODAL: dict[str, Any] = {
    "tokenizer": "bpe",
    "rope": "longrope",
    "context": 131072,
    "partial_rotary": 0.75,
    "tied": True,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "phi-2-tiny": PHI2,
    "Phi-3.5-tiny-MoE": {"family": "phimoe", "rope": "longrope", "context": 131072, "shards": 3},
    "Phi-3-narrow-MoE": {"family": "phimoe", "intermediate": 448, "experts": 3, "layers": 1},
    "Phi-3-tiny-vision": {"family": "phi3v", "rope": "su", "context": 131072},
    "Phi-4-tiny-multimodal": {"family": "phi4mm"} | MULTIMODAL,
    "Phi-4-tiny-vision": {"family": "phi4v", "tokenizer": "bpe"},
}


def opened(directory: Path, tokenizer: Any = "spm", **options: Any) -> Any:
    return PhiConverter().open(directory, ConvertOptions(**converter_options(tokenizer), **options))


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def verdict(family: str, **changes: Any) -> Any:
    spec: dict[str, Any] = {"family": family}
    return PhiConverter().inspect(config(TinyPhi(**spec), IDS) | changes)


# --- text models of multimodal checkpoints ---


@pytest.mark.parametrize(
    ("family", "left_out", "spec"),
    [("phi3v", "vision", FAMILIES["Phi-3-tiny-vision"]), ("phi4mm", "vision and speech", MULTIMODAL)],
)
def test_a_text_tower_equals_the_plain_model(family: str, left_out: str, spec: dict[str, Any], tmp_path: Path) -> None:
    """Same keys but for one, same tensors, same bytes."""
    tokenizer = spec.get("tokenizer", "spm")
    towers = write_checkpoint(tmp_path / "a" / "Phi-3-tiny", **(spec | {"family": family}))
    plain = write_checkpoint(tmp_path / "b" / "Phi-3-tiny", **(spec | {"family": "phi3"}))
    tower, text = opened(towers, tokenizer), opened(plain, tokenizer)
    assert any(note.startswith(f"{left_out} of Phi-3-tiny left out") for note in tower.notes)
    assert not any("left out" in note for note in text.notes)
    assert (
        f"text only ({left_out} left out)"
        in PhiConverter().inspect(json.loads((towers / "config.json").read_text())).reason
    )
    description = tower.metadata.pop("general.description").value
    assert left_out in description
    assert tower.metadata == text.metadata
    assert [(t.name, t.shape, t.stored, t.pinned) for t in tower.tensors] == [
        (t.name, t.shape, t.stored, t.pinned) for t in text.tensors
    ]
    files = [written(source, tmp_path / f"{place}.gguf") for place, source in enumerate((tower, text))]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_spelling_variants(tmp_path: Path) -> None:
    """The names that transformers' own model classes have; its Phi-4-multimodal has no base_layer in names."""
    native = write_checkpoint(tmp_path / "phi", **MULTIMODAL)
    edit(native / "config.json", architectures=["Phi4MultimodalForCausalLM"], model_type="phi4_multimodal")
    assert opened(native, "bpe").architecture == "phi3"
    moe = write_checkpoint(tmp_path / "Phi-3-moe", family="phimoe")
    edit(moe / "config.json", architectures=["PhimoeForCausalLM"])
    assert opened(moe).architecture == "phimoe"


def test_adapters_of_a_text_model_are_still_refused(tmp_path: Path) -> None:
    directory = write_checkpoint(tmp_path / "phi", **(MULTIMODAL | {"family": "phi4mm"}))
    edit(directory / "config.json", architectures=["Phi3ForCausalLM"])
    with pytest.raises(InvalidFile, match=r"down_proj.weight' \(and 7 more\) is missing") as error:
        opened(directory, "bpe")
    assert "merge the adapters" in error.value.hint


def test_a_weight_given_twice(tmp_path: Path) -> None:
    directory = write_checkpoint(tmp_path / "phi", **(MULTIMODAL | {"family": "phi4mm"}))
    name = "model.layers.0.mlp.down_proj.weight"
    retensor(
        directory, TinyPhi(**(MULTIMODAL | {"family": "phi4mm"})), lambda shapes: shapes.update({name: (256, 512)})
    )
    with pytest.raises(InvalidFile, match="are the same weight"):
        opened(directory, "bpe")


# --- mixtures of experts ---


def retensor(directory: Path, phi: TinyPhi, change: Callable[[dict[str, Any]], Any], wide: str = "") -> None:
    """Write the tensors again, changed; the one named `wide` as F32."""
    shapes = tensor_shapes(phi)
    change(shapes)
    tensors = {}
    for name, shape in shapes.items():
        dtype = "F32" if name == wide else "BF16"
        tensors[name] = (dtype, shape, bytes(int(np.prod(shape)) * (4 if name == wide else 2)))
    write_safetensors(directory / "model.safetensors", tensors)


def test_what_llama_cpp_computes_otherwise_is_said(tmp_path: Path) -> None:
    """phitui.testing.conformance shows the difference; the day it is gone this note must go, too."""
    mixture = opened(write_checkpoint(tmp_path / "Phi-3-moe", family="phimoe", layers=1))
    assert "answers differ" in mixture.notes[0]
    dense = opened(write_checkpoint(tmp_path / "Phi-3-tiny", layers=1))
    assert not any("answers differ" in note for note in dense.notes)


def test_experts_are_merged_in_order(tmp_path: Path) -> None:
    phi = TinyPhi(family="phimoe", experts=11, layers=1)
    source = opened(write_checkpoint(tmp_path / "Phi-3-moe", family="phimoe", experts=11, layers=1, shards=4))
    tensor = next(t for t in source.tensors if t.name == "blk.0.ffn_down_exps.weight")
    assert tensor.shape == (512, 256, 11)
    held = b"".join(e.path.read_bytes()[e.offset : e.offset + e.length] for e in tensor.extents)
    names = [f"model.layers.0.block_sparse_moe.experts.{number}.w2.weight" for number in range(11)]
    assert held == b"".join(tensor_data(phi, name, (256, 512)) for name in names)
    router = next(t for t in source.tensors if t.name == "blk.0.ffn_gate_inp.weight")
    assert router.pinned is TensorType.F32


W1 = "model.layers.0.block_sparse_moe.experts.2.w1.weight"


@pytest.mark.parametrize(
    ("change", "wide", "said"),
    [
        (lambda shapes: shapes.pop(W1), "", r"experts.2.w1.weight' is missing"),
        (
            lambda shapes: shapes.update({W1.replace("2.w1", "4.w1"): (512, 256)}),
            "",
            r"experts.4.w1.weight' is not part",
        ),
        (lambda shapes: shapes.update({W1: (511, 256)}), "", r"has shape \[511, 256\]"),
        (lambda shapes: None, W1, r"differ in type: .*experts.0.w1.weight' is BF16, .*experts.2.w1.weight' is F32"),
    ],
)
def test_broken_experts(change: Callable[[dict[str, Any]], Any], wide: str, said: str, tmp_path: Path) -> None:
    directory = write_checkpoint(tmp_path / "Phi-3-moe", family="phimoe")
    retensor(directory, TinyPhi(family="phimoe"), change, wide)
    with pytest.raises(InvalidFile, match=said):
        opened(directory)


@pytest.mark.parametrize(
    ("family", "changes", "said", "nearest"),
    [
        ("phimoe", {"head_dim": 128}, "head_dim is 128", "Phi-mini-MoE"),
        ("phimoe", {"attention_bias": False}, "attention_bias is false", "Phi-mini-MoE"),
        ("phimoe", {"lm_head_bias": False}, "lm_head_bias is false", "Phi-mini-MoE"),
        ("phimoe", {"tie_word_embeddings": True}, "output of its own", "Phi-mini-MoE"),
        ("phimoe", {"partial_rotary_factor": 0.5}, "partial_rotary_factor", "Phi-mini-MoE"),
        ("phimoe", {"num_experts_per_tok": 9}, "num_experts_per_tok is 9", ""),
        ("phimoe", {"num_local_experts": 0}, "num_local_experts is 0", ""),
        ("phimoe", {"num_local_experts": 5000}, "num_local_experts is 5000", ""),
        ("phi2", {"qk_layernorm": True}, "qk_layernorm", "phi-2"),
        ("phi2", {"hidden_act": "relu"}, "hidden_act is 'relu'", "phi-2"),
        ("phi2", {"tie_word_embeddings": True}, "output of its own", "phi-2"),
        ("phi2", {"partial_rotary_factor": 0.4}, "25 dimensions", "phi-2"),
        ("phi2", {"rope_scaling": {"type": "linear", "factor": 2}}, "'linear' is not known", "phi-2"),
    ],
)
def test_refused_from_config_alone(family: str, changes: dict[str, Any], said: str, nearest: str) -> None:
    assert verdict(family).ok
    found = verdict(family, **changes)
    assert not found.ok
    assert said in found.reason
    assert nearest in found.nearest
    assert bool(nearest) == bool(found.nearest)


def test_the_heads_of_phi_tiny_moe_are_seen_in_its_tensors_too(tmp_path: Path) -> None:
    """If config.json says nothing of head_dim, the shape of q does."""
    directory = write_checkpoint(tmp_path / "Phi-3-moe", family="phimoe", heads=2, kv_heads=2)
    edit(directory / "config.json", num_attention_heads=4, num_key_value_heads=2)
    with pytest.raises(InvalidFile, match=r"k_proj.*config.json says"):
        opened(directory)
    edit(directory / "config.json", head_dim=128)
    with pytest.raises(UnsupportedModel, match="head_dim is 128") as error:
        opened(directory)
    assert "Phi-mini-MoE" in error.value.hint


def test_slim_moe_without_any_rope_scaling(tmp_path: Path) -> None:
    """The reference stops here with a KeyError: it needs original_max_position_embeddings."""
    directory = write_checkpoint(tmp_path / "Phi-3-moe", family="phimoe")
    values = json.loads((directory / "config.json").read_text())
    values.pop("original_max_position_embeddings")
    assert values["rope_scaling"] is None
    (directory / "config.json").write_text(json.dumps(values))
    assert opened(directory).metadata["phimoe.rope.scaling.original_context_length"].value == 4096


# --- the vision part of Phi-4-reasoning-vision ---


@pytest.fixture
def seeing(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "Phi-4-tiny-vision", family="phi4v", tokenizer="bpe")


def test_vision_is_only_in_one_model(tmp_path: Path, seeing: Path) -> None:
    assert opened(seeing, "bpe", mmproj=True).architecture == "clip"
    directory = write_checkpoint(tmp_path / "Phi-3-vision", family="phi3v")
    with pytest.raises(UsageError, match="--mmproj is for Phi4ForCausalLMV"):
        opened(directory, mmproj=True)


@pytest.mark.parametrize(
    ("file", "changes", "said"),
    [
        ("config.json", {"vision_config": None}, "no vision_config"),
        (
            "config.json",
            {"vision_config": {"hidden_size": 64, "intermediate_size": 96}},
            "num_hidden_layers is missing",
        ),
        ("preprocessor_config.json", {"patch_size": None}, "patch_size is missing"),
        ("preprocessor_config.json", {"patch_size": 5}, "patch_embedding.weight' has shape"),
        ("preprocessor_config.json", {"image_mean": [0.5]}, "image_mean is"),
        ("preprocessor_config.json", {"max_num_patches": "many"}, "max_num_patches is 'many'"),
    ],
)
def test_broken_vision(file: str, changes: dict[str, Any], said: str, seeing: Path) -> None:
    edit(seeing / file, **changes)
    with pytest.raises(InvalidFile, match=said):
        opened(seeing, "bpe", mmproj=True)


def test_a_vision_tower_without_its_positions(seeing: Path) -> None:
    phi = TinyPhi(family="phi4v", tokenizer="bpe")
    name = next(name for name in tensor_shapes(phi) if name.endswith("position_embedding.weight"))
    retensor(seeing, phi, lambda shapes: shapes.update({name: (15, 64)}))
    with pytest.raises(InvalidFile, match="not a square"):
        opened(seeing, "bpe", mmproj=True)
    retensor(seeing, phi, lambda shapes: shapes.pop(name))
    with pytest.raises(InvalidFile, match="is the vision part in the checkpoint"):
        opened(seeing, "bpe", mmproj=True)


# --- llama.cpp's word ---

RUN = """
import sys
from llama_cpp import Llama
model = Llama(sys.argv[1], n_ctx=64, logits_all=True, verbose=False, n_threads=1)
ids = model.tokenize(b"What is the capital of France?", add_bos=False)
model.eval(ids)
scores = model._scores[len(ids) - 1]
assert (scores == scores).all() and abs(scores).max() < 1e4
model.eval([int(scores.argmax())])
print("decoded")
"""
QUANTIZE = """
import ctypes, sys
import llama_cpp
params = llama_cpp.llama_model_quantize_default_params()
params.ftype, params.nthread = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M, 1
sys.exit(llama_cpp.llama_model_quantize(sys.argv[1].encode(), sys.argv[2].encode(), ctypes.byref(params)))
"""
needs_llama = pytest.mark.skipif(importlib.util.find_spec("llama_cpp") is None, reason="llama-cpp-python is missing")


def child(code: str, *arguments: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={"GGML_NO_BACKTRACE": "1", "PATH": "/usr/bin:/bin"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def written(source: Source, out: Path, scheme: str = "AUTO") -> Path:
    quantizer: Any = FloatQuantizer()
    if scheme != "AUTO":
        quantizer = next(offer for offer in plugins.load().quantizers if offer.name == "llama.cpp")
    plan = quantizer.plan(source, [scheme], quantizer.options())[scheme]
    write_gguf(plan, out, quantizer.encoder(plan, quantizer.options()))
    return out


@pytest.mark.parametrize("name", FAMILIES)
def test_facts_before_and_after_agree(name: str, tmp_path: Path) -> None:
    """What `phitui inspect` says of the checkpoint is true of its GGUF."""
    spec = FAMILIES[name]
    directory = write_checkpoint(tmp_path / name, **spec)
    out = written(opened(directory, spec.get("tokenizer", "spm")), tmp_path / "out.gguf")
    before, after = (inspect(Context(), str(path)) for path in (directory, out))
    for key in ("architecture", "parameters", "layers", "heads", "heads_kv", "feed_forward_length", "rope", "experts"):
        assert getattr(before, key) == getattr(after, key), key


@needs_llama
@pytest.mark.parametrize("name", FAMILIES)
def test_loads_decodes_and_quantizes_as_llama_cpp_does(name: str, tmp_path: Path) -> None:
    spec = FAMILIES[name]
    source = opened(write_checkpoint(tmp_path / name, **spec), spec.get("tokenizer", "spm"))
    whole = written(source, tmp_path / "whole.gguf")
    assert "decoded" in child(RUN, whole)
    ours, theirs = written(source, tmp_path / "ours.gguf", "Q4_K_M"), tmp_path / "theirs.gguf"
    child(QUANTIZE, whole, theirs)
    assert contents(ours) == contents(theirs)


def contents(path: Path) -> tuple[Any, Any]:
    header = read_header(path)
    data = path.read_bytes()
    tensors = {t.name: (t.shape, t.type, data[t.offset : t.offset + t.size]) for t in header.tensors}
    return {key: (value.type, value.value) for key, value in header.metadata().items()}, tensors
