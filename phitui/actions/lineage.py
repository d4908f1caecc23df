"""Lineage: beside every file phitui makes lies a recipe that tells what it was made from and makes it again.

Hashes are taken by threads of their own while the file is written; the recipe is complete or absent, and a build is
never lost for want of one.
"""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from phitui import __version__
from phitui.actions import provenance
from phitui.actions.context import Context
from phitui.domain import options
from phitui.domain.offers import JobContext, Offer, Versioned
from phitui.domain.recipe import EditRecord, FileRecord, MadeRecord, Recipe, ResultRecord, SourceRecord
from phitui.domain.text import visible
from phitui.errors import PhituiError
from phitui.store.hashes import Hashed, Hashing, HashStore
from phitui.store.sidecar import Sidecar, beside, dumps, is_record, read_beside, read_recipe

RESULT_TITLE = """How {name} was made. To make it again{exactly}:
  phitui run {recipe}
To see whether it and what it was made from are still the same:
  phitui run {recipe} --check"""


def hash_store(ctx: Context) -> HashStore:
    """The remembered hashes of this phitui."""
    return HashStore(ctx.paths.cache / "hashes.db")


@dataclass(frozen=True)
class OptionFile:
    """A file that an option names."""

    option: str
    path: Path


def option_files(declared: type, values: Mapping[str, Any]) -> list[OptionFile]:
    """The files among option values: what they hold decides the result as much as the options do."""
    return [
        OptionFile(spec.name, Path(values[spec.name]))
        for spec in options.specs(declared)
        if spec.kind is Path and not spec.repeatable and values.get(spec.name)
    ]


class Recorder:
    """Records the lineage of `out` while it is made.

    Use: make one before the work, call `seal` with the finished file's SHA-256 right before it gets its name, `publish`
    right after, and `close` in any case. What goes wrong is said in the job's notes, and the work goes on.
    """

    def __init__(self, ctx: Context, out: Path, source: provenance.Found, extra: Iterable[OptionFile]) -> None:
        self._out, self._source, self._extra = out, source, list(extra)
        self._sidecar, self._ready, self.problem = Sidecar(out), False, ""
        self._sha256 = ""
        self._store = hash_store(ctx)
        self._hashing: Hashing | None = None
        try:
            paths = [*source.files.values(), *(file.path for file in self._extra)]
            self._hashing = Hashing(self._store, paths)
        except PhituiError as error:
            self.problem = error.message

    def seal(self, recipe: Recipe, result: ResultRecord, job: JobContext) -> None:
        """Wait for the hashes and write the recipe, complete, under another name. Raises Cancelled only."""
        self._sha256 = result.sha256
        if self._hashing is None:
            return

        def report(done: int, total: int) -> None:
            job.progress(done, total, "checksums of the source")

        try:
            hashes = self._hashing.finish(report)
            records = tuple(
                FileRecord(relative(file.path, self._out.parent), *_pair(hashes[file.path]), option=file.option)
                for file in self._extra
            )
            whole = replace(
                recipe,
                source=self._source.recorded(hashes),
                build_files=records if recipe.build else (),
                imatrix_files=() if recipe.build else records,
                result=result,
            )
            exactly = ", byte for byte" if recipe.build else ""
            title = RESULT_TITLE.format(name=self._out.name, recipe=beside(self._out).name, exactly=exactly)
            self._sidecar.prepare(dumps(whole, title))
            self._ready = True
        except PhituiError as error:
            if error.exit_code == 130:
                raise
            self.problem = error.message

    def publish(self, job: JobContext) -> Path | None:
        """Give the recipe its name. Returns its path, or None, with a note, where there is none."""
        if self._ready:
            try:
                self._sidecar.publish()
            except PhituiError as error:
                self.problem = error.message
            else:
                return self._sidecar.path
        drop_stale(self._out, self._sha256)
        job.note(f"{self._out.name} is complete, but its lineage is not recorded: {self.problem or 'unknown'}")
        return None

    def close(self) -> None:
        """End the threads, and remove what is unfinished."""
        if self._hashing is not None:
            self._hashing.stop()
        self._store.__exit__()
        self._sidecar.discard()


def drop_stale(path: Path, sha256: str = "") -> None:
    """Remove a recipe that phitui wrote beside a former file of that name; `sha256` is the one of the file now."""
    sidecar = beside(path)
    with contextlib.suppress(OSError, PhituiError):
        if is_record(sidecar):
            result = read_recipe(sidecar).result
            if result is None or result.sha256 != sha256:
                sidecar.unlink()


def _pair(hashed: Hashed) -> tuple[int, str]:
    return hashed.size, hashed.sha256


def made_by(ctx: Context, offers: Iterable[Offer]) -> MadeRecord:
    """This phitui, now, and the versions of what these offers make the bytes with."""
    machine = f"{platform.system()} {platform.machine()}"
    date = datetime.now(UTC).replace(microsecond=0).isoformat()
    return MadeRecord(__version__, date, machine, versions=versions(ctx, offers))


def versions(ctx: Context, offers: Iterable[Offer]) -> dict[str, str]:
    """What decides the bytes, by name: libraries that the offers name, and plugins that are not phitui's own."""
    found: dict[str, str] = {}
    for offer in offers:
        for info in ctx.registry.plugins:
            if not info.first_party and any(line.endswith(f": {offer.name}") for line in info.offers):
                found[info.name] = info.version
        if isinstance(offer, Versioned):
            try:
                found |= {str(name): str(version) for name, version in offer.versions().items()}
            except Exception as error:  # a stranger's code must not cost the build
                found[offer.name] = f"unknown ({type(error).__name__})"
    return found


def relative(path: Path, base: Path) -> str:
    """The path as a recipe in `base` says it: relative where both lie in one tree, so that the tree can be moved."""
    common = Path(os.path.commonpath([path, base]))
    if common == Path(common.anchor):
        return str(path)
    return Path(os.path.relpath(path, base)).as_posix()


def relative_options(declared: type, values: Mapping[str, Any], base: Path) -> dict[str, Any]:
    """Option values with the paths among them as `relative` says them.

    What the file says of such a path stays the same: an option X_name beside an option X tells it (phitui.actions.build
    fills it in for relative paths).
    """
    paths = {file.option: file.path for file in option_files(declared, values)}
    known = {spec.name for spec in options.specs(declared)}
    made = {name: relative(paths[name], base) if name in paths else value for name, value in values.items()}
    said = {f"{name}_name": str(path) for name, path in paths.items() if f"{name}_name" in known}
    return made | {name: value for name, value in said.items() if name not in made}


def told(recipe: Recipe) -> str:
    """The lineage in one line: microsoft/Phi-4@0123abc, Q4_K_M, imatrix phi.imatrix.gguf."""
    parts = [recipe.source.title if recipe.source else ""]
    if recipe.build:
        parts.append(recipe.build.scheme)
        parts += [f"{file.option} {Path(file.path).name}" for file in recipe.build_files]
        parts += [f"{name} {' '.join(map(str, v)) if isinstance(v, list) else v}" for name, v in _telling(recipe)]
    elif recipe.imatrix:
        parts.append(f"text {Path(recipe.imatrix.text).name}" if recipe.imatrix.text else "phitui's own text")
    parts += [f"then: {edit.what}" for edit in recipe.edits]
    return visible(", ".join(part for part in parts if part))


def _telling(recipe: Recipe) -> list[tuple[str, Any]]:
    """Options worth a word: not the files, which are told already, and not what they are called."""
    files = {file.option for file in recipe.build_files}
    known = files | {f"{name}_name" for name in files}
    return [(name, value) for name, value in recipe.quantizer.items() if name not in known]


def lineage_of(path: Path) -> str:
    """What is known of how a file was made, in one line; of a directory, what it was downloaded from. Else empty."""
    if path.is_dir():
        repo, revision, _ = provenance.downloaded(path)
        return visible(f"{repo}@{revision[:12]}") if repo else ""
    recipe = read_beside(path)
    return told(recipe) if recipe is not None else ""


def record_edit(ctx: Context, path: Path, what: str, made_from: Path | None = None) -> str:
    """Note in the lineage of `path` that it was changed (`what`, in a few words), so that nobody takes it for the
    file of its recipe. `made_from` is the file it was made from, where it was not changed in place.

    To be called after the change; `before` of an in-place change is told by the recipe that is there. Returns a
    sentence about what could not be recorded, or an empty text.
    """
    origin = made_from or path
    try:
        recipe = _before(origin)
        with hash_store(ctx) as store:
            hashed = Hashing(store, [path]).finish()[path]
        edit = EditRecord(made_by(ctx, ()).date, what, hashed.size, hashed.sha256)
        if recipe is None and made_from is not None:
            found = provenance.of_file(made_from)
            with hash_store(ctx) as store:
                recipe = Recipe(source=found.recorded(Hashing(store, found.files.values()).finish()))
        recipe = recipe or Recipe(source=SourceRecord(kind="gguf", name=path.name))
        made = recipe.made or made_by(ctx, ())
        sidecar = Sidecar(path)
        title = f"What is known of {path.name}. It was changed after it was made, so no recipe makes it again."
        sidecar.prepare(dumps(replace(recipe, made=made, edits=(*recipe.edits, edit)), title))
        sidecar.publish()
    except PhituiError as error:
        return f"the lineage of {path.name} is not recorded: {error.message}"
    return ""


def _before(path: Path) -> Recipe | None:
    """The recipe beside a file that may have been changed since: only its name is held against it."""
    try:
        recipe = read_recipe(beside(path))
    except PhituiError:
        return None
    return recipe if recipe.made is not None else None
