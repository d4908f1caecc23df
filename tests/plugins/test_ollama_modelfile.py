"""The parser reads what Ollama reads (cases replayed against its own parser), and what the writer writes comes back."""

from __future__ import annotations

import codecs
import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from phitui_ollama.modelfile import Command, parse, quoted, write

from phitui.errors import InvalidFile, PhituiError, UsageError


def values(text: str | bytes) -> list[tuple[str, str, str]]:
    return [(command.name, command.key, command.value) for command in parse(text)]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("FROM x # hi", ("from", "", "x # hi")),
        ("from   x  ", ("from", "", "x")),
        ("From\tx", ("from", "", "x")),
        ('SYSTEM "hi"', ("system", "", "hi")),
        ('SYSTEM ""', ("system", "", "")),
        ('SYSTEM """"""', ("system", "", "")),
        ('SYSTEM """a "b" """', ("system", "", 'a "b" ')),
        ('SYSTEM """a\nb"""', ("system", "", "a\nb")),
        ('SYSTEM """\r\na\r\n"""', ("system", "", "\r\na\r\n")),
        ('SYSTEM "a\nb"', ("system", "", "a\nb")),
        ('SYSTEM "foo" bar\nFROM y"', ("system", "", 'foo" bar\nFROM y')),
        ('SYSTEM """a """ b"""', ("system", "", 'a """ b')),
        ("SYSTEM 'a b'", ("system", "", "'a b'")),
        ('SYSTEM a \\" b', ("system", "", 'a \\" b')),
        ('SYSTEM say "hi"', ("system", "", 'say "hi"')),
        ("SYSTEM a\u00a0b\u200bc", ("system", "", "abc")),
        ("SYSTEM a\tb", ("system", "", "a\tb")),
        ("SYSTEM ", ("system", "", "")),
        ("PARAMETER stop <|end|>", ("parameter", "stop", "<|end|>")),
        ("PARAMETER num_ctx   4096", ("parameter", "num_ctx", "4096")),
        ("MESSAGE user hello: there", ("message", "user", "hello: there")),
        ("LICENSE MIT", ("license", "", "MIT")),
    ],
)
def test_one_command(line: str, expected: tuple[str, str, str]) -> None:
    assert values(f"FROM m\n{line}\nREQUIRES 0.14.0")[1] == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# only a comment",
        "SYSTEM x",
        "FROM",
        "SYSTEM\nFROM x",
        "FROM x\nFOO y",
        "FROM x\nSYS-TEM y",
        "FROM x\nPARAMETER  stop y",
        "FROM x\nPARAMETER stop\n",
        "FROM x\nPARAMETER top-k 3",
        "FROM x\nMESSAGE tool y",
        "FROM x\nMESSAGE User y",
        'FROM x\nSYSTEM "y',
        'FROM x\nSYSTEM """y""',
        'FROM x\nSYSTEM """"',
    ],
)
def test_refused(text: str) -> None:
    with pytest.raises(InvalidFile):
        parse(text)


def test_the_line_of_a_mistake_is_named() -> None:
    with pytest.raises(InvalidFile, match="line 3"):
        parse("FROM x\r\n# comment\r\nNONSENSE y\r\n")


def test_comments_blank_lines_and_order() -> None:
    text = "\n  # a comment with FROM y\n\n PARAMETER stop a\n\tFROM x\n#SYSTEM no\nPARAMETER stop b"
    assert values(text) == [("parameter", "stop", "a"), ("from", "", "x"), ("parameter", "stop", "b")]


@pytest.mark.parametrize(
    "data",
    [
        codecs.BOM_UTF8 + "FROM ü".encode(),
        codecs.BOM_UTF16_LE + "FROM ü".encode("utf-16-le"),
        codecs.BOM_UTF16_BE + "FROM ü".encode("utf-16-be"),
        "FROM ü".encode(),
    ],
)
def test_encodings(data: bytes) -> None:
    assert values(data) == [("from", "", "ü")]


def test_invalid_bytes_become_replacement_characters() -> None:
    assert values(b"FROM a\xffb") == [("from", "", "a\ufffdb")]


def test_quotes_only_where_needed() -> None:
    assert quoted("You are Phi.") == "You are Phi."
    assert quoted('say "hi"') == 'say "hi"'
    assert quoted(" x") == '""" x"""'
    assert quoted('"x"') == '""""x""""'
    assert quoted("a\nb") == '"""a\nb"""'


@pytest.mark.parametrize("value", ["a\u00a0b", "a\u200cb", "\x1b[31m", "soft\u00adhyphen", "\ue000"])
def test_what_ollama_would_drop_is_refused_with_advice(value: str) -> None:
    with pytest.raises(UsageError, match=r"U\+[0-9A-F]{4}") as caught:
        write([Command("from", "m"), Command("system", value)])
    assert "HTTP API" in caught.value.hint


def test_a_line_that_would_end_the_text_is_refused() -> None:
    with pytest.raises(UsageError, match='ends with """'):
        write([Command("from", "m"), Command("system", 'x """  \ny')])


PIECES = ['"', '"""', "\n", "\r", "\t", " ", "a", "#", "é", "FROM ", "\\", "🙂"]
TEXT = st.lists(st.sampled_from(PIECES), max_size=12).map("".join)


@given(st.lists(st.tuples(st.sampled_from(["system", "template", "license", "adapter"]), TEXT), max_size=4), TEXT, TEXT)
def test_what_is_written_is_read_back(pairs: list[tuple[str, str]], stop: str, said: str) -> None:
    commands = [
        Command("from", "./model.gguf"),
        *[Command(name, value) for name, value in pairs],
        Command("parameter", stop, "stop"),
        Command("message", said, "user"),
    ]
    try:
        text = write(commands)
    except UsageError:
        return
    assert parse(text) == tuple(commands)
    assert parse(text.encode()) == tuple(commands)


@given(st.text(max_size=80))
def test_nothing_but_our_errors_leaves_the_parser(text: str) -> None:
    with contextlib.suppress(PhituiError):
        parse(f"FROM x\n{text}")
