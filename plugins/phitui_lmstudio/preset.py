"""LM Studio's presets: how a model is asked, as JSON. What it is loaded with is no part of them."""

from __future__ import annotations

import json
import re
from typing import Any

from phitui_lmstudio.options import LMStudioOptions

Field = dict[str, Any]

TURNS: dict[str, tuple[tuple[str, str], tuple[str, str], tuple[str, str]]] = {
    "phi-2": (("", "\n"), ("Instruct: ", "\n"), ("Output: ", "\n")),
    "phi-3": (
        ("<|system|>\n", "<|end|>\n"),
        ("<|user|>\n", "<|end|>\n"),
        ("<|assistant|>\n", "<|end|>\n"),
    ),
    "phi-4-mini": (("<|system|>", "<|end|>"), ("<|user|>", "<|end|>"), ("<|assistant|>", "<|end|>")),
    "phi-4": (
        ("<|im_start|>system<|im_sep|>", "<|im_end|>"),
        ("<|im_start|>user<|im_sep|>", "<|im_end|>"),
        ("<|im_start|>assistant<|im_sep|>", "<|im_end|>"),
    ),
    "chatml": (
        ("<|im_start|>system\n", "<|im_end|>\n"),
        ("<|im_start|>user\n", "<|im_end|>\n"),
        ("<|im_start|>assistant\n", "<|im_end|>\n"),
    ),
}
"""What stands before and after the text of system, user and assistant, by chat format."""


def preset(name: str, options: LMStudioOptions, stops: tuple[str, ...], manual: str) -> str:
    """The preset. `manual` is the chat format to spell out for a model without a chat template, "" for none."""
    fields: list[Field] = []

    def add(key: str, value: Any) -> None:
        fields.append({"key": f"llm.prediction.{key}", "value": value})

    def add_checked(key: str, value: Any) -> None:
        if value is not None:
            add(key, {"checked": True, "value": value})

    if options.system is not None:
        add("systemPrompt", options.system)
    if options.temperature is not None:
        add("temperature", options.temperature)
    if options.top_k is not None:
        add("topKSampling", options.top_k)
    add_checked("topPSampling", options.top_p)
    add_checked("minPSampling", options.min_p)
    add_checked("repeatPenalty", options.repeat_penalty)
    if options.num_predict == -1:
        add("maxPredictedTokens", {"checked": False, "value": 1})
    else:
        add_checked("maxPredictedTokens", options.num_predict)
    add("stopStrings", list(dict.fromkeys((*stops, *options.stop))))
    if manual:
        add("promptTemplate", _template(manual, stops))
    document = {
        "identifier": f"@local:{slug(name)}",
        "name": name,
        "changed": True,
        "operation": {"fields": fields},
        "load": {"fields": []},
    }
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def slug(name: str) -> str:
    """The name of the preset in file names."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "model"


def _template(chat_format: str, stops: tuple[str, ...]) -> dict[str, Any]:
    parts: dict[str, str] = {}
    for role, (before, after) in zip(("System", "User", "Assistant"), TURNS[chat_format], strict=True):
        parts |= {f"before{role}": before, f"after{role}": after}
    return {"type": "manual", "manualPromptTemplate": parts, "stopStrings": list(stops)}
