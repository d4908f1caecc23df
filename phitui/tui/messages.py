"""Messages between places, widgets and workers. Floods coalesce: a newer progress replaces an older one."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from textual.message import Message

if TYPE_CHECKING:
    from phitui.domain.chat import ChatStats
    from phitui.domain.hardware import Device
    from phitui.errors import PhituiError


class Finished(Message, bubble=False):
    """An action ended in its thread; `then` takes the result on the app's side."""

    def __init__(self, then: Callable[[Any], None], result: Any) -> None:
        super().__init__()
        self.then = then
        self.result = result


class Failed(Message, bubble=False):
    """An action ended with an error; `otherwise` shows it in place, None shows a notification."""

    def __init__(self, error: PhituiError, otherwise: Callable[[PhituiError], None] | None) -> None:
        super().__init__()
        self.error = error
        self.otherwise = otherwise


class JobsRead(Message, bubble=False):
    """The journal as it is now: all jobs, newest first."""

    def __init__(self, jobs: tuple[Any, ...]) -> None:
        super().__init__()
        self.jobs = jobs

    def can_replace(self, message: Message) -> bool:
        return isinstance(message, JobsRead)


class DevicesRead(Message, bubble=False):
    """Devices with their free memory."""

    def __init__(self, devices: tuple[Device, ...]) -> None:
        super().__init__()
        self.devices = devices


class AnswerText(Message, bubble=False):
    """A piece of the answer, already collected over a few tokens. `turn` tells a late piece of an older answer."""

    def __init__(self, turn: int, text: str) -> None:
        super().__init__()
        self.turn = turn
        self.text = text


class Loading(Message, bubble=False):
    """The model of a turn is being loaded; `part` is 0 to 1, None once it is loaded."""

    def __init__(self, turn: int, part: float | None) -> None:
        super().__init__()
        self.turn = turn
        self.part = part

    def can_replace(self, message: Message) -> bool:
        return isinstance(message, Loading)


class AnswerDone(Message, bubble=False):
    """The answer ended with its figures (None: stopped without any)."""

    def __init__(self, turn: int, stats: ChatStats | None) -> None:
        super().__init__()
        self.turn = turn
        self.stats = stats


class AnswerFailed(Message, bubble=False):
    """The engine failed while it loaded or answered."""

    def __init__(self, turn: int, error: PhituiError) -> None:
        super().__init__()
        self.turn = turn
        self.error = error
