"""The converter: a checkpoint directory to a tensor source."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from phitui.api import (
    Availability,
    Checkpoint,
    InvalidFile,
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
from phitui_convert.architecture import mmproj
from phitui_convert.architecture.family import Model
from phitui_convert.architecture.rope import check_arrival
from phitui_convert.families import READERS
from phitui_convert.general import Described
from phitui_convert.vocabulary import Vocabulary

_DAMAGED = "compare its files with those of the model's repository, or download it again: phitui pull REPO"
_OTHERS = "phitui models shows which models can be converted"


@dataclass(frozen=True)
class ConvertOptions:
    """What a person can say about a conversion."""

    name: str = option("", help="general.name of the model; by default from the model card or the directory")
    pre_tokenizer: str = option(
        "", help="llama.cpp's name of the BPE pre-tokenizer, where it is not recognized", advanced=True
    )
    mmproj: bool = option(
        False,
        help="write the vision part of Phi-4-reasoning-vision instead of its text model; name the file with --out",
        advanced=True,
    )


class PhiConverter:
    """Every Phi that llama.cpp runs; of models that also see or hear, the text model."""

    name = "phi"
    title = "Phi-1 to Phi-4: dense, mini, mixtures of experts; the text part of vision and multimodal ones"
    architectures: tuple[str, ...] = tuple(READERS)
    options: type = ConvertOptions

    def available(self) -> Availability:
        return Availability()

    def versions(self) -> Mapping[str, str]:
        from importlib.metadata import version

        return {"gguf": version("gguf")}

    def inspect(self, config: Mapping[str, Any]) -> Verdict:
        return verdicts.judge(config)

    def open(self, checkpoint: Path, options: Any) -> TensorSource:
        """Check every tensor against config.json and read the tokenizer. Raises UnsupportedModel or InvalidFile."""
        try:
            return self._open(checkpoint, options)
        except (InvalidFile, UnsupportedModel) as error:
            error.hint = error.hint or (_DAMAGED if isinstance(error, InvalidFile) else _OTHERS)
            raise

    def _open(self, checkpoint: Path, options: Any) -> TensorSource:
        opened = open_checkpoint(checkpoint)
        model = _model(opened, options.mmproj)
        tensors = model.tensors(opened)
        if not options.mmproj:
            check_arrival(opened.directory, opened.config, [tensor.name for tensor in tensors])
        metadata, notes = _metadata(opened, model, tensors, options)
        if model.caveat:
            notes.insert(0, model.caveat)
        if model.left_out:
            notes.insert(0, _left_out(opened, model, tensors))
        return Source(opened.directory, model.architecture, metadata, tensors, tuple(notes))


def _model(checkpoint: Checkpoint, vision: bool) -> Model:
    if vision:
        return mmproj.read(checkpoint)
    try:
        return verdicts.read(checkpoint.config)
    except PhituiError as error:
        raise type(error)(f"{checkpoint.directory}: {error.message}", error.hint) from None


def _left_out(checkpoint: Checkpoint, model: Model, tensors: tuple[SourceTensor, ...]) -> str:
    rest = checkpoint.size - sum(tensor.stored_bytes for tensor in tensors)
    way = "; --mmproj writes a file for vision" if checkpoint.config["architectures"][0] == mmproj.SOURCE else ""
    return f"{model.left_out} of {checkpoint.directory.name} left out ({rest / 1e6:,.1f} MB): text only{way}"


def _metadata(
    checkpoint: Checkpoint, model: Model, tensors: tuple[SourceTensor, ...], options: ConvertOptions
) -> tuple[dict[str, Value], list[str]]:
    """All keys, and notes for people. The heavy libraries are imported here, on first use."""
    from phitui_convert import general

    described = general.read(checkpoint, general.count(tensors))
    head = {"general.architecture": Value.string(model.architecture)}
    if not model.vocabulary:
        head |= {"general.type": Value.string("mmproj"), "general.name": Value.string(options.name or described.name)}
        return {**head, **described.values, **model.metadata()}, list(described.notes)
    vocabulary, name, notes = _vocabulary(checkpoint, model, described, options)
    head |= {"general.type": Value.string("model"), "general.name": Value.string(name)}
    return {**head, **described.values, **model.metadata(), **vocabulary.values}, [*described.notes, *notes]


def _vocabulary(
    checkpoint: Checkpoint, model: Model, described: Described, options: ConvertOptions
) -> tuple[Vocabulary, str, list[str]]:
    """The tokenizer, the name that fits it, and notes."""
    from phitui_convert import names, tokenizer

    vocabulary = tokenizer.read(checkpoint, model.vocabulary, options.pre_tokenizer)
    name, notes = names.fit(described.name, described.identifier, vocabulary, options.name)
    return vocabulary, name, [*vocabulary.notes, *notes]
