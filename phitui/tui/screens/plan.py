"""Plan: which layers go where, how much context fits, before anything is loaded."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar

from textual import on
from textual.binding import Binding
from textual.containers import Vertical, VerticalScroll
from textual.content import Content
from textual.timer import Timer
from textual.widget import Widget
from textual.widgets import Static

from phitui.errors import PhituiError
from phitui.tui.place import Place
from phitui.tui.text import lines, styled
from phitui.tui.widgets.dial import Dial
from phitui.tui.widgets.meters import Meters

if TYPE_CHECKING:
    from phitui.domain.offload import OffloadPlan

KV_TYPES = ("f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "f32")
FLASH = (None, True, False)
PROBE_DELAY = 0.3
"""Seconds without a key before the engine is asked; until then formulas answer."""


class Plan(Place):
    NAME = "plan"
    CSS_PATH = "plan.tcss"
    ABOUT = (
        "How the model in hand will sit in memory. Weights and KV cache are exact; compute buffers are estimated at "
        "once and then asked from the engine.\n"
        "Up and down pick a setting, left and right change it. Chat loads the model with what is set here."
    )
    BINDINGS: ClassVar = [
        Binding("f", "fit", "most layers that fit"),
        Binding("c", "chat", "chat with this"),
        Binding("r", "reload", "look again", show=False),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._model = ""
        self._plan: OffloadPlan | None = None
        self._probe_timer: Timer | None = None

    def body(self) -> Iterator[Widget]:
        yield Static(id="title", markup=False)
        with Vertical(id="dials"):
            yield Dial("layers", [None], track=True, shown=self._layers_text, id="layers")
            yield Dial("context", [4096], track=True, shown=self._context_text, id="context")
            yield Dial("KV cache", KV_TYPES, id="kv")
            yield Dial("flash", FLASH, shown={None: "automatic", True: "on", False: "off"}.__getitem__, id="flash")
        with VerticalScroll(id="rest", can_focus=False):
            yield Static(id="verdict", markup=False)
            yield Meters()
            yield Static(id="how", markup=False)

    def on_mount(self) -> None:
        self.query_one("#layers").focus()
        self.watch(self.app, "hand", self._hand_changed)

    def _layers_text(self, value: int | None) -> str:
        total = self._plan.layers_total if self._plan else 0
        if value is None:
            return f"automatic: {self._plan.n_gpu_layers} / {total}" if self._plan else "automatic"
        return f"{value} / {total}"

    def _context_text(self, value: int) -> str:
        rope = self._plan.rope if self._plan and self._plan.n_ctx == value else "none"
        return f"{value}" + (f"  {rope} factors" if rope != "none" else "")

    # planning --------------------------------------------------------------------------------------------------------
    def _hand_changed(self) -> None:
        hand = self.app.hand
        model = hand.path if hand and hand.kind == "gguf" else ""
        if hand is None:
            self._say(styled("No model in hand", "bold"), "Pick a GGUF under 1 Models.")
        elif not model:
            self._say(styled(hand.name, "bold"), "A plan needs a GGUF: make one of this checkpoint under 2 Build.")
        if model != self._model:
            self._model, self._plan = model, None
            self.app.settings = {}
            self.query_one(Meters).show(None)
            if model:
                self.query_one("#title", Static).update(styled(hand.name, "bold") if hand else "")
                self._ask({}, probe=False, first=True)
        self.query_one("#dials").display = bool(model)

    def _say(self, *parts: Content | str) -> None:
        self.query_one("#title", Static).update("")
        self.query_one("#verdict", Static).update(lines(parts))
        self.query_one("#how", Static).update("")

    def action_reload(self) -> None:
        if self._model:
            self._ask(self._settings(), probe=True)

    def _settings(self) -> dict[str, Any]:
        """The dials as a plan request, without what is at its default."""
        values = {
            "layers": self.query_one("#layers", Dial).value,
            "context": self.query_one("#context", Dial).value,
            "kv_type": self.query_one("#kv", Dial).value,
            "flash_attention": self.query_one("#flash", Dial).value,
        }
        defaults = {"layers": None, "kv_type": "f16", "flash_attention": None}
        return {name: value for name, value in values.items() if value != defaults.get(name, ...)}

    def _ask(self, settings: dict[str, Any], *, probe: bool, first: bool = False) -> None:
        model = self._model

        def shown(plan: OffloadPlan) -> None:
            if first:
                self._set_dials(plan)
            self._show(plan)

        self.act(
            lambda: self.app.door.plan(model, settings, probe=probe),
            shown,
            group="plan",
            otherwise=self._refused,
        )
        if self._probe_timer is not None:
            self._probe_timer.stop()
        if not probe:
            self._probe_timer = self.set_timer(PROBE_DELAY, lambda: self._ask(self._settings(), probe=True))

    def _set_dials(self, plan: OffloadPlan) -> None:
        self.query_one("#layers", Dial).offer([None, *range(plan.layers_total + 1)], None)
        limit = plan.context_length or 131072
        stops = sorted({step * 2**power for power in range(9, 21) for step in (1, 1.5)} | {plan.n_ctx, limit})
        self.query_one("#context", Dial).offer([int(stop) for stop in stops if stop <= limit], plan.n_ctx)

    def _refused(self, error: PhituiError) -> None:
        self.query_one(Meters).show(None)
        self._say(styled(error.message, "$error"), styled(error.hint, "$muted"))

    @on(Dial.Changed)
    def _turned(self) -> None:
        settings = self._settings()
        self.app.settings = {name: value for name, value in settings.items() if value is not None}
        self._ask(settings, probe=False)

    # showing ---------------------------------------------------------------------------------------------------------
    def _show(self, plan: OffloadPlan) -> None:
        self._plan = plan
        verdict = styled("✓ fits", "$success bold") if plan.fits else styled("✗ does not fit", "$error bold")
        warnings: list[Content | str] = [styled(f"▲ {text}", "$warning") for text in plan.warnings]
        self.query_one("#verdict", Static).update(lines([verdict, *warnings]))
        self.query_one(Meters).show(plan)
        how = " · ".join(f"{name} {source}" for name, source in plan.how.items())
        self.query_one("#how", Static).update(styled(how, "$muted"))
        for dial in self.query(Dial):
            dial.refresh()

    # keys ------------------------------------------------------------------------------------------------------------
    def action_fit(self) -> None:
        self.query_one("#layers", Dial).pick(None)

    def action_chat(self) -> None:
        self.app.action_place("chat")

    def command_line(self) -> str:
        if not self._model:
            return ""
        flags = {"layers": "--layers", "context": "--ctx", "kv_type": "--kv-type", "flash_attention": "--flash-attn"}
        parts = ["phitui", "plan", self._model]
        for name, value in self._settings().items():
            parts += [
                flags[name],
                {True: "on", False: "off"}.get(value, str(value)) if name == "flash_attention" else str(value),
            ]
        return shlex.join(parts)
