"""Models: what is on this machine and what is known, in one list."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from textual import on
from textual.binding import Binding
from textual.containers import Container, VerticalScroll
from textual.widget import Widget

from phitui.errors import PhituiError
from phitui.tui import format as show
from phitui.tui.modeltext import artifact_detail, known_detail, welcome
from phitui.tui.place import Place
from phitui.tui.state import Hand
from phitui.tui.text import styled
from phitui.tui.widgets.page import Page, Part
from phitui.tui.widgets.table import Column, Row, Table

if TYPE_CHECKING:
    from textual.widgets import Input

    from phitui.actions.tidy import Removal
    from phitui.domain.model import Artifact, KnownModel, ModelFacts

COLUMNS = (Column("name"), Column("type", 10), Column("size", 9, right=True), Column("found by", 12, above=60))
DEBOUNCE = 0.12
"""Seconds the cursor must rest on a row before its header is read."""


class Models(Place):
    NAME = "models"
    CSS_PATH = "models.tcss"
    ABOUT = (
        "Everything phitui found on this machine, and the Phi models it knows.\n"
        "Enter takes a model in hand: the other places then work with it. A checkpoint is a directory as published on "
        "the Hub; Build makes a GGUF of it."
    )
    BINDINGS: ClassVar = [
        Binding("c", "go('chat')", "chat"),
        Binding("p", "go('plan')", "plan"),
        Binding("b", "go('build')", "build"),
        Binding("e", "go('export')", "export"),
        Binding("slash", "filter", "filter", key_display="/"),
        Binding("o", "open", "open path"),
        Binding("r", "reload", "rescan", show=False),
        Binding("d", "remove", "remove", show=False),
        Binding("R", "rename", "rename", show=False),
        Binding("escape", "clear", "clear filter", show=False),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._library: Sequence[Artifact] | None = None
        self._catalogue: Sequence[KnownModel] = ()
        self._facts: dict[str, ModelFacts | PhituiError] = {}
        self._filter = ""

    def body(self) -> Iterator[Widget]:
        with Container(id="split"):
            yield Table(COLUMNS, "looking for models …", id="list")
            with VerticalScroll(id="side", can_focus=False):
                yield Page(id="detail")

    def on_mount(self) -> None:
        self.query_one(Table).focus()
        self.call_after_refresh(self.action_reload)
        self.watch(self.app, "library_version", self._library_changed, init=False)
        self.watch(self.app, "hand", self._show_rows, init=False)

    def _library_changed(self) -> None:
        self.action_reload()

    # reading ---------------------------------------------------------------------------------------------------------
    def action_reload(self) -> None:
        """Ask all finders and catalogues again."""
        self.act(lambda: (self.app.door.library(), self.app.door.catalogue()), self._arrived, group="library")

    def _arrived(self, found: tuple[Sequence[Artifact], Sequence[KnownModel]]) -> None:
        self._library, self._catalogue = found
        self._facts.clear()
        self._show_rows()
        self._show_detail(self.query_one(Table).current)

    def _show_rows(self) -> None:
        if self._library is None:
            return
        rows: list[Row] = []
        mine = [artifact for artifact in self._library if self._matches(artifact.name, artifact.scheme)]
        known = [model for model in self._catalogue if self._matches(model.id, model.title)]
        if mine:
            rows += [Row("", (f"on this machine ({len(mine)})",), heading=True), *map(self._own, mine)]
        if mine and known:
            rows.append(Row("", ("",), heading=True))
        if known:
            rows += [Row("", (f"known Phi models ({len(known)})",), heading=True), *map(self._known, known)]
        empty = f"nothing matches “{self._filter}”" if self._filter else "no models here and no catalogue loaded"
        self.query_one(Table).show(rows, empty)

    def _matches(self, *texts: str) -> bool:
        words = self._filter.lower().split()
        text = " ".join(texts).lower()
        return all(word in text for word in words)

    def _own(self, artifact: Artifact) -> Row:
        held = self.app.hand is not None and self.app.hand.path == str(artifact.path)
        name = artifact.name + ("/" if artifact.kind == "checkpoint" else "")
        kind = artifact.scheme or artifact.kind
        cells = (styled(name, "$accent bold" if held else ""), kind, show.size(artifact.size), artifact.found_by)
        return Row(f"file:{artifact.path}", cells)

    @staticmethod
    def _known(model: KnownModel) -> Row:
        mark = styled("✓ ", "$success") if model.verdict.ok else styled("✗ ", "$error")
        name = mark + styled(model.title or model.id, "" if model.verdict.ok else "$muted")
        parameters = model.parameters.partition(" (")[0]
        return Row(f"known:{model.id}", (name, parameters, "", "catalogue"))

    # details ---------------------------------------------------------------------------------------------------------
    @on(Table.Highlighted)
    def _moved(self, event: Table.Highlighted) -> None:
        if isinstance(event, Table.Selected):
            return
        self._show_detail(event.key)
        self.void("facts")
        if event.key.startswith("file:") and event.key not in self._facts:
            self.set_timer(DEBOUNCE, lambda: self._read_facts(event.key))

    def _read_facts(self, key: str) -> None:
        if self.query_one(Table).current != key or key in self._facts:
            return

        def keep(facts: ModelFacts | PhituiError) -> None:
            self._facts[key] = facts
            if self.query_one(Table).current == key:
                self._show_detail(key)

        self.act(lambda: self.app.door.inspect(key.removeprefix("file:")), keep, group="facts", otherwise=keep)

    def _show_detail(self, key: str) -> None:
        self.query_one("#detail", Page).show(self._detail(key))

    def _detail(self, key: str) -> list[Part]:
        artifact = self._artifact(key)
        if artifact is not None:
            return artifact_detail(artifact, self._facts.get(key))
        model = next((model for model in self._catalogue if f"known:{model.id}" == key), None)
        detail = known_detail(model) if model is not None else []
        if self._library is None or self._library:
            return detail
        return [*welcome(), "", *detail]

    def _artifact(self, key: str) -> Artifact | None:
        return next((item for item in self._library or () if f"file:{item.path}" == key), None)

    # keys ------------------------------------------------------------------------------------------------------------
    @on(Table.Selected)
    def _picked(self, event: Table.Selected) -> None:
        artifact = self._artifact(event.key)
        if artifact is not None:
            self.app.take(Hand.of(artifact))
            if artifact.kind == "checkpoint":
                self.app.action_place("build")
        elif event.key.startswith("known:"):
            self.action_pull()

    def action_pull(self) -> None:
        """Ask, then download the known model under the cursor as a job."""
        from phitui.tui.widgets.dialogs import Ask

        model = self.query_one(Table).current.removeprefix("known:")
        text = f"{model}\n\nThe download runs as a job: it goes on when the terminal closes, and 6 Jobs shows it."

        def answer(yes: bool | None) -> None:
            if yes:
                self.act(lambda: self.app.door.pull(model), self._pulling, group="pull")

        self.app.push_screen(Ask("download?", text, "download", "not now"), answer)

    def _pulling(self, job: Any) -> None:
        self.app.read_jobs()
        self.app.notify(job.title, title="download started", timeout=4, markup=False)

    def action_remove(self) -> None:
        """Ask, then remove the model under the cursor."""
        artifact = self._artifact(self.query_one(Table).current)
        if artifact is not None:
            self.act(lambda: self.app.door.removal(str(artifact.path)), self._ask_removal, group="removal")

    def _ask_removal(self, found: Removal) -> None:
        from phitui.tui.widgets.dialogs import Ask

        files = "1 file" if len(found.files) == 1 else f"{len(found.files)} files"
        left = f"\n{found.left} other files in there stay." if found.left else ""
        text = f"{found.path}\n{files}, {show.size(found.size)}, gone for good.{left}"

        def answer(yes: bool | None) -> None:
            if yes:
                self.act(lambda: self.app.door.remove_model(str(found.path)), self._removed, group="remove")

        self.app.push_screen(Ask("remove this model?", text, "remove it", "keep it"), answer)

    def _removed(self, found: Removal) -> None:
        if self.app.hand is not None and self.app.hand.path == str(found.path):
            self.app.take(None)
        self.app.notify(found.path.name, title="removed", timeout=4, markup=False)
        self.app.library_version += 1

    def action_rename(self) -> None:
        """Give the model under the cursor another name."""
        from phitui.tui.widgets.dialogs import Prompt

        artifact = self._artifact(self.query_one(Table).current)
        if artifact is None:
            return

        def answer(name: str | None) -> None:
            if name and name != artifact.name:
                self.act(lambda: self.app.door.rename_model(str(artifact.path), name), renamed, group="rename")

        def renamed(path: Path) -> None:
            if self.app.hand is not None and self.app.hand.path == str(artifact.path):
                self.app.take(Hand(str(path), path.name, artifact.kind, artifact.scheme, artifact.size))
            self.app.library_version += 1

        self.app.push_screen(Prompt("rename", "The new name:", artifact.name), answer)

    def action_go(self, place: str) -> None:
        """Take the model under the cursor in hand and go to a place with it."""
        artifact = self._artifact(self.query_one(Table).current)
        if artifact is not None:
            self.app.take(Hand.of(artifact))
        self.app.action_place(place)

    def action_filter(self) -> None:
        from textual.widgets import Input

        found = self.query("#filter")
        if not found:
            field = Input(placeholder="filter by name", id="filter", compact=True, classes="-open")
            field.cursor_blink = False
            self.mount(field, before="#split")
            field.focus()
        else:
            found.first(Input).add_class("-open")
            found.first(Input).focus()

    def on_input_changed(self, event: Input.Changed) -> None:
        self._filter = event.value
        self._show_rows()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        self.query_one(Table).focus()

    def action_clear(self) -> None:
        for field in self.query("#filter"):
            field.remove_class("-open")
            field.value = ""  # type: ignore[attr-defined]
        self.query_one(Table).focus()

    def action_open(self) -> None:
        from phitui.tui.widgets.dialogs import Prompt
        from phitui.tui.widgets.paths import PathSuggester

        text = "Path of a GGUF file or of a checkpoint directory:"
        self.app.push_screen(Prompt("open", text, suggester=PathSuggester()), self._opened)

    def _opened(self, text: str | None) -> None:
        if text:
            path = Path(text).expanduser().absolute()
            self.act(lambda: (path, self.app.door.inspect(str(path))), self._taken, group="open")

    def _taken(self, found: tuple[Path, Any]) -> None:
        path, facts = found
        hand = Hand.at(path)
        self.app.take(Hand(hand.path, hand.name, hand.kind, facts.scheme, hand.size or facts.size))
        self.app.notify(f"{hand.name} is in hand", timeout=3, markup=False)
        if hand.kind == "checkpoint":
            self.app.action_place("build")

    def command_line(self) -> str:
        key = self.query_one(Table).current
        if key.startswith("file:"):
            return f"phitui inspect {shlex.quote(key.removeprefix('file:'))}"
        return f"phitui pull {shlex.quote(key.removeprefix('known:'))}" if key else "phitui models"
