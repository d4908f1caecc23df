"""Long work as detached processes with a journal on disk: it outlives the terminal, and any viewer can attach to it."""

from __future__ import annotations

from phitui.jobs.manager import Jobs
from phitui.jobs.model import FINAL, Event, Job, Progress

__all__ = ["FINAL", "Event", "Job", "Jobs", "Progress"]
