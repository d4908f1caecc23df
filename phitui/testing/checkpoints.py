"""Tiny random Phi checkpoints as Hugging Face would store them: real in every detail but their size and sense.

    from phitui.testing.checkpoints import write_checkpoint
    write_checkpoint(tmp_path / "Phi-3-tiny-instruct")                       # SentencePiece, BF16, 2 layers, 3 MB
    write_checkpoint(tmp_path / "Phi-4-tiny", tokenizer="bpe", rope="longrope", partial_rotary=0.75, tied=True)
    write_checkpoint(tmp_path / "phi-tiny-moe", family="phimoe", experts=4)

The same arguments always give the same bytes, on every machine. Needs numpy; neither torch nor a tokenizer library.
A "bpe" vocabulary is tiny, so no table knows its pre-tokenizer: pass the converter `converter_options("bpe")`.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from phitui.gguf.safetensors_writer import write_safetensors
from phitui.testing import families
from phitui.testing.families import Family
from phitui.testing.vocabularies import write_bpe, write_sentencepiece

Tokenizer = Literal["spm", "bpe"]
DType = Literal["BF16", "F16", "F32"]
Rope = Literal["none", "longrope", "su", "yarn"]
RopeSchema = Literal["rope_scaling", "rope_parameters"]

CARD = """---
license: mit
license_link: https://example.org/LICENSE
language:
- en
pipeline_tag: text-generation
tags:
- nlp
- code
---
# A tiny random checkpoint for tests
"""


@dataclass(frozen=True)
class TinyPhi:
    """What `write_checkpoint` writes. Counts are plain numbers; `partial_rotary` of a head is rotated (1.0: all).

    `hidden` and `intermediate` are multiples of 256 by default, so that every K-quant fits; 96 makes them substitute.
    Weights are uniform in +-`spread`. `mscale` is what a mixture multiplies cos and sin with under LongRoPE. A
    `decisive` mixture is one that llama.cpp computes as its authors do (see families.decide). `pre` is the
    pre-tokenizer of a "bpe" vocabulary (see vocabularies.write_bpe).
    """

    family: Family = "phi3"
    tokenizer: Tokenizer = "spm"
    dtype: DType = "BF16"
    layers: int = 2
    hidden: int = 256
    intermediate: int = 512
    heads: int = 4
    kv_heads: int = 2
    experts: int = 4
    vocabulary: int = 640
    context: int = 4096
    original_context: int = 4096
    rope: Rope = "none"
    rope_schema: RopeSchema = "rope_scaling"
    partial_rotary: float = 1.0
    tied: bool = False
    shards: int = 1
    card: bool = False
    seed: int = 0
    spread: float = 0.05
    mscale: float = 1.25
    pre: str = "gpt-2"
    decisive: bool = False


def converter_options(tokenizer: Tokenizer, pre: str = "gpt-2") -> dict[str, str]:
    """The options a converter needs for such a checkpoint."""
    return {"pre_tokenizer": pre} if tokenizer == "bpe" else {}


def write_checkpoint(directory: Path, **spec: Any) -> Path:
    """Write a checkpoint into `directory` (made if needed) and return it; `spec` are the fields of TinyPhi."""
    phi = TinyPhi(**spec)
    directory.mkdir(parents=True, exist_ok=True)
    if phi.tokenizer == "bpe":
        ids = write_bpe(directory, "CodeGenTokenizer" if phi.family == "phi2" else "GPT2Tokenizer", phi.pre)
    else:
        ids = write_sentencepiece(directory)
    _write_json(directory / "config.json", config(phi, ids))
    stops = [ids["<|end|>"], ids["<|assistant|>"], ids["<|endoftext|>"]]
    _write_json(directory / "generation_config.json", {"eos_token_id": stops, "pad_token_id": ids["<|endoftext|>"]})
    if phi.family == "phi4v":
        pixels = {
            "image_mean": [0.5, 0.5, 0.5],
            "image_std": [0.25, 0.25, 0.25],
            "patch_size": families.VISION["patch"],
        }
        patches = {"min_num_patches": 4, "max_num_patches": 64}
        _write_json(directory / "preprocessor_config.json", pixels | patches)
    if phi.card:
        (directory / "README.md").write_text(CARD, encoding="utf-8")
    _write_tensors(directory, phi)
    return directory


def config(phi: TinyPhi, ids: dict[str, int]) -> dict[str, Any]:
    """The config.json. `ids` are the ids of the special tokens."""
    end = ids["<|endoftext|>"]
    values: dict[str, Any] = {
        "hidden_act": "silu",
        "hidden_size": phi.hidden,
        "intermediate_size": phi.intermediate,
        "num_hidden_layers": phi.layers,
        "num_attention_heads": phi.heads,
        "num_key_value_heads": phi.kv_heads,
        "vocab_size": phi.vocabulary,
        "max_position_embeddings": phi.context,
        "original_max_position_embeddings": phi.original_context,
        "rms_norm_eps": 1e-05,
        "sliding_window": 2047 if phi.tokenizer == "spm" else None,
        "tie_word_embeddings": phi.tied,
        "bos_token_id": ids.get("<s>", end),
        "eos_token_id": end,
        "pad_token_id": end,
        "torch_dtype": {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}[phi.dtype],
    }
    return values | _rope(phi) | families.special(phi)


def _rope(phi: TinyPhi) -> dict[str, Any]:
    pairs = int(phi.partial_rotary * phi.hidden) // phi.heads // 2
    factors: dict[str, Any] = {
        "short_factor": [1.0 + place / 128 for place in range(pairs)],
        "long_factor": [1.0 + place * 1.3 for place in range(pairs)],
    }
    if phi.family == "phimoe":
        factors |= {"short_mscale": phi.mscale, "long_mscale": phi.mscale}
        factors |= {"original_max_position_embeddings": phi.original_context}
    if phi.rope_schema == "rope_scaling":
        scaling = None if phi.rope == "none" else {"type": phi.rope, **factors}
        values: dict[str, Any] = {"rope_theta": 10000.0, "rope_scaling": scaling}
        if phi.partial_rotary != 1.0:
            values["partial_rotary_factor"] = phi.partial_rotary
        return values
    parameters: dict[str, Any] = {"rope_theta": 10000.0, "partial_rotary_factor": phi.partial_rotary}
    parameters |= {"rope_type": "default"} if phi.rope == "none" else {"rope_type": phi.rope, **factors}
    return {"rope_parameters": parameters | {"original_max_position_embeddings": phi.original_context}}


def tensor_shapes(phi: TinyPhi) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors, in PyTorch's order (rows, columns)."""
    return families.shapes(phi)


def _write_tensors(directory: Path, phi: TinyPhi) -> None:
    tensors = list(tensor_shapes(phi).items())
    share = -(-len(tensors) // phi.shards)
    weight_map: dict[str, str] = {}
    total = 0
    for shard in range(phi.shards):
        part = tensors[shard * share : (shard + 1) * share]
        name = "model.safetensors"
        if phi.shards > 1:
            name = f"model-{shard + 1:05d}-of-{phi.shards:05d}.safetensors"
        blobs = {tensor: tensor_data(phi, tensor, shape) for tensor, shape in part}
        write_safetensors(directory / name, {tensor: (phi.dtype, shape, blobs[tensor]) for tensor, shape in part})
        weight_map |= dict.fromkeys(blobs, name)
        total += sum(len(blob) for blob in blobs.values())
    if phi.shards > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        _write_json(directory / "model.safetensors.index.json", index)


def tensor_data(phi: TinyPhi, name: str, shape: tuple[int, ...]) -> bytes:
    """The bytes of one tensor: uniform in +-spread, norms in 1 +- spread, a function of `seed` and the name alone."""
    import numpy as np

    count = int(np.prod(shape))
    known = name.replace(".base_layer", "")  # the same weight as in a plain Phi
    noise = hashlib.shake_256(f"{phi.seed} {known}".encode()).digest(count * 4)
    values = (np.frombuffer(noise, "<u4").astype(np.float64) / 2**32 - 0.5) * (2 * phi.spread)
    if phi.decisive:
        families.decide(name, values.reshape(shape))
    norm = len(shape) == 1 and not name.endswith(".bias")
    values32 = (values + (1.0 if norm else 0.0)).astype("<f4")
    if phi.dtype == "F32":
        return values32.tobytes()
    if phi.dtype == "F16":
        return values32.astype("<f2").tobytes()
    bits = values32.view("<u4").astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2").tobytes()


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1), encoding="utf-8")
