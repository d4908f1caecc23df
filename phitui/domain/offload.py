"""The memory plan: which layers go where, what each device then holds, and whether that fits. Pure functions.

Weights and KV cache are exact (phitui.domain.placement). Compute buffers are measured where the engine can be asked
(a MemoryProbe), else estimated (phitui.domain.compute). Sizes are bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from phitui.domain.chat import EngineSettings
from phitui.domain.compute import compute_estimate, output_buffer
from phitui.domain.hardware import Device, MemoryBuffer
from phitui.domain.placement import (
    HOST,
    KV_TYPES,
    ModelMemory,
    deal,
    kv_per_layer,
    kv_type,
    padded_context,
    weights_by_place,
)
from phitui.errors import UsageError

MIB = 1024 * 1024
MARGIN = 256 * MIB
"""What the solver leaves free on every device: the driver's own needs, and other programs."""

DEFAULT_CONTEXT = 4096
RopeFactors = Literal["short", "long", "none"]

Measure = Callable[[EngineSettings], Sequence[MemoryBuffer] | None]
"""Asks the engine what it would allocate; None where it cannot say."""


@dataclass(frozen=True)
class PlanRequest:
    """What to plan. `layers` None: the most that fit; -1: all. `context` None: 4096, or the model's if that is less.

    `devices` are what-if devices ("name=24GiB", "RAM=32GiB") instead of this machine's; `rpc` are HOST:PORT workers.
    """

    model: str
    context: int | None = None
    layers: int | None = None
    kv_type: str = "f16"
    flash_attention: bool | None = None
    devices: tuple[str, ...] = ()
    rpc: tuple[str, ...] = ()
    batch: int = 512
    ubatch: int = 512


@dataclass(frozen=True)
class DevicePlan:
    """What one device will hold. The host's row is the RAM: everything that is not offloaded."""

    name: str
    backend: str
    total: int
    free: int
    weights: int
    kv: int
    compute: int
    kind: str = "gpu"

    @property
    def sum(self) -> int:
        return self.weights + self.kv + self.compute

    @property
    def fits(self) -> bool:
        return self.sum <= self.free


@dataclass(frozen=True)
class OffloadPlan:
    """The plan. `layers_total` is the number of layers plus the output layer; `how` says where each figure is from."""

    model: str
    n_gpu_layers: int
    layers_total: int
    n_ctx: int
    rope: RopeFactors
    fits: bool
    devices: tuple[DevicePlan, ...]
    how: dict[str, str]
    warnings: tuple[str, ...] = ()
    kv_type: str = "f16"
    flash_attention: bool | None = None
    batch: int = 512
    ubatch: int = 512
    context_length: int = 0
    original_context: int | None = None
    margin: int = MARGIN
    rpc: tuple[str, ...] = field(default=())


def plan(
    model: ModelMemory, machine: Sequence[Device], request: PlanRequest, measure: Measure | None = None
) -> OffloadPlan:
    """Plan `model` on `machine` (the devices as the engine lists them, the host among them).

    Raises UsageError for a request that no machine could carry out. A plan that does not fit is returned as such.
    """
    host = host_of(machine)
    offload = offload_devices(machine)
    settings = _settings(model, request)
    if request.layers is None:
        settings = replace(settings, layers=_most_layers(model, offload, host, settings, measure))
    rows, how = _rows(model, offload, host, settings, measure)
    how["memory"] = _memory_source([*offload, host])
    return OffloadPlan(
        model=request.model,
        n_gpu_layers=settings.layers,
        layers_total=model.layers_total,
        n_ctx=settings.context,
        rope=rope_factors(model, settings.context),
        fits=all(row.fits for row in rows),
        devices=rows,
        how=how,
        warnings=_warnings(model, request, settings, offload, rows),
        kv_type=settings.kv_type,
        flash_attention=settings.flash_attention,
        batch=settings.batch,
        ubatch=settings.ubatch,
        context_length=model.context_length,
        original_context=model.original_context,
        rpc=settings.rpc,
    )


def host_of(machine: Sequence[Device]) -> Device:
    """The device that stands for this machine's RAM. Raises UsageError if there is none."""
    for device in machine:
        if device.kind == "cpu":
            return device
    raise UsageError("no host memory is known", 'give it: --device "RAM=16GiB"')


def offload_devices(machine: Sequence[Device]) -> list[Device]:
    """The devices that llama.cpp offloads to, in its order: workers first, then GPUs; an iGPU only without a GPU."""
    gpus = [device for device in machine if device.kind == "gpu"]
    shared = [device for device in machine if device.kind == "igpu"]
    same = [device for device in shared if device.backend == shared[0].backend]
    return [device for device in machine if device.kind == "remote"] + (gpus or same)


def rope_factors(model: ModelMemory, context: int) -> RopeFactors:
    """Which longrope factors llama.cpp uses: it looks at the allocated context, not at the prompt's length."""
    if model.original_context is None:
        return "none"
    return "long" if padded_context(context) > model.original_context else "short"


def default_context(model: ModelMemory) -> int:
    """The context planned when none is asked for."""
    return min(DEFAULT_CONTEXT, model.context_length) if model.context_length > 0 else DEFAULT_CONTEXT


def _settings(model: ModelMemory, request: PlanRequest) -> EngineSettings:
    context = default_context(model) if request.context is None else request.context
    if context < 1:
        raise UsageError(f"a context of {context} tokens holds nothing", "give at least 1; 4096 is usual")
    if 0 < model.context_length < context:
        raise UsageError(
            f"a context of {context} tokens is more than this model has",
            f"it was trained for {model.context_length}: --ctx {model.context_length} or less",
        )
    layers = request.layers or 0
    if layers > model.layers_total or layers < -1:
        raise UsageError(
            f"{layers} layers cannot be offloaded: this model has {model.layers_total} (the output layer included)",
            f"from 0 to {model.layers_total}, -1 for all of them, or auto",
        )
    kind = kv_type(request.kv_type)
    if request.flash_attention is False and not kind.is_float:
        raise UsageError(
            f"a {request.kv_type} KV cache needs flash attention",
            "leave flash attention on, or use f16 for the KV cache",
        )
    if request.ubatch < 1 or request.batch < 1:
        raise UsageError("a batch holds at least one token", "512 is usual")
    return EngineSettings(
        context=context,
        layers=model.layers_total if layers == -1 else layers,
        kv_type=request.kv_type.lower(),
        flash_attention=request.flash_attention,
        batch=request.batch,
        ubatch=min(request.ubatch, request.batch),
        rpc=request.rpc,
    )


def _rows(
    model: ModelMemory, offload: Sequence[Device], host: Device, settings: EngineSettings, measure: Measure | None
) -> tuple[tuple[DevicePlan, ...], dict[str, str]]:
    """The devices' rows, the host last, and where their figures come from."""
    places = deal(model.layers_total, settings.layers, [device.free or host.free for device in offload])
    weights = weights_by_place(model, places, len(offload))
    per_layer = kv_per_layer(model, settings.context, settings.kv_type)
    kv = [0] * (len(offload) + 1)
    for place in places[:-1]:
        kv[place] += per_layer
    how = {"weights": "exact", "kv": "exact", "compute": "estimated"}
    buffers = measure(settings) if measure else None
    if buffers is None:
        compute = compute_estimate(model, places, [device.kind for device in offload], settings)
        compute[HOST] += output_buffer(model)
        if model.tied and places[-1] == HOST:  # a CPU that repacks weights holds the output layer as a second copy
            how["weights"] = "estimated"
    else:
        how["compute"] = "measured"
        index = {device.name: number for number, device in enumerate(offload)}
        compute = _sum_by_place(buffers, index, len(offload), "compute")
        if all(buffer.weights is not None for buffer in buffers):
            weights = _sum_by_place(buffers, index, len(offload), "weights")
    rows = [
        DevicePlan(d.name, d.backend, d.total, d.free, weights[n], kv[n], compute[n], d.kind)
        for n, d in enumerate([*offload, host])
    ]
    return tuple(rows), how


def _sum_by_place(buffers: Sequence[MemoryBuffer], index: dict[str, int], devices: int, what: str) -> list[int]:
    """One figure per device and, last, the host: every buffer that no device owns is RAM (AMX, CPU_REPACK, ...)."""
    sums = [0] * (devices + 1)
    for buffer in buffers:
        sums[index.get(buffer.device, HOST)] += getattr(buffer, what)
    return sums


def _most_layers(
    model: ModelMemory, offload: Sequence[Device], host: Device, settings: EngineSettings, measure: Measure | None
) -> int:
    """The most layers with which every offload device keeps the margin; 0 without such a device.

    More layers never need less on a device, so the formula's answer is found by bisection; the engine's own figures
    then correct it step by step.
    """
    if not offload:
        return 0

    def ok(layers: int, ask: Measure | None) -> bool:
        rows, _ = _rows(model, offload, host, replace(settings, layers=layers), ask)
        return all(row.sum + MARGIN <= (row.free or host.free) for row in rows[:-1] if row.sum)

    low, high = 0, model.layers_total
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if ok(middle, None) else (low, middle - 1)
    if measure is None:
        return low
    while low > 0 and not ok(low, measure):
        low -= 1
    while low < model.layers_total and ok(low + 1, measure):
        low += 1
    return low


def _memory_source(devices: Sequence[Device]) -> str:
    sources = {device.source for device in devices}
    return next(iter(sources)) if len(sources) == 1 else ", ".join(sorted(sources))


def _warnings(
    model: ModelMemory,
    request: PlanRequest,
    settings: EngineSettings,
    offload: Sequence[Device],
    rows: Sequence[DevicePlan],
) -> tuple[str, ...]:
    found = []
    if rope_factors(model, settings.context) == "long":
        found.append(
            f"longrope: a context above {model.original_context} uses the long factors for every prompt, short ones "
            f"too; up to {model.original_context} the short factors are used"
        )
    if request.layers and not offload:
        found.append("no device to offload to: all layers stay on the CPU (phitui doctor says why)")
    found += [
        f"{row.name} is short of {_gib(row.sum - row.free)}: {_gib(row.sum)} needed, {_gib(row.free)} free"
        for row in rows
        if not row.fits
    ]
    found += [
        f"{row.name} would be left with less than {MARGIN // MIB} MiB"
        for row in rows
        if row.fits and row.sum and row.sum + MARGIN > row.free
    ]
    return tuple(found)


def _gib(size: int) -> str:
    return f"{size / 1024**3:.2f} GiB"


__all__ = [
    "KV_TYPES",
    "MARGIN",
    "DevicePlan",
    "Measure",
    "ModelMemory",
    "OffloadPlan",
    "PlanRequest",
    "default_context",
    "host_of",
    "offload_devices",
    "plan",
    "rope_factors",
]
