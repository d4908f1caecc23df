"""Chat: talk to the model in hand."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from textual import on
from textual.binding import Binding
from textual.content import Content
from textual.widget import Widget
from textual.widgets import Static

from phitui.domain import options
from phitui.domain.chat import ChatStats, Manner, Message
from phitui.domain.load import LoadOptions
from phitui.errors import ContextFull, DoesNotFit, PhituiError
from phitui.tui.chattext import explained, figures, stopped
from phitui.tui.conversation import Conversation
from phitui.tui.messages import AnswerDone, AnswerFailed, AnswerText, Loading
from phitui.tui.place import Place
from phitui.tui.text import lines, styled
from phitui.tui.widgets.composer import Composer
from phitui.tui.widgets.exchange import Exchange
from phitui.tui.widgets.transcript import Note, Thought, Transcript

if TYPE_CHECKING:
    from phitui.store.chats import SavedChat, Turn


class Chat(Place):
    NAME = "chat"
    CSS_PATH = "chat.tcss"
    ABOUT = (
        "Talk to the model in hand. It is loaded with the first message, in a process of its own: if it dies, the "
        "conversation stays and r starts it again.\n"
        "Enter sends, ctrl+j starts a new line, Escape stops the answer; a second Escape leaves the message line, and "
        "the keys 1-7 work again.\n"
        "Every conversation is saved while it streams: ctrl+o finds it again. ctrl+e takes the last question back into "
        "the line (again: the one before), ctrl+r asks it once more; what was said stays as another branch. ctrl+s "
        "sets the system prompt and the sampling."
    )
    AUTO_FOCUS = "Composer"
    BINDINGS: ClassVar = [
        Binding("escape", "stop", "stop", key_display="esc"),
        Binding("escape", "leave", "leave the line", key_display="esc"),
        Binding("i,enter", "write", "write", key_display="enter"),
        Binding("r", "restart", "restart engine"),
        Binding("w", "without", "without the worker"),
        Binding("L", "force", "load anyway"),
        Binding("d", "make_room", "leave out oldest"),
        Binding("ctrl+n", "new", "new chat", key_display="^n", priority=True),
        Binding("ctrl+o", "history", "history", key_display="^o", priority=True),
        Binding("ctrl+s", "manner", "settings", key_display="^s", priority=True),
        Binding("ctrl+r", "again", "another answer", key_display="^r", priority=True, show=False),
        Binding("ctrl+e", "edit", "edit a question", key_display="^e", priority=True, show=False),
        Binding("Y", "copy_answer", "copy answer"),
        Binding("ctrl+t", "thoughts", "thoughts", key_display="^t", priority=True),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._exchange: Exchange | None = None
        self._editing: int | None = None
        self._failed: PhituiError | None = None
        self._told: tuple[str, ...] = ()
        self._stats: ChatStats | None = None
        self._loading: float | None = None
        self._warned = False

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
        await self._ask(event.text, instead=self._editing)

    async def _ask(self, text: str, *, again: bool = False, instead: int | None = None, **how: bool) -> None:
        """Send a question; `again` if it stands on the screen already, without an answer.

        `instead`: in place of that one (from 0) and all that followed it. `how` is Conversation.send's.
        """
        hand = self.app.hand
        if hand is None:
            return
        self._editing = None
        said = self.query_one(Transcript)
        if instead is not None:
            await said.forget_from(instead)
        if again and self._exchange is not None:
            await self._exchange.remove_answer()
        self._failed = self._stats = self._loading = None
        await self.query("Note.-error").remove()
        self.query_one("#intro").display = False
        self._exchange = Exchange(said, text)
        await self._exchange.show(asked=again)
        self.talk.send(hand.path, text, self.app.settings, instead=instead, **how)
        self._show_state()
        self.refresh_bindings()

    def on_loading(self, message: Loading) -> None:
        if message.turn == self.talk.turn:
            self._loading = message.part
            self._show_state()
            if message.part is None and self.talk.left_out != self._told:
                self._told = self.talk.left_out
                if self._told:
                    self.app.notify("\n".join(self._told), severity="warning", timeout=10, markup=False)

    async def on_answer_text(self, message: AnswerText) -> None:
        exchange = self._exchange
        if message.turn != self.talk.turn or exchange is None:
            return
        before = self._loading is not None, exchange.thinking, exchange.began
        self._loading = None
        await exchange.add(message.text)
        if before != (False, exchange.thinking, exchange.began):
            self._show_state()
            self.refresh_bindings()

    async def on_answer_done(self, message: AnswerDone) -> None:
        if message.turn != self.talk.turn:
            return
        self._stats, self._loading = message.stats, None
        if self._exchange is not None:
            await self._exchange.end(complete=message.stats is not None and message.stats.finish_reason != "cancelled")
        if message.stats is None and not self._exchange_began:
            await self._note("stopped before the answer began")
        if self.talk.trouble and not self._warned:
            self._warned = True
            self.app.notify(self.talk.trouble, severity="warning", timeout=10, markup=False)
        self._show_state()
        self.refresh_bindings()

    async def on_answer_failed(self, message: AnswerFailed) -> None:
        if message.turn != self.talk.turn:
            return
        self._failed, self._loading = message.error, None
        if self._exchange is not None:
            await self._exchange.end(complete=False)
        await self._note(explained(message.error, self.talk.lost), error=True)
        self.query_one(Transcript).focus()
        self._show_state()
        self.refresh_bindings()

    @property
    def _exchange_began(self) -> bool:
        return self._exchange is not None and self._exchange.began

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
        if self._editing is not None:
            return styled(f"question {self._editing + 1} again: enter sends it", "$accent") + styled(
                " · esc leaves it as it was", "$muted"
            )
        if self._failed is not None:
            return stopped(self._failed)
        if self.talk.busy:
            if self._loading is not None:
                return styled(f"loading the model … {100 * self._loading:.0f} %", "$accent")
            if self._exchange is not None and self._exchange.thinking:
                return styled("thinking …", "$accent") + styled(" esc stops", "$muted")
            if not self._exchange_began:
                return styled("reading …", "$accent")
            return styled("answering …", "$accent") + styled(" esc stops", "$muted")
        if self._stats is None:
            manner = " ".join(options.as_flags(options.build(Manner, self.talk.manner)))
            return styled(f"ready  {manner}" if self.app.hand is not None else "no model in hand", "$muted")
        return figures(self._stats, self.size.width, self.talk.forgotten)

    # keys ------------------------------------------------------------------------------------------------------------
    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        busy = hasattr(self, "talk") and self.talk.busy
        if action == "restart":
            return self._failed is not None and not isinstance(self._failed, ContextFull)
        if action == "without":
            return self._failed is not None and bool(self.talk.lost)
        if action == "make_room":
            return isinstance(self._failed, ContextFull)
        if action == "force":
            return isinstance(self._failed, DoesNotFit)
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
        if self._editing is not None:
            self._editing = None
            self.query_one(Composer).clear()
            self._show_state()
            return
        self.query_one(Transcript).focus()

    def action_write(self) -> None:
        self.query_one(Composer).focus()

    async def action_restart(self) -> None:
        if self._failed is not None and not self.talk.busy and self._exchange is not None:
            await self._ask(self._exchange.question, again=True, restart=True)

    async def action_without(self) -> None:
        """Start the engine again without the RPC workers that do not answer any more."""
        self.talk.leave_out_lost()
        await self.action_restart()

    async def action_new(self) -> None:
        """Forget this conversation and begin another one."""
        if self.talk.busy:
            self.app.notify("Escape stops the answer first", timeout=3)
            return
        self.talk.reset()
        await self._clear()
        self._hand_changed()

    async def _clear(self) -> None:
        """Take the conversation off the screen."""
        await self.query_one(Transcript).forget_from(0)
        self._exchange = self._stats = self._failed = self._editing = None
        self.query_one("#intro").display = True

    def action_edit(self) -> None:
        """Take the last question back into the line; again: the one before it."""
        questions = self.query_one(Transcript).questions
        last = len(questions) if self._editing is None else self._editing
        if last == 0 or self.talk.busy:
            self.app.notify("Escape stops the answer first" if self.talk.busy else "no earlier question", timeout=3)
            return
        self._editing = last - 1
        composer = self.query_one(Composer)
        composer.load_text(questions[self._editing].text)
        composer.move_cursor(composer.document.end)
        composer.focus()
        questions[self._editing].scroll_visible()
        self._show_state()

    async def action_again(self) -> None:
        """Ask the last question once more; the answer before stays as another branch."""
        questions = self.query_one(Transcript).questions
        if questions and not self.talk.busy:
            await self._ask(questions[-1].text, instead=len(questions) - 1)

    def action_history(self) -> None:
        """Find a saved conversation and go on with it."""
        if self.talk.busy:
            self.app.notify("Escape stops the answer first", timeout=3)
            return
        from phitui.tui.widgets.history import History

        def read(found: tuple[SavedChat, Sequence[Turn]]) -> None:
            self.call_later(self._resume, *found)

        def chosen(chat: str | None) -> None:
            if chat:
                self.act(lambda: self.app.door.saved_chat(chat), read, group="history")

        self.app.push_screen(History(self), chosen)

    async def _resume(self, chat: SavedChat, turns: Sequence[Turn]) -> None:
        """Show a saved conversation; the next question goes on with it."""
        self.talk.resume(chat.id, [Message(turn.role, turn.content) for turn in turns], chat.settings)
        await self._clear()
        await self.query_one(Transcript).show_saved(turns)
        self.query_one("#intro").display = not turns
        self._show_state()
        self.refresh_bindings()

    def action_manner(self) -> None:
        """System prompt and sampling, from the next question on."""
        from phitui.tui.widgets.dialogs import FormWindow

        def answer(values: dict[str, Any] | None) -> None:
            if values is not None:
                self.talk.manner = values
                self._show_state()

        specs = sorted(options.specs(Manner), key=lambda spec: spec.name != "system")
        self.app.push_screen(FormWindow("from the next question on", specs, self.talk.manner, Manner), answer)

    async def action_force(self) -> None:
        """Load the model although the plan says that it does not fit."""
        if isinstance(self._failed, DoesNotFit) and self._exchange is not None:
            self.app.settings = {**self.app.settings, "force": True}
            await self._ask(self._exchange.question, again=True)

    async def action_make_room(self) -> None:
        """Ask again without the oldest questions, which stay on the screen and saved."""
        if isinstance(self._failed, ContextFull) and self._exchange is not None:
            await self._ask(self._exchange.question, again=True, make_room=True)

    def action_thoughts(self) -> None:
        """Unfold or fold the newest thought."""
        found = list(self.query(Thought))
        if found:
            found[-1].action_fold()
            self.call_after_refresh(found[-1].scroll_visible)

    def action_copy_answer(self) -> None:
        answer = self.query_one(Transcript).last_answer
        if answer:
            self.app.copy(answer, "answer")

    def command_line(self) -> str:
        hand = self.app.hand
        if hand is None:
            return ""
        load = {name: value for name, value in self.app.settings.items() if name != "force"}
        parts = ["phitui", "chat", hand.path, *options.as_flags(options.build(LoadOptions, load))]
        parts += options.as_flags(options.build(Manner, self.talk.manner))
        parts += ["--force"] if self.app.settings.get("force") else []
        question = self._exchange.question if self._exchange is not None else ""
        return shlex.join(parts + (["-p", question] if question else []))
