"""Quantization schemes of all quantizers: which exist, and what each makes of one source."""

from __future__ import annotations

import difflib
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from phitui.actions.context import Context
from phitui.actions.figures import Figure, Known, build_key, is_lossless, known, types_of
from phitui.actions.fit import Fit, fits
from phitui.actions.source import open_source
from phitui.domain import options
from phitui.domain.offers import Quantizer
from phitui.domain.quant import Scheme
from phitui.domain.tensors import FilePlan, TensorSource
from phitui.errors import PhituiError, Unavailable, UsageError
from phitui.plugins import Failure, availability


@dataclass(frozen=True)
class SchemeRow:
    """A scheme as listed. `size` is the exact file size in bytes for the source; None without one, or on `error`.

    `fit` is how it would fit on this machine, where a source was given and that could be worked out; `figure` is what
    was measured of it. `resolved` is the scheme that it is for this source (AUTO may be BF16), `types` a digest of the
    tensors' types, by which two schemes can be seen to be the same here. `lossless`: no weight changes.
    """

    scheme: Scheme
    quantizer: str
    size: int | None = None
    bits_per_weight: float | None = None
    substitutions: int = 0
    needs_imatrix: bool = False
    error: str = ""
    fit: Fit | None = None
    figure: Figure | None = None
    resolved: str = ""
    types: str = ""
    lossless: bool = False


def find_scheme(ctx: Context, name: str) -> tuple[Quantizer, Scheme]:
    """The quantizer and scheme of that name (any case). Raises UsageError with the nearest, or Unavailable."""
    wanted = name.strip().upper()
    known: list[str] = []
    for quantizer in ctx.registry.quantizers:
        schemes = _schemes(ctx, quantizer)
        for scheme in schemes:
            if scheme.name.upper() == wanted:
                return quantizer, scheme
        known += [scheme.name for scheme in schemes]
    for quantizer in ctx.registry.quantizers:
        state = availability(quantizer)
        if not state.ok:
            here = f"only {', '.join(known)} here" if known else "nothing here"
            raise Unavailable(f"there is no scheme {wanted}: {here}, since {state.reason}", state.hint)
    near = difflib.get_close_matches(wanted, known, 3, 0.5)
    hint = f"did you mean {' or '.join(near)}? phitui schemes lists all" if near else "phitui schemes lists all"
    failed = sorted({failure.plugin for failure in ctx.registry.failures})
    if failed:
        hint += f"; {', '.join(failed)} failed to load, phitui plugins says why"
    raise UsageError(f"there is no scheme {name!r}", hint)


def scheme_table(
    ctx: Context,
    source: str | None,
    converter: Mapping[str, Any] | None = None,
    quantizer: Mapping[str, Any] | None = None,
) -> list[SchemeRow]:
    """All schemes, from large to small; with a source, the exact size of each and what was measured of it.

    One that fails is a row with `error`. `converter` and `quantizer` are option values; a quantizer is given those
    that it knows.
    """
    opened = open_source(ctx, source, converter) if source is not None else None
    measured = known(ctx, opened) if opened is not None else Known()
    rows: list[SchemeRow] = []
    for offer in ctx.registry.quantizers:
        schemes = _schemes(ctx, offer)
        if opened is None:
            rows += [SchemeRow(s, offer.name, bits_per_weight=s.bits, needs_imatrix=s.needs_imatrix) for s in schemes]
        elif schemes:
            rows += _planned(ctx, offer, schemes, opened, quantizer or {}, measured)
    if opened is None:
        return sorted(rows, key=lambda row: -row.scheme.bits)
    return sorted(rows, key=lambda row: (row.size is None, -(row.size or 0), -row.scheme.bits))


def missing_quantizers(ctx: Context) -> list[tuple[str, str, str]]:
    """(title, reason, hint) of the quantizers that cannot be used here."""
    states = [(quantizer, availability(quantizer)) for quantizer in ctx.registry.quantizers]
    return [(quantizer.title, state.reason, state.hint) for quantizer, state in states if not state.ok]


def _planned(
    ctx: Context,
    offer: Quantizer,
    schemes: Sequence[Scheme],
    source: TensorSource,
    values: Mapping[str, Any],
    measured: Known,
) -> list[SchemeRow]:
    names = {spec.name for spec in options.specs(offer.options)}
    try:
        chosen = options.build(offer.options, {name: value for name, value in values.items() if name in names})
        plans: Mapping[str, FilePlan] = offer.plan(source, [scheme.name for scheme in schemes], chosen)
    except PhituiError as error:
        if len(schemes) > 1 and not isinstance(error, UsageError):  # one that crashes must not hide the others
            return [row for scheme in schemes for row in _planned(ctx, offer, [scheme], source, values, measured)]
        return [SchemeRow(scheme, offer.name, error=error.message) for scheme in schemes]
    found = [(scheme, plans[scheme.name]) for scheme in schemes if scheme.name in plans]
    verdicts = fits(ctx, [plan for _, plan in found])
    key = build_key(offer.options, values)
    figures = [measured.figure(plan, key) if plan.tensors else None for _, plan in found]
    return [
        _row(scheme, offer, plan, fit, figure)
        for (scheme, plan), fit, figure in zip(found, verdicts, figures, strict=True)
    ]


def _row(scheme: Scheme, offer: Quantizer, plan: FilePlan, fit: Fit | None, figure: Figure | None) -> SchemeRow:
    from phitui.gguf.header import file_size

    if not plan.tensors:
        return SchemeRow(scheme, offer.name, error=plan.refused)
    return SchemeRow(
        scheme,
        offer.name,
        size=file_size(plan),
        bits_per_weight=plan.bits_per_weight,
        substitutions=len(plan.substitutions),
        needs_imatrix=bool(plan.needs_imatrix),
        error=plan.refused,
        fit=fit,
        figure=figure,
        resolved=plan.scheme,
        types=types_of(plan),
        lossless=is_lossless(plan),
    )


def _schemes(ctx: Context, quantizer: Quantizer) -> Sequence[Scheme]:
    """The schemes of a quantizer that can be used; none, and a recorded failure, if it fails."""
    if not availability(quantizer).ok:
        return ()
    try:
        return quantizer.schemes()
    except Exception as error:  # a stranger's code must not take the others down
        failure = Failure(quantizer.name, "schemes", f"{type(error).__name__}: {error}", traceback.format_exc())
        if all((old.plugin, old.error) != (failure.plugin, failure.error) for old in ctx.registry.failures):
            ctx.registry.failures.append(failure)
        return ()
