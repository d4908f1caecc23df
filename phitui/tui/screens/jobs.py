"""Jobs: what runs, what ended and how, read from the journal; any start of phitui shows the same."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import Any, ClassVar

from textual import on
from textual.binding import Binding
from textual.containers import Container, VerticalScroll
from textual.content import Content
from textual.widget import Widget
from textual.widgets import Static

from phitui.tui import format as show
from phitui.tui.place import Place
from phitui.tui.state import Hand
from phitui.tui.text import lines, styled
from phitui.tui.widgets.jobline import part_done, speed, state_of
from phitui.tui.widgets.page import Page, Part, facts
from phitui.tui.widgets.table import Column, Row, Table

COLUMNS = (Column("state", 14), Column("work"), Column("", 17, above=52), Column("began", 10))
LOG_BYTES = 16_000
LOG_PERIOD = 0.7
"""Seconds between two readings of a running job's log."""


class Jobs(Place):
    NAME = "jobs"
    CSS_PATH = "jobs.tcss"
    ABOUT = (
        "Builds run as processes of their own and write a journal. They go on when the terminal closes; this list "
        "reads the journal, so it shows jobs of any other phitui too.\n"
        "An interrupted job goes on where it stopped with r."
    )
    BINDINGS: ClassVar = [
        Binding("x", "cancel", "cancel"),
        Binding("r", "resume", "resume"),
        Binding("t", "take", "take result"),
        Binding("d", "remove", "remove"),
        Binding("l", "log", "log"),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._log = ("", "")

    def body(self) -> Iterator[Widget]:
        with Container(id="split"):
            yield Table(COLUMNS, "No jobs yet. A build started under 2 Build appears here.", id="list")
            with VerticalScroll(id="side"):
                yield Page(id="facts")
                yield Static(id="log", markup=False)

    def on_mount(self) -> None:
        self.query_one(Table).focus()
        self.watch(self.app, "jobs", self._show_jobs)
        self.set_interval(LOG_PERIOD, self._follow)

    def _show_jobs(self) -> None:
        self.query_one(Table).show(self._row(job) for job in self.app.jobs)
        self._show_facts()
        self.refresh_bindings()

    @staticmethod
    def _row(job: Any) -> Row:
        if job.live:
            how_far = part_done(job, 10)
        elif job.started and job.finished:
            how_far = styled(f"in {show.duration(job.finished - job.started)}", "$muted")
        else:
            how_far = Content("")
        began = styled(show.clock(job.started or job.created), "$muted")
        return Row(job.id, (state_of(job), job.title, how_far, began))

    def _job(self) -> Any:
        key = self.query_one(Table).current
        return next((job for job in self.app.jobs if job.id == key), None)

    # details ---------------------------------------------------------------------------------------------------------
    @on(Table.Highlighted)
    def _moved(self) -> None:
        self._show_facts()
        self._read_log()
        self.refresh_bindings()

    def _show_facts(self) -> None:
        job = self._job()
        self.query_one("#facts", Page).show(_facts(job) if job is not None else [])
        if job is None:
            self.query_one("#log", Static).update("")

    def _follow(self) -> None:
        job = self._job()
        if job is not None and job.live and self.is_current:
            self._read_log()

    def _read_log(self) -> None:
        job = self._job()
        if job is not None:
            self.act(
                lambda: (job.id, self.app.door.job_log(job.id, LOG_BYTES)),
                self._show_log,
                group="log",
                otherwise=_silent,
            )

    def _show_log(self, found: tuple[str, str]) -> None:
        job = self._job()
        if job is None or job.id != found[0] or found == self._log:
            return
        self._log = found
        self.query_one("#log", Static).update(lines([found[1].strip()]))
        if job.live:
            self.query_one("#side", VerticalScroll).scroll_end(animate=False)

    # keys ------------------------------------------------------------------------------------------------------------
    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        job = self._job() if self.is_mounted else None
        fits = {
            "cancel": job is not None and job.live,
            "resume": job is not None and job.resumable,
            "take": job is not None and job.state == "done" and bool((job.result or {}).get("path")),
            "remove": job is not None and not job.live,
            "log": job is not None,
        }
        return fits.get(action, True)

    def action_cancel(self) -> None:
        job = self._job()
        self.act(lambda: self.app.door.cancel_job(job.id), self._changed, group="job")

    def action_resume(self) -> None:
        job = self._job()
        self.act(lambda: self.app.door.resume_job(job.id), self._changed, group="job")

    def action_remove(self) -> None:
        """Delete the journal of a job that ended, after a question."""
        from phitui.tui.widgets.dialogs import Ask

        job = self._job()
        text = f"{job.title}\n\nIts journal and log go; what it produced stays."

        def answer(yes: bool | None) -> None:
            if yes:
                self.act(lambda: self.app.door.remove_job(job.id), self._changed, group="job")

        self.app.push_screen(Ask("remove this job?", text, "remove", "keep"), answer)

    def _changed(self, job: Any) -> None:
        self.app.read_jobs()

    @on(Table.Selected)
    def _picked(self) -> None:
        self.action_log()

    def action_log(self) -> None:
        """Go to the log, to scroll in it; Tab goes back."""
        self.query_one("#side").focus()

    def action_take(self) -> None:
        """Take the job's result in hand."""
        result = self._job().result
        path = str(result["path"])
        name = path.rpartition("/")[2]
        self.app.take(Hand(path, name, "gguf", str(result.get("scheme", "")), int(result.get("size", 0))))
        self.app.notify(f"{name} is in hand", timeout=3, markup=False)

    def command_line(self) -> str:
        job = self._job()
        return shlex.join(["phitui", "jobs", "show", job.id]) if job is not None else "phitui jobs list"


def _silent(error: Exception) -> None:
    """A log that cannot be read yet is no news."""


def _facts(job: Any) -> list[Part]:
    rows = [
        ("job", job.id),
        ("state", job.state + (f", process {job.pid}" if job.pid and job.live else "")),
        ("done", speed(job) if job.live else ""),
        ("doing", job.progress.text if job.live else ""),
        ("result", show.short_path((job.result or {}).get("path", "")) if job.state == "done" else ""),
        ("size", show.size((job.result or {}).get("size")) if job.state == "done" else ""),
        ("attempt", str(job.attempt) if job.attempt > 1 else ""),
    ]
    parts: list[Part] = [styled(job.title, "bold"), *facts(rows, 9)]
    if job.error:
        parts += [styled(job.error.get("message", ""), "$error"), styled(job.error.get("hint", ""), "$muted")]
    if job.state == "interrupted":
        parts.append(styled("its process is gone; r goes on where it stopped", "$warning"))
    return parts
