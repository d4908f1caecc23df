"""Errors nobody expected: the traceback goes to a file, the person gets its name."""

from __future__ import annotations

import os
import time
import traceback
from pathlib import Path

from phitui import __version__
from phitui.errors import PhituiError


def unexpected(error: BaseException, state: Path) -> PhituiError:
    """Write a report below `state`/crashes and return the error to show in its place."""
    text = f"unexpected error: {type(error).__name__}: {error}"
    report = state / "crashes" / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.txt"
    try:
        report.parent.mkdir(parents=True, exist_ok=True)
        report.touch(mode=0o600)
        report.write_text(f"phitui {__version__}\n" + "".join(traceback.format_exception(error)))
    except OSError:
        return PhituiError(text, "this is a defect of phitui or a plugin")
    return PhituiError(text, f"this is a defect of phitui or a plugin; details are in {report}")
