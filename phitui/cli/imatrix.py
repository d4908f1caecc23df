"""`phitui imatrix`: an importance matrix for low-bit schemes."""

from __future__ import annotations

from typing import Any

import click

from phitui.actions import imatrix as actions
from phitui.actions.context import Context
from phitui.actions.jobs import outcome
from phitui.cli import output
from phitui.cli.follow import duration, follow_job
from phitui.domain.text import visible


def command(context: Context) -> click.Command:
    @click.command("imatrix")
    @click.argument("model")
    @click.option("--text", default="", type=click.Path(), help="UTF-8 text to read.  [default: one that comes along]")
    @click.option("--out", default="", type=click.Path(), help="File to write.  [default: in phitui's data folder]")
    @click.option(
        "--ctx", "context_length", default=512, show_default=True, type=click.IntRange(min=1), help="Tokens per chunk."
    )
    @click.option("--chunks", type=click.IntRange(min=1), help="Read at most so many chunks.  [default: all]")
    @click.option("--threads", type=click.IntRange(1, 1024), help="Threads to use.  [default: all physical cores]")
    @click.option("--layers", type=click.IntRange(min=-1), help="Layers on the GPU, -1 for all.  [default: what fits]")
    @click.option(
        "--parse-special/--no-parse-special",
        default=None,
        help="Take special tokens that the text spells out as such.  [default: only in the text that comes along]",
    )
    @click.option("--process-output", is_flag=True, help="Include output.weight.")
    @click.option("--detach", is_flag=True, help="Return at once; phitui jobs shows how it goes.")
    @click.option("--overwrite", is_flag=True, help="Replace an existing file, once the new one is complete.")
    @output.json_flag
    def imatrix(model: str, context_length: int, *, detach: bool, as_json: bool, **values: Any) -> None:
        """Make an importance matrix of MODEL (a GGUF file or a name in the library), for phitui build --imatrix.

        Use the model in its own precision (BF16, F16) where you can, else Q8_0. The file is in llama.cpp's format.
        The work is a detached job: Ctrl-C cancels it, and phitui jobs resume goes on where it stopped.
        """
        job = actions.start(context, actions.ImatrixRequest(model, context=context_length, **values))
        if detach:
            output.emit({"job": job.id}, as_json, f"job {job.id}: {job.title}")
            return
        result = outcome(follow_job(context, job.id, as_json))
        output.emit({"job": job.id, **result}, as_json, _done(result))

    return imatrix


def _done(result: dict[str, Any]) -> str:
    figures = f"{result['entries']} tensors, {result['chunks']} chunks, {result['tokens']} tokens"
    line = f"{visible(str(result['path']))}  {figures}, in {duration(result['seconds'])}"
    unused = result["unused_experts"]
    if unused:
        experts = {(name.rpartition(".ffn_")[0], number) for name, numbers in unused.items() for number in numbers}
        line += f"\n{len(experts)} experts saw no token and will be weighed evenly: try a longer or more varied --text"
    return line
