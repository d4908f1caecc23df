"""Where a message is written: Enter sends, ctrl+j starts a new line, any paste is taken as it is."""

from __future__ import annotations

from typing import Any, ClassVar

from textual.binding import Binding
from textual.events import Key
from textual.message import Message
from textual.widgets import TextArea


class Composer(TextArea):
    """Grows from one to six lines."""

    BINDINGS: ClassVar = [
        Binding("ctrl+j,shift+enter", "newline", "new line", show=False),
    ]
    DEFAULT_CSS = """
    Composer {
        height: auto; min-height: 1; max-height: 6; padding: 0 1; background: $panel;
        border: none; border-left: outer $border;
        scrollbar-size-vertical: 1;
        &:focus { background: $panel; border: none; border-left: outer $accent; }
    }
    """

    class Submitted(Message):
        """A message to send."""

        def __init__(self, text: str) -> None:
            super().__init__()
            self.text = text

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(soft_wrap=True, show_line_numbers=False, highlight_cursor_line=False, **kwargs)
        self.cursor_blink = False

    async def _on_key(self, event: Key) -> None:
        if event.key == "enter":
            event.stop()
            event.prevent_default()
            if self.text.strip():
                self.post_message(self.Submitted(self.text.strip()))
            return
        await super()._on_key(event)

    def action_newline(self) -> None:
        self.insert("\n")
