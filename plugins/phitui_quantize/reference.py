"""A nominal model: what a scheme costs in general is what llama.cpp answers for Phi-3-mini's shapes."""

from __future__ import annotations

from pathlib import Path

from phitui.api import Metadata, Source, SourceTensor, TensorType, Value

LAYERS, WIDTH, FEED_FORWARD, VOCABULARY, HEADS = 32, 3072, 8192, 32064, 32


def reference_source() -> Source:
    """Phi-3-mini without data: header facts and tensor shapes of microsoft/Phi-3-mini-4k-instruct."""
    tensors = [
        _tensor("token_embd", WIDTH, VOCABULARY),
        _tensor("output", WIDTH, VOCABULARY),
        _tensor("output_norm", WIDTH),
    ]
    for layer in range(LAYERS):
        tensors += [
            _tensor(f"blk.{layer}.attn_norm", WIDTH),
            _tensor(f"blk.{layer}.attn_qkv", WIDTH, 3 * WIDTH),
            _tensor(f"blk.{layer}.attn_output", WIDTH, WIDTH),
            _tensor(f"blk.{layer}.ffn_norm", WIDTH),
            _tensor(f"blk.{layer}.ffn_up", WIDTH, 2 * FEED_FORWARD),
            _tensor(f"blk.{layer}.ffn_down", FEED_FORWARD, WIDTH),
        ]
    return Source(Path("phi-3-mini"), "phi3", _metadata(), tuple(tensors))


def _tensor(name: str, *shape: int) -> SourceTensor:
    stored = TensorType.F32 if len(shape) == 1 else TensorType.BF16
    return SourceTensor(f"{name}.weight", shape, stored, ())


def _metadata() -> Metadata:
    counts = {
        "context_length": 4096,
        "rope.scaling.original_context_length": 4096,
        "embedding_length": WIDTH,
        "feed_forward_length": FEED_FORWARD,
        "block_count": LAYERS,
        "attention.head_count": HEADS,
        "attention.head_count_kv": HEADS,
        "rope.dimension_count": WIDTH // HEADS,
        "attention.sliding_window": 0,
    }
    values = {f"phi3.{key}": Value.u32(value) for key, value in counts.items()}
    values["phi3.attention.layer_norm_rms_epsilon"] = Value.f32(1e-5)
    return {"general.architecture": Value.string("phi3"), **values}
