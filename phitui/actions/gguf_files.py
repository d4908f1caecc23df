"""GGUF files as files: split one into shards, merge shards into one. Tensors stay as they are."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from phitui.actions.context import Context
from phitui.actions.jobs import jobs
from phitui.actions.models import resolve_model
from phitui.domain.offers import JobContext
from phitui.domain.tensors import FilePlan
from phitui.errors import OutputExists, PhituiError, UsageError
from phitui.gguf import regroup
from phitui.gguf.header import Header, encode_header, file_size
from phitui.gguf.shards import model_stem, read_model, shard_name, shard_path
from phitui.jobs import Job

SPLIT_TASK = "phitui.actions.gguf_files:run_split"
MERGE_TASK = "phitui.actions.gguf_files:run_merge"
_COMPARE_BYTES = 1 << 20


@dataclass(frozen=True)
class SplitRequest:
    """A split, JSON-ready. One of `max_size` (bytes of tensors per file) and `max_tensors`.

    `out` is a directory or the path that all names begin with; empty: beside the file. `bare_first`: the first file has
    no tensors.
    """

    file: str
    out: str = ""
    max_size: int | None = None
    max_tensors: int | None = None
    bare_first: bool = False
    overwrite: bool = False


@dataclass(frozen=True)
class MergeRequest:
    """A merge, JSON-ready: of the set that `file` belongs to, into `out`."""

    file: str
    out: str
    overwrite: bool = False


Targets = list[tuple[Path, FilePlan]]


def plan_split(ctx: Context, request: SplitRequest) -> Targets:
    """The files of a split with their plans. Raises UsageError or InvalidFile; writes nothing."""
    header = read_model(resolve_model(ctx, request.file))
    plans = regroup.shards(header, request.max_size, request.max_tensors, request.bare_first)
    stem = _stem(request.out, header.path)
    return [(shard_path(stem, number, len(plans)), plan) for number, plan in enumerate(plans, 1)]


def start_split(ctx: Context, request: SplitRequest) -> Job:
    """Check everything that can be checked beforehand, then start the detached job."""
    request = replace(request, file=str(resolve_model(ctx, request.file)), out=_absolute(request.out))
    targets = plan_split(ctx, request)
    sources = read_model(request.file).files
    for path, _ in targets:
        check_target(path, sources, request.overwrite)
    room(targets[0][0].parent, sum(file_size(plan) for path, plan in targets if not path.exists()))
    title = f"{Path(request.file).name} in {len(targets)} parts"
    argv = _split_line(request)
    return jobs(ctx).start("split", SPLIT_TASK, asdict(request), title, key=str(targets[0][0]), argv=argv)


def run_split(request: dict[str, Any], job: JobContext) -> dict[str, Any]:
    """The split, in the job's process. The first file comes last: without it a set is seen to be incomplete."""
    from phitui.gguf.writer import write_gguf

    ctx = Context()
    asked = SplitRequest(**request)
    targets = plan_split(ctx, asked)
    total, done = sum(plan.data_size for _, plan in targets), 0
    seconds, complete = 0.0, 0
    first = targets[0][0]
    if asked.overwrite and first.exists() and not is_copy(targets[0][1], first):
        first.unlink()  # what is there now would be a mixture
    for path, plan in [*targets[1:], targets[0]]:
        part = _Part(job, done, total, path.name)
        if path.exists() and is_copy(plan, path, part):
            complete += 1
        else:
            seconds += write_gguf(
                plan, path, None, part, ctx.config.threads, overwrite=asked.overwrite, allow_nan=True
            ).seconds
        done += plan.data_size
    if complete:
        job.note(f"{complete} of {len(targets)} files were complete already")
    size = sum(file_size(plan) for _, plan in targets)
    return {"path": str(first), "parts": len(targets), "size": size, "seconds": round(seconds, 3)}


def files_of(targets: Targets) -> list[dict[str, Any]]:
    """Path, exact size and number of tensors of each file, JSON-ready."""
    return [{"path": str(path), "size": file_size(plan), "tensors": len(plan.tensors)} for path, plan in targets]


def plan_merge(ctx: Context, request: MergeRequest) -> tuple[Header, FilePlan]:
    """The split model and the one file it becomes. Raises UsageError if it is not split, InvalidFile if not whole."""
    header = read_model(resolve_model(ctx, request.file))
    return header, regroup.merged(header)


def start_merge(ctx: Context, request: MergeRequest) -> Job:
    """Check everything that can be checked beforehand, then start the detached job."""
    request = replace(request, file=str(resolve_model(ctx, request.file)), out=_absolute(request.out))
    header, plan = plan_merge(ctx, request)
    out = Path(request.out)
    if shard_name(out.name):
        raise UsageError(f"{out.name} is the name of a part, and this is the whole", f"--out {model_stem(out)}.gguf")
    check_target(out, header.files, request.overwrite)
    room(out.parent, file_size(plan))
    argv = ("phitui", "gguf", "merge", request.file, "--out", request.out, *["--overwrite"] * request.overwrite)
    title = f"{model_stem(header.path)} from {len(header.files)} parts"
    return jobs(ctx).start("merge", MERGE_TASK, asdict(request), title, key=request.out, argv=argv)


def run_merge(request: dict[str, Any], job: JobContext) -> dict[str, Any]:
    """The merge, in the job's process."""
    from phitui.gguf.writer import write_gguf

    ctx = Context()
    asked = MergeRequest(**request)
    header, plan = plan_merge(ctx, asked)
    out = Path(asked.out)
    seconds = 0.0
    if out.exists() and is_copy(plan, out, job):  # a former attempt died after the rename
        job.note(f"{out.name} is complete already")
    else:
        seconds = write_gguf(
            plan, out, None, job, ctx.config.threads, overwrite=asked.overwrite, allow_nan=True
        ).seconds
    return {
        "path": str(out),
        "size": file_size(plan),
        "parts": len(header.files),
        "tensors": len(plan.tensors),
        "seconds": round(seconds, 3),
    }


def is_copy(plan: FilePlan, path: Path, job: JobContext | None = None) -> bool:
    """Whether a file is exactly what a plan that only copies would write: every byte is compared."""
    from phitui.gguf.published import is_written
    from phitui.gguf.reading import SourceFiles

    if not is_written(plan, path):
        return False
    start = len(encode_header(plan))
    buffer = memoryview(bytearray(_COMPARE_BYTES))
    done = 0
    with SourceFiles(plan) as sources, path.open("rb", buffering=0) as file:
        for tensor in plan.tensors:
            for at in range(0, tensor.size, _COMPARE_BYTES):
                part = buffer[: min(_COMPARE_BYTES, tensor.size - at)]
                sources.read(tensor.source, at, part)
                if os.pread(file.fileno(), len(part), start + tensor.offset + at) != part:
                    return False
                done += len(part)
                if job:
                    job.progress(done, plan.data_size, f"comparing {path.name}")
    return True


class _Part:
    """The job of one file of several: its progress is a part of the whole."""

    def __init__(self, job: JobContext, before: int, total: int, name: str) -> None:
        self._job, self._before, self._total, self._name = job, before, total, name

    def progress(self, done: int, total: int, text: str = "") -> None:
        self._job.progress(self._before + done, self._total, text or self._name)

    def note(self, text: str) -> None:
        self._job.note(text)

    def check(self) -> None:
        self._job.check()


def check_target(out: Path, sources: Sequence[Path], overwrite: bool) -> None:
    """Raise UsageError or PhituiError where a file cannot be written."""
    if out.is_dir():
        raise UsageError(f"{out} is a directory", f"name a file in it: {out / 'model.gguf'}")
    if out.exists() and any(out.samefile(source) for source in sources):
        raise UsageError(f"{out} is the source itself", "choose another --out: the source is never overwritten")
    if os.path.lexists(out) and not overwrite:
        raise OutputExists(f"{out} exists already", "choose another --out, or replace it with --overwrite")
    if not out.parent.is_dir():
        raise UsageError(f"the directory {out.parent} does not exist", f"mkdir -p {shlex.quote(str(out.parent))}")
    if not os.access(out.parent, os.W_OK | os.X_OK):
        raise PhituiError(f"{out.parent} is not writable", "choose an --out in a directory of yours")


def room(directory: Path, needed: int) -> None:
    """Raise PhituiError if a directory's disk has fewer free bytes than that."""
    free = shutil.disk_usage(directory).free
    if needed > free:
        raise PhituiError(
            f"{directory} has {free / 2**30:.2f} GiB free, and {needed / 2**30:.2f} GiB are needed",
            "make room, or choose an --out on another disk",
        )


def _stem(out: str, source: Path) -> Path:
    """What the names of the shards begin with: beside the source, in a directory, or as it is said."""
    own = model_stem(source)
    if not out:
        return source.with_name(own)
    path = Path(out).expanduser()
    if path.is_dir() or out.endswith("/"):
        return path / own
    return path.with_name(model_stem(path)) if path.suffix == ".gguf" else path


def _absolute(out: str) -> str:
    """Absolute, with the slash at the end that says directory."""
    return str(Path(out).expanduser().absolute()) + ("/" if out.endswith("/") else "") if out else ""


def _split_line(request: SplitRequest) -> tuple[str, ...]:
    words = ["phitui", "gguf", "split", request.file]
    words += ["--out", request.out] if request.out else []
    words += ["--max-size", str(request.max_size)] if request.max_size else []
    words += ["--max-tensors", str(request.max_tensors)] if request.max_tensors else []
    words += ["--no-tensor-first-split"] if request.bare_first else []
    return (*words, "--overwrite") if request.overwrite else tuple(words)
