"""Changing a file where it lies: whom that would disturb, and what is said about the file elsewhere."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import stat
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from phitui.actions.context import Context
from phitui.actions.jobs import list_jobs
from phitui.errors import PhituiError, UsageError

_CONTENT_NAMED = re.compile(r"(sha256-)?[0-9a-f]{64}")


def check_in_place(ctx: Context, file: Path) -> None:
    """Files that belong to a store, or that a job works with, are not changed under it."""
    if file.is_symlink():
        raise UsageError(
            f"{file} is a link to {file.resolve()}", "edit that file if it is yours to change, or use --out FILE"
        )
    if _CONTENT_NAMED.fullmatch(file.name):
        raise UsageError(f"{file.name} is named by its content, which must not change", "use --out FILE")
    if not os.access(file, os.W_OK) or not os.access(file.parent, os.W_OK | os.X_OK):
        raise PhituiError(f"{file} cannot be written to: permission denied", "use --out FILE, or chmod u+w")
    for job in list_jobs(ctx):
        if job.live and str(file) in set(_texts(job.request)):
            raise PhituiError(
                f"job {job.id} ({job.title}) is working with {file.name}",
                f"wait for it (phitui jobs wait {job.id}), or use --out FILE",
            )


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from _texts(list(value.values()))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)


def others(path: Path, how: str) -> list[str]:
    """Who else sees the file."""
    notes = []
    with contextlib.suppress(OSError):
        links = path.stat().st_nlink
        if links > 1:
            other = "they all change" if how == "header" else "the others keep the old file"
            notes.append(f"the file has {links} names on this disk; {other}")
    users = mapped_by(path)
    if users:
        who = ", ".join(map(str, users[:5]))
        notes.append(
            f"process {who} has it loaded: it goes on with what it read, and sees the change when it loads again"
        )
    return notes


def mapped_by(path: Path) -> list[int]:
    """Processes of this user that have a file mapped, as engines have their model; [] where that cannot be seen."""
    name = str(path.resolve())
    found = []
    with contextlib.suppress(OSError):
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                with contextlib.suppress(OSError):
                    if any(
                        line.rstrip().endswith(name)
                        for line in (entry / "maps").read_text("utf-8", "replace").split("\n")
                    ):
                        found.append(int(entry.name))
    return sorted(found)


def has_lineage(file: Path) -> bool:
    from phitui.store.sidecar import beside, is_record

    return beside(file).exists() and is_record(beside(file))


def announce(ctx: Context, file: Path, what: str) -> str:
    """Say in the lineage, before the header is changed, that no recipe makes the file again: a kill leaves no lie.

    Its SHA-256 is left out: computing it would take a thousand times as long as the edit. Returns what went wrong.
    """
    from phitui.actions.lineage import made_by
    from phitui.domain.recipe import EditRecord
    from phitui.store.sidecar import Sidecar, beside, dumps, read_recipe

    if not has_lineage(file):
        return ""
    title = f"What is known of {file.name}. It was changed after it was made, so no recipe makes it again."
    try:
        recipe = read_recipe(beside(file))
        edit = EditRecord(made_by(ctx, ()).date, what, file.stat().st_size)
        sidecar = Sidecar(file)
        sidecar.prepare(dumps(replace(recipe, edits=(*recipe.edits, edit)), title))
        sidecar.publish()
    except PhituiError as error:
        return f"the edit is not recorded in {beside(file).name}: {error.message}"
    return ""


def make_partial(fresh: Path, mode: int) -> None:
    """The unfinished file has the permissions of the one it will replace, from the first byte on."""
    partial = fresh.with_name(fresh.name + ".partial")
    with contextlib.suppress(FileExistsError):
        os.close(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    partial.chmod(mode | stat.S_IRUSR | stat.S_IWUSR)


def replace_file(fresh: Path, file: Path, mode: int) -> None:
    try:
        fresh.chmod(mode)
        fresh.replace(file)
        directory = os.open(file.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as error:
        raise PhituiError(
            f"{file} cannot be replaced: {error.strerror}", f"mv {shlex.quote(str(fresh))} {shlex.quote(str(file))}"
        ) from None
