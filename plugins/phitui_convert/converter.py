"""The converter: a checkpoint directory to a tensor source."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from phitui.api import (
    Availability,
    Checkpoint,
    PhituiError,
    Source,
    SourceTensor,
    TensorSource,
    UnsupportedModel,
    Value,
    Verdict,
    open_checkpoint,
    option,
)
from phitui_convert import verdicts
from phitui_convert.architecture import phi3


@dataclass(frozen=True)
class ConvertOptions:
    """What a person can say about a conversion."""

    name: str = option("", help="general.name of the model; by default from the model card or the directory")
    pre_tokenizer: str = option(
        "", help="llama.cpp's name of the BPE pre-tokenizer, where it is not recognized", advanced=True
    )


class Phi3Converter:
    """Phi-3, 3.5, 4 and 4-mini checkpoints."""

    name = "phi3"
    title = "Phi-3, Phi-3.5, Phi-4, Phi-4-mini (Phi3ForCausalLM)"
    architectures: tuple[str, ...] = (verdicts.SUPPORTED,)
    options: type = ConvertOptions

    def available(self) -> Availability:
        return Availability()

    def inspect(self, config: Mapping[str, Any]) -> Verdict:
        return verdicts.judge(config)

    def open(self, checkpoint: Path, options: Any) -> TensorSource:
        """Check every tensor against config.json and read the tokenizer. Raises UnsupportedModel or InvalidFile."""
        opened = open_checkpoint(checkpoint)
        phi = _hyperparameters(opened)
        tensors = phi3.tensors(phi, opened)
        metadata, notes = _metadata(opened, phi, tensors, options)
        return Source(opened.directory, phi3.NAME, metadata, tensors, tuple(notes))


def _hyperparameters(checkpoint: Checkpoint) -> phi3.Phi3:
    refusal = verdicts.refuse(checkpoint.config)
    if refusal is not None:
        hint = f"nearest supported: {refusal.nearest}" if refusal.nearest else "see: phitui models"
        raise UnsupportedModel(f"{checkpoint.directory}: {refusal.reason}", hint)
    try:
        return phi3.read(checkpoint.config)
    except PhituiError as error:
        raise type(error)(f"{checkpoint.directory}: {error.message}", error.hint) from None


def _metadata(
    checkpoint: Checkpoint, phi: phi3.Phi3, tensors: tuple[SourceTensor, ...], options: ConvertOptions
) -> tuple[dict[str, Value], list[str]]:
    """All keys, and notes for people. The heavy libraries are imported here, on first use."""
    from phitui_convert import general, names, tokenizer

    vocabulary = tokenizer.read(checkpoint, phi.vocabulary, options.pre_tokenizer)
    described = general.read(checkpoint, sum(tensor.elements for tensor in tensors))
    name, notes = names.fit(described.name, described.identifier, vocabulary, options.name)
    metadata = {
        "general.architecture": Value.string(phi3.NAME),
        "general.type": Value.string("model"),
        "general.name": Value.string(name),
        **described.values,
        **phi3.metadata(phi),
        **vocabulary.values,
    }
    return metadata, [*described.notes, *vocabulary.notes, *notes]
