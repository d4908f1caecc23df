"""The PARAMETERs that Ollama knows, with their types and defaults (Ollama's api/types.go, v0.33).

Ollama refuses an unknown name only at `ollama create`, and some wrong values only when the model is loaded; here both
are refused before anything is written.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from phitui.api import UsageError

Kind = Literal["int", "float", "bool", "text"]
_TRUE, _FALSE = ("1", "t", "T", "TRUE", "true", "True"), ("0", "f", "F", "FALSE", "false", "False")


@dataclass(frozen=True)
class Parameter:
    """A parameter. `default` is what Ollama does without it; values must lie in `low` .. `high`, both included."""

    name: str
    kind: Kind
    default: str
    low: float = -math.inf
    high: float = math.inf


_INT32 = 2**31 - 1
PARAMETERS: dict[str, Parameter] = {
    parameter.name: parameter
    for parameter in (
        Parameter("num_ctx", "int", "by memory, from 4096", 1, _INT32),
        Parameter("num_batch", "int", "512", 1, _INT32),
        Parameter("num_gpu", "int", "-1 (automatic)", -1, _INT32),
        Parameter("main_gpu", "int", "not set", 0, _INT32),
        Parameter("use_mmap", "bool", "not set"),
        Parameter("num_thread", "int", "0 (automatic)", 0, _INT32),
        Parameter("draft_num_predict", "int", "4", 0, _INT32),
        Parameter("num_keep", "int", "4", -1, _INT32),
        Parameter("seed", "int", "-1 (random)", -1, _INT32),
        Parameter("num_predict", "int", "-1 (until a stop)", -2, _INT32),
        Parameter("top_k", "int", "40", 0, _INT32),
        Parameter("top_p", "float", "0.9", 0, 1),
        Parameter("min_p", "float", "0", 0, 1),
        Parameter("typical_p", "float", "1.0", 0, 1),
        Parameter("repeat_last_n", "int", "64", -1, _INT32),
        Parameter("temperature", "float", "0.8", 0),
        Parameter("repeat_penalty", "float", "1.0 (1.1 before Ollama 0.32.10)", 0),
        Parameter("presence_penalty", "float", "0"),
        Parameter("frequency_penalty", "float", "0"),
        Parameter("stop", "text", "none"),
    )
}
IGNORED = (
    "penalize_newline",
    "low_vram",
    "f16_kv",
    "logits_all",
    "vocab_only",
    "use_mlock",
    "mirostat",
    "mirostat_tau",
    "mirostat_eta",
)
"""Accepted by Ollama with a warning, and without any effect."""


def validated(name: str, value: str) -> str:
    """The value as it goes into the Modelfile. Raises UsageError where Ollama would fail, now or later."""
    parameter = PARAMETERS.get(name)
    if parameter is None:
        raise _unknown(name)
    if parameter.kind == "text":
        if not value:
            raise UsageError(f"parameter {name} is empty")
        return value
    value = value.strip()
    if parameter.kind == "bool":
        if value not in _TRUE + _FALSE:
            raise UsageError(f"parameter {name} is true or false, not {value!r}")
        return "true" if value in _TRUE else "false"
    _check_number(parameter, value)
    return value


def parse_all(texts: Iterable[str]) -> list[tuple[str, str]]:
    """(name, value) pairs of `NAME=VALUE` texts. Raises UsageError for one that is not."""
    pairs = []
    for text in texts:
        name, found, value = text.partition("=")
        if not found:
            raise UsageError(f"--parameter {text!r} is not NAME=VALUE", "for example: --parameter top_k=20")
        pairs.append((name.strip(), validated(name.strip(), value)))
    return pairs


def _check_number(parameter: Parameter, value: str) -> None:
    integer = parameter.kind == "int"
    pattern = r"[+-]?\d+" if integer else r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?"
    if not value.isascii() or re.fullmatch(pattern, value) is None:
        raise UsageError(f"parameter {parameter.name} is {'a whole' if integer else 'a'} number, not {value!r}")
    number = float(value)
    if not math.isfinite(number) or not parameter.low <= number <= parameter.high:
        high = "" if math.isinf(parameter.high) else f" to {parameter.high:g}"
        raise UsageError(f"parameter {parameter.name} is out of range: {value}", f"from {parameter.low:g}{high}")


def _unknown(name: str) -> UsageError:
    if name in IGNORED:
        return UsageError(f"Ollama ignores the parameter {name}", "leave it out")
    if name in ("kv_cache_type", "flash_attention"):
        return UsageError(
            f"{name} is no parameter of a Modelfile",
            f"set it where Ollama's server starts: OLLAMA_{name.upper()}=...",
        )
    close = difflib.get_close_matches(name.lower(), PARAMETERS, 1)
    hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(PARAMETERS)}"
    return UsageError(f"Ollama knows no parameter {name!r}", hint)
