"""A value picked with the arrow keys from a row of stops: a slider where order matters, a choice where it does not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from textual.binding import Binding
from textual.content import Content
from textual.events import Click
from textual.message import Message
from textual.reactive import reactive
from textual.widget import Widget

from phitui.tui.text import styled


class Dial(Widget, can_focus=True):
    """Label, track (if `track`) and the value. Left/right: one stop; page keys: a tenth; home/end: the ends."""

    ALLOW_SELECT = False
    BINDINGS: ClassVar = [
        Binding("left,h,minus", "step(-1)", "change; also page keys, home, end", show=False),
        Binding("right,l,plus,space", "step(1)", show=False),
        Binding("pageup,shift+right", "leap(1)", show=False),
        Binding("pagedown,shift+left", "leap(-1)", show=False),
        Binding("home", "edge(0)", show=False),
        Binding("end", "edge(1)", show=False),
        Binding("up", "app.focus_previous", "another setting; also down", show=False),
        Binding("down", "app.focus_next", show=False),
    ]
    DEFAULT_CSS = """
    Dial { height: 1; padding: 0 1; background: transparent; }
    Dial:focus { background: $block-cursor-background; color: $block-cursor-foreground; }
    """
    index: reactive[int] = reactive(0)

    class Changed(Message):
        """Another stop was picked."""

        def __init__(self, dial: Dial, value: Any) -> None:
            super().__init__()
            self.dial = dial
            self.value = value

        @property
        def control(self) -> Dial:
            return self.dial

        def can_replace(self, message: Message) -> bool:
            return isinstance(message, Dial.Changed) and message.dial is self.dial

    def __init__(
        self,
        label: str,
        stops: Sequence[Any],
        index: int = 0,
        *,
        track: bool = False,
        shown: Callable[[Any], str] = str,
        label_width: int = 10,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.label, self.stops, self.track = label, list(stops), track
        self.shown, self.label_width = shown, label_width
        self.set_reactive(Dial.index, index)

    @property
    def value(self) -> Any:
        return self.stops[self.index] if self.stops else None

    def offer(self, stops: Sequence[Any], value: Any) -> None:
        """Other stops; stands at `value`, or at the first one."""
        self.stops = list(stops)
        self.set_reactive(Dial.index, self.stops.index(value) if value in self.stops else 0)
        self.refresh()

    def pick(self, value: Any) -> None:
        """Go to a stop and say so."""
        if value in self.stops:
            self._move(self.stops.index(value))

    def _move(self, index: int) -> None:
        index = max(0, min(index, len(self.stops) - 1))
        if self.stops and index != self.index:
            self.index = index
            self.post_message(self.Changed(self, self.value))

    def action_step(self, by: int) -> None:
        if not self.track and self.stops:
            self._move((self.index + by) % len(self.stops))
        else:
            self._move(self.index + by)

    def action_leap(self, by: int) -> None:
        self._move(self.index + by * max(1, len(self.stops) // 10))

    def action_edge(self, side: int) -> None:
        self._move(side * (len(self.stops) - 1))

    def on_click(self, event: Click) -> None:
        start, width = self._track_place()
        if self.track and width and start <= event.x - 1 < start + width:
            self._move(round((event.x - 1 - start) / max(1, width - 1) * (len(self.stops) - 1)))
        elif not self.track:
            self.action_step(1)

    def _track_place(self) -> tuple[int, int]:
        """First cell and width of the track."""
        return self.label_width + 2, max(0, min(40, self.size.width - self.label_width - 24))

    def _position(self) -> int:
        """The stop that the track shows."""
        return self.index

    def render(self) -> Content:
        mark = "› " if self.has_focus else "  "
        head = Content(mark) + styled(self.label.ljust(self.label_width), "" if self.has_focus else "$muted")
        value = styled(self.shown(self.value) if self.stops else "-", "bold" if self.has_focus else "")
        if not self.track:
            return head + (
                styled("‹ ", "$accent") + value + styled(" ›", "$accent") if self.has_focus else Content("  ") + value
            )
        _, width = self._track_place()
        at = round(self._position() / max(1, len(self.stops) - 1) * (width - 1))
        line = styled("━" * at, "$primary") + styled("●", "$accent") + styled("─" * (width - 1 - at), "$muted")
        return head + line + "  " + value


class AutoDial(Dial):
    """A track whose first stop is None, for automatic: the knob stands where that came to, and steps start there.

    `came_to` says what automatic came to; backspace goes back to it.
    """

    BINDINGS: ClassVar = [Binding("backspace,delete", "edge(0)", "automatic", show=False)]

    def __init__(self, *args: Any, came_to: Callable[[], int | None], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.came_to = came_to

    def _position(self) -> int:
        came_to = self.came_to()
        return self.stops.index(came_to) if self.value is None and came_to in self.stops else self.index

    def action_step(self, by: int) -> None:
        self._move(max(1, self._position() + by))

    def action_leap(self, by: int) -> None:
        self._move(max(1, self._position() + by * max(1, len(self.stops) // 10)))
