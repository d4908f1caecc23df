"""The base of all seven places: frame, actions in threads, errors, help and the equivalent command line."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, ClassVar, TypeVar

from textual.app import ComposeResult
from textual.screen import Screen
from textual.widget import Widget

from phitui.crash import unexpected
from phitui.errors import PhituiError
from phitui.tui.messages import Failed, Finished
from phitui.tui.widgets.frame import Head, KeyBar

if TYPE_CHECKING:
    from phitui.tui.app import PhituiApp

T = TypeVar("T")


class Place(Screen[None]):
    """One of the seven. Widgets never call actions: the place does, through `act`, and shows what comes back."""

    NAME: ClassVar[str] = ""
    ABOUT: ClassVar[str] = ""
    """What the place is for and how it works: the first part of its help."""
    app: PhituiApp

    def __init__(self) -> None:
        super().__init__()
        self._generations: dict[str, int] = {}

    def body(self) -> Iterator[Widget]:
        """The widgets between head and keys."""
        raise NotImplementedError

    def compose(self) -> ComposeResult:
        yield Head(self.NAME)
        yield from self.body()
        yield KeyBar()

    def command_line(self) -> str:
        """The command that does the same as what is on the screen; copied by `y`. "" if there is none."""
        return ""

    def act(
        self,
        call: Callable[[], T],
        then: Callable[[T], None],
        *,
        group: str,
        otherwise: Callable[[PhituiError], None] | None = None,
    ) -> None:
        """Run an action in a thread and hand its result to `then` in the app.

        A newer call of the same group makes the older one's result void. The thread is a daemon: leaving phitui never
        waits for a scan or a probe.
        """
        generation = self.void(group)

        def run() -> None:
            message: Finished | Failed
            try:
                message = Finished(then, call())
            except PhituiError as error:
                message = Failed(error, otherwise)
            except Exception as error:  # whatever an action or a plugin raises must not end the app
                message = Failed(unexpected(error, self.app.door.context.paths.state), otherwise)
            if self._generations.get(group) == generation and self.is_attached:
                self.post_message(message)

        context = contextvars.copy_context()  # so that self.app is known in the thread
        threading.Thread(target=context.run, args=(run,), name=f"{self.NAME}:{group}", daemon=True).start()

    def void(self, group: str) -> int:
        """Make results of this group that are still to come void; returns the number of the new generation."""
        self._generations[group] = self._generations.get(group, 0) + 1
        return self._generations[group]

    def on_finished(self, message: Finished) -> None:
        message.then(message.result)

    def on_failed(self, message: Failed) -> None:
        if message.otherwise is not None:
            message.otherwise(message.error)
        else:
            self.app.show_error(message.error)
