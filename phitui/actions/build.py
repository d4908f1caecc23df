"""Convert and quantize in one pass: read tensors from a source, write them under a type plan, as a detached job."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from phitui.actions.context import Context
from phitui.actions.figures import remember_build
from phitui.actions.imatrix import default_out
from phitui.actions.jobs import jobs
from phitui.actions.remote import hub_id
from phitui.actions.schemes import SchemeRow, find_scheme, scheme_table
from phitui.actions.source import converter_for, open_source, source_name, source_path
from phitui.actions.views import known_as
from phitui.domain import options
from phitui.domain.offers import JobContext, Quantizer
from phitui.domain.tensors import FileExtent, FilePlan, PlannedTensor, TensorSource
from phitui.errors import OutputExists, PhituiError, UsageError
from phitui.jobs import Job

__all__ = ["BuildRequest", "SchemeRow", "as_document", "preview", "run", "scheme_table", "start"]

TASK = "phitui.actions.build:run"


@dataclass(frozen=True)
class BuildRequest:
    """A build, JSON-ready. `converter` and `quantizer` hold option values; `out` empty means the models folder.

    `allow_nan` writes weights that are NaN or infinite, which are refused otherwise. `known_as` is what the directory
    of a checkpoint is taken to be called: its name goes into metadata. `lineage` writes a recipe beside the file.
    `stream` takes a repository of the Hub as source, and reads its weights from there.
    """

    source: str
    scheme: str
    out: str = ""
    converter: dict[str, Any] = field(default_factory=dict)
    quantizer: dict[str, Any] = field(default_factory=dict)
    threads: int | None = None
    overwrite: bool = False
    allow_nan: bool = False
    known_as: str = ""
    lineage: bool = True
    stream: bool = False


def preview(ctx: Context, request: BuildRequest) -> FilePlan:
    """The exact file, before any work. Raises what a build would raise, but for a missing importance matrix."""
    return _plan(ctx, request)[0]


def start(ctx: Context, request: BuildRequest) -> Job:
    """Check everything that can be checked beforehand, then start the detached job.

    Raises UsageError for a bad source, scheme, option or output path, PhituiError for a disk that is too small.
    """
    request = normalized(ctx, request)
    plan = _plan(ctx, request)[0]
    check(plan, request)
    title = f"{source_name(Path(request.source))} as {plan.scheme}"
    argv = command_line(request)
    return jobs(ctx).start("build", TASK, asdict(request), title, key=request.out, argv=argv)


def run(request: dict[str, Any], job: JobContext) -> dict[str, Any]:
    """The build itself, in the job's process. Returns path, size (bytes), seconds, scheme and figures of the plan."""
    from phitui.actions.build_lineage import BuildLineage
    from phitui.gguf.published import is_written
    from phitui.gguf.writer import WriteResult, write_gguf

    ctx = Context()
    build = BuildRequest(**request)
    plan, quantizer, chosen, source = _plan(ctx, build)
    for note in (*plan.notes, *_substitutions(plan)):
        job.note(note)
    out = Path(build.out)
    with BuildLineage(ctx, build, plan, source, quantizer, job) as lineage:
        if not build.overwrite and is_written(plan, out):  # a former attempt died after the rename
            job.note(f"{out} is complete already")
            written = WriteResult(out, out.stat().st_size, 0.0, out.stat().st_size)
            lineage.seal_existing()
        else:
            encoder = quantizer.encoder(plan, chosen)
            out.parent.mkdir(parents=True, exist_ok=True)
            threads, seal = build.threads or ctx.config.threads, lineage.seal if build.lineage else None
            written = write_gguf(
                plan, out, encoder, job, threads, overwrite=build.overwrite, allow_nan=build.allow_nan, seal=seal
            )
        lineage.publish()
    remember_build(ctx, plan, quantizer.options, build.quantizer, written.path, job)
    return {
        "path": str(written.path),
        "size": written.size,
        "seconds": round(written.seconds, 3),
        "resumed_bytes": written.resumed_bytes,
        "scheme": plan.scheme,
        "bits_per_weight": round(plan.bits_per_weight, 4),
        "parameters": plan.parameters,
        "substitutions": len(plan.substitutions),
        "not_finite": [str(tensor) for tensor in written.not_finite],
        "sha256": lineage.sha256,
        "lineage": lineage.path,
        "remote": asdict(written.remote) if written.remote else None,
    }


def normalized(ctx: Context, request: BuildRequest) -> BuildRequest:
    """The request with absolute paths and the output path filled in: the job's process runs in another directory."""
    source = source_path(ctx, request.source, request.stream)
    quantizer, scheme = find_scheme(ctx, request.scheme)
    default = ctx.paths.models / f"{source_name(source)}.{scheme.name}.gguf"
    out = Path(request.out).expanduser().absolute() if request.out else default.absolute()
    if not request.out:
        out.parent.mkdir(parents=True, exist_ok=True)
    converter = dict(request.converter)
    if source.is_dir():
        converter = _absolute(converter_for(ctx, source).options, converter)
    return replace(
        request,
        source=hub_id(source) or str(source),
        scheme=scheme.name,
        out=str(out),
        converter=converter,
        quantizer=_absolute(quantizer.options, request.quantizer),
    )


def _absolute(declared: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """The option values, checked, JSON-ready, with absolute paths.

    Where an option X has a companion X_name, that one keeps the path as it was given: it is what the file will say.
    """
    plain = options.plain(options.build(declared, values))
    known = {spec.name: spec for spec in options.specs(declared)}
    made = {}
    for name, value in plain.items():
        made[name] = value
        if known[name].kind is Path and not known[name].repeatable:
            made[name] = str(Path(value).expanduser().absolute())
            if f"{name}_name" in known and made[name] != value:
                made[f"{name}_name"] = plain.get(f"{name}_name", value)
    return made


def _plan(ctx: Context, request: BuildRequest) -> tuple[FilePlan, Quantizer, Any, TensorSource]:
    """(plan, quantizer, its options, source). Raises UsageError for a plan that is refused."""
    quantizer, scheme = find_scheme(ctx, request.scheme)
    chosen = options.build(quantizer.options, request.quantizer)
    path = request.source
    if request.known_as:
        path = str(known_as(ctx, source_path(ctx, path, request.stream), request.known_as))
    source = open_source(ctx, path, request.converter)
    plan = quantizer.plan(source, [scheme.name], chosen)[scheme.name]
    if plan.refused:
        raise UsageError(plan.refused)
    return plan, quantizer, chosen, source


def check(plan: FilePlan, request: BuildRequest) -> None:
    """Refuse, before any work, what cannot end well: a missing imatrix, or an output path that cannot be written."""
    if plan.needs_imatrix:
        raise UsageError(
            f"{plan.scheme} needs an importance matrix for {len(plan.needs_imatrix)} of {len(plan.tensors)} tensors, "
            f"the first of them {plan.needs_imatrix[0]}",
            _imatrix_hint(request) + "; phitui schemes shows what needs none",
        )
    out = Path(request.out)
    _check_not_source(plan, out)
    if out.is_dir():
        raise UsageError(f"{out} is a directory", f"name a file in it: {out / 'model.gguf'}")
    if out.exists() and not request.overwrite:
        raise OutputExists(f"{out} exists already", "choose another --out, or replace it with --overwrite")
    if not out.parent.is_dir():
        raise UsageError(f"the directory {out.parent} does not exist", f"mkdir -p {shlex.quote(str(out.parent))}")
    _check_room(plan, out)


def _imatrix_hint(request: BuildRequest) -> str:
    """What to type to get the missing importance matrix, which is made with a GGUF of the source."""
    ctx, source, commands = Context(), Path(request.source), []
    model, stream = source, ["--stream"] if request.stream else []
    if source.is_dir() or stream:
        model = ctx.paths.models / f"{source_name(source)}.AUTO.gguf"
        if not model.exists():
            commands.append(shlex.join(["phitui", "build", str(source), "--scheme", "AUTO", *stream]))
    matrix = default_out(ctx, model)
    if matrix.exists():
        return f"there is one: --imatrix {shlex.quote(str(matrix))}"
    commands.append(shlex.join(["phitui", "imatrix", str(model)]))
    return f"{' && '.join(commands)}\nthen build with --imatrix {shlex.quote(str(matrix))}"


def _check_not_source(plan: FilePlan, out: Path) -> None:
    if not out.exists():
        return
    read = {
        extent.path for tensor in plan.tensors for extent in tensor.source.extents if isinstance(extent, FileExtent)
    }
    if any(path.exists() and path.samefile(out) for path in read):
        raise UsageError(f"{out} is the source itself", "choose another --out: the source is never overwritten")


def _check_room(plan: FilePlan, out: Path) -> None:
    import os

    from phitui.gguf.header import file_size

    if not os.access(out.parent, os.W_OK | os.X_OK):
        raise PhituiError(f"{out.parent} is not writable", "choose an --out in a directory of yours")
    partial = out.with_name(out.name + ".partial")
    there = partial.stat().st_blocks * 512 if partial.exists() else 0
    needed, free = file_size(plan) - there, shutil.disk_usage(out.parent).free
    if needed > free:
        raise PhituiError(
            f"{out.parent} has {free / 2**30:.2f} GiB free, and the file needs {needed / 2**30:.2f} GiB",
            "make room, choose an --out on another disk, or a smaller scheme",
        )


def command_line(request: BuildRequest) -> tuple[str, ...]:
    """The command that does the same."""
    words = ["phitui", "build", request.source, "--scheme", request.scheme]
    words += ["--out", request.out] if request.out else []
    for name, value in (request.converter | request.quantizer).items():
        flag = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            words.append(flag if value else "--no-" + flag[2:])
        else:
            words += [
                word for item in (value if isinstance(value, list | tuple) else [value]) for word in (flag, str(item))
            ]
    words += ["--stream"] if request.stream else []
    words += ["--threads", str(request.threads)] if request.threads else []
    words += ["--allow-nan"] if request.allow_nan else []
    words += ["--known-as", request.known_as] if request.known_as else []
    words += [] if request.lineage else ["--no-lineage"]
    return (*words, "--overwrite") if request.overwrite else tuple(words)


def _wanted(tensor: PlannedTensor) -> str:
    """The type the scheme would have used."""
    return tensor.type.name if tensor.wanted is None else tensor.wanted.name


def _substitutions(plan: FilePlan) -> list[str]:
    """One sentence per kind of substitution."""
    kinds: dict[tuple[str, str, int], int] = {}
    for tensor in plan.substitutions:
        key = (_wanted(tensor), tensor.type.name, tensor.shape[0])
        kinds[key] = kinds.get(key, 0) + 1
    return [
        f"{count} tensor{'s are' if count > 1 else ' is'} {got} in place of {wanted}: "
        f"a row of {row} values does not divide into {wanted} blocks"
        for (wanted, got, row), count in kinds.items()
    ]


def as_document(plan: FilePlan) -> dict[str, Any]:
    """The plan as `phitui build --dry-run --json` prints it: sizes in bytes, shapes in ggml's order."""
    from phitui.gguf.header import file_size

    return {
        "scheme": plan.scheme,
        "size": file_size(plan),
        "bits_per_weight": round(plan.bits_per_weight, 4),
        "parameters": plan.parameters,
        "needs_imatrix": bool(plan.needs_imatrix),
        "imatrix_tensors": list(plan.needs_imatrix),
        "substitutions": [
            {"name": tensor.name, "wanted": _wanted(tensor), "to": tensor.type.name} for tensor in plan.substitutions
        ],
        "notes": [*plan.notes, *_substitutions(plan)],
        "tensors": [
            {
                "name": tensor.name,
                "shape": list(tensor.shape),
                "from": tensor.source.stored.name,
                "to": tensor.type.name,
                "size": tensor.size,
                **({"wanted": _wanted(tensor)} if tensor.substituted else {}),
            }
            for tensor in plan.tensors
        ],
    }
