"""One job on one line: title, bar, part done, rate and time left."""

from __future__ import annotations

from typing import Any

from textual.content import Content
from textual.reactive import reactive
from textual.widget import Widget

from phitui.tui import format as show
from phitui.tui.text import styled

STATE_STYLES = {
    "queued": "$muted",
    "running": "$accent",
    "done": "$success",
    "failed": "$error",
    "cancelled": "$muted",
    "interrupted": "$warning",
}
STATE_MARKS = {"queued": "○", "running": "●", "done": "✓", "failed": "✗", "cancelled": "–", "interrupted": "▲"}


def state_of(job: Any) -> Content:
    """A job's state as a mark and a word."""
    return styled(f"{STATE_MARKS.get(job.state, ' ')} {job.state}", STATE_STYLES.get(job.state, ""))


def part_done(job: Any, width: int = 20) -> Content:
    """A bar with the part done."""
    fraction = job.progress.fraction
    return styled(show.bar(fraction, width), "$primary") + styled(f" {100 * fraction:3.0f} %")


def speed(job: Any) -> str:
    """Amount, rate and time left, as far as known."""
    progress = job.progress
    if not progress.total:
        return str(progress.text)
    parts = []
    if progress.in_bytes:
        parts.append(f"{show.size(progress.done)} of {show.size(progress.total)}")
        parts += [f"{show.size(progress.rate)}/s"] if progress.rate else []
    else:
        parts.append(f"{progress.done} of {progress.total}")
    if progress.seconds_left is not None:
        parts.append(f"{show.duration(progress.seconds_left)} left")
    return ", ".join(parts)


class JobLine(Widget):
    """Hidden as long as there is no job to show."""

    ALLOW_SELECT = False
    DEFAULT_CSS = """
    JobLine { height: 2; padding: 0 1; background: $panel; display: none; }
    JobLine.-shown { display: block; }
    """
    job: reactive[Any] = reactive(None)

    def watch_job(self, job: Any) -> None:
        self.set_class(job is not None, "-shown")

    def render(self) -> Content:
        job = self.job
        if job is None:
            return Content("")
        width = self.size.width
        first = state_of(job) + "  " + styled(job.title, "bold")
        if job.live:
            second = part_done(job, max(10, width // 4)) + "  " + styled(speed(job), "$muted")
        elif job.state == "done":
            result = job.result or {}
            took = show.duration(result.get("seconds"))
            second = styled(f"{show.size(result.get('size'))} in {took}, t takes it in hand", "$muted")
        else:
            error = job.error or {}
            second = styled(error.get("message", "6 Jobs shows what happened"), "$muted")
        return Content("\n").join([first.truncate(width, ellipsis=True), second.truncate(width, ellipsis=True)])
