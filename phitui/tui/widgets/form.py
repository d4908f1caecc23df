"""A form made from an options dataclass: the same declaration that makes the command line's flags."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Horizontal, VerticalScroll
from textual.message import Message
from textual.widget import Widget
from textual.widgets import Input, Label, Static

from phitui.domain.options import OptionSpec
from phitui.tui.text import styled
from phitui.tui.widgets.dial import Dial

LABEL = 15
SEPARATOR = ";"


class Field(Input):
    """A line of text of a form; up and down go to the fields around it."""

    BINDINGS = [  # noqa: RUF012
        Binding("up", "app.focus_previous", show=False),
        Binding("down", "app.focus_next", show=False),
    ]
    DEFAULT_CSS = """
    Field { width: 1fr; height: 1; border: none; padding: 0; background: $panel; }
    Field:focus { background: $block-cursor-background; }
    Field.-invalid { color: $error; }
    """

    def on_mount(self) -> None:
        self.cursor_blink = False


class Form(VerticalScroll, can_focus=False):
    """One line per option. Posts Changed with the values that were given; empty fields are not given."""

    DEFAULT_CSS = """
    Form { height: 1fr; scrollbar-size-vertical: 1; padding: 0; }
    Form Horizontal { height: 1; padding: 0 1 0 3; }
    Form .-advanced { display: none; }
    Form.-all .-advanced { display: block; }
    Form Label { width: 15; color: $muted; }
    Form #help { dock: bottom; height: 2; padding: 0 1; color: $muted; background: $surface; }
    """

    class Changed(Message):
        """A value changed."""

    class Focused(Message):
        """Another field has the focus; `help` says what it is for."""

        def __init__(self, text: str) -> None:
            super().__init__()
            self.text = text

    def __init__(self, specs: Sequence[OptionSpec], given: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.specs = {spec.name: spec for spec in specs}
        self.given = given or {}
        self._known: dict[str, Any] = {}

    def on_mount(self) -> None:
        self._known = self.values()

    def compose(self) -> ComposeResult:
        if not self.specs:
            yield Static("nothing to set", markup=False)
        for spec in self.specs.values():
            yield from self._row(spec)

    def _row(self, spec: OptionSpec) -> Iterator[Widget]:
        classes = "-advanced" if spec.advanced else ""
        stops = _stops(spec)
        name = spec.name.replace("_", " ")
        if stops is not None:
            value = self.given.get(spec.name, spec.default)
            index = stops.index(value) if value in stops else 0
            shown = {None: "default", True: "yes", False: "no"} | {spec.words[word]: word for word in spec.words}
            dial = Dial(name, stops, index, shown=lambda value: shown.get(value, str(value)), label_width=LABEL - 2)
            dial.id = f"option-{spec.name}"
            dial.set_classes(classes)
            yield dial
            return
        with Horizontal(classes=classes):
            yield Label(styled(name))
            value = self._text(spec)
            yield Field(value, id=f"option-{spec.name}", placeholder=_hint(spec), compact=True, select_on_focus=False)

    def _text(self, spec: OptionSpec) -> str:
        """What was given, as it is typed."""
        value = self.given.get(spec.name)
        if value is None:
            return ""
        return SEPARATOR.join(map(str, value)) if spec.repeatable and not spec.joined else spec.text(value)

    def values(self) -> dict[str, Any]:
        """What was given, as plain values for phitui.domain.options.build."""
        found: dict[str, Any] = {}
        for spec in self.specs.values():
            widget = self.query_one(f"#option-{spec.name}")
            if isinstance(widget, Dial):
                if widget.value != spec.default and widget.value is not None:
                    found[spec.name] = widget.value
            elif isinstance(widget, Input) and widget.value.strip():
                text = widget.value
                several = spec.repeatable and not spec.joined
                found[spec.name] = [item.strip() for item in text.split(SEPARATOR)] if several else text
        return found

    def toggle_advanced(self) -> bool:
        """Show or fold the advanced options; returns whether they are shown now."""
        return self.toggle_class("-all").has_class("-all")

    @on(Input.Changed)
    @on(Dial.Changed)
    def _changed(self, event: Message) -> None:
        event.stop()
        values = self.values()
        if values != self._known:  # a field that is filled in from the start says that it changed, too
            self._known = values
            self.post_message(self.Changed())

    def on_descendant_focus(self) -> None:
        focused = self.screen.focused
        name = (focused.id or "").removeprefix("option-") if focused else ""
        spec = self.specs.get(name)
        if spec is not None:
            several = f"; several with {SEPARATOR}" if spec.repeatable and not spec.joined else ""
            self.post_message(self.Focused(f"{spec.help}{several}"))


def _stops(spec: OptionSpec) -> list[Any] | None:
    """The stops of a choice or a switch; None for what is typed."""
    if spec.choices:
        return [None, *spec.choices] if spec.optional else list(spec.choices)
    if spec.kind is bool:
        return [None, True, False] if spec.optional else [False, True]
    return None


def _hint(spec: OptionSpec) -> str:
    return "default" if spec.default in (None, "", ()) else str(spec.default)
