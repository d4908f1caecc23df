"""What was measured, wherever schemes are listed: figures belong to files, and files are remembered with their source.

A build notes of what content it was made and how. So the figures of a file are found for its source and scheme, also
after the file is gone: the same build gives the same file. Figures that were taken against another reference or on
another text are not comparable; those of the yardstick that most schemes were measured by come first.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from phitui.actions.context import Context
from phitui.actions.evaluate import store_file
from phitui.domain import options
from phitui.domain.choice import with_error
from phitui.domain.offers import JobContext
from phitui.domain.tensors import FilePlan, TensorSource, TensorType
from phitui.errors import PhituiError
from phitui.store.measures import Built, Measured, MeasureStore

SOURCE = "source"
"""The reference of figures that were taken against the source itself, or a lossless file of it."""


@dataclass(frozen=True)
class Yardstick:
    """What two figures of quality must share to be compared. `reference` is SOURCE, a fingerprint, or "" for none."""

    evaluator: str
    reference: str
    facts: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Figure:
    """What was measured of one scheme of a source: `quality` and `speed` may come from two evaluations.

    `comparable`: taken by the yardstick that counts for this source. `wanted`: of a file made with the importance
    matrix that was asked for, or without one if none was. `is_reference`: this scheme is what the others are compared
    with, so its divergence is 0 by definition.
    """

    built: Built | None
    quality: Measured | None
    speed: Measured | None
    comparable: bool = True
    wanted: bool = True
    is_reference: bool = False

    @property
    def kld(self) -> float | None:
        """Mean KL divergence from the reference, in nats per token."""
        return 0.0 if self.is_reference else self._value("kld_mean")

    @property
    def kld_error(self) -> float:
        return 0.0 if self.is_reference else self._value("kld_mean_error") or 0.0

    @property
    def perplexity(self) -> float | None:
        return self._value("perplexity")

    @property
    def decode(self) -> float | None:
        """Tokens per second, without a prompt."""
        return self.speed.values.get("decode_tokens_per_s") if self.speed else None

    @property
    def imatrix(self) -> str:
        return self.built.imatrix if self.built else ""

    @property
    def created(self) -> float | None:
        """When the quality was measured, in unix seconds."""
        newest = self.quality or self.speed
        return newest.created if newest else None

    @property
    def text(self) -> str:
        """The quality in a few words: KLD 0.041 ±0.002. A star says that it cannot be compared with the others."""
        if self.is_reference:
            return "reference"
        star = "" if self.comparable else " *"
        if self.kld is not None:
            return f"KLD {with_error(self.kld, self.kld_error)}{star}"
        if self.perplexity is not None:
            return f"PPL {with_error(self.perplexity, self._value('perplexity_error') or 0.0)}{star}"
        return ""

    def _value(self, name: str) -> float | None:
        return self.quality.values.get(name) if self.quality else None


class Known:
    """The figures of everything that was built from one source."""

    def __init__(
        self, pairs: Iterable[tuple[Built, Measured]] = (), references: Iterable[str] = (), identity: str = ""
    ) -> None:
        self.identity, self.references = identity, frozenset(references)
        self._pairs = list(pairs)
        self.yardstick = self._best()

    def yardstick_of(self, measured: Measured) -> Yardstick:
        fingerprint = measured.reference_fingerprint
        reference = SOURCE if fingerprint in self.references else fingerprint
        return Yardstick(measured.evaluator, reference, tuple(sorted(measured.facts.items())))

    def _best(self) -> Yardstick | None:
        """Divergences before perplexities, from the source before others, of many schemes before few, the newest."""
        schemes: dict[Yardstick, set[str]] = {}
        newest: dict[Yardstick, float] = {}
        for built, measured in self._pairs:
            if "kld_mean" in measured.values or "perplexity" in measured.values:
                yardstick = self.yardstick_of(measured)
                schemes.setdefault(yardstick, set()).add(built.scheme)
                newest[yardstick] = max(newest.get(yardstick, 0.0), measured.created)

        def rank(yardstick: Yardstick) -> tuple[bool, bool, int, float]:
            reference = yardstick.reference
            return bool(reference), reference == SOURCE, len(schemes[yardstick]), newest[yardstick]

        return max(schemes, key=rank, default=None)

    def figure(self, plan: FilePlan, key: tuple[str, str]) -> Figure | None:
        """The figure of a planned file. `key` is its `build_key`; without an imatrix, one that was made with any serves
        where there is none without."""
        chosen, matrix = key
        made = [pair for pair in self._pairs if (pair[0].scheme, pair[0].options) == (plan.scheme, chosen)]
        exact = [pair for pair in made if pair[0].imatrix == matrix]
        pairs = exact or (made if not matrix else [])
        speed = next((m for _, m in pairs if "decode_tokens_per_s" in m.values), None)
        if self.yardstick and self.yardstick.reference == SOURCE and is_lossless(plan):
            return Figure(pairs[0][0] if pairs else None, None, speed, is_reference=True)
        judged = [pair for pair in pairs if "kld_mean" in pair[1].values or "perplexity" in pair[1].values]
        same = [pair for pair in judged if self.yardstick_of(pair[1]) == self.yardstick]
        for built, measured in same or judged:
            return Figure(built, measured, speed, comparable=bool(same), wanted=bool(exact))
        return Figure(pairs[0][0], None, speed, wanted=bool(exact)) if speed else None

    def answer(self, scheme: str, key: tuple[str, str], asked: str) -> Measured | None:
        """What came of the same question before, asked about that scheme's file against the source; the newest."""
        for built, measured in self._pairs:
            same = (built.scheme, built.options, built.imatrix) == (scheme, *key)
            if asked and same and measured.asked == asked and self.yardstick_of(measured).reference == SOURCE:
                return measured
        return None


def known(ctx: Context, source: TensorSource) -> Known:
    """What was measured of builds of that source; nothing where that cannot be told."""
    from phitui.gguf.identity import source_identity

    file = store_file(ctx)
    if not file.exists():
        return Known()
    try:
        identity = source_identity(source)
        if not identity:
            return Known()
        with MeasureStore(file) as store:
            references = {built.fingerprint for built in store.built(identity) if built.lossless}
            if source.origin.is_file():
                references.add(store.fingerprint(source.origin))
            return Known(store.of_source(identity), references, identity)
    except (PhituiError, OSError, ValueError):
        return Known()


def newest(ctx: Context, paths: Iterable[Path]) -> dict[Path, Measured]:
    """The newest figures of those of these files that were measured; cheap for thousands of files."""
    file = store_file(ctx)
    if not file.exists():
        return {}
    try:
        with MeasureStore(file) as store:
            return store.newest(paths)
    except PhituiError:
        return {}


def lossless_file(ctx: Context, measured: Known) -> Path | None:
    """A lossless GGUF of that source that phitui made and that is still there."""
    try:
        with MeasureStore(store_file(ctx)) as store:
            return next((path for mark in sorted(measured.references) if (path := store.path_of(mark))), None)
    except PhituiError:
        return None


def remember_build(
    ctx: Context, plan: FilePlan, declared: type, values: Mapping[str, Any], out: Path, job: JobContext
) -> None:
    """Note of which source, and how, a finished file was made. Where that fails, the job's log says why."""
    from phitui.gguf.identity import identity

    try:
        source = identity(plan.metadata, [tensor.source for tensor in plan.tensors])
        if not source:
            return
        chosen, matrix = build_key(declared, values)
        size = out.stat().st_size
        built = Built(source, plan.scheme, chosen, matrix, is_lossless(plan), size, out.name, round(time.time(), 3))
        with MeasureStore(store_file(ctx)) as store:
            store.add_built(out, built)
    except PhituiError as error:
        job.note(f"what is measured of {out.name} will not show among the schemes: {error.message}")
    except (OSError, ValueError) as error:
        job.note(f"what is measured of {out.name} will not show among the schemes: {error}")


def build_key(declared: type, values: Mapping[str, Any]) -> tuple[str, str]:
    """(the quantizer's options as JSON, digest of the imatrix): with source and scheme, what decides a file's bytes.

    Of files that are given, the content counts. Raises OSError where one cannot be read.
    """
    known_names = {spec.name for spec in options.specs(declared)}
    plain = options.plain(options.build(declared, {name: values[name] for name in values if name in known_names}))
    for spec in options.specs(declared):
        if spec.kind is Path and not spec.repeatable and spec.name in plain:
            with Path(plain[spec.name]).expanduser().open("rb") as file:
                plain[spec.name] = hashlib.file_digest(file, "sha256").hexdigest()
            plain.pop(f"{spec.name}_name", None)  # how the file calls it decides nothing but that
    matrix = str(plain.pop("imatrix", ""))
    return json.dumps(plain, sort_keys=True), matrix


def is_lossless(plan: FilePlan) -> bool:
    """Whether every weight is what it is in the source: as it is stored, or a float as F32."""
    return bool(plan.tensors) and all(
        tensor.type == tensor.source.stored or (tensor.type is TensorType.F32 and tensor.source.stored.is_float)
        for tensor in plan.tensors
    )


def types_of(plan: FilePlan) -> str:
    """A digest of the types of all tensors."""
    return hashlib.sha256(repr([(tensor.name, int(tensor.type)) for tensor in plan.tensors]).encode()).hexdigest()[:16]


def ago(moment: float, now: float | None = None) -> str:
    """How long ago: 5 min ago, 3 h ago, 12 d ago."""
    seconds = max(0.0, (time.time() if now is None else now) - moment)
    for length, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= length:
            return f"{int(seconds // length)} {unit} ago"
    return "just now"


def as_document(figure: Figure) -> dict[str, Any]:
    """The whole figure for --json: values by name, where they come from and when; times are unix seconds."""
    quality, built = figure.quality, figure.built
    return {
        "kld_mean": figure.kld,
        "kld_mean_error": figure.kld_error if figure.kld is not None else None,
        "is_reference": figure.is_reference,
        "comparable": figure.comparable,
        "decode_tokens_per_s": figure.decode,
        "imatrix": figure.imatrix,
        "file": built.name if built else "",
        "size": built.size if built else None,
        "quality": _evaluation(quality) if quality else None,
        "speed": _evaluation(figure.speed) if figure.speed else None,
    }


def _evaluation(measured: Measured) -> dict[str, Any]:
    return {
        "values": dict(measured.values),
        "reference": measured.reference,
        "reference_fingerprint": measured.reference_fingerprint,
        "facts": dict(measured.facts),
        "conditions": dict(measured.conditions),
        "evaluator": measured.evaluator,
        "source": measured.source,
        "created": measured.created,
    }
