"""Handing a model to a program that is running, here or on another machine, as a detached job."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from phitui.actions import lineage
from phitui.actions.context import Context
from phitui.actions.export import export_model
from phitui.actions.jobs import jobs
from phitui.actions.models import resolve_model
from phitui.domain import options
from phitui.domain.offers import Delivery, Exporter, JobContext, Publisher
from phitui.errors import PhituiError, UsageError
from phitui.jobs import Job
from phitui.plugins import named
from phitui.store.hashes import Hashing

TASK = "phitui.actions.push:run"
Result = TypeVar("Result")


@dataclass(frozen=True)
class PushRequest:
    """What to push where, JSON-ready. `to` names an exporter that is a Publisher too, `options` are its values.

    `url` empty is the usual place. `overwrite` replaces a model of that name there; `test` asks it a question.
    """

    model: str
    to: str
    url: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    overwrite: bool = False
    test: bool = True


def targets(context: Context) -> list[str]:
    """Names of the exporters that can push."""
    return [exporter.name for exporter in context.registry.exporters if isinstance(exporter, Publisher)]


def start(context: Context, request: PushRequest) -> Job:
    """Look whether all is well there, then start the detached job.

    Raises what would fail: UsageError, OutputExists, Unavailable, PhituiError.
    """
    exporter, publisher = _publisher(context, request.to)
    values = options.build(exporter.options, request.options)
    path = resolve_model(context, request.model)
    url = _held(request.to, lambda: publisher.destination(export_model(path), values, request.url, request.overwrite))
    wanted = PushRequest(
        str(path), request.to, url, _absolute(exporter.options, values), request.overwrite, request.test
    )
    argv = [
        *("phitui", "export", str(path), "--to", request.to, "--push", url),
        *options.as_flags(options.build(exporter.options, wanted.options)),
        *(["--overwrite"] if request.overwrite else []),
        *([] if request.test else ["--no-test"]),
    ]
    what = path.name if Path(request.model).expanduser().exists() else request.model
    return jobs(context).start(
        "push", TASK, asdict(wanted), f"push {what} to {url}", key=f"{request.to} {url} {path}", argv=argv
    )


def run(request: dict[str, Any], job: JobContext) -> dict[str, Any]:
    """The push, in the job's process. Returns what the publisher tells, and seconds."""
    began, context = time.monotonic(), Context()
    push = PushRequest(**request)
    exporter, publisher = _publisher(context, push.to)
    values = options.build(exporter.options, push.options)
    delivery = Delivery(push.url, push.test, lambda path: _sha256(context, path, job))
    told = _held(push.to, lambda: publisher.push(export_model(Path(push.model)), values, delivery, job))
    return {**told, "to": push.to, "path": push.model, "seconds": round(time.monotonic() - began, 3)}


def _publisher(context: Context, name: str) -> tuple[Exporter, Publisher]:
    exporter = named(context.registry.exporters, name, "export target")
    if not isinstance(exporter, Publisher):
        known = ", ".join(targets(context))
        raise UsageError(
            f"the export target {name} only writes files", f"--push goes with: {known}" if known else "leave out --push"
        )
    return exporter, exporter


def _held(name: str, work: Callable[[], Result]) -> Result:
    """What a stranger's code returns; what it raises becomes an error that names it."""
    try:
        return work()
    except PhituiError:
        raise
    except Exception as error:
        raise PhituiError(
            f"the export target {name} failed: {type(error).__name__}: {error}", "phitui plugins shows whose it is"
        ) from error


def _sha256(context: Context, path: Path, job: JobContext) -> str:
    """The hash of a file: remembered, or read now."""

    def report(done: int, total: int) -> None:
        job.progress(done, total, f"checksum of {path.name}")

    with lineage.hash_store(context) as store:
        return Hashing(store, [path]).finish(report)[path].sha256


def _absolute(declared: type, values: Any) -> dict[str, Any]:
    """The option values, JSON-ready, with absolute paths: the job's process runs in another directory."""
    paths = {spec.name for spec in options.specs(declared) if spec.kind is Path and not spec.repeatable}
    plain: Mapping[str, Any] = options.plain(values)
    return {name: str(Path(value).expanduser().absolute()) if name in paths else value for name, value in plain.items()}
