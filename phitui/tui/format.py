"""Numbers and names as the terminal shows them. Sizes are bytes, times seconds."""

from __future__ import annotations

import math
import time
from pathlib import Path

GIB = 1024**3


def size(count: float | None) -> str:
    """Bytes in binary units with three figures: 2.32 GiB, 98.5 MiB; "-" for none."""
    if count is None:
        return "-"
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(value) < 1000 or unit == "GiB":
            return f"{value:.0f} B" if unit == "B" else f"{figures(value)} {unit}"
        value /= 1024
    raise AssertionError


def figures(value: float) -> str:
    """A number with about three figures: 2.32, 98.5, 312."""
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}" if abs(value) < 100 else f"{value:.0f}"


def count(number: float) -> str:
    """A count for people: 134M, 3.8B; thousands as they are."""
    for limit, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if number >= limit:
            return f"{number / limit:.1f}{unit}" if number < 10 * limit else f"{number / limit:.0f}{unit}"
    return f"{number:.0f}"


def duration(seconds: float | None) -> str:
    """A time span: 4 s, 2 min 05 s, 1 h 10 min; "-" for unknown."""
    if seconds is None or seconds < 0 or math.isnan(seconds):
        return "-"
    whole = int(seconds + 0.5)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def clock(moment: float | None) -> str:
    """A moment: the time if it is of today, else the day."""
    if not moment:
        return "-"
    then = time.localtime(moment)
    today = time.localtime()
    return time.strftime("%H:%M:%S" if then[:3] == today[:3] else "%Y-%m-%d", then)


def short_path(path: Path | str) -> str:
    """A path with the home directory as ~."""
    text = str(path)
    home = str(Path.home())
    return "~" + text[len(home) :] if text == home or text.startswith(home + "/") else text


def bar(part: float, width: int, full: str = "█", empty: str = "░") -> str:
    """A bar of `width` cells of which `part` (0..1) is full."""
    filled = round(max(0.0, min(1.0, part)) * width)
    return full * filled + empty * (width - filled)
