"""Phi-3, 3.5, 4 and 4-mini (`Phi3ForCausalLM`): keys and tensors of llama.cpp's architecture "phi3".

Also the text models inside Phi-3-vision, Phi-3.5-vision, Phi-4-multimodal and Phi-4-reasoning-vision, which are the
same but for the names of some tensors and the tensors beside them. In Phi-4-multimodal the LoRA adapters belong to
vision and speech: its own code switches them off for text, so the base weights are the whole text model.

Key names are those of llama.cpp's src/llama-arch.cpp; tensors keep the checkpoint's layout (fused qkv and gate/up).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from phitui.api import Checkpoint, InvalidFile, SourceTensor, UnsupportedModel, Value
from phitui_convert.architecture.fields import flag, integer, number
from phitui_convert.architecture.layout import MAX_LAYERS, Part, collect, part, plain, rope_tensors
from phitui_convert.architecture.rope import DEFAULT_CONTEXT, Rope, read_rope


@dataclass(frozen=True)
class Tower:
    """What stands beside the text model: `kind` in words, and the names of its tensors (parts of names).

    `renamed` are pieces of names that the text model's own tensors have and Phi-3's have not. `mark` says whether the
    file tells that something was left out.
    """

    kind: str = ""
    outside: tuple[str, ...] = ()
    renamed: tuple[str, ...] = ()
    mark: bool = True

    def rename(self, name: str) -> str | None:
        """The Rename of this checkpoint."""
        if any(text in name for text in self.outside):
            return None
        for text in self.renamed:
            name = name.replace(text, "")
        return plain(name)


VISION = Tower("vision", ("model.vision_embed_tokens.",))
MULTIMODAL = Tower(
    "vision and speech", ("model.embed_tokens_extend.", ".lora_A.", ".lora_B."), renamed=(".base_layer",)
)
SIGLIP = Tower("vision", ("vision_tower.", "vision_model.", "mm_projector."), renamed=("language_model.",), mark=False)
"""Its vision part has a file of its own (see mmproj.py), so the text file says nothing, as the reference's."""


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
    tower: Tower = field(default=Tower())

    architecture, caveat = "phi3", ""

    @property
    def left_out(self) -> str:
        return self.tower.kind

    def summary(self) -> str:
        rope = "longrope" if self.rope.long_factors else "no rope scaling"
        return f"{self.layers} layers, context {self.context}, {rope}"

    def metadata(self) -> dict[str, Value]:
        named = {f"{self.architecture}.{key}": value for key, value in keys(self).items()}
        if self.tower.kind and self.tower.mark:
            text = f"The text model of a multimodal one: {self.tower.kind} left out, as converted by phitui."
            named["general.description"] = Value.string(text)
        return named

    def tensors(self, checkpoint: Checkpoint) -> tuple[SourceTensor, ...]:
        title = f"Phi-3 with {self.layers} layers"
        return rope_tensors(self.rope) + collect(checkpoint, self._parts(), title, self.tower.rename)

    def _parts(self) -> Iterator[Part]:
        hidden, head = self.hidden, self.hidden // self.heads
        yield part("token_embd.weight", "model.embed_tokens.weight", self.vocabulary, hidden)
        yield part("output_norm.weight", "model.norm.weight", hidden)
        yield part("output.weight", "lm_head.weight", self.vocabulary, hidden, optional=self.tied)
        for layer in range(self.layers):
            source, target = f"model.layers.{layer}.", f"blk.{layer}."
            for name, known, *shape in (
                ("input_layernorm", "attn_norm", hidden),
                ("self_attn.qkv_proj", "attn_qkv", hidden + 2 * self.heads_kv * head, hidden),
                ("self_attn.o_proj", "attn_output", hidden, hidden),
                ("post_attention_layernorm", "ffn_norm", hidden),
                ("mlp.gate_up_proj", "ffn_up", 2 * self.feed_forward, hidden),
                ("mlp.down_proj", "ffn_down", hidden, self.feed_forward),
            ):
                yield part(f"{target}{known}.weight", f"{source}{name}.weight", *shape)


def read(config: Mapping[str, Any], tower: Tower | None = None) -> Phi3:
    """Check a config.json. Defaults are Phi3Config's. Raises InvalidFile or UnsupportedModel naming the field."""
    hidden, heads, heads_kv = read_heads(config, "phi3")
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
        tower=tower or Tower(),
    )


def read_heads(config: Mapping[str, Any], architecture: str) -> tuple[int, int, int]:
    """hidden_size, attention heads, key/value heads. Raises InvalidFile, or UnsupportedModel for wider heads."""
    hidden, heads = integer(config, "hidden_size"), integer(config, "num_attention_heads")
    heads_kv = integer(config, "num_key_value_heads", heads)
    if hidden % heads or heads % heads_kv:
        raise InvalidFile(
            f"config.json: {heads} attention heads and {heads_kv} key/value heads do not divide {hidden} evenly"
        )
    head = integer(config, "head_dim", hidden // heads)
    if head != hidden // heads:
        raise UnsupportedModel(
            f"config.json: head_dim is {head}, but llama.cpp's {architecture} takes only "
            f"hidden_size / heads = {hidden // heads}"
        )
    return hidden, heads, heads_kv


def keys(phi: Phi3) -> dict[str, Value]:
    """The keys of a Phi-3, without the name of the architecture before them."""
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
    return values
