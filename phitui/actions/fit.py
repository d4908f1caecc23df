"""How files that are only planned would fit on this machine: the memory plan of each, without writing anything."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from phitui.actions import loads
from phitui.actions.context import Context
from phitui.domain import offload
from phitui.domain.hardware import Device
from phitui.domain.model import ModelFacts
from phitui.domain.offload import Learned, PlanRequest
from phitui.domain.placement import model_memory
from phitui.domain.tensors import FilePlan
from phitui.errors import PhituiError


@dataclass(frozen=True)
class Fit:
    """Whether a file fits at context `n_ctx`, with how many of its layers on devices (the output layer counts).

    `n_cpu_moe` is the number of those whose experts stay in RAM.
    """

    fits: bool
    n_gpu_layers: int
    layers_total: int
    n_ctx: int
    offloads: bool
    n_cpu_moe: int = 0

    @property
    def text(self) -> str:
        if not self.offloads:
            return "fits in RAM" if self.fits else "too big for RAM"
        layers = f"{self.n_gpu_layers}/{self.layers_total} layers"
        if self.n_cpu_moe and self.n_gpu_layers:
            layers += f" ({self.n_cpu_moe}: experts in RAM)"
        return layers if self.fits else f"{layers}, too big"


def fits(ctx: Context, plans: Sequence[FilePlan]) -> list[Fit | None]:
    """The fit of each plan, compute buffers estimated; None where this machine or model cannot be planned."""
    from phitui.actions.plan import devices

    whole = next((plan for plan in plans if plan.tensors), None)
    if whole is None:
        return [None] * len(plans)
    try:
        machine, facts = devices(ctx), facts_of(whole)
    except (PhituiError, OSError):
        return [None] * len(plans)
    known = loads.learned(ctx, machine)
    return [_fit(plan, facts, machine, known) for plan in plans]


def facts_of(plan: FilePlan) -> ModelFacts:
    """The facts of a file that is not written yet: its header, read like any other."""
    from phitui.gguf.facts import facts_from_header
    from phitui.gguf.header import encode_header, file_size, read_header

    with tempfile.TemporaryDirectory(prefix="phitui-facts-") as folder:
        path = Path(folder, "model.gguf")
        with path.open("wb") as file:
            file.write(encode_header(plan))
            file.truncate(file_size(plan))
        return facts_from_header(read_header(path))


def _fit(plan: FilePlan, facts: ModelFacts, machine: Sequence[Device], known: Mapping[str, Learned]) -> Fit | None:
    if not plan.tensors:
        return None
    try:
        memory = model_memory(facts, [(tensor.name, tensor.size) for tensor in plan.tensors])
        made = offload.plan(memory, machine, PlanRequest(plan.scheme), learned=known)
    except PhituiError:
        return None
    offloads = bool(offload.offload_devices(machine))
    return Fit(made.fits, made.n_gpu_layers, made.layers_total, made.n_ctx, offloads, made.settings.n_cpu_moe)
