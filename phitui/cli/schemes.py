"""`phitui schemes`: what a model can be built as."""

from __future__ import annotations

from typing import Any

import click

from phitui.actions.context import Context
from phitui.actions.schemes import SchemeRow, missing_quantizers, scheme_table
from phitui.cli import flags, output
from phitui.cli.build import chosen
from phitui.domain.text import visible


def command(context: Context) -> click.Command:
    @click.command("schemes")
    @click.argument("source", required=False)
    @output.json_flag
    def schemes(source: str | None, as_json: bool, **values: Any) -> None:
        """Quantization schemes with bits per weight; with SOURCE, the exact size and fit of each."""
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
    }


def _text(rows: list[SchemeRow], source: str | None) -> str:
    shown = [
        (
            row.scheme.name,
            output.size(row.size) if row.size is not None else "",
            f"{row.bits_per_weight:.2f}" if row.bits_per_weight is not None else "",
            row.fit.text if row.fit else "",
            row.scheme.description,
            _remark(row),
        )
        for row in rows
    ]
    if source is None:
        bits = [(name, bits, description, remark) for name, _, bits, _, description, remark in shown]
        return output.table(("scheme", "bits", "", ""), bits, right=(1,))
    return output.table(("scheme", "size (exact)", "bits", "fits here", "", ""), shown, right=(1, 2))


def _remark(row: SchemeRow) -> str:
    if row.error:
        return visible(row.error)
    remarks = ["needs --imatrix"] if row.needs_imatrix else []
    if row.substitutions:
        remarks.append(f"substitutes in {row.substitutions} tensor{'s' if row.substitutions > 1 else ''}")
    return ", ".join(remarks)
