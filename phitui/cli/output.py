"""What commands print: one JSON document, or text for people; errors and progress on stderr."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from phitui.errors import EngineError, PhituiError

if TYPE_CHECKING:
    from phitui.actions.context import Context

json_flag: Callable[[Any], Any] = click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")


def emit(document: Any, as_json: bool, text: str = "") -> None:
    """Print the document under --json, the text otherwise."""
    click.echo(json.dumps(jsonable(document), ensure_ascii=False) if as_json else text)


def jsonable(value: Any) -> Any:
    """Dataclasses, paths, enums and tuples as plain JSON values; sizes stay bytes, times seconds."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: jsonable(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [jsonable(item) for item in value]
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return value


def say(text: str) -> None:
    """A line for people, on stderr."""
    click.echo(text, err=True)


def seen(context: Context, source: str) -> str:
    """If `source` is a checkpoint on the Hub: look at it, say what was fetched, and return its pinned name."""
    from phitui.actions import remote

    found = remote.seen(context, source, say)
    if found is None:
        return source
    say(found.text)
    return found.pinned


def speak(text: str) -> None:
    """A line for people, on stdout: for commands that print as they go and have no --json document to keep clean."""
    click.echo(text)


def failure(error: PhituiError, as_json: bool) -> int:
    """Show an error and return its exit code."""
    if as_json:
        details = {"message": error.message, "hint": error.hint}
        if isinstance(error, EngineError) and error.log_tail:
            details["log"] = error.log_tail
        click.echo(json.dumps({"error": details}, ensure_ascii=False))
    say(click.style("error: ", fg="red", bold=True) + error.message)
    if isinstance(error, EngineError) and error.log_tail:
        say(error.log_tail)
    if error.hint:
        say(click.style("  try: ", fg="cyan") + error.hint)
    return error.exit_code


def click_failure(error: click.ClickException, as_json: bool) -> int:
    """Show a mistake on the command line itself; exit code 2."""
    if as_json:
        click.echo(json.dumps({"error": {"message": error.format_message(), "hint": "see --help"}}))
    error.show(file=sys.stderr)
    return 2


def size(count: float) -> str:
    """Bytes for people, in binary units: 2.32 GiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024 or unit == "GiB":
            return f"{count:.0f} B" if unit == "B" else f"{count:.2f} {unit}"
        count /= 1024
    raise AssertionError


def table(headers: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> str:
    """Aligned columns; `right` are the indexes of right-aligned ones."""
    lines = [list(headers), *[list(row) for row in rows]]
    widths = [max(len(line[i]) for line in lines) for i in range(len(headers))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )
