"""Options declared once, as a dataclass on a plugin's offer; rendered to CLI flags, TUI forms and recipe keys.

    @dataclass(frozen=True)
    class MyOptions:
        name: str = option("", help="name of the model in Ollama")
        gpu: int | None = option(None, help="layers on the GPU")
        stop: tuple[str, ...] = option((), help="extra stop text, repeatable")

Field types: str, int, float, bool, Path, any of these `| None`, and `tuple[str, ...]` for repeatable ones.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from phitui.errors import UsageError


@dataclass(frozen=True)
class NoOptions:
    """For offers that have none."""


@dataclass(frozen=True)
class OptionSpec:
    """One option, ready to be rendered. `kind` is str, int, float, bool or Path; `name` is the recipe key."""

    name: str
    kind: type
    default: Any
    help: str
    choices: tuple[str, ...] = ()
    optional: bool = False
    repeatable: bool = False
    minimum: float | None = None
    maximum: float | None = None
    advanced: bool = False
    words: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    flag_name: str = ""
    joined: bool = False
    positional: bool = False
    planned: str = ""

    @property
    def flag(self) -> str:
        """The long command line flag."""
        return self.flag_name or "--" + self.name.replace("_", "-")

    def text(self, value: Any) -> str:
        """A value as it is written after the flag."""
        for word, meant in self.words.items():
            if value == meant and type(value) is type(meant):
                return word
        return ",".join(f"{item:g}" for item in value) if self.joined else str(value)


def option(
    default: Any,
    *,
    help: str,  # noqa: A002  (the word every command line library uses)
    choices: Sequence[str] = (),
    minimum: float | None = None,
    maximum: float | None = None,
    advanced: bool = False,
    words: Mapping[str, Any] | None = None,
    flag: str = "",
    joined: bool = False,
    positional: bool = False,
    planned: str = "",
) -> Any:
    """Declare a field of an options dataclass. `advanced` options are folded away in forms.

    `words` stand for values ({"auto": None, "all": -1}) and are accepted wherever a value is; a yes-or-no option with
    words takes a word instead of being a switch. `flag` is the command line flag where it is not the field's name.
    `joined`: several values in one text, with commas between them. `positional`: on the command line it is an
    argument without a flag, which must be there. `planned`: the load option (phitui.domain.load) that fills it in
    where a plan is at hand; an option of the same name needs no word of it.
    """
    details = {
        "help": help,
        "choices": tuple(choices),
        "minimum": minimum,
        "maximum": maximum,
        "advanced": advanced,
        "words": dict(words or {}),
        "flag_name": flag,
        "joined": joined,
        "positional": positional,
        "planned": planned,
    }
    return dataclasses.field(default=default, metadata={"phitui": details})


def specs(options: type) -> tuple[OptionSpec, ...]:
    """The options of a dataclass, in order. Raises TypeError for a field type that cannot be rendered."""
    return _specs(options)


@cache
def _specs(options: type) -> tuple[OptionSpec, ...]:
    hints = typing.get_type_hints(options)
    return tuple(_spec(field, hints[field.name]) for field in dataclasses.fields(options))


def _spec(field: dataclasses.Field[Any], hint: Any) -> OptionSpec:
    details = field.metadata.get("phitui", {})
    optional = repeatable = False
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        inner = [arg for arg in typing.get_args(hint) if arg is not type(None)]
        hint, optional, origin = inner[0], True, typing.get_origin(inner[0])
    if origin is tuple:
        hint, repeatable = typing.get_args(hint)[0], True
    if hint not in (str, int, float, bool, Path):
        raise TypeError(f"option {field.name!r}: {hint!r} cannot be rendered as a flag or a form field")
    return OptionSpec(
        field.name, hint, field.default, optional=optional, repeatable=repeatable, **(details or {"help": ""})
    )


def build(options: type, values: Mapping[str, Any]) -> Any:
    """Make the dataclass from plain values (flags, a form, TOML or JSON). Raises UsageError on what does not fit."""
    known = {spec.name: spec for spec in specs(options)}
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise UsageError(f"unknown option {unknown[0]!r}", f"known here: {', '.join(known) or 'none'}")
    return options(**{name: _coerce(known[name], value) for name, value in values.items()})


def _coerce(spec: OptionSpec, value: Any) -> Any:
    if isinstance(value, str) and value.lower() in spec.words:
        return spec.words[value.lower()]
    if spec.joined and isinstance(value, str):
        value = [part.strip() for part in value.split(",") if part.strip()]
    if value is None:
        if spec.optional:
            return None
        raise UsageError(f"{spec.flag} needs a value")
    if spec.repeatable:
        if isinstance(value, str):
            raise UsageError(f"{spec.flag} needs a list of values")
        return tuple(_scalar(spec, item) for item in value)
    return _scalar(spec, value)


def _scalar(spec: OptionSpec, value: Any) -> Any:
    if spec.kind is bool:
        if isinstance(value, bool):
            return value
        raise UsageError(f"{spec.flag} is yes or no, not {value!r}")
    try:
        converted = spec.kind(value)
    except (TypeError, ValueError):
        raise UsageError(f"{spec.flag} is a {spec.kind.__name__}, not {value!r}") from None
    if spec.choices and str(converted) not in spec.choices:
        raise UsageError(f"{spec.flag} cannot be {value!r}", f"choices: {', '.join(spec.choices)}")
    low, high = spec.minimum, spec.maximum
    if (low is not None and converted < low) or (high is not None and converted > high):
        raise UsageError(
            f"{spec.flag} is out of range: {value}", f"from {low} to {high}" if high is not None else f"{low} or more"
        )
    return converted


def plain(instance: Any) -> dict[str, Any]:
    """The values that differ from the defaults, JSON-ready: what a recipe or a job's request stores."""
    values: dict[str, Any] = {}
    for spec in specs(type(instance)):
        value = getattr(instance, spec.name)
        if value != spec.default:
            values[spec.name] = str(value) if isinstance(value, Path) else list(value) if spec.repeatable else value
    return values


def as_flags(instance: Any) -> list[str]:
    """The command line flags that make these options what they are, without those at their default."""
    found: list[str] = []
    for spec in specs(type(instance)):
        value = getattr(instance, spec.name)
        if value == spec.default or not spec.help:
            continue
        if spec.positional:
            found.append(spec.text(value))
        elif spec.kind is bool and not spec.words:
            found.append(spec.flag if value or spec.flag.startswith("--no-") else f"--no-{spec.flag[2:]}")
        elif spec.repeatable and not spec.joined:
            found += [part for item in value for part in (spec.flag, str(item))]
        else:
            found += [spec.flag, spec.text(value)]
    return found
