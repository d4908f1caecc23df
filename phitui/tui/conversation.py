"""The chat of the terminal app, without any widget: loads, asks, stops and restarts in a thread and posts messages."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from textual.message import Message as Posted

from phitui.crash import unexpected
from phitui.domain.chat import ChatStats, TextChunk
from phitui.errors import Cancelled, PhituiError
from phitui.tui.messages import AnswerDone, AnswerFailed, AnswerText, Loading
from phitui.tui.text import harmless

if TYPE_CHECKING:
    from phitui.actions.chat import Chat
    from phitui.domain.chat import Message
    from phitui.tui.door import Door

PACE = 0.12
"""Seconds of tokens that are painted at once: a repaint costs far more than a token."""

Settings = Mapping[str, Any]


class Conversation:
    """One conversation at a time. `send` returns at once; what follows arrives as messages, in order.

    Taking another model in hand continues the same conversation with that model.
    """

    def __init__(self, door: Door, post: Callable[[Posted], object]) -> None:
        self._door = door
        self._post = post
        self._chat: Chat | None = None
        self._opened: tuple[str, tuple[tuple[str, Any], ...]] | None = None
        self._cancelled = threading.Event()
        self._lock = threading.Lock()
        self.turn = 0
        self.busy = False

    @property
    def loaded(self) -> str:
        """Path of the model that is loaded, or ""."""
        return self._opened[0] if self._chat is not None and self._opened else ""

    @property
    def messages(self) -> list[Message]:
        return list(self._chat.messages) if self._chat is not None else []

    def send(self, model: str, text: str, settings: Settings, *, restart: bool = False) -> int:
        """Ask; loads the model first if needed. Returns the number of the turn, which its messages carry."""
        self.turn += 1
        self.busy = True
        self._cancelled.clear()
        arguments = (self.turn, model, text, dict(settings), restart)
        threading.Thread(target=self._run, args=arguments, name="chat", daemon=True).start()
        return self.turn

    def stop(self) -> None:
        """End the answer, or the loading, that is under way."""
        self._cancelled.set()
        if self._chat is not None:
            self._chat.stop()

    def reset(self) -> None:
        """Forget what was said; the model stays loaded."""
        if self._chat is not None:
            self._chat.reset()

    def close(self) -> None:
        """Unload the model."""
        self._cancelled.set()
        chat, self._chat = self._chat, None
        if chat is not None:
            chat.close()

    # in the thread ---------------------------------------------------------------------------------------------------
    def _run(self, turn: int, model: str, text: str, settings: dict[str, Any], restart: bool) -> None:
        with self._lock:
            try:
                chat = self._ready(turn, model, settings, restart)
                self._post(Loading(turn, None))
                stats = self._stream(turn, chat, text)
                last: Posted = AnswerDone(turn, stats)
            except Cancelled:
                last = AnswerDone(turn, None)
            except PhituiError as error:
                last = AnswerFailed(turn, error)
            except Exception as error:  # an engine plugin may raise anything; the app goes on
                last = AnswerFailed(turn, unexpected(error, self._door.context.paths.state))
            self.busy = False
        self._post(last)

    def _ready(self, turn: int, model: str, settings: dict[str, Any], restart: bool) -> Chat:
        wanted = (model, tuple(sorted(settings.items())))

        def progress(part: float) -> None:
            if self._cancelled.is_set():
                raise Cancelled
            self._post(Loading(turn, part))

        if self._chat is not None and self._opened == wanted:
            if restart or not self._chat.alive:
                self._chat.restart(progress)
            return self._chat
        before = self.messages
        self.close()
        self._cancelled.clear()
        self._chat = self._door.open_chat(model, settings, progress)
        self._opened = wanted
        if before:
            self._chat.messages[:] = before
        return self._chat

    def _stream(self, turn: int, chat: Chat, text: str) -> ChatStats | None:
        """Post the answer in pieces of PACE seconds; returns its figures."""
        pieces: list[str] = []
        painted = 0.0
        stats: ChatStats | None = None
        try:
            for chunk in chat.ask(text):
                if isinstance(chunk, TextChunk):
                    pieces.append(chunk.text)
                else:
                    stats = chunk
                now = time.monotonic()
                if pieces and now - painted >= PACE:
                    self._post(AnswerText(turn, harmless("".join(pieces))))
                    pieces.clear()
                    painted = now
        finally:
            if pieces:
                self._post(AnswerText(turn, harmless("".join(pieces))))
        return stats
