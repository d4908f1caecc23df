"""The checkpoints of the forward pass: every family, every rope, every float type, tied and untied."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from phitui.testing.checkpoints import write_checkpoint

ORIGINAL, CONTEXT = 256, 4096
"""Tokens of the original and the extended context under LongRoPE. llama.cpp rounds contexts up to multiples of 256."""
SHORT, LONG = 60, 300
"""Lengths of the texts, in tokens: within and beyond the original context."""
BOUNDS = {"BF16": 1e-2, "F16": 2e-3, "F32": 1e-5}
"""How far logits may be from the plain computation: ||a - b|| / ||b|| over all positions, and twice that at each one.
llama.cpp rounds the activations it multiplies with BF16 and F16 weights to that type."""
GELU_BOUND = 1e-3
"""The least bound of Phi-2: llama.cpp's GELU is a table in F16."""


@dataclass(frozen=True)
class Case:
    """A checkpoint (fields of TinyPhi) and a text of `tokens` random tokens, read with room for `context`."""

    spec: dict[str, Any]
    tokens: int = SHORT
    context: int = ORIGINAL
    or_as_llama_cpp: bool = False
    """llama.cpp may also compute a mixture of experts in the way it did so far (phitui.testing.forward)."""

    @property
    def bound(self) -> float:
        bound = BOUNDS[self.dtype]
        return max(bound, GELU_BOUND) if self.spec.get("family") == "phi2" else bound

    @property
    def dtype(self) -> str:
        return str(self.spec.get("dtype", "BF16"))

    @property
    def tokenizer(self) -> str:
        return str(self.spec.get("tokenizer", "spm"))

    def write(self, directory: Path) -> Path:
        """Weights are wide enough for attention to be sharp and for a wrong one to show."""
        return write_checkpoint(directory, **({"spread": 0.06} | self.spec))

    def ids(self) -> list[int]:
        """The text: the same on every machine."""
        return [(number * number * 31 + number * 7 + 11) % 389 + 3 for number in range(self.tokens)]


PHI2: dict[str, Any] = {
    "family": "phi2",
    "tokenizer": "bpe",
    "kv_heads": 4,
    "intermediate": 1024,
    "partial_rotary": 0.5,
    "context": 2048,
}
LONGROPE: dict[str, Any] = {"rope": "longrope", "context": CONTEXT, "original_context": ORIGINAL}
PHI4_MINI: dict[str, Any] = {"tokenizer": "bpe", "partial_rotary": 0.75, "tied": True} | LONGROPE
NEW: dict[str, Any] = {"rope_schema": "rope_parameters"}
MOE: dict[str, Any] = {"family": "phimoe"}
DECISIVE: dict[str, Any] = MOE | {
    "decisive": True,
    "mscale": math.sqrt(1 + math.log(CONTEXT / ORIGINAL) / math.log(ORIGINAL)),
}
"""llama.cpp's file has the attention factor of Phi-3's formula, where a mixture's config.json has values of its own."""


def _long(spec: dict[str, Any]) -> Case:
    return Case(spec, LONG, 2 * ORIGINAL)


CASES: dict[str, Case] = {
    "phi-2": Case(PHI2),
    "phi-2-F16": Case(PHI2 | {"dtype": "F16", "shards": 2}),
    "phi-1.5-F32": Case(PHI2 | NEW | {"dtype": "F32"}),
    "Phi-3-mini": Case({}),
    "Phi-3-mini-F16": Case({"dtype": "F16", "shards": 3, "kv_heads": 4}),
    "Phi-3-narrow-F32": Case({"dtype": "F32", "hidden": 96, "intermediate": 160, "layers": 3}),
    "Phi-3-128k-short": Case(LONGROPE),
    "Phi-3-128k-long": _long(LONGROPE),
    "Phi-3-su-long-F32": _long(LONGROPE | {"rope": "su", "dtype": "F32"}),
    "Phi-4": Case({"tokenizer": "bpe"} | NEW),
    "Phi-4-mini-short": Case(PHI4_MINI | NEW),
    "Phi-4-mini-long": _long(PHI4_MINI | NEW),
    "Phi-4-mini-long-F32": _long(PHI4_MINI | {"dtype": "F32"}),
    "Phi-3.5-MoE-short": Case(DECISIVE | LONGROPE),
    "Phi-3.5-MoE-long": _long(DECISIVE | LONGROPE),
    "Phi-mini-MoE-F32": Case(DECISIVE | {"dtype": "F32", "experts": 5}),
    "Phi-3.5-MoE-any-F32": Case(MOE | {"dtype": "F32"}, or_as_llama_cpp=True),
    "Phi-3-vision": _long(LONGROPE | {"family": "phi3v", "rope": "su"}),
    "Phi-4-multimodal": Case(PHI4_MINI | {"family": "phi4mm"}),
    "Phi-4-vision": Case({"family": "phi4v", "tokenizer": "bpe"}),
}
"""By name of what the checkpoint is a miniature of."""
