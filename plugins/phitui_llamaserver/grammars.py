"""Texts in the files that llama-server, a shell, systemd and compose read, each by its own rules of quoting."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence

_PLAIN_WORD = re.compile(r"[A-Za-z0-9_/.,:=@+-]+")
_INI_CONTROL = re.compile(r"[;#\r\n]")


def shell_lines(words: Sequence[str]) -> str:
    """A program and its flags, each with a value and on a line of its own; all are quoted already."""
    program, *rest = words
    pairs = zip(rest[::2], rest[1::2], strict=True)
    return " \\\n  ".join([program, *(f"{flag} {value}" for flag, value in pairs)])


def ini_can_say(value: str) -> bool:
    """Whether a router preset can hold this value: it knows neither quotes nor escapes, and `;` and `#` end a value."""
    return bool(value) and value == value.strip(" \t") and not _INI_CONTROL.search(value)


def ini(section: str, values: Mapping[str, str]) -> str:
    """A router preset with one model. All values must pass `ini_can_say`."""
    assert all(map(ini_can_say, values.values()))
    return "".join([f"[{section}]\n", *(f"{name} = {value}\n" for name, value in values.items())])


def systemd_word(word: str) -> str:
    """One word of an ExecStart: `%` and `$` doubled, and in quotes with C escapes where it is not plain."""
    if _PLAIN_WORD.fullmatch(word):
        return word
    text = ""
    for character in word:
        if character in '"\\':
            text += "\\" + character
        elif character in "%$":
            text += character * 2
        elif character.isprintable():
            text += character
        else:
            text += "".join(f"\\x{byte:02x}" for byte in character.encode())
    return f'"{text}"'


def yaml(text: str) -> str:
    """A string of a compose file: as JSON, which YAML accepts, with `$` doubled (a single one is a variable)."""
    quoted = json.dumps(text.replace("$", "$$"), ensure_ascii=False)
    return "".join(each if each.isprintable() or ord(each) > 0xFFFF else f"\\u{ord(each):04x}" for each in quoted)
