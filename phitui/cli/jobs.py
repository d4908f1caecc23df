"""`phitui jobs`: the journal of long work."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import click

from phitui.actions import jobs as actions
from phitui.actions.context import Context
from phitui.cli import output
from phitui.cli.follow import duration, follow_job, progress_text
from phitui.domain.text import visible
from phitui.errors import UsageError
from phitui.jobs import Job


def _or_of_group(ctx: click.Context, _: click.Parameter, value: bool) -> bool:
    return value or bool(ctx.parent and ctx.parent.params.get("as_json"))


_JOB = click.argument("job_id", metavar="ID")
_JSON = click.option("--json", "as_json", is_flag=True, callback=_or_of_group, help="One JSON document on stdout.")


def command(context: Context) -> click.Command:
    @click.group("jobs", invoke_without_command=True)
    @_JSON
    @click.pass_context
    def jobs(ctx: click.Context, as_json: bool) -> None:
        """Running, finished and interrupted work. ID may be any unique beginning or end of a job's id."""
        if ctx.invoked_subcommand is None:
            _list(context, as_json)

    for add in (_add_looking, _add_following, _add_acting):
        add(jobs, context)
    return jobs


def _add_looking(group: click.Group, context: Context) -> None:
    @group.command("list")
    @_JSON
    def list_(as_json: bool) -> None:
        """All jobs, newest first."""
        _list(context, as_json)

    @group.command("show")
    @_JOB
    @_JSON
    def show(job_id: str, as_json: bool) -> None:
        """One job: request, state, progress, result or error."""
        _emit(actions.get_job(context, job_id), as_json)


def _add_following(group: click.Group, context: Context) -> None:
    @group.command("log")
    @_JOB
    @click.option("--follow", "-f", is_flag=True, help="Go on until the job ends.")
    @_JSON
    def log(job_id: str, follow: bool, as_json: bool) -> None:
        """What the job's process wrote, native code included."""
        job = actions.get_job(context, job_id)
        if as_json:
            if follow:
                actions.wait_job(context, job.id)
            output.emit({"id": job.id, "log": actions.log_of_job(context, job.id)}, as_json)
            return
        for text in actions.follow_log(context, job.id, follow):
            click.echo(visible(text, keep="\n\t"), nl=False)

    @group.command("wait")
    @_JOB
    @_JSON
    def wait(job_id: str, as_json: bool) -> int:
        """Wait for the end, with progress on stderr.

        Exits 0 done, 1 failed or interrupted, 2 where the request itself was wrong, 130 cancelled.

        Ctrl-C only stops waiting; the job goes on.
        """
        return _end(follow_job(context, job_id, as_json, cancels=False), as_json)


def _add_acting(group: click.Group, context: Context) -> None:
    @group.command("cancel")
    @_JOB
    @_JSON
    def cancel(job_id: str, as_json: bool) -> None:
        """Stop a job; it can be resumed. One that has ended stays as it is."""
        job = actions.cancel_job(context, job_id)
        output.emit(actions.as_document(job), as_json, f"job {job.id} is {job.state}")

    @group.command("resume")
    @_JOB
    @click.option("--detach", is_flag=True, help="Return at once.")
    @_JSON
    def resume(job_id: str, detach: bool, as_json: bool) -> int:
        """Go on with an interrupted, failed or cancelled job where it stopped."""
        job = actions.resume_job(context, job_id)
        if detach:
            output.emit(actions.as_document(job), as_json, f"job {job.id} is {job.state}: {job.title}")
            return 0
        return _end(follow_job(context, job.id, as_json), as_json)

    @group.command("remove")
    @click.argument("job_ids", metavar="[ID]...", nargs=-1)
    @click.option("--ended", is_flag=True, help="All jobs that are done, failed or cancelled.")
    @_JSON
    def remove(job_ids: tuple[str, ...], ended: bool, as_json: bool) -> None:
        """Forget jobs that have ended. What they produced stays."""
        if not job_ids and not ended:
            raise UsageError("no job is named", "give an id, several, or --ended for all that have ended")
        removed = [actions.remove_job(context, job_id) for job_id in job_ids]
        removed += actions.remove_ended(context) if ended else []
        lines = "\n".join(f"job {job.id} is removed" for job in removed) or "no job has ended"
        output.emit({"removed": [actions.as_document(job) for job in removed]}, as_json, lines)


def _list(context: Context, as_json: bool) -> None:
    found = actions.list_jobs(context)
    output.emit({"jobs": [actions.as_document(job) for job in found]}, as_json, _table(found))


def _emit(job: Job, as_json: bool) -> None:
    output.emit(actions.as_document(job), as_json, _text(job))


def _end(job: Job, as_json: bool) -> int:
    """Print an ended job; its exit code."""
    if as_json:
        _emit(job, as_json)
        usage = (job.error or {}).get("kind") == "usage"
        return {"done": 0, "cancelled": 130}.get(job.state, 2 if usage else 1)
    actions.outcome(job)
    _emit(job, as_json)
    return 0


def _table(found: list[Job]) -> str:
    if not found:
        return "no jobs yet: phitui build starts one"
    rows = [(job.id, job.state, _how_far(job), _age(job), visible(job.title)) for job in found]
    return output.table(("id", "state", "progress", "age", "what"), rows, right=(2, 3))


def _how_far(job: Job) -> str:
    return f"{100 * job.progress.fraction:.0f} %" if job.progress.total > 0 else ""


def _age(job: Job) -> str:
    return duration(max(0.0, time.time() - job.created))


def _text(job: Job) -> str:
    lines: list[tuple[str, Any]] = [("job", job.id), ("what", job.title), ("state", job.state)]
    if job.attempt > 1:
        lines.append(("attempt", job.attempt))
    if job.pid:
        lines.append(("process", job.pid))
    at_work = job.progress if job.live else replace(job.progress, rate=0.0, seconds_left=None)
    lines.append(("progress", progress_text(at_work)))
    lines.append(("created", time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(job.created))))
    if job.started and job.finished:
        lines.append(("took", duration(job.finished - job.started)))
    lines += [(f"request {name}", value) for name, value in job.request.items() if value not in (None, "", {}, [])]
    lines += [(name, value) for name, value in (job.result or {}).items()]
    if job.error:
        lines += [("error", job.error.get("message", "")), ("try", job.error.get("hint", ""))]
    lines.append(("files", job.directory))
    shown = [(name, visible(str(value))) for name, value in lines if value not in (None, "")]
    width = max(len(name) for name, _ in shown)
    return "\n".join(f"{name.ljust(width)}  {value}" for name, value in shown)
