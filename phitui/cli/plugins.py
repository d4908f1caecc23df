"""`phitui plugins`."""

from __future__ import annotations

from typing import Any

import click

from phitui.actions.context import Context
from phitui.actions.plugins import plugin_report
from phitui.cli import output


def command(context: Context) -> click.Command:
    @click.command("plugins")
    @click.argument("what", default="list", type=click.Choice(["list"]))
    @click.option("--trace", is_flag=True, help="Show the tracebacks of failures.")
    @output.json_flag
    def plugins(what: str, trace: bool, as_json: bool) -> None:
        """Loaded plugins with what they offer, and why others failed."""
        report = plugin_report(context)
        output.emit(report, as_json, _text(report, trace))

    return plugins


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
