"""A checkpoint seen under another name. Its directory's name goes into metadata, so a recipe must be able to say it."""

from __future__ import annotations

import contextlib
import hashlib
import re
from pathlib import Path, PurePosixPath

from phitui.actions.context import Context
from phitui.errors import PhituiError, UsageError

_PART = re.compile(r"[^/\\\x00-\x1f]{1,255}")


def name_of(directory: Path) -> str:
    """What a converter goes by: the directory's name; in the Hub's cache models--ORG--NAME/snapshots/COMMIT."""
    parents = directory.parts[-3:]
    if len(parents) == 3 and parents[1] == "snapshots" and parents[0].startswith("models--"):
        return "/".join(parents)
    return directory.name


def known_as(ctx: Context, directory: Path, name: str) -> Path:
    """The directory under that name: a link to it in phitui's cache, or itself if it is called so already.

    Raises UsageError for a name that is none, PhituiError where no link can be made.
    """
    if not name or name_of(directory) == name:
        return directory
    parts = PurePosixPath(name).parts
    if len(parts) > 3 or any(part in ("..", "/") or not _PART.fullmatch(part) for part in parts):
        raise UsageError(f"{name!r} cannot be the name of a checkpoint", "for example: Phi-4-mini-instruct")
    real = directory.resolve()
    place = hashlib.sha256(str(real).encode("utf-8", "surrogateescape")).hexdigest()[:16]
    link = ctx.paths.cache / "views" / place / Path(*parts)
    try:
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.is_symlink():
            with contextlib.suppress(FileExistsError):  # another job of the same recipe
                link.symlink_to(real, target_is_directory=True)
    except OSError as error:
        raise PhituiError(f"cannot make the link {link}: {error.strerror}") from None
    return link
