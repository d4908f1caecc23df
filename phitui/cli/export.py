"""`phitui export`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from phitui.actions import export as actions
from phitui.actions.context import Context
from phitui.cli import flags, output
from phitui.domain.bundle import Bundle
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
    @click.option("--overwrite", is_flag=True, help="Replace files that are there already.")
    @output.json_flag
    def export(model: str, to: str, out: Path, *, preview: bool, overwrite: bool, as_json: bool, **values: Any) -> None:
        """Write the files that make MODEL (a GGUF or a name in the library) known to another program."""
        chosen = named(exporters, to, "export target")
        _refuse_foreign(chosen.options, values, to)
        request = actions.ExportRequest(model, to, out, flags.given(chosen.options, values))
        if preview:
            bundle = actions.preview(context, request)
            output.emit(bundle, as_json, _shown(bundle))
            return
        result = actions.export(context, request, overwrite)
        lines = [f"wrote {path}" for path in result.files]
        output.emit(result, as_json, "\n".join([*lines, *_after(result.run, result.notes)]))

    return flags.with_options(export, [exporter.options for exporter in exporters])


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
