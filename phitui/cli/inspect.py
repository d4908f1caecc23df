"""`phitui inspect`."""

from __future__ import annotations

import contextlib

import click

from phitui.actions import models as actions
from phitui.actions.context import Context
from phitui.cli import output
from phitui.domain.model import ModelFacts, Rope
from phitui.errors import InvalidFile, UnsupportedModel, UsageError


def command(context: Context) -> click.Command:
    @click.command("inspect")
    @click.argument("source")
    @output.json_flag
    def inspect(source: str, as_json: bool) -> None:
        """Facts of one model, from its header or config alone.

        SOURCE is a GGUF file, a checkpoint directory, a name in the library or a Hub repo id.
        """
        with contextlib.suppress(UnsupportedModel, InvalidFile, UsageError):  # then config.json alone tells
            source = output.seen(context, source)
        facts = actions.inspect(context, source)
        output.emit(facts, as_json, _text(facts))

    return inspect


def _text(facts: ModelFacts) -> str:
    verdict = facts.verdict
    rows = [
        ("name", facts.name),
        ("architecture", facts.architecture),
        ("parameters", f"{facts.parameters:,}" if facts.parameters else "unknown"),
        ("scheme", facts.scheme or "unknown"),
        ("size", output.size(facts.size) if facts.size else "unknown"),
        ("layers", str(facts.layers)),
        ("context", f"{facts.context_length:,} tokens"),
        ("rope", _rope(facts.rope)),
        ("attention", f"{facts.heads} heads, {facts.heads_kv} for keys and values, {facts.key_length} wide"),
        ("embedding", f"{facts.embedding_length}{', tied to the output' if facts.tied_embeddings else ''}"),
        ("feed forward", str(facts.feed_forward_length)),
        ("experts", f"{facts.experts}, {facts.experts_used} used" if facts.experts else ""),
        ("vocabulary", f"{facts.vocabulary:,} tokens"),
        ("tokenizer", facts.tokenizer),
        ("chat format", facts.chat_format),
        ("license", facts.license),
        ("made from", facts.lineage),
        ("verdict", "" if verdict is None else f"{'convertible' if verdict.ok else 'unsupported'}: {verdict.reason}"),
        ("nearest", verdict.nearest if verdict else ""),
    ]
    width = max(len(label) for label, _ in rows)
    return "\n".join(f"{label.ljust(width)}  {value}" for label, value in rows if value)


def _rope(rope: Rope) -> str:
    text = f"{rope.dimensions} dimensions, base {rope.base:g}"
    if rope.scaling != "none":
        text += f", {rope.scaling}"
    if rope.original_context:
        text += f" above {rope.original_context:,} tokens"
    return text
