"""`phitui schemes`: what a model can be built as."""

from __future__ import annotations

import shutil
import sys
from typing import Any

import click

from phitui.actions import figures
from phitui.actions.context import Context
from phitui.actions.schemes import SchemeRow, missing_quantizers, scheme_table
from phitui.cli import flags, output
from phitui.cli.build import chosen
from phitui.domain.text import visible

_WIDE = 110
"""Columns of a terminal in which a line with figures has room."""


def command(context: Context) -> click.Command:
    @click.command("schemes")
    @click.argument("source", required=False)
    @output.json_flag
    def schemes(source: str | None, as_json: bool, **values: Any) -> None:
        """Quantization schemes with bits per weight; with SOURCE, the exact size and fit of each.

        SOURCE may be a repo of the Hugging Face Hub, ORG/NAME: then its headers are read, and nothing is downloaded.
        What phitui eval measured of files built from SOURCE is shown with them.
        """
        if source is not None:
            source = output.seen(context, source)
        rows = scheme_table(context, source, *chosen(context, values))
        for title, reason, hint in missing_quantizers(context):
            output.say(f"{title} is not available: {reason}; {hint}")
        output.emit({"source": source, "schemes": [_document(row) for row in rows]}, as_json, _text(rows, source))

    converters = [offer.options for offer in context.registry.converters]
    quantizers = [offer.options for offer in context.registry.quantizers]
    return flags.with_options(schemes, [*converters, *quantizers])


def _document(row: SchemeRow) -> dict[str, Any]:
    return {
        "scheme": row.scheme.name,
        "quantizer": row.quantizer,
        "description": row.scheme.description,
        "file_type": row.scheme.file_type,
        "size": row.size,
        "bits_per_weight": row.bits_per_weight,
        "substitutions": row.substitutions,
        "needs_imatrix": row.needs_imatrix,
        "error": row.error,
        "fit": row.fit,
        "figure": figures.as_document(row.figure) if row.figure else None,
    }


def _text(rows: list[SchemeRow], source: str | None) -> str:
    """The table. Columns of what was measured are there where something was, in place of the descriptions."""
    if source is None:
        bits = [(row.scheme.name, _bits(row), row.scheme.description, _remark(row)) for row in rows]
        return output.table(("scheme", "bits", "", ""), bits, right=(1,))
    if any(row.figure for row in rows):
        return _measured(rows)
    shown = [(row.scheme.name, _size(row), _bits(row), _fit(row), row.scheme.description, _remark(row)) for row in rows]
    return output.table(("scheme", "size (exact)", "bits", "fits here", "", ""), shown, right=(1, 2))


def _measured(rows: list[SchemeRow]) -> str:
    """The table with what was measured in place of the descriptions; on a narrow terminal without age and bits."""
    narrow = sys.stdout.isatty() and shutil.get_terminal_size().columns < _WIDE
    head = ("scheme", "size (exact)", "fits here", "quality", "tok/s", "")
    shown = [(r.scheme.name, _size(r), _fit(r), _quality(r, not narrow), _speed(r), _remark(r, narrow)) for r in rows]
    if narrow:
        table = output.table(head, shown, right=(1, 4))
    else:
        wide = [(*cells[:2], _bits(row), *cells[2:]) for row, cells in zip(rows, shown, strict=True)]
        table = output.table((*head[:2], "bits", *head[2:]), wide, right=(1, 2, 5))
    return "\n".join([table, *_footnotes(rows)])


def _size(row: SchemeRow) -> str:
    return output.size(row.size) if row.size is not None else ""


def _fit(row: SchemeRow) -> str:
    return row.fit.text if row.fit else ""


def _bits(row: SchemeRow) -> str:
    return f"{row.bits_per_weight:.2f}" if row.bits_per_weight is not None else ""


def _quality(row: SchemeRow, aged: bool) -> str:
    """KLD 0.041 ±0.002 · 12 d ago"""
    figure = row.figure
    if figure is None or not figure.text:
        return ""
    when = f" · {figures.ago(figure.quality.created)}" if figure.quality and aged else ""
    matrix = " · imatrix" if figure.imatrix else ""
    return figure.text + matrix + when


def _speed(row: SchemeRow) -> str:
    return f"{row.figure.decode:.1f}" if row.figure and row.figure.decode else ""


def _footnotes(rows: list[SchemeRow]) -> list[str]:
    """Where the figures come from: said once, since those that are comparable share it."""
    found = [row.figure for row in rows if row.figure]
    main = next((figure.quality for figure in found if figure.quality and figure.comparable), None)
    notes = [f"quality: {visible(main.source)}"] if main else []
    if any(not figure.comparable for figure in found):
        notes.append(
            "* measured against another reference, or on another text or part of it: not comparable with the others"
        )
    return [f"\n{note}" if number == 0 else note for number, note in enumerate(notes)]


def _remark(row: SchemeRow, short: bool = False) -> str:
    if row.error:
        return visible("not possible" if short else row.error)
    remarks = ["needs --imatrix"] if row.needs_imatrix else []
    if row.substitutions and not short:
        remarks.append(f"substitutes in {row.substitutions} tensor{'s' if row.substitutions > 1 else ''}")
    return ", ".join(remarks)
