"""Whether a file is there already, complete: what a job that died between rename and last word needs to know."""

from __future__ import annotations

from pathlib import Path

from phitui.domain.tensors import FilePlan
from phitui.gguf.header import encode_header


def is_written(plan: FilePlan, path: Path) -> bool:
    """True if `path` is the planned file. Files get their name only when they are complete, so header and size decide.

    The header holds every key, tensor, type and offset of the plan. False for what cannot be read.
    """
    header = encode_header(plan)
    try:
        with path.open("rb") as stream:
            return path.stat().st_size == len(header) + plan.data_size and stream.read(len(header)) == header
    except OSError:
        return False
