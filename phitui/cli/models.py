"""`phitui models`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from phitui.actions import evaluate, figures, tidy
from phitui.actions import models as actions
from phitui.actions.context import Context
from phitui.cli import output
from phitui.domain.model import Artifact, KnownModel
from phitui.domain.text import visible
from phitui.store.measures import Measured


def command(context: Context) -> click.Command:
    @click.group("models", invoke_without_command=True)
    @output.json_flag
    @click.pass_context
    def models(ctx: click.Context, as_json: bool) -> None:
        """What is on this machine, and the catalogue of known models with verdicts."""
        if ctx.invoked_subcommand is None:
            library, known = actions.library(context), actions.catalogue(context)
            measured = figures.newest(context, [artifact.path for artifact in library if artifact.kind == "gguf"])
            rows = [vars(artifact) | {"measured": _measured(measured.get(artifact.path))} for artifact in library]
            document = {"library": rows, "catalogue": [_row(model) for model in known]}
            output.emit(document, as_json, _text(library, measured, known))

    _add_changing(models, context)
    return models


def _add_changing(group: click.Group, context: Context) -> None:
    @group.command("remove")
    @click.argument("model")
    @click.option("--yes", is_flag=True, help="Do not ask.")
    @output.json_flag
    def remove(model: str, yes: bool, as_json: bool) -> None:
        """Remove MODEL, a name or path, with its recipe and all parts of a split one."""
        found = tidy.removal(context, model)
        if not yes:
            what = f"{len(found.files)} files of" if len(found.files) > 1 else "1 file of"
            click.confirm(
                f"remove {visible(str(found.path))} ({what} {output.size(found.size)})?", abort=True, err=True
            )
        found = tidy.remove(context, model)
        left = f"; {found.left} other files stay" if found.left else ""
        output.emit(found, as_json, f"{visible(str(found.path))} is removed{left}")

    @group.command("rename")
    @click.argument("model")
    @click.argument("name")
    @output.json_flag
    def rename(model: str, name: str, as_json: bool) -> None:
        """Give MODEL, a name or path, another NAME in its directory."""
        path = tidy.rename(context, model, name)
        output.emit({"path": path}, as_json, visible(str(path)))


def _row(model: KnownModel) -> dict[str, Any]:
    judged = {"verdict": verdict(model), "reason": model.verdict.reason, "nearest": model.verdict.nearest}
    return {**vars(model), **judged}


def verdict(model: KnownModel) -> str:
    """A verdict in one word, as scripts get it."""
    return "convertible" if model.verdict.ok else "unsupported"


def _measured(measured: Measured | None) -> dict[str, Any] | None:
    return evaluate.as_document(measured) if measured else None


def _text(library: list[Artifact], measured: Mapping[Path, Measured], known: list[KnownModel]) -> str:
    lines = ["On this machine"]
    if library:
        head = ("name", "architecture", "scheme", "size", *(["quality"] if measured else []), "found by", "path")
        rows = []
        for a in library:
            found = measured.get(a.path)
            quality = [figures.Figure(None, found, None).text if found else ""] if measured else []
            rows.append((a.name, a.architecture, a.scheme, output.size(a.size), *quality, a.found_by, str(a.path)))
            blank = [""] if measured else []
            rows += [(f"  {p.name}", "", "", "same", *blank, p.found_by, str(p.path)) for p in a.also]
        rows = [(*row[:-1], visible(row[-1])) for row in rows]
        lines.append(output.table(head, rows, right=(3,)))
    else:
        lines.append("  nothing yet: phitui pull downloads a checkpoint, phitui build makes a GGUF of it")
    lines += ["", "Catalogue"]
    facts = [(m.id, m.parameters, f"{m.context_length:,}", "yes" if m.verdict.ok else "no", _why(m)) for m in known]
    lines.append(output.table(("id", "parameters", "context", "converts", ""), facts, right=(1, 2)))
    return "\n".join(lines)


def _why(model: KnownModel) -> str:
    if model.verdict.ok:
        return model.note
    return model.verdict.reason + (f"; nearest: {model.verdict.nearest}" if model.verdict.nearest else "")
