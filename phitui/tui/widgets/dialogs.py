"""Small windows over a place: a question, an error, help, a line of text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Vertical, VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen
from textual.suggester import Suggester
from textual.widgets import Input, Static

from phitui.errors import UsageError
from phitui.tui.text import lines, styled

if TYPE_CHECKING:
    from phitui.domain.options import OptionSpec
    from phitui.tui.widgets.form import Form

_CSS = """
{name} {{ align: center middle; background: $background 60%; }}
{name} > Vertical {{
    width: 64; max-width: 94%; height: auto; max-height: 90%;
    background: $panel; border: round $border; padding: 0 1; border-title-color: $accent;
}}
{name} Static {{ height: auto; }}
{name} #keys {{ color: $muted; margin-top: 1; }}
"""


def keys(*shown: tuple[str, str]) -> Content:
    """A line of keys with what they do."""
    return Content("   ").join(
        [Content.styled(key, "$accent bold") + " " + Content.styled(text, "$muted") for key, text in shown]
    )


class Ask(ModalScreen[bool]):
    """A question; Enter is yes, Escape is no."""

    DEFAULT_CSS = _CSS.format(name="Ask")
    BINDINGS: ClassVar = [
        Binding("enter,y", "dismiss(True)", "yes"),
        Binding("escape,n,q", "dismiss(False)", "no"),
    ]

    def __init__(self, title: str, text: str, yes: str = "yes", no: str = "no") -> None:
        super().__init__()
        self._texts = (title, text, yes, no)

    def compose(self) -> ComposeResult:
        title, text, yes, no = self._texts
        with Vertical() as window:
            window.border_title = title
            yield Static(lines([text]), markup=False)
            yield Static(keys(("enter", yes), ("esc", no)), id="keys")


class Help(ModalScreen[None]):
    """What the place is for and all keys that work in it."""

    DEFAULT_CSS = (
        _CSS.format(name="Help")
        + "Help > Vertical { width: 72; }\n"
        + "Help VerticalScroll { height: auto; max-height: 70vh; scrollbar-size-vertical: 1; }"
    )
    BINDINGS: ClassVar = [Binding("escape,enter,q,question_mark", "dismiss", "close")]

    def __init__(self, title: str, about: str, bindings: list[tuple[str, str]]) -> None:
        super().__init__()
        self._title, self._about, self._bindings_shown = title, about, bindings

    def compose(self) -> ComposeResult:
        rows = [styled(key.rjust(9), "$accent bold") + "  " + styled(text) for key, text in self._bindings_shown]
        with Vertical() as window:
            window.border_title = self._title
            with VerticalScroll():
                yield Static(lines([self._about, "", *rows]), markup=False)
            yield Static(keys(("esc", "close"), ("↑↓", "scroll")), id="keys")


class Text(ModalScreen[None]):
    """Something to read."""

    DEFAULT_CSS = (
        _CSS.format(name="Text")
        + "Text > Vertical { width: 76; }\n"
        + "Text VerticalScroll { height: auto; max-height: 70vh; scrollbar-size-vertical: 1; }"
    )
    BINDINGS: ClassVar = [Binding("escape,enter,q", "dismiss", "close")]

    def __init__(self, title: str, content: Content) -> None:
        super().__init__()
        self._title, self._content = title, content

    def compose(self) -> ComposeResult:
        with Vertical() as window:
            window.border_title = self._title
            with VerticalScroll():
                yield Static(self._content)
            yield Static(keys(("esc", "close")), id="keys")


class ErrorWindow(Text):
    """An error with its way out and, where there is one, the end of a log."""

    DEFAULT_CSS = "ErrorWindow > Vertical { border: round $error; border-title-color: $error; }"


class FormWindow(ModalScreen["dict[str, Any] | None"]):
    """A form of options; gives the values that were set (as `declared` takes them), None if it was left by Escape."""

    DEFAULT_CSS = (
        _CSS.format(name="FormWindow")
        + "FormWindow > Vertical { width: 76; }\n"
        + "FormWindow Form { height: auto; max-height: 60vh; }\n"
        + "FormWindow #about { color: $muted; height: 2; margin-top: 1; }"
    )
    BINDINGS: ClassVar = [
        Binding("escape", "dismiss(None)", "cancel"),
        Binding("enter,ctrl+s", "done", "take these", priority=True),
    ]

    def __init__(self, title: str, specs: Sequence[OptionSpec], values: Mapping[str, Any], declared: type) -> None:
        super().__init__()
        self._title, self._specs, self._values, self._declared = title, specs, values, declared

    def compose(self) -> ComposeResult:
        from phitui.tui.widgets.form import Form

        with Vertical() as window:
            window.border_title = self._title
            yield Form(self._specs, self._values, classes="-all")
            yield Static(id="about", markup=False)
            yield Static(keys(("enter", "take these"), ("↑↓", "move"), ("esc", "cancel")), id="keys")

    def on_form_focused(self, event: Form.Focused) -> None:
        self.query_one("#about", Static).update(lines([event.text]))

    def action_done(self) -> None:
        from phitui.domain import options
        from phitui.tui.widgets.form import Form

        try:
            built = options.build(self._declared, self.query_one(Form).values())
        except UsageError as error:
            self.query_one("#about", Static).update(styled(str(error), "$error"))
            return
        self.dismiss(options.plain(built))


class Prompt(ModalScreen[str]):
    """One line of text; Escape gives ""."""

    DEFAULT_CSS = (
        _CSS.format(name="Prompt")
        + "Prompt Input { border: none; height: 1; padding: 0; background: $surface; margin-top: 1; }"
    )
    BINDINGS: ClassVar = [Binding("escape", "dismiss('')", "cancel")]

    def __init__(self, title: str, text: str, value: str = "", suggester: Suggester | None = None) -> None:
        super().__init__()
        self._title, self._text, self._value, self._suggester = title, text, value, suggester

    def compose(self) -> ComposeResult:
        shown = [("enter", "go"), ("esc", "cancel")] + ([("→", "complete")] if self._suggester else [])
        with Vertical() as window:
            window.border_title = self._title
            yield Static(lines([self._text]), markup=False)
            field = Input(self._value, suggester=self._suggester, select_on_focus=False, compact=True)
            field.cursor_blink = False
            yield field
            yield Static(keys(*shown), id="keys")

    def on_input_submitted(self, event: Input.Submitted) -> None:
        self.dismiss(event.value.strip())
