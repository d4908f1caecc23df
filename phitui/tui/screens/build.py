"""Build: make a GGUF of the model in hand, in one pass, as a job that outlives the terminal."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from textual import on
from textual.binding import Binding
from textual.containers import Container, VerticalScroll
from textual.content import Content
from textual.widget import Widget
from textual.widgets import Static

from phitui.errors import NotMeasured, OutputExists, PhituiError
from phitui.tui import format as show
from phitui.tui.place import Place
from phitui.tui.state import Hand
from phitui.tui.text import lines, styled
from phitui.tui.widgets.jobline import JobLine
from phitui.tui.widgets.page import Hang, Page, Part, bullet, facts
from phitui.tui.widgets.table import Column, Row, Table

if TYPE_CHECKING:
    from phitui.actions.schemes import SchemeRow
    from phitui.domain.tensors import FilePlan

COLUMNS = (
    Column("scheme", 9),
    Column("size", 8, right=True),
    Column("bits", 5, right=True),
    Column("quality", 20),
    Column("tok/s", 5, right=True),
    Column("fits here", 15),
    Column("description", 36, above=116),
)
DEBOUNCE = 0.15
"""Seconds the cursor must rest on a scheme before its plan is asked for details."""


class Build(Place):
    NAME = "build"
    CSS_PATH = "build.tcss"
    ABOUT = (
        "Convert and quantize the model in hand in one pass. Sizes are exact: the file is planned "
        "before it is written. What was measured of builds of this model stands beside them.\n"
        "Enter starts the build as a job of its own; it goes on when the terminal closes. When it is done, t takes "
        "the result in hand. m chooses the scheme by what was measured, or measures first."
    )
    BINDINGS: ClassVar = [
        Binding("b", "build", "build"),
        Binding("o", "out", "build to …"),
        Binding("m", "best", "best …"),
        Binding("t", "take", "take result"),
        Binding("x", "cancel", "cancel build"),
        Binding("r", "reload", "read again", show=False),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._rows: dict[str, SchemeRow] = {}
        self._plans: dict[str, FilePlan | PhituiError] = {}
        self._source: str | None = None
        self._job: str = ""
        self._ended: frozenset[str] = frozenset()

    def body(self) -> Iterator[Widget]:
        yield Static(id="source", markup=False)
        with Container(id="split"):
            yield Table(COLUMNS, id="schemes")
            with VerticalScroll(id="side", can_focus=False):
                yield Page(id="about")
        yield JobLine(id="job")

    def on_mount(self) -> None:
        self.query_one(Table).focus()
        self.watch(self.app, "hand", self._hand_changed)
        self.watch(self.app, "jobs", self._show_job)

    # the source ------------------------------------------------------------------------------------------------------
    def _hand_changed(self) -> None:
        source = self.app.hand.path if self.app.hand else ""
        if source != self._source:
            self._source = source
            self.action_reload()

    def action_reload(self) -> None:
        """Plan all schemes for the model in hand again."""
        self._rows, self._plans = {}, {}
        hand = self.app.hand
        table = self.query_one(Table)
        self.query_one("#about", Page).show([])
        if hand is None:
            self.query_one("#source", Static).update(styled("no model in hand", "bold"))
            table.show([], "Take a checkpoint or a GGUF in hand under 1 Models; its schemes appear here.")
            return
        kind = "checkpoint" if hand.kind == "checkpoint" else f"GGUF {hand.scheme}".strip()
        text = styled(hand.name, "bold") + styled(f"  {kind} · {show.short_path(hand.path)}", "$muted")
        self.query_one("#source", Static).update(text)
        table.show([], "planning every scheme …")
        self.act(lambda: self.app.door.schemes(hand.path), self._arrived, group="schemes", otherwise=self._refused)

    def _arrived(self, rows: Sequence[SchemeRow]) -> None:
        self.call_after_refresh(self.refresh_bindings)
        self._rows = {row.scheme.name: row for row in rows}
        self.query_one(Table).show([self._row(row) for row in rows], "no quantizer plugin is available: see 7 Machine")
        if "Q4_K_M" in self._rows and not self.query_one(Table).cursor:
            self.query_one(Table).move_to("Q4_K_M")
        self._about(self.query_one(Table).current)

    def _refused(self, error: PhituiError) -> None:
        text: list[Content | str] = [styled(error.message, "$error"), "", styled(error.hint, "$muted")]
        self.query_one(Table).show([], lines(text))

    @staticmethod
    def _row(row: SchemeRow) -> Row:
        scheme, speed = row.scheme, row.figure.decode if row.figure else None
        bits = row.bits_per_weight if row.bits_per_weight is not None else scheme.bits
        style = "$muted" if row.error or row.needs_imatrix else ""
        changed = f"{row.substitutions} substituted, " if row.substitutions else ""
        cells = (
            styled(scheme.name, style or "bold"),
            styled(show.size(row.size), style),
            styled(f"{bits:.2f}", style),
            _quality(row),
            styled(f"{speed:.1f}" if speed else "", style),
            styled(row.fit.text, "$muted" if row.fit.fits else "$error") if row.fit else Content(""),
            styled(changed + scheme.description, "$muted"),
        )
        return Row(scheme.name, cells)

    # details ---------------------------------------------------------------------------------------------------------
    @on(Table.Highlighted)
    def _moved(self, event: Table.Highlighted) -> None:
        if isinstance(event, Table.Selected):
            return
        self._about(event.key)
        if event.key and event.key not in self._plans and self._rows.get(event.key):
            self.set_timer(DEBOUNCE, lambda: self._read_plan(event.key))

    def _read_plan(self, scheme: str) -> None:
        if self.query_one(Table).current != scheme or scheme in self._plans or not self._source:
            return
        source = self._source

        def keep(plan: FilePlan | PhituiError) -> None:
            self._plans[scheme] = plan
            if self.query_one(Table).current == scheme:
                self._about(scheme)

        self.act(lambda: self.app.door.preview_build(source, scheme, ""), keep, group="plan", otherwise=keep)

    def _about(self, scheme: str) -> None:
        row = self._rows.get(scheme)
        self.query_one("#about", Page).show(_details(row, self._plans.get(scheme)) if row else [])

    # building --------------------------------------------------------------------------------------------------------
    @on(Table.Selected)
    def _picked(self) -> None:
        self.action_build()

    def action_build(self, out: str = "", overwrite: bool = False) -> None:
        """Start the build of the scheme under the cursor; without `out` it lands in phitui's models folder."""
        scheme, source = self.query_one(Table).current, self._source
        row = self._rows.get(scheme)
        if row is None:
            return
        if row.error:
            self.app.show_error(PhituiError(f"{scheme}: {row.error}"))
            return

        def refused(error: PhituiError) -> None:
            if isinstance(error, OutputExists) and not overwrite:
                self._ask_overwrite(error, out)
            else:
                self.app.show_error(error)

        self.act(
            lambda: self.app.door.start_build(source or "", scheme, out, overwrite=overwrite),
            self._started,
            group="start",
            otherwise=refused,
        )

    def _ask_overwrite(self, error: PhituiError, out: str) -> None:
        from phitui.tui.widgets.dialogs import Ask

        ask = Ask("replace the file?", f"{error.message}.", "replace it", "keep it")
        self.app.push_screen(ask, lambda yes: self.action_build(out, overwrite=True) if yes else None)

    def action_out(self) -> None:
        """Ask for the output file, then build."""
        from phitui.tui.widgets.dialogs import Prompt
        from phitui.tui.widgets.paths import PathSuggester

        if self.query_one(Table).current:
            prompt = Prompt("build to", "Path of the GGUF file to write:", self._default_out(), PathSuggester())
            self.app.push_screen(prompt, lambda out: self.action_build(out) if out else None)

    def action_best(self) -> None:
        """Ask what is good enough or small enough, and build the scheme that is best by what was measured."""
        from phitui.tui.widgets.dialogs import Prompt

        text = "Largest KL divergence from the full-precision model (0.02 is close), or largest file (4GiB), or both:"
        self.app.push_screen(Prompt("build the best", text, "0.02"), lambda bars: self._best(bars) if bars else None)

    def _best(self, bars: str, measure: bool = False) -> None:
        def refused(error: PhituiError) -> None:
            if isinstance(error, NotMeasured) and not measure:
                self._ask_measure(error, bars)
            else:
                self.app.show_error(error)

        source = self._source or ""
        start = self.app.door.start_best
        self.act(lambda: start(source, bars, measure=measure), self._started, group="start", otherwise=refused)

    def _ask_measure(self, error: NotMeasured, bars: str) -> None:
        from phitui.tui.widgets.dialogs import Ask

        text = f"{error.message}.\n\nA job can build and measure as many schemes as it takes to know. It may take long."
        ask = Ask("measure first?", text, "measure", "not now")
        self.app.push_screen(ask, lambda yes: self._best(bars, measure=True) if yes else None)

    def _default_out(self) -> str:
        name = Path(self._source or "").name.removesuffix(".gguf")
        return str(self.app.door.models_dir() / f"{name}.{self.query_one(Table).current}.gguf")

    def _started(self, job: Any) -> None:
        self._job = job.id
        self.app.read_jobs()
        self.app.notify(job.title, title="build started", timeout=3, markup=False)

    def _current_job(self) -> Any:
        """The build to show: the one started here, or the newest that runs."""
        builds = [job for job in self.app.jobs if job.kind == "build"]
        mine = next((job for job in builds if job.id == self._job), None)
        return mine or next((job for job in builds if job.live), None)

    def _show_job(self) -> None:
        job = self._current_job()
        before = self.query_one(JobLine).job
        self.query_one(JobLine).job = job
        if (before and before.state) != (job and job.state):
            self.refresh_bindings()
        self._read_figures()

    def _read_figures(self) -> None:
        """Look again at the schemes once a job has ended that may have measured one."""
        ended = frozenset(job.id for job in self.app.jobs if job.kind in ("build", "eval") and job.state == "done")
        new, self._ended = ended - self._ended, ended
        source = self._source
        if new and self._rows and source:
            self.act(lambda: self.app.door.schemes(source), self._arrived, group="schemes")

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        if action in ("build", "out", "best"):
            return bool(self._rows)
        if action in ("take", "cancel"):
            job = self._current_job() if self.is_mounted else None
            return job is not None and (job.live if action == "cancel" else job.state == "done")
        return True

    def action_cancel(self) -> None:
        job = self._current_job()
        if job is not None:
            self.act(lambda: self.app.door.cancel_job(job.id), lambda _: self.app.read_jobs(), group="cancel")

    def action_take(self) -> None:
        """Take the finished build's GGUF in hand."""
        job = self._current_job()
        path = (job.result or {}).get("path") if job is not None else None
        if path:
            result = job.result
            name = Path(path).name
            self.app.take(Hand(path, name, "gguf", str(result.get("scheme", "")), int(result.get("size", 0))))
            self.app.notify(f"{name} is in hand", timeout=3, markup=False)

    def command_line(self) -> str:
        scheme = self.query_one(Table).current
        if not self._source or not scheme:
            return shlex.join(["phitui", "schemes", self._source]) if self._source else "phitui schemes"
        return shlex.join(["phitui", "build", self._source, "--scheme", scheme, "--out", self._default_out()])


def _quality(row: SchemeRow) -> Content:
    """What was measured; else what stands in the way."""
    if row.error:
        return styled("not possible", "$error")
    if row.figure and row.figure.text:
        return styled(row.figure.text, "" if row.figure.comparable else "$muted")
    return styled("needs imatrix", "$warning") if row.needs_imatrix else Content("")


def _judged(row: SchemeRow) -> str:
    """What was measured of a scheme, in one line."""
    figure = row.figure
    if figure is None:
        return ""
    quality, speed = figure.quality, f"{figure.decode:.1f} tokens/s" if figure.decode else ""
    if quality is None:
        return ", ".join(filter(None, ("what the others are compared with" if figure.is_reference else "", speed)))
    same = quality.values.get("top1_agreement")
    how = "" if figure.comparable else " (not comparable with the others)"
    parts = [
        figure.text.removesuffix(" *") + how,
        f"same likeliest token {100 * same:.1f} %" if same is not None else "",
        "with an importance matrix" if figure.imatrix else "",
        speed,
    ]
    return ", ".join(filter(None, parts))


def _source(row: SchemeRow) -> str:
    """When and how it was measured."""
    quality = row.figure.quality if row.figure else None
    return f"{show.clock(quality.created)} {quality.source.removeprefix('measured ')}" if quality else ""


def _details(row: SchemeRow, plan: FilePlan | PhituiError | None) -> list[Part]:
    scheme = row.scheme
    parts: list[Part] = [styled(scheme.name, "bold") + styled(f"  {scheme.description}", "$muted")]
    if row.error:
        return [*parts, styled(row.error, "$error")]
    if isinstance(plan, PhituiError):
        return [*parts, styled(plan.message, "$error"), styled(plan.hint, "$muted")]
    if plan is None:
        return [*parts, styled("planning …", "$muted")]
    counts: dict[str, int] = {}
    for tensor in plan.tensors:
        counts[tensor.type.name] = counts.get(tensor.type.name, 0) + 1
    types = ", ".join(f"{count} {name}" for name, count in sorted(counts.items(), key=lambda item: -item[1]))
    changed = sorted({f"{t.wanted.name} → {t.type.name}" for t in plan.substitutions if t.wanted})
    rows = [
        ("tensors", types),
        ("weights", f"{show.count(plan.parameters)}, {plan.bits_per_weight:.2f} bits each"),
        ("changed", f"{len(plan.substitutions)}: {', '.join(changed)}" if changed else ""),
    ]
    parts += facts([("quality", _judged(row)), *rows], 9)
    if plan.needs_imatrix:
        parts.append(bullet("▲", f"needs an importance matrix for {len(plan.needs_imatrix)} tensors", "$warning"))
    parts += [Hang(styled("note     ", "$muted"), styled(note, "$muted")) for note in plan.notes]
    return [*parts, *facts([("measured", _source(row))], 9)]
