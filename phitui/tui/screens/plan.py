"""Plan: which layers go where, how much context fits, before anything is loaded."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from textual import on
from textual.binding import Binding
from textual.containers import Vertical, VerticalScroll
from textual.content import Content
from textual.timer import Timer
from textual.widget import Widget
from textual.widgets import Static

from phitui.domain import options
from phitui.domain.load import KV_TYPES, SPLIT_MODES, LoadOptions
from phitui.errors import PhituiError
from phitui.tui import plantext
from phitui.tui.place import Place
from phitui.tui.text import lines, styled
from phitui.tui.widgets.dial import AutoDial, Dial
from phitui.tui.widgets.meters import Meters

if TYPE_CHECKING:
    from phitui.domain.offload import OffloadPlan, Tradeoff

FLASH = (None, True, False)
PROBE_DELAY = 0.3
"""Seconds without a key before the engine is asked; until then formulas answer."""


class Plan(Place):
    NAME = "plan"
    CSS_PATH = "plan.tcss"
    ABOUT = (
        "How the model in hand will sit in memory. Weights and KV cache are exact; compute buffers are estimated at "
        "once and then asked from the engine. w says where every number comes from.\n"
        "Up and down pick a setting, left and right change it. f takes the most layers that fit, F the most context. "
        "s jumps over the cliff of a longrope model: its original context, or what you had. Chat loads the model with "
        "what is set here."
    )
    BINDINGS: ClassVar = [
        Binding("f", "fit", "fit layers"),
        Binding("F", "most_context", "fit context"),
        Binding("w", "why", "why"),
        Binding("s", "profile", "short/long"),
        Binding("a", "more", "more"),
        Binding("c", "chat", "chat"),
        Binding("r", "reload", "look again", show=False),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._model = ""
        self._plan: OffloadPlan | None = None
        self._probe_timer: Timer | None = None
        self._more: dict[str, Any] = {}
        """Options that have no dial, as the window of all options left them."""
        self._long = 0
        """The context before `l` went to the original one."""

    def body(self) -> Iterator[Widget]:
        yield Static(id="title", markup=False)
        with Vertical(id="dials"):
            yield AutoDial("layers", [None], track=True, shown=self._layers_text, came_to=self._layers, id="layers")
            yield Dial("context", [4096], track=True, shown=self._context_text, id="context")
            yield Dial("KV cache", KV_TYPES, KV_TYPES.index("f16"), id="kv_type")
            yield Dial(
                "flash", FLASH, shown={None: "automatic", True: "on", False: "off"}.__getitem__, id="flash_attention"
            )
            yield AutoDial(
                "experts", [None], track=True, shown=self._experts_text, came_to=self._experts, id="n_cpu_moe"
            )
            yield Dial("split", SPLIT_MODES, id="split_mode")
        with VerticalScroll(id="rest", can_focus=False):
            yield Static(id="verdict", markup=False)
            yield Meters()
            yield Static(id="tradeoffs", markup=False)
            yield Static(id="how", markup=False)

    def on_mount(self) -> None:
        for name in ("#n_cpu_moe", "#split_mode"):
            self.query_one(name).add_class("-hidden")
        self.query_one("#layers").focus()
        self.watch(self.app, "hand", self._hand_changed)

    def _layers(self) -> int | None:
        return self._plan.n_gpu_layers if self._plan else None

    def _experts(self) -> int | None:
        return self._plan.settings.n_cpu_moe if self._plan else None

    def _layers_text(self, value: int | None) -> str:
        total = self._plan.layers_total if self._plan else 0
        if value is None:
            return f"automatic: {self._plan.n_gpu_layers} / {total}" if self._plan else "automatic"
        return f"{value} / {total}"

    def _context_text(self, value: int) -> str:
        rope = self._plan.rope if self._plan and self._plan.n_ctx == value else "none"
        return f"{value}" + (f"  {rope} factors" if rope != "none" else "")

    def _experts_text(self, value: int | None) -> str:
        return plantext.experts(self._plan, value)

    # planning --------------------------------------------------------------------------------------------------------
    def _hand_changed(self) -> None:
        hand = self.app.hand
        model = hand.path if hand and hand.kind == "gguf" else ""
        if hand is None:
            self._say(styled("No model in hand", "bold"), "Pick a GGUF under 1 Models.")
        elif not model:
            self._say(styled(hand.name, "bold"), "A plan needs a GGUF: make one of this checkpoint under 2 Build.")
        if model != self._model:
            self._model, self._plan, self._more, self._long = model, None, {}, 0
            self.app.settings, self.app.planned = {}, None
            self.query_one(Meters).show(None)
            if model:
                self.query_one("#title", Static).update(styled(hand.name, "bold") if hand else "")
                self._ask({}, probe=False)
        self.query_one("#dials").display = bool(model)

    def _say(self, *parts: Content | str) -> None:
        self.query_one("#title", Static).update("")
        self.query_one("#verdict", Static).update(lines(parts))
        for name in ("#how", "#tradeoffs"):
            self.query_one(name, Static).update("")

    def action_reload(self) -> None:
        """Read the free memory again, then plan again."""
        self.app.read_devices()
        if self._model:
            self._ask(self._settings(), probe=True)

    def _settings(self) -> dict[str, Any]:
        """The dials as load options, without what is at its default."""
        defaults = {spec.name: spec.default for spec in options.specs(LoadOptions)}
        values = {str(dial.id): dial.value for dial in self.query(Dial) if not dial.has_class("-hidden")}
        chosen = {name: value for name, value in values.items() if name == "context" or value != defaults[name]}
        return self._more | chosen

    def _ask(self, settings: dict[str, Any], *, probe: bool) -> None:
        model = self._model

        def shown(plan: OffloadPlan) -> None:
            if self._plan is None:  # the first plan of this model, whichever came
                self._set_dials(plan)
            self._show(plan)
            if probe:
                self._ask_tradeoffs(settings, plan)

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

    def _ask_tradeoffs(self, settings: dict[str, Any], plan: OffloadPlan) -> None:
        def shown(found: Sequence[Tradeoff]) -> None:
            self.query_one("#tradeoffs", Static).update(lines(plantext.tradeoffs(found, plan)))

        self.act(lambda: self.app.door.tradeoffs(self._model, settings, plan), shown, group="tradeoffs")

    def _set_dials(self, plan: OffloadPlan) -> None:
        self.query_one("#layers", Dial).offer([None, *range(plan.layers_total + 1)], None)
        limit = plan.context_length or 131072
        stops = {step * 2**power for power in range(9, 21) for step in (1, 1.5)} | {plan.n_ctx, limit}
        stops |= {plan.original_context} if plan.original_context else set()
        self.query_one("#context", Dial).offer(sorted(int(stop) for stop in stops if stop <= limit), plan.n_ctx)
        experts, split = self.query_one("#n_cpu_moe", Dial), self.query_one("#split_mode", Dial)
        experts.offer([None, *range(plan.expert_layers + 1)], None)
        offloading = [device for device in plan.devices if device.kind != "cpu"]
        experts.set_class(not (plan.expert_layers and offloading), "-hidden")
        split.set_class(len(offloading) < 2, "-hidden")

    def _refused(self, error: PhituiError) -> None:
        self.query_one(Meters).show(None)
        title = self.query_one("#title", Static).content
        self._say(styled(error.message, "$error"), styled(error.hint, "$muted"))
        self.query_one("#title", Static).update(title)

    @on(Dial.Changed)
    def _turned(self) -> None:
        settings = self._settings()
        self.app.settings = settings
        self._ask(settings, probe=False)

    # showing ---------------------------------------------------------------------------------------------------------
    def _show(self, plan: OffloadPlan) -> None:
        self._plan, self.app.planned = plan, plan.settings
        warnings = [styled(f"▲ {text}", "$warning") for text in plan.warnings]
        self.query_one("#verdict", Static).update(lines([plantext.verdict(plan), *warnings]))
        self.query_one(Meters).show(plan)
        how = " · ".join(f"{name} {source}" for name, source in plan.how.items())
        more = " ".join(options.as_flags(options.build(LoadOptions, self._more)))
        self.query_one("#how", Static).update(styled(how + (f" · {more}" if more else ""), "$muted"))
        for dial in self.query(Dial):
            dial.refresh()
        self.refresh_bindings()

    # keys ------------------------------------------------------------------------------------------------------------
    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        if action == "profile":
            return self._plan is not None and self._plan.original_context is not None
        return True

    def action_fit(self) -> None:
        """The most layers that fit, and of a mixture as few experts in RAM as that needs."""
        self.query_one("#n_cpu_moe", Dial).pick(None)
        self.query_one("#layers", Dial).pick(None)

    def action_most_context(self) -> None:
        """The most context that fits with the other settings."""
        if not self._model:
            return
        settings = self._settings() | {"context": -1}
        self.act(
            lambda: self.app.door.plan(self._model, settings, probe=True),
            lambda plan: self._go_to_context(plan.n_ctx),
            group="context",
        )

    def _go_to_context(self, context: int) -> None:
        dial = self.query_one("#context", Dial)
        if context == dial.value:
            return
        dial.stops = sorted({*dial.stops, context})
        dial.pick(context)

    def action_profile(self) -> None:
        """To the original context of a longrope model, or back to the long one."""
        plan = self._plan
        if plan is None or plan.original_context is None:
            return
        if plan.n_ctx > plan.original_context:
            self._long = plan.n_ctx
            self._go_to_context(plan.original_context)
        else:
            self._go_to_context(self._long or min(plan.context_length, 2 * plan.original_context))

    def action_why(self) -> None:
        """Where every number comes from."""
        from phitui.tui.widgets.dialogs import Text

        if self._plan is not None:
            self.app.push_screen(Text("why these numbers", lines(plantext.why(self._plan))))

    def action_more(self) -> None:
        """A form of the options that have no dial."""
        from phitui.tui.widgets.dialogs import FormWindow

        if not self._model:
            return
        dials = {dial.id for dial in self.query(Dial)}
        specs = [spec for spec in options.specs(LoadOptions) if spec.name not in dials]

        def answer(values: dict[str, Any] | None) -> None:
            if values is not None:
                self._more = values
                self._turned()

        self.app.push_screen(FormWindow("how to load it", specs, self._more, LoadOptions), answer)

    def action_chat(self) -> None:
        self.app.action_place("chat")

    def command_line(self) -> str:
        if not self._model:
            return ""
        return shlex.join(
            ["phitui", "plan", self._model, *options.as_flags(options.build(LoadOptions, self._settings()))]
        )
