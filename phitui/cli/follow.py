"""A job seen from the foreground: one line of progress on stderr, until the job ends."""

from __future__ import annotations

import os
import shutil
import sys
import time

import click

from phitui.actions import jobs
from phitui.actions.context import Context
from phitui.cli import output
from phitui.domain.text import visible
from phitui.jobs import Event, Job, Progress

_PAINT = 0.1  # seconds between two repaints of the line on a terminal
_LINE = 5.0  # seconds between two lines where there is no terminal


def follow_job(context: Context, job_id: str, as_json: bool = False, *, cancels: bool = True) -> Job:
    """Show a job's progress and notes on stderr until it ends, and return it as it ended, whatever the end.

    Ctrl-C cancels the job and waits for it; with `cancels` False it only stops looking (KeyboardInterrupt). The
    caller turns the end into output and an exit code, for example with phitui.actions.jobs.outcome(). `as_json`
    says that a machine reads stdout; what is shown here goes to stderr either way.
    """
    screen = _Screen(sys.stderr.isatty() and os.environ.get("TERM", "dumb") != "dumb" and not as_json)
    try:
        for event in jobs.follow_job(context, job_id):
            screen.show(event)
    except KeyboardInterrupt:
        screen.clear()
        if not cancels:
            raise
        output.say(f"cancelling job {job_id}")
        return jobs.cancel_job(context, job_id)
    finally:
        screen.clear()
    return jobs.get_job(context, job_id)


def progress_text(progress: Progress) -> str:
    """43 %  1.02 GiB / 2.32 GiB  310.00 MiB/s  4 s left  what is being done."""
    parts = []
    if progress.total > 0:
        parts.append(f"{100 * progress.fraction:.0f} %")
    if progress.in_bytes:
        parts.append(f"{output.size(progress.done)} / {output.size(progress.total)}")
        parts.append(f"{output.size(progress.rate)}/s" if progress.rate else "")
    elif progress.total > 0:
        parts.append(f"{progress.done} / {progress.total}")
    if progress.seconds_left:
        parts.append(f"{duration(progress.seconds_left)} left")
    parts.append(visible(progress.text))
    return "  ".join(part for part in parts if part)


def duration(seconds: float) -> str:
    """Seconds for people: 4 s, 3 min 20 s, 2 h 5 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


class _Screen:
    """A line that is painted over on a terminal; elsewhere a line now and then."""

    def __init__(self, terminal: bool) -> None:
        self._terminal = terminal
        self._next = 0.0
        self._painted = False

    def show(self, event: Event) -> None:
        if event.type == "note":
            self.clear()
            output.say(visible(event.text))
        elif event.progress is not None and time.monotonic() >= self._next:
            self._next = time.monotonic() + (_PAINT if self._terminal else _LINE)
            text = progress_text(event.progress)
            if self._terminal:
                width = shutil.get_terminal_size().columns - 1
                click.echo(f"\r{text[:width]}\x1b[K", nl=False, err=True)
                self._painted = True
            else:
                output.say(text)

    def clear(self) -> None:
        if self._painted:
            click.echo("\r\x1b[K", nl=False, err=True)
            self._painted = False
