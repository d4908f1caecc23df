"""`phitui pull`."""

from __future__ import annotations

import click

from phitui.actions import pull as actions
from phitui.actions.context import Context
from phitui.actions.jobs import outcome
from phitui.cli import output
from phitui.cli.follow import duration, follow_job


def command(context: Context) -> click.Command:
    @click.command("pull")
    @click.argument("repo", metavar="REPO[@REV]")
    @click.option(
        "--to", type=click.Path(file_okay=False), default="", help="Directory.  [default: in phitui's models folder]"
    )
    @click.option(
        "--include", multiple=True, metavar="PATTERN", help="Take these files instead, such as '*Q4_K_M.gguf'."
    )
    @click.option("--force", is_flag=True, help="Download a checkpoint that cannot be converted.")
    @click.option("--detach", is_flag=True, help="Return at once; phitui jobs shows how it goes.")
    @output.json_flag
    def pull(repo: str, to: str, include: tuple[str, ...], *, force: bool, detach: bool, as_json: bool) -> None:
        """Download a checkpoint from the Hugging Face Hub, or with --include a ready GGUF.

        A checkpoint is judged by its config.json alone first. The download is a detached job that can be resumed;
        every file is compared with the Hub's checksum.
        """
        job = actions.start(context, actions.PullRequest(repo, to, include, force))
        if detach:
            output.emit({"job": job.id}, as_json, f"job {job.id}: {job.title}")
            return
        result = outcome(follow_job(context, job.id, as_json))
        figures = f"{len(result['files'])} files, {output.size(result['size'])}, in {duration(result['seconds'])}"
        output.emit({"job": job.id, **result}, as_json, f"{result['path']}  {figures}")

    return pull
