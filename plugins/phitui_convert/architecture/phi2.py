"""Phi-1, 1.5 and 2 (`PhiForCausalLM`): keys and tensors of llama.cpp's architecture "phi2".

Separate q, k and v, biases everywhere, layer norms with mean, a plain GELU feed forward beside the attention.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from phitui.api import Checkpoint, SourceTensor, UnsupportedModel, Value
from phitui_convert.architecture.fields import flag, integer, number
from phitui_convert.architecture.layout import MAX_LAYERS, Part, attention, biased, collect, part
from phitui_convert.architecture.phi3 import read_heads
from phitui_convert.architecture.rope import Rope, read_rope

_CONTEXT, _PARTIAL_ROTARY, _THETA = 2048, 0.5, 10000.0
"""PhiConfig's defaults."""
_GELU = ("gelu_new", "gelu_fast", "gelu_pytorch_tanh")
"""transformers' names of the GELU that llama.cpp computes."""


@dataclass(frozen=True)
class Phi2:
    """The hyperparameters, checked. Lengths are counts of values, `context` counts tokens."""

    vocabulary: int
    hidden: int
    feed_forward: int
    layers: int
    heads: int
    heads_kv: int
    context: int
    norm_epsilon: float
    rope: Rope

    architecture = "phi2"
    left_out = caveat = ""

    def summary(self) -> str:
        return f"{self.layers} layers, context {self.context}"

    def metadata(self) -> dict[str, Value]:
        values = {
            "context_length": Value.u32(self.context),
            "embedding_length": Value.u32(self.hidden),
            "feed_forward_length": Value.u32(self.feed_forward),
            "block_count": Value.u32(self.layers),
            "attention.head_count": Value.u32(self.heads),
            "attention.head_count_kv": Value.u32(self.heads_kv),
            "attention.layer_norm_epsilon": Value.f32(self.norm_epsilon),
            "rope.dimension_count": Value.u32(self.rope.dimensions),
        }
        if self.rope.theta != _THETA:  # convert_hf_to_gguf.py writes none: llama.cpp's default is this one
            values["rope.freq_base"] = Value.f32(self.rope.theta)
        named = {f"{self.architecture}.{key}": value for key, value in values.items()}
        return named | {"tokenizer.ggml.add_bos_token": Value.boolean(False)}

    def tensors(self, checkpoint: Checkpoint) -> tuple[SourceTensor, ...]:
        return collect(checkpoint, self._parts(), f"Phi-2 with {self.layers} layers")

    def _parts(self) -> Iterator[Part]:
        hidden, keys = self.hidden, self.hidden // self.heads * self.heads_kv
        yield part("token_embd.weight", "model.embed_tokens.weight", self.vocabulary, hidden)
        yield from biased("output_norm", "model.final_layernorm", hidden)
        yield from biased("output", "lm_head", self.vocabulary, hidden)
        for layer in range(self.layers):
            source, target = f"model.layers.{layer}.", f"blk.{layer}."
            yield from attention(target, source, hidden, keys, "dense")
            for name, known, *shape in (
                ("input_layernorm", "attn_norm", hidden),
                ("mlp.fc1", "ffn_up", self.feed_forward, hidden),
                ("mlp.fc2", "ffn_down", hidden, self.feed_forward),
            ):
                yield from biased(target + known, source + name, *shape)


def read(config: Mapping[str, Any]) -> Phi2:
    """Check a config.json. Defaults are PhiConfig's. Raises InvalidFile or UnsupportedModel naming the field."""
    hidden, heads, heads_kv = read_heads(config, "phi2")
    context = integer(config, "max_position_embeddings", _CONTEXT)
    _refuse(config)
    rope = read_rope(config, hidden, heads, context, part=_PARTIAL_ROTARY)
    if rope.long_factors:
        raise UnsupportedModel("config.json: rope scaling is not known for Phi-2")
    epsilon = number(config, "layer_norm_epsilon", number(config, "layer_norm_eps", 1e-5))
    return Phi2(
        vocabulary=integer(config, "vocab_size"),
        hidden=hidden,
        feed_forward=integer(config, "intermediate_size", 4 * hidden),
        layers=integer(config, "num_hidden_layers", maximum=MAX_LAYERS),
        heads=heads,
        heads_kv=heads_kv,
        context=context,
        norm_epsilon=epsilon,
        rope=rope,
    )


def _refuse(config: Mapping[str, Any]) -> None:
    """Raise UnsupportedModel for what PhiConfig can say and llama.cpp's phi2 cannot do."""
    if flag(config, "qk_layernorm"):
        raise UnsupportedModel("config.json: qk_layernorm is set, which llama.cpp's phi2 does not have")
    if flag(config, "tie_word_embeddings"):
        raise UnsupportedModel("config.json: tie_word_embeddings is set; llama.cpp's phi2 needs an output of its own")
    activation = config.get("hidden_act") or _GELU[0]
    if activation not in _GELU:
        raise UnsupportedModel(f"config.json: hidden_act is {activation!r}; llama.cpp's phi2 computes {_GELU[0]}")
