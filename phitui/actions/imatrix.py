"""Importance matrices: a text is run through a GGUF, as a detached job, and what the weights meet is summed up.

Which offer does it is found through the ImatrixCollector protocol; this module knows no plugin.
"""

from __future__ import annotations

import os
import shlex
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from phitui.actions.context import Context
from phitui.actions.jobs import jobs
from phitui.actions.models import resolve_model
from phitui.actions.source import source_name
from phitui.domain.offers import ImatrixCollector, ImatrixSettings, JobContext
from phitui.domain.text import visible
from phitui.errors import InvalidFile, OutputExists, PhituiError, Unavailable, UsageError
from phitui.jobs import Job
from phitui.plugins import availability

TASK = "phitui.actions.imatrix:run"
FEWEST_TOKENS = 16
"""Of a chunk. llama.cpp's own tool takes no notice of shorter ones."""
OWN_TEXT = "phitui"
"""How the file names the text that comes with phitui."""


@dataclass(frozen=True)
class ImatrixRequest:
    """What to collect, JSON-ready. `text` empty: the text that comes with phitui; `out` empty: phitui's data folder.

    `context` is the length of a chunk in tokens, `chunks` the most of them (None: the whole text). `layers` None: as
    many on the GPU as fit. `parse_special` None: only in phitui's own text, which spells out chats.
    """

    model: str
    text: str = ""
    out: str = ""
    context: int = 512
    chunks: int | None = None
    threads: int | None = None
    layers: int | None = None
    parse_special: bool | None = None
    process_output: bool = False
    overwrite: bool = False


def collector(ctx: Context) -> ImatrixCollector:
    """The first quantizer that can make importance matrices. Raises Unavailable with the reason if none can."""
    reasons: list[tuple[str, str]] = []
    for quantizer in ctx.registry.quantizers:
        if isinstance(quantizer, ImatrixCollector):
            state = availability(quantizer)
            if state.ok:
                return quantizer
            reasons.append((state.reason, state.hint))
    reason, hint = reasons[0] if reasons else ("no plugin offers it", "phitui plugins shows what is loaded")
    raise Unavailable(f"importance matrices cannot be made here: {reason}", hint)


def start(ctx: Context, request: ImatrixRequest) -> Job:
    """Check everything that can be checked beforehand, then start the detached job.

    Raises UsageError, InvalidFile or PhituiError for a bad model, text or output path, Unavailable without an engine.
    """
    request = normalized(ctx, request)
    check(request)
    title = f"importance matrix of {Path(request.model).name}"
    return jobs(ctx).start("imatrix", TASK, asdict(request), title, key=request.out, argv=command_line(request))


def run(request: dict[str, Any], job: JobContext) -> dict[str, Any]:
    """The work itself, in the job's process. Returns what ImatrixCollector.collect returns, and the model."""
    asked = ImatrixRequest(**request)
    ctx = Context()
    offer = collector(ctx)
    text, out = Path(asked.text), Path(asked.out)
    own = text == offer.calibration_text
    settings = ImatrixSettings(
        context=asked.context,
        chunks=asked.chunks,
        threads=asked.threads or ctx.config.threads,
        layers=asked.layers if asked.layers is not None else _layers(ctx, asked),
        parse_special=own if asked.parse_special is None else asked.parse_special,
        process_output=asked.process_output,
        dataset=OWN_TEXT if own else text.name,
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    done = offer.collect(Path(asked.model), read_text(text), out, settings, job)
    made = _record(ctx, asked, offer, "" if own else str(text), job)
    return {"model": asked.model, **done, "lineage": made}


def _record(ctx: Context, asked: ImatrixRequest, offer: ImatrixCollector, text: str, job: JobContext) -> str:
    """Leave a recipe beside the matrix; returns its path, or an empty text and a note of the job."""
    from phitui.actions import lineage, provenance
    from phitui.domain.offers import Offer
    from phitui.domain.recipe import ImatrixStep, Recipe, ResultRecord
    from phitui.store.hashes import sha256_of

    out, model = Path(asked.out), Path(asked.model)
    step = ImatrixStep(
        model=lineage.relative(model, out.parent),
        text=lineage.relative(Path(text), out.parent) if text else "",
        out=out.name,
        context=asked.context,
        chunks=asked.chunks,
        layers=asked.layers,
        parse_special=asked.parse_special,
        process_output=asked.process_output,
    )
    texts = [lineage.OptionFile("text", Path(text))] if text else []
    recorder = lineage.Recorder(ctx, out, provenance.of_file(model), texts)
    try:
        offers = [offer] if isinstance(offer, Offer) else []
        hashed = sha256_of(out)
        recipe = Recipe(imatrix=step, made=lineage.made_by(ctx, offers))
        recorder.seal(recipe, ResultRecord(out.name, hashed.size, hashed.sha256), job)
        return str(recorder.publish(job) or "")
    except InvalidFile as error:
        job.note(f"the lineage is not recorded: {error.message}")
        return ""
    finally:
        recorder.close()


def normalized(ctx: Context, request: ImatrixRequest) -> ImatrixRequest:
    """The request with absolute paths and the default text and output path filled in."""
    offer = collector(ctx)
    if Path(request.model).expanduser().is_dir():
        build = shlex.join(["phitui", "build", request.model, "--scheme", "AUTO", "--out", "model.gguf"])
        raise UsageError(f"{visible(request.model)} is a directory; a GGUF file is needed here", build)
    model = resolve_model(ctx, request.model)
    out = Path(request.out).expanduser() if request.out else default_out(ctx, model)
    if not request.out:
        out.parent.mkdir(parents=True, exist_ok=True)
    text = Path(request.text).expanduser() if request.text else offer.calibration_text
    return replace(request, model=str(model), text=str(text.absolute()), out=str(out.absolute()))


def default_out(ctx: Context, model: Path) -> Path:
    """Where the matrix of this model goes. Not among the models, which it is none of."""
    return ctx.paths.data / "imatrix" / f"{source_name(model)}.imatrix.gguf"


def check(request: ImatrixRequest) -> None:
    """Refuse what cannot end well: not a model, not a text, an output path that cannot be written."""
    from phitui.gguf.shards import read_model

    if request.context < FEWEST_TOKENS:
        raise UsageError(f"a chunk of {request.context} tokens is too short", f"at least {FEWEST_TOKENS}; 512 is usual")
    model, out = Path(request.model), Path(request.out)
    header = read_model(model)
    if not isinstance(header.get("general.architecture"), str):
        raise InvalidFile(f"{model} is no model: its header names no architecture", "give the GGUF of a model")
    read_text(Path(request.text))
    if out.is_dir():
        raise UsageError(f"{out} is a directory", f"name a file in it: {out / 'imatrix.gguf'}")
    if out.exists() and any(out.samefile(path) for path in (model, Path(request.text))):
        raise UsageError(f"{out} is what the matrix is made from", "choose another --out")
    if out.exists() and not request.overwrite:
        raise OutputExists(f"{out} exists already", "choose another --out, or replace it with --overwrite")
    if not out.parent.is_dir():
        raise UsageError(f"the directory {out.parent} does not exist", f"mkdir -p {shlex.quote(str(out.parent))}")
    if not os.access(out.parent, os.W_OK | os.X_OK):
        raise PhituiError(f"{out.parent} is not writable", "choose an --out in a directory of yours")


def read_text(path: Path) -> str:
    """A UTF-8 text without its last newline, as llama.cpp's tools read texts. Raises InvalidFile or PhituiError."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise PhituiError(f"cannot read {path}: {error.strerror}", "give a text file with --text FILE") from None
    if data[:4] == b"GGUF" or b"\0" in data:
        raise InvalidFile(f"{path} is not a text", "give a plain UTF-8 text file with --text FILE")
    try:
        return data.decode("utf-8").removesuffix("\n")
    except UnicodeDecodeError as error:
        raise InvalidFile(f"{path} is not UTF-8 at byte {error.start}", "convert it to UTF-8 first") from None


def command_line(request: ImatrixRequest) -> tuple[str, ...]:
    """The command that does the same."""
    words = ["phitui", "imatrix", request.model, "--text", request.text, "--out", request.out]
    words += ["--ctx", str(request.context)]
    for flag, value in (("--chunks", request.chunks), ("--threads", request.threads), ("--layers", request.layers)):
        words += [flag, str(value)] if value is not None else []
    if request.parse_special is not None:
        words.append("--parse-special" if request.parse_special else "--no-parse-special")
    words += ["--process-output"] if request.process_output else []
    return (*words, "--overwrite") if request.overwrite else tuple(words)


def _layers(ctx: Context, request: ImatrixRequest) -> int:
    """As many layers as fit on the GPUs, by the planner's estimate; none where it cannot tell."""
    from phitui.actions.plan import plan
    from phitui.domain.offload import PlanRequest

    try:
        return plan(ctx, PlanRequest(request.model, context=request.context, n_cpu_moe=0), probe=False).n_gpu_layers
    except PhituiError:
        return 0
