"""`phitui plugins`: what is plugged in, and the package of a new plugin."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from phitui.actions.context import Context
from phitui.actions.plugins import plugin_report
from phitui.cli import output


def _or_of_group(ctx: click.Context, parameter: click.Parameter, value: bool) -> bool:
    return value or bool(ctx.parent and parameter.name and ctx.parent.params.get(parameter.name))


_JSON = click.option("--json", "as_json", is_flag=True, callback=_or_of_group, help="One JSON document on stdout.")
_TRACE = click.option("--trace", is_flag=True, callback=_or_of_group, help="Show the tracebacks of failures.")


def command(context: Context) -> click.Command:
    @click.group("plugins", invoke_without_command=True)
    @_TRACE
    @_JSON
    @click.pass_context
    def plugins(ctx: click.Context, trace: bool, as_json: bool) -> None:
        """Loaded plugins with what they offer, and why others failed; or a new one."""
        if ctx.invoked_subcommand is None:
            _list(context, trace, as_json)

    @plugins.command("list")
    @_TRACE
    @_JSON
    def list_(trace: bool, as_json: bool) -> None:
        """Loaded plugins with what they offer, and why others failed."""
        _list(context, trace, as_json)

    _add_new(plugins, context)
    return plugins


def _add_new(group: click.Group, context: Context) -> None:
    from phitui.actions.scaffold import DEFAULT_KINDS, KINDS, new_plugin

    @group.command("new")
    @click.argument("name")
    @click.option(
        "--kind",
        "kinds",
        multiple=True,
        type=click.Choice([*KINDS, "all"]),
        metavar="KIND",
        help=f"What it is to offer: {', '.join(KINDS)} or all. Repeatable.  [default: {', '.join(DEFAULT_KINDS)}]",
    )
    @click.option(
        "--dir",
        "directory",
        type=click.Path(path_type=Path),
        help="The package's directory, new or empty.  [default: phitui-NAME]",
    )
    @_JSON
    def new(name: str, kinds: tuple[str, ...], directory: Path | None, as_json: bool) -> None:
        """Write the package of a new plugin, phitui-NAME.

        It has a working offer of each kind, passes its own tests as it is, and every file says what to change.
        """
        from phitui.cli.dispatch import COMMANDS

        chosen = tuple(KINDS) if "all" in kinds else kinds
        made = new_plugin(context, name, chosen, directory, COMMANDS)
        lines = [f"wrote {made.directory}", *(f"  {file}" for file in made.files), "", "next:"]
        output.emit(made, as_json, "\n".join([*lines, *(f"  {line}" for line in made.next)]))


def _list(context: Context, trace: bool, as_json: bool) -> None:
    report = plugin_report(context)
    output.emit(report, as_json, _text(report, trace))


def _text(report: dict[str, Any], trace: bool) -> str:
    rows = []
    for plugin in report["plugins"]:
        origin = "phitui" if plugin["first_party"] else plugin["version"]
        for offer in plugin["offers"] or [{"hook": "-", "name": "-", "ok": True, "reason": ""}]:
            state = "ok" if offer["ok"] else f"not here: {offer['reason']}"
            rows.append((plugin["name"], origin, f"{offer['hook']}: {offer['name']}", state))
    lines = [output.table(("plugin", "from", "offers", "state"), rows)]
    for failure in report["failures"]:
        lines.append(f"\nfailed: {failure['plugin']} ({failure['stage']}): {failure['error']}")
        if trace and failure["trace"]:
            lines.append(failure["trace"].rstrip())
    return "\n".join(lines)
