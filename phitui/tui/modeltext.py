"""What is said about a model: one of this machine, one of the catalogue, or that there is none yet."""

from __future__ import annotations

from typing import TYPE_CHECKING

from phitui.errors import PhituiError
from phitui.tui import format as show
from phitui.tui.text import styled
from phitui.tui.widgets.page import Hang, Part, bullet
from phitui.tui.widgets.page import facts as fact_lines

if TYPE_CHECKING:
    from phitui.domain.model import Artifact, KnownModel, ModelFacts, Verdict


def welcome() -> list[Part]:
    """What to do when there is no model yet."""
    return [
        styled("No model on this machine yet", "bold"),
        Hang(
            styled("  phitui demo     ", "$accent"), styled("the whole way, offline, with a small real model", "$muted")
        ),
        Hang(styled("  phitui pull ID  ", "$accent"), styled("download one of the known models", "$muted")),
        Hang(styled("  o               ", "$accent"), styled("open a file or checkpoint that you have", "$muted")),
    ]


def artifact_detail(artifact: Artifact, facts: ModelFacts | PhituiError | None) -> list[Part]:
    parts: list[Part] = [styled(artifact.name, "bold")]
    if facts is None:
        parts.append(styled("reading …", "$muted"))
    elif isinstance(facts, PhituiError):
        parts += [styled(facts.message, "$error"), styled(facts.hint, "$muted")]
    else:
        parts += [*_verdict(facts.verdict), *_facts(facts)]
    next_step = "enter builds a GGUF from it" if artifact.kind == "checkpoint" else "enter takes it in hand"
    return [*parts, *fact_lines([("path", show.short_path(artifact.path))]), "", styled(next_step, "$accent")]


def _verdict(verdict: Verdict | None) -> list[Part]:
    if verdict is None:
        return []
    if verdict.ok:
        return [styled("✓ convertible", "$success")]
    nearest = f"; nearest: {verdict.nearest}" if verdict.nearest else ""
    return [bullet("✗", f"not convertible: {verdict.reason}{nearest}", "$error")]


def _facts(facts: ModelFacts) -> list[Part]:
    rope = facts.rope
    longrope = f" ({rope.scaling}, {rope.original_context})" if rope.original_context else ""
    experts = f", {facts.experts_used} of {facts.experts} experts" if facts.experts else ""
    tied = ", tied" if facts.tied_embeddings else ""
    return fact_lines(
        [
            ("model", f"{facts.architecture} {show.count(facts.parameters)}, {facts.layers} layers{experts}"),
            ("context", f"{facts.context_length}{longrope}"),
            ("vocabulary", f"{facts.vocabulary} {facts.tokenizer}{tied}"),
            ("chat format", facts.chat_format),
            ("license", facts.license),
        ]
    )


def known_detail(model: KnownModel) -> list[Part]:
    rows = [
        ("id", model.id),
        ("model", f"{model.architecture} {model.parameters}"),
        ("context", str(model.context_length)),
        ("chat format", model.chat_format),
        ("license", model.license),
        ("note", model.note),
    ]
    parts: list[Part] = [styled(model.title, "bold"), *_verdict(model.verdict), *fact_lines(rows)]
    if model.verdict.ok:
        parts += ["", styled("enter downloads it", "$accent")]
    return parts
