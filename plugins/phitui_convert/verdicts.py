"""Which checkpoints can be converted, judged from config.json alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from phitui.api import PhituiError, Verdict
from phitui_convert.architecture import phi3

SUPPORTED = "Phi3ForCausalLM"
NEAREST = "Phi3ForCausalLM: Phi-3 mini and medium, Phi-3.5-mini, Phi-4, Phi-4-mini, Phi-4-reasoning"

_RELATIVES: dict[str, tuple[str, str]] = {
    "PhiForCausalLM": ("Phi-1, 1.5 and 2 are not supported by this version", "microsoft/Phi-3-mini-4k-instruct"),
    "PhiMoEForCausalLM": ("Phi mixture-of-experts models are not supported by this version", "microsoft/phi-4"),
    "PhimoeForCausalLM": ("Phi mixture-of-experts models are not supported by this version", "microsoft/phi-4"),
    "Phi3SmallForCausalLM": (
        "llama.cpp cannot run Phi-3-small: its blocksparse attention is not implemented there",
        "microsoft/Phi-3-medium-4k-instruct",
    ),
    "Phi3VForCausalLM": (
        "Phi-3-vision and Phi-3.5-vision are not supported: llama.cpp has no converter for them",
        "microsoft/Phi-3.5-mini-instruct",
    ),
    "Phi4FlashForCausalLM": (
        "llama.cpp cannot run Phi-4-mini-flash: its SambaY layers are not implemented there",
        "microsoft/Phi-4-mini-reasoning",
    ),
    "Phi4MMForCausalLM": (
        "Phi-4-multimodal is not supported: llama.cpp has no converter for it",
        "microsoft/Phi-4-mini-instruct",
    ),
    "Phi4MultimodalForCausalLM": (
        "Phi-4-multimodal is not supported: llama.cpp has no converter for it",
        "microsoft/Phi-4-mini-instruct",
    ),
    "Phi4ForCausalLMV": (
        "Phi-4-reasoning-vision is not supported by this version",
        "microsoft/Phi-4-reasoning",
    ),
}


def judge(config: Mapping[str, Any]) -> Verdict:
    """The verdict on a config.json. Never raises."""
    refusal = refuse(config)
    if refusal is not None:
        return refusal
    try:
        phi = phi3.read(config)
    except PhituiError as error:
        return Verdict(False, f"{error.message}; {error.hint}" if error.hint else error.message)
    rope = "longrope" if phi.rope.long_factors else "no rope scaling"
    return Verdict(True, f"{SUPPORTED}: {phi.layers} layers, context {phi.context}, {rope}")


def refuse(config: Mapping[str, Any]) -> Verdict | None:
    """The verdict on a model of another kind than this plugin converts; None for one of the right kind."""
    if not isinstance(config, Mapping):
        return Verdict(False, "config.json is not a JSON object")
    architectures = config.get("architectures")
    if not isinstance(architectures, list) or not architectures or not isinstance(architectures[0], str):
        return Verdict(False, "config.json names no architecture", NEAREST)
    architecture = architectures[0]
    if architecture in _RELATIVES:
        reason, nearest = _RELATIVES[architecture]
        return Verdict(False, f"{architecture}: {reason}", nearest)
    if architecture != SUPPORTED:
        return Verdict(False, f"{architecture} is not a Phi architecture that phitui converts", NEAREST)
    if config.get("quantization_config"):
        return Verdict(False, _quantized(config["quantization_config"]), "the same model in BF16 or F16")
    return None


def _quantized(settings: Any) -> str:
    method = settings.get("quant_method") if isinstance(settings, Mapping) else None
    return (
        f"the checkpoint is already quantized ({method or 'quantization_config'} in config.json); "
        "quantizing twice would lose quality for nothing"
    )
