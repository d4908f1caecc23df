"""The offer: llama.cpp's schemes."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from phitui.api import (
    Availability,
    Encoder,
    FilePlan,
    ImatrixSettings,
    InvalidFile,
    JobContext,
    Scheme,
    TensorSource,
    TensorType,
    UsageError,
    Value,
    place,
)
from phitui_quantize import library
from phitui_quantize.ask import Answer, ask
from phitui_quantize.imatrix import Imatrix, no_imatrix, read_imatrix
from phitui_quantize.options import QuantizeOptions

QUANTIZATION_VERSION = 2
"""GGML_QNT_VERSION (ggml.h)."""


class LlamaQuantizer:
    """Every scheme of the installed llama.cpp whose default type is not a plain float."""

    name = "llama.cpp"
    title = "llama.cpp quantization"
    options: type = QuantizeOptions

    def available(self) -> Availability:
        return library.available()

    def versions(self) -> Mapping[str, str]:
        """Of llama-cpp-python, and of the very library that encodes: a build of one's own may encode otherwise."""
        from importlib.metadata import PackageNotFoundError, version

        try:
            package = version("llama-cpp-python")
        except PackageNotFoundError:
            package = "unknown"
        with library.ggml_base().open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {"llama-cpp-python": package, "ggml-base": f"sha256:{digest[:16]}"}

    def schemes(self) -> Sequence[Scheme]:
        """All schemes, from large to small; bits are those of a Phi-3-mini, mixture included."""
        return _schemes(str(library.ggml_base()))

    @property
    def calibration_text(self) -> Path:
        return Path(__file__).with_name("calibration.txt")

    def collect(
        self, model: Path, text: str, out: Path, settings: ImatrixSettings, job: JobContext
    ) -> Mapping[str, Any]:
        """Make an importance matrix. Loads llama.cpp into this process: to be called in a job's."""
        from phitui_quantize.collector import collect

        return collect(model, text, out, settings, job)

    def plan(self, source: TensorSource, schemes: Sequence[str], options: QuantizeOptions) -> Mapping[str, FilePlan]:
        """The exact file for each scheme. A scheme that cannot be had for this source has `refused` set."""
        matrix = _matrix(options)
        matrix.check(source.tensors)
        names = [name.upper() for name in schemes]
        answers = ask(source, names, options.as_request(), matrix.sizes if matrix.weights else None)
        unknown = [name for name in names if name not in answers]
        if unknown:
            raise UsageError(f"llama.cpp has no scheme {unknown[0]!r}", "phitui schemes lists them")
        return {name: file_plan(source, name, answers[name], options, matrix) for name in names}

    def encoder(self, plan: FilePlan, options: QuantizeOptions) -> Encoder:
        """ggml's row encoder. Raises UsageError for a plan that was refused or lacks an imatrix."""
        from phitui_quantize.encode import RowEncoder

        if plan.refused:
            raise UsageError(plan.refused)
        matrix = _matrix(options)
        encoder = RowEncoder({t.name: matrix.values(t) for t in plan.tensors if matrix.values(t) is not None})
        lacking = plan.needs_imatrix[0] if plan.needs_imatrix else encoder.check(plan)
        if lacking:
            raise UsageError(
                f"{plan.scheme} needs an importance matrix (for {lacking})",
                "phitui imatrix makes one, for --imatrix FILE; phitui schemes shows which schemes need none",
            )
        return encoder


def _matrix(options: QuantizeOptions) -> Imatrix:
    """The importance matrix, called what the options say."""
    if not options.imatrix:
        return no_imatrix()
    matrix = read_imatrix(options.imatrix)
    return replace(matrix, path=options.imatrix_name) if options.imatrix_name else matrix


@lru_cache(maxsize=4)
def _schemes(_library: str) -> tuple[Scheme, ...]:
    """Asked once per process and library."""
    from phitui_quantize.reference import reference_source

    source, found = reference_source(), []
    for name, answer in ask(source, None, {}).items():
        plan = file_plan(source, name, answer, QuantizeOptions(), no_imatrix())
        if plan.refused or all(tensor.type.is_float for tensor in plan.tensors):
            continue
        weights: Counter[TensorType] = Counter()
        for tensor in plan.tensors:
            weights[tensor.type] += tensor.source.elements
        main = weights.most_common(1)[0][0]
        found.append(
            Scheme(
                name, round(plan.bits_per_weight, 2), answer.file_type, bool(plan.needs_imatrix), f"mostly {main.name}"
            )
        )
    return tuple(sorted(found, key=lambda scheme: (-scheme.bits, scheme.name)))


def file_plan(source: TensorSource, scheme: str, answer: Answer, options: QuantizeOptions, matrix: Imatrix) -> FilePlan:
    """llama.cpp's answer as a plan, with the keys that llama-quantize sets."""
    metadata = {key: value for key, value in source.metadata.items() if not key.startswith("split.")} | {
        "general.file_type": Value.u32(answer.file_type),
        "general.quantization_version": Value.u32(QUANTIZATION_VERSION),
        **matrix.metadata(),
    }
    if answer.error:
        refused = f"llama.cpp has no {scheme} for this model: {answer.error}"
        return FilePlan(scheme, metadata, (), notes=tuple(source.notes), refused=refused)
    try:
        tensors = place([(tensor, *answer.tensors[tensor.name]) for tensor in source.tensors])
    except InvalidFile as error:  # llama.cpp fails on it too, but only when it comes to that tensor
        return FilePlan(scheme, metadata, (), notes=tuple(source.notes), refused=f"{scheme}: {error.message}")
    notes = (*_notes(source, options), *matrix.gaps(tensors))
    plan = FilePlan(scheme, metadata, tensors, needs_imatrix=answer.needs_imatrix, notes=notes)
    return replace(plan, refused=_refusal(plan, options))


def _refusal(plan: FilePlan, options: QuantizeOptions) -> str:
    again = [t for t in plan.tensors if t.type != t.source.stored and not t.source.stored.is_float]
    if again and not options.allow_requantize:
        return (
            f"the source is quantized already ({again[0].name} is {again[0].source.stored.name}), and quantizing it "
            "again costs quality. Build from the checkpoint or a BF16 GGUF, or accept the loss with --allow-requantize"
        )
    if plan.substitutions and not options.substitutions:
        first = plan.substitutions[0]
        wanted = first.wanted.name if first.wanted else "?"
        return (
            f"{plan.scheme} needs {len(plan.substitutions)} substitute types for this model (the first: {first.name} "
            f"as {first.type.name} in place of {wanted}), and --no-substitutions refuses them"
        )
    return ""


def _notes(source: TensorSource, options: QuantizeOptions) -> tuple[str, ...]:
    """Overrides that match nothing are worth a sentence: llama.cpp ignores them silently."""
    idle = [
        text
        for text, item in zip(options.override, options.overrides(), strict=True)
        if not any(re.search(item.pattern, tensor.name) for tensor in source.tensors)
    ]
    return (*source.notes, *(f"--override {text!r} matches no tensor" for text in idle))
