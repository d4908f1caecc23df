"""A plan as the Plan place tells it: its verdict, its trade-offs, and why each number is what it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from textual.content import Content

from phitui.tui import format as show
from phitui.tui.text import styled

if TYPE_CHECKING:
    from phitui.domain.offload import DevicePlan, OffloadPlan, Tradeoff

Line = Content | str


def verdict(plan: OffloadPlan) -> Content:
    """Whether it fits, and how fast it will answer."""
    fits = styled("✓ fits", "$success bold") if plan.fits else styled("✗ does not fit", "$error bold")
    return fits if plan.speed is None else fits + styled(f"   {speed(plan)}", "$muted")


def speed(plan: OffloadPlan) -> str:
    """Tokens per second with where the figure is from; empty where nothing is known."""
    if plan.speed is None:
        return ""
    rate = f"{show.figures(plan.speed.tokens_per_s)} tokens/s"
    return f"{rate} ({plan.speed.source})" if plan.speed.how == "measured" else f"at most ~{rate} (estimated)"


def tradeoffs(found: Sequence[Tradeoff], plan: OffloadPlan) -> list[Line]:
    """The most context by number of layers and KV type, as a small table."""
    if not found:
        return []
    kinds = list(dict.fromkeys(row.kv_type for row in found))
    by_layers: dict[int, dict[str, int]] = {}
    for row in found:
        by_layers.setdefault(row.layers, {})[row.kv_type] = row.context
    lines: list[Line] = [styled("most context  " + "".join(f"{kind:>10}" for kind in kinds), "$muted")]
    for layers, contexts in by_layers.items():
        name = f"{layers}/{plan.layers_total} layers" if plan.n_gpu_layers or len(by_layers) > 1 else "in RAM"
        lines.append(f"{name:<14}" + "".join(f"{contexts.get(kind) or '-':>10}" for kind in kinds))
    return lines


def experts(plan: OffloadPlan | None, value: int | None) -> str:
    """The dial of experts in RAM."""
    total = plan.expert_layers if plan else 0
    if value is None:
        return f"automatic: {plan.settings.n_cpu_moe} / {total} layers in RAM" if plan else "automatic"
    return f"{value} / {total} layers in RAM"


def why(plan: OffloadPlan) -> list[Line]:
    """Where every number of the plan comes from."""
    how = plan.how
    lines: list[Line] = [
        *_entry("layers", f"{plan.n_gpu_layers} of {plan.layers_total}", _layers_reason(plan)),
        *_entry("context", f"{plan.n_ctx} tokens", _context_reason(plan)),
        *_entry("weights", how.get("weights", ""), "from the file's header: the size of every tensor, by its layer."),
        *_entry("KV cache", how.get("kv", ""), _kv_reason(plan)),
        *_entry("compute", how.get("compute", ""), _compute_reason(plan)),
        *_entry("free memory", how.get("memory", ""), "as the engine and the system say it now; r looks again."),
    ]
    for device in plan.devices:
        lines += _device(device)
    if plan.speed is not None:
        reason = plan.speed.source if plan.speed.how == "measured" else f"from {plan.speed.source}; engines stay below."
        lines += _entry("speed", f"{show.figures(plan.speed.tokens_per_s)} tokens/s, {plan.speed.how}", reason)
    return lines


def _entry(name: str, value: str, reason: str) -> list[Line]:
    return [styled(f"{name}  ", "$accent bold") + styled(value, "bold"), styled(f"  {reason}", "$muted")]


def _layers_reason(plan: OffloadPlan) -> str:
    if not plan.n_gpu_layers:
        return "nothing is offloaded: all of it is in RAM."
    return f"the output layer goes first, then the last layers; automatic leaves {show.size(plan.margin)} free each."


def _context_reason(plan: OffloadPlan) -> str:
    if plan.rope == "none":
        return f"the model was trained for {plan.context_length}."
    side = "at most" if plan.rope == "short" else "above"
    return f"{side} {plan.original_context}: longrope uses its {plan.rope} factors for every prompt."


def _kv_reason(plan: OffloadPlan) -> str:
    keys, values = plan.kv_type, plan.settings.value_type
    kinds = keys if keys == values else f"{keys} keys, {values} values"
    return f"{kinds}: layers x KV heads x head size x context, padded as llama.cpp pads it."


def _compute_reason(plan: OffloadPlan) -> str:
    if plan.how.get("compute") == "measured":
        return f"llama.cpp was asked what it would allocate for batches of {plan.ubatch}; nothing was loaded."
    return f"by a formula, for batches of {plan.ubatch}; the engine is asked when the keys rest."


def _device(device: DevicePlan) -> list[Line]:
    name = "RAM" if device.kind == "cpu" else device.name
    parts = [
        f"{show.size(device.weights)} weights",
        f"{show.size(device.kv)} KV",
        f"{show.size(device.compute)} compute",
    ]
    if device.learned:
        loads = "1 load" if device.loads == 1 else f"{device.loads} loads"
        parts.append(f"{show.size(device.learned)} learned from {loads} before")
    reason = " + ".join(parts)
    if device.mapped:
        reason += f"; {show.size(device.mapped)} of it is the file itself, mapped (page cache)"
    return _entry(name, f"{show.size(device.sum)} of {show.size(device.free)} free", reason + ".")
