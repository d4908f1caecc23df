"""`phitui build --scheme best`: its flags, and what it prints."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import click

from phitui.actions import best as actions
from phitui.actions.build import BuildRequest, as_document, preview
from phitui.actions.context import Context
from phitui.actions.jobs import outcome
from phitui.cli import output
from phitui.cli.follow import duration, follow_job
from phitui.domain.sizes import parse_size
from phitui.domain.text import visible
from phitui.errors import UsageError

_FLAGS = ("max_kld", "max_size", "measure", "among", "text", "chunks")


def flags(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options of `--scheme best` for the build command."""
    for option in (
        click.option(
            "--chunks", type=click.IntRange(min=1), help="With --measure: at most so many chunks of the text."
        ),
        click.option("--text", type=click.Path(), metavar="FILE", help="With --measure: the text to measure on."),
        click.option("--measure", is_flag=True, help="With best: measure what is lacking, then choose."),
        click.option("--among", metavar="S,S,...", help="With best: choose among these schemes only."),
        click.option("--max-size", metavar="SIZE", help="With best: the largest file that will do, such as 4GiB."),
        click.option(
            "--max-kld",
            type=float,
            metavar="X",
            help="With best: the largest KL divergence from the full-precision model that will do, such as 0.02.",
        ),
    ):
        function = option(function)
    return function


def wanted(scheme: str, values: Mapping[str, Any]) -> bool:
    """Whether the scheme is to be chosen. Raises UsageError where flags of the choice come without it."""
    if scheme.strip().lower() == actions.NAME:
        return True
    given = [name for name in _FLAGS if values[name]]
    if given:
        raise UsageError(f"--{given[0].replace('_', '-')} goes with --scheme best", f"you asked for {visible(scheme)}")
    return False


def run(
    context: Context, build: BuildRequest, values: Mapping[str, Any], *, dry_run: bool, detach: bool, as_json: bool
) -> None:
    """Choose, build and print; with `dry_run` only the choice and the size."""
    request = actions.BestRequest(
        build,
        max_kld=values["max_kld"],
        max_size=_size(values["max_size"]) if values["max_size"] else None,
        measure=values["measure"],
        among=tuple(name.strip() for name in (values["among"] or "").split(",") if name.strip()),
        text=values["text"] or "",
        chunks=values["chunks"],
    )
    if dry_run:
        return _dry_run(context, request, as_json)
    job = actions.start(context, request)
    if detach:
        return output.emit({"job": job.id}, as_json, f"job {job.id}: {job.title}")
    result = outcome(follow_job(context, job.id, as_json))
    figures = f"{output.size(result['size'])}, {result['bits_per_weight']:.2f} bits per weight"
    done = f"{visible(str(result['path']))}  {figures}, in {duration(result['seconds'])}"
    return output.emit({"job": job.id, **result}, as_json, done)


def _dry_run(context: Context, request: actions.BestRequest, as_json: bool) -> None:
    if request.measure:
        raise UsageError("--dry-run and --measure exclude each other", "leave one of them out")
    request = actions.checked(context, request)
    decision = actions.decide(context, request)
    plan = preview(context, actions.build_of(context, request, decision.chosen.scheme))
    document = as_document(plan) | {"best": decision.document}
    output.emit(document, as_json, "\n".join(map(visible, decision.lines)))


def _size(text: str) -> int:
    size = parse_size(text)
    if size is None:
        raise UsageError(f"--max-size {visible(text)!r} is no size", "for example 4GiB, 900M or 4294967296")
    return size
