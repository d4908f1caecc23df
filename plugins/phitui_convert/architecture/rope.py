"""Rotary position embedding: both schemas of config.json, long context factors and their attention factor.

Old schema: rope_theta, partial_rotary_factor and rope_scaling {type, short_factor, long_factor} at the top.
Transformers 5: all of it inside rope_parameters, with rope_type. "su" and "yarn" are old names of "longrope" in Phi-3
checkpoints, and transformers reads them so (Phi3Config); convert_hf_to_gguf.py follows because it asks transformers.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from phitui.api import InvalidFile, UnsupportedModel
from phitui_convert.architecture.fields import integer, number, positive

LONGROPE_NAMES = ("longrope", "su", "yarn")
DEFAULT_CONTEXT = 4096
"""Phi3Config's default of both max_position_embeddings and original_max_position_embeddings, in tokens."""


@dataclass(frozen=True)
class Rope:
    """`dimensions` of a head are rotated. The factors (one per pair of dimensions) are empty without longrope.

    `attention_factor` scales attention above the original context; None without longrope.
    """

    theta: float
    dimensions: int
    original_context: int
    attention_factor: float | None = None
    short_factors: tuple[float, ...] = ()
    long_factors: tuple[float, ...] = ()


def read_rope(
    config: Mapping[str, Any],
    hidden: int,
    heads: int,
    context: int,
    *,
    theta: float = 10000.0,
    part: float = 1.0,
    original: int = 0,
) -> Rope:
    """Read either schema. `theta`, `part` and `original` (context) are the defaults of the family.

    Raises InvalidFile for missing or wrong factors, UnsupportedModel for another scaling.
    """
    parameters = _parameters(config)
    theta = number(parameters, "rope_theta", number(config, "rope_theta", theta))
    part = number(parameters, "partial_rotary_factor", number(config, "partial_rotary_factor", part))
    if part > 1:
        raise InvalidFile(f"config.json: partial_rotary_factor is {part}: it cannot be above 1")
    dimensions = int(part * hidden) // heads
    if dimensions % 2:
        raise UnsupportedModel(f"config.json: {dimensions} dimensions of a head are rotated; llama.cpp rotates pairs")
    # Phi3Config has a default of its own, which hides what the parameters say; the other configs have none
    inner = integer(parameters, "original_max_position_embeddings", original) if original else DEFAULT_CONTEXT
    original = integer(config, "original_max_position_embeddings", inner)
    kind = _kind(parameters)
    if kind == "default":
        return Rope(theta, dimensions, original)
    if kind not in LONGROPE_NAMES:
        raise UnsupportedModel(
            f"config.json: rope scaling {kind!r} is not known for Phi: it has none or longrope",
            "use the config.json the checkpoint came with",
        )
    factors = {key: _factors(parameters, key, dimensions, kind) for key in ("short_factor", "long_factor")}
    scale = _attention_factor(context, original)
    return Rope(theta, dimensions, original, scale, factors["short_factor"], factors["long_factor"])


def check_arrival(where: object, config: Mapping[str, Any], names: Collection[str]) -> None:
    """Raise InvalidFile if a schema in the config.json of `where` says longrope, and no factors are among the tensors.

    Without them the model loads and answers, but forgets how to count beyond its original context: nobody would notice.
    """
    for key in ("rope_scaling", "rope_parameters"):
        values = config.get(key)
        if not isinstance(values, Mapping):
            continue
        kind = str(values.get("rope_type") or values.get("type") or "").lower()
        promised = kind in LONGROPE_NAMES or values.get("long_factor") or values.get("short_factor")
        if promised and not {"rope_factors_long.weight", "rope_factors_short.weight"} <= set(names):
            raise InvalidFile(
                f"{where}: config.json: {key} says longrope, but its factors would not be in the file",
                "rope_scaling and rope_parameters contradict each other: keep the one the checkpoint came with",
            )


def pack(factors: tuple[float, ...]) -> bytes:
    """The factors as little-endian F32, as they stand in the file."""
    return struct.pack(f"<{len(factors)}f", *factors)


def _parameters(config: Mapping[str, Any]) -> Mapping[str, Any]:
    parameters = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if not isinstance(parameters, Mapping):
        raise InvalidFile(f"config.json: rope_scaling is {parameters!r}, not an object")
    if any(isinstance(value, Mapping) for value in parameters.values()):
        raise UnsupportedModel("config.json: rope parameters differ between layers, which Phi never has")
    return parameters


def _kind(parameters: Mapping[str, Any]) -> str:
    kind = parameters.get("rope_type") or parameters.get("type")
    if kind is None:
        named = [key for key in ("short_factor", "long_factor") if parameters.get(key)]
        if named:
            raise InvalidFile(f"config.json: rope scaling has {named[0]} but neither type nor rope_type")
        return "default"
    kind = str(kind).lower()
    if kind == "default" and parameters.get("long_factor"):
        raise InvalidFile("config.json: the rope type is default, yet there are long factors", "set it to longrope")
    return kind


def _factors(parameters: Mapping[str, Any], key: str, dimensions: int, kind: str) -> tuple[float, ...]:
    values = parameters.get(key)
    wanted = dimensions // 2
    if not values:
        raise InvalidFile(
            f"config.json: rope scaling is {kind}, but {key} is missing",
            f"it must list {wanted} numbers; use the config.json the checkpoint came with",
        )
    if not isinstance(values, list) or len(values) != wanted:
        count = len(values) if isinstance(values, list) else repr(values)
        raise InvalidFile(
            f"config.json: {key} has {count} values, not {wanted} (half of the {dimensions} rotated dimensions)",
            "use the config.json the checkpoint came with",
        )
    return tuple(positive(value, f"{key}[{place}]") for place, value in enumerate(values))


def _attention_factor(context: int, original: int) -> float:
    """sqrt(1 + ln(scale) / ln(original)) of the LongRoPE paper (arXiv 2402.13753), as Phi-3's own model code has it."""
    scale = context / original
    if scale <= 1 or original <= 1:
        return 1.0
    return math.sqrt(1 + math.log(scale) / math.log(original))
