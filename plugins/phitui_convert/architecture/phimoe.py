"""Phi-3.5-MoE and Phi-mini-MoE (`PhiMoEForCausalLM`): keys and tensors of llama.cpp's architecture "phimoe".

The experts of a layer are one 3-D tensor in GGUF. Here it is only described, as a list of the places of its matrices,
so that merging costs no memory. Biases and norms are like Phi-2's, keys like Phi-3's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from phitui.api import Checkpoint, InvalidFile, SourceTensor, UnsupportedModel, Value
from phitui_convert.architecture import phi3
from phitui_convert.architecture.fields import flag, integer, number
from phitui_convert.architecture.layout import MAX_LAYERS, Part, attention, biased, collect, part, rope_tensors
from phitui_convert.architecture.rope import read_rope

_CONTEXT, _THETA, _EXPERTS, _USED = 131072, 1e6, 16, 2
"""PhimoeConfig's defaults."""
_LARGEST_EXPERTS = 1024
"""LLAMA_MAX_EXPERTS of llama.cpp."""
_PROJECTIONS = {"w1": "ffn_gate_exps", "w2": "ffn_down_exps", "w3": "ffn_up_exps"}


@dataclass(frozen=True)
class PhiMoe(phi3.Phi3):
    """A Phi-3 with `experts` feed forwards of which `used` work on each token."""

    experts: int = _EXPERTS
    used: int = _USED

    architecture = "phimoe"
    caveat = (
        "llama.cpp computes Phi's mixtures of experts in its own way (RMS norms in place of layer norms, and weights "
        "of the two experts that sum to 1): answers differ from those of the original code"
    )

    def summary(self) -> str:
        return f"{super().summary()}, {self.experts} experts of which {self.used} are used"

    def metadata(self) -> dict[str, Value]:
        counts = {"expert_used_count": Value.u32(self.used), "expert_count": Value.u32(self.experts)}
        return {f"{self.architecture}.{key}": value for key, value in (phi3.keys(self) | counts).items()}

    def tensors(self, checkpoint: Checkpoint) -> tuple[SourceTensor, ...]:
        title = f"a Phi mixture of {self.experts} experts with {self.layers} layers"
        return rope_tensors(self.rope) + collect(checkpoint, self._parts(), title)

    def _parts(self) -> Iterator[Part]:
        hidden, keys = self.hidden, self.hidden // self.heads * self.heads_kv
        yield part("token_embd.weight", "model.embed_tokens.weight", self.vocabulary, hidden)
        yield from biased("output_norm", "model.norm", hidden)
        yield from biased("output", "lm_head", self.vocabulary, hidden)
        for layer in range(self.layers):
            source, target = f"model.layers.{layer}.", f"blk.{layer}."
            yield from biased(target + "attn_norm", source + "input_layernorm", hidden)
            yield from attention(target, source, hidden, keys, "o_proj")
            yield from biased(target + "ffn_norm", source + "post_attention_layernorm", hidden)
            # llama.cpp routes in F32
            router = source + "block_sparse_moe.gate.weight"
            yield part(target + "ffn_gate_inp.weight", router, self.experts, hidden, pinned=True)
            for name, known in _PROJECTIONS.items():
                experts = (f"{source}block_sparse_moe.experts.{expert}.{name}.weight" for expert in range(self.experts))
                shape = [self.feed_forward, hidden] if name != "w2" else [hidden, self.feed_forward]
                yield Part(f"{target}{known}.weight", tuple(experts), tuple(shape), stacked=True)


def read(config: Mapping[str, Any]) -> PhiMoe:
    """Check a config.json. Defaults are PhimoeConfig's. Raises InvalidFile or UnsupportedModel naming the field.

    Phi-mini-MoE has no rope scaling and need not say original_max_position_embeddings: it is the context then.
    (convert_hf_to_gguf.py stops at a config.json without that key.)
    """
    hidden, heads, heads_kv = phi3.read_heads(config, "phimoe")
    context = integer(config, "max_position_embeddings", _CONTEXT)
    rope = read_rope(config, hidden, heads, context, theta=_THETA, original=context)
    if rope.dimensions != hidden // heads:
        raise UnsupportedModel("config.json: partial_rotary_factor is not 1, which llama.cpp's phimoe cannot load")
    for key in ("attention_bias", "lm_head_bias"):
        if not flag(config, key, default=True):
            raise UnsupportedModel(f"config.json: {key} is false, but llama.cpp's phimoe cannot load a model without")
    if flag(config, "tie_word_embeddings"):
        raise UnsupportedModel("config.json: tie_word_embeddings is set; llama.cpp's phimoe needs an output of its own")
    experts = integer(config, "num_local_experts", _EXPERTS, maximum=_LARGEST_EXPERTS)
    used = integer(config, "num_experts_per_tok", _USED)
    if used > experts:
        raise InvalidFile(f"config.json: num_experts_per_tok is {used}, but there are {experts} experts")
    return PhiMoe(
        vocabulary=integer(config, "vocab_size"),
        hidden=hidden,
        feed_forward=integer(config, "intermediate_size"),
        layers=integer(config, "num_hidden_layers", maximum=MAX_LAYERS),
        heads=heads,
        heads_kv=heads_kv,
        context=context,
        norm_epsilon=number(config, "rms_norm_eps", 1e-5),
        sliding_window=integer(config, "sliding_window", 0, minimum=0),
        tied=False,
        rope=rope,
        experts=experts,
        used=used,
    )
