"""Chat: talk to the model in hand."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import ClassVar

from textual import on
from textual.binding import Binding
from textual.content import Content
from textual.widget import Widget
from textual.widgets import Static

from phitui.domain.chat import ChatStats
from phitui.domain.thinking import Piece, Thinking
from phitui.errors import EngineError, PhituiError
from phitui.tui import format as show
from phitui.tui.conversation import Conversation
from phitui.tui.messages import AnswerDone, AnswerFailed, AnswerText, Loading
from phitui.tui.place import Place
from phitui.tui.text import lines, styled
from phitui.tui.widgets.composer import Composer
from phitui.tui.widgets.transcript import Answer, Note, Question, Thought, Transcript

LOG_LINES = 6
"""Lines of the engine's log that are shown when it died."""


class Chat(Place):
    NAME = "chat"
    CSS_PATH = "chat.tcss"
    ABOUT = (
        "Talk to the model in hand. It is loaded with the first message, in a process of its own: if it dies, the "
        "conversation stays and r starts it again.\n"
        "Enter sends, ctrl+j starts a new line, Escape stops the answer; a second Escape leaves the message line, and "
        "the keys 1-7 work again."
    )
    AUTO_FOCUS = "Composer"
    BINDINGS: ClassVar = [
        Binding("escape", "stop", "stop", key_display="esc"),
        Binding("escape", "leave", "leave the line", key_display="esc"),
        Binding("i,enter", "write", "write", key_display="enter"),
        Binding("r", "restart", "restart engine"),
        Binding("ctrl+n", "new", "new chat", key_display="^n", priority=True),
        Binding("Y", "copy_answer", "copy answer"),
        Binding("ctrl+t", "thoughts", "thoughts", key_display="^t", priority=True),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._question = ""
        self._answer: Answer | None = None
        self._thought: Thought | None = None
        self._parts = Thinking()
        self._text = ""
        self._failed: PhituiError | None = None
        self._stats: ChatStats | None = None
        self._loading: float | None = None

    def body(self) -> Iterator[Widget]:
        with Transcript(id="said"):
            yield Static(id="intro")
            yield Static(classes="room")
        yield Static(id="state", markup=False)
        yield Composer(placeholder="write a message", id="message")

    def on_mount(self) -> None:
        self.talk = Conversation(self.app.door, self.post_message)
        self.watch(self.app, "hand", self._hand_changed)

    def on_unmount(self) -> None:
        self.talk.close()

    def _hand_changed(self) -> None:
        hand = self.app.hand
        ready = hand is not None and hand.kind == "gguf"
        self.query_one(Composer).disabled = not ready
        text: list[Content | str]
        if hand is None:
            text = [styled("No model in hand", "bold"), "Pick a GGUF under 1 Models, then come back with c."]
        elif not ready:
            text = [styled(f"{hand.name} is a checkpoint", "bold"), "Chat needs a GGUF: make one under 2 Build."]
        else:
            said = (
                "The conversation goes on with this model."
                if self.talk.messages
                else "It is loaded with your first message."
            )
            text = [styled(hand.name, "bold"), styled(said, "$muted")]
        self.query_one("#intro", Static).update(lines(text))
        if ready and self.is_current:
            self.query_one(Composer).focus()
        self._show_state()

    def on_screen_resume(self) -> None:
        if not self.query_one(Composer).disabled and not self.talk.busy:
            self.query_one(Composer).focus()

    # asking ----------------------------------------------------------------------------------------------------------
    @on(Composer.Submitted)
    async def _send(self, event: Composer.Submitted) -> None:
        if self.talk.busy:
            self.app.notify("one answer at a time: Escape stops this one", timeout=3)
            return
        self.query_one(Composer).clear()
        await self._ask(event.text)

    async def _ask(self, text: str, *, restart: bool = False) -> None:
        hand = self.app.hand
        if hand is None:
            return
        said = self.query_one(Transcript)
        said.following = True
        self._question, self._text, self._failed, self._stats, self._loading = text, "", None, None, None
        await self.query("Note.-error").remove()
        self.query_one("#intro").display = False
        self._answer, self._thought, self._parts = Answer(), None, Thinking()
        turns: list[Widget] = [self._answer] if restart else [Question(text), self._answer]
        await said.mount_all(turns, before=".room")
        self.talk.send(hand.path, text, self.app.settings, restart=restart)
        self.call_after_refresh(said.reveal, self._answer)
        self._show_state()
        self.refresh_bindings()

    def on_loading(self, message: Loading) -> None:
        if message.turn == self.talk.turn:
            self._loading = message.part
            self._show_state()

    async def on_answer_text(self, message: AnswerText) -> None:
        if message.turn != self.talk.turn or self._answer is None:
            return
        before = self._loading is not None, self._parts.thinking, bool(self._text)
        self._loading = None
        await self._add(self._parts.feed(message.text))
        if before != (False, self._parts.thinking, bool(self._text)):
            self._show_state()

    async def _add(self, pieces: list[Piece]) -> None:
        """Show more of the answer and of the thought before it."""
        if self._answer is None:
            return
        said = self.query_one(Transcript)
        for piece in pieces:
            if piece.kind == "answer":
                self._text += piece.text
                await self._answer.append(piece.text)
                continue
            if self._thought is None:
                self._thought = Thought()
                await said.mount(self._thought, before=self._answer)
                self.refresh_bindings()
            self._thought.append(piece.text)
        if self._thought is not None and not self._parts.thinking:
            self._thought.finish()
        if pieces:
            self.call_after_refresh(said.reveal, self._answer)

    async def on_answer_done(self, message: AnswerDone) -> None:
        if message.turn != self.talk.turn:
            return
        self._stats, self._loading = message.stats, None
        await self._end()
        if message.stats is None and not self._text and self._thought is None:
            await self._note("stopped before the answer began")
        self._show_state()
        self.refresh_bindings()

    async def on_answer_failed(self, message: AnswerFailed) -> None:
        if message.turn != self.talk.turn:
            return
        self._failed, self._loading = message.error, None
        await self._end()
        await self._note(_explained(message.error), error=True)
        self.query_one(Transcript).focus()
        self._show_state()
        self.refresh_bindings()

    async def _end(self) -> None:
        """Nothing more comes of this answer."""
        await self._add(self._parts.end())
        if self._thought is not None:
            self._thought.finish()

    async def _note(self, content: Content | str, *, error: bool = False) -> None:
        note = Note(content, markup=False, classes="-error" if error else "")
        said = self.query_one(Transcript)
        await said.mount(note, before=".room")
        said.following = True
        self.call_after_refresh(said.reveal, note)

    # state line ------------------------------------------------------------------------------------------------------
    def _show_state(self) -> None:
        self.query_one("#state", Static).update(self._state())

    def _state(self) -> Content:
        if self._failed is not None:
            return styled("the engine stopped", "$error") + styled(" · r restart", "$muted")
        if self.talk.busy:
            if self._loading is not None:
                return styled(f"loading the model … {100 * self._loading:.0f} %", "$accent")
            if self._parts.thinking:
                return styled("thinking …", "$accent") + styled(" esc stops", "$muted")
            if not self._text:
                return styled("reading …", "$accent")
            return styled("answering …", "$accent") + styled(" esc stops", "$muted")
        if self._stats is None:
            return styled("ready" if self.app.hand is not None else "no model in hand", "$muted")
        return _figures(self._stats, self.size.width)

    # keys ------------------------------------------------------------------------------------------------------------
    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        busy = hasattr(self, "talk") and self.talk.busy
        if action == "restart":
            return self._failed is not None
        if action == "stop":
            return busy
        if action == "thoughts":
            return bool(self.query(Thought))
        if action == "leave":
            return not busy and isinstance(self.focused, Composer)
        if action == "write":
            return not isinstance(self.focused, Composer)
        return True

    def action_stop(self) -> None:
        self.talk.stop()

    def action_leave(self) -> None:
        self.query_one(Transcript).focus()

    def action_write(self) -> None:
        self.query_one(Composer).focus()

    async def action_restart(self) -> None:
        if self._failed is not None and not self.talk.busy:
            for part in (self._thought, self._answer):
                if part is not None:
                    await part.remove()
            await self._ask(self._question, restart=True)

    async def action_new(self) -> None:
        """Forget this conversation and begin another one."""
        if self.talk.busy:
            self.app.notify("Escape stops the answer first", timeout=3)
            return
        self.talk.reset()
        await self.query("Question, Thought, Answer, Note").remove()
        self._stats = self._failed = None
        self.query_one("#intro").display = True
        self._hand_changed()

    def action_thoughts(self) -> None:
        """Unfold or fold the newest thought."""
        found = list(self.query(Thought))
        if found:
            found[-1].action_fold()
            self.call_after_refresh(found[-1].scroll_visible)

    def action_copy_answer(self) -> None:
        if self._text:
            self.app.copy(self._text, "answer")

    def command_line(self) -> str:
        hand = self.app.hand
        if hand is None:
            return ""
        parts = ["phitui", "chat", hand.path]
        flags = {"context": "--ctx", "layers": "--layers", "kv_type": "--kv-type"}
        for name, flag in flags.items():
            if self.app.settings.get(name) is not None:
                parts += [flag, str(self.app.settings[name])]
        return shlex.join(parts + (["-p", self._question] if self._question else []))


def _explained(error: PhituiError) -> Content:
    """What happened, what to do, and the end of the engine's log."""
    parts: list[Content | str] = [styled(error.message, "$error bold")]
    parts += [styled(error.hint)] if error.hint else []
    parts.append(styled("r starts it again and asks once more; the conversation is kept", "$accent"))
    if isinstance(error, EngineError) and error.log_tail:
        tail = error.log_tail.splitlines()[-LOG_LINES:]
        parts += ["", lines(tail).stylize("$muted")]
    return lines(parts)


def _figures(stats: ChatStats, width: int) -> Content:
    """The last answer in numbers."""
    used = stats.context_used / stats.context if stats.context else 0.0
    reasons = {"length": "cut at the limit", "cancelled": "stopped"}
    parts = [
        f"{stats.decode_tokens_per_s:.1f} tokens/s",
        f"{stats.completion_tokens} tokens",
        f"prompt {stats.prompt_tokens} ({stats.evaluated_tokens} new)" if width >= 100 else "",
        reasons.get(stats.finish_reason, ""),
    ]
    meter = f"context {stats.context_used}/{stats.context} {show.bar(used, 10)}"
    left = styled(" · ".join(part for part in parts if part), "$muted")
    right = styled(meter, "$warning" if used > 0.85 else "$muted")
    return left + " " * max(2, width - 2 - left.cell_length - right.cell_length) + right
