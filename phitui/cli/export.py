"""`phitui export`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from phitui.actions import export as actions
from phitui.actions import push as push_action
from phitui.actions.context import Context
from phitui.actions.jobs import outcome
from phitui.actions.push import PushRequest
from phitui.cli import flags, output
from phitui.cli.follow import duration, follow_job
from phitui.domain.bundle import Bundle
from phitui.domain.text import visible
from phitui.plugins import named


def command(context: Context) -> click.Command:
    exporters = context.registry.exporters

    @click.command("export")
    @click.argument("model")
    @click.option("--to", required=True, metavar="TARGET", help=f"One of: {', '.join(e.name for e in exporters)}.")
    @click.option(
        "--out", type=click.Path(path_type=Path, file_okay=False), default=Path(), help="Directory to write to."
    )
    @click.option("--preview", is_flag=True, help="Print what would be written; write nothing.")
    @click.option("--overwrite", is_flag=True, help="Replace what is there already.")
    @click.option(
        "--push",
        is_flag=False,
        flag_value="auto",
        metavar="[URL]",
        help="Hand MODEL to the program while it runs, at URL or its usual place (auto); write no files.",
    )
    @click.option("--no-test", is_flag=True, help="With --push: do not ask the model a question afterwards.")
    @click.option("--detach", is_flag=True, help="With --push: return at once; phitui jobs shows how it goes.")
    @output.json_flag
    def export(
        model: str,
        to: str,
        out: Path,
        *,
        preview: bool,
        overwrite: bool,
        push: str | None,
        no_test: bool,
        detach: bool,
        as_json: bool,
        **values: Any,
    ) -> None:
        """Write the files that make MODEL (a GGUF or a name in the library) known to another program.

        With --push, MODEL is handed to that program itself, while it runs, here or on another machine: as a detached
        job that can be resumed.
        """
        chosen = named(exporters, to, "export target")
        _refuse_foreign(chosen.options, values, to)
        _refuse_mixed(push is not None)
        if push is not None:
            url, options = "" if push == "auto" else push, flags.given(chosen.options, values)
            _push(context, PushRequest(model, to, url, options, overwrite, not no_test), detach, as_json)
            return
        request = actions.ExportRequest(model, to, out, flags.given(chosen.options, values))
        if preview:
            bundle = actions.preview(context, request)
            output.emit(bundle, as_json, _shown(bundle))
            return
        result = actions.export(context, request, overwrite)
        lines = [f"wrote {path}" for path in result.files]
        output.emit(result, as_json, "\n".join([*lines, *_after(result.run, result.notes)]))

    return flags.with_options(export, [exporter.options for exporter in exporters])


def _refuse_mixed(pushes: bool) -> None:
    """Flags that say nothing together are a mistake."""
    context = click.get_current_context()
    names = ("out", "preview") if pushes else ("no_test", "detach")
    given = [name for name in names if context.get_parameter_source(name) is ParameterSource.COMMANDLINE]
    if given:
        flag = f"--{given[0].replace('_', '-')}"
        raise click.UsageError(f"{flag} and --push exclude each other" if pushes else f"{flag} goes with --push only")


def _push(context: Context, request: PushRequest, detach: bool, as_json: bool) -> None:
    job = push_action.start(context, request)
    if detach:
        output.emit({"job": job.id}, as_json, f"job {job.id}: {job.title}")
        return
    result = outcome(follow_job(context, job.id, as_json))
    output.emit({"job": job.id, **result}, as_json, _pushed(result))


def _pushed(result: dict[str, Any]) -> str:
    name, url = visible(str(result.get("name", ""))), visible(str(result.get("url", "")))
    sent, present = int(result.get("sent", 0)), int(result.get("present", 0))
    sizes = [f"{output.size(sent)} sent"] if sent or not present else []
    sizes += [f"{output.size(present)} were there already"] if present else []
    lines = [f"{name} at {url}  {', '.join(sizes)}, in {duration(result['seconds'])}"]
    if result.get("question"):
        speed = result.get("tokens_per_second")
        lines.append(f"asked: {visible(str(result['question']))}")
        told = visible(str(result.get("answer", "")).strip()) or "(nothing)"
        lines.append(f"answer: {told}" + (f"  ({speed} tokens/s)" if speed else ""))
    return "\n".join([*lines, *_after(tuple(result.get("run", ())), tuple(result.get("notes", ())))])


def _refuse_foreign(options: type, values: dict[str, Any], to: str) -> None:
    """A flag of another exporter is a mistake, not something to ignore."""
    given = {name for name, value in values.items() if value is not None and value != ()}
    foreign = sorted(given - set(flags.given(options, values)))
    if foreign:
        raise click.UsageError(f"--{foreign[0].replace('_', '-')} is no option of the target {to}")


def _shown(bundle: Bundle) -> str:
    parts = [f"==> {file.path} <==\n{file.text.rstrip()}" for file in bundle.files]
    parts += [f"==> {link.path} <==\nthe file {link.source}, linked or copied" for link in bundle.links]
    return "\n".join([*parts, *_after(bundle.run, bundle.notes)])


def _after(run: tuple[str, ...], notes: tuple[str, ...]) -> list[str]:
    lines = [f"note: {note}" for note in notes]
    return [*lines, "next:", *(f"  {line}" for line in run)] if run else lines
