"""`phitui plan MODEL`."""

from __future__ import annotations

import sys
import textwrap
from typing import Any

import click

from phitui.actions.context import Context
from phitui.cli import output
from phitui.domain.placement import KV_TYPES
from phitui.errors import UsageError

WIDTH = 80
BAR = 24
_SWITCH = {"auto": None, "on": True, "off": False}


def command(context: Context) -> click.Command:
    @click.command("plan")
    @click.argument("model")
    @click.option("--ctx", "context_length", type=int, help="Context in tokens.  [default: 4096, or the model's]")
    @click.option("--layers", default="auto", help="Layers to offload: a number, all, or auto (the most that fit).")
    @click.option("--kv-type", default="f16", type=click.Choice(KV_TYPES, case_sensitive=False), show_default=True)
    @click.option("--flash-attn", default="auto", type=click.Choice(list(_SWITCH)), show_default=True)
    @click.option("--device", "devices", multiple=True, help='Plan for another machine: "RTX 4070=12GiB", "RAM=32GiB".')
    @click.option("--rpc", multiple=True, metavar="HOST:PORT", help="Also use the devices of this RPC worker.")
    @click.option("--batch", type=click.IntRange(min=1), default=512, show_default=True, help="Logical batch, tokens.")
    @click.option(
        "--ubatch", type=click.IntRange(min=1), default=512, show_default=True, help="Physical batch, tokens."
    )
    @click.option("--no-probe", is_flag=True, help="Estimate compute buffers instead of asking the engine.")
    @output.json_flag
    def plan(as_json: bool, no_probe: bool, layers: str, flash_attn: str, **values: Any) -> None:
        """Which layers fit where: weights, KV cache and compute buffers of each device."""
        from phitui.actions.plan import as_document
        from phitui.actions.plan import plan as make_plan
        from phitui.domain.offload import PlanRequest

        request = PlanRequest(
            model=values["model"],
            context=values["context_length"],
            layers=layer_count(layers),
            kv_type=values["kv_type"].lower(),
            flash_attention=_SWITCH[flash_attn],
            devices=values["devices"],
            rpc=values["rpc"],
            batch=values["batch"],
            ubatch=values["ubatch"],
        )
        document = as_document(make_plan(context, request, probe=not no_probe))
        output.emit(document, as_json, "" if as_json else text(document, unicode_stdout()))

    return plan


def layer_count(given: str) -> int | None:
    """--layers: None for auto, -1 for all, else the number. Raises UsageError."""
    if given.lower() == "auto":
        return None
    if given.lower() == "all":
        return -1
    try:
        return int(given)
    except ValueError:
        raise UsageError(f"--layers {given!r} is no number", "a number, all, or auto") from None


def unicode_stdout() -> bool:
    """Whether box art can be printed."""
    return (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"


def text(document: dict[str, Any], fancy: bool) -> str:
    """The plan in 80 columns, with a bar per device: weights, KV cache and compute buffers of what is free."""
    marks = "█▒░·" if fancy else "#=-."
    lines = [
        f"layers   {document['n_gpu_layers']} of {document['layers_total']} offloaded",
        f"context  {document['n_ctx']} tokens" + _rope(document),
        f"KV       {document['kv_type']}",
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
    for warning in document["warnings"]:
        lines += textwrap.wrap(warning, WIDTH, initial_indent="! ", subsequent_indent="  ")
    lines += ["", "It fits." if document["fits"] else "It does not fit."]
    return "\n".join(lines)


def _rope(document: dict[str, Any]) -> str:
    if document["rope"] == "none":
        return f" of {document['context_length']}"
    return f" of {document['context_length']}, {document['rope']} rope factors (longrope)"


def _row(device: dict[str, Any]) -> tuple[str, ...]:
    sizes = (output.size(device[key]) for key in ("weights", "kv", "compute", "sum", "free"))
    return (device["name"][:18], *sizes, "yes" if device["fits"] else "NO")


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
