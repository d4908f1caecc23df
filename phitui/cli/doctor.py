"""`phitui doctor`."""

from __future__ import annotations

import sys
import textwrap
import time
from typing import Any

import click

from phitui.actions.context import Context
from phitui.cli import output
from phitui.domain.text import visible
from phitui.errors import UsageError

WIDTH = 80


def command(context: Context) -> click.Command:
    @click.command("doctor")
    @click.option("--fix", is_flag=True, help="Run the line that solves the first finding, after asking.")
    @click.option("--backend", default="", metavar="NAME", help="With --fix: install for this one, such as vulkan.")
    @click.option("--build", is_flag=True, help="With --fix: compile here, even where a ready-made wheel would do.")
    @click.option("--yes", is_flag=True, help="With --fix: do not ask.")
    @click.option(
        "--bandwidth",
        is_flag=True,
        help="Measure how fast the memory is, a second for each device, and keep it for plans.",
    )
    @click.option("--all", "show_all", is_flag=True, help="Show install lines for every backend, present or not.")
    @output.json_flag
    def doctor(
        *, fix: bool, backend: str, build: bool, yes: bool, bandwidth: bool, show_all: bool, as_json: bool
    ) -> None:
        """What this machine has, what the engine can use of it, what is wrong, and the command that mends it."""
        from phitui.actions.doctor import doctor as examine
        from phitui.actions.doctor import measure_bandwidth

        if (backend or build or yes) and not fix:
            raise UsageError("--backend, --build and --yes say how to --fix", "phitui doctor --fix --backend NAME")
        if fix:
            mend(context, backend, build=build, yes=yes, as_json=as_json)
            return
        for failure in measure_bandwidth(context) if bandwidth else ():
            output.say(failure)
        report = examine(context)
        output.emit(report, as_json, "" if as_json else text(report, show_all))

    return doctor


def mend(context: Context, backend: str, *, build: bool, yes: bool, as_json: bool) -> None:
    """Show what would be run, ask, run it as a job and say what changed."""
    from phitui.actions import repair
    from phitui.actions.jobs import outcome
    from phitui.cli.follow import duration, follow_job

    found = repair.remedy(context, backend, build)
    if found is None:
        output.emit(
            {"fixed": False, "changes": []}, as_json, "Nothing to install: the engine has what this machine needs."
        )
        return
    output.say(f"{visible(found.what)}\n")
    for number, way in enumerate(found.ways):
        output.say("This will be run:" if number == 0 else "If that fails:")
        output.say(f"  {way['line']}\n  ({way['note']})")
    if not yes and (as_json or not sys.stdin.isatty()):
        raise UsageError("--fix asks before it installs, and nobody is here to answer", "--yes says yes beforehand")
    if not yes and not click.confirm("Run it?", err=True):
        output.emit({"fixed": False, "changes": []}, as_json, "Nothing was changed.")
        return
    job = repair.start(context, found)
    output.say(f"job {job.id}: it goes on if this terminal closes; phitui jobs log {job.id}")
    result = outcome(follow_job(context, job.id, as_json))
    lines = [f"Done in {duration(result['seconds'])}.", *(f"  {change}" for change in result["changes"])]
    output.emit({"fixed": True, "job": job.id, **result}, as_json, "\n".join(lines))


def text(report: dict[str, Any], show_all: bool = False) -> str:
    """The report in 80 columns, findings first; commands are never wrapped, so that they can be copied."""
    about = report["phitui"]
    lines = [f"phitui {about['version']}, Python {about['python']}, {about['system']} {about['machine']}", ""]
    lines += _findings(report["problems"])
    lines += _engine(report["engine"])
    lines += _machine(report)
    lines += _backends(report["backends"], show_all, {finding["do"] for finding in report["problems"]})
    plugins = report["plugins"]
    lines += ["", f"Plugins: {plugins['loaded']} loaded, {len(plugins['failed'])} failed"]
    lines += ["", "Places", *(f"  {what:<6}  {path}" for what, path in report["paths"].items())]
    return "\n".join(lines)


def _findings(findings: list[dict[str, Any]]) -> list[str]:
    if not findings:
        return ["No problems found."]
    lines = ["Findings"]
    for finding in findings:
        mark = "!" if finding["level"] == "problem" else "-"
        lines += _indented(visible(finding["what"]), f"  {mark} ")
        lines += _indented(visible(finding["why"]))
        lines += [line for need in finding["needs"] for line in _indented(f"needs first: {need}")]
        if finding["do"]:
            lines.append(f"      {finding['do']}")
            lines += _indented(f"({finding['note']})") if finding["note"] else []
    if any(finding["backend"] and not finding["needs"] for finding in findings):
        lines += ["", "  phitui doctor --fix shows what it would run, asks, runs it and checks."]
    return lines


def _indented(words: str, first: str = "    ") -> list[str]:
    return textwrap.wrap(words, WIDTH, initial_indent=first, subsequent_indent="    ", break_on_hyphens=False)


def _engine(engine: dict[str, Any] | None) -> list[str]:
    if engine is None:
        return ["", "Engine: none"]
    lines = ["", f"Engine: {engine['name']} {engine['version']}", f"  {engine['path']}".rstrip()]
    if engine["trouble"]:
        return [line for line in (*lines, "  does not work") if line]
    lines.append(_line("built with", ", ".join(engine["backends"]) + ("" if engine["rpc"] else " (no RPC)")))
    for backend, features in engine["features"].items():
        lines += _wrapped(f"{backend} features", " ".join(features))
    return lines


def _machine(report: dict[str, Any]) -> list[str]:
    lines = ["", "Machine"]
    for backend in report["backends"]:
        for fact in backend["facts"]:
            lines += _wrapped(visible(fact["what"]), visible(fact["value"]))
    for speed in report["bandwidth"]:
        day = time.strftime("%Y-%m-%d", time.localtime(speed["measured"]))
        busy = ", the machine was busy" if "busy" in speed["how"] else ""
        by = f" read by {speed['threads']} threads" if speed["threads"] > 1 else ""
        value = f"{speed['bytes_per_second'] / 1e9:.1f} GB/s{by} (measured {day}{busy})"
        lines += _wrapped(f"memory of {speed['device']}", value)
    lines += ["", "Devices the engine can use"]
    if not report["devices"]:
        return [*lines, "  none"]
    rows = [
        (
            f"  {device['name']}",
            device["backend"],
            visible(device["description"])[:34],
            output.size(device["free"]) + " free",
            output.size(device["total"]),
        )
        for device in report["devices"]
    ]
    return [*lines, output.table(("  device", "backend", "what", "", "total"), rows, right=(3, 4))]


def _backends(backends: list[dict[str, Any]], show_all: bool, shown: set[str]) -> list[str]:
    present = {True: "yes", False: "no", None: "not known"}
    rows = [
        (f"  {row['title']}", "yes" if row["compiled_in"] else "no", present[row["present"]], ", ".join(row["devices"]))
        for row in backends
    ]
    lines = ["", output.table(("  backend", "in the engine", "hardware here", "devices"), rows)]
    missing = [row for row in backends if row["ways"] and not row["compiled_in"] and (show_all or row["present"])]
    missing = [row for row in missing if show_all or row["install"] not in shown]
    if missing:
        lines += ["", "To install the engine for another backend"]
        for row in missing:
            lines += [f"  {row['title']}:", *_way_lines(row["ways"] if show_all else row["ways"][:1])]
    return lines


def _way_lines(ways: list[dict[str, Any]]) -> list[str]:
    lines = []
    for way in ways:
        lines += [line for need in way["needs"] for line in _indented(f"needs first: {need}")]
        lines.append(f"    {way['line']}")
    return lines


def _line(label: str, value: str) -> str:
    return f"  {label + ':':<26} {value}"


def _wrapped(label: str, value: str) -> list[str]:
    return textwrap.wrap(value, WIDTH, initial_indent=_line(label, ""), subsequent_indent=" " * 29) or [
        _line(label, "")
    ]
