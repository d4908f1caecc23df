"""Reads fields of a config.json that may hold anything."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from phitui.api import InvalidFile

_WHERE = "config.json"


def integer(config: Mapping[str, Any], key: str, default: int | None = None, minimum: int = 1) -> int:
    """A whole number of at least `minimum`. Without a default the key must be there. Raises InvalidFile."""
    value = config.get(key)
    if value is None:
        value = default
    if value is None:
        raise InvalidFile(f"{_WHERE}: {key} is missing", "this is not the config.json the checkpoint came with")
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise InvalidFile(f"{_WHERE}: {key} is {value!r}, not a whole number of at least {minimum}")
    return value


def number(config: Mapping[str, Any], key: str, default: float) -> float:
    """A finite number above zero. Raises InvalidFile."""
    value = config.get(key)
    return default if value is None else positive(value, key)


def positive(value: Any, what: str) -> float:
    """`value` as a finite number above zero. Raises InvalidFile."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value <= 0:
        raise InvalidFile(f"{_WHERE}: {what} is {value!r}, not a number above zero")
    return float(value)


def flag(config: Mapping[str, Any], key: str, default: bool = False) -> bool:
    """True or false. Raises InvalidFile."""
    value = config.get(key)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise InvalidFile(f"{_WHERE}: {key} is {value!r}, not true or false")
    return value
