"""SmolLM2's GGUF as a Hugging Face `Phi3ForCausalLM` checkpoint: real weights, exact re-layout.

Phi-3 fuses what Llama keeps apart: `qkv_proj` is the rows of q, k and v, `gate_up_proj` those of gate and up. llama.cpp
interleaves the rotary halves of Llama's q and k rows; Phi-3 does not, so that is undone first.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from phitui.api import Header, TensorType, read_header, write_safetensors
from phitui_demo.tokenizer import tokenizer_files

SHARDS = 2
Weight = Callable[[str], Any]


def relay(source: Path, target: Path) -> Path:
    """Write the checkpoint `target` (a directory) from the GGUF `source`; done already if it is there."""
    if (target / "config.json").is_file():
        return target
    header = read_header(source)
    target.parent.mkdir(parents=True, exist_ok=True)
    # Written beside its place and renamed when complete: a directory under its final name is never half a checkpoint.
    work = Path(tempfile.mkdtemp(prefix=".relay-", dir=target.parent))
    work.chmod(0o755)
    try:
        _write_weights(header, work)
        for name, content in tokenizer_files(header).items():
            (work / name).write_text(content, encoding="utf-8")
        (work / "config.json").write_text(json.dumps(_config(header), indent=1))
        shutil.rmtree(target, ignore_errors=True)
        work.replace(target)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return target


def _config(header: Header) -> dict[str, Any]:
    def fact(key: str) -> Any:
        return header.get(f"llama.{key}")

    context = fact("context_length")
    return {
        "architectures": ["Phi3ForCausalLM"],
        "model_type": "phi3",
        "hidden_size": fact("embedding_length"),
        "intermediate_size": fact("feed_forward_length"),
        "num_hidden_layers": fact("block_count"),
        "num_attention_heads": fact("attention.head_count"),
        "num_key_value_heads": fact("attention.head_count_kv"),
        "rms_norm_eps": round(fact("attention.layer_norm_rms_epsilon"), 12),
        "rope_theta": fact("rope.freq_base"),
        "max_position_embeddings": context,
        "original_max_position_embeddings": context,
        "rope_scaling": None,
        "sliding_window": None,
        "partial_rotary_factor": 1.0,
        "vocab_size": len(header.get("tokenizer.ggml.tokens")),
        "tie_word_embeddings": True,
        "hidden_act": "silu",
        "attention_bias": False,
        "bos_token_id": header.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": header.get("tokenizer.ggml.eos_token_id"),
        "pad_token_id": header.get("tokenizer.ggml.padding_token_id"),
        "torch_dtype": "bfloat16",
    }


def _write_weights(header: Header, directory: Path) -> None:
    """The tensors in two shards with their index, as large checkpoints have them."""
    tensors = sorted(_tensors(header).items())
    per_shard = -(-len(tensors) // SHARDS)
    places: dict[str, str] = {}
    total = 0
    for number in range(SHARDS):
        part = tensors[number * per_shard : (number + 1) * per_shard]
        file = f"model-{number + 1:05d}-of-{SHARDS:05d}.safetensors"
        total += write_safetensors(
            directory / file, {name: ("BF16", array.shape, _bf16(array)) for name, array in part}
        )
        places |= {name: file for name, _ in part}
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))


def _tensors(header: Header) -> dict[str, Any]:
    """Phi-3's tensors as float32 arrays in PyTorch's shape (out, in)."""
    import numpy as np

    weight = _reader(header)
    heads, heads_kv = header.get("llama.attention.head_count"), header.get("llama.attention.head_count_kv")
    tensors = {"model.embed_tokens.weight": weight("token_embd"), "model.norm.weight": weight("output_norm")}
    for layer in range(header.get("llama.block_count")):
        block, name = f"blk.{layer}.", f"model.layers.{layer}."
        query = _rotary_halves(weight(block + "attn_q"), heads)
        key = _rotary_halves(weight(block + "attn_k"), heads_kv)
        gate, up = weight(block + "ffn_gate"), weight(block + "ffn_up")
        tensors |= {
            name + "self_attn.qkv_proj.weight": np.concatenate([query, key, weight(block + "attn_v")]),
            name + "self_attn.o_proj.weight": weight(block + "attn_output"),
            name + "mlp.gate_up_proj.weight": np.concatenate([gate, up]),
            name + "mlp.down_proj.weight": weight(block + "ffn_down"),
            name + "input_layernorm.weight": weight(block + "attn_norm"),
            name + "post_attention_layernorm.weight": weight(block + "ffn_norm"),
        }
    return tensors


def _reader(header: Header) -> Weight:
    """A function from a tensor's name (without .weight) to its float32 values."""
    import numpy as np
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import dequantize

    places = {tensor.name: tensor for tensor in header.tensors}

    def weight(name: str) -> Any:
        tensor = places[f"{name}.weight"]
        raw = np.fromfile(header.path, np.uint8, tensor.size, offset=tensor.offset)
        shape = tensor.shape[::-1]
        if tensor.type == TensorType.F32:
            return raw.view(np.float32).reshape(shape)
        rows = raw.reshape(*shape[:-1], tensor.type.row_bytes(shape[-1]))
        return dequantize(rows, GGMLQuantizationType(int(tensor.type))).astype(np.float32)

    return weight


def _rotary_halves(rows: Any, heads: int) -> Any:
    """Undo llama.cpp's interleaving: per head, rows (pair, half) become (half, pair). Shape (out, in) stays."""
    out, width = rows.shape
    return rows.reshape(heads, out // heads // 2, 2, width).swapaxes(1, 2).reshape(out, width)


def _bf16(array: Any) -> Any:
    """float32 to bfloat16 bits, rounded to nearest even."""
    import numpy as np

    bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
