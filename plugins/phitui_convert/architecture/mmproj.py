"""The vision part of Phi-4-reasoning-vision (`Phi4ForCausalLMV`): a file of its own, llama.cpp's architecture "clip".

A SigLIP2 tower and two matrices that bring its features to the text model. Phi-4 uses the features before the last
layer, so that layer, the norm after it and the head are not in the file. Keys are those of llama.cpp's
tools/mtmd/clip-impl.h.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from phitui.api import (
    Checkpoint,
    InlineExtent,
    InvalidFile,
    SourceTensor,
    TensorType,
    UsageError,
    Value,
    ValueType,
    tensor_bytes,
)
from phitui_convert.architecture.fields import integer, number, positive
from phitui_convert.architecture.layout import MAX_LAYERS, Part, biased, collect, part

SOURCE = "Phi4ForCausalLMV"
_TOWER, _PROJECTOR = "vision_tower.vision_model.", "mm_projector."
_POSITIONS = _TOWER + "embeddings.position_embedding.weight"
_DROPPED = ("vision_model.head.", "vision_model.post_layernorm.")
_CHANNELS = 3
_LARGEST_PATCH = 256
"""Pixels; Phi-4's has 16."""


@dataclass(frozen=True)
class Vision:
    """The hyperparameters, checked. `layers` are those of the file; `side` counts patches, `patch` pixels."""

    hidden: int
    feed_forward: int
    layers: int
    heads: int
    norm_epsilon: float
    patch: int
    side: int
    projection: int
    min_patches: int
    max_patches: int
    mean: tuple[float, ...]
    deviation: tuple[float, ...]

    architecture = "clip"
    vocabulary = 0
    left_out = caveat = ""

    def summary(self) -> str:
        return f"{self.layers} layers, patches of {self.patch} x {self.patch} pixels"

    def metadata(self) -> dict[str, Value]:
        vision = {
            "projection_dim": Value.u32(self.projection),
            "image_size": Value.u32(self.side * self.patch),
            "patch_size": Value.u32(self.patch),
            "embedding_length": Value.u32(self.hidden),
            "feed_forward_length": Value.u32(self.feed_forward),
            "block_count": Value.u32(self.layers),
            "attention.head_count": Value.u32(self.heads),
            "attention.layer_norm_epsilon": Value.f32(self.norm_epsilon),
            "image_mean": Value.array(ValueType.FLOAT32, self.mean),
            "image_std": Value.array(ValueType.FLOAT32, self.deviation),
            "image_min_pixels": Value.u32(self.min_patches * self.patch**2),
            "image_max_pixels": Value.u32(self.max_patches * self.patch**2),
        }
        return {
            "clip.has_vision_encoder": Value.boolean(True),
            "clip.projector_type": Value.string("phi4"),
            "clip.use_gelu": Value.boolean(True),
            **{f"clip.vision.{key}": value for key, value in vision.items()},
        }

    def tensors(self, checkpoint: Checkpoint) -> tuple[SourceTensor, ...]:
        found = collect(checkpoint, self._parts(), f"its vision tower with {self.layers + 1} layers", self._rename)
        return tuple(self._patches(tensor) if tensor.name == "v.patch_embd.weight" else tensor for tensor in found)

    def _rename(self, name: str) -> str | None:
        """Only vision tensors, without what stands before "vision_tower." or "mm_projector."."""
        last = f"vision_model.encoder.layers.{self.layers}."
        if any(text in name for text in (*_DROPPED, last)):
            return None
        return _known(name)

    def _parts(self) -> Iterator[Part]:
        hidden, pixels = self.hidden, _CHANNELS * self.patch**2
        patches = _TOWER + "embeddings.patch_embedding"
        yield part("v.patch_embd.weight", f"{patches}.weight", hidden, pixels, pinned=True)
        yield part("v.patch_embd.bias", f"{patches}.bias", hidden)
        yield part("v.position_embd.weight", _POSITIONS, self.side**2, hidden, pinned=True)
        for layer in range(self.layers):
            source, target = f"{_TOWER}encoder.layers.{layer}.", f"v.blk.{layer}."
            for name, known, *shape in (
                ("layer_norm1", "ln1", hidden),
                ("layer_norm2", "ln2", hidden),
                ("mlp.fc1", "ffn_up", self.feed_forward, hidden),
                ("mlp.fc2", "ffn_down", hidden, self.feed_forward),
                ("self_attn.q_proj", "attn_q", hidden, hidden),
                ("self_attn.k_proj", "attn_k", hidden, hidden),
                ("self_attn.v_proj", "attn_v", hidden, hidden),
                ("self_attn.out_proj", "attn_out", hidden, hidden),
            ):
                yield from biased(target + known, source + name, *shape)
        yield from biased("mm.0", _PROJECTOR + "0", self.projection, hidden)
        yield from biased("mm.2", _PROJECTOR + "2", self.projection, self.projection)

    def _patches(self, tensor: SourceTensor) -> SourceTensor:
        """From (rows, columns, channels) of pixels to llama.cpp's (channels, rows, columns): 2 MB, read here."""
        import numpy as np

        raw = tensor_bytes(tensor)
        kind = np.uint32 if tensor.stored is TensorType.F32 else np.uint16
        turned = np.frombuffer(raw, kind).reshape(self.hidden, self.patch, self.patch, _CHANNELS).transpose(0, 3, 1, 2)
        shape = (self.patch, self.patch, _CHANNELS, self.hidden)
        return SourceTensor(tensor.name, shape, tensor.stored, (InlineExtent(turned.tobytes()),), tensor.pinned)


def read(checkpoint: Checkpoint) -> Vision:
    """Check config.json, the preprocessor's config and the grid of patches. Raises UsageError or InvalidFile."""
    config = checkpoint.config
    if (config.get("architectures") or [""])[0] != SOURCE:
        raise UsageError(
            f"{checkpoint.directory}: --mmproj is for {SOURCE} (Phi-4-reasoning-vision) only",
            "llama.cpp runs the vision of no other Phi; leave the option out for the text model",
        )
    vision = config.get("vision_config")
    if not isinstance(vision, Mapping):
        raise InvalidFile(f"{checkpoint.directory}: config.json has no vision_config")
    pixels = {**config, **_preprocessor(checkpoint)}
    text = config.get("text_config")
    return Vision(
        hidden=integer(vision, "hidden_size"),
        feed_forward=integer(vision, "intermediate_size"),
        layers=integer(vision, "num_hidden_layers", minimum=2, maximum=MAX_LAYERS) - 1,
        heads=integer(vision, "num_attention_heads"),
        norm_epsilon=number(vision, "layer_norm_eps", 1e-6),
        patch=integer(pixels, "patch_size", maximum=_LARGEST_PATCH),
        side=_side(checkpoint),
        projection=integer({**config, **text} if isinstance(text, Mapping) else config, "hidden_size"),
        min_patches=integer(pixels, "min_num_patches", maximum=1 << 15),
        max_patches=integer(pixels, "max_num_patches", maximum=1 << 15),
        mean=_colours(pixels, "image_mean"),
        deviation=_colours(pixels, "image_std"),
    )


def _known(name: str) -> str | None:
    for start in (_TOWER, _PROJECTOR):
        if start in name:
            known = start + name.rpartition(start)[2]
            return known if start == _TOWER or known.split(".")[1] in ("0", "2") else None
    return None


def _preprocessor(checkpoint: Checkpoint) -> dict[str, Any]:
    """preprocessor_config.json, and over it processor_config.json with its image_processor."""
    found = dict(checkpoint.json("preprocessor_config.json") or {})
    processor = checkpoint.json("processor_config.json") or {}
    inner = processor.get("image_processor")
    return found | processor | (inner if isinstance(inner, dict) else {})


def _side(checkpoint: Checkpoint) -> int:
    """Patches along one side of the square that the position embeddings are for. Raises InvalidFile."""
    for name, tensor in checkpoint.tensors.items():
        if _known(name) == _POSITIONS:
            side = math.isqrt(tensor.shape[0]) if tensor.shape else 0
            if side and side**2 == tensor.shape[0]:
                return side
            raise InvalidFile(
                f"{checkpoint.directory}: tensor {name!r} has {list(tensor.shape)}: not a square of patches"
            )
    raise InvalidFile(f"{checkpoint.directory}: there is no {_POSITIONS!r}", "is the vision part in the checkpoint?")


def _colours(pixels: Mapping[str, Any], key: str) -> tuple[float, ...]:
    values = pixels.get(key)
    if not isinstance(values, list) or len(values) != _CHANNELS:
        raise InvalidFile(f"preprocessor_config.json: {key} is {values!r}, not {_CHANNELS} numbers")
    return tuple(positive(value, f"{key}[{place}]") for place, value in enumerate(values))
