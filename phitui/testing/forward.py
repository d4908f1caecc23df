"""The logits of a Phi checkpoint, computed from its config.json and safetensors alone.

    from phitui.testing.forward import logits
    logits(Path("Phi-3-tiny"), [1, 17, 4])      # float64, (3, vocabulary)

The formulas are those of transformers' PhiForCausalLM, Phi3ForCausalLM and PhimoeForCausalLM at inference (see
formulas.py), on the whole text at once: with LongRoPE the long factors are used when it is longer than the original
context. No sliding window: texts must be shorter than it. Meant for tiny models; needs numpy alone.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from phitui.domain.tensors import FileExtent
from phitui.gguf.floats import widen
from phitui.gguf.safetensors import open_checkpoint
from phitui.testing import formulas

LONGROPE = ("longrope", "su", "yarn")
MIXTURES = ("PhiMoEForCausalLM", "PhimoeForCausalLM")


def logits(directory: Path, ids: list[int], *, as_llama_cpp: bool = False) -> Any:
    """float64 logits of every position. `as_llama_cpp`: see `_PhiMoe`."""
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    architecture = config["architectures"][0]
    kind = _PhiMoe if architecture in MIXTURES else _Phi2 if architecture == "PhiForCausalLM" else _Phi3
    model = kind(config, _Weights(directory), len(ids))
    model.as_llama_cpp = as_llama_cpp
    return model.run(ids)


class _Weights:
    """The tensors of a checkpoint by name. The text model of a multimodal one has other names for some of them."""

    def __init__(self, directory: Path) -> None:
        self._tensors = open_checkpoint(directory).tensors

    def __call__(self, name: str) -> Any:
        tensor = self._tensors.get(name) or self._tensors[name.replace(".weight", ".base_layer.weight")]
        extent = tensor.extent
        assert isinstance(extent, FileExtent) and tensor.dtype is not None, "plain floats on this machine"
        with extent.path.open("rb") as file:
            file.seek(extent.offset)
            raw = file.read(extent.length)
        return widen(raw, tensor.dtype).reshape(tensor.shape).astype(np.float64)

    def has(self, name: str) -> bool:
        return name in self._tensors

    def linear(self, x: Any, name: str) -> Any:
        """PyTorch's Linear, with its bias if it has one."""
        found = x @ self(f"{name}.weight").T
        return found + self(f"{name}.bias") if self.has(f"{name}.bias") else found


class _Phi3:
    """Phi-3, 3.5, 4 and 4-mini: RMS norms, fused qkv and gate/up, SwiGLU."""

    partial = 1.0
    norm, epsilon, last = "rms_norm", "rms_norm_eps", "model.norm"
    as_llama_cpp = False

    def __init__(self, config: Mapping[str, Any], weights: _Weights, count: int) -> None:
        self.config, self.weights = config, weights
        self.heads = config["num_attention_heads"]
        self.kv_heads = config.get("num_key_value_heads") or self.heads
        self.head = config["hidden_size"] // self.heads
        self.frequencies, self.scale = self.rope(count)

    def rope(self, count: int) -> tuple[Any, float]:
        """Angles per position, and what cos and sin are multiplied with, for a text of `count` tokens."""
        config = self.config
        values = config.get("rope_parameters") or config.get("rope_scaling") or {}
        base = values.get("rope_theta", config.get("rope_theta", 10000.0))
        part = values.get("partial_rotary_factor", config.get("partial_rotary_factor", self.partial))
        dimensions = int(self.head * part)
        if (values.get("rope_type") or values.get("type")) not in LONGROPE:
            return formulas.frequencies(base, dimensions), 1.0
        original = config.get("original_max_position_embeddings") or values["original_max_position_embeddings"]
        which = "long" if count > original else "short"
        found = formulas.frequencies(base, dimensions, np.array(values[f"{which}_factor"], np.float64))
        if f"{which}_mscale" in values:
            return found, values[f"{which}_mscale"]
        stretch = config["max_position_embeddings"] / original
        return found, math.sqrt(1 + math.log(stretch) / math.log(original)) if stretch > 1 else 1.0

    def run(self, ids: list[int]) -> Any:
        table = self.weights("model.embed_tokens.weight")
        state = table[ids]
        for layer in range(self.config["num_hidden_layers"]):
            state = self.layer(state, f"model.layers.{layer}.")
        state = self.normed(state, self.last)
        return state @ table.T if self.config.get("tie_word_embeddings") else self.weights.linear(state, "lm_head")

    def layer(self, state: Any, at: str) -> Any:
        state = state + self.attention(self.normed(state, at + "input_layernorm"), at + "self_attn.")
        return state + self.feed(self.normed(state, at + "post_attention_layernorm"), at)

    def normed(self, x: Any, name: str) -> Any:
        norm = getattr(formulas, self.norm)
        bias = self.weights(f"{name}.bias") if self.weights.has(f"{name}.bias") else 0.0
        return norm(x, self.weights(f"{name}.weight"), self.config[self.epsilon], bias)

    def qkv(self, x: Any, at: str) -> list[Any]:
        keys = self.kv_heads * self.head
        mixed = self.weights.linear(x, at + "qkv_proj")
        return np.split(mixed, [self.heads * self.head, self.heads * self.head + keys], axis=1)

    def attention(self, x: Any, at: str, out: str = "o_proj") -> Any:
        q, k, v = (part.reshape(len(x), -1, self.head) for part in self.qkv(x, at))
        q, k = (formulas.rotate(part, self.frequencies, self.scale) for part in (q, k))
        return self.weights.linear(formulas.attention(q, k, v), at + out)

    def feed(self, x: Any, at: str) -> Any:
        gate, up = np.split(self.weights.linear(x, at + "mlp.gate_up_proj"), 2, axis=1)
        return self.weights.linear(formulas.silu(gate) * up, at + "mlp.down_proj")


class _Phi2(_Phi3):
    """Phi-1, 1.5 and 2: layer norms, biases, a GELU feed forward beside the attention."""

    partial = 0.5
    norm, epsilon, last = "layer_norm", "layer_norm_eps", "model.final_layernorm"

    def layer(self, state: Any, at: str) -> Any:
        x = self.normed(state, at + "input_layernorm")
        inner = formulas.gelu(self.weights.linear(x, at + "mlp.fc1"))
        return state + self.attention(x, at + "self_attn.", "dense") + self.weights.linear(inner, at + "mlp.fc2")

    def qkv(self, x: Any, at: str) -> list[Any]:
        return [self.weights.linear(x, f"{at}{part}_proj") for part in "qkv"]


class _PhiMoe(_Phi2):
    """Phi-3.5-MoE: Phi-3 with layer norms, biases, and experts in place of the feed forward.

    llama.cpp (0c1e57098) computes something else in two places: RMS norms where the model has layer norms, and the two
    experts weighted to a sum of 1 where sparsemixer gives each of them up to 1. `as_llama_cpp` computes that.
    """

    partial = 1.0
    epsilon, last = "rms_norm_eps", "model.norm"

    def normed(self, x: Any, name: str) -> Any:
        self.norm = "rms_norm" if self.as_llama_cpp else "layer_norm"
        return super().normed(x, name)

    def layer(self, state: Any, at: str) -> Any:
        return _Phi3.layer(self, state, at)

    def feed(self, x: Any, at: str) -> Any:
        at += "block_sparse_moe."
        scores = self.weights.linear(x, at + "gate")
        used = self.config["num_experts_per_tok"]
        share = formulas.softmax_routing(scores, used) if self.as_llama_cpp else formulas.sparsemixer(scores)
        total = np.zeros_like(x)
        for expert in range(share.shape[1]):
            rows = np.nonzero(share[:, expert])[0]
            own, part = f"{at}experts.{expert}.", x[rows]
            inner = formulas.silu(self.weights.linear(part, own + "w1")) * self.weights.linear(part, own + "w3")
            total[rows] += share[rows, expert, None] * self.weights.linear(inner, own + "w2")
        return total
