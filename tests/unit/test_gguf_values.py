"""Metadata values from text: the types of the format, what fits them, what a text looks like."""

from __future__ import annotations

import math
import struct
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phitui.domain.tensors import FilePlan, Value, ValueType
from phitui.errors import UsageError
from phitui.gguf.encode import encode_header
from phitui.gguf.values import guess, named, parse, shortest, type_name

RANGES = {
    ValueType.UINT8: (0, 255),
    ValueType.INT8: (-128, 127),
    ValueType.UINT16: (0, 65535),
    ValueType.INT16: (-32768, 32767),
    ValueType.UINT32: (0, 2**32 - 1),
    ValueType.INT32: (-(2**31), 2**31 - 1),
    ValueType.UINT64: (0, 2**64 - 1),
    ValueType.INT64: (-(2**63), 2**63 - 1),
}


@pytest.mark.parametrize("type_", RANGES, ids=lambda type_: type_.name)
def test_integers_keep_to_their_range(type_: ValueType) -> None:
    low, high = RANGES[type_]
    for number in (low, high, 0, 1):
        assert parse("k", str(number), type_, False) == Value(type_, number)
    for text in (str(low - 1), str(high + 1), "1.5", "", "x", "1e3", "0x10", "١", "1_000", " 1", "9" * 5000, "true"):
        with pytest.raises(UsageError, match="does not fit"):
            parse("k", text, type_, False)


def test_floats_are_rounded_to_what_is_stored() -> None:
    assert parse("k", "0.1", ValueType.FLOAT32, False).value == struct.unpack("<f", struct.pack("<f", 0.1))[0]
    assert parse("k", "0.1", ValueType.FLOAT64, False).value == 0.1
    assert parse("k", "7", ValueType.FLOAT32, False) == Value(ValueType.FLOAT32, 7.0)
    for text in ("nan", "inf", "-inf", "1e39", "x", ""):
        with pytest.raises(UsageError, match=r"k is f32: .* does not fit"):
            parse("k", text, ValueType.FLOAT32, False)


def test_bools_and_strings() -> None:
    assert [parse("k", text, ValueType.BOOL, False).value for text in ("true", "False", "1", "0")] == [1, 0, 1, 0]
    with pytest.raises(UsageError, match="true or false"):
        parse("k", "2", ValueType.BOOL, False)
    assert parse("k", "تجربة", ValueType.STRING, False) == Value.string("تجربة")
    assert parse("k", "", ValueType.STRING, False) == Value.string("")
    with pytest.raises(UsageError, match="NUL"):
        parse("k", "a\0b", ValueType.STRING, False)
    with pytest.raises(UsageError, match="not UTF-8"):
        parse("k", "\udc80", ValueType.STRING, False)


def test_arrays_are_json_lists_of_one_type() -> None:
    assert parse("k", "[1, 2]", ValueType.UINT8, True) == Value.array(ValueType.UINT8, [1, 2])
    assert parse("k", '["a", ""]', ValueType.STRING, True) == Value.array(ValueType.STRING, ["a", ""])
    assert parse("k", "[true]", ValueType.BOOL, True) == Value.array(ValueType.BOOL, [True])
    assert parse("k", "[]", ValueType.INT32, True) == Value.array(ValueType.INT32, [])
    for text, type_ in [
        ("1", ValueType.UINT8),
        ("{}", ValueType.UINT8),
        ("[", ValueType.UINT8),
        ("[256]", ValueType.UINT8),
        ("[1.5]", ValueType.UINT8),
        ("[null]", ValueType.UINT8),
        ("[[1]]", ValueType.UINT8),
        ('["1"]', ValueType.UINT8),
        ("[1]", ValueType.STRING),
        ("[NaN]", ValueType.FLOAT32),
        ("[" * 100_000, ValueType.UINT8),
    ]:
        with pytest.raises(UsageError):
            parse("k", text, type_, True)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("5", "u32"),
        ("-5", "i32"),
        ("5000000000", "u64"),
        ("-5000000000", "i64"),
        ("9" * 25, "f64"),
        ("1.5", "f32"),
        ("1e-5", "f32"),
        ("true", "bool"),
        ("False", "str"),
        ("", "str"),
        ("1.2.3", "str"),
        ("[1, 2]", "u32[]"),
        ("[1, -2]", "i32[]"),
        ("[1, 2.5]", "f32[]"),
        ('["a"]', "str[]"),
        ('["1", "2"]', "str[]"),
        ("[]", "str[]"),
        ("[broken", "str"),
        ("[18446744073709551615, -1]", "f64[]"),
    ],
)
def test_guessed_types(text: str, expected: str) -> None:
    assert type_name(*guess(text)) == expected
    parse("k", text, *guess(text))


@given(st.text(max_size=30))
def test_any_text_is_a_value_of_its_guessed_type_or_refused(text: str) -> None:
    try:
        value = parse("k", text, *guess(text))
    except UsageError:
        return
    encode_header(FilePlan("", {"k": value}, ()))


def test_names_of_types() -> None:
    for type_ in ValueType:
        if type_ is not ValueType.ARRAY:
            assert named(type_name(type_)) == (type_, False)
            assert named(type_name(type_, True)) == (type_, True)
    for text in ("", "int", "array", "u33", "[]", "u32[][]"):
        with pytest.raises(UsageError, match="no type"):
            named(text)


@given(st.floats(width=32))
def test_shortest_is_the_same_number(number: float) -> None:
    short = shortest(number)
    assert math.isnan(number) or struct.pack("<f", short) == struct.pack("<f", number)
    assert _digits(short) <= _digits(number)


def _digits(number: float) -> int:
    """How many digits count in a number as it is written: 1e+12 has one."""
    return len(Decimal(repr(number)).normalize().as_tuple().digits)
