"""The window of saved conversations: search, open, rename, export, delete."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.timer import Timer
from textual.widgets import Input, Static

from phitui.errors import OutputExists, PhituiError
from phitui.tui.format import clock, short_path
from phitui.tui.text import styled
from phitui.tui.widgets.dialogs import Ask, Prompt, keys
from phitui.tui.widgets.table import Column, Row, Table

if TYPE_CHECKING:
    from phitui.store.chats import SavedChat
    from phitui.tui.app import PhituiApp
    from phitui.tui.place import Place

TYPING_PAUSE = 0.15
"""Seconds without a key before a search runs."""


class History(ModalScreen[str]):
    """Gives the id of the conversation to open, or ""."""

    app: PhituiApp
    DEFAULT_CSS = """
    History { align: center middle; background: $background 60%; }
    History > Vertical {
        width: 100; max-width: 96%; height: 80%; background: $panel; border: round $border; padding: 0 1;
        border-title-color: $accent;
    }
    History Input { border: none; height: 1; padding: 0; background: $surface; margin-bottom: 1; }
    History Table { background: $panel; }
    History Static { height: 1; color: $muted; }
    """
    BINDINGS: ClassVar = [
        Binding("escape", "dismiss('')", "close"),
        Binding("up", "move(-1)", show=False),
        Binding("down", "move(1)", show=False),
        Binding("ctrl+r", "rename", "rename", priority=True),
        Binding("ctrl+d", "delete", "delete", priority=True),
        Binding("ctrl+x", "export", "export", priority=True),
    ]

    def __init__(self, place: Place) -> None:
        super().__init__()
        self._place = place
        self._chats: dict[str, SavedChat] = {}
        self._typing: Timer | None = None

    def compose(self) -> ComposeResult:
        columns = (Column("conversation"), Column("turns", 6, right=True), Column("model", 24, above=80))
        with Vertical() as window:
            window.border_title = "saved conversations"
            field = Input(placeholder="search in titles and words", select_on_focus=False, compact=True)
            field.cursor_blink = False
            yield field
            yield Table((*columns, Column("last used", 10)), "reading …", id="saved")
            yield Static(id="found", markup=False)
            yield Static(
                keys(("enter", "open"), ("^r", "rename"), ("^x", "export"), ("^d", "delete"), ("esc", "close"))
            )

    def on_mount(self) -> None:
        self._read()

    def _read(self) -> None:
        text = self.query_one(Input).value.strip()
        self._place.act(lambda: self.app.door.saved_chats(text), self._arrived, group="chats", otherwise=self._refused)

    def _arrived(self, chats: Sequence[SavedChat]) -> None:
        if not self.is_attached:
            return
        self._chats = {chat.id: chat for chat in chats}
        rows = [
            Row(
                chat.id, (chat.title, str(chat.turns), Path(chat.model).name.removesuffix(".gguf"), clock(chat.updated))
            )
            for chat in chats
        ]
        searching = bool(self.query_one(Input).value.strip())
        self.query_one(Table).show(rows, "nothing found" if searching else "no conversation yet")

    def _refused(self, error: PhituiError) -> None:
        self.app.show_error(error)

    @on(Input.Changed)
    def _typed(self, event: Input.Changed) -> None:
        if self._typing is not None:
            self._typing.stop()
        self._typing = self.set_timer(TYPING_PAUSE, self._read)

    @on(Input.Submitted)
    def _entered(self) -> None:
        self._open(self.query_one(Table).current)

    @on(Table.Selected)
    def _selected(self, event: Table.Selected) -> None:
        self._open(event.key)

    @on(Table.Highlighted)
    def _highlighted(self, event: Table.Highlighted) -> None:
        chat = self._chats.get(event.key)
        self.query_one("#found", Static).update(styled(chat.found if chat else "", "italic"))

    def _open(self, chat: str) -> None:
        if chat:
            self.dismiss(chat)

    def action_move(self, by: int) -> None:
        self.query_one(Table).action_move(by)

    def _current(self) -> SavedChat | None:
        return self._chats.get(self.query_one(Table).current)

    def action_rename(self) -> None:
        chat = self._current()
        if chat is None:
            return

        def named(title: str | None) -> None:
            if title:
                self._do(lambda: self.app.door.rename_chat(chat.id, title))

        self.app.push_screen(Prompt("rename", "The new title:", chat.title), named)

    def action_delete(self) -> None:
        chat = self._current()
        if chat is None:
            return

        def sure(yes: bool | None) -> None:
            if yes:
                self._do(lambda: self.app.door.delete_chat(chat.id))

        self.app.push_screen(Ask("delete this conversation?", f"{chat.title}\nIt is gone for good.", "delete"), sure)

    def _do(self, call: Callable[[], object]) -> None:
        self._place.act(call, lambda _: self._read(), group="chat", otherwise=self._refused)

    def action_export(self) -> None:
        chat = self._current()
        if chat is None:
            return

        def named(name: str | None) -> None:
            if name:
                self._export(chat.id, Path(name).expanduser(), overwrite=False)

        stem = "".join(c if c.isalnum() or c in " -_." else "-" for c in chat.title).strip(" .")[:60] or "conversation"
        ask = Prompt("export", "Write it to (markdown, or JSON for a name in .json):", f"~/{stem}.md")
        self.app.push_screen(ask, named)

    def _export(self, chat: str, out: Path, *, overwrite: bool) -> None:
        def refused(error: PhituiError) -> None:
            if not isinstance(error, OutputExists):
                self._refused(error)
                return

            def sure(yes: bool | None) -> None:
                if yes:
                    self._export(chat, out, overwrite=True)

            self.app.push_screen(Ask("replace the file?", f"{error.message}.", "replace it", "keep it"), sure)

        def wrote(path: Path) -> None:
            self.app.notify(short_path(path), title="written", markup=False)

        door = self.app.door
        self._place.act(
            lambda: door.export_chat(chat, out, overwrite=overwrite), wrote, group="export", otherwise=refused
        )
