"""`phitui run`: make again what a recipe describes."""

from __future__ import annotations

from typing import Any

import click

from phitui.actions import recipe as actions
from phitui.actions.context import Context
from phitui.actions.jobs import outcome
from phitui.cli import output
from phitui.cli.follow import duration, follow_job
from phitui.domain.text import visible
from phitui.errors import UsageError


def command(context: Context) -> click.Command:
    @click.command("run")
    @click.argument("recipe", type=click.Path(), required=False)
    @click.option("--out", type=click.Path(), default="", help="GGUF to write.  [default: what the recipe says]")
    @click.option("--source", default="", help="Build from this, wherever the recipe's own source is.")
    @click.option("--check", is_flag=True, help="Only read the file and its sources: are they what the recipe says?")
    @click.option("--threads", type=click.IntRange(1, 1024), help="Threads to use.  [default: all cores]")
    @click.option("--overwrite", is_flag=True, help="Replace files that are something else.")
    @click.option("--force", is_flag=True, help="Build although a source is not the recorded one.")
    @click.option("--outside", is_flag=True, help="Let the recipe write outside of its own directory.")
    @click.option("--example", is_flag=True, help="Print a recipe to begin with.")
    @click.option("--detach", is_flag=True, help="Return at once; phitui jobs shows how it goes.")
    @output.json_flag
    def run(recipe: str | None, *, check: bool, example: bool, detach: bool, as_json: bool, **values: Any) -> int:
        """Carry out RECIPE: the TOML file that phitui writes beside every model it makes, or one of your own.

        From a recipe beside a model comes the same file again, byte for byte, or a list of what differs. A recipe of
        your own gets, builds, evaluates, plans and exports; running it again skips what is done and unchanged. The work
        is a detached job: Ctrl-C cancels it, and the same command goes on.
        """
        if example:
            text = actions.example(context)
            output.emit({"recipe": text}, as_json, text.rstrip())
            return 0
        if not recipe:
            raise UsageError(
                "there is no recipe to carry out", "phitui run RECIPE.toml; phitui run --example prints one"
            )
        request = actions.RunRequest(recipe, **values)
        job = actions.start_check(context, request) if check else actions.start(context, request)
        if detach:
            output.emit({"job": job.id}, as_json, f"job {job.id}: {job.title}")
            return 0
        result = outcome(follow_job(context, job.id, as_json))
        text = _checked(result) if check else _done(result)
        output.emit({"job": job.id, **result}, as_json, text)
        return 1 if result["same"] is False else 0

    return run


def _done(result: dict[str, Any]) -> str:
    lines = []
    for name, step in result["steps"].items():
        path = step.get("path") or ", ".join(step.get("files", []))
        if step.get("skipped") and name != "evaluate":
            lines.append(f"{name:<9} {visible(step['skipped'])}")
        elif name == "build":
            figures = f"{output.size(step['size'])}, in {duration(step['seconds'])}"
            lines.append(f"{name:<9} {visible(path)}  {figures}")
        elif name == "evaluate":
            shown = [f"{key} {step[key]:.4f}" for key in ("perplexity", "kld_mean", "top1_agreement") if key in step]
            again = f" ({step['skipped']})" if step.get("skipped") else ""
            lines.append(f"{name:<9} {', '.join(shown) or 'done'}{again}")
        elif name == "plan":
            fits = "fits" if step["fits"] else "does not fit"
            layers = f"{step['n_gpu_layers']} of {step['layers_total']} layers offloaded"
            lines.append(f"{name:<9} {layers}, {step['n_ctx']} tokens: {fits}")
        else:
            lines.append(f"{name:<9} {visible(path)}")
    if result["same"] is True:
        lines.append("byte for byte the same")
    elif result["same"] is False:
        lines.append("NOT the same as the recorded file:")
        lines += [f"  {visible(difference)}" for difference in result["differences"]]
    return "\n".join(lines)


def _checked(result: dict[str, Any]) -> str:
    wrong = [row for row in result["files"] if row["state"] != "same"]
    shown = result["files"] if len(result["files"]) <= 12 or wrong else []
    rows = [(row["state"], row["role"], visible(row["name"]), visible(row["why"])) for row in shown]
    lines = [output.table(("", "", "", ""), rows).lstrip("\n")] if rows else []
    lines += [
        f"changed after it was made: {visible(edit['what'])} ({visible(edit['date'])})" for edit in result["edits"]
    ]
    if wrong:
        lines.append(f"{len(wrong)} of {len(result['files'])} files are not what the recipe says")
    else:
        lines.append(f"all {len(result['files'])} files are what the recipe says")
    return "\n".join(lines)
