"""`phitui doctor`."""

from __future__ import annotations

import textwrap
from typing import Any

import click

from phitui.actions.context import Context
from phitui.cli import output

WIDTH = 80


def command(context: Context) -> click.Command:
    @click.command("doctor")
    @output.json_flag
    def doctor(as_json: bool) -> None:
        """What this machine has, what the engine can use of it, and how to install the rest."""
        from phitui.actions.doctor import doctor as examine

        report = examine(context)
        output.emit(report, as_json, "" if as_json else text(report))

    return doctor


def text(report: dict[str, Any]) -> str:
    """The report in 80 columns, problems first; commands are never wrapped, so that they can be copied."""
    about = report["phitui"]
    lines = [f"phitui {about['version']}, Python {about['python']}, {about['system']} {about['machine']}", ""]
    lines += _problems(report["problems"])
    lines += _engine(report["engine"])
    lines += _machine(report)
    lines += _backends(report["backends"])
    plugins = report["plugins"]
    lines += ["", f"Plugins: {plugins['loaded']} loaded, {len(plugins['failed'])} failed"]
    lines += ["", "Places", *(f"  {what:<6}  {path}" for what, path in report["paths"].items())]
    return "\n".join(lines)


def _problems(problems: list[dict[str, str]]) -> list[str]:
    if not problems:
        return ["No problems found."]
    lines = ["Problems"]
    for problem in problems:
        lines += textwrap.wrap(problem["what"], WIDTH, initial_indent="  ! ", subsequent_indent="    ")
        if problem["do"]:
            lines.append(f"    {problem['do']}")
    return lines


def _engine(engine: dict[str, Any] | None) -> list[str]:
    if engine is None:
        return ["", "Engine: none"]
    lines = ["", f"Engine: {engine['name']} {engine['version']}", f"  {engine['path']}"]
    lines.append(_line("built with", ", ".join(engine["backends"]) + ("" if engine["rpc"] else " (no RPC)")))
    for backend, features in engine["features"].items():
        lines += _wrapped(f"{backend} features", " ".join(features))
    return lines


def _machine(report: dict[str, Any]) -> list[str]:
    lines = ["", "Machine"]
    for backend in report["backends"]:
        for fact in backend["facts"]:
            lines += _wrapped(fact["what"], fact["value"])
    lines += ["", "Devices the engine can use"]
    if not report["devices"]:
        return [*lines, "  none"]
    rows = [
        (
            f"  {device['name']}",
            device["backend"],
            device["description"][:34],
            output.size(device["free"]) + " free",
            output.size(device["total"]),
        )
        for device in report["devices"]
    ]
    return [*lines, output.table(("  device", "backend", "what", "", "total"), rows, right=(3, 4))]


def _backends(backends: list[dict[str, Any]]) -> list[str]:
    present = {True: "yes", False: "no", None: "not known"}
    rows = [
        (f"  {row['title']}", "yes" if row["compiled_in"] else "no", present[row["present"]], ", ".join(row["devices"]))
        for row in backends
    ]
    lines = ["", output.table(("  backend", "in the engine", "hardware here", "devices"), rows)]
    missing = [row for row in backends if row["install"] and not row["compiled_in"]]
    if missing:
        lines += ["", "To build the engine for another backend"]
        for row in missing:
            lines += [f"  {row['title']}:", f"    {row['install']}"]
    return lines


def _line(label: str, value: str) -> str:
    return f"  {label + ':':<24} {value}"


def _wrapped(label: str, value: str) -> list[str]:
    return textwrap.wrap(value, WIDTH, initial_indent=_line(label, ""), subsequent_indent=" " * 27) or [
        _line(label, "")
    ]
