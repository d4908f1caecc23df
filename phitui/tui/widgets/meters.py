"""Bars of what a plan puts on each device."""

from __future__ import annotations

from typing import TYPE_CHECKING

from textual.content import Content
from textual.widget import Widget

from phitui.tui import format as show
from phitui.tui.text import lines, styled

if TYPE_CHECKING:
    from phitui.domain.offload import DevicePlan, OffloadPlan

PARTS = (("weights", "█", "$primary"), ("KV cache", "▓", "$accent"), ("compute", "▒", "$secondary"))


class Meters(Widget):
    """One line of bar and one of figures per device; parts differ by their shading, not only by their colour."""

    ALLOW_SELECT = False
    DEFAULT_CSS = """
    Meters { height: auto; padding: 0 1; }
    """
    plan: OffloadPlan | None = None

    def show(self, plan: OffloadPlan | None) -> None:
        self.plan = plan
        self.refresh(layout=True)

    def render(self) -> Content:
        if self.plan is None:
            return Content("")
        width = max(20, self.size.width)
        rows: list[Content | str] = []
        for device in self.plan.devices:
            rows += [_bar(device, width), _figures(device, width), ""]
        legend = [styled(f"{glyph * 2} ", style) + styled(name, "$muted") for name, glyph, style in PARTS]
        return lines([*rows, Content("   ").join([*legend, styled("░░ free", "$muted")])])


def _label(device: DevicePlan) -> str:
    return "RAM" if device.kind == "cpu" else device.name


def _bar(device: DevicePlan, width: int) -> Content:
    """The bar is the memory that is free now; what does not fit runs over its end."""
    room = max(10, width - 8 - 28)
    scale = room / max(1, device.free, device.sum)
    parts, cells = [], 0
    for size, (_, glyph, style) in zip((device.weights, device.kv, device.compute), PARTS, strict=True):
        wide = min(room - cells, max(1 if size else 0, round(size * scale)))
        parts.append(styled(glyph * wide, style if device.fits else "$error"))
        cells += wide
    rest = styled("░" * (room - cells), "$muted")
    need = f"{show.size(device.sum)} of {show.size(device.free)}"
    sign = styled(" ✓", "$success") if device.fits else styled(" ✗", "$error")
    label = styled(_label(device)[:7].ljust(8), "bold")
    return label + Content("").join(parts) + rest + "  " + styled(need, "" if device.fits else "$error") + sign


def _figures(device: DevicePlan, width: int) -> Content:
    parts = [
        f"weights {show.size(device.weights)}",
        f"KV {show.size(device.kv)}",
        f"compute {show.size(device.compute)}",
        f"on {device.endpoint}" if device.endpoint else "",
    ]
    return styled(" " * 8 + "  ".join(filter(None, parts)), "$muted").truncate(width, ellipsis=True)
