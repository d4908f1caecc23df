"""Which checkpoints can be converted, judged from config.json alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from phitui.api import PhituiError, UnsupportedModel, Verdict
from phitui_convert.architecture.family import Model
from phitui_convert.families import READERS

NEAREST = "microsoft/Phi-4-mini-instruct (Phi3ForCausalLM)"
_SIBLINGS = {
    "PhiForCausalLM": "microsoft/phi-2",
    "PhiMoEForCausalLM": "microsoft/Phi-mini-MoE-instruct",
    "PhimoeForCausalLM": "microsoft/Phi-mini-MoE-instruct",
}
"""Architecture -> a model of it that converts, for those of it that do not."""
_RELATIVES: dict[str, tuple[str, str]] = {
    "Phi3SmallForCausalLM": (
        "llama.cpp cannot run Phi-3-small: its blocksparse attention is not implemented there",
        "microsoft/Phi-3-medium-4k-instruct",
    ),
    "Phi4FlashForCausalLM": (
        "llama.cpp cannot run Phi-4-mini-flash: its SambaY layers are not implemented there",
        "microsoft/Phi-4-mini-reasoning",
    ),
}


def judge(config: Mapping[str, Any]) -> Verdict:
    """The verdict on a config.json. Never raises."""
    refusal = refuse(config)
    if refusal is not None:
        return refusal
    architecture: str = config["architectures"][0]
    try:
        model = READERS[architecture](config)
    except PhituiError as error:
        reason = f"{error.message}; {error.hint}" if error.hint else error.message
        return Verdict(False, reason, _sibling(architecture) if isinstance(error, UnsupportedModel) else "")
    return Verdict(True, f"{architecture}{_only(model)}: {model.summary()}")


def read(config: Mapping[str, Any]) -> Model:
    """The model of a config.json. Raises UnsupportedModel or InvalidFile, with what is nearest."""
    refusal = refuse(config)
    if refusal is not None:
        raise UnsupportedModel(refusal.reason, _hint(refusal.nearest))
    architecture: str = config["architectures"][0]
    try:
        return READERS[architecture](config)
    except UnsupportedModel as error:
        raise UnsupportedModel(error.message, error.hint or _hint(_sibling(architecture))) from None


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
    if architecture not in READERS:
        return Verdict(False, f"{architecture} is not a Phi architecture that phitui converts", NEAREST)
    if config.get("quantization_config"):
        return Verdict(False, _quantized(config["quantization_config"]), "the same model in BF16 or F16")
    return None


def _only(model: Model) -> str:
    return f", text only ({model.left_out} left out)" if model.left_out else ""


def _sibling(architecture: str) -> str:
    return _SIBLINGS.get(architecture, "")


def _hint(nearest: str) -> str:
    return f"nearest supported: {nearest}" if nearest else "see: phitui models"


def _quantized(settings: Any) -> str:
    method = settings.get("quant_method") if isinstance(settings, Mapping) else None
    return (
        f"the checkpoint is already quantized ({method or 'quantization_config'} in config.json); "
        "quantizing twice would lose quality for nothing"
    )
