"""`phitui eval`: quality and speed of a model, measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from phitui.actions import evaluate as actions
from phitui.actions.context import Context
from phitui.actions.jobs import outcome
from phitui.cli import flags, output
from phitui.cli.follow import follow_job
from phitui.domain.text import visible

TITLES = {
    "perplexity": "perplexity",
    "reference_perplexity": "perplexity of the reference",
    "ln_perplexity_ratio": "ln(perplexity / reference's)",
    "kld_mean": "KL divergence, mean",
    "kld_median": "KL divergence, median",
    "kld_p90": "KL divergence, 90 %",
    "kld_p99": "KL divergence, 99 %",
    "kld_p999": "KL divergence, 99.9 %",
    "kld_max": "KL divergence, maximum",
    "top1_agreement": "same likeliest token",
    "prompt_tokens_per_s": "prompt, tokens per second",
    "decode_tokens_per_s": "decoding, tokens per second",
    "tokens": "tokens scored",
    "chunks": "chunks",
    "context": "tokens in a chunk",
    "seconds": "seconds it took",
}
"""Names of figures for people; others are shown as they are called."""
_COUNTS = ("tokens", "chunks", "context")


def command(context: Context) -> click.Command:
    @click.command("eval")
    @click.argument("model")
    @click.option("--reference", metavar="MODEL", default="", help="Compare with this one, usually the BF16 file.")
    @click.option(
        "--text", type=click.Path(), metavar="FILE", default="", help="Text.  [default: a short one of phitui's]"
    )
    @click.option("--evaluator", default="", help="Which evaluator.  [default: the first one that can be used]")
    @click.option("--detach", is_flag=True, help="Return at once; phitui jobs shows how it goes.")
    @output.json_flag
    def evaluate(model: str, reference: str, text: str, detach: bool, as_json: bool, **values: Any) -> None:
        """Measure the quality and speed of MODEL (a GGUF file or a name in the library).

        Perplexity as llama-perplexity gives it; with --reference also KL divergence and how often both models think
        the same token likeliest. A detached job: Ctrl-C cancels it, phitui jobs resume goes on. The figures are
        remembered with the model.
        """
        name = values["evaluator"]
        chosen = [offer for offer in context.registry.evaluators if offer.name == name]
        chosen = chosen or context.registry.evaluators
        given: dict[str, Any] = {}
        for offer in chosen:
            given |= flags.given(offer.options, values)
        job = actions.start(context, actions.EvaluateRequest(model, reference, text, name, given))
        if detach:
            output.emit({"job": job.id}, as_json, f"job {job.id}: {job.title}")
            return
        result = outcome(follow_job(context, job.id, as_json))
        output.emit({"job": job.id, **result}, as_json, table(result))

    return flags.with_options(evaluate, [offer.options for offer in context.registry.evaluators])


def table(document: Mapping[str, Any]) -> str:
    """The figures with their errors, and where they come from."""
    figures = {name: value for name, value in document.items() if isinstance(value, int | float)}
    errors = {name.removesuffix("_error") for name in figures if name.endswith("_error")}
    names = [name for name in TITLES if name in figures]
    names += [name for name in figures if name not in TITLES and name != "created" and not name.endswith("_error")]
    rows = [
        (
            TITLES.get(name, visible(name)),
            _number(name, figures[name]),
            f"± {_number(name, figures[name + '_error'])}" if name in errors else "",
        )
        for name in names
    ]
    return f"{output.table(('figure', 'value', 'standard error'), rows, right=(1,))}\n{visible(document['source'])}"


def _number(name: str, value: float) -> str:
    if name in _COUNTS:
        return f"{value:.0f}"
    if name.endswith(("agreement", "agreement_error")):
        return f"{100 * value:.3f} %"
    if name.endswith("_per_s") or name == "seconds":
        return f"{value:.1f}"
    return f"{value:.6f}" if abs(value) < 1 else f"{value:.4f}"
