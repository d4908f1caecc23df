"""The files a recipe records: where they are now, and whether they are still what they were."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from phitui.actions import lineage, models
from phitui.actions.context import Context
from phitui.actions.provenance import checkpoint_files, downloaded
from phitui.domain.offers import JobContext
from phitui.domain.recipe import BuildStep, FileRecord, Recipe, SourceRecord
from phitui.domain.text import visible
from phitui.errors import InvalidFile, PhituiError, UsageError
from phitui.store.hashes import Hashing, HashStore

if TYPE_CHECKING:
    from phitui.actions.recipe import RunRequest


@dataclass(frozen=True)
class Row:
    """A recorded file. `role` is result, source or the option it was given by; `state` same, changed, missing or new.

    `size` and `sha256` are the recorded ones.
    """

    role: str
    name: str
    path: Path
    size: int = 0
    sha256: str = ""
    state: str = ""
    why: str = ""


def locate(ctx: Context, request: RunRequest, recipe: Recipe, fetched: str = "") -> str:
    """The source to build from: asked for, downloaded by the recipe, where the recipe says, or found by its hash.

    Raises UsageError saying how to get it.
    """
    given = recipe.build.source if recipe.build else ""
    if request.source or fetched:
        return request.source or fetched
    if recipe.build and recipe.build.stream:
        return given
    path = request.base / Path(given).expanduser()
    if given and path.exists():
        return str(path)
    if given and "/" not in given:
        artifact = models.named(ctx, given)
        if artifact is not None:
            return str(artifact.path)
    found = (_downloaded(ctx, recipe.source) or _by_hash(ctx, recipe.source)) if recipe.source else None
    if found is not None:
        return str(found)
    raise _not_here(given, recipe.source)


def _downloaded(ctx: Context, source: SourceRecord) -> Path | None:
    """The same commit of the same repository in the library: pulled, or in the Hub's cache."""
    if not source.repo or not source.revision:
        return None
    for artifact in models.library(ctx):
        directory = artifact.path if artifact.kind == "checkpoint" else artifact.path.parent
        wanted = "checkpoint" if source.kind == "checkpoint" else "gguf"
        named = artifact.kind == "checkpoint" or artifact.path.name == source.name
        if artifact.kind == wanted and named and downloaded(directory)[:2] == (source.repo, source.revision):
            return artifact.path
    return None


def _by_hash(ctx: Context, source: SourceRecord) -> Path | None:
    """Where this machine last saw the largest recorded file: finds a source that was moved or renamed."""
    if not source.files:
        return None
    largest = max(source.files, key=lambda file: file.size)
    with lineage.hash_store(ctx) as store:
        for path in store.where(largest.sha256):
            if source.kind == "gguf":
                return path
            directory = path.parents[len(Path(largest.path).parts) - 1]
            if (directory / "config.json").is_file():
                return directory
    return None


def _not_here(given: str, source: SourceRecord | None) -> UsageError:
    shown = visible(given or (source.title if source else "") or "the source")
    if source is not None and source.repo:
        pull = f"phitui pull {source.repo}" + (f"@{source.revision}" if source.revision else "")
        include = f" --include {source.files[0].path}" if source.kind == "gguf" and source.files else ""
        return UsageError(f"{shown} is not on this machine", f"{visible(pull + include)}, then the same again")
    if models.is_hub_id(given):
        return UsageError(f"{shown} is not on this machine", f"phitui pull {shown}, or a [get] section in the recipe")
    return UsageError(f"{shown} is not on this machine", "say where it is: --source PATH")


def source_rows(recipe: Recipe, source: Path) -> list[Row]:
    """The recorded files of the source, and those that a converter would read although they were not there then."""
    record = recipe.source
    if record is None:
        return []
    single = record.kind == "gguf" and len(record.files) == 1 and source.is_file()
    folder = source if source.is_dir() else source.parent
    rows = [_row("source", file, source if single else folder / file.path) for file in record.files]
    streamed = recipe.build is not None and recipe.build.stream  # which reads no more files than it needs
    if source.is_dir() and record.files and not streamed:
        known = {file.path for file in record.files}
        for path in checkpoint_files(source):
            name = path.relative_to(source).as_posix()
            if name not in known:
                rows.append(Row("source", name, path, state="new", why="it was not there then"))
    return rows


def option_rows(ctx: Context, request: RunRequest, recipe: Recipe) -> list[Row]:
    """The recorded files that options name, such as an importance matrix."""
    files = (*recipe.build_files, *recipe.imatrix_files)
    return [_row(file.option, file, find_file(ctx, request, file)) for file in files]


def find_file(ctx: Context, request: RunRequest, file: FileRecord) -> Path:
    """Where a recorded file is: where the recipe says, or where this machine last saw its content."""
    path = request.base / Path(file.path).expanduser()
    if not path.exists() and file.sha256:
        with lineage.hash_store(ctx) as store:
            return next(iter(store.where(file.sha256)), path)
    return path


def recorded_name(request: RunRequest, recipe: Recipe) -> str:
    """The name of the file beside which a recipe lies: they are renamed together, and the recipe's text stays."""
    stem = Path(request.recipe).stem
    if stem.endswith(".gguf") or recipe.result is None:
        return stem
    return Path(recipe.result.file).name


def present(ctx: Context, request: RunRequest, recipe: Recipe) -> list[Row]:
    """Every file the recipe records: the result first."""
    rows = []
    last = recipe.edits[-1] if recipe.edits else recipe.result
    if last is not None:
        path = Path(request.out) if request.out else request.base / recorded_name(request, recipe)
        rows.append(Row("result", path.name, path, last.size, last.sha256))
    rows += option_rows(ctx, request, recipe)
    if recipe.source is not None and recipe.source.files and (recipe.build or recipe.imatrix):
        given = recipe.build.source if recipe.build else recipe.imatrix.model if recipe.imatrix else ""
        try:
            source = Path(locate(ctx, request, replace(recipe, build=recipe.build or _standing_for(given))))
        except PhituiError as error:
            rows += [
                Row("source", f.path, Path(f.path), f.size, f.sha256, "missing", error.message)
                for f in recipe.source.files
            ]
        else:
            if request.source or not (recipe.build and recipe.build.stream):
                rows += source_rows(recipe, source.absolute())
    return rows


def compare(rows: Sequence[Row], store: HashStore, *, fresh: bool = False, job: JobContext | None = None) -> list[Row]:
    """The rows with their state. With `fresh` every byte is read, whatever is remembered of a file."""
    to_read = [row.path for row in rows if not row.state and _size(row.path) == row.size]
    hashing = Hashing(store, to_read, fresh=fresh)
    hashes = hashing.finish(lambda done, total: job.progress(done, total, "checksums") if job else None)
    done = []
    for row in rows:
        state, why = row.state, row.why
        if not state:
            size = _size(row.path)
            if size is None:
                state, why = "missing", f"there is no {row.path}"
            elif size != row.size:
                state, why = "changed", f"it has {size:,} bytes, not {row.size:,}"
            elif not row.sha256:  # an edit of the header in place does not read the whole file
                state, why = "unchecked", "nobody took its checksum after the last edit"
            elif row.sha256 and hashes[row.path].sha256 != row.sha256:
                state, why = "changed", f"its SHA-256 is {hashes[row.path].sha256[:12]}..., not {row.sha256[:12]}..."
            else:
                state = "same"
        done.append(replace(row, state=state, why=why))
    return done


def refuse(rows: Sequence[Row], job: JobContext | None, force: bool) -> None:
    """Raise InvalidFile if a file is not what it was, naming each; with `force` only note it."""
    wrong = [row for row in rows if row.state != "same"]
    if not wrong:
        return
    lines = [f"{visible(row.name)} ({visible(row.role)}) is {row.state}: {visible(row.why)}" for row in wrong]
    if force:
        for line in lines if job else ():
            job.note(f"--force: {line}")  # type: ignore[union-attr]
        return
    more = f"\n{chr(10).join(lines[1:])}" if len(lines) > 1 else ""
    raise InvalidFile(
        f"this is not what the recipe was made with: {lines[0]}{more}",
        "give the right one with --source PATH, or build from what is here with --force",
    )


def _row(role: str, file: FileRecord, path: Path) -> Row:
    return Row(role, file.path, path, file.size, file.sha256)


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size if path.is_file() else None
    except OSError:
        return None


def _standing_for(source: str) -> BuildStep:
    """A step that names a source: the one of an importance matrix is its model."""
    return BuildStep(source=source)
