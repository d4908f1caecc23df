"""Export: make the model in hand known to another program; shown before it is written."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from textual import on
from textual.binding import Binding
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.content import Content
from textual.timer import Timer
from textual.widget import Widget
from textual.widgets import Static

from phitui.domain.options import OptionSpec, specs
from phitui.errors import OutputExists, PhituiError
from phitui.plugins import availability
from phitui.tui import format as show
from phitui.tui.place import Place
from phitui.tui.text import harmless, lines, styled
from phitui.tui.widgets.form import Form
from phitui.tui.widgets.table import Column, Row, Table

if TYPE_CHECKING:
    from phitui.domain.bundle import Bundle

DEBOUNCE = 0.25
"""Seconds without a key before the preview is made again."""


class Export(Place):
    NAME = "export"
    CSS_PATH = "export.tcss"
    ABOUT = (
        "Make the model in hand known to another program. The preview shows every file exactly as it will be written.\n"
        "Tab goes from the targets to the form; empty fields keep their default. w writes."
    )
    BINDINGS: ClassVar = [
        Binding("w,ctrl+s", "write", "write"),
        Binding("o", "out", "write to …"),
        Binding("a", "advanced", "all options"),
        Binding("escape", "targets", "targets", show=False),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._targets: dict[str, Any] = {}
        self._target = ""
        self._out: Path | None = None
        self._bundle: Bundle | None = None
        self._written: Any = None
        self._timer: Timer | None = None

    def body(self) -> Iterator[Widget]:
        yield Static(id="title", markup=False)
        with Horizontal(id="split"):
            with Vertical(id="left"):
                yield Table((Column("write files for"),), "looking for exporters …", id="targets")
                yield Vertical(id="form")
                yield Static(id="help", markup=False)
            with VerticalScroll(id="preview"):
                yield Static(id="bundle", markup=False)

    def on_mount(self) -> None:
        self.query_one(Table).focus()
        self.watch(self.app, "hand", self._hand_changed)
        self.watch(self.app, "planned", self._planned_anew, init=False)
        self.act(self.app.door.targets, self._arrived, group="targets")

    def _arrived(self, targets: Sequence[Any]) -> None:
        self._targets = {target.name: target for target in targets}
        rows = []
        for target in targets:
            state = availability(target)
            rows.append(Row(target.name, (styled(target.title, "" if state.ok else "$muted"),)))
        self.query_one(Table).show(rows, "No exporter plugin is loaded: 7 Machine says why.")

    def _hand_changed(self) -> None:
        hand = self.app.hand
        self._written = None
        if hand is None:
            self._say(styled("No model in hand", "bold"), "Pick a GGUF under 1 Models.")
        elif hand.kind != "gguf":
            self._say(styled(hand.name, "bold"), "An export needs a GGUF: make one of this checkpoint under 2 Build.")
        else:
            self._out = None
        self._preview()

    def _say(self, *parts: Content | str) -> None:
        self.query_one("#title", Static).update("")
        self.query_one("#bundle", Static).update(lines(parts))

    def _ready(self) -> bool:
        return bool(self.app.hand and self.app.hand.kind == "gguf" and self._target)

    def _directory(self) -> Path:
        """Where the export goes unless the person says otherwise."""
        stem = Path(self.app.hand.path).name.removesuffix(".gguf") if self.app.hand else "model"
        return self._out or self.app.door.exports_dir() / f"{stem}-{self._target}"

    # target and form -------------------------------------------------------------------------------------------------
    @on(Table.Highlighted, "#targets")
    async def _target_changed(self, event: Table.Highlighted) -> None:
        if isinstance(event, Table.Selected):
            self.focus_next()
            return
        self._target = event.key
        await self._mount_form()
        self._written = None
        self._preview()

    async def _mount_form(self) -> None:
        """The form of the target, filled in from the plan."""
        place = self.query_one("#form")
        await place.remove_children()
        if self._target:
            found = specs(self._targets[self._target].options)
            await place.mount(Form(found, self._from_plan(found)))

    async def _planned_anew(self) -> None:
        if self.query(Form):
            await self._mount_form()
            self._preview()

    def _from_plan(self, found: Sequence[OptionSpec]) -> dict[str, Any]:
        """What Plan decided, for the options that take it over."""
        values = self.app.planned.chosen() if self.app.planned is not None else {}
        wanted = {spec.name: spec.planned or spec.name for spec in found}
        return {name: values[source] for name, source in wanted.items() if source in values}

    @on(Form.Changed)
    def _form_changed(self) -> None:
        self._written = None
        if self._timer is not None:
            self._timer.stop()
        self._timer = self.set_timer(DEBOUNCE, self._preview)

    @on(Form.Focused)
    def _field_changed(self, event: Form.Focused) -> None:
        self.query_one("#help", Static).update(styled(event.text, "$muted"))

    def _values(self) -> dict[str, Any]:
        forms = self.query(Form)
        return forms.first(Form).values() if forms else {}

    # preview ---------------------------------------------------------------------------------------------------------
    def _preview(self) -> None:
        if not self._ready() or not self.is_mounted:
            return
        model, target, out, values = self.app.hand.path, self._target, self._directory(), self._values()  # type: ignore[union-attr]
        self.act(
            lambda: self.app.door.preview_export(model, target, out, values),
            self._show_bundle,
            group="preview",
            otherwise=self._refused,
        )

    def _refused(self, error: PhituiError) -> None:
        self._bundle = None
        self._say(styled(error.message, "$error"), styled(error.hint, "$muted"))

    def _show_bundle(self, bundle: Bundle) -> None:
        self._bundle = bundle
        name = self.app.hand.name if self.app.hand else ""
        where = styled(f" → {show.short_path(self._directory())}", "$muted")
        self.query_one("#title", Static).update(styled(name, "bold") + where)
        parts: list[Content | str] = [styled(f"▲ {note}", "$warning") for note in bundle.notes]
        for file in bundle.files:
            parts += ["", styled(f"── {file.path} ", "$primary bold"), *map(_coloured, file.text.rstrip().splitlines())]
        for link in bundle.links:
            parts += ["", styled(f"── {show.short_path(Path(link.path))} ", "$primary bold")]
            parts += [f"{show.short_path(link.source)}, linked or copied"]
        parts += ["", styled("then", "$primary bold"), *[styled(f"  {command}", "$accent") for command in bundle.run]]
        self.query_one("#bundle", Static).update(lines(parts[1:] if parts and parts[0] == "" else parts))

    # writing ---------------------------------------------------------------------------------------------------------
    def action_write(self, overwrite: bool = False) -> None:
        """Write the files of the preview."""
        if not self._ready():
            return
        model, target, out, values = self.app.hand.path, self._target, self._directory(), self._values()  # type: ignore[union-attr]

        def refused(error: PhituiError) -> None:
            if isinstance(error, OutputExists) and not overwrite:
                self._ask_overwrite(error)
            else:
                self.app.show_error(error)

        self.act(
            lambda: self.app.door.export(model, target, out, values, overwrite=overwrite),
            self._wrote,
            group="write",
            otherwise=refused,
        )

    def _ask_overwrite(self, error: PhituiError) -> None:
        from phitui.tui.widgets.dialogs import Ask

        ask = Ask("replace the files?", f"{error.message}.", "replace them", "keep them")
        self.app.push_screen(ask, lambda yes: self.action_write(overwrite=True) if yes else None)

    def _wrote(self, result: Any) -> None:
        self._written = result
        parts: list[Content | str] = [styled("✓ written", "$success bold")]
        parts += [styled(show.short_path(file)) for file in result.files]
        parts += ["", styled("type next (y copies it)", "$muted")]
        parts += [styled(f"  {command}", "$accent bold") for command in result.run]
        parts += [styled(f"▲ {note}", "$warning") for note in result.notes]
        self.query_one("#bundle", Static).update(lines(parts))
        self.app.notify(f"{len(result.files)} files written", timeout=3)

    # keys ------------------------------------------------------------------------------------------------------------
    def action_out(self) -> None:
        """Ask for the directory."""
        from phitui.tui.widgets.dialogs import Prompt
        from phitui.tui.widgets.paths import PathSuggester

        prompt = Prompt("write to", "Directory for the files:", str(self._directory()), PathSuggester())
        self.app.push_screen(prompt, self._out_given)

    def _out_given(self, text: str | None) -> None:
        if text:
            self._out = Path(text).expanduser().absolute()
            self._written = None
            self._preview()

    def action_advanced(self) -> None:
        for form in self.query(Form):
            form.toggle_advanced()

    def action_targets(self) -> None:
        self.query_one(Table).focus()

    def command_line(self) -> str:
        if self._written is not None and self._written.run:
            return "\n".join(self._written.run)
        if not self._ready():
            return ""
        parts = ["phitui", "export", self.app.hand.path, "--to", self._target, "--out", str(self._directory())]  # type: ignore[union-attr]
        known = {spec.name: spec for spec in specs(self._targets[self._target].options)}
        for name, value in self._values().items():
            spec = known[name]
            if isinstance(value, bool) and not spec.words:
                parts.append(spec.flag if value else f"--no-{spec.flag[2:]}")
            else:
                for item in value if isinstance(value, list) else [value]:
                    parts += [spec.flag, spec.text(item) if spec.words else str(item)]
        return shlex.join(parts)


def _coloured(line: str) -> Content:
    """A line of a preview: comments muted, a directive or key at its start in colour."""
    text = harmless(line).replace("\t", "    ")
    if text.lstrip().startswith("#"):
        return Content.styled(text, "$muted")
    word = re.match(r"[A-Z]{2,}(?= )|\s*[\"']?[\w.-]+[\"']?(?=\s*[:=] )", text)
    return Content(text).stylize("$accent", 0, word.end()) if word else Content(text)
