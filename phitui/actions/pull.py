"""Downloading a checkpoint or a GGUF from the Hub: judged by its config.json before any weights come."""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from phitui import hub
from phitui.actions import lineage, provenance
from phitui.actions.context import Context
from phitui.actions.jobs import jobs
from phitui.actions.models import judge
from phitui.domain.offers import JobContext
from phitui.domain.text import visible
from phitui.errors import PhituiError, UnsupportedModel, UsageError
from phitui.jobs import Job
from phitui.store.hashes import Hashed, Hashing, Identity, identity

TASK = "phitui.actions.pull:run"
WEIGHTS = "*.safetensors"
CHECKPOINT = (
    WEIGHTS,
    "*.safetensors.index.json",
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "preprocessor_config.json",
    "processor_config.json",
    "README.md",
    "LICENSE*",
)
"""What a conversion needs, and the model card, which names the license. Everything else stays on the Hub."""
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle")
"""Files that can run code when they are loaded: never downloaded."""


@dataclass(frozen=True)
class PullRequest:
    """What to download: REPO[@REVISION]. `to` is the directory; empty is one in phitui's models folder.

    `include` are file name patterns to take instead of a checkpoint's files (for ready GGUFs). `force` takes a
    checkpoint that no converter here can convert.
    """

    repo: str
    to: str = ""
    include: tuple[str, ...] = ()
    force: bool = False


def start(context: Context, request: PullRequest) -> Job:
    """Look at the repository, judge it, then start the detached download, pinned to the commit that was looked at.

    Raises UnsupportedModel for a checkpoint that cannot be converted, before any weights are downloaded.
    """
    source = hub.repository(request.repo)
    files = chosen(source, request.include)
    if not request.include and not request.force:
        require_convertible(context, source)
    name = source.id.partition("/")[2]
    to = Path(request.to).expanduser().absolute() if request.to else context.paths.models / name
    _check_space(to, files)
    pinned = replace(request, repo=f"{source.id}@{source.revision}", to=str(to))
    argv = ["phitui", "pull", pinned.repo, "--to", str(to), *(x for p in request.include for x in ("--include", p))]
    return jobs(context).start(
        "pull", TASK, asdict(pinned), f"download {source.id}", key=str(to), argv=[*argv, *_forced(request)]
    )


def run(request: dict[str, Any], job: JobContext) -> dict[str, Any]:
    """The download, in the job's process. Returns repo, revision, path, files, size (bytes) and seconds."""
    began, context = time.monotonic(), Context()
    pull = PullRequest(**{**request, "include": tuple(request["include"])})
    source = hub.repository(pull.repo)
    files = chosen(source, pull.include)
    to = Path(pull.to)
    _check_space(to, files)
    try:
        to.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PhituiError(f"cannot write to {to}: {error.strerror}", "choose another directory with --to DIR") from None
    total = sum(file.size for file in files)
    done = 0
    verified: dict[Path, tuple[Identity, str]] = {}
    for file in files:
        start, here = done, 0

        def count(size: int, start: int = start, name: str = file.name, limit: int = file.size) -> None:
            nonlocal here
            here = min(limit, here + size)
            job.progress(start + here, total, name)

        job.progress(start, total, file.name)
        path = hub.download(source, file, to, count)
        before = identity(path)
        hub.verify(path, file, lambda _: job.check())
        verified[path] = (before, file.sha256)
        done = start + file.size
    job.progress(total, total, "done")
    _note(context, source, to, verified, job)
    return {
        "repo": source.id,
        "revision": source.revision,
        "path": str(to),
        "files": [file.name for file in files],
        "size": total,
        "seconds": round(time.monotonic() - began, 3),
    }


def _note(
    context: Context, source: hub.Repository, to: Path, verified: dict[Path, tuple[Identity, str]], job: JobContext
) -> None:
    """Leave a note of repository, commit and hashes, so that a build knows where its source came from."""
    try:
        with lineage.hash_store(context) as store:
            for path, (before, sha256) in verified.items():
                if sha256:
                    store.put(path, sha256, before)
            unknown = [path for path, (_, sha256) in verified.items() if not sha256]
            hashes = dict(Hashing(store, unknown).finish())
        hashes |= {path: Hashed(before[0], sha256) for path, (before, sha256) in verified.items() if sha256}
        files = {path.relative_to(to).as_posix(): hashed for path, hashed in hashes.items()}
        made = lineage.made_by(context, ())
        problem = provenance.note_download(to, source.id, source.revision, files, made)
    except PhituiError as error:
        problem = error.message
    if problem:
        job.note(problem)


def require_convertible(context: Context, source: hub.Repository) -> None:
    """Raise UnsupportedModel if no converter takes this checkpoint, by its config.json alone."""
    verdict = judge(context, hub.fetch_config(f"{source.id}@{source.revision}"))
    if not verdict.ok:
        nearest = f"{verdict.nearest} is near and can be converted; " if verdict.nearest else ""
        raise UnsupportedModel(
            f"{source.id} cannot be converted: {verdict.reason}", f"{nearest}--force downloads it all the same"
        )


def chosen(source: hub.Repository, include: tuple[str, ...] = ()) -> list[hub.RemoteFile]:
    """The files to download, config.json last: a directory is no checkpoint before it is there.

    Raises UsageError or UnsupportedModel if nothing fits.
    """
    allowed = [file for file in source.files if not _matches(file.name, PICKLES)]
    if include:
        files = [file for file in allowed if _matches(file.name, include)]
        if not files:
            raise UsageError(f"no file of {source.id} fits {' '.join(map(visible, include))}", _ggufs(source))
    else:
        files = [file for file in allowed if "/" not in file.name and _matches(file.name, CHECKPOINT)]
        if not _any(files, WEIGHTS):
            raise _no_weights(source)
        if not _any(files, hub.CONFIG):
            raise UnsupportedModel(f"{source.id} has no {hub.CONFIG}: it is not a checkpoint", _ggufs(source))
    return sorted(files, key=lambda file: (file.name == hub.CONFIG, file.name))


def _no_weights(source: hub.Repository) -> PhituiError:
    if _any(source.files, "*.gguf"):
        return UsageError(f"{source.id} has no safetensors, but ready GGUF files", _ggufs(source))
    if any(_matches(file.name, PICKLES) for file in source.files):
        return UnsupportedModel(
            f"the weights of {source.id} are pickles, which can run code when they are loaded",
            "look for a copy with *.safetensors files",
        )
    return UnsupportedModel(f"{source.id} has no *.safetensors files", f"see https://huggingface.co/{source.id}")


def _ggufs(source: hub.Repository) -> str:
    names = [file.name for file in source.files if _matches(file.name, ("*.gguf",))]
    return "take one with --include, for example: " + ", ".join(names[:6]) if names else ""


def _any(files: list[hub.RemoteFile] | tuple[hub.RemoteFile, ...], pattern: str) -> bool:
    return any(fnmatch(file.name, pattern) for file in files)


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch(name.lower(), pattern.lower()) for pattern in patterns)


def _check_space(to: Path, files: list[hub.RemoteFile]) -> None:
    """Raise UsageError or PhituiError if the place cannot take what is not there yet."""
    missing = sum(file.size for file in files if not _is_there(to / file.name, file.size))
    there = next(path for path in (to, *to.parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise UsageError(f"{there} is no directory that can be written to", "choose another one with --to DIR")
    free = shutil.disk_usage(there).free
    if missing > free:
        raise PhituiError(
            f"{missing / 2**30:.2f} GiB are to be downloaded, but {there} has {free / 2**30:.2f} GiB free",
            "make room, or choose another disk with --to DIR",
        )


def _is_there(path: Path, size: int) -> bool:
    try:
        return path.stat().st_size == size
    except OSError:
        return False


def _forced(request: PullRequest) -> list[str]:
    return ["--force"] if request.force else []
