"""Phi-3, 3.5, 4 and 4-mini (`Phi3ForCausalLM`): keys and tensors of llama.cpp's architecture "phi3".

Key names are those of llama.cpp's src/llama-arch.cpp; tensors keep the checkpoint's layout (fused qkv and gate/up).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from phitui.api import (
    Checkpoint,
    FileExtent,
    InlineExtent,
    InvalidFile,
    SourceTensor,
    TensorType,
    UnsupportedModel,
    Value,
)
from phitui_convert.architecture.fields import flag, integer, number
from phitui_convert.architecture.rope import DEFAULT_CONTEXT, Rope, pack, read_rope

NAME = "phi3"
IGNORED = (".rotary_emb.inv_freq", ".attention.bias", ".attention.masked_bias")
"""Buffers that old checkpoints carry; they are computed, not learned."""
MAX_LAYERS = 512
"""LLAMA_MAX_LAYERS of llama.cpp."""
_LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.qkv_proj": "attn_qkv",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


@dataclass(frozen=True)
class Phi3:
    """The hyperparameters, checked. Lengths are counts of values, contexts counts of tokens."""

    vocabulary: int
    hidden: int
    feed_forward: int
    layers: int
    heads: int
    heads_kv: int
    context: int
    norm_epsilon: float
    sliding_window: int
    tied: bool
    rope: Rope


def read(config: Mapping[str, Any]) -> Phi3:
    """Check a config.json. Defaults are Phi3Config's. Raises InvalidFile or UnsupportedModel naming the field."""
    hidden, heads = integer(config, "hidden_size"), integer(config, "num_attention_heads")
    heads_kv = integer(config, "num_key_value_heads", heads)
    if hidden % heads or heads % heads_kv:
        raise InvalidFile(
            f"config.json: {heads} attention heads and {heads_kv} key/value heads do not divide {hidden} evenly"
        )
    head = integer(config, "head_dim", hidden // heads)
    if head != hidden // heads:
        raise UnsupportedModel(
            f"config.json: head_dim is {head}, but llama.cpp's phi3 takes only hidden_size / heads = {hidden // heads}"
        )
    context = integer(config, "max_position_embeddings", DEFAULT_CONTEXT)
    return Phi3(
        vocabulary=integer(config, "vocab_size"),
        hidden=hidden,
        feed_forward=integer(config, "intermediate_size"),
        layers=integer(config, "num_hidden_layers", maximum=MAX_LAYERS),
        heads=heads,
        heads_kv=heads_kv,
        context=context,
        norm_epsilon=number(config, "rms_norm_eps", 1e-5),
        sliding_window=integer(config, "sliding_window", 0, minimum=0),
        tied=flag(config, "tie_word_embeddings"),
        rope=read_rope(config, hidden, heads, context),
    )


def metadata(phi: Phi3) -> dict[str, Value]:
    """The keys under "phi3."."""
    values = {
        "context_length": Value.u32(phi.context),
        "rope.scaling.original_context_length": Value.u32(phi.rope.original_context),
        "embedding_length": Value.u32(phi.hidden),
        "feed_forward_length": Value.u32(phi.feed_forward),
        "block_count": Value.u32(phi.layers),
        "attention.head_count": Value.u32(phi.heads),
        "attention.head_count_kv": Value.u32(phi.heads_kv),
        "attention.layer_norm_rms_epsilon": Value.f32(phi.norm_epsilon),
        "rope.dimension_count": Value.u32(phi.rope.dimensions),
        "rope.freq_base": Value.f32(phi.rope.theta),
        # zero, not absence, is how llama.cpp tells models without a sliding window (Phi-4) from the others
        "attention.sliding_window": Value.u32(phi.sliding_window),
    }
    if phi.rope.attention_factor is not None:
        values["rope.scaling.attn_factor"] = Value.f32(phi.rope.attention_factor)
    return {f"{NAME}.{key}": value for key, value in values.items()}


def tensors(phi: Phi3, checkpoint: Checkpoint) -> tuple[SourceTensor, ...]:
    """All tensors in the order of convert_hf_to_gguf.py: rope factors, then shard by shard, by name.

    Raises InvalidFile naming the first tensor that is missing, has another shape, or is not part of Phi-3.
    """
    expected = {name: (target, shape) for name, target, shape in _expected(phi)}
    _check_names(checkpoint, set(expected), tied=phi.tied)
    result = list(_rope_tensors(phi.rope))
    for tensor in sorted(checkpoint.tensors.values(), key=lambda tensor: (tensor.extent.path.name, tensor.name)):
        name = tensor.name
        if name.endswith(IGNORED):
            continue
        target, shape = expected[name]
        if tensor.shape != shape:
            raise InvalidFile(
                f"{checkpoint.directory}: tensor {name!r} has shape {list(tensor.shape)}, "
                f"but config.json says {list(shape)}",
                "config.json and the weights do not belong together; download the checkpoint again",
            )
        result.append(_tensor(target, shape, tensor.dtype, tensor.extent))
    return tuple(result)


def _expected(phi: Phi3) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """(name in the checkpoint, name in GGUF, PyTorch shape) of every tensor."""
    head = phi.hidden // phi.heads
    shapes: dict[str, tuple[int, ...]] = {
        "input_layernorm": (phi.hidden,),
        "self_attn.qkv_proj": (phi.hidden + 2 * phi.heads_kv * head, phi.hidden),
        "self_attn.o_proj": (phi.hidden, phi.hidden),
        "post_attention_layernorm": (phi.hidden,),
        "mlp.gate_up_proj": (2 * phi.feed_forward, phi.hidden),
        "mlp.down_proj": (phi.hidden, phi.feed_forward),
    }
    yield "model.embed_tokens.weight", "token_embd.weight", (phi.vocabulary, phi.hidden)
    yield "model.norm.weight", "output_norm.weight", (phi.hidden,)
    yield "lm_head.weight", "output.weight", (phi.vocabulary, phi.hidden)
    for layer in range(phi.layers):
        for part, shape in shapes.items():
            yield f"model.layers.{layer}.{part}.weight", f"blk.{layer}.{_LAYER[part]}.weight", shape


def _check_names(checkpoint: Checkpoint, expected: set[str], tied: bool) -> None:
    found = {name for name in checkpoint.tensors if not name.endswith(IGNORED)}
    missing = sorted(expected - found - ({"lm_head.weight"} if tied else set()))
    if missing:
        hint = "download the checkpoint again"
        if missing == ["lm_head.weight"]:
            hint = "if its output shares the embeddings, config.json must say tie_word_embeddings: true"
        raise InvalidFile(f"{checkpoint.directory}: tensor {missing[0]!r}{_others(missing)} is missing", hint)
    extra = sorted(found - expected)
    if extra:
        raise InvalidFile(
            f"{checkpoint.directory}: tensor {extra[0]!r}{_others(extra)} is not part of Phi-3 with "
            f"{_layers(expected)} layers",
            "merge adapters (LoRA) into the model, and convert only text models",
        )


def _others(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""


def _layers(expected: set[str]) -> int:
    return sum(name.endswith(".input_layernorm.weight") for name in expected)


def _rope_tensors(rope: Rope) -> Iterator[SourceTensor]:
    for name, factors in (("rope_factors_long", rope.long_factors), ("rope_factors_short", rope.short_factors)):
        if factors:
            yield _tensor(f"{name}.weight", (len(factors),), TensorType.F32, InlineExtent(pack(factors)))


def _tensor(name: str, shape: tuple[int, ...], stored: TensorType, extent: FileExtent | InlineExtent) -> SourceTensor:
    """One-dimensional tensors are F32 whatever the scheme: llama.cpp computes norms and factors in F32 only."""
    pinned = TensorType.F32 if len(shape) == 1 else None
    return SourceTensor(name, tuple(reversed(shape)), stored, (extent,), pinned)
