"""How fast devices read their memory, as measured on this machine: what decides how fast a model can answer.

One small JSON file; a device is known by its name and what it is, so a figure is not used for another card or CPU that
takes its place.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from pathlib import Path
from typing import Any

from phitui.config import Paths
from phitui.domain.hardware import Bandwidth, Device
from phitui.errors import PhituiError

FILE = "bandwidth.json"


def bandwidth_of(paths: Paths, device: Device) -> Bandwidth | None:
    """What was last measured of that device, or None. A damaged file counts as none. Never raises."""
    row = _rows(paths.state / FILE).get(_key(device.name, device.description))
    try:
        return Bandwidth(device.name, device.description, **row) if row else None
    except TypeError:
        return None


def keep_bandwidth(paths: Paths, measured: Bandwidth) -> None:
    """Remember a measurement in place of an earlier one of the same device. Raises PhituiError if the disk refuses."""
    file = paths.state / FILE
    rows = _rows(file)
    rows[_key(measured.device, measured.description)] = {
        "bytes_per_second": measured.bytes_per_second,
        "threads": measured.threads,
        "measured": measured.measured or round(time.time(), 3),
        "how": measured.how,
    }
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        draft.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
        draft.replace(file)
    except OSError as error:
        with contextlib.suppress(OSError):
            draft.unlink()
        raise PhituiError(f"cannot keep the measurement in {file}: {error.strerror}") from None


def _key(name: str, description: str) -> str:
    return f"{name} · {description}"


def _rows(file: Path) -> dict[str, Any]:
    try:
        rows = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {key: row for key, row in rows.items() if _sound(row)} if isinstance(rows, dict) else {}


def _sound(row: Any) -> bool:
    speed = row.get("bytes_per_second") if isinstance(row, dict) else None
    return isinstance(speed, int | float) and 0 < speed < 1e14
