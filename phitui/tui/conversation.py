"""The chat of the terminal app, without any widget: loads, asks, stops and restarts in a thread and posts messages."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from textual.message import Message as Posted

from phitui.crash import unexpected
from phitui.domain import options
from phitui.domain.chat import ChatStats, Manner, TextChunk
from phitui.errors import Cancelled, PhituiError
from phitui.tui.messages import AnswerDone, AnswerFailed, AnswerText, Loading
from phitui.tui.text import harmless

if TYPE_CHECKING:
    from phitui.actions.chat import Chat
    from phitui.actions.history import Recorder
    from phitui.domain.chat import Chunk, Message
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
        self._recorder: Recorder | None = None
        self._saved = ""
        self._before: list[Message] = []
        self._cancelled = threading.Event()
        self._lock = threading.Lock()
        self._without: tuple[str, ...] = ()
        self.manner: dict[str, Any] = {}
        """System prompt and sampling as plain values of Manner, from the next question on."""
        self._room = False
        self.forgotten = 0
        """How many of the oldest questions the model does not read any more."""
        self.turn = 0
        self.busy = False

    @property
    def loaded(self) -> str:
        """Path of the model that is loaded, or ""."""
        return self._opened[0] if self._chat is not None and self._opened else ""

    @property
    def messages(self) -> list[Message]:
        return list(self._chat.messages if self._chat is not None else self._before)

    @property
    def saved(self) -> str:
        """The id under which this conversation is saved; "" before the first question."""
        return self._recorder.chat if self._recorder is not None else self._saved

    @property
    def trouble(self) -> str:
        """Why this conversation is not saved; "" if it is."""
        return self._recorder.trouble if self._recorder is not None else ""

    @property
    def lost(self) -> tuple[str, ...]:
        """HOST:PORT of the RPC workers that took the engine with them."""
        return self._chat.lost if self._chat is not None else ()

    def leave_out_lost(self) -> None:
        """Do without those workers when the engine is started again."""
        self._without = self.lost

    @property
    def left_out(self) -> tuple[str, ...]:
        """Why workers of the configuration are not used by what is loaded."""
        return self._chat.plan.left_out if self._chat is not None and self._chat.plan is not None else ()

    def send(
        self,
        model: str,
        text: str,
        settings: Settings,
        *,
        restart: bool = False,
        instead: int | None = None,
        make_room: bool = False,
    ) -> int:
        """Ask; loads the model first if needed. Returns the number of the turn, which its messages carry.

        `instead`: in place of the question of that number and all that followed it. `make_room` leaves the oldest
        questions out; `forgotten` says how many are.
        """
        self._room = make_room
        self.turn += 1
        self.busy = True
        self._cancelled.clear()
        arguments = (self.turn, model, text, dict(settings), restart, instead)
        threading.Thread(target=self._run, args=arguments, name="chat", daemon=True).start()
        return self.turn

    def stop(self) -> None:
        """End the answer, or the loading, that is under way."""
        self._cancelled.set()
        if self._chat is not None:
            self._chat.stop()

    def reset(self) -> None:
        """Begin another conversation; the model stays loaded, and what was said stays saved."""
        self.resume("", [], self.manner)

    def resume(self, saved: str, messages: Sequence[Message], manner: Mapping[str, Any]) -> None:
        """Go on with a saved conversation in its manner, with whatever model is in hand."""
        self._saved, self._recorder, self._before = saved, None, list(messages)
        self.forgotten = 0
        self.manner = dict(manner)
        if self._chat is not None:
            self._chat.reset()
            self._chat.messages += messages

    def close(self) -> None:
        """Unload the model."""
        self._cancelled.set()
        self._before = self.messages
        chat, self._chat = self._chat, None
        if chat is not None:
            chat.close()

    # in the thread ---------------------------------------------------------------------------------------------------
    def _run(
        self, turn: int, model: str, text: str, settings: dict[str, Any], restart: bool, instead: int | None
    ) -> None:
        with self._lock:
            try:
                if instead is not None:
                    self._rewind(instead)
                chat = self._ready(turn, model, settings, restart)
                self._instruct(chat)
                if self._room:
                    self.forgotten += chat.make_room()
                self._post(Loading(turn, None))
                stats = self._stream(turn, self._recording(model).record(text, chat.ask(text)))
                last: Posted = AnswerDone(turn, stats)
            except Cancelled:
                last = AnswerDone(turn, None)
            except PhituiError as error:
                last = AnswerFailed(turn, error)
            except Exception as error:  # an engine plugin may raise anything; the app goes on
                last = AnswerFailed(turn, unexpected(error, self._door.context.paths.state))
            self.busy = False
        self._post(last)

    def _rewind(self, question: int) -> None:
        """Go back to before the question of that number (from 0). What followed stays saved as another branch."""
        here = max(0, question - self.forgotten)
        if self._chat is not None:
            self._chat.rewind(here)
        else:
            asked = [place for place, message in enumerate(self._before) if message.role == "user"]
            del self._before[asked[here] :]
        if self.saved:
            self._recording(self.loaded).rewind(question)

    def _ready(self, turn: int, model: str, settings: dict[str, Any], restart: bool) -> Chat:
        wanted = (model, tuple(sorted(settings.items())))

        def progress(part: float) -> None:
            if self._cancelled.is_set():
                raise Cancelled
            self._post(Loading(turn, part))

        if self._chat is not None and self._opened == wanted:
            if restart or not self._chat.alive:
                without, self._without = self._without, ()
                self._chat.restart(progress, *([without] if without else []))
            return self._chat
        self.close()
        self._cancelled.clear()
        self._chat = self._door.open_chat(model, settings, progress)
        self._opened = wanted
        if self._before:
            self._chat.messages[:] = self._before
        return self._chat

    def _instruct(self, chat: Chat) -> None:
        """Let the engine know the manner of this conversation."""
        manner = options.build(Manner, self.manner)
        chat.sampling = manner.sampling
        chat.instruct(manner.system)

    def _recording(self, model: str) -> Recorder:
        """The recorder of this conversation; a new one where another model goes on with it."""
        if self._recorder is None or self._recorder.model != model:
            self._recorder = self._door.recorder(model, self.manner, self.saved)
        self._recorder.configure(self.manner)
        return self._recorder

    def _stream(self, turn: int, answer: Iterator[Chunk]) -> ChatStats | None:
        """Post the answer in pieces of PACE seconds; returns its figures."""
        pieces: list[str] = []
        painted = 0.0
        stats: ChatStats | None = None
        try:
            for chunk in answer:
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
