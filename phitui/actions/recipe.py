"""Carry out a recipe: get, make an importance matrix, build, evaluate, plan, export, in one detached job.

A recipe that phitui wrote beside a file also says what it was made from and what came out: then the sources are
verified before work, and the result after it. Running a recipe again skips what is done and unchanged.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from phitui.actions import lineage
from phitui.actions.context import Context
from phitui.actions.jobs import jobs
from phitui.actions.recipe_example import example
from phitui.domain.offers import JobContext
from phitui.domain.recipe import Recipe
from phitui.domain.recipe_reading import loads
from phitui.domain.text import visible
from phitui.errors import UsageError
from phitui.jobs import Job
from phitui.jobs.model import RESUMABLE
from phitui.store.sidecar import beside, read_text

TASK = "phitui.actions.recipe:run"
CHECK = "phitui.actions.recipe:check"


@dataclass(frozen=True)
class RunRequest:
    """What to carry out, JSON-ready. `text` is the recipe as it was when the job was started.

    `source` and `out` replace the recipe's own; `force` builds although a source is another than the recorded one;
    `outside` lets the recipe write outside of its own directory.
    """

    recipe: str
    source: str = ""
    out: str = ""
    threads: int | None = None
    overwrite: bool = False
    force: bool = False
    outside: bool = False
    text: str = ""

    @property
    def base(self) -> Path:
        """The directory that paths in the recipe are relative to."""
        return Path(self.recipe).parent


def load(ctx: Context, request: RunRequest) -> tuple[RunRequest, Recipe]:
    """(the request with absolute paths and the recipe's text, the checked recipe).

    A model file stands for the recipe beside it. Raises UsageError naming the line that is wrong, or PhituiError.
    """
    path = Path(request.recipe).expanduser().absolute()
    if path.suffix == ".gguf" and path.is_file():
        if not beside(path).exists():
            raise UsageError(
                f"{visible(path.name)} has no recipe beside it: {beside(path).name}", "phitui run --example"
            )
        path = beside(path)
    text = read_text(path)
    request = replace(
        request,
        recipe=str(path),
        text=text,
        source=_absolute(request.source),
        out=str(Path(request.out).expanduser().absolute()) if request.out else "",
    )
    return request, loads(text, visible(path.name))


def start(ctx: Context, request: RunRequest) -> Job:
    """Check everything that can be checked beforehand, then start the detached job, or go on with one that stopped.

    Raises UsageError for a recipe or a request that is wrong, PhituiError for what cannot be done here.
    """
    from phitui.actions.recipe_steps import Steps

    request, recipe = load(ctx, request)
    key = f"recipe {request.recipe} {request.out}"
    former = next((job for job in jobs(ctx).list() if job.key == key), None)
    if former is not None and former.state in RESUMABLE and former.request == asdict(request):
        return jobs(ctx).resume(former.id)
    Steps(ctx, request, recipe).check()
    title = f"recipe {Path(request.recipe).name}: {', '.join(recipe.steps)}"
    return jobs(ctx).start("run", TASK, asdict(request), title, key=key, argv=command_line(request))


def run(request: dict[str, Any], job: JobContext) -> dict[str, Any]:
    """All steps, in the job's process. Returns `steps` by name, and of a recorded build whether it is the `same`."""
    from phitui.actions.recipe_steps import Steps

    asked = RunRequest(**request)
    recipe = loads(asked.text, Path(asked.recipe).name)
    steps = Steps(Context(), asked, recipe, job)
    done = {name: steps.carry_out(name) for name in recipe.steps}
    built = done.get("build") or done.get("imatrix") or {}
    return {
        "recipe": asked.recipe,
        "path": built.get("path", ""),
        "same": built.get("same"),
        "differences": built.get("differences", []),
        "steps": done,
    }


def start_check(ctx: Context, request: RunRequest) -> Job:
    """Start the detached job that reads the recorded files and compares. Raises UsageError for a recipe without any."""
    request, recipe = load(ctx, request)
    if recipe.result is None and not recipe.edits:
        raise UsageError(
            f"{Path(request.recipe).name} records no file: it was written by hand",
            "--check is for the recipe that phitui leaves beside a file",
        )
    title = f"check {Path(request.recipe).name}"
    return jobs(ctx).start(
        "check", CHECK, asdict(request), title, key=f"check {request.recipe}", argv=command_line(request, check=True)
    )


def check(request: dict[str, Any], job: JobContext) -> dict[str, Any]:
    """Read the file and what it was made from, whole. Returns `same`, and for each of them path, state and why."""
    from phitui.actions.recipe_sources import compare, present

    asked = RunRequest(**request)
    recipe, ctx = loads(asked.text, Path(asked.recipe).name), Context()
    with lineage.hash_store(ctx) as store:
        rows = present(ctx, asked, recipe)
        rows = compare(rows, store, fresh=True, job=job)
    return {
        "recipe": asked.recipe,
        "same": all(row.state == "same" for row in rows),
        "files": [asdict(row) | {"path": str(row.path)} for row in rows],
        "edits": [asdict(edit) for edit in recipe.edits],
    }


def command_line(request: RunRequest, check: bool = False) -> tuple[str, ...]:
    """The command that does the same."""
    words = ["phitui", "run", request.recipe]
    words += ["--source", request.source] if request.source else []
    words += ["--out", request.out] if request.out else []
    words += ["--threads", str(request.threads)] if request.threads else []
    flags: Mapping[str, bool] = {
        "--overwrite": request.overwrite,
        "--force": request.force,
        "--outside": request.outside,
        "--check": check,
    }
    return (*words, *(flag for flag, given in flags.items() if given))


def _absolute(source: str) -> str:
    """A path made absolute; a name in the library stays what it is."""
    path = Path(source).expanduser()
    return str(path.absolute()) if source and path.exists() else source


__all__ = ["RunRequest", "check", "example", "load", "run", "start", "start_check"]
