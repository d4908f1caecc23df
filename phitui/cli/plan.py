"""`phitui plan MODEL`."""

from __future__ import annotations

import sys
import textwrap
from typing import Any

import click

from phitui.actions import forecast
from phitui.actions.context import Context
from phitui.cli import flags, output
from phitui.domain.load import LoadOptions
from phitui.domain.offload import PlanRequest

WIDTH = 80
BAR = 24


def command(context: Context) -> click.Command:
    @click.command("plan")
    @click.argument("model")
    @click.option("--scheme", default="", help="MODEL is a checkpoint, here or on the Hub: plan what it would become.")
    @click.option("--device", "devices", multiple=True, help='Plan for another machine: "RTX 4070=12GiB", "RAM=32GiB".')
    @click.option("--no-probe", is_flag=True, help="Estimate compute buffers instead of asking the engine.")
    @output.json_flag
    def plan(as_json: bool, no_probe: bool, scheme: str, **values: Any) -> None:
        """Which layers fit where: weights, KV cache and compute buffers of each device.

        With --scheme, before anything is built or downloaded: phitui plan ORG/NAME --scheme Q4_K_M.
        """
        from phitui.actions.plan import as_document, tradeoffs
        from phitui.actions.plan import plan as make_plan

        name = values["model"]
        if scheme or forecast.is_checkpoint(context, name):
            name = output.seen(context, name) if scheme else name
            values["model"] = str(forecast.planned_file(context, name, scheme))
        request = flags.built(PlanRequest, values)
        made = make_plan(context, request, probe=not no_probe)
        document = as_document(made) | {"model": name, "scheme": scheme}
        document["tradeoffs"] = output.jsonable(tradeoffs(context, request, made, probe=not no_probe))
        output.emit(document, as_json, "" if as_json else text(document, unicode_stdout()))

    return flags.with_options(plan, [LoadOptions])


def unicode_stdout() -> bool:
    """Whether box art can be printed."""
    return (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"


def text(document: dict[str, Any], fancy: bool) -> str:
    """The plan in 80 columns, with a bar per device: weights, KV cache and compute buffers of what is free."""
    marks = "█▒░·" if fancy else "#=-."
    lines = [
        f"layers   {document['n_gpu_layers']} of {document['layers_total']} offloaded{_experts(document)}",
        f"context  {_context(document)}{_rope(document)}",
        f"KV       {_kv(document)}",
        *([f"speed    {_speed(document['speed'])}"] if document["speed"] else []),
        "",
    ]
    rows = [_row(device) for device in document["devices"]]
    lines.append(output.table(("device", "weights", "KV", "compute", "sum", "free", "fits"), rows, right=range(1, 6)))
    lines.append("")
    names = max(len(device["name"]) for device in document["devices"])
    lines += [f"{device['name']:<{names}}  {bar(device, marks)}" for device in document["devices"]]
    lines.append(f"{'':<{names}}  {marks[0]} weights  {marks[1]} KV  {marks[2]} compute  {marks[3]} left")
    how = document["how"]
    lines += ["", f"weights {how['weights']}, KV {how['kv']}, compute {how['compute']}, memory {how['memory']}"]
    lines += [line for device in document["devices"] for line in _remarks(device)]
    lines += [*_profiles(document), *_tradeoffs(document)]
    for warning in document["warnings"]:
        lines += textwrap.wrap(warning, WIDTH, initial_indent="! ", subsequent_indent="  ")
    lines += ["", "It fits." if document["fits"] else "It does not fit."]
    return "\n".join(lines)


def _experts(document: dict[str, Any]) -> str:
    if not document["n_cpu_moe"] or not document["n_gpu_layers"]:
        return ""
    return f", the experts of {document['n_cpu_moe']} of {document['expert_layers']} layers in RAM"


def _context(document: dict[str, Any]) -> str:
    sequences = document["n_seq"]
    if sequences == 1 or document["kv_unified"]:
        return f"{document['n_ctx']} tokens"
    return f"{document['n_ctx']} tokens, {document['n_ctx'] // sequences} for each of {sequences} sequences,"


def _rope(document: dict[str, Any]) -> str:
    if document["rope"] == "none":
        return f" of {document['context_length']}"
    return f" of {document['context_length']}, {document['rope']} rope factors (longrope)"


def _kv(document: dict[str, Any]) -> str:
    keys, values = document["kv_type"], document["kv_type_v"]
    return str(keys) if keys == values else f"keys {keys}, values {values}"


def _speed(speed: dict[str, Any]) -> str:
    rate = f"{speed['tokens_per_s']:.1f} tokens/s"
    return f"{rate} ({speed['source']})" if speed["how"] == "measured" else f"at most about {rate} ({speed['source']})"


def _remarks(device: dict[str, Any]) -> list[str]:
    """What a row of the table cannot say."""
    found = [f"{device['name']}: a device of the RPC worker {device['endpoint']}"] if device["endpoint"] else []
    if device["mapped"]:
        found.append(
            f"{device['name']}: {output.size(device['allocated'])} allocated, {output.size(device['mapped'])} mapped "
            "from the file (page cache)"
        )
    if device["learned"]:
        loads = device["learned_from_loads"]
        size = output.size(device["learned"])
        found.append(f"{device['name']}: the sum has +{size} learned from {loads} load{'s' * (loads > 1)}")
    return found


def _profiles(document: dict[str, Any]) -> list[str]:
    if not document["profiles"]:
        return []
    rows = [
        (row["rope"], str(row["n_ctx"]), f"{row['n_gpu_layers']}/{document['layers_total']}", _yes(row["fits"]))
        for row in document["profiles"]
    ]
    return ["", output.table(("rope factors", "--ctx", "layers", "fits"), rows, right=(1, 2))]


def _tradeoffs(document: dict[str, Any]) -> list[str]:
    found: dict[int, dict[str, str]] = {}
    for row in document.get("tradeoffs", ()):
        found.setdefault(row["layers"], {})[row["kv_type"]] = str(row["context"] or "-")
    if not found:
        return []
    kinds = list(next(iter(found.values())))
    rows = [
        (
            f"{layers} layers" if document["n_gpu_layers"] or len(found) > 1 else "in RAM",
            *(row.get(k, "") for k in kinds),
        )
        for layers, row in found.items()
    ]
    return ["", output.table(("most context", *kinds), rows, right=range(1, len(kinds) + 1))]


def _yes(fits: bool) -> str:
    return "yes" if fits else "NO"


def _row(device: dict[str, Any]) -> tuple[str, ...]:
    sizes = (output.size(device[key]) for key in ("weights", "kv", "compute", "sum", "free"))
    return (device["name"][:18], *sizes, _yes(device["fits"]))


def bar(device: dict[str, Any], marks: str) -> str:
    """A bar of the device's free memory; a plan that does not fit fills it and says by how much."""
    whole = max(device["free"], device["sum"], 1)
    drawn, done, reached = "", 0, 0.0
    for key, mark in zip(("weights", "kv", "compute"), marks, strict=False):
        reached += device[key]
        cells = round(BAR * reached / whole)
        drawn += mark * (cells - done)
        done = cells
    percent = 100 * device["sum"] / max(device["free"], 1)
    return f"{drawn:{marks[3]}<{BAR}}  {percent:.0f} % of {output.size(device['free'])} free"
