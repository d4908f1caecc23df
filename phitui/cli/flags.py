"""Option dataclasses of plugins as command line flags (options are declared once, see phitui.domain.options)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import click

from phitui.domain.options import OptionSpec, build, specs

_TYPES: dict[type, click.ParamType[Any]] = {
    str: click.STRING,
    int: click.INT,
    float: click.FLOAT,
    Path: click.Path(path_type=Path),
}


class _Worded(click.ParamType[Any]):
    """A value or a word that stands for one; or values with commas between them. The text is checked and kept."""

    def __init__(self, spec: OptionSpec) -> None:
        self._spec = spec
        kinds = [] if spec.kind is bool else ["N,N,..." if spec.joined else "N"]
        self.name = "|".join([*kinds, *spec.words])

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, str) and value.lower() not in self._spec.words:
            try:
                for part in value.split(",") if self._spec.joined else [value]:
                    float(part)
                    if self._spec.kind is int:
                        int(part)
                    elif self._spec.kind is bool:
                        raise ValueError
            except ValueError:
                self.fail(f"{value!r} is none of: {self.name}", param, ctx)
        return value


def flag(spec: OptionSpec) -> click.Parameter:
    """One option as a click option or argument. A flag that is not given yields None: only given values are passed."""
    if spec.positional:
        return click.Argument([spec.name], type=_TYPES[spec.kind])
    if spec.words or spec.joined:
        default = "" if spec.text(spec.default) in ("", "None") else f"  [default: {spec.text(spec.default)}]"
        worded = _Worded(spec)
        return click.Option(
            [spec.flag, spec.name], type=worded, metavar=worded.name, default=None, help=spec.help + default
        )
    if spec.flag.startswith("--no-"):
        return click.Option([spec.flag, spec.name], is_flag=True, default=None, help=spec.help)
    if spec.kind is bool:
        return click.Option([f"{spec.flag}/--no-{spec.flag[2:]}", spec.name], default=None, help=spec.help)
    kind = click.Choice(spec.choices, case_sensitive=False) if spec.choices else _TYPES[spec.kind]
    shown = f"{spec.help}  [default: {spec.default}]" if spec.default not in (None, "", ()) else spec.help
    return click.Option([spec.flag, spec.name], type=kind, multiple=spec.repeatable, default=None, help=shown)


def with_options(command: click.Command, options: Iterable[type]) -> click.Command:
    """Add the flags of some options dataclasses to a command. The first of two equal names stays."""
    taken = {parameter.name for parameter in command.params}
    for group in options:
        for spec in specs(group):
            if spec.name not in taken:
                command.params.append(flag(spec))
                taken.add(spec.name)
    return command


def given(options: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Of the parsed flags, those that belong to this dataclass and were given."""
    names = {spec.name for spec in specs(options)}
    return {name: value for name, value in values.items() if name in names and value is not None and value != ()}


def built(options: type, values: Mapping[str, Any], **more: Any) -> Any:
    """The dataclass of the parsed flags, checked; `more` are fields that no flag gives. Raises UsageError."""
    return build(options, given(options, values) | more)
