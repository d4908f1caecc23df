"""The terminal app: seven places, the model in hand, and what goes on in the background."""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

from textual.app import App, SystemCommand
from textual.binding import Binding
from textual.message import Message
from textual.reactive import var
from textual.screen import Screen

from phitui.crash import unexpected
from phitui.errors import PhituiError
from phitui.tui import state
from phitui.tui.door import Door
from phitui.tui.glyphs import AsciiFilter, ascii_only
from phitui.tui.messages import DevicesRead, JobsRead
from phitui.tui.painter import Painter
from phitui.tui.place import Place
from phitui.tui.state import Hand
from phitui.tui.themes import DEFAULTS, THEMES
from phitui.tui.widgets.frame import PLACES

if TYPE_CHECKING:
    from rich.console import RenderableType
    from textual.dom import DOMNode

    from phitui.actions.context import Context
    from phitui.domain.chat import EngineSettings
    from phitui.domain.hardware import Device

ACTIVE = ("running", "queued")
POLL_BUSY, POLL_IDLE = 0.5, 2.0
"""Seconds between two readings of the journal, with and without work under way."""


def start(context: Context) -> None:
    """Run the terminal app until it is left."""
    app = PhituiApp(context)
    app.run()
    if app.crash is not None:
        raise app.crash


def _screen(place: str) -> Screen[None]:
    """The screen of a place; its module is imported on the first visit."""
    module = importlib.import_module(f"phitui.tui.screens.{place}")
    screen: Screen[None] = getattr(module, place.capitalize())()
    return screen


def own_bindings(node: DOMNode | None) -> list[Binding]:
    """The bindings that phitui itself gives a node, without those that Textual brings along."""
    found: list[Binding] = []
    for kind in type(node).__mro__:
        if kind.__module__.startswith("phitui."):
            found += [binding for binding in kind.__dict__.get("BINDINGS", ()) if binding.description]
    return found


def key_name(app: App[Any], binding: Binding) -> str:
    """The first key of a binding, as people call it."""
    return app.get_key_display(replace(binding, key=binding.key.partition(",")[0]))


class PhituiApp(App[None]):
    """Holds what all places share; every place is a screen of its own, made on its first visit."""

    TITLE = "phitui"
    MODES: ClassVar[dict[str, str | Callable[[], Screen[Any]]]] = {place: partial(_screen, place) for place in PLACES}
    DEFAULT_MODE = "models"
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (100, "-wide")]  # noqa: RUF012  (an instance variable in Textual)
    VERTICAL_BREAKPOINTS = [(0, "-short"), (30, "-tall")]  # noqa: RUF012
    BINDINGS: ClassVar = [
        *[
            Binding(f"{number},f{number}", f"place('{place}')", place.capitalize(), show=False)
            for number, place in enumerate(PLACES, 1)
        ],
        *[
            Binding(f"alt+{number}", f"place('{place}')", place.capitalize(), show=False, priority=True)
            for number, place in enumerate(PLACES, 1)
        ],
        Binding("ctrl+l", "repaint", "repaint", show=False),
        Binding("y", "copy_command", "copy command", show=False),
        Binding("question_mark", "help", "help", key_display="?"),
        Binding("q", "leave", "quit"),
    ]
    CSS = """
    Place { background: $background; color: $foreground; }
    Toast { background: $panel; padding: 0 1; }
    """

    hand: var[Hand | None] = var(None)
    devices: var[tuple[Device, ...]] = var(())
    jobs: var[tuple[Any, ...]] = var(())
    settings: var[dict[str, Any]] = var({})
    """How the model in hand is to be loaded (context, layers, kv_type), as Plan left it."""
    planned: var[EngineSettings | None] = var(None)
    """How Plan would load the model in hand, everything decided; None before it was planned."""
    library_version: var[int] = var(0)
    """Counts up whenever the library changed: places that show it read it again."""

    def __init__(self, context: Context, door: Door | None = None) -> None:
        super().__init__()
        self.door = door or Door(context)
        self.crash: PhituiError | None = None
        self._painter = Painter()
        self._state_file = context.paths.state / "tui.json"
        if ascii_only():
            self._filters.append(AsciiFilter())
        for theme in THEMES:
            self.register_theme(theme)
        self.theme = THEMES[0].name
        self.set_reactive(PhituiApp.hand, state.load(self._state_file))

    def on_mount(self) -> None:
        self.call_after_refresh(self.set_timer, 0.03, self._begin)

    def _begin(self) -> None:
        """After the first paint: settings, devices and the journal."""
        self._next_poll = self.set_timer(POLL_IDLE, self._poll)
        self.set_timer(0.01, self._read_settings)
        self._poll()
        self.read_devices()

    def _read_settings(self) -> None:
        try:
            wanted = self.door.context.config.theme
        except PhituiError as error:
            self.show_error(error)
            return
        if wanted in self.available_themes:
            self.theme = wanted
        else:
            self.show_error(PhituiError(f"there is no theme {wanted!r}", "ctrl+p, then Theme, lists them"))

    def get_theme_variable_defaults(self) -> dict[str, str]:
        return DEFAULTS

    # background ------------------------------------------------------------------------------------------------------
    def _in_thread(self, call: Callable[[], Message]) -> None:
        """Post what `call` returns; an error there only means that there is no news."""

        def run() -> None:
            try:
                message = call()
            except Exception:
                message = JobsRead(self.jobs) if call == self._jobs_message else DevicesRead(self.devices)
            if self.is_running:
                self.post_message(message)

        threading.Thread(target=run, daemon=True).start()

    def _poll(self) -> None:
        self._in_thread(self._jobs_message)

    def read_jobs(self) -> None:
        """Read the journal now rather than at the next turn."""
        self._next_poll.stop()
        self._poll()

    def _jobs_message(self) -> Message:
        return JobsRead(tuple(self.door.jobs()))

    def on_jobs_read(self, message: JobsRead) -> None:
        before = {job.id: job.state for job in self.jobs}
        self.jobs = message.jobs
        for job in message.jobs:
            if before.get(job.id) in ACTIVE and job.state not in ACTIVE:
                self._ended(job)
        busy = any(job.state in ACTIVE for job in message.jobs)
        self._next_poll.stop()
        self._next_poll = self.set_timer(POLL_BUSY if busy else POLL_IDLE, self._poll)

    def _ended(self, job: Any) -> None:
        if job.state == "done":
            self.notify(job.title, title="done", markup=False)
            self.library_version += 1
        elif job.state == "failed":
            error = job.error or {}
            self.show_error(PhituiError(error.get("message", f"{job.title} failed"), error.get("hint", "")))
        else:
            self.notify(job.title, title=job.state, severity="warning", markup=False)

    def read_devices(self) -> None:
        """Look at the devices' memory again."""
        self._in_thread(lambda: DevicesRead(tuple(self.door.devices())))

    def on_devices_read(self, message: DevicesRead) -> None:
        self.devices = message.devices

    # what places ask for ---------------------------------------------------------------------------------------------
    def take(self, hand: Hand | None) -> None:
        """Take a model in hand; every place works with it from now on. None lays it down."""
        self.hand = hand
        threading.Thread(target=state.save, args=(self._state_file, hand), daemon=True).start()

    def show_error(self, error: PhituiError) -> None:
        """An expected failure: what happened and what to do next."""
        text = f"{error.message}\n{error.hint}" if error.hint else error.message
        self.notify(text, title="error", severity="error", timeout=10, markup=False)

    def copy(self, text: str, what: str) -> None:
        """Put text on the clipboard of the terminal (OSC 52) and say so."""
        self.copy_to_clipboard(text)
        shown = text if len(text) <= 200 else f"{text[:200]}…"
        self.notify(shown, title=f"{what} copied", timeout=4, markup=False)

    # keys ------------------------------------------------------------------------------------------------------------
    def action_place(self, place: str) -> None:
        self.switch_mode(place)

    def action_copy_command(self) -> None:
        text = self.screen.command_line() if isinstance(self.screen, Place) else ""
        if text:
            self.copy(text, "command")
        else:
            self.notify("nothing here has an equivalent command yet", timeout=3)

    def action_help(self) -> None:
        from phitui.tui.widgets.dialogs import Help

        screen = self.screen
        if not isinstance(screen, Place):
            return
        found = [binding for node in (screen, screen.focused, self) for binding in own_bindings(node)]
        rows = [(key_name(self, binding), binding.description) for binding in found if "place(" not in binding.action]
        rows.append(("1-7", "the seven places; also F1-F7 and alt+1-7, which work while you type"))
        self.push_screen(Help(screen.NAME.capitalize(), screen.ABOUT, rows))

    def action_leave(self) -> None:
        running = [job for job in self.jobs if job.state in ACTIVE]
        if not running:
            self.exit()
            return
        from phitui.tui.widgets.dialogs import Ask

        jobs = "1 job is" if len(running) == 1 else f"{len(running)} jobs are"
        text = f"{jobs} still at work and will go on without the terminal.\nThe next start shows them under Jobs."
        said = f"{jobs} still at work: phitui jobs list"
        self.push_screen(
            Ask("leave phitui", text, "leave", "stay"), lambda yes: self.exit(message=said) if yes else None
        )

    def get_system_commands(self, screen: Screen[Any]) -> Iterable[SystemCommand]:
        for place in PLACES:
            yield SystemCommand(place.capitalize(), f"Go to {place}", partial(self.action_place, place))
        seen = set()
        for active in screen.active_bindings.values():
            binding = active.binding
            if binding.show and active.enabled and active.node is not self and binding.action not in seen:
                seen.add(binding.action)
                action = partial(self.run_action, binding.action, active.node)
                yield SystemCommand(binding.description.capitalize(), f"key {self.get_key_display(binding)}", action)
        yield SystemCommand("Copy command", "Copy the command line that does the same", self.action_copy_command)
        yield SystemCommand("Help", "Keys of this place", self.action_help)
        yield SystemCommand("Theme", "Change the colours", self.action_change_theme)
        yield SystemCommand("Quit", "Leave phitui; jobs go on", self.action_leave)

    # painting --------------------------------------------------------------------------------------------------------
    def _display(self, screen: Screen[Any], renderable: Any) -> None:
        super()._display(screen, cast("RenderableType", self._painter.lean(renderable)))

    def on_resize(self) -> None:
        self._painter.forget()

    def action_repaint(self) -> None:
        """Paint everything anew, for a terminal that another program wrote on."""
        self._painter.forget()
        self.refresh(layout=True)

    # the last resort -------------------------------------------------------------------------------------------------
    def _fatal_error(self) -> None:
        """A defect of the app itself: leave the terminal clean and name the report, no traceback on the screen."""
        import sys

        error = sys.exc_info()[1]
        if error is not None:
            self.crash = unexpected(error, Path(self.door.context.paths.state))
        self._close_messages_no_wait()
