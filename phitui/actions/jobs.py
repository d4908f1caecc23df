"""Running, finished and interrupted work."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from phitui.actions.context import Context
from phitui.errors import Cancelled, PhituiError, UsageError
from phitui.jobs import Event, Job, Jobs


@cache
def _open(directory: Path) -> Jobs:
    return Jobs(directory)  # kept, since it remembers what it has read


def jobs(context: Context) -> Jobs:
    """The jobs of this phitui."""
    return _open(context.paths.jobs)


def list_jobs(context: Context) -> list[Job]:
    """All jobs, newest first."""
    return jobs(context).list()


def get_job(context: Context, job_id: str) -> Job:
    """The job of that id or unique prefix."""
    return jobs(context).get(job_id)


def cancel_job(context: Context, job_id: str) -> Job:
    """Stop a job; blocks until it has stopped, about a second at most."""
    return jobs(context).cancel(job_id)


def resume_job(context: Context, job_id: str) -> Job:
    """Run an interrupted, failed or cancelled job again, from where it stopped."""
    return jobs(context).resume(job_id)


def wait_job(context: Context, job_id: str, timeout: float | None = None) -> Job:
    """The job once it has ended, or as it is after `timeout` seconds."""
    return jobs(context).wait(job_id, timeout)


def follow_job(context: Context, job_id: str, new_only: bool = False) -> Iterator[Event]:
    """The job's events as they come, until its final state."""
    return jobs(context).follow(job_id, new_only)


def log_of_job(context: Context, job_id: str, last_bytes: int | None = None) -> str:
    """What the job's process wrote to stdout and stderr."""
    return jobs(context).log(job_id, last_bytes)


def follow_log(context: Context, job_id: str, until_end: bool = True) -> Iterator[str]:
    """The log in pieces, with only newlines as line ends; with `until_end` as it grows, until the job ends."""
    return jobs(context).follow_log(job_id, until_end)


def remove_job(context: Context, job_id: str) -> Job:
    """Delete the files of a job that has ended; what it produced stays."""
    return jobs(context).remove(job_id)


def remove_ended(context: Context) -> list[Job]:
    """Delete the files of all jobs that are done, failed or cancelled. Those that can go on by themselves stay."""
    ended = [job for job in list_jobs(context) if job.state in ("done", "failed", "cancelled")]
    return [remove_job(context, job.id) for job in ended]


def outcome(job: Job) -> dict[str, Any]:
    """The result of an ended job. Raises Cancelled or PhituiError for every end but a good one."""
    if job.state == "done":
        return job.result or {}
    if job.state == "cancelled":
        cancelled = Cancelled(f"job {job.id} was cancelled")
        cancelled.hint = f"phitui jobs resume {job.id}"
        raise cancelled
    error = job.error or {}
    kind = UsageError if error.get("kind") == "usage" else PhituiError
    raise kind(error.get("message", f"job {job.id} is {job.state}"), error.get("hint", ""))


def as_document(job: Job) -> dict[str, Any]:
    """The job as the JSON contract of `phitui jobs` says; times are unix seconds."""
    progress = job.progress
    return {
        "id": job.id,
        "kind": job.kind,
        "title": job.title,
        "state": job.state,
        "pid": job.pid,
        "attempt": job.attempt,
        "request": job.request,
        "argv": list(job.argv),
        "created": job.created,
        "started": job.started,
        "finished": job.finished,
        "progress": {
            "done": progress.done,
            "total": progress.total,
            "text": progress.text,
            "rate": progress.rate,
            "seconds_left": progress.seconds_left,
        },
        "result": job.result,
        "error": job.error,
        "directory": str(job.directory),
    }
