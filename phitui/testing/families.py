"""How the families of Phi differ in a checkpoint: their config.json and the names and shapes of their tensors.

Shapes are in PyTorch's order (rows, columns). `phi` is a TinyPhi everywhere (phitui.testing.checkpoints).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from phitui.testing.checkpoints import TinyPhi

Family = Literal["phi3", "phi2", "phimoe", "phi3v", "phi4mm", "phi4v"]
Shapes = dict[str, tuple[int, ...]]

ARCHITECTURES: dict[Family, str] = {
    "phi3": "Phi3ForCausalLM",
    "phi2": "PhiForCausalLM",
    "phimoe": "PhiMoEForCausalLM",
    "phi3v": "Phi3VForCausalLM",
    "phi4mm": "Phi4MMForCausalLM",
    "phi4v": "Phi4ForCausalLMV",
}
MODEL_TYPES: dict[Family, str] = {
    "phi3": "phi3",
    "phi2": "phi",
    "phimoe": "phimoe",
    "phi3v": "phi3_v",
    "phi4mm": "phi4mm",
    "phi4v": "phi4-siglip",
}
VISION = {"hidden": 64, "intermediate": 96, "heads": 2, "layers": 3, "patch": 4, "side": 4}
"""The vision tower of the tiny phi4v: `side` x `side` patches of `patch` x `patch` pixels of 3 channels."""


def special(phi: TinyPhi) -> dict[str, Any]:
    """The keys of config.json that only this family has, or has other values of."""
    values: dict[str, Any] = {"architectures": [ARCHITECTURES[phi.family]], "model_type": MODEL_TYPES[phi.family]}
    if phi.family == "phi2":
        values |= {"hidden_act": "gelu_new", "layer_norm_eps": 1e-05, "qk_layernorm": False}
    elif phi.family == "phimoe":
        biases = {"attention_bias": True, "lm_head_bias": True}
        values |= biases | {"num_local_experts": phi.experts, "num_experts_per_tok": 2}
    elif phi.family == "phi3v":
        values |= {"embd_layer": {"embedding_cls": "image"}, "img_processor": {"image_dim_out": 32}}
    elif phi.family == "phi4mm":
        values |= {"img_processor": None, "audio_processor": {"name": "cascades"}}
        values |= {"vision_lora": {"r": 4}, "speech_lora": {"r": 4}}
    elif phi.family == "phi4v":
        values |= {"vision_config": _vision_config(), "mm_projector_type": "mlp2x_gelu"}
        values |= {"min_num_patches": 4, "max_num_patches": 64}
    return values


def _vision_config() -> dict[str, Any]:
    return {
        "hidden_size": VISION["hidden"],
        "intermediate_size": VISION["intermediate"],
        "num_attention_heads": VISION["heads"],
        "num_hidden_layers": VISION["layers"],
        "patch_size": VISION["patch"],
        "layer_norm_eps": 1e-06,
    }


def shapes(phi: TinyPhi) -> Shapes:
    """Names and shapes of all tensors."""
    found: Shapes = {"model.embed_tokens.weight": (phi.vocabulary, phi.hidden)}
    if not phi.tied:
        found["lm_head.weight"] = (phi.vocabulary, phi.hidden)
    build = {"phi2": _phi2, "phimoe": _phimoe}.get(phi.family, _phi3)
    found |= build(phi)
    extra = {"phi3v": _phi3v_vision, "phi4mm": _phi4mm_vision, "phi4v": _phi4v_vision}.get(phi.family)
    return found | extra(phi) if extra else found


def _phi3(phi: TinyPhi) -> Shapes:
    head = phi.hidden // phi.heads
    base = ".base_layer" if phi.family == "phi4mm" else ""
    found: Shapes = {}
    for layer in range(phi.layers):
        prefix = f"model.layers.{layer}."
        found[prefix + "input_layernorm.weight"] = (phi.hidden,)
        matrices: Shapes = {
            "mlp.down_proj": (phi.hidden, phi.intermediate),
            "mlp.gate_up_proj": (2 * phi.intermediate, phi.hidden),
            "self_attn.o_proj": (phi.hidden, phi.hidden),
            "self_attn.qkv_proj": (phi.hidden + 2 * phi.kv_heads * head, phi.hidden),
        }
        for name, shape in matrices.items():
            if name == "self_attn.o_proj":
                found[prefix + "post_attention_layernorm.weight"] = (phi.hidden,)
            found[f"{prefix}{name}{base}.weight"] = shape
            for adapter in ("vision", "speech") if base else ():
                found[f"{prefix}{name}.lora_A.{adapter}.weight"] = (4, shape[1])
                found[f"{prefix}{name}.lora_B.{adapter}.weight"] = (shape[0], 4)
    found["model.norm.weight"] = (phi.hidden,)
    return found


def _both(name: str, rows: int, columns: int = 0) -> Shapes:
    """Weight and bias; without columns a norm."""
    return {f"{name}.weight": (rows, columns) if columns else (rows,), f"{name}.bias": (rows,)}


def _phi2(phi: TinyPhi) -> Shapes:
    keys = phi.hidden // phi.heads * phi.kv_heads
    found: Shapes = {}
    for layer in range(phi.layers):
        prefix = f"model.layers.{layer}."
        found |= _both(prefix + "input_layernorm", phi.hidden)
        found |= _both(prefix + "mlp.fc1", phi.intermediate, phi.hidden)
        found |= _both(prefix + "mlp.fc2", phi.hidden, phi.intermediate)
        found |= _both(prefix + "self_attn.dense", phi.hidden, phi.hidden)
        for part, rows in (("q", phi.hidden), ("k", keys), ("v", keys)):
            found |= _both(f"{prefix}self_attn.{part}_proj", rows, phi.hidden)
    found |= _both("model.final_layernorm", phi.hidden)
    return found | {"lm_head.bias": (phi.vocabulary,)}


def _phimoe(phi: TinyPhi) -> Shapes:
    keys = phi.hidden // phi.heads * phi.kv_heads
    found: Shapes = {}
    for layer in range(phi.layers):
        prefix = f"model.layers.{layer}."
        for expert in range(phi.experts):
            name = f"{prefix}block_sparse_moe.experts.{expert}."
            found[name + "w1.weight"] = (phi.intermediate, phi.hidden)
            found[name + "w2.weight"] = (phi.hidden, phi.intermediate)
            found[name + "w3.weight"] = (phi.intermediate, phi.hidden)
        found[prefix + "block_sparse_moe.gate.weight"] = (phi.experts, phi.hidden)
        found |= _both(prefix + "input_layernorm", phi.hidden) | _both(prefix + "post_attention_layernorm", phi.hidden)
        found |= _both(prefix + "self_attn.o_proj", phi.hidden, phi.hidden)
        for part, rows in (("q", phi.hidden), ("k", keys), ("v", keys)):
            found |= _both(f"{prefix}self_attn.{part}_proj", rows, phi.hidden)
    found |= _both("model.norm", phi.hidden)
    return found | {"lm_head.bias": (phi.vocabulary,)}


DECIDED = 60.0
"""How far apart the router's scores are in units of its input, which is 0.5 to 6."""


def decide(name: str, values: Any) -> None:
    """Change the values of a mixture (shape in PyTorch's order) so that two different computations agree.

    llama.cpp takes RMS norms for the layer norms of Phi-3.5-MoE, and lets the weights of a token's two experts sum to 1
    where the model gives each one up to 1.0. So here everything that is added to the state has mean zero, where both
    norms are the same. And column 1 of a token's embedding, which nothing changes, decides for the first or the last
    expert by a wide margin, while the experts between them, of which one is the second, add nothing.
    """
    if name.endswith(("embed_tokens.weight", "o_proj.weight", "o_proj.bias", ".w2.weight")):
        columns = values if name.endswith("embed_tokens.weight") else values.T  # of the state, last
        columns[..., 1] = 0.5 - (columns[..., 1] < 0) if columns is values else 0
        total = columns.sum(-1) / (columns.shape[-1] - 1)
        kept = columns[..., 1].copy()
        columns -= total[..., None]
        columns[..., 1] = kept
    if ".experts." in name and name.endswith(".w2.weight") and int(name.split(".")[-3]) in (1, 2):
        values[:] = 0
    if name.endswith(".gate.weight"):
        values[:] = 0
        values[0, 1], values[-1, 1] = DECIDED, -DECIDED


def _phi3v_vision(phi: TinyPhi) -> Shapes:
    """A few of the tensors of a CLIP tower and its projection."""
    prefix = "model.vision_embed_tokens."
    clip = prefix + "img_processor.vision_model."
    found: Shapes = {prefix + "glb_GN": (1, 1, 32), prefix + "sub_GN": (1, 1, 1, 32)}
    found |= {clip + "embeddings.class_embedding": (32,), clip + "embeddings.patch_embedding.weight": (32, 3, 4, 4)}
    found |= _both(clip + "encoder.layers.0.self_attn.q_proj", 32, 32)
    return found | _both(prefix + "img_projection.0", phi.hidden, 32)


def _phi4mm_vision(phi: TinyPhi) -> Shapes:
    """A few of the tensors of both encoders."""
    prefix = "model.embed_tokens_extend."
    found = _both(prefix + "image_embed.img_processor.encoder.layers.0.mlp.fc1", 32, 32)
    found |= _both(prefix + "audio_embed.encoder.encoders.0._feed_forward_in.net.0.linear", 32, 32)
    return found | _both(prefix + "audio_embed.audio_projection.speech.0", phi.hidden, 32)


def _phi4v_vision(phi: TinyPhi) -> Shapes:
    """A whole SigLIP2 tower and the projection to the text model."""
    wide, deep = VISION["hidden"], VISION["intermediate"]
    prefix = "model.vision_tower.vision_tower.vision_model."
    found = _both(prefix + "embeddings.patch_embedding", wide, 3 * VISION["patch"] ** 2)
    found[prefix + "embeddings.position_embedding.weight"] = (VISION["side"] ** 2, wide)
    for layer in range(VISION["layers"]):
        block = f"{prefix}encoder.layers.{layer}."
        found |= _both(block + "layer_norm1", wide) | _both(block + "layer_norm2", wide)
        found |= _both(block + "mlp.fc1", deep, wide) | _both(block + "mlp.fc2", wide, deep)
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            found |= _both(f"{block}self_attn.{part}", wide, wide)
    found |= _both(prefix + "post_layernorm", wide) | {prefix + "head.probe": (1, 1, wide)}
    found |= _both("model.mm_projector.0", phi.hidden, wide) | _both("model.mm_projector.2", phi.hidden, phi.hidden)
    return found
