"""Writing small text files so that they are there completely or not at all."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from phitui.errors import OutputExists, PhituiError


def write_text(path: Path, text: str, *, overwrite: bool = False, private: bool = False) -> None:
    """Write under another name, sync, then link or rename: without `overwrite` nothing is replaced, not even in a race.

    `private` files can be read by their owner only. Raises OutputExists or PhituiError.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.touch(mode=0o600 if private else 0o666)
        with partial.open("w", encoding="utf-8", newline="") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        if overwrite:
            partial.replace(path)
        else:
            os.link(partial, path)
    except FileExistsError:
        raise OutputExists(f"{path} is there already", "choose another name, or replace it with --overwrite") from None
    except OSError as error:
        raise PhituiError(f"cannot write {path}: {error.strerror}", "--out writes to another place") from None
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
