"""A small evaluator of Go's text/template: as much of it as the Modelfiles of phitui use.

With it an export is checked before it is written: the prompt that Ollama will make of the TEMPLATE is compared with the
one of the model's own Jinja template. Known here: text, trim markers, comments, fields, variables, if / else if / else,
range with one or two variables, pipes, and the functions and, or, not, eq, ne, len, json. Anything else is an error.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from phitui.api import InvalidFile

_ACTION = re.compile(r"\{\{(?P<left>-\s)?(?P<body>.*?)(?P<right>\s-)?\}\}", re.DOTALL)
_TOKEN = re.compile(
    r"""\s*(?:(?P<text>"(?:[^"\\]|\\.)*"|`[^`]*`)|(?P<number>-?\d+)|(?P<path>\$?\w*(?:\.\w+)+|\$\w*|\.)"""
    r"""|(?P<word>\w+)|(?P<mark>:=|[|(),]))"""
)
_BLANKS = " \t\r\n"


class Json(dict[str, Any]):
    """A mapping that prints as JSON, as the arguments of a tool call do in Ollama."""


@dataclass
class _Print:
    code: str


@dataclass
class _If:
    branches: list[tuple[str, list[_Node]]] = field(default_factory=list)
    """(condition, what it shows), in order; the condition of a plain else is empty."""


@dataclass
class _Range:
    code: str
    names: list[str]
    body: list[_Node] = field(default_factory=list)
    otherwise: list[_Node] = field(default_factory=list)


_Node = str | _Print | _If | _Range


class GoTemplate:
    """A parsed template. Raises InvalidFile for what is not a template or not known here."""

    def __init__(self, source: str) -> None:
        self._actions = _split(source)
        self._nodes, end = self._parse()
        if end:
            raise InvalidFile(f"the template has {{{{ {end} }}}} without a beginning")

    def render(self, data: Mapping[str, Any]) -> str:
        """The text for these values; a missing field is empty, as the zero value of Go's struct field is."""
        return "".join(_render(self._nodes, data, {"$": data}))

    def _parse(self) -> tuple[list[_Node], str]:
        """Nodes up to the next else or end, and that action's text; "" at the end of the template."""
        nodes: list[_Node] = []
        for text, code in self._actions:
            if text:
                nodes.append(text)
            word = code.partition(" ")[0]
            if word in ("end", "else"):
                return nodes, code
            if word == "if":
                nodes.append(self._if(code[2:].strip()))
            elif word == "range":
                nodes.append(self._range(code[5:].strip()))
            elif code and not code.startswith("/*"):
                nodes.append(_Print(code))
        return nodes, ""

    def _if(self, condition: str) -> _If:
        node = _If()
        while True:
            body, end = self._parse()
            node.branches.append((condition, body))
            if end == "end":
                return node
            if not end or (node.branches[-1][0] == "" and len(node.branches) > 1):
                raise InvalidFile("the template has an if without an end")
            condition = end.removeprefix("else").strip().removeprefix("if").strip()

    def _range(self, code: str) -> _Range:
        left, assigned, right = code.partition(":=")
        names = [name.strip() for name in left.split(",")] if assigned else []
        node = _Range(right.strip() if assigned else code, names)
        node.body, end = self._parse()
        if end == "else":
            node.otherwise, end = self._parse()
        if end != "end":
            raise InvalidFile("the template has a range without an end")
        return node


def _split(source: str) -> Iterator[tuple[str, str]]:
    """(text, the action behind it), trim markers applied; the last action is empty."""
    at, trim = 0, False
    for match in _ACTION.finditer(source):
        text = source[at : match.start()]
        text = text.lstrip(_BLANKS) if trim else text
        yield text.rstrip(_BLANKS) if match["left"] else text, match["body"].strip()
        at, trim = match.end(), bool(match["right"])
    rest = source[at:]
    if "{{" in rest:
        raise InvalidFile("the template has an action that is not closed")
    yield rest.lstrip(_BLANKS) if trim else rest, ""


def _render(nodes: Sequence[_Node], dot: Any, names: dict[str, Any]) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, str):
            yield node
        elif isinstance(node, _Print):
            yield _printed(_evaluate(node.code, dot, names))
        elif isinstance(node, _If):
            for condition, body in node.branches:
                if not condition or _evaluate(condition, dot, names):
                    yield from _render(body, dot, names)
                    break
        else:
            yield from _repeat(node, dot, names)


def _repeat(node: _Range, dot: Any, names: dict[str, Any]) -> Iterator[str]:
    items = _evaluate(node.code, dot, names) or ()
    if not items:
        yield from _render(node.otherwise, dot, names)
    for index, item in enumerate(items):
        values = (index, item) if len(node.names) == 2 else (item,)
        yield from _render(node.body, item, {**names, **dict(zip(node.names, values, strict=False))})


def _printed(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:
        return ""
    return _json(value) if isinstance(value, (Mapping, list, tuple)) else str(value)


def _json(value: Any) -> str:
    """As Go's json.Marshal writes it: compact, with <, > and & escaped."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _both(*values: Any) -> Any:
    return next((value for value in values if not value), values[-1])


def _either(*values: Any) -> Any:
    return next((value for value in values if value), values[-1])


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "and": _both,
    "or": _either,
    "not": lambda value: not value,
    "eq": lambda first, *others: first in others,
    "ne": lambda first, second: first != second,
    "len": len,
    "json": _json,
}
_CONSTANTS = {"true": True, "false": False, "nil": None}


def _evaluate(code: str, dot: Any, names: Mapping[str, Any]) -> Any:
    tokens = _tokens(code)
    value = _pipeline(tokens, dot, names)
    if tokens:
        raise InvalidFile(f"the template has {tokens[0][1]!r} where nothing is expected: {code}")
    return value


def _tokens(code: str) -> list[tuple[str, str]]:
    found, at, code = [], 0, code.strip()
    while at < len(code):
        match = _TOKEN.match(code, at)
        if match is None:
            raise InvalidFile(f"the template has an expression that phitui does not know: {code}")
        found.append((str(match.lastgroup), match[str(match.lastgroup)]))
        at = match.end()
    return found


def _pipeline(tokens: list[tuple[str, str]], dot: Any, names: Mapping[str, Any]) -> Any:
    value = _call(tokens, dot, names, ())
    while tokens and tokens[0][1] == "|":
        tokens.pop(0)
        value = _call(tokens, dot, names, (value,))
    return value


def _call(tokens: list[tuple[str, str]], dot: Any, names: Mapping[str, Any], piped: tuple[Any, ...]) -> Any:
    """An operand, or a function with its operands; `piped` is the last one of them."""
    if not tokens:
        raise InvalidFile("the template has an empty expression")
    kind, word = tokens[0]
    if kind != "word" or word in _CONSTANTS:
        return _operand(tokens, dot, names)
    tokens.pop(0)
    if word not in _FUNCTIONS:
        raise InvalidFile(f"the template calls {word!r}, which phitui does not know")
    values = []
    while tokens and tokens[0][1] not in ("|", ")"):
        values.append(_operand(tokens, dot, names))
    try:
        return _FUNCTIONS[word](*values, *piped)
    except (TypeError, IndexError):
        raise InvalidFile(f"the template calls {word} with the wrong values") from None


def _operand(tokens: list[tuple[str, str]], dot: Any, names: Mapping[str, Any]) -> Any:
    kind, word = tokens.pop(0)
    if kind == "text":
        return word[1:-1] if word.startswith("`") else json.loads(word)
    if kind == "number":
        return int(word)
    if kind == "word" and word in _CONSTANTS:
        return _CONSTANTS[word]
    if kind == "path":
        return _path(word, dot, names)
    if word != "(":
        raise InvalidFile(f"the template has {word!r} where a value is expected")
    value = _pipeline(tokens, dot, names)
    if not tokens or tokens.pop(0)[1] != ")":
        raise InvalidFile("the template has a parenthesis that is not closed")
    return value


def _path(path: str, dot: Any, names: Mapping[str, Any]) -> Any:
    first, *fields = path.split(".")
    if first and first not in names:
        raise InvalidFile(f"the template uses {first}, which it does not define")
    value = names[first] if first else dot
    for name in fields:
        if name:
            value = value.get(name) if isinstance(value, Mapping) else None
    return value
