"""What frames every place: the head with the model in hand and the tabs, and the keys at the foot."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from textual.content import Content
from textual.events import Click
from textual.widget import Widget

from phitui.tui.format import size
from phitui.tui.text import styled

if TYPE_CHECKING:
    from textual.binding import Binding
    from textual.screen import Screen

    from phitui.domain.hardware import Device
    from phitui.tui.app import PhituiApp

PLACES = ("models", "build", "plan", "chat", "export", "jobs", "machine")
"""The seven places in the order of their keys."""

_ACTIVE = {"running", "queued"}


class Head(Widget):
    """Two lines: model in hand and memory; the tabs."""

    ALLOW_SELECT = False
    DEFAULT_CSS = """
    Head { dock: top; height: 2; background: $surface; color: $foreground; }
    """
    app: PhituiApp

    def __init__(self, place: str) -> None:
        super().__init__()
        self.place = place
        self._ends: list[int] = []

    def on_mount(self) -> None:
        for name in ("hand", "devices", "jobs"):
            self.watch(self.app, name, self._changed, init=False)

    def _changed(self) -> None:
        self.refresh()

    def on_click(self, event: Click) -> None:
        for place, end in zip(PLACES, self._ends, strict=False):
            if event.y == 1 and event.x < end:
                self.app.action_place(place)
                return

    def render(self) -> Content:
        width = self.size.width
        return Content("\n").join([self._top(width), self._tabs(width)])

    def _top(self, width: int) -> Content:
        memory = self._memory(width)
        name = Content.styled(" phitui ", "$accent bold")
        room = max(0, width - name.cell_length - memory.cell_length - 2)
        hand = self._hand(room).truncate(room, ellipsis=True)
        return name + hand + " " * (room - hand.cell_length + 1) + memory + " "

    def _hand(self, room: int) -> Content:
        hand = self.app.hand
        if hand is None:
            return Content.styled("no model in hand", "$muted")
        name = hand.name.removesuffix(".gguf")
        scheme = "" if hand.scheme.lower() in name.lower() else hand.scheme
        facts = " · ".join(part for part in (scheme, size(hand.size) if hand.size else "") if part)
        tail = styled(f" · {facts}", "$muted") if facts else Content("")
        return styled(name, "bold").truncate(max(8, room - tail.cell_length), ellipsis=True) + tail

    def _memory(self, width: int) -> Content:
        """Used and total memory of the first devices, without decimals where room is scarce."""
        gpus = [device for device in self.app.devices if device.kind != "cpu"]
        cpus = [device for device in self.app.devices if device.kind == "cpu"][:1]
        shown = [*gpus[: 2 if width >= 110 else 1], *cpus]
        parts = [_used(device, 1 if width >= 100 else 0) for device in shown]
        return Content.styled(" · ", "$muted").join(parts) + (Content.styled(" GiB", "$muted") if parts else "")

    def _tabs(self, width: int) -> Content:
        running = [job for job in self.app.jobs if job.state in _ACTIVE]
        parts = []
        for number, place in enumerate(PLACES, 1):
            title = place.capitalize() + (f" ({len(running)})" if place == "jobs" and running else "")
            style = "$background on $primary bold" if place == self.place else "$muted"
            parts.append(Content.styled(f" {number} {title} ", style))
        self._ends = [sum(part.cell_length for part in parts[: n + 1]) for n in range(len(parts))]
        tabs = Content("").join(parts)
        news = self._progress(running, width - tabs.cell_length - 2)
        return (tabs + news.pad_left(max(0, width - tabs.cell_length - news.cell_length - 1))).truncate(width)

    @staticmethod
    def _progress(running: list[Any], room: int) -> Content:
        """What the newest running job does, if there is room for it."""
        if not running or room < 12:
            return Content("")
        progress = running[0].progress
        done = f" {100 * progress.done // progress.total} %" if progress and progress.total else ""
        return styled(running[0].title, "$muted").truncate(room - len(done), ellipsis=True) + styled(done, "$accent")


def _used(device: Device, decimals: int) -> Content:
    label = "RAM" if device.kind == "cpu" else device.name
    used, total = (device.total - device.free) / 1024**3, device.total / 1024**3
    style = "$warning" if device.total and device.free < device.total // 10 else ""
    return styled(f"{label} ", "$muted") + styled(f"{used:.1f}/{total:.{decimals}f}", style)


class KeyBar(Widget):
    """The keys that work now: those of the focused widget and the place at the left, of the app at the right."""

    ALLOW_SELECT = False
    DEFAULT_CSS = """
    KeyBar { dock: bottom; height: 1; background: $surface; color: $muted; }
    """

    def __init__(self) -> None:
        super().__init__()
        self._places: list[tuple[int, int, str]] = []

    def on_mount(self) -> None:
        self.screen.bindings_updated_signal.subscribe(self, self._changed)

    def _changed(self, screen: Screen[Any]) -> None:
        self.refresh()

    def on_click(self, event: Click) -> None:
        for start, end, key in self._places:
            if start <= event.x < end:
                self.app.simulate_key(key)
                return

    def render(self) -> Content:
        width = self.size.width
        left: list[tuple[str, Content]] = []
        right: list[tuple[str, Content]] = []
        seen = set()
        for active in self.screen.active_bindings.values():
            binding = active.binding
            if binding.show and active.enabled and binding.action not in seen:
                seen.add(binding.action)
                (right if active.node is self.app else left).append((binding.key, self._key(binding)))
        room = width - sum(key.cell_length for _, key in right) - 1
        while left and sum(key.cell_length for _, key in left) > room:
            left.pop()
        gap = width - sum(key.cell_length for _, key in [*left, *right])
        line, self._places = Content(""), []
        for name, key in [*left, ("", Content(" " * gap)), *right]:
            self._places.append((line.cell_length, line.cell_length + key.cell_length, name))
            line += key
        return line

    def _key(self, binding: Binding) -> Content:
        key = Content.styled(f" {self.app.get_key_display(binding)} ", "$footer-key-foreground bold")
        return key + Content.styled(f"{binding.description} ", "$muted")
