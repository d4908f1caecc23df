"""Measure the quality and speed of a model as a detached job, and remember the figures with the model file."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from phitui.actions.context import Context
from phitui.actions.jobs import jobs
from phitui.actions.models import resolve_model
from phitui.domain import options
from phitui.domain.offers import Evaluator, JobContext
from phitui.domain.text import visible
from phitui.errors import PhituiError, UsageError
from phitui.jobs import Job
from phitui.plugins import first_available, named
from phitui.store.measures import Measured, MeasureStore

TASK = "phitui.actions.evaluate:run"


@dataclass(frozen=True)
class EvaluateRequest:
    """An evaluation, JSON-ready. `model` and `reference` are GGUF paths or names in the library.

    `evaluator` empty means the first one that can be used. `options` are option values of the evaluator. If it has
    options named `text`, `reference`, `threads` and `journal`, they are filled in from here, from the configuration,
    and with a file in which it may note what is done, so that a stopped evaluation goes on.
    """

    model: str
    reference: str = ""
    text: str = ""
    evaluator: str = ""
    options: dict[str, Any] = field(default_factory=dict)


def start(ctx: Context, request: EvaluateRequest) -> Job:
    """Check what can be checked, then start the detached job. Raises UsageError or Unavailable."""
    request = normalized(ctx, request)
    name = Path(request.model).name
    title = f"evaluate {name}" + (f" against {Path(request.reference).name}" if request.reference else "")
    return jobs(ctx).start(
        "eval", TASK, asdict(request), title, key=f"eval {_digest(request)}", argv=command_line(request)
    )


def run(request: dict[str, Any], job: JobContext) -> dict[str, Any]:
    """The evaluation, in the job's process. Returns the figures with model, reference, source and date."""
    ctx = Context()
    wanted = EvaluateRequest(**request)
    offer = evaluator(ctx, wanted.evaluator)
    model = Path(wanted.model)
    measures = offer.evaluate(model, _options(ctx, offer, wanted), job)
    measured = Measured(
        model=model.name,
        evaluator=offer.name,
        created=round(time.time(), 3),
        source=measures.source,
        values=measures.values,
        facts=measures.facts,
        reference=Path(wanted.reference).name if wanted.reference else "",
        conditions=measures.conditions,
        asked=asked(wanted),
    )
    remember(ctx, wanted, measured, job)
    return as_document(measured) | {"model": wanted.model, "reference": wanted.reference}


def remember(ctx: Context, request: EvaluateRequest, measured: Measured, job: JobContext) -> None:
    """Store the figures. Where that fails the evaluation is not lost: the job's log says why they are not stored."""
    try:
        with MeasureStore(store_file(ctx)) as store:
            if request.reference:
                measured = replace(measured, reference_fingerprint=store.fingerprint(Path(request.reference)))
            store.add(Path(request.model), measured)
    except PhituiError as error:
        job.note(f"the figures are not remembered: {error.message}")


def measures_of(ctx: Context, path: Path) -> list[Measured]:
    """What was measured of a GGUF, newest first, wherever the file was then; empty where nothing is known.

    Cheap enough for lists: a file that was looked at before costs one query.
    """
    file = store_file(ctx)
    if not file.exists():
        return []
    try:
        with MeasureStore(file) as store:
            return store.of(path)
    except PhituiError:
        return []


def store_file(ctx: Context) -> Path:
    """Where measurements are kept."""
    return ctx.paths.data / "measures.db"


def evaluator(ctx: Context, name: str = "") -> Evaluator:
    """The evaluator of that name, or the first one that can be used."""
    found = ctx.registry.evaluators
    return named(found, name, "evaluator") if name else first_available(found, "evaluator")


def normalized(ctx: Context, request: EvaluateRequest) -> EvaluateRequest:
    """The request checked, with absolute paths and the evaluator's name. Raises UsageError."""
    offer = evaluator(ctx, request.evaluator)
    known = {spec.name for spec in options.specs(offer.options)}
    for name in ("reference", "text"):
        if getattr(request, name) and name not in known:
            raise UsageError(f"{offer.title} takes no {name}", "phitui plugins lists the evaluators")
    reference = resolve_model(ctx, request.reference) if request.reference else None
    text = Path(request.text).expanduser().absolute() if request.text else None
    if text is not None and not text.is_file():
        raise UsageError(f"there is no text file {visible(str(text))}", "give a plain UTF-8 text file with --text FILE")
    made = replace(
        request,
        model=str(resolve_model(ctx, request.model)),
        reference=str(reference or ""),
        text=str(text or ""),
        evaluator=offer.name,
    )
    plain = options.plain(options.build(offer.options, request.options))
    made = replace(made, options={name: _absolute(offer, name, value) for name, value in plain.items()})
    _options(ctx, offer, made)
    return made


def _absolute(offer: Evaluator, name: str, value: Any) -> Any:
    is_path = any(
        spec.name == name and spec.kind is Path and not spec.repeatable for spec in options.specs(offer.options)
    )
    return str(Path(value).expanduser().absolute()) if is_path else value


def _options(ctx: Context, offer: Evaluator, request: EvaluateRequest) -> Any:
    """The evaluator's options, filled in as EvaluateRequest says."""
    filled = {
        "text": request.text,
        "reference": request.reference,
        "threads": ctx.config.threads,
        "journal": str(ctx.paths.state / "evaluations" / f"{_digest(request)}.chunks"),
    }
    known = {spec.name for spec in options.specs(offer.options)}
    values = {name: value for name, value in filled.items() if name in known and value}
    return options.build(offer.options, values | request.options)


def _digest(request: EvaluateRequest) -> str:
    """What tells one evaluation from another."""
    return hashlib.sha256(json.dumps(asdict(request), sort_keys=True).encode()).hexdigest()[:32]


def asked(request: EvaluateRequest) -> str:
    """A digest of what the evaluator is asked for, whatever the two models are; "" where the text cannot be read.

    `request` must be normalized. Threads and the journal make no difference to a figure of quality.
    """
    try:
        text = hashlib.sha256(Path(request.text).read_bytes()).hexdigest() if request.text else ""
    except OSError:
        return ""
    options = {name: value for name, value in request.options.items() if name not in ("threads", "journal")}
    known = {"evaluator": request.evaluator, "text": text, "options": options}
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()


def command_line(request: EvaluateRequest) -> tuple[str, ...]:
    """The command that does the same."""
    words = ["phitui", "eval", request.model]
    for name in ("reference", "text", "evaluator"):
        if value := getattr(request, name):
            words += [f"--{name}", value]
    for name, value in request.options.items():
        flag = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            words.append(flag if value else "--no-" + flag[2:])
        else:
            words += [flag, str(value)]
    return tuple(words)


def as_document(measured: Measured) -> dict[str, Any]:
    """The figures by name, and beside them where they come from; `created` in unix seconds."""
    return {
        "model": measured.model,
        "reference": measured.reference,
        **measured.values,
        "evaluator": measured.evaluator,
        "source": measured.source,
        "created": measured.created,
        "facts": dict(measured.facts),
        "conditions": dict(measured.conditions),
    }
