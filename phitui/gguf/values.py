"""Metadata values from text and as text: `--set KEY=VALUE`, and what phitui gguf show prints."""

from __future__ import annotations

import contextlib
import difflib
import json
import math
import re
import struct
from collections.abc import Iterable
from typing import Any

from phitui.domain.tensors import Value, ValueType
from phitui.errors import UsageError
from phitui.gguf.encode import STRUCTS

NAMES = {
    ValueType.UINT8: "u8",
    ValueType.INT8: "i8",
    ValueType.UINT16: "u16",
    ValueType.INT16: "i16",
    ValueType.UINT32: "u32",
    ValueType.INT32: "i32",
    ValueType.UINT64: "u64",
    ValueType.INT64: "i64",
    ValueType.FLOAT32: "f32",
    ValueType.FLOAT64: "f64",
    ValueType.BOOL: "bool",
    ValueType.STRING: "str",
}
_TYPES = {name: type_ for type_, name in NAMES.items()}
_FLOATS = (ValueType.FLOAT32, ValueType.FLOAT64)
_BOOLS = {"true": True, "false": False, "1": True, "0": False, "yes": True, "no": False}
_KEY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-/]{0,254}")
_INTEGER = re.compile(r"[+-]?[0-9]{1,30}")
_FLOAT = re.compile(r"[+-]?([0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))([eE][+-]?[0-9]{1,4})?")


def type_name(type_: ValueType, is_array: bool = False) -> str:
    """u32, str, f32[]."""
    return NAMES[type_] + ("[]" if is_array else "")


def named(text: str) -> tuple[ValueType, bool]:
    """The type of a name such as u32 or str[]. Raises UsageError."""
    name = text.removesuffix("[]")
    if name not in _TYPES:
        raise UsageError(
            f"there is no type {text!r}", f"types: {', '.join(_TYPES)}; with [] behind it an array of them"
        )
    return _TYPES[name], name != text


def check_key(key: str) -> None:
    """Raise UsageError for what is no good name of a new key."""
    if not _KEY.fullmatch(key):
        raise UsageError(f"{key!r} is no name for a key", "letters, digits, _ . - / are: general.author")


def close(key: str, known: Iterable[str]) -> str:
    """A hint at keys that look like this one."""
    found = difflib.get_close_matches(key, list(known), 3)
    return f"did you mean: {', '.join(found)}" if found else "phitui gguf show lists the keys"


def guess(text: str) -> tuple[ValueType, bool]:
    """The type that a text looks like: bool, u32 (or what a number needs), f32, a list of those, else str."""
    if text.startswith("["):
        try:
            items = json.loads(text)
        except (ValueError, RecursionError):
            return ValueType.STRING, False
        if isinstance(items, list) and items:
            kinds = [guess(_plain(item))[0] if not isinstance(item, str) else ValueType.STRING for item in items]
            return _common(kinds), True
        return ValueType.STRING, isinstance(items, list)
    if text in ("true", "false"):
        return ValueType.BOOL, False
    if _INTEGER.fullmatch(text):
        number = int(text)
        wide = (ValueType.UINT32, ValueType.INT32, ValueType.UINT64, ValueType.INT64)
        return next((type_ for type_ in wide if _fits(number, type_)), ValueType.FLOAT64), False
    return (ValueType.FLOAT32 if _FLOAT.fullmatch(text) else ValueType.STRING), False


def _common(kinds: list[ValueType]) -> ValueType:
    """One type for all items: the only one, or the widest number."""
    distinct = set(kinds)
    if len(distinct) == 1:
        return kinds[0]
    order = [ValueType.UINT32, ValueType.INT32, ValueType.UINT64, ValueType.INT64, *_FLOATS]
    if not distinct <= set(order):
        return ValueType.STRING
    if ValueType.UINT64 in distinct and distinct & {ValueType.INT32, ValueType.INT64}:
        return ValueType.FLOAT64
    return max(distinct, key=order.index)


def parse(key: str, text: str, type_: ValueType, is_array: bool) -> Value:
    """The value of a text under a type; arrays are JSON lists. Raises UsageError for a value that does not fit."""
    if not is_array:
        return Value(type_, _scalar(key, text, type_))
    try:
        items = json.loads(text)
    except (ValueError, RecursionError):
        items = None
    if not isinstance(items, list):
        raise UsageError(
            f"{key} is {type_name(type_, True)}, and {_short(text)} is no list",
            f'a list is written as JSON: \'["a", "b"]\'; one entry is changed with {key}[0]=...',
        )
    strings = type_ is ValueType.STRING
    if any(isinstance(item, str) != strings or isinstance(item, list | dict) or item is None for item in items):
        raise UsageError(f"{key} is {type_name(type_, True)}: not every item of {_short(text)} is {NAMES[type_]}")
    return Value(type_, [_scalar(key, _plain(item), type_) for item in items], is_array=True)


def shortest(number: float) -> float:
    """The double with the fewest digits that is the same as F32: 1e-05 for 9.999999747378752e-06."""
    form = STRUCTS[ValueType.FLOAT32]
    for digits in range(1, 10) if math.isfinite(number) else ():
        short = float(f"{number:.{digits}g}")
        with contextlib.suppress(OverflowError):  # the largest numbers, rounded up
            if form.pack(short) == form.pack(number):
                return short
    return number


def _plain(item: Any) -> str:
    return item if isinstance(item, str) else json.dumps(item)


def _scalar(key: str, text: str, type_: ValueType) -> Any:
    if type_ is ValueType.STRING:
        return _string(key, text)
    if type_ is ValueType.BOOL:
        if text.lower() not in _BOOLS:
            raise _misfit(key, text, type_, "true or false")
        return _BOOLS[text.lower()]
    if type_ in _FLOATS:
        return _float(key, text, type_)
    if not _INTEGER.fullmatch(text) or not _fits(int(text), type_):
        low, high = _range(type_)
        raise _misfit(key, text, type_, f"a whole number from {low} to {high}")
    return int(text)


def _string(key: str, text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UsageError(f"the text for {key} is not UTF-8") from None
    if "\0" in text:
        raise UsageError(f"the text for {key} has a NUL character in it: llama.cpp would end it there")
    return text


def _float(key: str, text: str, type_: ValueType) -> float:
    """Rounded to the type, so that equal values are equal."""
    try:
        number = float(text)
        if not math.isfinite(number):
            raise ValueError
        form = STRUCTS[type_]
        found: float = form.unpack(form.pack(number))[0]
    except (ValueError, OverflowError, struct.error):
        raise _misfit(key, text, type_, "a finite number it can hold") from None
    return found


def _range(type_: ValueType) -> tuple[int, int]:
    bits = 8 * STRUCTS[type_].size
    signed = NAMES[type_].startswith("i")
    return (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)


def _fits(number: int, type_: ValueType) -> bool:
    low, high = _range(type_)
    return low <= number <= high


def _misfit(key: str, text: str, type_: ValueType, wanted: str) -> UsageError:
    return UsageError(f"{key} is {NAMES[type_]}: {_short(text)} does not fit", f"give {wanted}")


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:37] + "...")
