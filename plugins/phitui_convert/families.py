"""Which family of models an architecture of a config.json belongs to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from phitui_convert.architecture import phi2, phi3, phimoe
from phitui_convert.architecture.family import Model

READERS: dict[str, Callable[[Mapping[str, Any]], Model]] = {
    "Phi3ForCausalLM": phi3.read,
    "PhiForCausalLM": phi2.read,
    "PhiMoEForCausalLM": phimoe.read,
    "PhimoeForCausalLM": phimoe.read,
    "Phi3VForCausalLM": partial(phi3.read, tower=phi3.VISION),
    "Phi4MMForCausalLM": partial(phi3.read, tower=phi3.MULTIMODAL),
    "Phi4MultimodalForCausalLM": partial(phi3.read, tower=phi3.MULTIMODAL),
    "Phi4ForCausalLMV": partial(phi3.read, tower=phi3.SIGLIP),
}
"""architectures[0] -> what checks its config.json."""
