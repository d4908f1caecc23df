"""Ollama's Modelfile: a parser that reads what Ollama reads, quirks and all, and a writer whose output survives it.

The grammar is that of Ollama's parser/parser.go (v0.33): one command a line; a value ends at the first newline where
its quotes are balanced; there are no escapes; runes that Go calls unprintable are dropped without a word. Hence the
writer refuses what cannot be said, and everything written is parsed back and compared.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from dataclasses import dataclass

from phitui.api import InvalidFile, UsageError

COMMANDS = (
    "from",
    "license",
    "template",
    "system",
    "adapter",
    "draft",
    "renderer",
    "parser",
    "parameter",
    "message",
    "requires",
)
ROLES = ("system", "user", "assistant")
_BLANKS = " \t"
_NEWLINES = "\r\n"
_FENCE = '"""'


@dataclass(frozen=True)
class Command:
    """A command. `name` is lower case; `key` is the name of a PARAMETER or the role of a MESSAGE, else empty."""

    name: str
    value: str
    key: str = ""


def parse(text: str | bytes) -> tuple[Command, ...]:
    """The commands of a Modelfile. Raises InvalidFile naming the line, where `ollama create` would fail."""
    commands = _Scanner(_decoded(text) if isinstance(text, bytes) else text.removeprefix("\ufeff")).commands()
    if not any(command.name == "from" for command in commands):
        raise InvalidFile("the Modelfile has no FROM line")
    return tuple(commands)


def write(commands: Sequence[Command]) -> str:
    """A Modelfile with these commands. Raises UsageError for a value that no Modelfile can hold."""
    text = "".join(f"{_line(command)}\n" for command in commands)
    back = parse(text)
    if back != tuple(commands):
        changed = next((old for old, new in zip(commands, back, strict=False) if old != new), commands[-1])
        raise UsageError(f"{changed.name.upper()} cannot be written so that Ollama reads it back unchanged")
    return text


def quoted(value: str, what: str = "the text") -> str:
    """`value` as it stands in a Modelfile: bare where that is safe, else in triple quotes."""
    _check(value, what)
    multiline = any(char in value for char in _NEWLINES)
    if multiline or value != value.strip() or value.startswith('"'):
        return f"{_FENCE}{value}{_FENCE}"
    return value


def _line(command: Command) -> str:
    what = f"{command.name.upper()} {command.key}".rstrip()
    return f"{what} {quoted(command.value, what)}"


def _check(value: str, what: str) -> None:
    lost = next((char for char in value if not _kept(char)), None)
    if lost is not None:
        raise UsageError(
            f"{what} contains U+{ord(lost):04X}, which Ollama drops from Modelfiles without a word",
            "rename the file or its directory"
            if what == "FROM"
            else "leave that character out; or use --push, which sends the text over Ollama's HTTP API and keeps it",
        )
    lines = value.replace("\r", "\n").split("\n")
    if any(line.rstrip().endswith(_FENCE) for line in lines[:-1]):
        raise UsageError(
            f'{what} has a line that ends with """, which ends the text there in a Modelfile',
            'put something after the """; or use --push, which sends the text over Ollama\'s HTTP API',
        )


def _kept(char: str) -> bool:
    """Go's strconv.IsPrint, and the blanks and newlines that survive inside a value."""
    return char.isprintable() or char in _BLANKS + _NEWLINES


def _decoded(data: bytes) -> str:
    """UTF-8, or UTF-16 where the byte order mark says so; invalid bytes become U+FFFD, as in Ollama."""
    for mark, encoding in ((codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be")):
        if data.startswith(mark):
            return data[len(mark) :].decode(encoding, "replace")
    return data.removeprefix(codecs.BOM_UTF8).decode("utf-8", "replace")


class _Scanner:
    """Reads a Modelfile character by character: the rules differ from place to place."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def commands(self) -> list[Command]:
        found = []
        while self._skip():
            name = self._name()
            key = self._key(name) if name in ("parameter", "message") else ""
            found.append(Command(name, self._value(name), key))
        return found

    def _skip(self) -> bool:
        """Go on to the next command, over blanks, empty lines and comments. False at the end."""
        while self._at < len(self._text):
            char = self._text[self._at]
            if char == "#":
                while self._at < len(self._text) and self._text[self._at] not in _NEWLINES:
                    self._at += 1
            elif char in _BLANKS + _NEWLINES:
                self._at += 1
            else:
                return True
        return False

    def _name(self) -> str:
        """The command word, up to its one blank. An unprintable first character is dropped, as Ollama does."""
        start = self._at
        self._at += 1
        while self._at < len(self._text) and self._text[self._at] not in _BLANKS:
            char = self._text[self._at]
            if not (char.isascii() and char.isalpha()):
                raise self._wrong(f"command must be one of {', '.join(COMMANDS)}")
            self._at += 1
        if self._at == len(self._text):
            raise self._wrong(f"{self._text[start:]!r} has no value")
        word = "".join(filter(str.isprintable, self._text[start : self._at])).lower()
        if word not in COMMANDS:
            raise self._wrong(f"command must be one of {', '.join(COMMANDS)}")
        self._at += 1
        return word

    def _key(self, command: str) -> str:
        """The name of a PARAMETER or the role of a MESSAGE: exactly one blank before it and one after it."""
        start = self._at
        while self._at < len(self._text) and self._text[self._at] not in _BLANKS:
            char = self._text[self._at]
            allowed = char.isascii() and (
                char.isalpha() or (command == "parameter" and (char.isdigit() or char == "_"))
            )
            if not allowed:
                raise self._wrong(f"{command} has no value, or {char!r} in its name")
            self._at += 1
        key = self._text[start : self._at]
        if self._at == len(self._text):
            raise self._wrong(f"{command} {key} has no value")
        if command == "message" and key not in ROLES:
            raise self._wrong(f"message role must be one of {', '.join(ROLES)}")
        if not key:
            raise self._wrong(f"{command} takes exactly one blank before its name")
        self._at += 1
        return key

    def _value(self, command: str) -> str:
        kept: list[str] = []
        while self._at < len(self._text):
            char = self._text[self._at]
            self._at += 1
            if char in _NEWLINES:
                value = _unquoted("".join(kept))
                if value is not None:
                    return value
            if _kept(char):
                kept.append(char)
        value = _unquoted("".join(kept))
        if value is None:
            raise self._wrong(f"the quotes of {command} are not closed")
        return value

    def _wrong(self, problem: str) -> InvalidFile:
        line = self._text.replace("\r\n", "\n").count("\n", 0, self._at) + 1
        return InvalidFile(f"the Modelfile is wrong in line {line}: {problem}")


def _unquoted(text: str) -> str | None:
    """A value without its quotes; None while they are open."""
    text = text.strip(_BLANKS + _NEWLINES)
    for quote in (_FENCE, '"'):
        if text.startswith(quote):
            closed = len(text) >= 2 * len(quote) and text.endswith(quote)
            return text[len(quote) : -len(quote)] if closed else None
    return text
