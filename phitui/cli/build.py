"""`phitui build`: convert and quantize in one pass."""

from __future__ import annotations

import shlex
from dataclasses import replace
from typing import Any

import click

from phitui.actions import build as actions
from phitui.actions.context import Context
from phitui.actions.jobs import outcome
from phitui.cli import best, flags, output
from phitui.cli.follow import duration, follow_job
from phitui.domain.tensors import FilePlan
from phitui.domain.text import visible


def command(context: Context) -> click.Command:
    @click.command("build")
    @click.argument("source")
    @click.option("--scheme", required=True, help="BF16, F16, F32, AUTO, any scheme of phitui schemes, or best.")
    @click.option(
        "--out", type=click.Path(), default="", help="The GGUF to write.  [default: in phitui's models folder]"
    )
    @click.option("--threads", type=click.IntRange(1, 1024), help="Threads to use.  [default: all cores]")
    @click.option("--dry-run", is_flag=True, help="Print the exact size and the type of every tensor; write nothing.")
    @click.option("--detach", is_flag=True, help="Return at once; phitui jobs shows how it goes.")
    @click.option(
        "--overwrite", "--force", is_flag=True, help="Replace an existing file, once the new one is complete."
    )
    @click.option("--allow-nan", is_flag=True, help="Write weights that are NaN or infinite, too; the log names them.")
    @click.option(
        "--known-as", default="", metavar="NAME", help="Take the checkpoint's directory to be called so, in metadata."
    )
    @click.option("--stream", is_flag=True, help="Read the weights of a Hub repo as they are needed; keep none here.")
    @click.option("--no-lineage", is_flag=True, help="Do not write a recipe (FILE.toml) beside the file.")
    @best.flags
    @output.json_flag
    def build(source: str, scheme: str, dry_run: bool, detach: bool, as_json: bool, **values: Any) -> None:
        """Make a GGUF of SOURCE (a checkpoint directory, a GGUF file or a name in the library) in one pass.

        With --stream, or for --dry-run, SOURCE may also be a repo of the Hugging Face Hub: ORG/NAME[@REVISION].

        The work is a detached job: it goes on if the terminal dies. Ctrl-C cancels it; phitui jobs resume goes on.
        """
        request = actions.BuildRequest(
            source,
            scheme,
            values["out"],
            *chosen(context, values),
            values["threads"],
            values["overwrite"],
            values["allow_nan"],
            values["known_as"],
            not values["no_lineage"],
            values["stream"],
        )
        if dry_run or values["stream"]:
            request = replace(request, source=output.seen(context, source))
        if best.wanted(scheme, values):
            best.run(context, request, values, dry_run=dry_run, detach=detach, as_json=as_json)
            return
        if dry_run:
            plan = actions.preview(context, request)
            output.emit(actions.as_document(plan), as_json, _text(plan))
            return
        job = actions.start(context, request)
        if detach:
            output.emit({"job": job.id}, as_json, f"job {job.id}: {job.title}")
            return
        result = outcome(follow_job(context, job.id, as_json))
        output.emit({"job": job.id, **result}, as_json, _done(result))

    converters = [offer.options for offer in context.registry.converters]
    quantizers = [offer.options for offer in context.registry.quantizers]
    return flags.with_options(build, [*converters, *quantizers])


def chosen(context: Context, values: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(converter's option values, quantizer's) of the parsed flags."""
    registry = context.registry
    converter: dict[str, Any] = {}
    quantizer: dict[str, Any] = {}
    for offer in registry.converters:
        converter |= flags.given(offer.options, values)
    for other in registry.quantizers:
        quantizer |= flags.given(other.options, values)
    return converter, quantizer


def _text(plan: FilePlan) -> str:
    rows = [
        (
            visible(tensor.name),
            "x".join(map(str, tensor.shape)),
            tensor.source.stored.name,
            tensor.type.name,
            f"in place of {tensor.wanted.name}" if tensor.wanted is not None and tensor.substituted else "",
        )
        for tensor in plan.tensors
    ]
    document = actions.as_document(plan)
    lines = [output.table(("tensor", "shape", "from", "to", ""), rows), *map(visible, document["notes"])]
    if plan.needs_imatrix:
        lines.append(f"{len(plan.needs_imatrix)} tensors need an importance matrix (phitui imatrix): --imatrix FILE")
    size = document["size"]
    lines.append(
        f"{plan.scheme}: {output.size(size)} ({size:,} bytes, exact), {plan.bits_per_weight:.2f} bits per weight"
    )
    return "\n".join(lines)


def _done(result: dict[str, Any]) -> str:
    figures = f"{output.size(result['size'])}, {result['bits_per_weight']:.2f} bits per weight"
    lines = [f"{visible(str(result['path']))}  {figures}, in {duration(result['seconds'])}"]
    if found := result.get("remote"):
        lines.append(f"{output.size(found['fetched'])} came from the Hub; {_checked(found)}")
    if result.get("lineage"):
        lines.append(f"phitui run {visible(shlex.quote(str(result['lineage'])))}  makes it again")
    return "\n".join(lines)


def _checked(found: dict[str, Any]) -> str:
    """How far the bytes from the Hub were compared with what it says of them."""
    if not found["unverified"]:
        return "all checksums are the Hub's"
    names = ", ".join(map(visible, found["unverified"]))
    return f"of {names} only the size was compared, since not all of it was read in one go"
