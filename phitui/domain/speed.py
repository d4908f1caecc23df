"""How fast a plan will answer: bytes that each token reads, over what each device reads in a second."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from phitui.domain.memory import DevicePlan


@dataclass(frozen=True)
class Speed:
    """Tokens per second of an answer. `source` says in a few words where the figure is from."""

    tokens_per_s: float
    how: Literal["measured", "estimated"]
    source: str


def estimated_speed(devices: Sequence[DevicePlan], bandwidth: Mapping[str, float]) -> Speed | None:
    """The speed limit that memory sets, by device name to bytes per second; None where a device's is not known.

    Layers are worked through one after the other, so the times of the devices add up. Real engines stay below it.
    """
    seconds = 0.0
    for row in devices:
        if not row.read:
            continue
        if bandwidth.get(row.name, 0.0) <= 0:
            return None
        seconds += row.read / bandwidth[row.name]
    names = ", ".join(f"{row.name} {bandwidth[row.name] / 1e9:.0f} GB/s" for row in devices if row.read)
    return Speed(1 / seconds, "estimated", f"memory bandwidth: {names}") if seconds > 0 else None
