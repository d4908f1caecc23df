"""Reads fields of a config.json that may hold anything."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from phitui.api import InvalidFile

_WHERE = "config.json"
_LARGEST = 2**31 - 1
"""llama.cpp keeps counts in 32 bits."""
_LARGEST_FLOAT = 3e38


def integer(
    config: Mapping[str, Any], key: str, default: int | None = None, minimum: int = 1, maximum: int = _LARGEST
) -> int:
    """A whole number from `minimum` to `maximum`. Without a default the key must be there. Raises InvalidFile."""
    value = config.get(key)
    if value is None:
        value = default
    if value is None:
        raise InvalidFile(f"{_WHERE}: {key} is missing", "this is not the config.json the checkpoint came with")
    if isinstance(value, bool) or not isinstance(value, int) or not minimum <= value <= maximum:
        raise InvalidFile(f"{_WHERE}: {key} is {value!r}, not a whole number from {minimum} to {maximum}")
    return value


def number(config: Mapping[str, Any], key: str, default: float) -> float:
    """A finite number above zero. Raises InvalidFile."""
    value = config.get(key)
    return default if value is None else positive(value, key)


def positive(value: Any, what: str) -> float:
    """`value` as a finite number above zero. Raises InvalidFile."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= _LARGEST_FLOAT:
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
